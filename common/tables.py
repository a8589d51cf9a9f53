"""From accuracies to tables: Kendall's tau between settings, noise ceilings, regret.

A setting is a method, a dataset and an imbalance, trained with one or more seeds. `tau` correlates *mean* accuracies of
the architectures that two settings share, over the seeds that all of these have (Figure 1).

Even two runs of one setting rank architectures differently: the noise ceiling is tau between two seeds of a setting.
`tau` is of means over seeds, which are less noisy than one seed. Compare the ceiling with `tau_single`, the mean tau over all
pairs of a seed of one setting and a different seed of the other. Equal seeds share initial weights and are left out.

Counting parameters or convolutions, at a space's default width and depth, ranks architectures, too. These settings are marked
`(computed)`: what cannot beat them has learned nothing about architectures. `tau_given_parameters` is the partial tau with the
number of parameters held fixed.
"""

import csv
import itertools
import json
import math
import re

import numpy as np
import torch

from . import runtime, spaces
from .kendall import kendall_tau

FIELDS = ("arch", "dataset", "imbalance", "seed", "accuracy")  # and `method`, which may be missing


# Reading


def read(files):
    """{setting: {architecture: {seed: accuracy in %}}}, sorted, of accuracies.jsonl files or CSV files `arch,<setting>,...`.

    ValueError names the file and the line that is wrong.
    """
    found = {}
    for path in files:
        with runtime.reading(path, "a file of accuracies"), open(path, encoding="utf-8-sig", errors="replace") as file:
            lines = [(number, line.strip()) for number, line in enumerate(file, start=1) if line.strip()]
        header = next(csv.reader(line[:100_000] for _, line in lines[:1]), [])  # csv refuses longer cells
        is_csv = header[:1] == ["arch"]
        form = f"{len(header)} cells" if is_csv else f"JSON with {', '.join(FIELDS)}, or a header 'arch,<setting>,...'"
        for number, line in lines[is_csv:]:
            try:
                entries = _csv_entries(header, line) if is_csv else _json_entries(line)
                # NaN fails this test, too. A score of `--own-classifier` is negative if predicting the mean is better.
                if not all(-math.inf < accuracy <= 100 for *_, accuracy in entries):
                    raise ValueError
            except Exception:  # JSON of another form raises many types
                raise ValueError(f"'{path}', line {number}: '{line[:80]}': expected {form}, accuracies up to 100") from None
            for label, arch, seed, accuracy in entries:
                known = found.setdefault(label, {}).setdefault(arch, {}).setdefault(seed, accuracy)
                if known != accuracy:
                    entry = f"'{path}', line {number}: {label}, seed {seed}, {arch}"
                    raise ValueError(f"{entry} is {accuracy:g} here and {known:g} before")
    if not found:
        raise ValueError(f"no accuracy in {', '.join(map(str, files))}")
    labels = sorted(found, key=lambda label: re.sub(r"\d+", lambda digits: digits[0].zfill(20), label))  # 50x before 100x
    return {label: dict(sorted(found[label].items())) for label in labels}


def _json_entries(text):
    """[(setting, architecture, seed, accuracy)]. Setting: `cifar10 100x`, or inside a super-net `P1 cifar10 100x`."""
    line = json.loads(text)
    method = line.get("method", "stand-alone")
    label = f"{'' if method == 'stand-alone' else f'{method} '}{line['dataset']} {line['imbalance']:.12g}x"
    return [(label, str(line["arch"]), int(line["seed"]), float(line["accuracy"]))]


def _csv_entries(header, text):
    (cells,) = csv.reader([text])
    pairs = list(zip(header, cells, strict=True))[1:]
    return [(label.strip(), cells[0].strip(), 0, float(cell)) for label, cell in pairs if cell.strip()]  # not measured


# Comparing


