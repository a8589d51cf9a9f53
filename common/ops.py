"""Candidate operations of both search spaces, one line each.

`OPS[name](channels, stride, affine)` is a module: (batch, channels, H, W) -> (batch, channels, H / stride, W / stride).
Convolutions are ReLU-Conv-BN, as in NATS-Bench (Dong et al. 2021) and DARTS (Liu et al. 2019); `affine` gives their
batch norms a learned scale and shift (sub-nets have them, super-nets do not).
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn


def _a_row(numbers, width):
    """(C,) -> (1, C, 1, width), channels-last: to go over images width * C numbers at a time, and not C at a time.

    That makes an operation with one number a channel two to three times as fast on a CPU where channels are few.
    """
    return numbers.view(1, -1, 1, 1).expand(1, -1, 1, width).contiguous(memory_format=torch.channels_last)


class _Standardise(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias, with the backward pass of a batch norm that took both from x."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, eps):
        ctx.eps, inverse = eps, (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        scale = inverse if weight is None else weight * inverse
        shift = -mean * scale if bias is None else bias - mean * scale
        return torch.addcmul(_a_row(shift, x.shape[3]), x, _a_row(scale, x.shape[3]))

    @staticmethod
    def backward(ctx, gradient):
        x, weight, mean, inverse = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse, True, ctx.eps, [True, weight is not None, weight is not None]
        )
        return of_x, of_weight, of_bias, None, None, None


@functools.cache
def _one_and_zero(channels, device):
    with torch.inference_mode(False):
        return torch.ones(channels, device=device), torch.zeros(channels, device=device)


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's, down to the names in a checkpoint, with a faster forward pass on a CPU, in fp32, and in super-nets on a GPU.

    Statistics of a re-calibration (momentum None) do not depend on the number of threads.
    """

    def reset_running_stats(self):
        super().reset_running_stats()
        self.averaged = 0  # batches of a re-calibration; to ask a GPU for `num_batches_tracked` would be to wait for it

    def forward(self, x):
        if x.is_cuda and self.training and not self.affine and not torch.compiler.is_compiling():
            statistics = (None, None)
            if self.track_running_stats:
                self.averaged += 1
                statistics = self.running_mean, self.running_var
            share = 1 / max(self.averaged, 1) if self.momentum is None else self.momentum
            # cuDNN takes two kernels each way where PyTorch's own takes four and three, but wants a scale and a shift.
            return F.batch_norm(x, *statistics, *_one_and_zero(x.shape[1], x.device), True, share, self.eps)
        elsewhere = x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling()
        if elsewhere or (torch.is_grad_enabled() and not self.training):  # `_Standardise` takes the statistics for x's own
            return super().forward(x)
        b, c, h, w = x.shape
        rows = x.detach().permute(0, 2, 3, 1).reshape(b * h, w * c)
        if not self.training:
            mean, var = self.running_mean, self.running_var
        elif self.momentum is None:
            mean = rows.mean(0).view(w, c).mean(0)
            var = (rows - mean.repeat(w)).square_().mean(0).view(w, c).mean(0)
        else:
            means, vars_ = (s.view(w, c) for s in torch.batch_norm_update_stats(rows, None, None, 0.0))
            var, mean = torch.var_mean(means, 0, correction=0)
            var += vars_.mean(0)  # within the columns, and between them
        if self.training and self.track_running_stats:
            self.num_batches_tracked += 1
            share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * (b * h * w / max(b * h * w - 1, 1)), share)
        return _Standardise.apply(x, self.weight, self.bias, mean, var, self.eps)


def relu_conv_bn(c_in, c_out, kernel, stride=1, affine=True):
    """(B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
        BatchNorm2d(c_out, affine=affine),
    )


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


def _shares(c, h, w, stride, dtype, device):
    """(1, C, H / stride, W / stride), channels-last: 1 / the pixels of each 3x3 window that lie inside the image."""
    inside = F.conv2d(torch.ones(1, 1, h, w), torch.ones(1, 1, 3, 3), stride=stride, padding=1)
    return inside.reciprocal().expand(1, c, -1, -1).to(device, dtype).contiguous(memory_format=torch.channels_last)


def _ones(c, dtype, device):
    return torch.ones(c, 1, 3, 3, dtype=dtype, device=device)


_kept_shares, _kept_ones = functools.cache(_shares), functools.cache(_ones)


class AvgPool3x3(nn.Module):
    """Mean over the pixels of a 3x3 window that lie inside the image.

    PyTorch's own pooling of channels-last tensors takes three times as long as a depth-wise convolution with ones on a CPU,
    and six times on a GPU.
    """

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        if x.is_meta:  # where multiply-accumulates are counted, and this is not to look like a convolution
            return F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)
        c, h, w = x.shape[1:]
        ones, shares = (_ones, _shares) if torch.compiler.is_compiling() else (_kept_ones, _kept_shares)
        with torch.inference_mode(False):  # else what scoring keeps could not be used in training
            weight, share = ones(c, x.dtype, x.device), shares(c, h, w, self.stride, x.dtype, x.device)
        return F.conv2d(x, weight, stride=self.stride, padding=1, groups=c) * share


class FactorizedReduce(nn.Module):
    """Halves the resolution without a strided identity's blind spots: two 1x1 convolutions, one pixel apart (DARTS).

    DARTS strides the convolutions; here the pixels are picked first, which is the same: strided 1x1 convolutions of the
    shifted image corrupt the heap in the backward pass on a CPU with two threads (PyTorch 2.14.1).
    """

    def __init__(self, c_in, c_out, affine=True):
        super().__init__()
        self.conv_even = nn.Conv2d(c_in, c_out // 2, 1, bias=False)
        self.conv_odd = nn.Conv2d(c_in, c_out - c_out // 2, 1, bias=False)
        self.bn = BatchNorm2d(c_out, affine=affine)

    def forward(self, x):
        x = torch.relu(x)
        return self.bn(torch.cat([self.conv_even(x[:, :, ::2, ::2]), self.conv_odd(x[:, :, 1::2, 1::2])], dim=1))


def skip_connect(channels, stride, affine):
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


# `none` has no entry: a cell leaves such an edge out instead of adding zeros.
OPS = {
    "skip_connect": skip_connect,
    "avg_pool_3x3": lambda c, stride, affine: AvgPool3x3(stride),
    "max_pool_3x3": lambda c, stride, affine: nn.MaxPool2d(3, stride, 1),
    "nor_conv_1x1": lambda c, stride, affine: relu_conv_bn(c, c, 1, stride, affine),
    "nor_conv_3x3": lambda c, stride, affine: relu_conv_bn(c, c, 3, stride, affine),
    "sep_conv_3x3": lambda c, stride, affine: sep_conv(c, 3, stride, affine),
    "sep_conv_5x5": lambda c, stride, affine: sep_conv(c, 5, stride, affine),
    "dil_conv_3x3": lambda c, stride, affine: depthwise_conv(c, 3, stride, 2, affine),
    "dil_conv_5x5": lambda c, stride, affine: depthwise_conv(c, 5, stride, 2, affine),
}
