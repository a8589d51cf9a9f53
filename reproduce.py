"""Run the paper's experiments as a plan of the scripts' own commands, and put what comes out beside the paper's numbers.

    python reproduce.py quick                             # the main job in a few minutes on two CPU cores, nothing to download
    python reproduce.py list 3a fig2                      # the commands behind a table or figure, and which are done
    python reproduce.py cost 3a fig2                      # what they would cost on this machine
    python reproduce.py run 3a fig2 --gpus 0,1,2,3        # run what is missing, one run a GPU; --jobs 4: four on each
    python reproduce.py run --shard 2/8                   # the second of eight jobs over machines that share a disk
    python reproduce.py report                            # report.md, report.json, runs.jsonl and figures in --out
    python reproduce.py run 3a 4 5 6 fig2 --scale small --source data/cifar10 --target data/tinyimagenet100

Without tables, all: 1, 3a, 3b, 4, 5, 6, fig1, fig2. Every stage is a run folder of its own, so the same command again goes
on where it stopped, and a run that several tables share is run once. `quick` is one transfer, one ratio and one seed.
"""

import graphlib
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from common import data, engine, flags, runtime, spaces
from common.kendall import kendall_tau

PROCEDURES = ("P0", "P1", "P2", "P3")

PAPER = {"source": "cifar10", "target": "cifar100", "space": "nats"}

# What a scale gives as flags. None leaves a script's default, which is the paper's.
SCALES = {
    "paper": {
        "channels": None, "cells": None, "source_epochs": None, "adapt_epochs": None, "target_epochs": None,
        "subnet_epochs": None, "warmup": None, "generations": None, "population": None, "bn_images": None, "val_images": 0,
    },
    # Half of the paper's epochs. At the images/s of four runs that share an H100 (results/speed/ideas.md), 3 seeds of Tables 3
    # and 6 and Figure 2 take 14 hours at the paper's epochs and 9 at these; one run at a time, 48 and 28. See `cost`.
    "day": {
        "channels": None, "cells": None, "source_epochs": 300, "adapt_epochs": 100, "target_epochs": 300, "subnet_epochs": 100,
        "warmup": None, "generations": None, "population": None, "bn_images": None, "val_images": 0,
    },
    # One GPU, some minutes a ratio: the paper's networks, and too few epochs to say much of its setting.
    "minutes": {
        "channels": None, "cells": None, "source_epochs": 6, "adapt_epochs": 12, "target_epochs": 24, "subnet_epochs": 16,
        "warmup": 1, "generations": 5, "population": 12, "bn_images": 1000, "val_images": 2000,
    },
    # Two CPU cores, a few hours. Too short and too narrow to say anything of the paper's setting.
    "small": {
        "channels": 8, "cells": 1, "source_epochs": 6, "adapt_epochs": 6, "target_epochs": 18, "subnet_epochs": 8,
        "warmup": 1, "generations": 4, "population": 12, "bn_images": 1000, "val_images": 2000,
    },
}  # fmt: skip

# The paper's numbers, as it prints them. None: not legible in our copy (row P3 of Table 3b; Figure 1).
TABLE_1 = {"A1": ("94.6", "77.3"), "A2": ("94.7", "74.1"), "A3": ("76.1", "39.4"), "A4": ("75.0", "43.0")}  # at 1x and 100x
TABLE_3A = {
    50: {"P0": "45.80", "P1": "45.06", "P2": "44.86", "P3": "45.93"},
    100: {"P0": "40.83", "P1": "41.93", "P2": "41.86", "P3": "41.53"},
    200: {"P0": "36.30", "P1": "36.76", "P2": "36.70", "P3": "37.03"},
    400: {"P0": "32.80", "P1": "33.70", "P2": "33.46", "P3": "33.40"},
}
TABLE_3B = {
    100: {"P0": "75.96", "P1": "75.93", "P2": "75.86", "P3": None},
    200: {"P0": "68.96", "P1": "69.70", "P2": "69.26", "P3": None},
    400: {"P0": "63.26", "P1": "63.80", "P2": "63.70", "P3": None},
    800: {"P0": "56.90", "P1": "58.23", "P2": "58.03", "P3": None},
}
TABLE_4 = {  # the same P0, P1, P3 and P2 at 200 epochs as in Table 3a
    100: {"P0": "40.83", "P1": "41.93", 50: "40.06", 100: "41.43", 150: "41.40", 200: "41.86", "P3": "41.53"},
    200: {"P0": "36.3", "P1": "36.76", 50: "35.46", 100: "37.26", 150: "36.63", 200: "36.70", "P3": "37.03"},
    400: {"P0": "32.80", "P1": "33.70", 50: "32.56", 100: "33.00", 150: "32.86", 200: "33.46", "P3": "33.4"},
}
TABLE_5 = {
    100: {"CE": "41.36", "CE-DRW": "41.53"},
    200: {"CE": "37.5", "CE-DRW": "37.0"},
    400: {"CE": "33.9", "CE-DRW": "33.4"},
}
TABLE_6 = {  # many, medium, few, all
    100: {
        "P0": ("64.1", "40.4", "14.1", "40.8"), "P1": ("65.2", "41.6", "15.0", "41.9"),
        "P2": ("65.2", "40.9", "15.7", "41.8"), "P3": ("65.0", "41.5", "14.1", "41.5"),
    },
    400: {
        "P0": ("65.0", "39.1", "10.1", "32.8"), "P1": ("66.3", "41.0", "10.2", "33.7"),
        "P2": ("66.2", "40.3", "10.2", "33.4"), "P3": ("66.2", "39.5", "10.5", "33.4"),
    },
}  # fmt: skip
FIGURE_2 = {"P1": "2000", "P2": "4000", "P3": "10000"}  # seconds of a V100; the paper gives P2 and P3 as 2 x and 5 x of P1

