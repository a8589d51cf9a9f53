"""The space of single-path one-shot NAS (Guo et al. 2020), whose search the paper follows: twenty blocks of four kinds.

A block is that of ShuffleNet-v2 (Ma et al. 2018) with a depth-wise kernel of 3, 5 or 7, or `x`, like Xception, with three
depth-wise 3x3 convolutions. An architecture is twenty genes, and as a string twenty tokens: `3-3-5-x-...`. The layout is for
32x32 images.
"""

import math

import torch
from torch import nn

from .fast import BatchNorm2d

KINDS = ("3", "5", "7", "x")
STAGES = (4, 4, 8, 4)  # genes, one for each block
WIDTHS = (1, 2.5, 5, 10)  # of the stages, in units of `channels`
CHOICES = (len(KINDS),) * sum(STAGES)
LIGHTEST = tuple(3 if gene in (4, 8) else 0 for gene in range(sum(STAGES)))  # `x` strides before its 1x1
DEFAULTS = {"channels": 64, "cells": 4}  # cells: blocks of a stage; the third has twice as many


def to_string(arch):
    """Twenty genes -> string."""
    return "-".join(KINDS[gene] for gene in arch)


def from_string(text):
    """A string -> twenty genes. ValueError names the token that is wrong."""
    tokens = text.strip().split("-")
    if len(tokens) != len(CHOICES):
        raise ValueError(f"a ShuffleNet architecture has {len(CHOICES)} tokens joined by '-', this has {len(tokens)}: '{text}'")
    if unknown := set(tokens) - set(KINDS):
        raise ValueError(f"unknown block '{min(unknown)}': choose from {', '.join(KINDS)}")
    return tuple(map(KINDS.index, tokens))


def _even(width):
    return 2 * math.ceil(width / 2)  # half of the channels are the shortcut


def point_wise(c_in, c_out, affine):
    return [nn.Conv2d(c_in, c_out, 1, bias=False), BatchNorm2d(c_out, affine=affine), nn.ReLU()]


def depth_wise(channels, kernel, stride, affine):
    conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
    return [conv, BatchNorm2d(channels, affine=affine)]


class Block(nn.Module):
    """(B, c_in, H, W) -> (B, c_out, H / stride, W / stride). Some channels are computed, the rest a shortcut.

    At stride 1 even channels of the input are the shortcut and odd ones feed `main`, which is split and shuffle in one.
    At stride 2 both come from all channels.
    """

    def __init__(self, c_in, c_out, stride, kind, affine):
        super().__init__()
        c_in, middle = c_in if stride == 2 else c_in // 2, c_out // 2
        kernel, c_new = 3 if kind == "x" else int(kind), c_out - c_in
        if kind == "x":
            layers = depth_wise(c_in, 3, stride, affine) + point_wise(c_in, middle, affine)
            layers += depth_wise(middle, 3, 1, affine) + point_wise(middle, middle, affine) + depth_wise(middle, 3, 1, affine)
        else:
            layers = point_wise(c_in, middle, affine) + depth_wise(middle, kernel, stride, affine)
        self.main = nn.Sequential(*layers, *point_wise(middle, c_new, affine))
        self.shortcut = None
        if stride == 2:
            self.shortcut = nn.Sequential(*depth_wise(c_in, kernel, 2, affine), *point_wise(c_in, c_in, affine))

    def forward(self, x):
        if self.shortcut is None:
            return torch.cat([x[:, ::2], self.main(x[:, 1::2])], dim=1)
        return torch.cat([self.shortcut(x), self.main(x)], dim=1)


class Network(nn.Module):
    """Super-net (`arch=None`, called `net(x, arch)`) and sub-net (called `net(x)`) of (B, 3, H, W) images.

    channels: C, width of the first stage; all widths are rounded up to even ones. cells: blocks of a stage, twice as many in
    the third. With fewer than 4, the last genes of a stage are not read, and with more they are read again. LIGHTEST is exact
    with at most 4 cells and at least 10 channels; otherwise it is close. A sub-net's parameters have the names of the same
    blocks in the super-net.
    """

    def __init__(self, num_classes, channels=DEFAULTS["channels"], cells=DEFAULTS["cells"], arch=None):
        super().__init__()
        affine, c_in, last = arch is not None, _even(channels / 4), 16 * channels
        self.arch, self.genes, self.blocks = arch, [], nn.ModuleList()
        self.stem = nn.Sequential(nn.Conv2d(3, c_in, 3, padding=1, bias=False), BatchNorm2d(c_in, affine=affine), nn.ReLU())
        for stage, genes in enumerate(STAGES):
            c_out = _even(WIDTHS[stage] * channels)
            for block in range(cells * genes // 4):
                self.genes.append(sum(STAGES[:stage]) + block % genes)
                stride = 2 if block == 0 and stage in (1, 2) else 1
                kinds = KINDS if arch is None else (KINDS[arch[self.genes[-1]]],)
                self.blocks.append(nn.ModuleDict({kind: Block(c_in, c_out, stride, kind, affine) for kind in kinds}))
                c_in = c_out
        self.last = nn.Sequential(*point_wise(c_in, last, affine))
        self.classifier = nn.Linear(last, num_classes)
        self.to(memory_format=torch.channels_last)  # what tensor cores need

    def features(self, x, arch=None):
        """phi(a, w_a): images (B, 3, H, W) -> pooled backbone output (B, 16 C)."""
        x, arch = self.stem(x), arch or self.arch
        for gene, block in zip(self.genes, self.blocks, strict=True):
            x = block[KINDS[arch[gene]]](x)
        return self.last(x).mean((2, 3))

    def forward(self, x, arch=None):
        """Images (B, 3, H, W) -> logits (B, num_classes)."""
        return self.classifier(self.features(x, arch))
