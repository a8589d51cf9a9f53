"""Do architecture rankings transfer? Accuracies of many architectures on many datasets, and Kendall's tau between them.

    python rank_transfer.py --out runs/rank_transfer                      # train the 135 of Figure 1 on six datasets, alone
    torchrun --nproc_per_node=8 rank_transfer.py --out runs/rank_transfer     # 8 at a time; ranks may share a GPU
    python rank_transfer.py --supernet runs/p1/supernet.pt --out runs/rank_p1      # score them inside a super-net instead
    python rank_transfer.py --tabulate runs/rank_transfer/accuracies.jsonl runs/rank_p1/accuracies.jsonl --plot figure1.png

The first three write accuracies.jsonl, one {method, arch, dataset, imbalance, seed, accuracy} a line, and train only what
is missing when they are started again. The last prints the tau matrix and writes tau.json to --out; it also reads a CSV
with a header `arch,<label>,...`. Paper: tau is high between balanced datasets and low across imbalance (Figure 1).
"""

import csv
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import time
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch

from common import data, drw, engine, flags, runtime, spaces
from common.kendall import kendall_tau

PAPER = [f"{dataset}:{ratio}" for dataset in ("cifar10", "cifar100") for ratio in (1, 50, 100)]
KEYS = {"arch": str, "dataset": str, "imbalance": (int, float), "seed": int, "accuracy": (int, float)}  # of a line
RESAMPLES = 1000  # of the bootstrap
READ = {  # the flags that mean something in the two other ways of use
    "tabulate": {"tabulate", "plot", "top", "out"},
    "supernet": {"supernet", "archs", "distinct", "bn_images", "method", "seeds", "out", "device", "data_root"},
}


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    group = parser.add_argument_group("architectures")
    group.add_argument(
        "--archs", default="mmacs:149",
        help="mmacs:M, all whose multiply-accumulates in the paper's macro-network round to M million; random:N; or a file "
        "of strings, one a line (default mmacs:149, the 135 of Figure 1)",
    )  # fmt: skip
    group.add_argument("--space", choices=spaces.SPACES, default="nats", help="of random:N and mmacs:M (default nats)")
    group.add_argument("--distinct", action="store_true", help="nats: one of each set that computes the same function")
    group.add_argument("--channels", type=int, help="of the first stage (default: nats 16, darts 36)")
    group.add_argument("--cells", type=int, help="nats: a stage (default 5); darts: in all (default 20)")
    group = parser.add_argument_group("data")
    group.add_argument(
        "--datasets", nargs="+", default=PAPER, metavar="DATASET:RATIO",
        help=f"each a dataset or folder and its imbalance (default {' '.join(PAPER)})",
    )  # fmt: skip
    flags.add_draw(group)
    flags.add_training(parser, 0.1, 5, "200", "160 180, in proportion to --epochs", "160, in proportion to --epochs")
    group = parser.add_argument_group("inside a super-net")
    group.add_argument("--supernet", help="score inside this supernet.pt, on the images that search.py would use")
    group.add_argument("--bn-images", type=int, default=2000, help="training images for BN statistics (default 2000)")
    group = parser.add_argument_group("tables")
    group.add_argument("--method", help="what these accuracies are called (default: stand-alone, or the super-net's procedure)")
    group.add_argument("--tabulate", nargs="+", metavar="FILE", help="accuracies.jsonl or CSV files to be correlated")
    group.add_argument("--top", type=int, metavar="K", help="with --tabulate: how many of the best K are found, and the regret")
    group.add_argument("--plot", metavar="PNG", help="with --tabulate: draw the matrix as a heat map (needs matplotlib)")
    flags.add_compile(parser)
    flags.add_run(parser, out="runs/rank_transfer", seeds=True)
    args = parser.parse_args(argv)

    use = "tabulate" if args.tabulate else "supernet" if args.supernet is not None else None
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    idle = given - READ[use] if use else given & {"bn_images", "top", "plot"}
    if idle:
        told = ", ".join("--" + name.replace("_", "-") for name in sorted(idle))
        raise runtime.UserError(f"--{use} makes no use of {told}" if use else f"{told}: not without --tabulate or --supernet")
    if use == "supernet" and len(args.seeds) > 1:
        raise runtime.UserError("--supernet takes one of --seeds: it draws the BN images, as search.py's --seed")
    flags.schedule(args, epochs=200, milestones=(160, 180), reweight_from=160)
    flags.check(args)
    return args


