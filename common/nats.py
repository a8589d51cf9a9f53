"""The NATS-Bench topology space (Dong et al. 2021): 5^6 = 15,625 cells, in the macro-network of that benchmark.

An architecture is six genes, one per edge of the cell's complete graph on four nodes, each the index of an operation:

    |op~0|+|op~0|op~1|+|op~0|op~1|op~2|        the edges into nodes 1, 2 and 3
"""

import re
from itertools import permutations

import torch
from torch import nn

from .fast import BatchNorm2d
from .ops import OPS, relu_conv_bn

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = tuple((node, source) for node in (1, 2, 3) for source in range(node))
CHOICES = (len(OPERATIONS),) * len(EDGES)  # how many values each gene can take
CONVOLUTIONS = {edge: (2, 3) for edge in range(len(EDGES))}  # which values of a gene are convolutions
LIGHTEST = (0,) * len(EDGES)  # an architecture with the fewest multiply-accumulates
DEFAULTS = {"channels": 16, "cells": 5}  # cells per stage, of three stages


def to_string(arch):
    """Six genes -> the benchmark's own string."""
    a, b, c, d, e, f = (f"{OPERATIONS[gene]}~{source}" for gene, (_, source) in zip(arch, EDGES, strict=True))
    return f"|{a}|+|{b}|{c}|+|{d}|{e}|{f}|"


def from_string(text):
    """The benchmark's string -> six genes. ValueError names the token that is wrong."""
    tokens = [token for token in re.split(r"[|+]", text.strip()) if token]
    if len(tokens) != len(EDGES):
        raise ValueError(f"a NATS-Bench architecture has {len(EDGES)} tokens 'op~input', this has {len(tokens)}: '{text}'")
    arch = []
    for token, (_, source) in zip(tokens, EDGES, strict=True):
        choices = [f"{name}~{source}" for name in OPERATIONS]
        if token not in choices:
            raise ValueError(f"token '{token}' must be one of {', '.join(choices)}")
        arch.append(choices.index(token))
    if text.strip() != to_string(arch):
        raise ValueError(f"'{text}' must read '{to_string(arch)}'")
    return tuple(arch)


def canonical(arch):
    """(function, edges): what the cell computes, and the indices in EDGES of the convolutions that take part in it.

    Architectures with equal functions compute the same when they share weights, edge for edge in the order of `edges`.
    Edges that do not reach the output are left out, and so are convolutions of zeros, which give a constant. Skip
    connections are followed. The pool of a sum is the sum of pools. The order of a sum is ignored. Two convolutions of the
    same input have weights of their own and stay two. 5,044 of the 15,625 architectures are distinct.
    """
    # A node is a sum of terms: (number of poolings, edge of a convolution or None: the cell's input).
    nodes, convs = [[(0, None)], [], [], []], {}  # convs: edge -> (operation, terms of its input)
    for edge, ((node, source), gene) in enumerate(zip(EDGES, arch, strict=True)):
        name, inputs = OPERATIONS[gene], nodes[source]
        if name == "skip_connect":
            nodes[node] += inputs
        elif name == "avg_pool_3x3":
            nodes[node] += [(pooled + 1, conv) for pooled, conv in inputs]
        elif name != "none" and inputs:
            convs[edge] = name, inputs
            nodes[node].append((0, edge))
    live, reached = [], [*nodes[3]]
    while reached:
        _, conv = reached.pop()
        if conv is not None and conv not in live:
            live.append(conv)
            reached += convs[conv][1]

    def function(order):
        """What the cell computes, with convolutions named by their place in this order."""
        place = {None: -1} | {conv: i for i, conv in enumerate(order)}
        sums = (nodes[3], *(convs[conv][1] for conv in order))
        sums = tuple(tuple(sorted((pooled, place[conv]) for pooled, conv in terms)) for terms in sums)
        return sums, tuple(convs[conv][0] for conv in order)

    edges = min(permutations(live), key=function)
    return function(edges), edges