# Table 1's architectures are not published. These are uniformly drawn DARTS cells of its multiply-accumulates, 410, 407, 400
# and 179 M within 1 %, in 20 cells; A1 and A2 at 10 classes, A3 and A4 at 100. A4 is 24 channels wide instead of 36, at which
# the lightest cells, of nothing but pooling, already have 227 M.
FOUR = {
    "A1": "|dil_conv_3x3~0|sep_conv_3x3~1|+|skip_connect~0|dil_conv_3x3~1|+"
    "|skip_connect~0|max_pool_3x3~3|+|dil_conv_5x5~0|dil_conv_3x3~2|//"
    "|max_pool_3x3~0|dil_conv_5x5~1|+|sep_conv_3x3~0|avg_pool_3x3~1|+"
    "|max_pool_3x3~1|skip_connect~2|+|dil_conv_5x5~2|avg_pool_3x3~3|",
    "A2": "|avg_pool_3x3~0|max_pool_3x3~1|+|dil_conv_3x3~0|dil_conv_5x5~1|+"
    "|sep_conv_5x5~2|dil_conv_5x5~3|+|max_pool_3x3~2|max_pool_3x3~4|//"
    "|dil_conv_5x5~0|max_pool_3x3~1|+|dil_conv_3x3~1|dil_conv_5x5~2|+"
    "|avg_pool_3x3~0|sep_conv_3x3~3|+|skip_connect~3|dil_conv_5x5~4|",
    "A3": "|skip_connect~0|dil_conv_3x3~1|+|avg_pool_3x3~0|dil_conv_3x3~2|+"
    "|avg_pool_3x3~0|dil_conv_3x3~2|+|dil_conv_3x3~0|dil_conv_5x5~4|//"
    "|dil_conv_3x3~0|dil_conv_3x3~1|+|sep_conv_3x3~0|dil_conv_3x3~1|+"
    "|sep_conv_3x3~2|avg_pool_3x3~3|+|sep_conv_3x3~0|dil_conv_3x3~4|",
    "A4": "|skip_connect~0|dil_conv_3x3~1|+|max_pool_3x3~0|skip_connect~1|+"
    "|max_pool_3x3~2|sep_conv_5x5~3|+|skip_connect~2|dil_conv_5x5~4|//"
    "|sep_conv_5x5~0|sep_conv_3x3~1|+|avg_pool_3x3~1|sep_conv_5x5~2|+"
    "|dil_conv_5x5~1|avg_pool_3x3~3|+|sep_conv_3x3~1|skip_connect~2|",
}
MMACS = {"A1": 410, "A2": 407, "A3": 400, "A4": 179}
FOUR_CHANNELS = {"A1": 36, "A2": 36, "A3": 36, "A4": 24}
TABLE_1_CELLS = 5  # where the scale is not the paper's


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    commands = parser.add_subparsers(dest="do", required=True, metavar="{quick,list,cost,run,report}")
    quick = commands.add_parser("quick", doc="The main job at a small scale: one transfer, one ratio, one seed.")
    quick.add_argument("--imbalance", type=float, default=100, help="of the target (default 100)")
    quick.add_argument("--channels", type=int, default=8, help="(default 8)")
    quick.add_argument("--cells", type=int, default=1, help="nats: a stage; darts: in all (default 1)")
    quick.add_argument("--source-epochs", type=int, default=4, help="of the source super-net (default 4)")
    quick.add_argument("--adapt-epochs", type=int, default=2, help="of P1 and P2 (default 2)")
    quick.add_argument("--target-epochs", type=int, default=6, help="of P3 (default 6)")
    quick.add_argument("--subnet-epochs", type=int, default=4, help="of the sub-nets (default 4)")
    quick.add_argument("--warmup", type=int, default=1, help="warm-up epochs when training from scratch (default 1)")
    quick.add_argument("--generations", type=int, default=4, help="of each search (default 4)")
    quick.add_argument("--population", type=int, default=10, help="of each search (default 10)")
    quick.add_argument(
        "--val-images", type=int, default=1000,
        help="hold out about so many training images, the same number a class, to search on; 0: the test split (default 1000)",
    )  # fmt: skip
    quick.add_argument("--bn-images", type=int, default=500, help="training images for BN statistics (default 500)")
    quick.add_argument("--seed", type=int, default=0, help="(default 0)")
    quick.add_argument("--dry-run", action="store_true", help="print the commands only")
    for name, doc in (
        ("list", "Print the commands in order, and which are done."),
        ("cost", "Price the plan: images, multiply-accumulates, and hours at the speed that is measured here and now."),
        ("run", "Run what is missing, dependencies first. Exit status 1 if a run failed."),
        ("report", "Write report.md, report.json, runs.jsonl and the figures: the paper's numbers beside ours."),
    ):
        command = commands.add_parser(name, doc=doc)
        command.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)} (default all)")
        command.add_argument("--scale", choices=SCALES, default="paper", help="day, minutes: one GPU; small: two CPU cores")
        command.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1 (default 3)")
        command.add_argument("--ratios", type=int, nargs="+", metavar="R", help="of Tables 3 to 6: only these (default all)")
        if name == "run":
            command.add_argument("--gpus", metavar="0,1,...", help="the GPUs that runs are handed out to")
            command.add_argument("--shard", default="1/1", metavar="I/N", help="the I-th of N parts of the plan (default 1/1)")
    for name, command in commands.choices.items():
        source, target = ("synthetic10", "synthetic100") if name == "quick" else (PAPER["source"], PAPER["target"])
        out = "runs/quick" if name == "quick" else "runs/SCALE"
        command.add_argument("--source", default=source, help=f"balanced dataset or folder (default {source})")
        command.add_argument("--target", default=target, help=f"dataset or folder to be long-tailed (default {target})")
        command.add_argument("--space", choices=spaces.SPACES, default="nats", help="of the super-nets (default nats)")
        command.add_argument("--device", help="as the scripts take it (default: theirs)")
        command.add_argument("--data-root", help="where CIFAR is kept or downloaded to (default: the scripts')")
        command.add_argument("--out", help=f"folder of all runs (default {out})")
        if name in ("quick", "run"):
            command.add_argument(
                "--jobs", type=int, default=min(2, os.cpu_count()) if name == "quick" else 1,
                help="runs side by side, on each of --gpus if given, each with a share of the CPU cores (default %(default)s)",
            )  # fmt: skip
    args = parser.parse_args(argv)
    if args.do == "quick":
        args.out = args.out or "runs/quick"
    else:
        args.out = args.out or f"runs/{args.scale}"
        vars(args).update(SCALES[args.scale])
        unknown = [table for table in args.tables if table not in TABLES]
        if unknown:
            raise runtime.UserError(f"unknown table '{unknown[0]}': choose from {', '.join(TABLES)}")
        args.tables = [table for table in TABLES if table in args.tables or not args.tables]
        if args.seeds < 1:
            raise runtime.UserError(f"--seeds must be at least 1, not {args.seeds}")
    args.out = os.path.normpath(args.out)  # one folder, one name: it is in the commands of the plan
    if os.path.isabs(args.out) and os.path.commonpath([args.out, os.getcwd()]) == os.getcwd():
        args.out = os.path.relpath(args.out)
    if args.source != args.target and short(args.source) == short(args.target):
        raise runtime.UserError(f"--source and --target need different names, not both '{short(args.source)}'")
    if getattr(args, "gpus", None) is not None:
        gpus = [gpu.strip() for gpu in args.gpus.split(",")]
        if not all(gpu.isdecimal() for gpu in gpus) or len(set(gpus)) < len(gpus):
            raise runtime.UserError(f"--gpus takes different numbers, such as 0,1,2, not '{args.gpus}'")
    flags.check(args)
    return args