# Which architectures


def architectures(args, space_name):
    """(space's name, tuples of genes) of the set that --archs names; prints how many. ValueError if it names none.

    space_name: the space of the super-net, if they are to be scored in one.
    """
    kind, _, number = args.archs.partition(":")
    if kind in ("mmacs", "random"):
        space_name = space_name or args.space
        with told_as(f"--archs takes mmacs:M, random:N or a file, not '{args.archs}'"):
            number = {"mmacs": float, "random": int}[kind](number)
        archs = {"mmacs": of_mmacs, "random": at_random}[kind](space_name, number)
    else:
        with open(args.archs) as file:
            lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
        if not lines:
            raise ValueError(f"'{args.archs}' holds no architecture")
        space_name = space_name or spaces.name_of(lines[0])
        archs = list(dict.fromkeys(spaces.SPACES[space_name].from_string(line) for line in lines))
    functions = distinct_functions(space_name, archs)
    if functions is None and args.distinct:
        raise ValueError(f"--distinct: the '{space_name}' space cannot tell functions apart")
    told = "" if functions is None else f", {len(functions)} distinct functions"
    runtime.print0(f"{len(archs)} architectures{told}{': one of each is taken' if args.distinct else ''}")
    return space_name, functions if args.distinct else archs


@contextmanager
def told_as(message):
    """Inside, whatever the standard library says of a text that is wrong becomes a ValueError with this message."""
    try:
        yield
    except (ValueError, OverflowError, RecursionError, csv.Error):
        raise ValueError(message) from None


def distinct_functions(space_name, archs):
    """The first architecture of each set that computes the same; None if the space cannot tell."""
    space = spaces.SPACES[space_name]
    if not hasattr(space, "canonical"):
        return None
    first = {}
    for arch in archs:
        first.setdefault(space.canonical(arch)[0], arch)
    return list(first.values())


def of_mmacs(space_name, mmacs):
    """All architectures whose multiply-accumulates round to so many millions, at the paper's width and depth, 10 classes."""
    space = spaces.SPACES[space_name]
    if space_name != "nats":
        raise ValueError(f"mmacs:{mmacs:g} cannot be enumerated in the '{space_name}' space")
    macs = spaces.macs_counter(spaces.supernet(space_name, 10, **space.DEFAULTS))
    least = macs(space.LIGHTEST)
    # An edge adds its own operation's cost whatever the others are: thirty counts tell all 15,625.
    more = [
        [macs((*space.LIGHTEST[:i], value, *space.LIGHTEST[i + 1 :])) - least for value in range(n)]
        for i, n in enumerate(space.CHOICES)
    ]
    found = []
    for arch in itertools.product(*(range(n) for n in space.CHOICES)):
        if round((least + sum(more[i][gene] for i, gene in enumerate(arch))) / 1e6) == mmacs:
            found.append(arch)
    if not found:
        raise ValueError(f"no architecture has {mmacs:g} M multiply-accumulates")
    return found


def at_random(space_name, count):
    """So many different architectures, uniformly drawn; always the same ones, and those of a smaller count among them."""
    space = spaces.SPACES[space_name]
    if not 1 <= count <= np.prod([float(n) for n in space.CHOICES]):
        raise ValueError(f"cannot draw {count} different architectures")
    rng, archs = np.random.default_rng(0), {}
    while len(archs) < count:
        archs[spaces.sample(space.CHOICES, rng)] = None
    return list(archs)


# Accuracies


def setting(text):
    """`dataset:ratio` -> (dataset, ratio)."""
    dataset, _, ratio = text.rpartition(":")
    with told_as(f"--datasets takes dataset:ratio with a ratio of at least 1, not '{text}'"):
        ratio = float(ratio)
        if not dataset or not 1 <= ratio < math.inf:
            raise ValueError
    return dataset, ratio


