"""Train an epoch, evaluate, re-calibrate batch norm, score an architecture. Knows nothing of flags, files or printing."""

import math
import time
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .data import Batches, Normalise, channel_stats
from .runtime import UserError, asked_to_stop, sum_over_ranks, world


def chunk(device):
    """How many images a forward pass takes where nothing is learned: on a CPU so few that they stay in its caches."""
    return 100 if device.type == "cpu" else 1000


def use_batch_statistics(net):
    """Batch norms normalise with the batch and leave their running statistics as they are: for super-nets in training.

    Running statistics would mix all paths, and mean nothing for any.
    """
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False


def sgd(net, lr, momentum, weight_decay):
    """SGD in one fused kernel. A super-net's operations that no path has met yet have a momentum, of zero, which it needs."""
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=weight_decay, fused=True)
    for weight in net.parameters():
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def faster_precision(device):
    """ "bf16" where that makes a convolution and its backward pass a fifth faster on this device, else "fp32"; measured."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # one rank measures, and all build the same net
        x = torch.randn(128, 32, 16, 16, device=device).to(memory_format=torch.channels_last).requires_grad_()
        conv = nn.Conv2d(32, 32, 3, padding=1, bias=False).to(device, memory_format=torch.channels_last)
    seconds = {"fp32": [], "bf16": []}
    for _ in range(7):
        for precision, times in seconds.items():
            begun = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                total = conv(x).float().sum()
            total.backward()
            conv.weight.grad.sum().item()  # waits for a GPU
            times.append(time.perf_counter() - begun)
    return "bf16" if 1.2 * min(seconds["bf16"]) < min(seconds["fp32"]) else "fp32"


class _Backbone(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net.features(images)


def captured(net):
    """A sub-net's `features`, (B, 3, H, W) -> (B, D), as CUDA graphs, one for each shape of batch, captured when first met.

    A step of small kernels takes a GPU less time than Python needs to launch them; a graph is launched as one.
    """
    graphs, pool = {}, torch.cuda.graph_pool_handle()

    def features(images):
        low = torch.is_autocast_enabled("cuda")
        if (images.shape, low) not in graphs:
            before = {name: buffer.clone() for name, buffer in net.named_buffers()}
            with torch.autocast("cuda", torch.bfloat16, enabled=low, cache_enabled=False):
                graphs[images.shape, low] = torch.cuda.make_graphed_callables(
                    _Backbone(net), (images.clone(),), allow_unused_input=True, pool=pool
                )
            for name, buffer in net.named_buffers():  # which capturing, on these very images, has changed
                buffer.copy_(before[name])
        return graphs[images.shape, low](images)

    return features


def compiled(net):
    """A sub-net's `features`, made faster: on a GPU `captured`, else compiled for each shape of batch when it is first met.

    UserError where nothing can compile.
    """
    if next(net.parameters()).is_cuda:
        return captured(net)
    try:
        torch.compile(torch.neg)(next(net.parameters()).detach())
    except Exception as error:  # no C++ compiler, no Triton, and whatever else
        raise UserError(f"--compile does not work on this machine: {str(error).strip().splitlines()[0]}") from None
    torch.compiler.reset()  # its limit of variants is of the code, not of the net
    return torch.compile(net.features, dynamic=False)


def average_gradients(gradients, weight, asked):
    """Turns each rank's gradients of its summed loss into those of the weighted mean over all ranks, in place.

    One flat all-reduce carries the gradients, the rank's sum of weights, so that uneven shares need no special care, and
    whether the rank has been asked to stop. Returns how many have.
    """
    if world() > 1:
        asked = torch.full_like(weight, float(asked))
        flat = sum_over_ranks(torch.cat([*(g.flatten() for g in gradients), weight[None], asked[None]]))
        *parts, weight, asked = flat.split([*(g.numel() for g in gradients), 1, 1])
        torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)])
    torch._foreach_div_(gradients, weight.squeeze())
    return asked


def train_epoch(
    net, batches, epoch, optimizer, class_weights, *,
    path=None, freeze_backbone=False, clip=5.0, precision="fp32", features=None, run=None, criterion=F.cross_entropy,
):  # fmt: skip
    """One pass over `batches`; minimises the weighted cross entropy, sum_i w_i l_i / sum_i w_i over each global batch.

    class_weights: (C,) on the device; ones for the plain loss. path: step -> architecture, for a super-net (Eq. 1).
    freeze_backbone: the backbone runs without autograd and only the classifier learns (Eq. 4).
    clip: the largest norm of the gradient. precision: fp32, or bf16 in the backbone; the classifier and the loss are fp32.
    features: in the place of net.features. criterion: the loss, a function like F.cross_entropy. run: a `runtime.Run`, whose step the epoch begins at and which is told of each.
    Returns {"loss", "accuracy"}, means over the epoch's images on all ranks. UserError names the first step whose loss was
    not finite, or says that the last step broke the weights.
    """
    device, first, features_of = class_weights.device, run.step if run else 0, features or net.features
    totals = torch.zeros(5, dtype=torch.float64, device=device)  # loss, weight, correct, seen, steps before the loss was lost
    if run:
        run.epoch_begins()
        totals += 0 if run.totals is None else run.totals
    for i, (images, labels) in enumerate(batches.epoch(epoch, first), start=first):
        arch = () if path is None else (path((epoch - 1) * len(batches) + i),)
        low = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with torch.set_grad_enabled(not freeze_backbone), low:
            features = features_of(images, *arch)
        logits = net.classifier(features.float())
        loss = criterion(logits, labels, weight=class_weights, reduction="sum")
        weight = class_weights[labels].sum()
        optimizer.zero_grad(set_to_none=True)  # None, so that operations off the path keep weight and momentum
        loss.backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        asked = average_gradients(gradients, weight, asked_to_stop())
        nn.utils.clip_grad_norm_(net.parameters(), clip, foreach=True)
        optimizer.step()
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            one = torch.ones_like(weight)
            totals += torch.stack([loss.detach(), weight, correct, one * len(labels), torch.isfinite(totals[0] + loss) * one])
        if run:
            run.step_done(totals, asked)
    sound = int(totals[4])
    loss, weight, correct, seen, _ = sum_over_ranks(totals).tolist()
    with torch.no_grad():  # the last step may have broken what no loss has seen yet
        whole = torch.stack([torch.isfinite(p).all() for p in net.parameters()]).all().item()
    if math.isfinite(loss) and not whole:
        raise UserError(f"the weights are not finite after epoch {epoch}: a lower --lr or --clip may help")
    if not math.isfinite(loss):
        arch = "" if path is None else f", architecture {net.to_string(path((epoch - 1) * len(batches) + sound))}"
        raise UserError(f"the loss is not finite since epoch {epoch}, step {sound + 1}{arch}: a lower --lr or --clip may help")
    return {"loss": loss / weight, "accuracy": 100 * correct / seen}


class Head(nn.Module):
    """The classifier of a network as a network of its own, whose images are features."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def features(self, features):
        return features