# The plan: {stage: {"command", "needs", "work"}}. A stage is named after what it does, so what is shared is there once.


def add(plan, args, stage, command, needs, seed, work):
    """Puts a stage into the plan if it is not there, and returns its name. work: () -> [(kind of step, images)], for `cost`."""
    common = given(device=args.device, data_root=args.data_root, out=os.path.join(args.out, stage))
    command = [str(word) for word in (*command, *common)]
    plan.setdefault(stage, {"command": command, "needs": list(needs), "seed": seed, "work": work})
    return stage


def given(**values):
    """Flags for the values that are not None: `given(val_per_class=3)` is --val-per-class 3."""
    return [word for name, value in values.items() if value is not None for word in ("--" + name.replace("_", "-"), value)]


def short(dataset, imbalance=None):
    """A dataset in a stage's name: cifar100_50x."""
    return os.path.basename(os.path.normpath(dataset)) + ("" if imbalance is None else f"_{imbalance:g}x")


def hold_out(args, dataset):
    """Images a class that are held out to search on; None: the test split."""
    if not args.val_images:
        return None
    with runtime.users_mistake():
        return -(-args.val_images // data.num_classes(dataset))


def training_images(args, dataset, imbalance):
    """How many images a run trains on."""
    held = hold_out(args, dataset) or 0
    with runtime.users_mistake():
        sizes = data.class_sizes(dataset, "train")
    if min(sizes) <= held:
        raise runtime.UserError(f"cannot hold out {held} images a class of '{dataset}': the smallest class has {min(sizes)}")
    return sum(data.long_tail_counts([n - held for n in sizes], imbalance))


def data_flags(args, dataset, imbalance):
    return given(dataset=dataset, imbalance=f"{imbalance:g}", val_per_class=hold_out(args, dataset))


def supernet(plan, args, dataset, imbalance, seed, loss="CE-DRW"):
    """Eq. 3 on a balanced dataset, Eq. 6 (P3) on a long-tailed one."""
    epochs = args.source_epochs if imbalance == 1 else args.target_epochs
    stage = f"supernet_{short(dataset, imbalance)}{'' if loss == 'CE-DRW' else '_' + loss}_s{seed}"
    command = ["train_supernet.py", *data_flags(args, dataset, imbalance)]
    command += given(space=None if args.space == "nats" else args.space, channels=args.channels, cells=args.cells)
    command += given(loss=None if loss == "CE-DRW" else loss, epochs=epochs, warmup=args.warmup, seed=seed)
    return add(
        plan, args, stage, command, [], seed,
        lambda: [("super-net step", (epochs or 600) * training_images(args, dataset, imbalance))],
    )  # fmt: skip


def adapted(plan, args, procedure, source, target, imbalance, seed, backbone=None):
    """Eq. 4 (P1) or Eq. 5 (P2; Table 4's `backbone`: epochs of 200 after which the backbone is frozen)."""
    trained = supernet(plan, args, source, 1, seed)
    epochs, limit = args.adapt_epochs, backbone
    if backbone is not None and epochs is not None:
        limit = math.ceil(backbone * epochs / 200)
    stage = (
        f"{procedure}{'' if backbone is None else f'_backbone{backbone}'}_{short(source)}_{short(target, imbalance)}_s{seed}"
    )
    command = ["adapt.py", "--procedure", procedure, "--supernet", os.path.join(args.out, trained, "supernet.pt")]
    command += [*data_flags(args, target, imbalance), *given(epochs=epochs, backbone_epochs=limit, seed=seed)]

    def work():
        n, all_epochs = training_images(args, target, imbalance), epochs or 200
        whole = 0 if procedure == "P1" else all_epochs if limit is None else limit
        return [("super-net step", whole * n), ("P1 step", (all_epochs - whole) * n)]

    return add(plan, args, stage, command, [trained], seed, work)


def subnet(plan, args, trained, searched_on, target, imbalance, seed):
    """Searches a super-net and trains the best architecture on the target. searched_on: (dataset, imbalance)."""
    generations, population, bn_images = args.generations or 20, args.population or 50, args.bn_images or 2000
    half = args.population and args.population // 2
    command = ["search.py", "--supernet", os.path.join(args.out, trained, "supernet.pt")]
    command += given(generations=args.generations, population=args.population, crossovers=half, mutations=half)
    command += given(bn_images=args.bn_images, seed=seed)

    def scored():
        dataset, ratio = searched_on
        with runtime.users_mistake():
            n = args.val_images or sum(data.class_sizes(dataset, "val"))
        return [("scoring", generations * population * (n + min(bn_images, training_images(args, dataset, ratio))))]

    search = add(plan, args, f"search_{trained}", command, [trained], seed, scored)
    best = os.path.join(args.out, search, "result.json")
    return retrain(plan, args, f"retrain_{trained}_on_{short(target, imbalance)}", best, target, imbalance, seed, [search])


def retrain(plan, args, stage, arch, dataset, imbalance, seed, needs=(), channels=None, cells=None, kind="sub-net step"):
    epochs = args.subnet_epochs
    command = ["retrain.py", "--arch", arch, *given(channels=channels or args.channels, cells=cells or args.cells)]
    command += [*data_flags(args, dataset, imbalance), *given(epochs=epochs, warmup=args.warmup, seed=seed)]
    return add(
        plan, args, stage, command, needs, seed, lambda: [(kind, (epochs or 200) * training_images(args, dataset, imbalance))]
    )


def by_procedure(plan, args, source, target, imbalance, seed):
    """{P0, P1, P2, P3: the stage that trains its sub-net}, of one transfer. P0 searches the source's super-net."""
    trained = {
        "P0": supernet(plan, args, source, 1, seed),
        "P1": adapted(plan, args, "P1", source, target, imbalance, seed),
        "P2": adapted(plan, args, "P2", source, target, imbalance, seed),
        "P3": supernet(plan, args, target, imbalance, seed),
    }
    on = {p: (source, 1) if p == "P0" else (target, imbalance) for p in PROCEDURES}
    return {p: subnet(plan, args, trained[p], on[p], target, imbalance, seed) for p in PROCEDURES}


# Each table adds its stages and returns its cells: (row, column, the paper's number, stages by seed, place in result.json).


def table_1(plan, args):
    for name, paper in TABLE_1.items():
        dataset = args.source if name in ("A1", "A2") else args.target
        for ratio, number in zip((1, 100), paper, strict=True):
            stages = [
                retrain(
                    plan, args, f"retrain_{name}_on_{short(dataset, ratio)}_s{seed}", FOUR[name], dataset, ratio, seed,
                    channels=(args.channels or 36) * FOUR_CHANNELS[name] // 36,
                    cells=args.cells and TABLE_1_CELLS, kind="Table 1 step",
                )
                for seed in range(args.seeds)
            ]  # fmt: skip
            size = f"{MMACS[name]} M FLOPs" + (" in the paper" if args.channels else "")
            yield f"{short(dataset)} {name}, {size}", f"{ratio}x", number, stages, ("accuracy", "all")


def transfer(plan, args, paper, source, target):
    for ratio, numbers in paper.items():
        if wanted(args, ratio):
            seeds = [by_procedure(plan, args, source, target, ratio, seed) for seed in range(args.seeds)]
            for p in PROCEDURES:
                yield p, f"{ratio}x", numbers[p], [stages[p] for stages in seeds], ("accuracy", "all")


def wanted(args, ratio):
    return not args.ratios or ratio in args.ratios


def table_3a(plan, args):
    return transfer(plan, args, TABLE_3A, args.source, args.target)


def table_3b(plan, args):
    return transfer(plan, args, TABLE_3B, args.target, args.source)


def table_4(plan, args):
    for ratio, numbers in TABLE_4.items():
        if not wanted(args, ratio):
            continue
        seeds = [by_procedure(plan, args, args.source, args.target, ratio, seed) for seed in range(args.seeds)]
        for row, number in numbers.items():
            if row in (50, 100, 150):
                stages = []
                for seed in range(args.seeds):
                    trained = adapted(plan, args, "P2", args.source, args.target, ratio, seed, backbone=row)
                    stages.append(subnet(plan, args, trained, (args.target, ratio), args.target, ratio, seed))
            else:
                stages = [stages["P2" if row == 200 else row] for stages in seeds]
            yield (
                (row if isinstance(row, str) else f"P2, backbone for {row}/200 of the epochs"),
                f"{ratio}x",
                number,
                stages,
                ("accuracy", "all"),
            )


def table_5(plan, args):
    for ratio, numbers in TABLE_5.items():
        for loss, number in numbers.items():
            if wanted(args, ratio):
                stages = []
                for seed in range(args.seeds):
                    trained = supernet(plan, args, args.target, ratio, seed, loss)
                    stages.append(subnet(plan, args, trained, (args.target, ratio), args.target, ratio, seed))
                yield loss, f"{ratio}x", number, stages, ("accuracy", "all")


def table_6(plan, args):
    for ratio, numbers in TABLE_6.items():
        if wanted(args, ratio):
            seeds = [by_procedure(plan, args, args.source, args.target, ratio, seed) for seed in range(args.seeds)]
            for p in PROCEDURES:
                for group, number in zip(("many", "medium", "few", "all"), numbers[p], strict=True):
                    yield p, f"{ratio}x {group}", number, [stages[p] for stages in seeds], ("accuracy", group)


def figure_1(plan, args):
    """No cells: they are tau between the accuracies of these stages, which `rank_transfer.py --tabulate` makes."""
    for seed in range(args.seeds):
        for dataset in (args.source, args.target):
            for ratio in (1, 50, 100):
                command = ["rank_transfer.py", "--datasets", f"{dataset}:{ratio}", *given(seeds=seed)]
                command += given(channels=args.channels, cells=args.cells, epochs=args.subnet_epochs, warmup=args.warmup)
                command += given(val_per_class=hold_out(args, dataset))
                images = lambda d=dataset, r=ratio: 135 * (args.subnet_epochs or 200) * training_images(args, d, r)  # noqa: E731
                add(
                    plan,
                    args,
                    f"rank_{short(dataset, ratio)}_s{seed}",
                    command,
                    [],
                    seed,
                    lambda f=images: [("Figure 1 step", f())],
                )
    return []


def figure_2(plan, args):
    for p, number in FIGURE_2.items():
        stages = []
        for seed in range(args.seeds):
            if p == "P3":
                stages.append(supernet(plan, args, args.target, 100, seed))
            else:
                stages.append(adapted(plan, args, p, args.source, args.target, 100, seed))
        yield p, "seconds", number, stages, ("seconds",)


TABLES = {
    "1": table_1, "3a": table_3a, "3b": table_3b, "4": table_4, "5": table_5, "6": table_6, "fig1": figure_1, "fig2": figure_2,
}  # fmt: skip


def paper_plan(args):
    """(plan, {table: its cells})."""
    plan = {}
    return plan, {table: list(TABLES[table](plan, args)) for table in args.tables}


# Running


def told(command):
    return shlex.join(["python", *command])


def essence(command):
    """The words of a command without the flags that say where it runs and not what."""
    words, where = shlex.split(command), ("--device", "--data-root")
    return [word for i, word in enumerate(words) if word not in where and words[i - 1] not in where]


def done(plan, args, stage):
    """Whether a stage has finished with this command, on whatever device."""
    folder = os.path.join(args.out, stage)
    try:
        with open(os.path.join(folder, "config.json")) as config, open(os.path.join(folder, "result.json")) as result:
            same = essence(json.load(config)["command"]) == essence(told(plan[stage]["command"]))
            return same and isinstance(json.load(result), dict)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def in_order(plan):
    """Stages, needs before what needs them, and seed after seed, so that one seed is whole before the next begins."""
    order = graphlib.TopologicalSorter({stage: parts["needs"] for stage, parts in plan.items()}).static_order()
    return sorted(order, key=lambda stage: plan[stage]["seed"])


def shard(plan, part, parts):
    """The stages of one part of the plan. A super-net, its search and its sub-nets are in the same one."""
    numbers = {}
    for stage in in_order(plan):
        needs, script = plan[stage]["needs"], plan[stage]["command"][0]
        follows = needs and script != "adapt.py"
        numbers[stage] = numbers[needs[0]] if follows else len(set(numbers.values()))
    return [stage for stage in numbers if numbers[stage] % parts == part - 1]


PATIENCE = 600  # seconds that a shard waits for a stage which failed in an earlier attempt of another shard


def run(plan, args, mine, workers, show):
    """Runs those of the stages `mine` that are not done, dependencies first, one per worker at a time, each with its log.

    workers: the environment variables of each. show: whether to print what stages print. Needs that are not mine are waited
    for, unless they fail, and so is another process that is at work in a stage's folder. Returns {stage: (exit status, last
    line)} of those that failed, and with a status of None of those that could not begin because of it.
    """
    pending, running, failed, free, finished, waiting = list(mine), {}, {}, list(workers), 0, set()

    def marked(stage):
        """When the stage was last marked as failed; None if it is not."""
        try:
            return os.path.getmtime(os.path.join(args.out, f"{stage}.failed"))
        except OSError:
            return None

    def lost(need):
        """A mark that was there when we began says nothing, while the shard that it is of may be beginning again, too."""
        if need in mine:
            return need in failed
        return marked(need) is not None and (marked(need) != marks[need] or time.monotonic() - begun > PATIENCE)

    def wait_for(stage, what):
        if (stage, what) not in waiting:
            waiting.add((stage, what))
            print(f"[{stage}] waits for {what}", flush=True)

    with runtime.users_mistake():
        os.makedirs(args.out, exist_ok=True)
    begun, marks = time.monotonic(), {stage: marked(stage) for stage in plan}
    for stage in mine:
        if marks[stage] is not None:
            os.remove(os.path.join(args.out, f"{stage}.failed"))
    try:
        while pending or running:
            for stage in list(pending):
                needs = [need for need in plan[stage]["needs"] if not done(plan, args, need)]
                without = next(filter(lost, needs), None)
                if without:
                    failed[stage] = None, f"{without} has failed"
                    pending.remove(stage)
                    print(f"[{stage}] not run: {without} has failed", flush=True)
                elif done(plan, args, stage):
                    pending.remove(stage)
                    finished += 1
                    print(f"[{stage}] already finished: {finished} of {len(mine)} stages", flush=True)
                elif needs:
                    for need in set(needs) - set(mine):
                        wait_for(stage, f"{need}, which is another shard's")
                elif free and runtime.at_work(os.path.join(args.out, stage)):
                    wait_for(stage, "another process that is at work in its folder")
                elif free:
                    pending.remove(stage)
                    with runtime.uninterrupted():  # a signal in between would leave a stage that nobody knows of
                        running[stage] = (*start(plan, args, stage, free[-1]), free.pop())
            time.sleep(0.2)
            for stage, (process, printed, environment) in list(running.items()):
                ended = process.poll() is not None
                for line in printed if show else ():
                    print(f"[{stage}] {line}", end="", flush=True)
                if not ended:
                    continue
                printed.close()
                del running[stage]
                free.append(environment)
                if process.returncode == 0 and done(plan, args, stage):
                    finished += 1
                    print(f"[{stage}] finished: {finished} of {len(mine)} stages", flush=True)
                else:
                    with open(log(args, stage)) as file:
                        end = "".join(file.readlines()[-5:]).strip()
                    if process.returncode == 0:
                        end += "\nits folder holds a run that another command has finished"
                    failed[stage] = process.returncode, end.rsplit("\n", 1)[-1]
                    runtime.write(os.path.join(args.out, f"{stage}.failed"), end)
                    print(
                        f"[{stage}] failed with exit status {process.returncode}; the end of {log(args, stage)}:\n{end}",
                        flush=True,
                    )
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.wait()
    return failed


def log(args, stage):
    return os.path.join(args.out, f"{stage}.log")


def start(plan, args, stage, environment):
    """(process, its log, opened where its own lines begin). It is asked to stop if this process ends, however that ends."""
    command = plan[stage]["command"]
    print(f"[{stage}] {told(command)}", flush=True)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), command[0])
    with open(log(args, stage), "a") as file:
        process = subprocess.Popen(
            [sys.executable, script, *command[1:]], env={**os.environ, **environment}, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes once, by way of `run`
            preexec_fn=lambda: runtime.end_with_parent(signal.SIGTERM),
        )  # fmt: skip
        printed = open(log(args, stage), errors="replace")  # noqa: SIM115
        printed.seek(file.tell())
    return process, printed


