"""Do architecture rankings transfer? Accuracies of many architectures in many settings, and Kendall's tau between settings.

    python rank_transfer.py --out runs/rank                               # train the 135 of Figure 1 in six settings
    torchrun --nproc_per_node=8 rank_transfer.py --out runs/rank          # eight at a time; ranks may share a GPU
    python rank_transfer.py --supernet runs/p1/supernet.pt --out runs/rank_p1            # score them inside a super-net
    python rank_transfer.py --tabulate runs/rank/accuracies.jsonl runs/rank_p1/accuracies.jsonl --plot figure1.png

The first three write accuracies.jsonl, one {method, arch, dataset, imbalance, seed, accuracy} a line; the same command again
trains only what is missing. The last prints the tau matrix and writes tau.json to --out; it also reads a CSV with a header
`arch,<setting>,...`. Paper: tau is high between balanced datasets and low across imbalance (Figure 1).
"""

import argparse
import itertools
import json
import math
import os
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache, partial
from glob import glob

import numpy as np
import torch

from common import data, drw, engine, fast, flags, losses, runtime, spaces, tables

UNIT = ("arch", "dataset", "imbalance", "seed")  # identifies one training
PAPER = [(dataset, float(ratio)) for dataset in ("cifar10", "cifar100") for ratio in (1, 50, 100)]  # Figure 1
USED = {  # the flags that --tabulate and --supernet use
    "tabulate": {"tabulate", "plot", "top", "out"},
    "supernet": {"supernet", "archs", "distinct", "bn_images", "method", "seeds", "out", "device", "data_root"},
}


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    group = parser.add_argument_group("architectures")
    group.add_argument(
        "--archs", default="mmacs:149",
        help="mmacs:M, all nats architectures of M million multiply-accumulates (rounded) in the paper's macro-network; "
        "random:N; or a file with one architecture string a line (default mmacs:149, the 135 of Figure 1)",
    )  # fmt: skip
    group.add_argument("--space", choices=spaces.SPACES, default="nats", help="space of mmacs:M and random:N (default nats)")
    group.add_argument("--distinct", action="store_true", help="nats: one architecture of each set that computes the same")
    flags.add_shape(group)
    group = parser.add_argument_group("data")
    group.add_argument(
        "--datasets", nargs="+", type=dataset_and_ratio, default=PAPER, metavar="DATASET:R",
        help="datasets or folders, each with its imbalance (default cifar10 and cifar100, each with 1, 50 and 100)",
    )  # fmt: skip
    flags.add_draw(group)
    flags.add_training(parser, 0.1, 5, "200", "160 180, in proportion to --epochs", "160, in proportion to --epochs")
    flags.add_compile(parser)
    group = parser.add_argument_group("super-net")
    group.add_argument("--supernet", help="supernet.pt to score the architectures in, on the images that search.py would use")
    flags.add_bn_images(group)
    group = parser.add_argument_group("tables")
    group.add_argument(
        "--method", help="name of these accuracies in tables (default: stand-alone, or the super-net's procedure)"
    )
    group.add_argument("--tabulate", nargs="+", metavar="FILE", help="accuracies.jsonl or CSV files to correlate")
    group.add_argument("--top", type=flags.positive_int, metavar="K", help="with --tabulate: best K found, and regret")
    group.add_argument("--plot", metavar="PNG", help="with --tabulate: heat map of the matrix (needs matplotlib)")
    flags.add_run(parser, out="runs/rank_transfer", seeds=True)
    args = parser.parse_args(argv)

    use = "tabulate" if args.tabulate else "supernet" if args.supernet is not None else None
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    unused = given - USED[use] if use else given & {"bn_images", "top", "plot"}
    if unused:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unused))
        raise runtime.UserError(f"--{use} does not use {names}" if use else f"{names}: only with --tabulate or --supernet")
    if use == "supernet" and len(args.seeds) > 1:
        raise runtime.UserError("--supernet takes only one of --seeds: it chooses the BN images, as search.py's --seed does")
    flags.fill_schedule(args, epochs=200, milestones=(160, 180), reweight_from=160)
    return args


def dataset_and_ratio(text):
    """An argparse type: `dataset:ratio` -> (dataset, ratio)."""
    dataset, _, ratio = text.rpartition(":")
    if not dataset:
        raise argparse.ArgumentTypeError(f"must be DATASET:R, such as cifar10:100, not '{text}'")
    return dataset, flags.ratio(ratio)


# Architectures


def architectures(args, space_name=None):
    """(name of the space, architectures) that --archs asks for. ValueError if there are none.

    space_name: space of the super-net, if they are to be scored in one.
    """
    kind, _, number = args.archs.partition(":")
    if kind in ("mmacs", "random"):
        space_name = space_name or args.space
        archs = (of_mmacs if kind == "mmacs" else at_random)(space_name, number)
    else:
        with open(args.archs) as file:
            lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
        if not lines:
            raise ValueError(f"'{args.archs}' holds no architecture")
        space_name = space_name or spaces.parse(lines[0])[0]
        archs = list(dict.fromkeys(map(spaces.space(space_name).from_string, lines)))
    functions = distinct(space_name, archs)
    if args.distinct and functions is None:
        raise ValueError(f"--distinct: the '{space_name}' space cannot tell which architectures compute the same")
    runtime.print0(f"{len(archs)} architectures" + (f", {len(functions)} distinct functions" if functions else ""))
    return space_name, functions if args.distinct else archs


