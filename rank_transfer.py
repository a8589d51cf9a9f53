"""Do architecture rankings transfer? Accuracies of many architectures in many settings, and Kendall's tau between settings.

    python rank_transfer.py --out runs/rank                               # train the 135 of Figure 1 in six settings
    torchrun --nproc_per_node=8 rank_transfer.py --out runs/rank          # eight at a time; ranks may share a GPU
    python rank_transfer.py --supernet runs/p1/supernet.pt --out runs/rank_p1            # score them inside a super-net
    python rank_transfer.py --tabulate runs/rank/accuracies.jsonl runs/rank_p1/accuracies.jsonl --plot figure1.png

The first three write accuracies.jsonl, one {method, arch, dataset, imbalance, seed, accuracy} per line; the first two add
the means over classes {balanced, many, medium, few}. The same command again trains only what is missing. The last prints the
tau matrix and writes tau.json to --out; it also reads a CSV with a header `arch,<setting>,...`. Paper: tau is high between
balanced datasets and low across imbalance (Figure 1).
"""

import itertools
import json
import math
import os
import time
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from common import data, drw, engine, fast, flags, losses, nats, runtime, scoring, spaces, tables

UNIT = ("arch", "dataset", "imbalance", "seed")  # identifies one training
PAPER = [(dataset, float(ratio)) for dataset in ("cifar10", "cifar100") for ratio in (1, 50, 100)]  # Figure 1


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    group = parser.add_argument_group("architectures")
    text = "mmacs:M, all of nats with M million multiply-accumulates; random:N; or a file with one architecture per line"
    group.add_argument("--archs", default="mmacs:149", help=text)
    group.add_argument("--space", choices=spaces.SPACES, default="nats", help="search space of the architectures")
    text = "nats: keep one of each set of architectures that compute the same function"
    group.add_argument("--distinct", action="store_true", help=text)
    text = "nats: keep those with a path from input to output; with --tabulate, too"
    group.add_argument("--connected", action="store_true", help=text)
    flags.add_shape(group)
    group = parser.add_argument_group("data")
    text = "datasets or folders, each with its imbalance (default: cifar10 and cifar100, each with 1, 50 and 100)"
    group.add_argument("--datasets", nargs="+", type=dataset_and_ratio, metavar="DATASET:R", help=text)
    flags.add_draw(group)
    flags.add_training(parser, "sub-net")
    parser.add_argument("--cuda-graphs", action="store_true", help="on a GPU: the same result, several times as fast")
    group = parser.add_argument_group("super-net, whose checkpoint replaces the flags of space, shape, data and training")
    group.add_argument("--supernet", help="supernet.pt to score the architectures in, on the images that search.py would use")
    flags.add_scoring(group)
    group = parser.add_argument_group("tables")
    group.add_argument("--method", help="name in tables (default: stand-alone, or the super-net's procedure)")
    group.add_argument("--tabulate", nargs="+", metavar="FILE", help="accuracies.jsonl or CSV files to correlate")
    group.add_argument("--plot", metavar="PNG", help="with --tabulate: heat map of the matrix (needs matplotlib)")
    flags.add_run(parser, out="runs/rank_transfer", seeds=True)
    args = parser.parse_args(argv)
    if args.plot and not args.tabulate:
        raise runtime.UserError("--plot draws the matrix of --tabulate: name its files, too")
    if args.own_classifier and args.supernet is None:
        raise runtime.UserError("--own-classifier scores architectures in a super-net: give --supernet, too")
    if args.supernet is not None and len(args.seeds) > 1:
        raise runtime.UserError("with --supernet, give --seeds one seed: it chooses the BN images, as search.py's --seed does")
    args.datasets = args.datasets or PAPER
    flags.fill_schedule(args, "sub-net")
    return args


def dataset_and_ratio(text):
    """An argparse type: `dataset:ratio` -> (dataset, ratio)."""
    dataset, _, ratio = text.rpartition(":")
    if not dataset:
        raise ValueError
    return dataset, flags.ratio(ratio)


dataset_and_ratio.__name__ = "DATASET:R"  # in argparse's message


