"""The paper's tables and figures as a plan of the scripts' own commands: list it, price it, run it, report it.

    python reproduce.py quick                           # a toy transfer in about a minute on two CPU cores, no download
    python reproduce.py list 3a fig2                    # the commands behind a table or figure, and which are done
    python reproduce.py cost 3a fig2                    # the hours they would take here, at speeds measured by benchmark.py
    python reproduce.py run 3a fig2 --gpus 0,1,2,3      # run what is missing, one run a GPU; --jobs 4: four on each
    python reproduce.py run --shard 2/8                 # the second of eight machines
    python reproduce.py report                          # report.md, report.json, runs.jsonl and figures in --out
    python reproduce.py run 3a 6 --scale small --source data/cifar10 --target data/tinyimagenet100

Without a table: all of the paper's (1, 3a, 3b, 4, 5, 6, fig1, fig2). `baselines` is the field's: ResNet-32 with four losses.
Every stage has a run folder in --out, so the same command again resumes, and what several tables share is run once. A scale
is a set of defaults for the flags; `quick` is `run` and then `report` at the scale `quick`.
"""

import argparse
import json
import os
import subprocess
import sys

from common.plan import ONE_OF_FIGURE_1, PAPERS_OWN, TABLE_1_CELLS, TABLES, given, make_plan

from common import flags, paper, report, runner, runtime

PAPER = {"source": "cifar10", "target": "cifar100", "space": "nats", "seeds": 3, "jobs": 1}
SCALES = {  # what differs from the paper
    "paper": {},
    # Half of the paper's epochs: 3 seeds of Tables 3 and 6 and Figure 2 take 9 hours on an H100 that four runs share.
    "day": {"source_epochs": 300, "adapt_epochs": 100, "target_epochs": 300, "subnet_epochs": 100},
    # One GPU, some minutes a ratio: the paper's networks, and too few epochs to say much about its setting.
    "minutes": {
        "source_epochs": 6, "adapt_epochs": 12, "target_epochs": 24, "subnet_epochs": 16, "warmup": 1,
        "generations": 5, "population": 12, "bn_images": 1000, "val_images": 2000,
    },
    # Two CPU cores, a few hours: too short and too narrow to say anything about the paper's setting.
    "small": {
        "source_epochs": 6, "adapt_epochs": 6, "target_epochs": 18, "subnet_epochs": 8, "warmup": 1,
        "generations": 4, "population": 12, "bn_images": 1000, "val_images": 2000, "channels": 8, "cells": 1,
    },
    # A toy: one transfer between small made-up images.
    "quick": {
        "source": "synthetic100", "target": "synthetic10", "tables": ["6", "fig2"], "ratios": [100], "seeds": 1, "jobs": 2,
        "source_epochs": 1, "adapt_epochs": 2, "target_epochs": 6, "subnet_epochs": 12, "warmup": 1, "image_size": 16,
        "generations": 4, "population": 10, "bn_images": 500, "val_images": 1000, "channels": 8, "cells": 1,
    },
}  # fmt: skip
FLAGS = {  # name: type, help; the default is the scale's, or else the scripts' own, which is the paper's
    "seeds": (flags.positive_int, "number of seeds, 0 to N-1 (default 3)"),
    "ratios": (flags.ratio, "imbalance ratios of Tables 3 to 6 and Figure 2 (default: the paper's)"),
    "source": (str, "balanced dataset or folder (default cifar10)"),
    "target": (str, "dataset or folder that is made long-tailed (default cifar100)"),
    "space": (str, "search space of the super-nets (default nats)"),
    "image_size": (flags.image_size, "side of the images in pixels"),
    "channels": (flags.width, "width of the first stage"),
    "cells": (flags.positive_int, "nats: cells a stage; darts: cells in all (Table 1: always 5)"),
    "source_epochs": (flags.positive_int, "epochs of the source's super-net"),
    "adapt_epochs": (flags.positive_int, "epochs of P1 and P2"),
    "target_epochs": (flags.positive_int, "epochs of the target's super-net (P3)"),
    "subnet_epochs": (flags.positive_int, "epochs of a sub-net"),
    "warmup": (flags.count, "warm-up epochs when training from scratch"),
    "generations": (flags.positive_int, "generations of a search"),
    "population": (flags.positive_int, "architectures a generation, half by crossover and half by mutation"),
    "bn_images": (flags.positive_int, "training images that BN statistics are rebuilt from"),
    "val_images": (flags.count, "search on about so many held-out training images; 0: on the test split (default 0)"),
    "device": (str, "device of every run: auto, cpu, cuda, ... (default auto)"),
    "data_root": (str, "where CIFAR is kept or downloaded to (default data)"),
    "out": (str, "folder of all runs (default runs/SCALE)"),
}
COMMANDS = {
    "quick": "Run and report a toy transfer: one ratio, one seed, small made-up images.",
    "list": "Print the commands, seed by seed and each after what it needs, and which are done.",
    "cost": "Print the images and hours of each kind of step, at the speed of this machine.",
    "run": "Run what is missing. A failed run stops only what needs it, and the exit status is 1.",
    "report": "Write report.md, report.json, runs.jsonl and figures: the finished runs beside the paper's numbers.",
}


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    commands = parser.add_subparsers(dest="do", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name, doc in COMMANDS.items():
        command = commands.add_parser(name, doc=doc)
        command.add_argument("tables", nargs="*", type=table_name, metavar="TABLE", help="tables and figures (default all)")
        if name != "quick":
            command.add_argument("--scale", choices=SCALES, default="paper", help="defaults of the flags (default paper)")
        for flag, (kind, text) in FLAGS.items():
            more = {"ratios": {"nargs": "+"}, "space": {"choices": ("nats", "darts")}}.get(flag, {})
            metavar = {} if kind is str else {"metavar": "N"}
            command.add_argument("--" + flag.replace("_", "-"), type=kind, help=text, **metavar, **more)
        if name in ("quick", "run"):
            command.add_argument("--gpus", type=gpus, metavar="0,1,...", help="GPUs that runs are handed out to")
            command.add_argument("--jobs", type=flags.positive_int, metavar="N", help="runs at a time, on each GPU if given")
            command.add_argument(
                "--shard", type=shard, default=(1, 1), metavar="I/N",
                help="run the I-th of N parts that need nothing of each other; most runs of a seed need its source super-net, "
                "so parts are few and large (default 1/1)",
            )  # fmt: skip
    commands.choices["quick"].set_defaults(scale="quick")
    args = parser.parse_args(argv)
    for name, value in {**PAPER, **SCALES[args.scale]}.items():
        if getattr(args, name, None) in (None, []):  # [] without a TABLE
            setattr(args, name, value)
    args.tables = [table for table in TABLES if table in args.tables] or PAPERS_OWN
    args.out = args.out or f"runs/{args.scale}"
    return args


def table_name(text):
    if text not in TABLES:
        raise argparse.ArgumentTypeError(f"unknown table '{text}': choose from {', '.join(TABLES)}")
    return text


def gpus(text):
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers) or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"takes different numbers, such as 0,1,2, not '{text}'")
    return numbers