class KeptFeatures:
    """Batches of features in the place of images: what a frozen backbone gave for one whole epoch, each path's with it.

    Iterated as `data.Batches`, (features (B, D) float32, labels (B,) int64), but shuffled over all batches of the epoch that
    they come from, each epoch anew. path: step -> architecture.
    """

    @torch.no_grad()
    def __init__(self, net, batches, epoch, path, precision="fp32"):
        kept, first = [], (epoch - 1) * len(batches)
        for i, (images, labels) in enumerate(batches.epoch(epoch)):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
                kept.append((net.features(images, path(first + i)).float(), labels))
        self.sizes, self.seed = [len(labels) for _, labels in kept], batches.seed
        self.features, self.labels = (torch.cat(parts) for parts in zip(*kept, strict=True))

    def __len__(self):
        return len(self.sizes)

    def epoch(self, epoch, first=0):
        order = np.random.default_rng([self.seed, epoch, 2]).permutation(len(self.labels))
        for batch in torch.from_numpy(order).to(self.labels.device).split(self.sizes)[first:]:
            yield self.features[batch], self.labels[batch]


def average_statistics(net):
    """The running statistics of a sub-net's batch norms become their mean over the ranks, each of which saw its own share."""
    if world() > 1:
        for name, statistic in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                sum_over_ranks(statistic).div_(world())


def chunks_of(images):
    """Splits images evenly into forward passes."""
    return images.tensor_split(math.ceil(len(images) / chunk(images.device)))


def normalised_chunks(images, normalise):
    """uint8 (n, H, W, 3) -> list of float32 (b, 3, H, W), made once for all architectures that are scored on them."""
    return [normalise(chunk) for chunk in chunks_of(images)]


@contextmanager
def exact_products():
    """Inside, a GPU multiplies fp32 as fp32: PyTorch lets its convolutions round to TF32, which is well for training."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@torch.inference_mode()
@exact_products()
def recalibrate(net, chunks, *arch):
    """Rebuilds every batch norm's running statistics as the mean over these chunks of training images (Guo et al. 2020)."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum, module.track_running_stats = None, True  # None: a plain average
    for images in chunks:
        net.features(images, *arch)


@torch.inference_mode()
@exact_products()
def correct_by_class(net, chunks, labels, *arch, adjust=0.0):
    """How many images of each class are classified right: int64 (C,). labels: (n,), of all chunks in order."""
    net.eval()
    right = torch.cat([(net(images, *arch) - adjust).argmax(1) for images in chunks]) == labels
    return torch.bincount(labels[right], minlength=net.classifier.out_features)


def scorer(net, train, val, bn_images, seed):
    """A function from an architecture to the accuracy in % of that path of a super-net, its BN rebuilt first: Acc of Eq. 2.

    train, val: splits on the device. All architectures see the same images, gathered here once: `bn_images` of train for
    the BN statistics, which ones is drawn by seed, and all of val. ValueError if they have more classes than the net.
    """
    classes = net.classifier.out_features
    if max(int(labels.max()) for _, labels in (train, val)) >= classes:
        raise ValueError(f"the super-net knows {classes} classes, and the data have more")
    normalise = Normalise(*channel_stats(train[0]), train[0].shape[2], train[0].device)
    # Augmented, as in training: plain images, which have no black borders, give other statistics and a worse ranking.
    bn_chunks = chunks_of(next(Batches(train, normalise, bn_images, seed).epoch(0))[0])
    val_chunks = normalised_chunks(val[0], normalise)

    def score(arch):
        recalibrate(net, bn_chunks, arch)
        return 100 * correct_by_class(net, val_chunks, val[1], arch).sum().item() / len(val[1])

    return score
