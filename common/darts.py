"""The DARTS space (Liu et al. 2019): a normal and a reduction cell of four nodes, each with two distinct inputs.

An architecture is 24 genes, three per node: the pair of inputs, then the operation on each. All combinations of gene values
are legal, so sampling, mutation and crossover need no repair. As a string:

    |op~input|op~input|+|..|..|+|..|..|+|..|..|//|the reduction cell, in the same form|

Inputs 0 and 1 are the two previous cells, 2.. the cell's own nodes. A node's inputs are written in ascending order.
"""

import ast
import re
from itertools import combinations

import torch
from torch import nn

from .fast import BatchNorm2d
from .ops import OPS, FactorizedReduce, relu_conv_bn

OPERATIONS = (
    "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip
NODES = 4
PAIRS = tuple(tuple(combinations(range(2 + node), 2)) for node in range(NODES))  # of inputs, for each node
CHOICES = tuple(n for node in range(NODES) for n in (len(PAIRS[node]), len(OPERATIONS), len(OPERATIONS))) * 2
CONVOLUTIONS = {gene: (3, 4, 5, 6) for gene in range(len(CHOICES)) if gene % 3}  # which values of a gene are convolutions
LIGHTEST = (0,) * len(CHOICES)  # nothing but pooling
DEFAULTS = {"channels": 36, "cells": 20}


def decode(arch):
    """24 genes -> (normal, reduction): for each of four nodes two (operation, input)."""
    nodes = []
    for i in range(0, len(CHOICES), 3):
        one, other = PAIRS[i // 3 % NODES][arch[i]]
        nodes.append(((OPERATIONS[arch[i + 1]], one), (OPERATIONS[arch[i + 2]], other)))
    return tuple(nodes[:NODES]), tuple(nodes[NODES:])


def to_string(arch):
    """24 genes -> string."""
    return "//".join("+".join("|" + "".join(f"{n}~{s}|" for n, s in node) for node in cell) for cell in decode(arch))


def from_string(text):
    """A string, or a `Genotype(...)` literal as DARTS prints it -> 24 genes. ValueError names the token that is wrong.

    A node's two tokens may come in either order.
    """
    text = _from_genotype(text) if text.strip().startswith("Genotype") else text.strip()
    cell = r"\+".join([r"\|([^|]*)\|([^|]*)\|"] * NODES)
    match = re.fullmatch(f"{cell}//{cell}", text)
    if not match:
        form = f"'cell//cell', where a cell is {NODES} nodes '|op~input|op~input|' joined by '+'"
        raise ValueError(f"a DARTS architecture must read {form}, not '{text}'")
    arch = []
    for i in range(2 * NODES):
        node, tokens = i % NODES, match.groups()[2 * i : 2 * i + 2]
        edges = {f"{op}~{source}": (source, OPERATIONS.index(op)) for op in OPERATIONS for source in range(2 + node)}
        for token in tokens:
            if token not in edges:
                need = f"an input from 0 to {node + 1} and an operation of {', '.join(OPERATIONS)}"
                raise ValueError(f"token '{token}' of node {node} must read 'op~input' with {need}")
        (one, first), (other, second) = sorted(edges[token] for token in tokens)
        if one == other:
            raise ValueError(f"the two inputs of a node must be distinct, not '|{'|'.join(tokens)}|'")
        arch += [PAIRS[node].index((one, other)), first, second]
    return tuple(arch)


def _from_genotype(text):
    """A `Genotype(...)` literal -> string."""
    try:
        fields = {k.arg: ast.unparse(k.value) for k in ast.parse(text.strip(), mode="eval").body.keywords}
        concat, cells = {fields["normal_concat"], fields["reduce_concat"]}, []
        for edges in (ast.literal_eval(fields[kind]) for kind in ("normal", "reduce")):
            tokens = [f"{op}~{source}" for op, source in edges]
            cells.append("+".join(f"|{one}|{other}|" for one, other in zip(tokens[::2], tokens[1::2], strict=True)))
    except Exception:  # ast raises SyntaxError, ValueError, RecursionError, MemoryError
        form = "Genotype(normal=[(op, input), ...], normal_concat=..., reduce=[...], reduce_concat=...)"
        raise ValueError(f"not a DARTS genotype of the form {form}") from None
    if not concat <= {"[2, 3, 4, 5]", "range(2, 6)"}:
        raise ValueError(f"the genotype concatenates {' and '.join(sorted(concat))}: only nodes 2 to 5 are supported")
    return "//".join(cells)


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
        self.to(memory_format=torch.channels_last)  # what tensor cores need

    def features(self, x, arch=None):
        """phi(a, w_a): images (B, 3, H, W) -> pooled backbone output (B, classifier.in_features)."""
        before_last = last = self.stem(x)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last, arch)
        return last.mean((2, 3))

    def forward(self, x, arch=None):
        """Images (B, 3, H, W) -> logits (B, num_classes)."""
        return self.classifier(self.features(x, arch))