def shard(text):
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"takes I/N with I from 1 to N, not '{text}'")
    return int(part), int(parts)


# What the commands do


def benchmarks(args):
    """{benchmark: the flags of benchmark.py that measure its steps}. Table 1's A4 is narrower than the price assumes."""
    size, shape = given(image_size=args.image_size), given(channels=args.channels, cells=args.cells)
    table_1 = given(channels=args.channels, cells=args.cells and TABLE_1_CELLS)
    return {
        "space": ["--space", args.space, *shape, *size],
        "table 1": ["--archs", *paper.ARCHITECTURES.values(), *table_1, *size],
        "figure 1": ["--archs", ONE_OF_FIGURE_1, *shape, *size],
        "resnet32": ["--archs", "resnet32", *size],
    }


def measured(args, benchmark, kinds):
    """{kind of step: images/s}, which benchmark.py measures unless this machine has already written OUT/benchmark_<name>.json."""
    path = os.path.join(args.out, f"benchmark_{benchmark.replace(' ', '_')}.json")
    command = [
        "benchmark.py",
        *benchmarks(args)[benchmark],
        "--only",
        *sorted(kinds),
        *given(rounds=2, device=args.device, json=path),
    ]
    here = runtime.environment(runtime.setup(args.device or "auto", 0)) | {"command": runner.text(command)}
    if not os.path.exists(path) or any(load(path).get(key) != here[key] for key in ("command", "device", "threads", "torch")):
        done = subprocess.run([sys.executable, runner.ROOT / command[0], *command[1:]], capture_output=True, text=True)
        if done.returncode:
            raise runtime.UserError(f"benchmark.py: {done.stderr.strip()}")
    return {kind: figure["images/s"] for kind, figure in load(path)["figures"].items()}


def load(path):
    with runtime.users_mistake(path), open(path) as file:
        return json.load(file)


def cost(plan, args):
    """Prints the images and hours of each kind of step, one run at a time."""
    images, rows, total = {}, [], 0.0
    for benchmark, kind, n in [work for stage in plan.values() for work in stage.work if work[-1]]:
        of = images.setdefault(benchmark, {})
        of[kind] = of.get(kind, 0) + n
    for benchmark, kinds in images.items():
        rates = measured(args, benchmark, kinds)
        for kind, n in kinds.items():
            hours = n / rates[kind] / 3600
            total += hours
            name = kind if benchmark == "space" else f"{kind}, {benchmark}"
            rows.append([name, f"{n / 1e6:.2f}", f"{rates[kind]:,.0f}", f"{hours:.2f}"])
    heads = ["kind of step", "million images", "images/s", "hours"]
    print(report.markdown(heads, [*rows, [f"{len(plan)} runs, one at a time", "", "", f"{total:.2f}"]]))


def workers(args):
    """The environment variables of each run that goes on at a time: its GPU and its share of the CPU cores."""
    chosen = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in args.gpus or ()] or [{}]
    share = str(max(1, os.cpu_count() // (args.jobs * len(chosen))))
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", share), **gpu} for gpu in chosen] * args.jobs


def main(args):
    plan, tables = make_plan(args)
    with runtime.users_mistake():
        os.makedirs(args.out, exist_ok=True)
    if args.do == "list":
        done = {name: runner.record(plan, args.out, name) is not None for name in runner.in_order(plan)}
        for name in done:
            print(f"[{'done' if done[name] else '    '}] {runner.text(plan[name].command)}")
        print(f"{sum(done.values())} of {len(plan)} runs are done")
    if args.do == "cost":
        cost(plan, args)
    if args.do in ("quick", "run"):
        failed = runner.run(runner.shard(plan, *args.shard), args.out, workers(args))
        if failed:
            reasons = "; ".join(f"{name} {why}" for name, why in failed.items())
            raise SystemExit(f"error: {len(failed)} of {len(plan)} runs are missing: {reasons}")
    if args.do in ("quick", "report"):
        setting = {name: getattr(args, name) for name in FLAGS if name not in ("seeds", "ratios", "device", "data_root", "out")}
        print(report.write(plan, tables, args.out, args.scale, setting, PAPER))


if __name__ == "__main__":
    runtime.launch(parse_args, main)