# Architectures


def architectures(args, space):
    """The architectures of a space that --archs asks for. ValueError if there are none."""
    kind, _, number = args.archs.partition(":")
    if space is not nats and (kind == "mmacs" or args.connected or args.distinct):
        raise ValueError("--archs mmacs:M, --connected and --distinct are only for the nats space")
    if number.isdecimal() and kind in ("mmacs", "random"):
        archs = at_random(space, int(number)) if kind == "random" else of_mmacs(int(number))
    else:
        what = f"a file with one architecture of the {space.__name__.rpartition('.')[2]} space per line"
        with runtime.reading(args.archs, what), open(args.archs) as file:
            archs = list(dict.fromkeys(space.from_string(line) for line in file if line.strip()))
    archs = [arch for arch in archs if nats.longest_path(arch) >= 0] if args.connected else archs
    archs = distinct(archs) if args.distinct else archs
    if not archs:
        raise ValueError(f"--archs {args.archs}: there is no such architecture")
    return archs


def of_mmacs(mmacs):
    """All nats architectures whose MACs at the paper's width and depth, for 10 classes, round to `mmacs` million."""
    macs = spaces.macs_counter(nats.Network(10, **nats.DEFAULTS))
    # Each edge's operation plus a sixth of the fixed cost (stem, reductions, classifier), so that six shares add up.
    share = [macs((gene,) * 6) / 6 for gene in range(len(nats.OPERATIONS))]
    archs = itertools.product(*map(range, nats.CHOICES))
    return [arch for arch in archs if round(sum(share[gene] for gene in arch) / 1e6) == mmacs]


def at_random(space, count):
    """`count` architectures, or all if there are fewer: always the same, and a smaller count draws the first of them."""
    rng, archs = np.random.default_rng(0), {}
    while len(archs) < min(count, math.prod(space.CHOICES)):
        archs[spaces.sample(space.CHOICES, rng)] = None
    return list(archs)


def distinct(archs):
    """The first nats architecture of each set that computes the same function."""
    first = {}
    for arch in archs:
        first.setdefault(nats.canonical(arch)[0], arch)
    return list(first.values())


# Accuracies


def train_alone(args, device):
    """(method, units, measure) of sub-nets that are trained from scratch, each on one rank, and tested as in retrain.py.

    units: (arch, dataset, imbalance, seed) of each training. measure: a function of a unit -> its accuracies, a dict.
    """
    space = spaces.space(args.space)
    flags.fill_shape(args, args.space)
    archs = [space.to_string(arch) for arch in architectures(args, space)]
    draw = {k: getattr(args, k) for k in ("data_seed", "val_per_class", "image_size")}
    load = partial(data.load, **draw, root=args.data_root, device=device)
    trains = {setting: load(("train",), *setting)[0] for setting in args.datasets}
    test = cache(lambda dataset: load(("test",), dataset)[0])

    def measure(arch, dataset, ratio, seed):
        train = trains[dataset, ratio]
        normalise = data.Normalise(*data.channel_stats(train[0]), args.image_size, device)
        net = train_subnet(args, space, space.from_string(arch), train, normalise, seed)
        images, labels = test(dataset)  # not read before a net is trained
        correct = engine.correct_by_class(net, engine.normalised_chunks(images, normalise), labels)
        found = engine.accuracies(correct, labels.bincount(), train[1].bincount())
        return {"accuracy": found.pop("all"), **found}

    units = [(arch, *setting, seed) for seed in dict.fromkeys(args.seeds) for setting in trains for arch in archs]
    return args.method or "stand-alone", units, measure


