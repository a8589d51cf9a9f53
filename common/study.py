"""The paper's two claims, decided by a finished study: every number with its 95 % interval.

Claim 1: rankings transfer poorly from balanced to long-tailed data (Figure 1). Fewer images, another draw and another seed
disturb a ranking, too, so tau across imbalance is compared with what these leave of it.
Claim 2: P1 repairs the ranking of a super-net, nearly as well as training anew (P3) does (Tables 3 to 6).
"""

import itertools

import numpy as np

from . import tables
from .kendall import kendall_tau

# {method: (imbalance, seed of the draw, seeds)}: sub-nets trained alone, in the order in which they are run. "small" is
# balanced with as many images as 100x, since the paper compares less and imbalanced data with more and balanced data.
SETTINGS = {
    "balanced": (1, 0, (0, 1)),
    "100x": (100, 0, (0, 1)),
    "small": (1, 0, (0, 1)),
    "another draw": (100, 1, (0,)),
    "50x": (50, 0, (0, 1)),
}
PROCEDURES = ("P0", "P1", "P2", "P3")
ARCHITECTURES = "results/study/architectures.txt"
SETS = {"A": slice(0, 48), "B": slice(48, 96)}  # of its lines: of 149 M multiply-accumulates, and of the whole space


def decide(lines, archs):
    """[(quantity, value, low, high)] of both claims for these architectures, from the settings whose lines are all there.

    lines: dicts of an accuracies.jsonl, whose methods are SETTINGS and PROCEDURES.
    """
    found = {}
    for line in lines:
        found.setdefault(line["method"], {}).setdefault(line["arch"], {})[line["seed"]] = line["accuracy"]
    whole = {name: tables.by_seed(found, name, archs) for name in found if found[name].keys() >= set(archs)}
    settings = {name: whole[name] for name, (*_, seeds) in SETTINGS.items() if whole.get(name, {}).keys() == set(seeds)}
    if not {"balanced", "100x"} <= settings.keys():
        return []
    scores = {name: np.array(list(whole[name].values())) for name in PROCEDURES if name in whole}
    means = {name: tables.mean_over_seeds(settings[name]) for name in ("balanced", "100x")}
    parameters = tables.computed_settings({"": dict.fromkeys(archs)})["parameters (computed)"]
    scores["balanced accuracy"] = means["balanced"][None]
    scores["parameters"] = np.array([[parameters[arch][None] for arch in archs]])
    return claim_1(settings) + claim_2(means["100x"], scores)


def claim_1(settings):
    """Tau with the ranking at 100x, and how much lower it is from balanced data than from the rest.

    settings: {name: {seed: accuracies (n,)}} of n architectures. All taus are between single seeds, means over the pairs of
    different seeds. A setting with itself is its noise ceiling.
    """
    (count,) = {len(accuracies) for seeds in settings.values() for accuracies in seeds.values()}

    def tau(one, other):
        pairs = [(settings[one][s], settings[other][t]) for s, t in itertools.product(settings[one], settings[other]) if s != t]
        return lambda archs: np.mean([kendall_tau(x[archs], y[archs]) for x, y in pairs])

    ceilings = [(name, name) for name, seeds in settings.items() if len(seeds) > 1 and name != "100x"]
    pairs = [*((name, "100x") for name in settings), *ceilings]
    rows = [(f"tau({one}, {other})", *tables.interval(tau(one, other), count)) for one, other in pairs]
    across = {name: tau(name, "100x") for name in settings}
    for name in settings:
        if name != "balanced":
            difference = tables.interval(lambda archs, name=name: across["balanced"](archs) - across[name](archs), count)
            rows.append((f"tau(balanced, 100x) - tau({name}, 100x)", *difference))
    return rows


def claim_2(truth, scores):
    """Tau of scores with the accuracies at 100x, and the regret of taking the highest, both means over super-nets.

    truth: accuracies (n,) of n architectures. scores: {name: (super-nets, n)}, one row where there are no super-nets.
    Intervals resample architectures and super-nets. Procedures are paired by the seeds of their super-nets.
    """
    rows = [("regret of a random architecture", truth.max() - truth.mean(), np.nan, np.nan)]
    sizes = len(truth), max(map(len, scores.values()))
    for measure, of in (("tau", kendall_tau), ("regret", regret)):
        means = {
            name: lambda archs, seeds, of=of, nets=nets: np.mean([of(truth[archs], s[archs]) for s in nets[seeds % len(nets)]])
            for name, nets in scores.items()
        }
        rows += [(f"{measure} of {name}", *tables.interval(mean, *sizes)) for name, mean in means.items()]
        for name in means.keys() if "P1" in means else ():
            if name != "P1":
                difference = tables.interval(lambda *k, name=name, of=means: of["P1"](*k) - of[name](*k), *sizes)
                rows.append((f"{measure} of P1 - {measure} of {name}", *difference))
    return rows


def regret(truth, scores):
    """Points of accuracy that are lost by taking the architecture with the highest score; the mean over equal scores."""
    return truth.max() - truth[scores == scores.max()].mean()
