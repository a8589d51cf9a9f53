"""ResNet-32 for 32x32 images (He et al. 2016, section 4.2), the backbone of most long-tailed CIFAR tables.

A space of one member, whose architecture string is `resnet32`: three stages of five residual blocks, 16, 32 and 64 channels,
with identity shortcuts that are padded with zero channels (option A).
"""

import torch
import torch.nn.functional as F
from torch import nn

from .fast import BatchNorm2d

CHOICES = (1,)
LIGHTEST = (0,)
DEFAULTS = {"channels": 16, "cells": 5}  # cells: residual blocks per stage


def to_string(arch):
    return "resnet32"


def from_string(text):
    if text.strip() != "resnet32":
        raise ValueError(f"unknown architecture '{text}': this space has only 'resnet32'")
    return (0,)


class Block(nn.Module):
    """Two 3x3 convolutions with an identity shortcut around them: (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""

    def __init__(self, c_in, c_out, stride, affine):
        super().__init__()
        self.stride, before = stride, (c_out - c_in) // 2
        self.padding = before, c_out - c_in - before  # channels of zeros
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(c_out, affine=affine)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm2d(c_out, affine=affine)

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if any(self.padding):
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))
        return F.relu(out + x)


class Network(nn.Module):
    """(B, 3, H, W) images -> (B, num_classes) logits. 464,154 parameters at 10 classes."""

    def __init__(self, num_classes, channels=DEFAULTS["channels"], cells=DEFAULTS["cells"], arch=None):
        super().__init__()
        affine = arch is not None
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), BatchNorm2d(channels, affine=affine))
        self.blocks, c_in = nn.Sequential(), channels
        for c_out in [channels] * cells + [2 * channels] * cells + [4 * channels] * cells:
            self.blocks.append(Block(c_in, c_out, c_out // c_in, affine))
            c_in = c_out
        self.classifier = nn.Linear(c_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):  # both, as in the code of Cao et al. 2019
                nn.init.kaiming_normal_(module.weight)
        self.to(memory_format=torch.channels_last)  # what tensor cores need

    def features(self, x, arch=None):
        """Pooled backbone output, (B, 4 * channels)."""
        return self.blocks(F.relu(self.stem(x))).mean((2, 3))

    def forward(self, x, arch=None):
        return self.classifier(self.features(x))