def longest_path(arch):
    """Most convolutions on a path from the cell's input to its output; -1 without a path."""
    longest = [0, -1, -1, -1]
    for (node, source), gene in zip(EDGES, arch, strict=True):
        if OPERATIONS[gene] != "none" and longest[source] >= 0:
            longest[node] = max(longest[node], longest[source] + OPERATIONS[gene].startswith("nor_conv"))
    return longest[3]


def trivial_scores(arch):
    """{name: number} to rank cells by without training. Live convolutions are between input and output: 9 n_3x3 + n_1x1."""
    live = [OPERATIONS[arch[edge]] for edge in canonical(arch)[1]]
    weighted = 9 * live.count("nor_conv_3x3") + live.count("nor_conv_1x1")
    return {"live convolutions": weighted, "longest convolution path": longest_path(arch)}


class Cell(nn.Module):
    """Node 0 is the input, every later node the sum of its incoming edges, node 3 the output. The shape is unchanged."""

    def __init__(self, channels, arch, affine):
        super().__init__()
        self.arch, self.edges = arch, nn.ModuleList()
        for gene in arch or LIGHTEST:
            names = OPERATIONS if arch is None else (OPERATIONS[gene],)
            self.edges.append(nn.ModuleDict({name: OPS[name](channels, 1, affine) for name in names if name != "none"}))

    def forward(self, x, arch=None):
        nodes, rectified = [x, None, None, None], {}  # None: no edge yet, a sum of zero
        for (node, source), gene, edge in zip(EDGES, arch or self.arch, self.edges, strict=True):
            name = OPERATIONS[gene]
            if name == "none":
                continue
            out = torch.zeros_like(x) if nodes[source] is None else nodes[source]
            if name.startswith("nor_conv"):  # all ReLU-Conv-BN edges that leave a node share its ReLU
                relu, conv, bn = edge[name]
                if source not in rectified:
                    rectified[source] = relu(out)
                out = bn(conv(rectified[source]))
            else:
                out = edge[name](out)
            nodes[node] = out if nodes[node] is None else nodes[node] + out
        return torch.zeros_like(x) if nodes[3] is None else nodes[3]


class Reduction(nn.Module):
    """The residual block between stages: (B, C, H, W) -> (B, 2C, H/2, W/2)."""

    def __init__(self, channels, affine):
        super().__init__()
        wide = 2 * channels
        self.convs = nn.Sequential(relu_conv_bn(channels, wide, 3, 2, affine), relu_conv_bn(wide, wide, 3, 1, affine))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, wide, 1, bias=False))

    def forward(self, x):
        return self.convs(x) + self.shortcut(x)


class Network(nn.Module):
    """Super-net (`arch=None`, called `net(x, arch)`) and sub-net (called `net(x)`) of (B, 3, H, W) images.

    channels: C, width of the first stage, doubled twice. cells: N, cells per stage.
    A sub-net's parameters have the names of the same operations in the super-net.
    """

    def __init__(self, num_classes, channels=DEFAULTS["channels"], cells=DEFAULTS["cells"], arch=None):
        super().__init__()
        affine = arch is not None
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), BatchNorm2d(channels, affine=affine))
        self.blocks = nn.ModuleList()
        for stage, width in enumerate((channels, 2 * channels, 4 * channels)):
            if stage:
                self.blocks.append(Reduction(width // 2, affine))
            self.blocks.extend(Cell(width, arch, affine) for _ in range(cells))
        self.last = nn.Sequential(BatchNorm2d(4 * channels, affine=affine), nn.ReLU())
        self.classifier = nn.Linear(4 * channels, num_classes)
        self.to(memory_format=torch.channels_last)  # what tensor cores need

    def features(self, x, arch=None):
        """phi(a, w_a): images (B, 3, H, W) -> pooled backbone output (B, 4C)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, arch) if isinstance(block, Cell) else block(x)
        return self.last(x).mean((2, 3))

    def forward(self, x, arch=None):
        """Images (B, 3, H, W) -> logits (B, num_classes)."""
        return self.classifier(self.features(x, arch))