# Pricing


ALONE = ("sub-net step", "Table 1 step", "Figure 1 step")  # the kinds that train a sub-net


def speed(kind, args, device):
    """(images/s, multiply-accumulates forward of one image) of a kind of step, measured here and now on made-up images."""
    name = {"Table 1 step": "darts", "Figure 1 step": "nats"}.get(kind, args.space)
    space, rng = spaces.SPACES[name], np.random.default_rng(0)
    channels = args.channels or space.DEFAULTS["channels"]
    cells = (args.cells and TABLE_1_CELLS if kind == "Table 1 step" else args.cells) or space.DEFAULTS["cells"]
    if kind == "Table 1 step":
        archs = [space.from_string(text) for text in FOUR.values()]
    elif kind == "Figure 1 step":  # four 3x3 convolutions, a skip connection and a pooling, in any order
        archs = [tuple(int(gene) for gene in rng.permutation([3, 3, 3, 3, 1, 4])) for _ in range(8)]
    else:
        archs = [spaces.sample(space.CHOICES, rng) for _ in range(8)]
    net = space.Network(100, channels, cells)
    macs = spaces.macs_counter(net)
    split = torch.randint(0, 256, (256, 32, 32, 3), dtype=torch.uint8, device=device), torch.arange(256, device=device) % 100
    batches = data.Batches(split, data.Normalise(*data.channel_stats(split[0]), 32, device), 128, 0)
    score = engine.scorer(net.to(device), split, split, 256, 0)

    def train(net, **how):
        optimizer = engine.sgd(net, 0.01, 0.9, 2e-4)
        engine.train_epoch(net, batches, 1, optimizer, torch.ones(100, device=device), **how)

    seconds = []
    for arch in archs:
        alone = space.Network(100, channels, cells, arch).to(device) if kind in ALONE else None
        begun = time.perf_counter()
        if kind == "scoring":
            score(arch)
        elif alone:
            train(alone.train())
        else:
            engine.use_batch_statistics(net)
            train(net, path=lambda step, arch=arch: arch, freeze_backbone=kind == "P1 step")
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    warm = seconds[len(seconds) // 4 :]
    return (512 if kind == "scoring" else 256) / statistics.mean(warm), float(np.mean([macs(arch) for arch in archs]))


def price(args, plan, device):
    """Prints what every run of a plan does, and how long that takes here, and the sums for every kind of step."""
    speeds, totals, rows = {}, {}, []

    def row(name, kind, n):
        rate, macs = speeds[kind]
        backward = 0 if kind in ("P1 step", "scoring") else 2 * macs  # of inputs and of weights
        figures = (f"{n / 1e6:.2f}", f"{n * macs / 1e15:.3g}", f"{n * backward / 1e15:.3g}", f"{n / rate / 3600:.3f}")
        return [name, kind, f"{rate:,.0f}", *figures]

    for stage in in_order(plan):
        for kind, n in plan[stage]["work"]():
            if n:
                speeds[kind] = speeds.get(kind) or speed(kind, args, device)
                totals[kind] = totals.get(kind, 0) + n
                rows.append(row(stage, kind, n))
    rows += [row("all", kind, n) for kind, n in totals.items()]
    hours = sum(n / speeds[kind][0] / 3600 for kind, n in totals.items())
    print(f"{len(plan)} runs; speeds measured on {runtime.environment(device)['device']}, {torch.get_num_threads()} threads")
    heads = ["run", "kind of step", "images/s", "million images", "10^15 MACs forward", "10^15 MACs backward", "hours"]
    print(markdown(heads, [*rows, ["all, one at a time", *[""] * 5, f"{hours:.3f}"]]))


# Reporting


def markdown(heads, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)) + "\n"


