"""Tau of the super-nets of ways.py, and of counting, with published accuracies. README.md has what came out.

python results/supernet/table.py results/supernet/final/*.jsonl
python results/supernet/table.py results/supernet/scores/*.jsonl --plot results/supernet/ways.png
"""

import csv
import json
import sys
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from common import nats, runtime, tables
from common.kendall import kendall_tau


def read_truth(path):
    """{architecture string: published accuracy on CIFAR-10}, connected ones, in the order of the file."""
    with runtime.reading(path, "a CSV file with columns arch and cifar10"), open(path) as file:
        rows = [(row["arch"], float(row["cifar10"])) for row in csv.DictReader(file)]
    return {text: accuracy for text, accuracy in rows if nats.longest_path(nats.from_string(text)) >= 0}


def weight(arch):
    """Parameters of a cell in units of a 1x1 convolution; multiply-accumulates have the same ratios."""
    return 9 * arch.count(3) + arch.count(2)


def measures(found, truth):
    """{quantity: value} of a super-net's scores: tau of each of the four, and for accuracy and squared error what follows them.

    found: {architecture string: its `ways.scores`}. truth: {architecture string: published accuracy}.
    """
    accuracy, loss, own, error = np.array(list(found.values())).T
    archs, y = [nats.from_string(text) for text in found], np.array([truth[text] for text in found])
    parameters = np.array([weight(arch) for arch in archs])
    live = np.array([nats.trivial_scores(arch)["live convolutions"] for arch in archs])
    half = y >= np.median(y)

    def rank(x):  # equal values share their mean rank
        return (x[:, None] > x).sum(1) + (x[:, None] == x).sum(1) / 2

    scores = {"accuracy": accuracy, "loss": -loss, "own accuracy": own, "own error": -error}
    results = {name: kendall_tau(x, y) for name, x in scores.items()}
    for name in ("accuracy", "own error"):
        x, both = scores[name], rank(scores[name]) + rank(live)
        results[f"{name}: better half"] = kendall_tau(x[half], y[half])
        results[f"{name}: given parameters"] = tables.partial_tau(x, y, parameters)
        results[f"{name}: mean rank with live convolutions"] = kendall_tau(both, y)
        results[f"{name}: that in the better half"] = kendall_tau(both[half], y[half])
        results[f"{name}: points lost by its favourite"] = tables.regret(y, x)
    return results


def agreement(seeds, truth):
    """Is a ranking noisy or biased? {quantity: (tau, tau in the better half)} for accuracy and squared error.

    "between seeds": the mean tau of two seeds. "summed": tau of the sum of all seeds' standardised scores with the truth.

    seeds: `ways.scores` of the same architectures by super-nets that differ in their seeds.
    """
    y, found = np.array([truth[text] for text in seeds[0]]), {}
    scores = np.array([list(seed.values()) for seed in seeds]).transpose(2, 0, 1)  # (4 scores, seeds, architectures)
    for name, x in (("accuracy", scores[0]), ("own error", -scores[3])):
        x, parts = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True), (y >= y.min(), y >= np.median(y))
        between = [mean(kendall_tau(a[part], b[part]) for a, b in combinations(x, 2)) for part in parts]
        found |= {f"{name} between seeds": between, f"{name} summed": [kendall_tau(x.sum(0)[part], y[part]) for part in parts]}
    return found


def shown(seeds):
    """Mean and standard deviation over seeds of each of their `measures`, as text."""
    columns = {name: [seed[name] for seed in seeds] for name in seeds[0]}
    spread = {name: f" +- {stdev(values):.2f}" if len(values) > 1 else "" for name, values in columns.items()}
    return "; ".join(f"{name} {mean(values):.2f}{spread[name]}" for name, values in columns.items())


def plot(rows, counting, path):
    """Tau of each way, and that of `uniform` over epochs and over batch-norm images. A dot is a super-net. Needs matplotlib."""
    from matplotlib.figure import Figure

    last = {way: max(epoch for name, epoch, *_ in rows if name == way) for way, *_ in rows}
    panels = {"way": {}, "epochs of uniform": {}, "BN images of uniform": {}}
    for (way, epoch, weights, bn_images), values in rows.items():
        if weights == "last" and bn_images == 2000:
            if epoch == last[way]:
                panels["way"][f"{way} ({epoch} epochs)"] = values
            if way == "uniform":
                panels["epochs of uniform"][epoch] = values
        if way == "uniform" and weights == "last" and epoch == last[way] and bn_images:
            panels["BN images of uniform"][bn_images] = values
    panels["way"] = dict(sorted(panels["way"].items(), key=lambda item: mean(seed["accuracy"] for seed in item[1])))
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    for axes, (title, groups) in zip(figure.subplots(1, 3, width_ratios=(2, 1, 1)), panels.items(), strict=True):
        for quantity, label in {"accuracy": "accuracy of the path", "own error": "squared error of its own classifier"}.items():
            points = [(place, seed[quantity]) for place, seeds in enumerate(groups.values()) for seed in seeds]
            place, tau = np.array(points).T
            axes.plot(*((tau, place) if title == "way" else (place, tau)), "o", alpha=0.6, label=label)
        for style, (name, value) in zip((":", "--", "-."), counting.items(), strict=True):
            line = axes.axvline if title == "way" else axes.axhline
            line(value, color="grey", linestyle=style, linewidth=1, label=f"counting: {name}")
        set_ticks = axes.set_yticks if title == "way" else axes.set_xticks
        set_ticks(range(len(groups)), groups)
        (axes.set_ylabel if title == "way" else axes.set_xlabel)(title)
        (axes.set_xlabel if title == "way" else axes.set_ylabel)("Kendall's tau with published accuracies")
        (axes.set_xlim if title == "way" else axes.set_ylim)(0, 0.8)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize="small")
    figure.savefig(path, dpi=120)


def parse_args():
    parser = runtime.Parser(__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="files of ways.py")
    parser.add_argument("--plot", metavar="PNG", help="a picture of the table (needs matplotlib)")
    parser.add_argument("--truth", default="data/nats_bench_sample.csv", help="CSV of published accuracies")
    return parser.parse_args()


def main(args):
    with runtime.user_errors():
        truth, rows, scores, counting = read_truth(args.truth), defaultdict(list), defaultdict(list), {}
        for path in args.files:
            with runtime.reading(path, "a file of ways.py"), open(path) as file:
                for line in map(json.loads, file):
                    key = line["way"], line["epoch"], line["weights"], line["bn_images"]
                    rows[key].append(measures(line["scores"], truth))
                    scores[key].append(line["scores"])
                    archs = list(line["scores"])  # the same in all files
        parsed, y = [nats.from_string(text) for text in archs], np.array([truth[text] for text in archs])
        counts = [{"parameters": weight(arch), **nats.trivial_scores(arch)} for arch in parsed]
        half = y >= np.median(y)
        for name in counts[0]:
            x = np.array([count[name] for count in counts])
            counting[name], lost = kendall_tau(x, y), tables.regret(y, x)
            print(f"{name}: {counting[name]:.2f}; better half {kendall_tau(x[half], y[half]):.2f}; points lost {lost:.2f}")
        rows = dict(sorted(rows.items()))
        for key, seeds in rows.items():
            print(f"{', '.join(map(str, key))} BN images ({len(seeds)} seeds): {shown(seeds)}")
            if len(seeds) > 1:
                for name, (tau, half_tau) in agreement(scores[key], truth).items():
                    print(f"    {name} {tau:.2f}, better half {half_tau:.2f}")
        if args.plot:
            plot(rows, counting, args.plot)


if __name__ == "__main__":
    runtime.launch(parse_args, main)
