"""Faster layers with the same results. Skip this file to follow the method; `benchmark.py` shows the gains."""

import functools

import torch
import torch.nn.functional as F
from torch import nn


def _as_row(values, width):
    """(C,) -> (1, C, 1, width), channels-last: per-channel operations then take width * C numbers at a time instead of C."""
    return values.view(1, -1, 1, 1).expand(1, -1, 1, width).contiguous(memory_format=torch.channels_last)


class _Standardise(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias. The backward pass treats mean and variance as statistics of x."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, eps):
        ctx.eps, inverse = eps, (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        scale = inverse if weight is None else weight * inverse
        shift = -mean * scale if bias is None else bias - mean * scale
        return torch.addcmul(_as_row(shift, x.shape[3]), x, _as_row(scale, x.shape[3]))

    @staticmethod
    def backward(ctx, gradient):
        x, weight, mean, inverse = ctx.saved_tensors
        wanted = [True, weight is not None, weight is not None]
        backward = torch.ops.aten.native_batch_norm_backward
        gradients = backward(gradient, x, weight, None, None, mean, inverse, True, ctx.eps, wanted)
        return *gradients, None, None, None


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with the same parameters and buffers, faster on a CPU in fp32.

    Re-calibrated statistics (momentum None) do not depend on the number of threads.
    """

    def forward(self, x):
        # `_Standardise` differentiates through batch statistics, which evaluation with gradients must not do.
        if x.device.type != "cpu" or x.dtype != torch.float32 or (torch.is_grad_enabled() and not self.training):
            return super().forward(x)
        mean, var = self._batch_statistics(x) if self.training else (self.running_mean, self.running_var)
        return _Standardise.apply(x, self.weight, self.bias, mean, var, self.eps)

    def _batch_statistics(self, x):
        """Mean and biased variance of the batch, two (C,); running statistics are updated if they are tracked."""
        b, c, h, w = x.shape
        rows = x.detach().permute(0, 2, 3, 1).reshape(b * h, w * c)
        if self.momentum is None:
            mean = rows.mean(0).view(w, c).mean(0)
            var = (rows - mean.repeat(w)).square_().mean(0).view(w, c).mean(0)
        else:
            means, variances = (s.view(w, c) for s in torch.batch_norm_update_stats(rows, None, None, 0.0))
            var, mean = torch.var_mean(means, 0, correction=0)
            var += variances.mean(0)  # variance between the columns plus variance within them
        if self.track_running_stats:
            self.num_batches_tracked += 1
            share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * (b * h * w / max(b * h * w - 1, 1)), share)
        return mean, var


@functools.cache
def _pooling(c, h, w, stride, dtype, device):
    """A 3x3 window of ones (C, 1, 3, 3), and 1 / the number of pixels in each window, (1, C, H / stride, W / stride)."""
    with torch.inference_mode(False):  # what scoring caches must be usable in training
        pixels = F.conv2d(torch.ones(1, 1, h, w), torch.ones(1, 1, 3, 3), stride=stride, padding=1)
        inverse = pixels.reciprocal().expand(1, c, -1, -1).to(device, dtype)
        ones = torch.ones(c, 1, 3, 3, dtype=dtype, device=device)
        return ones, inverse.contiguous(memory_format=torch.channels_last)


class AvgPool3x3(nn.Module):
    """nn.AvgPool2d(3, stride, 1, count_include_pad=False), as a depth-wise convolution with ones.

    PyTorch's pooling of channels-last tensors takes three times as long on a CPU and six times on a GPU.
    """

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        if x.is_meta:  # multiply-accumulates are being counted, and pooling has none
            return F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)
        ones, inverse = _pooling(*x.shape[1:], self.stride, x.dtype, x.device)
        return F.conv2d(x, ones, stride=self.stride, padding=1, groups=x.shape[1]) * inverse


class _Backbone(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net.features(images)


def captured(net):
    """A sub-net's `features`, (B, 3, H, W) -> (B, D), as CUDA graphs, one for each batch shape. ValueError without a GPU.

    Launching a sub-net's small kernels takes Python longer than the GPU needs to run them. A graph launches them all at once.
    """
    if not next(net.parameters()).is_cuda:
        raise ValueError("--cuda-graphs needs a GPU, and this run is on a CPU: leave it out")
    graphs, pool = {}, torch.cuda.graph_pool_handle()

    def features(images):
        bf16 = torch.is_autocast_enabled("cuda")
        if (images.shape, bf16) not in graphs:
            before = [buffer.clone() for buffer in net.buffers()]
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16, cache_enabled=False):
                graphs[images.shape, bf16] = torch.cuda.make_graphed_callables(
                    _Backbone(net), (images.clone(),), allow_unused_input=True, pool=pool
                )
            for buffer, value in zip(net.buffers(), before, strict=True):  # capturing changed the BN statistics
                buffer.copy_(value)
        return graphs[images.shape, bf16](images)

    return features
