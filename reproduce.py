"""The paper's tables and figures as a plan of the scripts' own commands: list it, price it, run it, report it.

    python reproduce.py quick                           # a toy transfer in two minutes on two CPU cores, no download
    python reproduce.py list 3a fig2                    # the commands behind a table or figure, and which are done
    python reproduce.py cost 3a fig2                    # the hours they would take here, at speeds measured by benchmark.py
    python reproduce.py run 3a fig2 --gpus 0,1,2,3      # run what is missing, one run per GPU; --jobs 4: four on each
    python reproduce.py run --shard 2/8                 # the second of eight machines
    python reproduce.py report                          # report.md, report.json, runs.jsonl and figures in --out

Without a table: all of the paper's (1, 3a, 3b, 4, 5, 6, fig1, fig2). `baselines` is ResNet-32 with four losses.
Every stage has a run folder in --out, so the same command again resumes, and what several tables share is run once. A scale
is a set of defaults for the flags; `quick` is `run` and then `report` at the scale `quick`.
"""

import json
import os
from collections import Counter
from pathlib import Path

from common import flags, paper, report, runner, runtime, spaces
from common.plan import FIGURE_1_ARCH, TABLES, given, make_plan

SETTING = {  # flag: the paper's value, type, help
    "source": ("cifar10", os.path.normpath, "balanced dataset or folder"),
    "target": ("cifar100", os.path.normpath, "dataset or folder that is made long-tailed"),
    "space": ("nats", str, "search space of the super-nets; Figure 1 and the study are always of nats"),
    "image_size": (32, flags.image_size, "side of the images in pixels"),
    "channels": (None, flags.width, "width of the first stage (default: the space's)"),
    "cells": (None, flags.positive_int, "as in train_supernet.py (default: the space's); if given, Table 1's nets have 5"),
    "source_epochs": (600, flags.positive_int, "epochs of the source's super-net"),
    "adapt_epochs": (200, flags.positive_int, "epochs of P1 and P2"),
    "target_epochs": (600, flags.positive_int, "epochs of the target's super-net (P3)"),
    "subnet_epochs": (200, flags.positive_int, "epochs of a sub-net"),
    "warmup": (5, flags.count, "warm-up epochs when training from scratch"),
    "generations": (20, flags.positive_int, "generations of a search"),
    "population": (50, flags.positive_int, "architectures per generation, half by crossover and half by mutation"),
    "bn_images": (2000, flags.positive_int, "training images that BN statistics are rebuilt from"),
    "val_images": (0, flags.count, "search on about this many held-out training images; 0: on the test split"),
}
SCALES = {  # what differs from the paper
    "paper": {},
    # Half of the paper's epochs: 3 seeds of Tables 3 and 6 and Figure 2 take 9 hours on an H100 that four runs share.
    "day": {"source_epochs": 300, "adapt_epochs": 100, "target_epochs": 300, "subnet_epochs": 100},
    # One GPU, some minutes per ratio: the paper's networks, and too few epochs to say much about its setting.
    "minutes": {"source_epochs": 6, "adapt_epochs": 12, "target_epochs": 24, "subnet_epochs": 16, "warmup": 1,
                "generations": 5, "population": 12, "bn_images": 1000, "val_images": 2000},
    # Two CPU cores, days: the table `study`.
    "study": {"tables": ["study"], "source": "data/tinyimagenet100", "target": "data/cifar10", "image_size": 16,
              "channels": 8, "cells": 2, "source_epochs": 60, "adapt_epochs": 20, "target_epochs": 60, "subnet_epochs": 20,
              "warmup": 1, "seeds": 5},
    # A toy: one transfer between small made-up images.
    "quick": {"tables": ["6", "fig2"], "ratios": [100], "source": "synthetic100", "target": "synthetic10", "image_size": 16,
              "channels": 8, "cells": 1, "source_epochs": 1, "adapt_epochs": 2, "target_epochs": 4, "subnet_epochs": 8,
              "warmup": 0, "generations": 3, "population": 10, "bn_images": 500, "val_images": 1000, "seeds": 1, "jobs": 2},
}  # fmt: skip


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    parser.add_argument("command", choices=("quick", "list", "cost", "run", "report"), help="what to do with the plan")
    parser.add_argument("tables", nargs="*", default=[], metavar="TABLE", help=f"tables and figures: {', '.join(TABLES)}")
    parser.add_argument(
        "--scale", choices=SCALES, help="defaults of the flags below (default: quick for the command quick, else paper)"
    )
    for name, (default, kind, text) in SETTING.items():
        choices = spaces.SPACES if name == "space" else None
        parser.add_argument("--" + name.replace("_", "-"), default=default, type=kind, choices=choices, help=text)
    add = parser.add_argument
    add("--seeds", type=flags.positive_int, default=3, help="number of seeds, from 0")
    add("--ratios", type=flags.ratio, nargs="+", help="imbalances of Tables 3 to 6 and Figure 2 (default: the paper's)")
    add("--device", help="device of every run: auto, cpu, cuda, ... (default: cuda with --gpus, else auto)")
    add("--data-root", help="where CIFAR is kept or downloaded to (default: data)")
    add("--out", help="folder of all runs (default: runs/SCALE)")
    add("--gpus", type=gpus, metavar="0,1,...", help="GPUs that runs are handed out to")
    add("--cuda-graphs", action="store_true", help="train sub-nets in CUDA graphs; `cost` does not count on the gain")
    add("--jobs", type=flags.positive_int, default=1, help="runs at a time; with --gpus, on each GPU")
    text = "run the I-th of N independent parts; runs that share a source super-net stay together"
    add("--shard", type=shard, default="1/1", metavar="I/N", help=text)
    args = parser.parse_intermixed_args(argv)
    scale = args.scale or ("quick" if args.command == "quick" else "paper")
    parser.set_defaults(scale=scale, out=f"runs/{scale}", **SCALES[scale])
    args = parser.parse_intermixed_args(argv)
    args.device = args.device or ("cuda" if args.gpus else None)
    args.tables = args.tables or [table for table in TABLES if table not in ("baselines", "study")]
    if unknown := set(args.tables) - set(TABLES):
        parser.error(f"unknown table '{min(unknown)}': choose from {', '.join(TABLES)}")
    return args