def train_alone(args, space, device, precision):
    """{(dataset, ratio): images an epoch}, and a function that trains and tests one unit as retrain.py does, on this rank."""
    draw = {k: getattr(args, k) for k in ("data_seed", "val_per_class", "image_size")} | {
        "root": args.data_root,
        "device": device,
    }
    trains, tests = {}, {}
    for dataset, ratio in map(setting, args.datasets):
        (trains[dataset, ratio],) = data.load(("train",), dataset, ratio, **draw)
        drw.class_weights(trains[dataset, ratio][1].bincount(), args.beta)

    def accuracy(arch, dataset, ratio, seed):
        torch.manual_seed(seed)
        train = trains[dataset, ratio]
        normalise = data.Normalise(*data.channel_stats(train[0]), args.image_size, device)
        batches = data.Batches(train, normalise, args.batch_size, seed)
        counts = train[1].bincount()
        weights = drw.class_weights(counts, args.beta).to(device)
        net = space.Network(len(counts), args.channels, args.cells, arch).to(device)
        features = engine.compiled(net) if args.compile else None
        optimizer = engine.sgd(net, args.lr, args.momentum, args.weight_decay)
        net.train()
        for epoch in range(1, args.epochs + 1):
            optimizer.param_groups[0]["lr"] = drw.learning_rate(epoch, args.lr, args.milestones, args.warmup)
            loss_weights = weights if drw.reweighted(epoch, args.reweight_from) else torch.ones_like(weights)
            try:
                engine.train_epoch(
                    net, batches, epoch, optimizer, loss_weights, clip=args.clip, precision=precision, features=features
                )
            except runtime.UserError as error:
                raise runtime.UserError(f"{dataset}:{ratio:g}, seed {seed}, {space.to_string(arch)}: {error}") from None
        if dataset not in tests:  # not read before the first net is trained
            (tests[dataset],) = data.load(("test",), dataset, **draw)
        images, labels = tests[dataset]
        right = engine.correct_by_class(net, engine.normalised_chunks(images, normalise), labels)
        return 100 * right.sum().item() / len(labels)

    return {key: len(train[1]) for key, train in trains.items()}, accuracy


def score_inside(args, net, source, device):
    """As `train_alone`, for paths of a super-net as search.py scores them. source: arguments of `data.load`."""
    train, val = data.load(("train", "val"), **source, root=args.data_root, device=device)
    score = engine.scorer(net, train, val, args.bn_images, args.seeds[0])
    return {(source["dataset"], source["imbalance"]): 1}, lambda arch, *_: score(arch)


