"""The paper's runs as a plan, and the tables that they fill.

A stage is named after what it computes, so a run that several tables need is in the plan once.
"""

import math
import os
from functools import cache, partial
from itertools import product

from . import data, paper, study
from .report import Cell
from .runner import Stage
from .runtime import UserError

FIGURE_1_ARCH = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"  # one of its 135

class_sizes = cache(data.class_sizes)


class Plan(dict):
    """{name: Stage}. A method adds a stage and what it needs, and returns its name. args: the flags of reproduce.py."""

    def __init__(self, args):
        super().__init__()
        self.args = args

    def add(self, name, command, turn, work, needs=()):
        where = given(out=os.path.join(self.args.out, name), device=self.args.device, data_root=self.args.data_root)
        if self.args.cuda_graphs and command[0] in ("retrain.py", "rank_transfer.py"):
            where.append("--cuda-graphs")
        stage = Stage([str(word) for word in (*command, *where)], needs, turn, work)
        known = self.get(name, stage)
        if known.command != stage.command:
            advice = "--source and --target must be different datasets, in folders of different names"
            raise UserError(f"two different runs would be called '{name}': {advice}")
        self[name] = stage._replace(turn=min(known.turn, turn))  # a table may want it earlier than another
        return name

    def long_tailed(self, dataset, ratio, held_out=None):
        """(flags, number of training images) of a dataset made long-tailed after holding out `held_out` images per class."""
        sizes = class_sizes(dataset, "train")
        held_out = math.ceil(self.args.val_images / len(sizes)) if held_out is None else held_out
        if held_out >= min(sizes):
            raise UserError(f"--val-images {self.args.val_images} is more than the training images of '{dataset}' allow")
        flags = given(dataset=dataset, imbalance=f"{ratio:.12g}", image_size=self.args.image_size, val_per_class=held_out)
        return flags, sum(data.long_tail_counts([n - held_out for n in sizes], ratio))

    def supernet(self, dataset, ratio, seed, epochs, loss=None):
        """Eq. 3 on the source; Eq. 6 on the target (P3)."""
        args, (flags, images) = self.args, self.long_tailed(dataset, ratio)
        flags += given(space=args.space, channels=args.channels, cells=args.cells, loss=loss)
        flags += given(epochs=epochs, warmup=args.warmup, seed=seed)
        name = f"supernet_{short(dataset, ratio)}{f'_{loss}' if loss else ''}_s{seed}"
        return self.add(name, ["train_supernet.py", *flags], seed, {"super-net step": epochs * images})

    def trained(self, row, source, target, ratio, seed):
        """The super-net of a row of Tables 3 to 6, Figure 2 or the study: P1 is Eq. 4, P2 Eq. 5, "P2, 50/200" of Table 4.

        "P1, every 4" is P1 with `--features-every 4`.
        """
        if row in ("P3", "CE", "CE-DRW", "P3, CE"):
            return self.supernet(target, ratio, seed, self.args.target_epochs, "CE" if row.endswith("CE") else None)
        trained, epochs = self.supernet(source, 1, seed, self.args.source_epochs), self.args.adapt_epochs
        if row == "P0":
            return trained
        procedure, _, variant = row.partition(", ")
        frozen_after = int(variant.removesuffix("/200")) if variant.endswith("/200") else None  # of the paper's 200 epochs
        every = int(variant.removeprefix("every ")) if variant.startswith("every ") else None
        full = 0 if procedure == "P1" else math.ceil((frozen_after or 200) * epochs / 200)  # epochs that train the backbone
        forward = math.ceil((epochs - full) / (every or 1))  # epochs that run the frozen backbone
        flags, images = self.long_tailed(target, ratio)
        command = ["adapt.py", "--procedure", procedure, "--supernet", os.path.join(self.args.out, trained, "supernet.pt")]
        command += flags + given(epochs=epochs, backbone_epochs=frozen_after and full, features_every=every, seed=seed)
        tag = f"_backbone{frozen_after}" if frozen_after else f"_every{every}" if every else ""
        name = f"{procedure}{tag}_{short(source)}_{short(target, ratio)}_s{seed}"
        work = {"super-net step": full, "P1 step": forward, "P1 classifier step": epochs - full - forward}
        return self.add(name, command, seed, {step: n * images for step, n in work.items() if n}, [trained])

    def subnet(self, row, source, target, ratio, seed):
        """Searches the row's super-net, P0's on the source, and trains the best architecture on the target."""
        args, supernet = self.args, self.trained(row, source, target, ratio, seed)
        searched = (source, 1) if row == "P0" else (target, ratio)
        images = args.val_images or sum(class_sizes(searched[0], "val"))
        images += min(args.bn_images, self.long_tailed(*searched)[1])
        command = ["search.py", "--supernet", os.path.join(args.out, supernet, "supernet.pt")]
        command += given(generations=args.generations, population=args.population, crossovers=args.population // 2)
        command += given(mutations=args.population // 2, bn_images=args.bn_images, seed=seed)
        work = {"scoring": args.generations * args.population * images}
        search = self.add(f"search_{supernet}", command, seed, work, [supernet])
        arch = given(arch=os.path.join(args.out, search, "result.json"), channels=args.channels, cells=args.cells)
        return self.retrain(f"{supernet}_on_{short(target, ratio)}", arch, target, ratio, seed, needs=[search])

    def retrain(self, name, arch, dataset, ratio, seed, step="sub-net step", needs=(), held_out=None):
        """Trains an architecture from scratch."""
        args, (flags, images) = self.args, self.long_tailed(dataset, ratio, held_out)
        command = ["retrain.py", *arch, *flags, *given(epochs=args.subnet_epochs, warmup=args.warmup, seed=seed)]
        return self.add(f"retrain_{name}", command, seed, {step: args.subnet_epochs * images}, needs)

    def cells(self, numbers, columns, stage_of, keys=(("accuracy", "all"),)):
        """Yields the cells of a table. stage_of: (row, column, seed) -> stage; a column is a ratio or a dataset.

        numbers: {column: {row: the paper's number, or a tuple with one for each of `keys`}}.
        """
        for column, row in product(columns, next(iter(numbers.values()))):
            stages = [stage_of(row, column, seed) for seed in range(self.args.seeds)]
            key, title = (short(column), short(column)) if isinstance(column, str) else (column, f"{column:g}x")
            printed = None if self.args.scale == "quick" else numbers.get(key, {}).get(row)
            printed = printed if isinstance(printed, tuple) else [printed] * len(keys)
            for path, number in zip(keys, printed, strict=True):
                yield Cell(row, f"{title} {path[-1]}" if len(keys) > 1 else title, number, stages, path)


def given(**values):
    """Flags for the values that are not None: `given(val_per_class=3)` is --val-per-class 3."""
    return [word for name, value in values.items() if value is not None for word in ("--" + name.replace("_", "-"), value)]


def short(dataset, ratio=None):
    """A dataset in a stage's name: cifar100_50x."""
    return os.path.basename(os.path.normpath(dataset)) + ("" if ratio is None else f"_{ratio:g}x")


# The tables and figures: each adds its stages to the plan and returns its cells


def table_1(plan):
    args = plan.args

    def stage_of(row, ratio, seed):
        dataset = args.source if row in ("A1", "A2") else args.target
        channels = max(1, (args.channels or 36) * paper.CHANNELS[row] // 36)
        arch = given(arch=paper.ARCHITECTURES[row], channels=channels, cells=args.cells and 5)
        return plan.retrain(f"{row}_on_{short(dataset, ratio)}_s{seed}", arch, dataset, ratio, seed, "sub-net step of Table 1")

    return plan.cells(paper.TABLE_1, (1, 100), stage_of)


def transfer(plan, numbers, stage_of=Plan.subnet, backwards=False, **kwargs):
    """Tables 3 to 6 and Figure 2."""
    pair = (plan.args.source, plan.args.target)[:: -1 if backwards else 1]
    return plan.cells(numbers, plan.args.ratios or numbers, lambda row, *rest: stage_of(plan, row, *pair, *rest), **kwargs)


def figure_1(plan):
    """No cells: Figure 1 is Kendall's tau between the accuracies that these stages write."""
    args = plan.args
    for seed, dataset, ratio in product(range(args.seeds), (args.source, args.target), (1, 50, 100)):
        flags, images = plan.long_tailed(dataset, ratio)
        command = ["rank_transfer.py", "--datasets", f"{dataset}:{ratio}", *flags[4:]]  # without --dataset and --imbalance
        command += given(channels=args.channels, cells=args.cells, epochs=args.subnet_epochs, warmup=args.warmup, seeds=seed)
        work = {"sub-net step of Figure 1": 135 * args.subnet_epochs * images}
        plan.add(f"rank_{short(dataset, ratio)}_s{seed}", command, seed, work)
    return ()


def the_study(plan):
    """No cells: common/study.py decides the claims from the accuracies that these stages write."""
    args, sizes = plan.args, class_sizes(plan.args.target, "train")
    if args.space != "nats" or len(set(sizes)) > 1:
        raise UserError(f"the study needs --space nats and a balanced --target, not {args.space} and '{args.target}'")
    _, images = plan.long_tailed(args.target, 100)
    command = ["rank_transfer.py", "--archs", study.ARCHITECTURES]
    for nth, (method, (ratio, data_seed, seeds)) in enumerate(study.SETTINGS.items()):
        held_out = min(sizes) - images // len(sizes) if method == "small" else None
        flags, n = plan.long_tailed(args.target, ratio, held_out)
        flags = ["--datasets", f"{args.target}:{ratio}", *flags[4:]]
        epochs, warmup = (round(images / n * at_100x) for at_100x in (args.subnet_epochs, args.warmup))  # equal steps
        flags += given(epochs=max(1, epochs), warmup=warmup)
        flags += given(data_seed=data_seed, channels=args.channels, cells=args.cells, method=method)
        turn = nth - len(study.SETTINGS)  # before all super-nets
        for seed in seeds:
            work = {"sub-net step": 96 * args.subnet_epochs * images}
            plan.add(f"alone_{method.replace(' ', '_')}_s{seed}", [*command, *flags, "--seeds", seed], turn, work)
    for row, seed in product((*study.PROCEDURES, *study.VARIANTS), range(args.seeds)):
        trained_as, own = row.removesuffix(", own classifier"), row.endswith(", own classifier")
        before, supernet = set(plan), plan.trained(trained_as, args.source, args.target, 100, seed)
        fitted_to = images if own else args.bn_images  # rare classes need all of their images
        flags = given(bn_images=fitted_to, method=row, supernet=os.path.join(args.out, supernet, "supernet.pt"))
        flags += ["--own-classifier"] if own else []
        work = {"scoring": 96 * ((1 + own) * fitted_to + sum(class_sizes(args.target, "val")))}
        plan.add(f"inside_{supernet}{'_own' if own else ''}", [*command, *flags], seed, work, [supernet])
        if row in study.VARIANTS:
            plan.update({name: plan[name]._replace(turn=seed + args.seeds) for name in plan.keys() - before})
    return ()


def baselines(plan):
    def stage_of(loss, dataset, seed):
        name = f"resnet32_{loss}_on_{short(dataset, 100)}_s{seed}"
        return plan.retrain(name, given(arch="resnet32", loss=loss), dataset, 100, seed, "sub-net step of resnet32", held_out=0)

    return plan.cells(paper.BASELINES, dict.fromkeys((plan.args.source, plan.args.target)), stage_of)


TABLES = {
    "1": table_1,
    "3a": partial(transfer, numbers=paper.TABLE_3A),
    "3b": partial(transfer, numbers=paper.TABLE_3B, backwards=True),
    "4": partial(transfer, numbers=paper.TABLE_4),
    "5": partial(transfer, numbers=paper.TABLE_5),
    "6": partial(transfer, numbers=paper.TABLE_6, keys=[("accuracy", group) for group in paper.GROUPS]),
    "fig1": figure_1,
    "fig2": partial(transfer, numbers=paper.FIGURE_2, stage_of=Plan.trained, keys=[("seconds",)]),
    "baselines": baselines,
    "study": the_study,
}


def make_plan(args):
    """({name: Stage}, {table: its cells}). A stage comes after what it needs, and all of one seed before the next."""
    plan = Plan(args)
    tables = {table: list(TABLES[table](plan)) for table in args.tables}
    return dict(sorted(plan.items(), key=lambda item: item[1].turn)), tables
