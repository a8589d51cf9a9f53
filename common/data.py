"""Datasets that live on the device: reading, hold-out, the long-tail draw, and augmented batches.

Needs nothing else of this repo; copy the file to use it. The long-tail draw alone:

    counts = long_tail_counts([5000] * 10, ratio=100)              # 5000, 2997, ..., 50
    indices = long_tail_indices(labels, ratio=100, seed=0)         # into a dataset with those labels

A split is a pair (images, labels): uint8 (n, H, W, 3) and int64 (n,). Wrong arguments raise ValueError.
"""

import importlib
import os
from contextlib import nullcontext, suppress
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

CLASSES = {"cifar10": 10, "cifar100": 100, "synthetic10": 10, "synthetic100": 100}
PADDING = 4  # zero pixels on each side before the random crop, as in He et al. 2016


def long_tail_counts(sizes, ratio):
    """Images kept of each class: int(n_c * mu^c), at least 1, with mu = ratio^(-1 / (C - 1)) (section 4.1; Cui et al. 2019).

    sizes: number of images of each of the C classes. ratio: size of the largest class over that of the smallest, >= 1.
    """
    if not ratio >= 1:
        raise ValueError(f"the imbalance ratio must be at least 1, not {ratio:g}")
    last = max(len(sizes) - 1, 1)
    # The factor undoes rounding: 32 ** (4 / 5) is 16.000000000000004, which would turn 2 images of 32 into 1.
    return [min(n, max(1, int(n / ratio ** (c / last) * (1 + 1e-12)))) for c, n in enumerate(sizes)]


def long_tail_indices(labels, ratio, seed):
    """Sorted indices of a long-tailed subset of a dataset with these integer labels (n,). The seed chooses the images.

    With the same seed, the subset at a higher ratio is contained in the one at a lower ratio.
    """
    labels = np.asarray(labels)
    counts = long_tail_counts(np.bincount(labels), ratio)
    return np.sort(np.concatenate([_shuffled(labels, c, seed)[:n] for c, n in enumerate(counts)]))


def hold_out(labels, per_class, seed):
    """(rest, held_out): sorted indices, with `per_class` images of every class held out. ValueError if a class is too small."""
    labels = np.asarray(labels)
    smallest = np.bincount(labels).min()
    if not 0 <= per_class < smallest:
        raise ValueError(f"cannot hold out {per_class} images per class: the smallest class has {smallest}")
    held_out = np.concatenate([_shuffled(labels, c, seed)[:per_class] for c in range(labels.max() + 1)])
    return np.setdiff1d(np.arange(len(labels)), held_out), np.sort(held_out)


def _shuffled(labels, c, seed):
    return np.random.default_rng([seed, c]).permutation(np.flatnonzero(labels == c))