def main(args):
    if args.tabulate:
        return tabulate(args)

    # set-up
    device = runtime.setup(args.device, 0)
    run = runtime.Run(args, device)
    if run.finished:
        return

    # model: the super-net if there is one, and the set of architectures
    method, seeds, space_name = args.method or "stand-alone", dict.fromkeys(args.seeds), None
    if args.supernet is not None:
        checkpoint = runtime.load_checkpoint(args.supernet, "super-net")
        with runtime.users_mistake(args.supernet):
            net = spaces.supernet_from(checkpoint).to(device)
        method, seeds, space_name = args.method or checkpoint["procedure"], [checkpoint["seed"]], checkpoint["space"]
    with runtime.users_mistake():
        space_name, archs = architectures(args, space_name)
    space = spaces.SPACES[space_name]
    for name, value in space.DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)

    # data
    with runtime.users_mistake(), runtime.first_rank_first():
        if args.supernet is not None:
            size, accuracy = score_inside(args, net, checkpoint["data"], device)
            run.config["data"] = checkpoint["data"]
        else:
            size, accuracy = train_alone(args, space, device, flags.precision(args, run, device))
    units = [(arch, *key, seed) for seed in seeds for key in size for arch in archs]

    # optimiser: none; a unit's file, which appears whole or not at all, says that the unit is done
    run.begin()
    folder = run.path("units")
    os.makedirs(folder, exist_ok=True)
    files = {unit: os.path.join(folder, hashlib.sha1(repr(unit).encode()).hexdigest()[:16] + ".json") for unit in units}

    def facts(unit):
        """What a line of accuracies.jsonl says besides the accuracy."""
        arch, dataset, ratio, seed = unit
        return {"method": method, "arch": space.to_string(arch), "dataset": dataset, "imbalance": ratio, "seed": seed}

    def missing():
        there = set(os.listdir(folder))
        return [unit for unit in units if os.path.basename(files[unit]) not in there]

    def gather():
        lines, seconds = [], 0.0
        for unit in units:
            if os.path.exists(files[unit]):
                with runtime.users_mistake(files[unit]), open(files[unit]) as file:
                    line = json.load(file)
                    numbers = [isinstance(line, dict) and line.get(key) for key in ("accuracy", "seconds")]
                    if not all(isinstance(n, float) and 0 <= n < math.inf for n in numbers) or numbers[0] > 100:
                        raise ValueError("this is not a unit: remove the file, and it is trained anew")
                    if line != facts(unit) | {"accuracy": numbers[0], "seconds": numbers[1]}:
                        raise ValueError("this is another unit: remove the file, and it is trained anew")
                seconds += line.pop("seconds")
                lines.append(line)
        run.write_lines("accuracies.jsonl", lines)
        return seconds

    # loop: each rank trains every world-th of the missing; one that is done waits for the others, however long they take
    todo, ranks, spent, seen = missing(), runtime.world(), 0.0, 0
    runtime.barrier()  # nobody adds to the folder before everybody has looked
    for unit in todo[runtime.rank() :: ranks]:
        _, dataset, ratio, seed = unit
        start = time.perf_counter()
        with runtime.users_mistake(), runtime.alone():
            found = accuracy(*unit)
        seconds = time.perf_counter() - start
        line = facts(unit)
        runtime.write(files[unit], json.dumps({**line, "accuracy": found, "seconds": seconds}))
        if runtime.rank() == 0:
            gather()
        left, spent, seen = missing(), spent + seconds, seen + size[dataset, ratio]
        seconds_left = spent / seen * sum(size[unit[1:3]] for unit in left) / ranks
        print(
            f"{len(units) - len(left)}/{len(units)} done, {timedelta(seconds=round(seconds_left))} left: {found:.2f} % in "
            f"{seconds:.1f} s, {label(line)}, seed {seed}, {line['arch']}",
            flush=True,
        )
    while missing():
        time.sleep(0.5)
    runtime.barrier()

    # save
    if runtime.rank() == 0:
        run.finish({"units": len(units), "architectures": len(archs), "seconds": gather()})
        shutil.rmtree(folder)
        print(f"for the tau matrix: python rank_transfer.py --tabulate {run.path('accuracies.jsonl')}")


# Tables


def label(line):
    """What the tables call the setting of a line of accuracies.jsonl."""
    method = line.get("method", "stand-alone")
    return f"{'' if method == 'stand-alone' else method + ' '}{line['dataset']} {line['imbalance']:.12g}x"


def read_units(path):
    """Yields (where, label, architecture, seed, accuracy) of a JSONL or CSV file. ValueError says in which line it is wrong."""
    with told_as(f"'{path}' is not a text in UTF-8"), open(path, newline="", encoding="utf-8-sig") as file:
        text = file.read()
    if text.lstrip().startswith("{"):
        for number, row in enumerate(text.splitlines(), start=1):
            where = f"{path}, line {number}"
            if not row.strip():
                continue
            with told_as(f"{where} is not JSON: '{row[:60]}'"):
                line = json.loads(row)
            for key, kind in KEYS.items():
                if not isinstance(line, dict) or key not in line:
                    raise ValueError(f"{where} has no '{key}'")
                if not isinstance(line[key], kind) or isinstance(line[key], bool):
                    raise ValueError(f"{where}: '{key}' cannot be {json.dumps(line[key])[:60]}")
            if not isinstance(line.get("method", ""), str):
                raise ValueError(f"{where}: 'method' cannot be {json.dumps(line['method'])[:60]}")
            if not 1 <= line["imbalance"] < 1e9:
                raise ValueError(f"{where}: 'imbalance' is at least 1, and no number beyond reason")
            yield where, label(line), line["arch"], line["seed"], _accuracy(line["accuracy"], where)
        return
    with told_as(f"'{path}' is not a CSV"):
        rows = list(csv.reader(text.splitlines()))
    header = [cell.strip() for cell in rows[0]] if rows else []
    if len(header) < 2 or header[0] != "arch" or len(set(header)) < len(header) or "" in header:
        raise ValueError(f"'{path}' is neither JSON lines nor a CSV with a header 'arch,<label>,<label>...'")
    for number, row in enumerate(rows[1:], start=2):
        where = f"{path}, line {number}"
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(f"{where} has {len(row)} columns, the header has {len(header)}")
        for name, cell in zip(header[1:], row[1:], strict=True):
            if cell.strip():  # an empty cell: not measured
                yield where, name, row[0].strip(), 0, _accuracy(cell, where)