def interval(statistic, *sizes, resamples=1000):
    """(value, low, high): a statistic with its 95 % percentile bootstrap interval over architectures, or over super-nets, too.

    statistic: indices of `sizes[0]` architectures (and of `sizes[1]` super-nets) -> number. A NaN is left out. Of n super-nets
    n - 1 are drawn, since the variance among n of n would be too small by (n - 1) / n.
    """
    rng, (count, *nets) = np.random.default_rng(0), sizes
    draws = [(count, count), *((n, max(1, n - 1)) for n in nets)]
    resampled = [statistic(*(rng.integers(0, n, drawn) for n, drawn in draws)) for _ in range(resamples)]
    resampled = [value for value in resampled if not np.isnan(value)]
    low, high = np.percentile(resampled, (2.5, 97.5)) if resampled else (np.nan, np.nan)
    return statistic(*map(np.arange, sizes)), low, high


def partial_tau(x, y, fixed):
    """Tau-b of x and y with a third sequence held fixed (Kendall 1942), all of length n. NaN if that determines one of them."""
    tau, with_x, with_y = kendall_tau(x, y), kendall_tau(x, fixed), kendall_tau(y, fixed)
    rest = (1 - with_x**2) * (1 - with_y**2)
    return (tau - with_x * with_y) / math.sqrt(rest) if rest > 1e-18 else np.nan


def compare(units):
    """The numbers of tau.json, from what `read` returns. ValueError if two settings share too few architectures.

    Matrices over the settings (S, S): n, the number of shared architectures; tau and its interval low, high; tau_single;
    tau_given_parameters; regret[i, j], the accuracy that setting i loses, in points, by taking setting j's best
    architecture. noise_ceiling: {setting: {tau, low, high}}.
    """
    if not all(units.values()):
        raise ValueError("no architecture is left to compare")
    computed = computed_settings(units)
    units = {**units, **computed}
    parameters, labels, cells, ceilings = computed.get("parameters (computed)"), list(units), {}, {}
    for one, other in itertools.combinations_with_replacement(labels, 2):
        archs = [arch for arch in units[one] if arch in units[other]]
        n = len(archs)
        if n < 3:
            raise ValueError(f"{n} architectures are in both '{one}' and '{other}': at least 3 are needed")
        seeds, other_seeds = by_seed(units, one, archs), by_seed(units, other, archs)
        single = tau_of_single_seeds(seeds, other_seeds)
        x, y = mean_over_seeds(seeds), mean_over_seeds(other_seeds)
        tau, low, high = interval(lambda k, x=x, y=y: kendall_tau(x[k], y[k]), n)
        cell = {"n": n, "tau": tau, "low": low, "high": high, "tau_single": single(np.arange(n))}
        cell["tau_given_parameters"] = partial_tau(x, y, [parameters[a][None] for a in archs]) if parameters else np.nan
        for i, j, lost in ((one, other, regret(x, y)), (other, one, regret(y, x))):
            cells[i, j] = {**cell, "regret": np.nan if i in computed else lost}
        if one == other and len(seeds) > 1:
            ceilings[one] = dict(zip(("tau", "low", "high"), interval(single, n), strict=True))
    matrices = {name: np.array([[cells[i, j][name] for j in labels] for i in labels]) for name in cells[one, other]}
    archs = set().union(*units.values())
    return {"labels": labels, "architectures": len(archs), **matrices, "noise_ceiling": ceilings}


def computed_settings(units):
    """Settings as `read` returns them, of numbers to rank architecture strings by without training.

    {} if one of the strings is not an architecture of a known search space.
    """
    scores = {}
    for text in sorted(set().union(*units.values())):
        try:
            name, arch = spaces.parse(text)
        except ValueError:
            return {}
        space = spaces.space(name)
        with torch.device("meta"):
            net = space.Network(10, arch=arch)
        scores[text] = {"parameters": spaces.parameters(net), "multiply-accumulates": spaces.macs_counter(net)()}
        scores[text] |= space.trivial_scores(arch) if hasattr(space, "trivial_scores") else {}
    names = [name for name in scores[text] if all(name in found for found in scores.values())]
    return {f"{name} (computed)": {arch: {None: found[name]} for arch, found in scores.items()} for name in names}