def found(plan, args, stage, place):
    """A number in a finished stage's result.json, None if there is none."""
    if not done(plan, args, stage):
        return None
    with open(os.path.join(args.out, stage, "result.json")) as file:
        value = json.load(file)
    for key in place:
        value = value[key]
    return value


def summary(paper, values):
    """A cell as text: the paper's number / mean and deviation / difference / seeds."""
    told = [paper or "", "", "", ""]
    if values:
        mean = statistics.mean(values)
        told[1] = f"{mean:.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
        told[2:] = ["" if paper is None else f"{mean - float(paper):+.2f}", str(len(values))]
    return " / ".join(told)


def report(plan, cells, args):
    """(JSON, Markdown) of all tables: only what finished stages say."""
    parts, whole = [heading(plan, args)], {}
    for table, entries in cells.items():
        name = f"{'Figure' if table.startswith('fig') else 'Table'} {table.removeprefix('fig')}"
        parts.append(f"## {name}\n")
        if table == "fig1":
            whole[table] = correlations(plan, args, parts)
            continue
        texts, whole[table] = {}, []
        for row, column, paper, stages, place in entries:
            values = [v for v in (found(plan, args, stage, place) for stage in stages) if v is not None]
            texts.setdefault(row, {})[column] = summary(paper, values)
            whole[table].append({"row": row, "column": column, "paper": paper and float(paper), "ours": values})
        columns = list(dict.fromkeys(column for _, column, *_ in entries))
        parts.append(markdown(["", *columns], [[row, *(texts[row].get(c, "") for c in columns)] for row in texts]))
        if table == "3b":
            parts.append("The paper's row P3 is not legible in our copy.\n")
        if table == "fig2":
            costs(whole[table], parts, args)
    return whole, "\n".join(parts)


