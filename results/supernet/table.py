"""Tau of the super-nets of ways.py, and of counting, with published accuracies. README.md has what came out.

python results/supernet/table.py results/supernet/final/*.jsonl --intervals
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
from common import nats, report, runtime, tables
from common.kendall import kendall_tau


def read_truth(path, unconnected=False):
    """{architecture string: published accuracy on CIFAR-10}, in the order of the file. unconnected: these, too."""
    with runtime.reading(path, "a CSV file with columns arch and cifar10"), open(path) as file:
        rows = [(row["arch"], float(row["cifar10"])) for row in csv.DictReader(file)]
    return {text: accuracy for text, accuracy in rows if unconnected or nats.longest_path(nats.from_string(text)) >= 0}


SCORES = ("accuracy", "loss", "own-classifier accuracy", "own-classifier error")


def weight(arch):
    """Parameters of a cell in units of a 1x1 convolution; multiply-accumulates have the same ratios."""
    return 9 * arch.count(3) + arch.count(2)


def counts(arch):
    """{name: number} to rank architectures by. The last name's weights were chosen on published accuracies."""
    reached, leading = {0}, {3}
    for (node, source), gene in zip(nats.EDGES, arch, strict=True):
        reached |= {node} if gene and source in reached else set()
    for (node, source), gene in zip(nats.EDGES[::-1], arch[::-1], strict=True):
        leading |= {source} if gene and node in leading else set()
    live = [gene for (node, source), gene in zip(nats.EDGES, arch, strict=True) if source in reached and node in leading]
    chosen = 2 * live.count(3) + live.count(2) + live.count(1) / 2 - live.count(4)
    return {"parameters": weight(arch), **nats.trivial_scores(arch), "live 2 n3 + n1 + skips/2 - pools": chosen}


def measures(found, truth, unconnected=()):
    """{score: {quantity: value}} of a super-net, for each of SCORES.

    found: {architecture string: its `ways.scores`}. truth: {architecture string: published accuracy}. unconnected: published
    accuracies of unconnected architectures, which every super-net ranks last.
    """
    archs, y = [nats.from_string(text) for text in found], np.array([truth[text] for text in found])
    parameters = np.array([weight(arch) for arch in archs])
    live = np.array([nats.trivial_scores(arch)["live convolutions"] for arch in archs])
    half, results = y >= np.median(y), {}

    def rank(x):  # equal values share their mean rank
        return (x[:, None] > x).sum(1) + (x[:, None] == x).sum(1) / 2

    for name, x in standardised([found]).items():
        x, both = x[0], rank(x[0]) + rank(live)
        results[name] = {
            "tau": kendall_tau(x, y),
            "better half": kendall_tau(x[half], y[half]),
            "partial": tables.partial_tau(x, y, parameters),
            "rank + live": kendall_tau(both, y),
            "better half of that": kendall_tau(both[half], y[half]),
            "regret": tables.regret(y, x),
            "with unconnected": kendall_tau([*x, *[x.min() - 1] * len(unconnected)], [*y, *unconnected]),
        }
    return results


def standardised(seeds):
    """{score: (seeds, architectures)} with mean 0 and deviation 1; higher is better. seeds: `ways.scores` of each."""
    scores = np.array([list(seed.values()) for seed in seeds]).transpose(2, 0, 1)
    scores *= np.array([1, -1, 1, -1])[:, None, None]  # of loss and error, less is better
    scores = (scores - scores.mean(2, keepdims=True)) / scores.std(2, keepdims=True)
    return dict(zip(SCORES, scores, strict=True))


def agreement(seeds, truth):
    """{score: {quantity: value}}: is a ranking noisy, or biased? NaN for one seed.

    "seed, seed": mean tau between two seeds. "summed": tau of the sum of all seeds' standardised scores with the truth.
    """
    y, results = np.array([truth[text] for text in seeds[0]]), {}
    for name, x in standardised(seeds).items():
        between = [kendall_tau(a, b) for a, b in combinations(x, 2)] or [np.nan]
        results[name] = {"seed, seed": mean(between), "summed": kendall_tau(x.sum(0), y) if len(seeds) > 1 else np.nan}
    return results


def leads(seeds, truth):
    """{score: {"less COUNT": mean tau over seeds less that of COUNT, as text}}, with intervals over architectures and seeds."""
    y, archs = np.array([truth[text] for text in seeds[0]]), [counts(nats.from_string(text)) for text in seeds[0]]
    results = defaultdict(dict)
    for name, x in standardised(seeds).items():
        for count in archs[0]:
            trivial = np.array([arch[count] for arch in archs])

            def lead(k, nets, x=x, trivial=trivial):
                return mean(kendall_tau(x[net][k], y[k]) for net in nets) - kendall_tau(trivial[k], y[k])

            results[name][f"less {count}"] = tables.shown(*tables.interval(lead, len(y), len(seeds)))
    return results