def _accuracy(value, where):
    with told_as(f"{where}: '{str(value)[:60]}' is not an accuracy in %"):
        value = float(value)
        if not 0 <= value <= 100:
            raise ValueError
    return value


def collect(files):
    """{label: {architecture: {seed: accuracy}}}, sorted, so that the order of files and lines does not matter."""
    found = {}
    for path in files:
        for where, name, arch, seed, accuracy in read_units(path):
            seeds = found.setdefault(name, {}).setdefault(arch, {})
            if seeds.setdefault(seed, accuracy) != accuracy:
                raise ValueError(f"{where}: {name}, seed {seed}, {arch} is {accuracy:g} here and {seeds[seed]:g} before")

    def natural(name):  # 50x before 100x
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]

    return {
        name: {a: dict(sorted(found[name][a].items())) for a in sorted(found[name])}
        for name in sorted(found, key=lambda n: (natural(n), n))
    }


def interval(statistic, n):
    """(value, low, high): a statistic of the indices of n architectures, with its 95 % bootstrap interval over them."""
    rng = np.random.default_rng(0)
    resampled = [statistic(rng.integers(0, n, n)) for _ in range(RESAMPLES)]
    resampled = [value for value in resampled if not np.isnan(value)]
    low, high = np.percentile(resampled, (2.5, 97.5)) if resampled else (np.nan, np.nan)
    return statistic(np.arange(n)), low, high


def means(name, archs, shared):
    """Accuracies over the seeds that all of these architectures have: a run that is not finished has others for some."""
    seeds = set.intersection(*(set(archs[arch]) for arch in shared))
    if not seeds:
        raise ValueError(f"the {len(shared)} architectures of '{name}' have no seed in common")
    # fsum: the same accuracies have the same mean in any order, so that ties stay ties
    return np.array([math.fsum(archs[arch][seed] for seed in seeds) / len(seeds) for arch in shared])


def in_best(values, top):
    """For each whether it is among the best `top`; those tied at the end have the places that are left in equal parts."""
    last = np.sort(values)[-top]
    above, tied = values > last, values == last
    return above + tied * (top - above.sum()) / tied.sum()


def compare(units, top):
    """The dict that tau.json holds: matrices over the labels, from what `collect` returns. ValueError for too few in common."""
    labels = list(units)
    size = len(labels)
    tau, low, high = (np.full((size, size), np.nan) for _ in range(3))
    n, found, regret = np.zeros((size, size), int), np.zeros((size, size)), np.zeros((size, size))
    for i, j in itertools.product(range(size), repeat=2):
        one, other = units[labels[i]], units[labels[j]]
        shared = [arch for arch in one if arch in other]
        n[i, j] = len(shared)
        if len(shared) < 3:
            raise ValueError(f"'{labels[i]}' and '{labels[j]}' share {len(shared)} architectures: at least 3 are needed")
        truth, guess = (means(name, units[name], shared) for name in (labels[i], labels[j]))
        if i < j:
            tau[i, j], low[i, j], high[i, j] = interval(lambda k, x=truth, y=guess: kendall_tau(x[k], y[k]), len(shared))
        elif i > j:
            tau[i, j], low[i, j], high[i, j] = tau[j, i], low[j, i], high[j, i]
        else:
            tau[i, i] = low[i, i] = high[i, i] = kendall_tau(truth, truth)
        if top:
            if top > len(shared):
                raise ValueError(f"--top {top}: '{labels[i]}' and '{labels[j]}' share only {len(shared)} architectures")
            found[i, j] = in_best(truth, top) @ in_best(guess, top)
            regret[i, j] = truth.max() - truth[guess == guess.max()].mean()  # of several favourites the mean
    result = {"labels": labels, "tau": tau, "low": low, "high": high, "n": n, "noise_ceiling": {}}
    if top:
        result |= {"top": top, "found": found, "regret": regret}
    for name in labels:
        held = Counter(seed for values in units[name].values() for seed in values)
        seeds = sorted(seed for seed, count in held.items() if 2 * count >= len(units[name]))  # not a few strays
        rows = np.array([[values[s] for s in seeds] for values in units[name].values() if set(seeds) <= set(values)])
        if len(seeds) > 1 and len(rows) >= 3:
            pairs = list(itertools.combinations(range(len(seeds)), 2))
            mean = lambda k, rows=rows, pairs=pairs: np.mean([kendall_tau(rows[k, a], rows[k, b]) for a, b in pairs])  # noqa: E731
            ceiling = dict(zip(("tau", "low", "high"), interval(mean, len(rows)), strict=True))
            result["noise_ceiling"][name] = {**ceiling, "n": len(rows), "seeds": seeds}
    return result