def finished(plan, args):
    """{stage, config, result} of every finished stage: all that a report says, in a file that can be kept."""
    for stage in in_order(plan):
        if done(plan, args, stage):
            with (
                open(os.path.join(args.out, stage, "config.json")) as config,
                open(os.path.join(args.out, stage, "result.json")) as result,
            ):
                yield {"stage": stage, "config": json.load(config), "result": json.load(result)}


def heading(plan, args):
    """What the numbers depend on, from the finished runs' own config.json."""
    configs = [line["config"] for line in finished(plan, args)]
    lines = [f"# {short(args.source)} and {short(args.target)} at the scale '{args.scale}'\n"]
    what = [f"{key} {value}" for key, value in SCALES[args.scale].items() if value != SCALES["paper"][key]]
    what += [f"{TABLE_1_CELLS} cells in Table 1"] if args.cells else []
    ours = {"source": args.source, "target": args.target, "space": args.space}
    what += [f"{key} {ours[key]}" for key, value in PAPER.items() if ours[key] != value]
    if what:
        lines.append(f"**Not the paper's setting**: {', '.join(what)}. The rest is the paper's.\n")
    lines.append(
        f"{len(configs)} of {len(plan)} runs are finished; {args.space} space. Each cell: the paper's number / ours, mean ± "
    )
    lines[-1] += "deviation over seeds / difference / number of seeds. A part that is not known is empty.\n"
    for name in ("commit", "torch", "torchvision", "numpy", "python", "device", "cores", "threads"):
        values = sorted({str(config.get(name)) for config in configs})
        lines.append(f"- {name}: {', '.join(values)}")
    return "\n".join(lines) + "\n"