def train_subnet(args, space, arch, train, normalise, seed):
    """A sub-net after training from scratch on one rank."""
    torch.manual_seed(seed)
    batches, counts = data.Batches(train, normalise, args.batch_size, seed), train[1].bincount()
    weights = drw.class_weights(counts, args.beta)
    net = space.Network(len(counts), args.channels, args.cells, arch)
    losses.match_classifier(net, args.loss)
    net.to(counts.device)
    backbone = fast.captured(net) if args.cuda_graphs else None
    optimizer = engine.sgd(net, args.lr, args.momentum, args.weight_decay)
    loss = partial(losses.LOSSES[args.loss], counts=counts)
    for epoch in range(1, args.epochs + 1):
        optimizer.param_groups[0]["lr"] = drw.learning_rate(epoch, args.lr, args.milestones, args.warmup)
        class_weights = weights if drw.reweighted(epoch, args.reweight_from) else torch.ones_like(weights)
        engine.train_epoch(
            net, batches, epoch, optimizer, class_weights,
            loss=loss, clip=args.clip, precision=args.precision, backbone=backbone,
        )  # fmt: skip
    return net


def score_inside(args, device):
    """As `train_alone`, for paths of a super-net, scored as in search.py."""
    checkpoint, net = spaces.load_supernet(args.supernet)
    space, source = spaces.space(checkpoint["space"]), checkpoint["data"]
    archs = architectures(args, space)
    train, val = data.load(("train", "val"), **source, root=args.data_root, device=device)
    score = scoring.scorer(net.to(device), train, val, args.bn_images, args.seeds[0], args.own_classifier)
    units = [(space.to_string(arch), source["dataset"], source["imbalance"], checkpoint["seed"]) for arch in archs]
    return args.method or checkpoint["procedure"], units, lambda arch, *_: {"accuracy": score(space.from_string(arch))}


def finished_units(run):
    """{unit: its line} from the files of all ranks."""
    finished = {}
    for path in Path(run.folder).glob("units_*.jsonl"):
        for text in path.read_text(errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a killed process left half a line: its unit is trained again
                line = json.loads(text)
                finished[tuple(line[key] for key in UNIT)] = {**line, "seconds": float(line["seconds"])}
    return finished


def tabulate(args):
    with runtime.user_errors():
        units = tables.read(args.tabulate)
        if args.connected:
            for label, archs in units.items():
                units[label] = {arch: v for arch, v in archs.items() if nats.longest_path(nats.from_string(arch)) >= 0}
        result = tables.compare(units)
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
    with runtime.user_errors():
        method, units, measure = (train_alone if args.supernet is None else score_inside)(args, device)
    run.begin()

    # loop: unit i belongs to rank i % ranks, which appends to a file of its own and never waits for another
    rank, ranks, finished = runtime.rank(), int(os.environ.get("WORLD_SIZE", 1)), finished_units(run)
    todo = [unit for unit in units[rank::ranks] if unit not in finished]
    for number, unit in enumerate(todo, start=1):
        name, start = "{1} {2:g}x, seed {3}, {0}".format(*unit), time.perf_counter()
        try:
            found = measure(*unit)
        except (runtime.UserError, ValueError) as error:
            raise runtime.UserError(f"{name}: {error}") from None
        found |= {name: run.config[name] for name in ("device", "commit")}  # not those of config.json, if the run was resumed
        line = {"method": method, **dict(zip(UNIT, unit, strict=True)), **found, "seconds": time.perf_counter() - start}
        with open(run.path(f"units_{rank}.jsonl"), "a") as file:
            file.write(f"\n{json.dumps(line)}\n")  # the newline before it ends what a killed process left unfinished
        print(f"{number}/{len(todo)} of rank {rank}: {line['accuracy']:.2f} % in {line['seconds']:.1f} s, {name}", flush=True)

    # save: the last to finish gathers; several that finish at the same time write the same
    finished = finished_units(run)
    if finished.keys() >= set(units):
        lines = [finished[unit] for unit in units]
        facts = {"units": len(units), "architectures": len({arch for arch, *_ in units})}
        facts["seconds"] = sum(line.pop("seconds") for line in lines)
        runtime.write(run.path("accuracies.jsonl"), "".join(json.dumps(line) + "\n" for line in lines))
        runtime.write(run.path("result.json"), json.dumps(facts, indent=1))
        print(f"{run.folder}: done; for the tau matrix: python rank_transfer.py --tabulate {run.path('accuracies.jsonl')}")


if __name__ == "__main__":
    runtime.launch(parse_args, main)