def matrix(labels, cell):
    """A text table with numbers for column heads. cell: (i, j) -> text."""
    cells = [[cell(i, j) for j in range(len(labels))] for i in range(len(labels))]
    heads = [f"{i} {name}" for i, name in enumerate(labels, start=1)]
    left = max(map(len, heads))
    wide = [max(len(str(j + 1)), *(len(row[j]) for row in cells)) for j in range(len(labels))]
    lines = [" " * left + "".join(f"  {j + 1:>{w}}" for j, w in enumerate(wide))]
    lines += [
        f"{head:<{left}}" + "".join(f"  {c:>{w}}" for c, w in zip(row, wide, strict=True))
        for head, row in zip(heads, cells, strict=True)
    ]
    return "\n".join(lines)


def within(value, low, high):
    return "-" if np.isnan(value) else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def tabulate(args):
    with runtime.users_mistake():
        units = collect(args.tabulate)
        if not units:
            raise ValueError(f"no accuracy in {', '.join(args.tabulate)}")
        result = compare(units, args.top)
    labels = result["labels"]
    archs = {arch for values in units.values() for arch in values}
    print(f"{len(archs)} architectures{told_distinct(archs)}")
    print("Kendall's tau-b between mean accuracies, with its 95 % bootstrap interval over architectures:")
    print(matrix(labels, lambda i, j: within(*(result[key][i, j] for key in ("tau", "low", "high"))) if i != j else "1"))
    for name, ceiling in result["noise_ceiling"].items():
        told = within(*(ceiling[key] for key in ("tau", "low", "high")))
        seeds = ", ".join(map(str, ceiling["seeds"]))
        print(f"noise ceiling, tau between seeds {seeds} of {name}: {told}, {ceiling['n']} architectures")
    if args.top:
        print(f"of the row's true best {args.top}, how many are among the column's; and the row's accuracy lost, in points, by")
        print("taking the column's favourite:")
        print(matrix(labels, lambda i, j: f"{result['found'][i, j]:.3g}; {result['regret'][i, j]:.2f}"))
    made_by = runtime.environment(torch.device("cpu"))
    with runtime.users_mistake():
        os.makedirs(args.out, exist_ok=True)
        runtime.write(os.path.join(args.out, "tau.json"), json.dumps({**plain(result), **made_by}, indent=1))
        if args.plot:
            draw(args.plot, labels, result["tau"])


def told_distinct(archs):
    """How many of these strings compute different functions, where that can be told."""
    try:
        genes = [spaces.SPACES["nats"].from_string(arch) for arch in archs]
    except ValueError:
        return ""
    return f", {len(distinct_functions('nats', genes))} distinct functions"


def plain(value):
    """Arrays as lists, NaN as None: what JSON can hold."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def draw(path, labels, tau):
    """The heat map of Figure 1, as a picture. UserError without matplotlib."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise runtime.UserError("--plot needs matplotlib, which is not installed: pip install matplotlib") from None
    size = len(labels)
    figure, axes = plt.subplots(figsize=(3 + 0.7 * size, 2 + 0.7 * size), layout="constrained")
    image = axes.imshow(tau, vmin=min(0.0, np.nanmin(tau)), vmax=1)
    axes.set(xticks=range(size), yticks=range(size), yticklabels=labels)
    axes.set_xticks(range(size), labels, rotation=45, ha="right")
    for i, j in itertools.product(range(size), repeat=2):
        dark = not tau[i, j] > 0.5
        axes.text(
            j, i, "-" if np.isnan(tau[i, j]) else f"{tau[i, j]:.2f}", ha="center", va="center", color="w" if dark else "k"
        )
    figure.colorbar(image, label="Kendall's tau-b")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    runtime.launch(parse_args, main)
