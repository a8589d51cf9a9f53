"""Evolution in a space where the best is known: the score is a formula of the genes."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

import search
from common import nats

PAPER = dict(generations=20, population=50, crossovers=25, mutations=25, mutate_probability=0.1, topk=10)


def formula(arch):
    """Rewards each gene, and pairs of genes, so that one cannot be chosen without the others."""
    table = np.random.default_rng(7).normal(size=(6, 5))
    pairs = np.random.default_rng(8).normal(size=(5, 5, 5))
    return sum(table[i, g] for i, g in enumerate(arch)) + sum(pairs[i, arch[i], arch[i + 1]] for i in range(5))


def evolve(score=formula, fits=lambda arch: True, seed=0, space=nats, **changes):
    """{architecture: score} of a whole search, in the order of evaluation."""
    args, scores = SimpleNamespace(**{**PAPER, **changes}), {}
    for generation in range(args.generations):
        archs = search.propose(space, scores, fits, np.random.default_rng([seed, generation]), args)
        assert len(set(archs)) == len(archs) <= args.population and not set(archs) & scores.keys()
        scores.update((arch, score(arch)) for arch in archs)
    return scores


@pytest.mark.parametrize("seed", range(2))
def test_finds_the_top_thousandth(seed):
    best = max(evolve(seed=seed).values())
    everything = sorted((formula(a) for a in product(range(5), repeat=6)), reverse=True)
    assert best >= everything[len(everything) // 1000]


def test_fills_every_generation():
    assert len(evolve()) == 20 * 50


def test_beats_random_search():
    rng = np.random.default_rng(0)
    random = [max(formula(tuple(rng.integers(0, 5, 6))) for _ in range(1000)) for _ in range(10)]
    assert min(max(evolve(seed=s).values()) for s in range(3)) >= np.median(random)


def test_children_come_from_the_best_by_crossover_and_mutation():
    good = list(product(range(2), repeat=6))[::7]
    scores = {arch: 1.0 for arch in good} | {(4, 4, 4, 4, 4, gene): 0.0 for gene in range(5)}

    def children(**counts):
        args = SimpleNamespace(**{**PAPER, "population": 5, "crossovers": 0, "mutations": 0, **counts})
        return search.propose(nats, scores, lambda arch: True, np.random.default_rng(0), args)

    crossed, mutated, random = children(crossovers=5), children(mutations=5), children()
    assert all(max(arch) <= 1 for arch in crossed)  # of good parents only, whose genes are 0 or 1
    distance = [min(sum(a != b for a, b in zip(arch, parent, strict=True)) for parent in good) for arch in mutated]
    assert max(distance) <= 3 and max(map(max, random)) > 1 and len(crossed) == len(mutated) == len(random) == 5
    assert children(mutations=5, mutate_probability=1e-9) != mutated


def test_of_equal_scores_the_first_found_is_the_better():
    args = SimpleNamespace(**{**PAPER, "population": 5, "crossovers": 0, "mutations": 5, "topk": 1})
    scores = {(0,) * 6: 1.0, (4,) * 6: 1.0}
    children = search.propose(nats, scores, lambda arch: True, np.random.default_rng(0), args)
    assert min(arch.count(0) for arch in children) >= 3


def test_keeps_to_a_limit():
    scores = evolve(fits=lambda arch: arch.count(3) <= 1)
    assert len(scores) > 500 and all(arch.count(3) <= 1 for arch in scores)


def test_a_limit_that_chance_does_not_meet_starts_from_the_lightest():
    space = SimpleNamespace(CHOICES=(1000,) * 8, LIGHTEST=(0,) * 8)
    scores = evolve(sum, lambda arch: sum(a > 0 for a in arch) <= 1, space=space)
    assert space.LIGHTEST in scores and len(scores) > 10


def test_a_space_that_runs_out_ends():
    assert len(evolve(sum, space=SimpleNamespace(CHOICES=(2, 2, 2), LIGHTEST=(0, 0, 0)))) == 8


def test_same_seed_same_search():
    assert evolve(seed=3) == evolve(seed=3) != evolve(seed=4)
