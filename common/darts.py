"""The DARTS space (Liu et al. 2019): a normal and a reduction cell of four nodes, each with two distinct inputs.

An architecture is 24 genes, three per node: the pair of inputs, then the operation on each. All combinations of gene values
are legal, so sampling, mutation and crossover need no repair. As a string:

    |op~input|op~input|+|..|..|+|..|..|+|..|..|//|the reduction cell, in the same form|

Inputs 0 and 1 are the two previous cells, 2.. the cell's own nodes. A node's inputs are written in ascending order.
"""

import ast
from itertools import combinations

import torch
from torch import nn

from .fast import BatchNorm2d, lay_out
from .ops import OPS, FactorizedReduce, relu_conv_bn

OPERATIONS = (
    "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip
NODES = 4
PAIRS = tuple(tuple(combinations(range(2 + node), 2)) for node in range(NODES))  # of inputs, for each node
CHOICES = tuple(n for node in range(NODES) for n in (len(PAIRS[node]), len(OPERATIONS), len(OPERATIONS))) * 2
LIGHTEST = (0,) * len(CHOICES)  # nothing but pooling
DEFAULTS = {"channels": 36, "cells": 20}


def decode(arch):
    """24 genes -> (normal, reduction): for each of four nodes two (operation, input)."""
    nodes = []
    for i in range(0, len(CHOICES), 3):
        one, other = PAIRS[i // 3 % NODES][arch[i]]
        nodes.append(((OPERATIONS[arch[i + 1]], one), (OPERATIONS[arch[i + 2]], other)))
    return tuple(nodes[:NODES]), tuple(nodes[NODES:])


def encode(cells):
    """The inverse of `decode`; a node's two (operation, input) may come in either order. ValueError says what is wrong."""
    arch = []
    for cell in cells:
        if len(cell) != NODES:
            raise ValueError(f"a DARTS cell has {NODES} nodes, this has {len(cell)}")
        for node, edges in enumerate(cell):
            for name, source in edges:
                if name not in OPERATIONS:
                    raise ValueError(f"unknown operation in token '{name}~{source}': choose from {', '.join(OPERATIONS)}")
            edges = sorted(edges, key=lambda edge: edge[1])
            pair = tuple(source for _, source in edges)
            if pair not in PAIRS[node]:
                tokens = "|".join(f"{name}~{source}" for name, source in edges)
                raise ValueError(f"'|{tokens}|': node {node} takes two distinct inputs from 0 to {node + 1}")
            arch += [PAIRS[node].index(pair), *(OPERATIONS.index(name) for name, _ in edges)]
    return tuple(arch)


def to_string(arch):
    """24 genes -> string."""
    return "//".join("+".join("|" + "".join(f"{n}~{s}|" for n, s in node) for node in cell) for cell in decode(arch))


def from_string(text):
    """A string, or a `Genotype(...)` literal as DARTS prints it -> 24 genes. ValueError names the token that is wrong."""
    text = text.strip()
    if text.startswith("Genotype"):
        return _from_genotype(text)
    cells = text.split("//")
    if len(cells) != 2:
        raise ValueError(f"a DARTS architecture is two cells joined by '//', this is {len(cells)}: '{text}'")
    return encode([[_parse_node(part) for part in cell.split("+")] for cell in cells])


def _parse_node(part):
    tokens = part[1:-1].split("|")
    if not (part.startswith("|") and part.endswith("|") and len(tokens) == 2):
        raise ValueError(f"a node reads '|op~input|op~input|', this is '{part}'")
    edges = [token.partition("~")[::2] for token in tokens]
    for token, (_, source) in zip(tokens, edges, strict=True):
        if source not in ("0", "1", "2", "3", "4"):
            raise ValueError(f"token '{token}' must read 'op~input', with an input from 0 to 4")
    return [(name, int(source)) for name, source in edges]


def _from_genotype(text):
    try:
        fields = {k.arg: ast.unparse(k.value) for k in ast.parse(text, mode="eval").body.keywords}
        cells = []
        for kind in ("normal", "reduce"):
            edges = [(str(name), int(source)) for name, source in ast.literal_eval(fields[kind])]
            cells.append([edges[i : i + 2] for i in range(0, len(edges), 2)])
        concat = fields["normal_concat"], fields["reduce_concat"]
    except (SyntaxError, AttributeError, KeyError, TypeError, ValueError, RecursionError, MemoryError):
        form = "Genotype(normal=[(op, input), ...], normal_concat=..., reduce=[...], reduce_concat=...)"
        raise ValueError(f"not a DARTS genotype of the form {form}") from None
    if not set(concat) <= {"[2, 3, 4, 5]", "range(2, 6)"}:
        raise ValueError(f"the genotype concatenates {' and '.join(concat)}: only nodes 2 to 5 are supported")
    return encode(cells)


class Cell(nn.Module):
    """(B, c_prev_prev, ..), (B, c_prev, ..) -> (B, 4 * channels, ..), at half the resolution if `reduction`."""

    def __init__(self, c_prev_prev, c_prev, channels, reduction, reduction_prev, arch, affine):
        super().__init__()
        self.reduction, self.arch = reduction, arch
        if reduction_prev:  # the cell before last still has twice the resolution
            self.preprocess0 = FactorizedReduce(c_prev_prev, channels, affine)
        else:
            self.preprocess0 = relu_conv_bn(c_prev_prev, channels, 1, 1, affine)
        self.preprocess1 = relu_conv_bn(c_prev, channels, 1, 1, affine)
        self.edges = nn.ModuleDict()  # "node<source" -> operation name -> module
        for node in range(NODES):
            for source in range(2 + node):
                names = OPERATIONS if arch is None else [n for n, s in decode(arch)[reduction][node] if s == source]
                stride = 2 if reduction and source < 2 else 1
                if names:
                    self.edges[f"{node}<{source}"] = nn.ModuleDict({n: OPS[n](channels, stride, affine) for n in names})

    def forward(self, before_last, last, arch=None):
        states = [self.preprocess0(before_last), self.preprocess1(last)]
        for node, edges in enumerate(decode(arch or self.arch)[self.reduction]):
            a, b = (self.edges[f"{node}<{source}"][name](states[source]) for name, source in edges)
            states.append(a + b)
        return torch.cat(states[2:], dim=1)


class Network(nn.Module):
    """Super-net (`arch=None`, called `net(x, arch)`) and sub-net (called `net(x)`) of (B, 3, H, W) images.

    channels: C, width of the first cells, doubled in each of the two reduction cells, at one and two thirds of the depth.
    cells: number of cells in all. A sub-net's parameters have the names of the same operations in the super-net.
    """

    to_string = staticmethod(to_string)

    def __init__(self, num_classes, channels=DEFAULTS["channels"], cells=DEFAULTS["cells"], arch=None):
        super().__init__()
        affine = arch is not None
        c_prev_prev = c_prev = 3 * channels
        self.stem = nn.Sequential(nn.Conv2d(3, c_prev, 3, padding=1, bias=False), BatchNorm2d(c_prev, affine=affine))
        self.cells, reduction_prev = nn.ModuleList(), False
        for i in range(cells):
            reduction = i in (cells // 3, 2 * cells // 3)
            channels *= 1 + reduction
            self.cells.append(Cell(c_prev_prev, c_prev, channels, reduction, reduction_prev, arch, affine))
            reduction_prev, c_prev_prev, c_prev = reduction, c_prev, NODES * channels
        self.classifier = nn.Linear(c_prev, num_classes)
        lay_out(self)

    def features(self, x, arch=None):
        """phi(a, w_a): images (B, 3, H, W) -> pooled backbone output (B, classifier.in_features)."""
        before_last = last = self.stem(x)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last, arch)
        return last.mean((2, 3))

    def forward(self, x, arch=None):
        """Images (B, 3, H, W) -> logits (B, num_classes)."""
        return self.classifier(self.features(x, arch))
