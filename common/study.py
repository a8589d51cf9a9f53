"""The paper's two claims, decided by a finished study: every number with its 95 % interval.

Claim 1: rankings transfer poorly from balanced to long-tailed data (Figure 1). Fewer images, another draw or another
seed also disturb a ranking, so tau across imbalance is compared with tau across each of these.
Claim 2: P1 repairs the ranking of a super-net, nearly as well as training anew (P3) does (Tables 3 to 6).
"""

import numpy as np
import torch

from . import nats, spaces, tables
from .kendall import kendall_tau

# {method: (imbalance, seed of the draw, seeds)}: sub-nets trained alone, in the order in which they are run. "small" is
# balanced with as many images as 100x, since the paper's long-tailed sets are also smaller than its balanced ones.
SETTINGS = {
    "100x": (100, 0, (0, 1)),
    "balanced": (1, 0, (0, 1)),
    "small": (1, 0, (0, 1)),
    "another draw": (100, 1, (0,)),
    "50x": (50, 0, (0, 1)),
}
PROCEDURES = ("P0", "P1", "P2", "P3")
# {variant: what it is compared with}, run after everything else: Table 4, `--features-every` of P1, Table 5, and the same
# super-nets scored with `--own-classifier`.
VARIANTS = {"P2, 50/200": "P2", "P2, 100/200": "P2", "P2, 150/200": "P2", "P1, every 4": "P1", "P3, CE": "P3"}
VARIANTS |= {f"{name}, own classifier": name for name in PROCEDURES}
ARCHITECTURES = "results/study/architectures.txt"
SETS = {"A": slice(0, 48), "B": slice(48, 96)}  # of its lines: of 149 M multiply-accumulates, and of the whole space
PANELS = {  # of the picture: title -> {quantity: what a reader calls it}
    "claim 1: 100x against ... (single seeds)": {
        "tau(100x, 100x)": "100x, another seed",
        "tau(another draw, 100x)": "100x, another draw of images",
        "tau(50x, 100x)": "50x",
        "tau(small, 100x)": "balanced, as few images",
        "tau(balanced, 100x)": "balanced, all images",
    },
    "claim 2: 100x against ...": {
        "tau of parameters": "number of parameters",
        "tau of live convolutions": "live convolutions",
        "tau of longest convolution path": "longest path of convolutions",
        "tau of balanced accuracy": "accuracy on balanced data",
        **{f"tau of {name}": f"score in a super-net {name}" for name in PROCEDURES},
    },
}


def decide(lines, archs):
    """[(quantity, value, low, high)] of both claims for these architectures, from the settings and seeds that have all of them.

    lines: dicts of an accuracies.jsonl, whose methods are SETTINGS, PROCEDURES and VARIANTS.
    """
    found = {}
    for line in lines:
        found.setdefault(line["method"], {}).setdefault(line["arch"], {})[line["seed"]] = line["accuracy"]
    whole = {name: tables.by_seed(found, name, archs) for name in found if found[name].keys() >= set(archs)}
    settings = {name: whole[name] for name in SETTINGS if name in whole}
    if len(settings.get("100x", ())) < 2:  # the noise ceiling needs two seeds
        return []
    scores = {name: whole[name] for name in (*PROCEDURES, *VARIANTS) if name in whole}
    seeds = set().union(*scores.values()) or {0}  # baselines have the same scores for all of them
    means = {name: tables.mean_over_seeds(seeds) for name, seeds in settings.items()}
    baselines = {"balanced accuracy": means["balanced"]} if "balanced" in means else {}
    with torch.device("meta"):  # one cell per stage: more only scale the differences up
        parameters = [spaces.parameters(nats.Network(10, cells=1, arch=nats.from_string(arch))) for arch in archs]
    counts = [nats.trivial_scores(nats.from_string(arch)) for arch in archs]
    baselines |= {"parameters": np.array(parameters), **{name: np.array([n[name] for n in counts]) for name in counts[0]}}
    scores |= {name: dict.fromkeys(seeds, values) for name, values in baselines.items()}
    return claim_1(settings) + claim_2(means["100x"], scores)


def claim_1(settings):
    """Tau with the ranking at 100x, and that of balanced data minus that of each other setting.

    settings: {name: {seed: accuracies (n,)}} of n architectures. All taus are between single seeds, means over the pairs of
    different seeds. A setting with itself is its noise ceiling.
    """
    (count,) = {len(accuracies) for seeds in settings.values() for accuracies in seeds.values()}
    truth = settings["100x"]
    across = {f"tau({name}, 100x)": tables.tau_of_single_seeds(seeds, truth) for name, seeds in settings.items()}
    ceilings = {
        f"tau({name}, {name})": tables.tau_of_single_seeds(seeds, seeds)
        for name, seeds in settings.items()
        if len(seeds) > 1 and name != "100x"
    }
    base, differences = "tau(balanced, 100x)", {}
    for other in [name for name in across if name != base] if base in across else ():
        differences[f"{base} - {other}"] = lambda k, other=other: across[base](k) - across[other](k)
    return [(quantity, *tables.interval(tau, count)) for quantity, tau in (across | differences | ceilings).items()]


def claim_2(truth, scores):
    """Tau of scores with the accuracies at 100x, and the regret of taking the highest: means over super-nets.

    truth: accuracies (n,) of n architectures. scores: {name: {seed: scores (n,)}}. P1 is compared with everything,
    and a variant with its procedure, each over the seeds that both have. Intervals resample architectures and super-nets.
    """
    rows = [("regret of a random architecture", truth.max() - truth.mean(), np.nan, np.nan)]
    pairs = [("P1", name) for name in scores if name not in ("P1", *VARIANTS)] + [(of, name) for name, of in VARIANTS.items()]
    for measure, of in (("tau", kendall_tau), ("regret", tables.regret)):
        for names in [(name,) for name in scores] + [pair for pair in pairs if scores.keys() >= set(pair)]:
            seeds = sorted(set.intersection(*(set(scores[name]) for name in names)))

            def statistic(k, nets, of=of, names=names, seeds=seeds):
                of_each = [np.mean([of(truth[k], scores[name][seeds[net]][k]) for net in nets]) for name in names]
                return of_each[0] - sum(of_each[1:])

            quantity = " - ".join(f"{measure} of {name}" for name in names)
            rows += [(quantity, *tables.interval(statistic, len(truth), len(seeds)))] if seeds else []
    return rows
