"""The paper's two claims, by what is finished of the study: every number with its 95 % interval.

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
    "claim 2: 100x (means of two seeds) against ...": {
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
    baselines = {"balanced accuracy": tables.mean_over_seeds(settings["balanced"])} if "balanced" in settings else {}
    with torch.device("meta"):  # one cell per stage: more only scale the differences up
        parameters = [spaces.parameters(nats.Network(10, cells=1, arch=nats.from_string(arch))) for arch in archs]
    counts = [nats.trivial_scores(nats.from_string(arch)) for arch in archs]
    baselines |= {"parameters": np.array(parameters), **{name: np.array([n[name] for n in counts]) for name in counts[0]}}
    scores |= {name: dict.fromkeys(seeds, values) for name, values in baselines.items()}
    return claim_1(settings) + claim_2(settings["100x"], scores)


def claim_1(settings):
    """Tau with the ranking at 100x: less that of other settings, and less what noise alone leaves of a perfect agreement.

    settings: {name: {seed: accuracies (n,)}} of n architectures. All taus are between single seeds, means over the pairs of
    different seeds. A setting with itself is its noise ceiling; *another draw*, of one seed, has that of 100x.
    """
    (count,) = {len(accuracies) for seeds in settings.values() for accuracies in seeds.values()}
    across = {name: tables.tau_of_single_seeds(seeds, settings["100x"]) for name, seeds in settings.items()}
    ceilings = {name: tables.tau_of_single_seeds(seeds, seeds) for name, seeds in settings.items() if len(seeds) > 1}
    rows = {f"tau({name}, 100x)": tau for name, tau in across.items()}

    def less(one, other):
        return lambda k: one(k) - other(k)

    def joint(name):
        return lambda k: joint_ceiling(ceilings[name](k), ceilings["100x"](k))

    for one, other in [("balanced", name) for name in across if name != "balanced"] + [("small", "another draw")]:
        if {one, other} <= across.keys():
            rows[f"tau({one}, 100x) - tau({other}, 100x)"] = less(across[one], across[other])
    for name, tau in across.items():
        own = "100x" if name == "another draw" else name
        if own in ceilings and name != "100x":
            rows[f"tau({name}, 100x) - joint ceiling"] = less(tau, joint(own))
    rows |= {f"tau({name}, {name})": tau for name, tau in ceilings.items() if name != "100x"}
    return [(quantity, *tables.interval(tau, count)) for quantity, tau in rows.items()]


def joint_ceiling(one, other):
    """Tau between single seeds of two settings that rank architectures alike but for their noise.

    one, other: their noise ceilings. The correlation of two noisy measures of one quantity is the geometric mean of their
    reliabilities (Spearman 1904); of normal variables, tau is 2 / pi arcsin of the correlation (Greiner 1909).
    """
    one, other = (np.sin(np.pi / 2 * np.maximum(tau, 0.0)) for tau in (one, other))
    return 2 / np.pi * np.arcsin(np.sqrt(one * other))


def claim_2(truth, scores):
    """Tau of scores with the accuracies at 100x, and the regret of taking the highest: means over super-nets.

    truth: {seed: accuracies (n,)} of n architectures. scores: {name: {seed: scores (n,)}}. Tau and regret are those of the mean
    accuracies; tau with single seeds compares with the noise ceiling. P1 is compared with everything, the other procedures with
    what needs no super-net, and a variant with its procedure, each over the seeds that both have. Intervals resample
    architectures and super-nets.
    """
    mean = tables.mean_over_seeds(truth)
    rows = [("regret of a random architecture", mean.max() - mean.mean(), np.nan, np.nan)]
    baselines = [name for name in scores if name not in (*PROCEDURES, *VARIANTS)]
    pairs = [("P1", name) for name in ("P0", "P2", "P3")]
    pairs += [(name, baseline) for name in PROCEDURES for baseline in baselines] + [(of, name) for name, of in VARIANTS.items()]
    alone = [(name,) for name in scores]
    for measure, of, truths, comparisons in (
        ("tau", kendall_tau, [mean], alone + pairs),
        ("regret", tables.regret, [mean], alone + pairs),
        ("tau with single seeds", kendall_tau, list(truth.values()), [(name,) for name in PROCEDURES]),
    ):
        for names in comparisons:
            seeds = sorted(set.intersection(*(set(scores.get(name, ())) for name in names)))

            def statistic(k, nets, of=of, truths=truths, names=names, seeds=seeds):
                of_each = [np.mean([of(t[k], scores[name][seeds[net]][k]) for net in nets for t in truths]) for name in names]
                return of_each[0] - sum(of_each[1:])

            quantity = " - ".join(f"{measure} of {name}" for name in names)
            rows += [(quantity, *tables.interval(statistic, len(mean), len(seeds)))] if seeds else []
    return rows