def gpus(text):
    """An argparse type: 0,1 -> ["0", "1"]."""
    return [str(int(number)) for number in text.split(",")]


def shard(text):
    """An argparse type: 2/8 -> (2, 8)."""
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError
    return part, parts


def cost(plan, args):
    """Prints the images and hours of each kind of step, one run at a time."""
    images, total = sum((Counter(stage.work) for stage in plan.values()), Counter()), 0.0
    for step, n in images.items():
        rate = speed(step, args)
        hours = n / rate / 3600
        total += hours
        print(f"{step:<25} {n / 1e6:>10,.2f} million images at {rate:>9,.0f} images/s: {hours:>9,.2f} h", flush=True)
    print(f"{len(plan)} runs, one at a time: {total:,.2f} h")


def speed(step, args):
    """Images/s of a kind of step, measured by benchmark.py."""
    kind, _, of = step.partition(" of ")
    archs = {"Table 1": list(paper.ARCHITECTURES.values()), "Figure 1": [FIGURE_1_ARCH], "resnet32": ["resnet32"]}
    nets = ["--archs", *archs[of]] if of else ["--space", args.space]
    if of != "resnet32":  # whose shape is its own
        nets += given(channels=args.channels, cells=args.cells and 5 if of == "Table 1" else args.cells)
    nets += given(device=args.device)
    path, log = (os.path.join(args.out, f"benchmark.{end}") for end in ("json", "log"))
    command = ["benchmark.py", *nets, "--image-size", args.image_size, "--only", kind, "--rounds", 2, "--json", path]
    if runner.start([str(word) for word in command], log, {}).wait():
        raise runtime.UserError(f"benchmark.py failed, see {log}")
    return json.loads(Path(path).read_text())["figures"][kind]["images/s"]


def workers(args):
    """The environment variables of each concurrent run: its GPU and its share of the CPU cores."""
    chosen = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in args.gpus or ()] or [{}]
    share = str(max(1, os.cpu_count() // (args.jobs * len(chosen))))
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", share), **gpu} for gpu in chosen] * args.jobs


def main(args):
    with runtime.user_errors():
        plan, tables = make_plan(args)
        os.makedirs(args.out, exist_ok=True)
    part = runner.shard(plan, *args.shard)
    if args.command == "list":
        for name, stage in part.items():
            print(f"[{'done' if runner.record(part, args.out, name) else '    '}] {runner.text(stage.command)}")
        print(f"{len(part)} runs")
    if args.command == "cost":
        cost(part, args)
    if args.command in ("quick", "run") and (missing := runner.run(part, args.out, workers(args))):
        reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise SystemExit(f"error: {len(missing)} of {len(part)} runs are missing: {reasons}")
    if args.command in ("quick", "report"):
        changed = {name: value for name, (default, *_) in SETTING.items() if (value := getattr(args, name)) != default}
        with runtime.reading(args.out, "a folder of finished runs"):
            text = report.write(plan, tables, args.out, args.scale, changed)
        print(text)


if __name__ == "__main__":
    runtime.launch(parse_args, main)
