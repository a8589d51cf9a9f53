"""Train an epoch, re-calibrate batch norm, evaluate. Does not read flags or files and prints nothing."""

import math
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .runtime import UserError, all_finite, sum_over_ranks, world


def use_batch_statistics(net):
    """Batch norms normalise with the batch and leave their running statistics alone: for super-nets in training.

    Running statistics would mix all paths and fit none.
    """
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False


def sgd(net, lr, momentum, weight_decay):
    """torch.optim.SGD, fused."""
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=weight_decay, fused=True)
    for weight in net.parameters():
        # Fused SGD needs a momentum buffer for every parameter, also for operations that no path has used yet.
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def average_gradients(gradients, weight):
    """Turns each rank's gradients of its summed loss into those of the weighted mean over all ranks, in place."""
    if world() > 1:  # one all-reduce carries the gradients and the sum of weights, so that shares may be uneven
        flat = sum_over_ranks(torch.cat([*(g.flatten() for g in gradients), weight[None]]))
        *parts, weight = flat.split([*(g.numel() for g in gradients), 1])
        torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)])
    torch._foreach_div_(gradients, weight.squeeze())


def train_epoch(
    net, batches, epoch, optimizer, class_weights, *,
    loss=F.cross_entropy, paths=None, freeze_backbone=False, clip=5.0, precision="fp32", backbone=None,
):  # fmt: skip
    """One pass over `batches`; minimises the weighted loss, sum_i w_i l_i / sum_i w_i over each global batch.

    class_weights: (C,) on the device; ones for the plain loss. loss: called like F.cross_entropy. paths: step -> architectures,
    for a super-net (Eq. 1); each learns from its share of the batch. freeze_backbone: the backbone runs without autograd and
    only the classifier learns (Eq. 4). clip: largest norm of the gradient. precision: fp32, or bf16 in the backbone; classifier
    and loss are always fp32. backbone: called instead of net.features. Returns {"loss", "accuracy"}, means over the epoch's
    images on all ranks. UserError if the loss or a weight is no longer finite.
    """
    device, backbone = class_weights.device, backbone or net.features
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # loss, weight, correct, images
    for step, (images, labels) in enumerate(batches.epoch(epoch), start=(epoch - 1) * len(batches)):
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with torch.set_grad_enabled(not freeze_backbone), bf16:
            features = on_paths(backbone, images, paths(step)) if paths else backbone(images)
        logits = net.classifier(features.float())
        batch_loss = loss(logits, labels, weight=class_weights, reduction="sum")
        weight = class_weights[labels].sum()
        optimizer.zero_grad(set_to_none=True)  # None, so that operations off the path keep weight and momentum
        batch_loss.backward()
        average_gradients([p.grad for p in net.parameters() if p.grad is not None], weight)
        nn.utils.clip_grad_norm_(net.parameters(), clip, foreach=True)
        optimizer.step()
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            totals += torch.stack([batch_loss.detach(), weight, correct, torch.full_like(weight, len(labels))])
    total_loss, weight, correct, seen = sum_over_ranks(totals).tolist()
    if not math.isfinite(total_loss) or not all_finite(dict(net.named_parameters())):
        raise UserError(f"loss or weights are not finite after epoch {epoch}: a lower --lr or --clip may help")
    return {"loss": total_loss / weight, "accuracy": 100 * correct / seen}


def on_paths(backbone, images, archs):
    """(B, D) features of the images, in their order. Each architecture computes those of an equal share."""
    shares = images.tensor_split(len(archs))
    return torch.cat([backbone(share, arch) for share, arch in zip(shares, archs, strict=True)])


class CachedFeatures:
    """The features that a frozen backbone computes in one epoch, each batch on its own paths.

    Iterated like `data.Batches`: (features (B, D) float32, labels (B,) int64), reshuffled every epoch, so a batch mixes paths.
    """

    @torch.no_grad()
    def __init__(self, net, batches, epoch, paths, precision="fp32"):
        kept = []
        for step, (images, labels) in enumerate(batches.epoch(epoch), (epoch - 1) * len(batches)):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
                kept.append((on_paths(net.features, images, paths(step)).float(), labels))
        self.sizes, self.seed = [len(labels) for _, labels in kept], batches.seed
        self.features, self.labels = (torch.cat(parts) for parts in zip(*kept, strict=True))

    def __len__(self):
        return len(self.sizes)

    def epoch(self, epoch):
        order = np.random.default_rng([self.seed, epoch, 2]).permutation(len(self.labels))
        for batch in torch.from_numpy(order).to(self.labels.device).split(self.sizes):
            yield self.features[batch], self.labels[batch]


def average_statistics(net):
    """Averages a sub-net's BN running statistics over ranks, each of which has seen only its share of every batch."""
    if world() > 1:
        for name, statistic in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                sum_over_ranks(statistic).div_(world())


def chunks_of(images):
    """Splits images evenly, one chunk per forward pass. On a CPU a chunk fits its caches."""
    size = 100 if images.device.type == "cpu" else 1000
    return images.tensor_split(max(1, math.ceil(len(images) / size)))  # a rank may have none


def normalised_chunks(images, normalise):
    """uint8 (n, H, W, 3) -> list of float32 (b, 3, H, W), made once for all architectures that are scored on them."""
    return [normalise(chunk) for chunk in chunks_of(images)]


@contextmanager
def no_tf32():
    """In the block a GPU multiplies in fp32. Elsewhere PyTorch rounds convolutions to TF32, which is fine for training."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@torch.inference_mode()
@no_tf32()
def recalibrate(net, chunks, *arch):
    """Rebuilds all BN running statistics as the mean over these chunks of training images (Guo et al. 2020)."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.track_running_stats = None, True  # None: a plain average
            module.reset_running_stats()
    for images in chunks:
        net.features(images, *arch)


@torch.inference_mode()
@no_tf32()
def correct_by_class(net, chunks, labels, *arch, adjust=lambda logits: logits):
    """Number of correctly classified images of each class, int64 (C,). labels: (n,), of all chunks in order.

    adjust: changes the logits before the largest is taken, as `losses.adjust_logits` does.
    """
    net.eval()
    correct = torch.cat([adjust(net(images, *arch)).argmax(1) for images in chunks]) == labels
    return torch.bincount(labels[correct], minlength=net.classifier.out_features)


def accuracies(correct, images, counts):
    """{all, balanced, many, medium, few} in %: over all images, and means over classes: of all, and of the groups of Table 6.

    correct, images, counts: per class, correctly classified images, evaluated images, training images. Many, medium and few
    are classes of > 100, 20-100 and < 20 training images; None where there is no such class.
    """
    per_class = 100 * correct.double() / images
    groups = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    means = {name: per_class[mask].mean().item() if mask.any() else None for name, mask in groups.items()}
    return {"all": 100 * correct.sum().item() / images.sum().item(), "balanced": per_class.mean().item(), **means}