def of_mmacs(space_name, mmacs):
    """All architectures whose MACs at the paper's width and depth, for 10 classes, round to so many millions."""
    space = spaces.space(space_name)
    if space_name != "nats" or not mmacs.isdecimal():
        raise ValueError(f"--archs takes mmacs:M only for whole M and the 'nats' space, not mmacs:{mmacs} for '{space_name}'")
    macs = spaces.macs_counter(spaces.supernet(space_name, 10, **space.DEFAULTS))
    base = macs(space.LIGHTEST)
    extra = [macs((gene, *space.LIGHTEST[1:])) - base for gene in range(space.CHOICES[0])]  # the same on all six edges
    archs = itertools.product(*map(range, space.CHOICES))
    found = [arch for arch in archs if round((base + sum(extra[gene] for gene in arch)) / 1e6) == int(mmacs)]
    if not found:
        raise ValueError(f"no architecture has {mmacs} M multiply-accumulates")
    return found


def at_random(space_name, count):
    """`count` different architectures, uniformly drawn: always the same, and a smaller count draws the first of them."""
    choices = spaces.space(space_name).CHOICES
    if not count.isdecimal() or not 1 <= int(count) <= math.prod(choices):
        raise ValueError(f"--archs takes random:N for N in 1..{math.prod(choices)} in the '{space_name}' space, not {count}")
    rng, archs = np.random.default_rng(0), {}
    while len(archs) < int(count):
        archs[spaces.sample(choices, rng)] = None
    return list(archs)


def distinct(space_name, archs):
    """The first architecture of each set that computes the same function; None if the space cannot tell."""
    space = spaces.space(space_name)
    if not hasattr(space, "canonical"):
        return None
    first = {}
    for arch in archs:
        first.setdefault(space.canonical(arch)[0], arch)
    return list(first.values())


# Accuracies


def train_alone(args, device):
    """(method, plan, accuracy) of sub-nets that are trained from scratch, each on one rank.

    plan: {unit: training images}, where a unit is (arch, dataset, imbalance, seed). accuracy: a function of a unit, which
    trains and tests as retrain.py does.
    """
    space_name, archs = architectures(args)
    space = spaces.space(space_name)
    flags.fill_shape(args, space_name)
    draw = {k: getattr(args, k) for k in ("data_seed", "val_per_class", "image_size")}
    load = partial(data.load, **draw, root=args.data_root, device=device)
    trains = {(dataset, ratio): load(("train",), dataset, ratio)[0] for dataset, ratio in args.datasets}
    weights = {key: drw.class_weights(labels.bincount(), args.beta).to(device) for key, (_, labels) in trains.items()}
    test = cache(lambda dataset: load(("test",), dataset)[0])

    def accuracy(arch, dataset, ratio, seed):
        train = trains[dataset, ratio]
        normalise = data.Normalise(*data.channel_stats(train[0]), args.image_size, device)
        net = train_subnet(args, space, space.from_string(arch), train, normalise, weights[dataset, ratio], seed)
        images, labels = test(dataset)  # not read before a net is trained
        correct = engine.correct_by_class(net, engine.normalised_chunks(images, normalise), labels)
        return 100 * correct.sum().item() / len(labels)

    units = itertools.product(dict.fromkeys(args.seeds), trains, map(space.to_string, archs))
    plan = {(arch, *key, seed): len(trains[key][1]) for seed, key, arch in units}
    return args.method or "stand-alone", plan, accuracy


def train_subnet(args, space, arch, train, normalise, weights, seed):
    """A sub-net after training from scratch on one rank. weights: class weights (C,) on the device."""
    torch.manual_seed(seed)
    batches, counts = data.Batches(train, normalise, args.batch_size, seed), train[1].bincount()
    net = space.Network(len(counts), args.channels, args.cells, arch)
    losses.match_classifier(net, args.loss)
    net.to(weights.device)
    backbone = fast.compiled(net) if args.compile else None
    optimizer = engine.sgd(net, args.lr, args.momentum, args.weight_decay)
    loss = partial(losses.LOSSES[args.loss], counts=counts)
    net.train()
    for epoch in range(1, args.epochs + 1):
        optimizer.param_groups[0]["lr"] = drw.learning_rate(epoch, args.lr, args.milestones, args.warmup)
        reweight = losses.reweights(args.loss) and drw.reweighted(epoch, args.reweight_from)
        engine.train_epoch(
            net, batches, epoch, optimizer, weights if reweight else torch.ones_like(weights),
            loss=loss, clip=args.clip, precision=args.precision, backbone=backbone,
        )  # fmt: skip
    return net


