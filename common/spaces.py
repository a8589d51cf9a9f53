"""The search spaces by name, and what can be done with an architecture of any of them.

An architecture is a tuple of small ints; gene i takes any value in range(CHOICES[i]), whatever the others are. To add a
space, write common/<name>.py with CHOICES, LIGHTEST, DEFAULTS, to_string, from_string and Network (with features and
classifier), and add its name here. CONVOLUTIONS, {gene: values that are convolutions}, is for `sampler` and may be left out.
"""

import copy
import importlib
import math

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from .losses import match_classifier
from .runtime import all_finite, load_checkpoint, reading

SPACES = ("nats", "darts", "shufflenet", "resnet32")
SAMPLINGS = ("uniform", "strict", "convolutions")


def space(name):
    """The module of a search space. ValueError for an unknown name."""
    if name not in SPACES:
        raise ValueError(f"unknown search space '{name}': choose from {', '.join(SPACES)}")
    return importlib.import_module(f"common.{name}")


def parse(text):
    """(name of the space, architecture) of an architecture string. ValueError with each space's reason if none reads it."""
    reasons = []
    for name in SPACES:
        try:
            return name, space(name).from_string(text)
        except ValueError as error:
            reasons.append(f"{name}: {error}")
    raise ValueError(f"no search space reads '{text}'. {'; '.join(reasons)}")


def sample(choices, rng):
    """An architecture, each gene drawn uniformly. rng: numpy Generator."""
    return tuple(rng.integers(0, choices).tolist())


def mutate(arch, choices, probability, rng):
    """Each gene is drawn anew with this probability (Guo et al. 2020)."""
    fresh, drawn = sample(choices, rng), rng.random(len(arch)) < probability
    return tuple(new if is_drawn else old for old, new, is_drawn in zip(arch, fresh, drawn, strict=True))


def crossover(one, other, rng):
    """Each gene comes from either parent (Guo et al. 2020)."""
    first = rng.random(len(one)) < 0.5
    return tuple(a if from_one else b for a, b, from_one in zip(one, other, first, strict=True))


def sampler(name, seed, sampling="uniform"):
    """A function from a training step to the architectures that share its batch, the same on every rank.

    uniform: one, each gene drawn uniformly (Guo et al. 2020). The others: as many as the largest gene of the space has values.
    strict: every gene takes each of its values once, or equally often (Chu et al. 2021 give each the whole batch).
    convolutions: values that the space lists as CONVOLUTIONS are three times as likely as others, which have nothing to learn.
    """
    module = space(name)
    choices, most = module.CHOICES, max(module.CHOICES)
    shares = [np.ones(n) for n in choices]
    for gene, values in getattr(module, "CONVOLUTIONS", {}).items():
        shares[gene][list(values)] = 3

    def paths(step):
        rng = np.random.default_rng([seed, step, 1])
        if sampling == "uniform":
            return [sample(choices, rng)]
        if sampling == "strict":
            repeated = [np.concatenate([rng.permutation(n) for _ in range(math.ceil(most / n))])[:most] for n in choices]
            drawn = [rng.permutation(values) for values in repeated]
        else:
            drawn = [rng.choice(len(share), most, p=share / share.sum()) for share in shares]
        return list(zip(*(values.tolist() for values in drawn), strict=True))

    return paths


def supernet(name, num_classes, channels, cells):
    """A super-net of the named space, with weights drawn from torch's seed."""
    return space(name).Network(num_classes, channels, cells)


def load_supernet(path):
    """(checkpoint, super-net) of a supernet.pt. UserError if it is damaged or its weights do not fit or are not finite."""
    checkpoint = load_checkpoint(path, "super-net")
    with reading(path, "the checkpoint of a super-net"):
        net = supernet(*(checkpoint[key] for key in ("space", "num_classes", "channels", "cells")))
        match_classifier(net, checkpoint["loss"])
        net.load_state_dict(checkpoint["net"])
        if {"procedure", "seed", "data"} - checkpoint.keys() or not all_finite(checkpoint["net"]):
            raise ValueError("an entry is missing, or its weights are not finite")
    return checkpoint, net


def parameters(net):
    """Number of learned parameters of a network."""
    return sum(p.numel() for p in net.parameters())


def macs_counter(net, image_size=32):
    """A function from an architecture (none for a sub-net) to the multiply-accumulates of one image of that size.

    Only convolutions and the classifier count, as in the literature.
    """
    net = copy.deepcopy(net).to("meta").eval()
    image = torch.empty(1, 3, image_size, image_size, device="meta")

    def macs(*arch):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(image, *arch)
        return counter.get_total_flops() // 2  # a multiply-accumulate counts as two operations

    return macs
