"""The search spaces by name, and what is done with an architecture in any of them.

An architecture is a tuple of small ints; gene i takes any value in range(CHOICES[i]), whatever the others are. A new space
is one module with OPERATIONS, CHOICES, LIGHTEST, DEFAULTS, to_string, from_string and Network, and one line in SPACES.
"""

import copy

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from . import darts, nats, resnet

SPACES = {"nats": nats, "darts": darts, "resnet32": resnet}


def name_of(text):
    """The name of the space that an architecture string is written in."""
    return (
        "resnet32"
        if text.strip() == "resnet32"
        else "darts"
        if "//" in text or text.lstrip().startswith("Genotype")
        else "nats"
    )


def sample(choices, rng):
    """An architecture, each gene drawn uniformly. rng: numpy Generator."""
    return tuple(int(g) for g in rng.integers(0, choices))


def mutate(arch, choices, probability, rng):
    """Each gene is drawn anew with this probability (Guo et al. 2020)."""
    fresh = rng.integers(0, choices)
    return tuple(int(f) if m else g for g, f, m in zip(arch, fresh, rng.random(len(arch)) < probability, strict=True))


def crossover(one, other, rng):
    """Each gene comes from either parent (Guo et al. 2020)."""
    return tuple(a if m else b for a, b, m in zip(one, other, rng.random(len(one)) < 0.5, strict=True))


def path(choices, seed, step):
    """The architecture that a super-net trains at a step: uniform, and the same on every rank."""
    return sample(choices, np.random.default_rng([seed, step, 1]))


def supernet(name, num_classes, channels, cells):
    """A super-net of the named space, weights drawn from torch's seed. ValueError for an unknown name."""
    if name not in SPACES:
        raise ValueError(f"unknown search space '{name}': choose from {', '.join(SPACES)}")
    return SPACES[name].Network(num_classes, channels, cells)


_FACTS = {
    "space": str,
    "channels": int,
    "cells": int,
    "num_classes": int,
    "data": dict,
    "net": dict,
    "procedure": str,
    "seed": int,
}
_DATA = {"dataset": str, "imbalance": (int, float), "data_seed": int, "val_per_class": int, "image_size": int}


def supernet_from(checkpoint):
    """The super-net in a checkpoint of `train_supernet.py` or `adapt.py`. ValueError says what in it cannot be."""
    for facts, kinds in ((checkpoint, _FACTS), (checkpoint.get("data"), _DATA)):
        for name, kind in kinds.items():
            if not isinstance(facts, dict) or not isinstance(facts.get(name), kind) or isinstance(facts[name], bool):
                raise ValueError(f"it does not say its '{name}', or not as train_supernet.py does")
    if set(checkpoint["data"]) != set(_DATA):
        raise ValueError(f"its data are {', '.join(sorted(map(str, checkpoint['data'])))} and not {', '.join(sorted(_DATA))}")
    size = checkpoint["data"]["image_size"]
    if not 4 <= size <= 1024 or size % 4:
        raise ValueError(f"its 'image_size' is {size}: not a multiple of 4 from 4 to 1024")
    weights, (channels, cells, classes) = checkpoint["net"], (checkpoint[k] for k in ("channels", "cells", "num_classes"))
    misfit = ValueError(
        f"these are not the weights of the '{checkpoint['space']}' super-net that it names, of {channels} channels, "
        f"{cells} cells and {classes} classes"
    )
    dense = [isinstance(w, torch.Tensor) and w.layout == torch.strided and w.device.type == "cpu" for w in weights.values()]
    if not all(dense) or not all(isinstance(name, str) for name in weights):
        raise misfit
    # Before anything is built: no more of it than the file has weights for.
    if not 0 < cells <= len(weights) or not 0 < min(channels, classes) <= max(channels, classes) < 2**20:
        raise misfit
    with torch.device("meta"):
        expected = supernet(checkpoint["space"], classes, channels, cells).state_dict()
    if {n: (w.shape, w.dtype) for n, w in weights.items()} != {n: (w.shape, w.dtype) for n, w in expected.items()}:
        raise misfit
    broken = [name for name, w in weights.items() if not torch.isfinite(w).all()]
    if broken:
        raise ValueError(f"its weight '{broken[0]}' is not finite")
    net = supernet(checkpoint["space"], classes, channels, cells)
    net.load_state_dict(weights)
    return net


def parameters(net):
    """Learned numbers of a network: of a sub-net, its parameter count."""
    return sum(p.numel() for p in net.parameters())


def macs_counter(net, image_size=32):
    """A function from an architecture (none for a sub-net) to the multiply-accumulates of one image of that size.

    PyTorch's own counter counts two operations for each; only convolutions and the classifier count, as in the literature.
    """
    net = copy.deepcopy(net).to("meta").eval()
    image = torch.empty(1, 3, image_size, image_size, device="meta")

    def macs(*arch):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(image, *arch)
        return counter.get_total_flops() // 2

    return macs