def class_sizes(name, split):
    """Number of images of each class in "train" or "val", before any draw, without reading an image."""
    if name in CLASSES:
        return [(50000 if split == "train" else 10000) // CLASSES[name]] * CLASSES[name]
    return np.bincount(_list_folder(name, split)[1]).tolist()


def load(splits, dataset, imbalance=1.0, data_seed=0, val_per_class=0, image_size=32, root="data", device="cpu"):
    """The named splits of a dataset, on the device, as a list of pairs (images, labels).

    train: the training pool less the hold-out, then long-tailed. val: the hold-out of `val_per_class` images per class, or
    the test split if that is 0, as in the paper. test: the dataset's own (a folder's val/), read only if asked for.
    dataset: cifar10, cifar100, synthetic10, synthetic100, or a folder of train/<class>/* and val/<class>/* images.
    """
    open_pool, loaded = cache(lambda pool: _open(dataset, pool, root, image_size)), []
    for split in splits:
        pool = "val" if split == "test" or (split == "val" and not val_per_class) else "train"
        labels, fetch = open_pool(pool)
        indices = np.arange(len(labels))
        if pool == "train":
            rest, held_out = hold_out(labels, val_per_class, data_seed)
            indices = held_out if split == "val" else rest[long_tail_indices(labels[rest], imbalance, data_seed)]
        loaded.append((fetch(indices).to(device), torch.from_numpy(labels[indices]).to(device)))
    return loaded


def _open(name, split, root, size):
    """All labels of a split, numpy (n,), and a function from indices (k,) to uint8 images (k, size, size, 3)."""
    if name in ("cifar10", "cifar100"):
        import torchvision  # here, not above: importing it takes as long as importing torch
        from torchvision.transforms.functional import resize

        try:
            with _download_lock(root):
                source = getattr(torchvision.datasets, name.upper())(root, train=split == "train", download=True)
        except Exception as error:  # of the network, a server or the disk
            raise ValueError(f"cannot download {name} into '{root}': {error}") from None

        def fetch(indices):
            images = torch.from_numpy(source.data[indices]).permute(0, 3, 1, 2)
            return resize(images, [size, size]).permute(0, 2, 3, 1).contiguous()  # 32x32 stays as it is

        return np.asarray(source.targets), fetch
    if name in CLASSES:
        # Imported by name and only here, so that this file can be copied without synthetic.py.
        images, labels = importlib.import_module("common.synthetic").paint(CLASSES[name], split, size)
        return labels, lambda indices: images[indices]
    files, labels = _list_folder(name, split)
    return labels, lambda indices: torch.stack([_decode(files[i], size) for i in indices])


def _download_lock(root):
    """A context in which ranks and parallel runs that share this folder wait while one of them downloads."""
    with suppress(ImportError, OSError):  # not POSIX, a folder that is read-only, or a file system without locks
        import fcntl

        os.makedirs(root, exist_ok=True)
        file = open(os.path.join(root, "download.lock"), "w")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        return file
    return nullcontext()


def _list_folder(name, split):
    """Paths and labels, numpy (n,), of a folder's images."""
    if not os.path.isdir(name):
        raise ValueError(f"unknown dataset '{name}': choose from {', '.join(CLASSES)}, or give a folder of images")
    from torchvision.datasets import ImageFolder

    folders = {part: ImageFolder(os.path.join(name, part)) for part in ("train", "val")}
    unmatched = ", ".join(sorted({*folders["train"].classes} ^ {*folders["val"].classes}))
    if unmatched:
        raise ValueError(f"'{name}': train/ and val/ must hold the same classes; only one has: {unmatched}")
    return [path for path, _ in folders[split].samples], np.array(folders[split].targets)


def _decode(path, size):
    """One image file as uint8 (size, size, 3): if it has another size, its shorter side is scaled and its centre cropped."""
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms.functional import center_crop, resize

    try:
        image = default_loader(path)
    except Exception as error:  # Pillow raises many types for a damaged file
        raise ValueError(f"cannot read the image '{path}': {error}") from None
    return torch.from_numpy(np.array(center_crop(resize(image, size), size)))


def channel_stats(images):
    """Mean and standard deviation of each channel, of pixels in [0, 1]: two float32 (3,)."""
    n = images[..., 0].numel()
    histogram = torch.stack([torch.bincount(images[..., c].flatten(), minlength=256) for c in range(3)]).double().cpu()
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = histogram @ value / n
    std = (histogram @ value.square() / n - mean.square()).clamp(min=1e-12).sqrt()
    return mean.float(), std.float()


class Normalise:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), channels-last in memory, with zero mean and unit variance per channel."""

    def __init__(self, mean, std, width, device):
        # One number per byte of an image row: broadcasting over three channels alone would not vectorise.
        self.scale = (1 / (255 * std)).repeat(width).to(device)
        self.shift = (-mean / std).repeat(width).to(device)

    def __call__(self, images):
        b, h, w, _ = images.shape
        rows = images.reshape(b, h, 3 * w).float().mul_(self.scale).add_(self.shift)
        return rows.view(b, h, w, 3).permute(0, 3, 1, 2)


class Batches:
    """Shuffled training batches of a split that is on the device: padded, randomly cropped and flipped, and normalised.

    Order, crops and flips depend on (seed, epoch) alone, whatever the device and the number of ranks; rank r of w gets its
    share of every batch. An epoch is ceil(n / batch_size) batches whose sizes differ by at most one, so that none is tiny.
    """

    def __init__(self, split, normalise, batch_size, seed, rank=0, world=1):
        images, self.labels = split
        self.normalise, self.seed, self.rank, self.world = normalise, seed, rank, world
        n, h, w, _ = images.shape
        padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
        places, row = 2 * PADDING + 1, padded.stride(1)
        # A view of all crops of all images, (n, 9, 9, H, 3W): picking one crop of each image is then a single gather.
        self.crops = padded.as_strided((n, places, places, h, 3 * w), (padded.stride(0), row, 3, row, 1))
        self.count = -(-n // batch_size)
        if n // self.count < world:
            raise ValueError(f"a batch of {n // self.count} images cannot be shared by {world} processes")

    def __len__(self):
        return self.count

    def epoch(self, epoch):
        """Yields (images (B, 3, H, W) float32, labels (B,) int64), this rank's share of every batch."""
        for batch in self._draw(epoch).tensor_split(self.count, dim=1):
            yield self._gather(batch.tensor_split(self.world, dim=1)[self.rank])

    def first(self, n):
        """The first n images of epoch 0, or all if there are fewer, (n, 3, H, W) float32, and their labels."""
        return self._gather(self._draw(0)[:, :n])

    def _draw(self, epoch):
        """The epoch's order and augmentation, int64 (4, n): index, crop's top and left, flip."""
        n = len(self.labels)
        rng = np.random.default_rng([self.seed, epoch])
        order, flips = rng.permutation(n), rng.integers(0, 2, n)
        top, left = rng.integers(0, 2 * PADDING + 1, (2, n))
        return torch.from_numpy(np.stack([order, top, left, flips])).to(self.labels.device)

    def _gather(self, draw):
        index, top, left, flip = draw
        crops = self.crops[index, top, left]
        crops = crops.view(*crops.shape[:2], -1, 3)
        crops = torch.where(flip.bool()[:, None, None, None], crops.flip(2), crops)
        return self.normalise(crops), self.labels[index]