def costs(entries, parts, args):
    """Figure 2's ratios, and its picture where matplotlib is installed."""
    p1 = entries[0]["ours"]
    ratios = []
    for entry in entries:
        ours = f"{statistics.mean(entry['ours']) / statistics.mean(p1):.2f}" if entry["ours"] and p1 else ""
        ratios.append((entry["row"], f"{entry['paper'] / int(FIGURE_2['P1']):g}", ours))
    parts.append(markdown(("cost / P1", "paper", "ours"), ratios))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        parts.append("No picture: matplotlib is not installed (pip install matplotlib).\n")
        return
    shown = [entry for entry in entries if entry["ours"]]
    if shown:
        figure = Figure(figsize=(4, 3), layout="constrained")
        axes = figure.subplots()
        axes.bar([e["row"] for e in shown], [statistics.mean(e["ours"]) for e in shown])
        axes.set(ylabel="seconds", title=f"scale '{args.scale}'")
        figure.savefig(os.path.join(args.out, "figure2.png"), dpi=150)
        parts.append("![Figure 2](figure2.png)\n")


def correlations(plan, args, parts):
    """Figure 1, from the finished runs: tau of each seed, and `rank_transfer.py --tabulate`, whose tau.json it returns."""
    stages = [s for s in plan if plan[s]["command"][0] == "rank_transfer.py" and done(plan, args, s)]
    parts.append("The paper's cells are not legible in our copy: tau is high between balanced datasets and low otherwise.\n")
    if not stages:
        return None
    files, accuracies = [os.path.join(args.out, s, "accuracies.jsonl") for s in stages], {}
    for path in files:
        with open(path) as file:
            for line in map(json.loads, file):
                of_seed = accuracies.setdefault(f"{short(line['dataset'])} {line['imbalance']:g}x", {})
                of_seed.setdefault(line["seed"], {})[line["arch"]] = line["accuracy"]
    rows = []
    for i, one in enumerate(accuracies):
        rows.append([one])
        for j, other in enumerate(accuracies):
            shared = accuracies[one].keys() & accuracies[other].keys()
            taus = [correlation(accuracies[one][seed], accuracies[other][seed]) for seed in sorted(shared)]
            rows[-1].append(summary(None, [tau for tau in taus if tau == tau]) if i < j else "")
    parts.append("Kendall's tau between the settings, of each seed:\n")
    parts.append(markdown(["", *accuracies], rows))
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rank_transfer.py")
    command = [sys.executable, script, "--tabulate", *files]
    command += ["--out", os.path.join(args.out, "figure1"), "--plot", os.path.join(args.out, "figure1.png")]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode and "matplotlib" not in made.stderr:
        raise runtime.UserError(f"rank_transfer.py --tabulate: {made.stderr.strip()}")
    parts.append(f"And of their means over seeds:\n\n```\n{made.stdout.strip()}\n```\n")
    parts.append(made.stderr if made.returncode else "![Figure 1](figure1.png)\n")
    with open(os.path.join(args.out, "figure1", "tau.json")) as file:
        return json.load(file)