def score_inside(args, device):
    """As `train_alone`, for paths of a super-net, scored as in search.py."""
    checkpoint = runtime.load_checkpoint(args.supernet, "super-net")
    with runtime.users_mistake(args.supernet):
        net = spaces.supernet_from(checkpoint).to(device)
    space_name, archs = architectures(args, checkpoint["space"])
    space, source = spaces.space(space_name), checkpoint["data"]
    train, val = data.load(("train", "val"), **source, root=args.data_root, device=device)
    score = engine.scorer(net, train, val, args.bn_images, args.seeds[0])
    setting = (source["dataset"], source["imbalance"], checkpoint["seed"])
    plan = {(space.to_string(arch), *setting): 1 for arch in archs}
    return args.method or checkpoint["procedure"], plan, lambda arch, *_: score(space.from_string(arch))


# Units: each rank appends to a file of its own and never waits for another


@contextmanager
def one_rank_at_a_time(path):
    """Ranks take turns in the block, so that a dataset is downloaded once. There is no process group to wait in."""
    with open(path, "w") as file:
        with suppress(ImportError, OSError):  # not POSIX, or a file system without locks
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def add_unit(path, unit, accuracy, seconds):
    """Appends a line and flushes it to the disk. The newline before it ends a line that a killed process left unfinished."""
    with open(path, "a") as file:
        file.write(f"\n{json.dumps([unit, accuracy, seconds])}\n")
        file.flush()
        os.fsync(file.fileno())


def unit_files(run):
    return [run.path(name) for name in glob("units_*.jsonl", root_dir=run.folder)]


def finished_units(run):
    """{unit: (accuracy, seconds)} of all ranks. An unfinished line is ignored, so that its unit is trained again."""
    finished = {}
    for path in unit_files(run):
        with suppress(FileNotFoundError), open(path, errors="replace") as file:  # gathered meanwhile by another rank
            for line in file:
                with suppress(ValueError, TypeError):
                    unit, accuracy, seconds = json.loads(line)
                    finished[tuple(unit)] = float(accuracy), float(seconds)
    return finished


def gather(run, method, plan):
    """Writes accuracies.jsonl and result.json if all units are finished, and removes the ranks' own files.

    Ranks that finish at the same time write the same. One that comes when some files are removed finds units missing, and
    returns.
    """
    finished = finished_units(run)
    if not finished.keys() >= plan.keys():
        return
    lines = [{"method": method, **dict(zip(UNIT, unit, strict=True)), "accuracy": finished[unit][0]} for unit in plan]
    runtime.write(run.path("accuracies.jsonl"), "".join(json.dumps(line) + "\n" for line in lines))
    seconds = sum(finished[unit][1] for unit in plan)
    facts = {"units": len(plan), "architectures": len({arch for arch, *_ in plan}), "seconds": seconds}
    runtime.write(run.path("result.json"), json.dumps(facts, indent=1))
    for path in [*unit_files(run), run.path("data.lock"), run.path("lock")]:
        with suppress(FileNotFoundError):
            os.remove(path)
    print(f"{run.folder}: done; for the tau matrix: python rank_transfer.py --tabulate {run.path('accuracies.jsonl')}")


def tabulate(args):
    with runtime.users_mistake():
        result = tables.compare(tables.read(args.tabulate), args.top)
        print(tables.text(result))
        os.makedirs(args.out, exist_ok=True)
        facts = {**tables.plain(result), **runtime.environment(torch.device("cpu"))}
        runtime.write(os.path.join(args.out, "tau.json"), json.dumps(facts, indent=1))
        if args.plot:
            tables.heat_map(result, args.plot)


def main(args):
    if args.tabulate:
        return tabulate(args)

    # set-up
    device = runtime.setup(args.device, 0, group=False)
    run = runtime.Run(args, device)
    if run.finished:
        return

    # data and model
    with runtime.users_mistake(), one_rank_at_a_time(run.path("data.lock")):
        method, plan, accuracy = (train_alone if args.supernet is None else score_inside)(args, device)
    run.begin()

    # loop: unit i belongs to rank i % ranks
    rank, ranks = runtime.rank(), int(os.environ.get("WORLD_SIZE", 1))
    finished = finished_units(run)
    if os.path.exists(run.path("result.json")):  # another rank has gathered, and `finished` may miss what it removed
        return
    todo = [unit for unit in list(plan)[rank::ranks] if unit not in finished]
    spent, trained = 0.0, 0
    for number, unit in enumerate(todo, start=1):
        name, start = "{1} {2:g}x, seed {3}, {0}".format(*unit), time.perf_counter()
        try:
            with runtime.users_mistake():
                percent = accuracy(*unit)
        except runtime.UserError as error:
            raise runtime.UserError(f"{name}: {error}") from None
        seconds = time.perf_counter() - start
        add_unit(run.path(f"units_{rank}.jsonl"), unit, percent, seconds)
        spent, trained = spent + seconds, trained + plan[unit]
        left = timedelta(seconds=round(spent / trained * sum(map(plan.get, todo[number:]))))
        print(f"{number}/{len(todo)} of rank {rank}, {left} left: {percent:.2f} % in {seconds:.1f} s, {name}", flush=True)

    # save
    if todo or rank == 0:
        gather(run, method, plan)


if __name__ == "__main__":
    runtime.launch(parse_args, main)