def regret(truth, scores):
    """Points of accuracy that are lost by taking the architecture with the highest score; the mean over equal scores."""
    return truth.max() - truth[scores == scores.max()].mean()


def by_seed(units, label, archs):
    """{seed: accuracies (n,)} of n architectures, for the seeds that all of them have: a run may be unfinished."""
    seeds = set.intersection(*(set(units[label][arch]) for arch in archs))
    if not seeds:
        raise ValueError(f"the {len(archs)} architectures of '{label}' have no seed in common")
    return {seed: np.array([units[label][arch][seed] for arch in archs]) for seed in sorted(seeds)}


def mean_over_seeds(by_seed):
    """Mean over seeds, (n,). With fsum equal accuracies have equal means in any order, so that ties stay ties."""
    return np.array([math.fsum(values) / len(values) for values in zip(*by_seed.values(), strict=True)])


def tau_of_single_seeds(one, other):
    """A function of indices of architectures: mean tau of a seed of one setting and a different seed of the other, all pairs.

    one, other: {seed: accuracies (n,)}. The same setting twice gives its noise ceiling. NaN if there is no pair.
    """
    pairs = [(one[s], other[t]) for s, t in itertools.product(one, other) if s != t]
    return lambda k: np.mean([kendall_tau(x[k], y[k]) for x, y in pairs]) if pairs else np.nan


# Showing


def text(result):
    """The tables of `compare` as they are printed."""
    labels, ceilings = result["labels"], result["noise_ceiling"]

    def tau(i, j):
        return "1" if i == j and result["tau"][i, j] == 1 else shown(*(result[name][i, j] for name in ("tau", "low", "high")))

    def single(i, j):
        ceiling = i == j and ceilings.get(labels[i])
        return shown(*ceiling.values()) if ceiling else shown(result["tau_single"][i, j])

    tables = {"Kendall's tau-b of mean accuracies, with its 95 % interval:": tau}
    if ceilings:
        tables["Tau of single seeds; on the diagonal the noise ceiling, between two seeds of the same setting:"] = single
    if "parameters (computed)" in labels:
        title = "Partial tau of mean accuracies with the number of parameters held fixed:"
        tables[title] = lambda i, j: shown(result["tau_given_parameters"][i, j])
    title = "Regret: accuracy that the row loses, in points, by taking the column's best architecture:"
    tables[title] = lambda i, j: shown(result["regret"][i, j])
    parts = [f"{title}\n{_matrix(labels, cell)}" for title, cell in tables.items()]
    return "\n".join([f"{result['architectures']} architectures", *parts])


def _matrix(labels, cell):
    """A text table whose columns are headed by the rows' numbers. cell: (i, j) -> text."""
    rows = [["", *map(str, range(1, len(labels) + 1))]]
    rows += [[f"{i + 1} {label}", *(cell(i, j) for j in range(len(labels)))] for i, label in enumerate(labels)]
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join("  ".join([head.ljust(first), *map(str.rjust, row, widths)]) for head, *row in rows)


def shown(value, low=None, high=None):
    if np.isnan(value):
        return "-"
    return f"{value:.2f}" if low is None or np.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def plain(result):
    """The result as JSON can hold it: arrays become lists, and NaN becomes None."""
    return json.loads(json.dumps(result, default=np.ndarray.tolist), parse_constant=lambda nan: None)


def heat_map(result, path):
    """Draws the tau matrix, as in Figure 1, into an image file. ValueError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("a picture needs matplotlib, which is not installed: pip install matplotlib") from None
    labels, tau = result["labels"], result["tau"]
    figure = Figure(figsize=(3 + 0.7 * len(labels), 2 + 0.7 * len(labels)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(tau, vmin=min(0.0, np.nanmin(tau)), vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    for (i, j), value in np.ndenumerate(tau):
        axes.text(j, i, shown(value), ha="center", va="center", color="k" if value > 0.5 else "w")
    figure.colorbar(image, label="Kendall's tau-b")
    figure.savefig(path, dpi=150)