def correlation(one, other):
    """Kendall's tau over the architectures that both have accuracies of; NaN if they are fewer than two."""
    shared = sorted(one.keys() & other.keys())
    return kendall_tau(*([accuracies[arch] for arch in shared] for accuracies in (one, other))) if len(shared) > 1 else math.nan


def quick_table(plan, subnets, args):
    """(rows, Markdown): a row a procedure."""
    rows = []
    for p, stage in subnets.items():
        search = plan[stage]["needs"][0]
        seconds = 0.0 if p == "P0" else found(plan, args, plan[search]["needs"][0], ["seconds"])
        best, accuracy = found(plan, args, search, ["best"]), found(plan, args, stage, ["accuracy"])
        row = {"procedure": p, "seconds": seconds, "searched": best["accuracy"], **accuracy}
        rows.append(row | {"mmacs": best["mmacs"], "arch": best["arch"]})
    heads = ("", "adapting, s", "cost / P1", "searched, %", "sub-net all, %", "many", "medium", "few", "MMACs")
    texts = []
    for row in rows:
        row["cost"] = row["seconds"] / rows[1]["seconds"]
        cells = [row["procedure"], f"{row['seconds']:.1f}", f"{row['cost']:.2f}"]
        cells.append(f"{row['searched']:.2f}" + (" (on the source)" if row["procedure"] == "P0" else ""))
        cells += ["-" if row[group] is None else f"{row[group]:.2f}" for group in ("all", "many", "medium", "few", "mmacs")]
        texts.append(cells)
    title = (
        f"{args.source}, balanced -> {args.target} at {args.imbalance:g}x: {args.space} space, {args.channels} channels, "
        f"{args.cells} cells; epochs: {args.source_epochs} source, {args.adapt_epochs} P1 and P2, {args.target_epochs} P3, "
        f"{args.subnet_epochs} sub-net; search {args.generations} x {args.population}; seed {args.seed}. "
        "A small scale, not the paper's."
    )
    return rows, title + "\n\n" + markdown(heads, texts)


def quick(args):
    plan = {}
    subnets = by_procedure(plan, args, args.source, args.target, args.imbalance, args.seed)
    if args.dry_run:
        return [print(told(plan[stage]["command"])) for stage in plan]
    failed = run(plan, args, list(plan), workers(args), show=True)
    mistakes = [f"{stage}: {line.removeprefix('error: ')}" for stage, (status, line) in failed.items() if status == 2]
    if mistakes:
        raise runtime.UserError(mistakes[0])
    if failed:
        raise SystemExit(1)
    rows, text = quick_table(plan, subnets, args)
    store(args, {"flags": vars(args), "rows": rows}, text)
    print("\n" + text)


def workers(args):
    """The environment variables of each run that goes on at a time."""
    gpus = [{"CUDA_VISIBLE_DEVICES": gpu.strip()} for gpu in args.gpus.split(",")] if getattr(args, "gpus", None) else [{}]
    share = str(max(1, os.cpu_count() // (args.jobs * len(gpus))))
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", share), **gpu} for gpu in gpus] * args.jobs


def store(args, contents, text):
    """Writes report.json and report.md."""
    with runtime.users_mistake():
        os.makedirs(args.out, exist_ok=True)
    made_by = runtime.environment(runtime.setup(args.device or "auto", 0))
    runtime.write(os.path.join(args.out, "report.json"), json.dumps({**contents, **made_by}, indent=1))
    runtime.write(os.path.join(args.out, "report.md"), text)


def main(args):
    if args.do == "quick":
        return quick(args)
    plan, cells = paper_plan(args)
    if not plan:
        raise runtime.UserError(f"no run of {', '.join(args.tables)} has one of the ratios {args.ratios}")
    if args.do == "list":
        for stage in in_order(plan):
            print(f"[{'done' if done(plan, args, stage) else '    '}] {told(plan[stage]['command'])}")
        print(f"{sum(done(plan, args, stage) for stage in plan)} of {len(plan)} runs are done")
    elif args.do == "cost":
        price(args, plan, runtime.setup(args.device or "auto", 0))
    elif args.do == "run":
        part, _, parts = args.shard.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise runtime.UserError(f"--shard takes I/N with I from 1 to N, not '{args.shard}'")
        failed = run(plan, args, shard(plan, int(part), int(parts)), workers(args), show=False)
        if failed:
            lost = [stage for stage, (status, _) in failed.items() if status is None]
            broken = [stage for stage in failed if stage not in lost]
            raise SystemExit(f"error: {len(broken)} runs failed and {len(lost)} could not begin: {', '.join(broken + lost)}")
    else:
        whole, text = report(plan, cells, args)
        store(args, {"flags": vars(args), "tables": whole}, text)
        lines = "".join(json.dumps(line) + "\n" for line in finished(plan, args))
        runtime.write(os.path.join(args.out, "runs.jsonl"), lines)
        print(text)


if __name__ == "__main__":
    runtime.launch(parse_args, main)
