"""Candidate operations of the NATS and DARTS spaces, one line each.

`OPS[name](channels, stride, affine)` is a module: (B, channels, H, W) -> (B, channels, H / stride, W / stride).
Convolutions are ReLU-Conv-BN, as in NATS-Bench (Dong et al. 2021) and DARTS (Liu et al. 2019). `affine` gives batch norms
a learned scale and shift: sub-nets have them, super-nets do not.
"""

import torch
from torch import nn

from .fast import AvgPool3x3, BatchNorm2d


def relu_conv_bn(c_in, c_out, kernel, stride, affine):
    """(B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, BatchNorm2d(c_out, affine=affine))


def depthwise_conv(channels, kernel, stride, dilation, affine):
    """ReLU, depth-wise convolution, point-wise convolution, BN: half of a `sep_conv`, the whole of a `dil_conv`."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        BatchNorm2d(channels, affine=affine),
    )


def sep_conv(channels, kernel, stride, affine):
    return nn.Sequential(depthwise_conv(channels, kernel, stride, 1, affine), depthwise_conv(channels, kernel, 1, 1, affine))


class FactorizedReduce(nn.Module):
    """Halves the resolution: two stride-2 1x1 convolutions, the second shifted one pixel down and right (DARTS).

    DARTS strides the convolutions; here the pixels are picked first, which computes the same. Strided 1x1 convolutions of
    the shifted image corrupt the heap in the backward pass on a CPU with two threads (PyTorch 2.14.1).
    """

    def __init__(self, c_in, c_out, affine):
        super().__init__()
        self.conv_even = nn.Conv2d(c_in, c_out // 2, 1, bias=False)
        self.conv_odd = nn.Conv2d(c_in, c_out - c_out // 2, 1, bias=False)
        self.bn = BatchNorm2d(c_out, affine=affine)

    def forward(self, x):
        x = torch.relu(x)
        return self.bn(torch.cat([self.conv_even(x[:, :, ::2, ::2]), self.conv_odd(x[:, :, 1::2, 1::2])], dim=1))


# `none` has no entry: a cell leaves such an edge out instead of adding zeros.
OPS = {
    "skip_connect": lambda c, stride, affine: nn.Identity() if stride == 1 else FactorizedReduce(c, c, affine),
    "avg_pool_3x3": lambda c, stride, affine: AvgPool3x3(stride),
    "max_pool_3x3": lambda c, stride, affine: nn.MaxPool2d(3, stride, 1),
    "nor_conv_1x1": lambda c, stride, affine: relu_conv_bn(c, c, 1, stride, affine),
    "nor_conv_3x3": lambda c, stride, affine: relu_conv_bn(c, c, 3, stride, affine),
    "sep_conv_3x3": lambda c, stride, affine: sep_conv(c, 3, stride, affine),
    "sep_conv_5x5": lambda c, stride, affine: sep_conv(c, 5, stride, affine),
    "dil_conv_3x3": lambda c, stride, affine: depthwise_conv(c, 3, stride, 2, affine),
    "dil_conv_5x5": lambda c, stride, affine: depthwise_conv(c, 5, stride, 2, affine),
}