def shown(values):
    """Mean and standard deviation over seeds, as text."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def plot(rows, counting, path):
    """Tau of each way, and that of `uniform` over epochs and over batch-norm images. A dot is a super-net. Needs matplotlib."""
    from matplotlib.figure import Figure

    last = {way: max(epoch for name, epoch, *_ in rows if name == way) for way, *_ in rows}
    panels = {"way": {}, "epochs of uniform": {}, "BN images of uniform": {}}
    for (way, epoch, weights, bn_images), values in rows.items():
        if weights == "last" and bn_images == 2000:
            if epoch == last[way]:
                panels["way"][f"{way} ({epoch} epochs)"] = values
            if way in ("uniform", "twice the cost"):
                panels["epochs of uniform"][epoch] = values
        if way == "uniform" and weights == "last" and epoch == last[way]:
            panels["BN images of uniform"][bn_images or "batch"] = values
    panels["epochs of uniform"] = dict(sorted(panels["epochs of uniform"].items()))
    panels["way"] = dict(sorted(panels["way"].items(), key=lambda item: mean(seed["accuracy"]["tau"] for seed in item[1])))
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    for axes, (title, groups) in zip(figure.subplots(1, 3, width_ratios=(4, 2, 3)), panels.items(), strict=True):
        for score, label in {"accuracy": "accuracy of the path", "own-classifier error": "error of its own classifier"}.items():
            points = [(place, seed[score]["tau"]) for place, seeds in enumerate(groups.values()) for seed in seeds]
            place, tau = np.array(points).T
            axes.plot(*((tau, place) if title == "way" else (place, tau)), "o", alpha=0.6, label=label)
        for style, (name, value) in zip((":", "--", "-.", (0, (1, 4))), counting.items(), strict=True):
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
    text = "add tau less that of each count, with 95 %% intervals (a minute per ten files)"
    parser.add_argument("--intervals", action="store_true", help=text)
    parser.add_argument("--truth", default="data/nats_bench_sample.csv", help="CSV of published accuracies")
    return parser.parse_args()


def main(args):
    with runtime.user_errors():
        truth, found, counting = read_truth(args.truth), defaultdict(list), {}
        for path in args.files:
            with runtime.reading(path, "a file of ways.py"), open(path) as file:
                for line in map(json.loads, file):
                    key = line["way"], line["epoch"], line["weights"], line["bn_images"]
                    found[key].append(line["scores"])
                    archs = list(line["scores"])  # the same in all files
        every, y = read_truth(args.truth, unconnected=True), np.array([truth[text] for text in archs])
        part = list(every)[list(every).index(archs[0]) : list(every).index(archs[-1]) + 1]
        part = [*archs, *(text for text in part if text not in truth)]
        half, number, lines = y >= np.median(y), [counts(nats.from_string(text)) for text in part], []
        for name in number[0]:
            x, fixed = (np.array([count[key] for count in number]) for key in (name, "parameters"))
            n, all_y = len(archs), [every[text] for text in part]
            counting[name] = kendall_tau(x[:n], y)
            quantities = {
                "tau": counting[name], "better half": kendall_tau(x[:n][half], y[half]),
                "partial": tables.partial_tau(x[:n], y, fixed[:n]), "regret": tables.regret(y, x[:n]),
                "with unconnected": kendall_tau(x, all_y),
            }  # fmt: skip
            lines.append({"counting": name, **{key: tables.shown(value) for key, value in quantities.items()}})
        print(report.markdown(lines[0], [line.values() for line in lines]))
        unconnected = [every[text] for text in part[len(archs) :]]
        rows = {key: [measures(seed, truth, unconnected) for seed in found[key]] for key in sorted(found)}
        agree = {key: agreement(found[key], truth) for key in rows}
        lead = {key: leads(found[key], truth) for key in rows} if args.intervals else {}
        for score in SCORES:
            lines = []
            for (way, epoch, weights, bn_images), seeds in rows.items():
                key, label = (way, epoch, weights, bn_images), way if weights == "last" else f"{way}, {weights}"
                columns = {name: shown([seed[score][name] for seed in seeds]) for name in seeds[0][score]}
                columns |= {name: tables.shown(v) for name, v in agree[key][score].items()}
                columns |= lead[key][score] if lead else {}
                facts = {"epochs": epoch, "BN images": bn_images, "seeds": len(seeds)}
                lines.append({f"by {score}": label, **{k: str(v) for k, v in facts.items()}, **columns})
            print(report.markdown(lines[0], [line.values() for line in lines]))
        if args.plot:
            plot(rows, counting, args.plot)


if __name__ == "__main__":
    runtime.launch(parse_args, main)
