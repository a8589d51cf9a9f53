"""Datasets that live on the device: reading, hold-out, the long-tail draw, and augmented batches.

Needs nothing else of this repo; copy the file to use it. The long-tail draw alone:

    counts = long_tail_counts([5000] * 10, ratio=100)              # 5000, 2997, ..., 50
    indices = long_tail_indices(labels, ratio=100, seed=0)         # into a dataset with those labels

A split is a pair (images, labels): uint8 (n, H, W, 3) and int64 (n,). Mistakes of the caller raise ValueError.
"""

import os

import numpy as np
import torch
import torch.nn.functional as F
import torchvision

CLASSES = {"cifar10": 10, "cifar100": 100, "synthetic10": 10, "synthetic100": 100}
PADDING = 4  # zero pixels on each side before the random crop, as in He et al. 2016


# Which images


def long_tail_counts(sizes, ratio):
    """Images kept of each class: int(n_c * mu^c), at least 1, with mu = ratio^(-1 / (C - 1)) (section 4.1; Cui et al. 2019).

    sizes: the number of images of each class, C of them. ratio: of the largest class to the smallest, >= 1.
    """
    if not ratio >= 1:
        raise ValueError(f"the imbalance ratio must be at least 1, not {ratio:g}")
    last = max(len(sizes) - 1, 1)
    # One power, not a product of roots: rounding must not turn the 5.0 of 500 images at 100x into 4.
    return [min(n, max(1, int(n * (1 / ratio) ** (c / last)))) for c, n in enumerate(sizes)]


def long_tail_indices(labels, ratio, seed):
    """Sorted indices of a long-tailed subset of a dataset with these integer labels (n,); which images is drawn by seed.

    The subset at a higher ratio is contained in the one at a lower ratio with the same seed.
    """
    labels = np.asarray(labels)
    counts = long_tail_counts(np.bincount(labels), ratio)
    return np.sort(np.concatenate([_shuffled(labels, c, seed)[:n] for c, n in enumerate(counts)]))


def hold_out(labels, per_class, seed):
    """(rest, held): sorted indices, with `per_class` images of every class held out. ValueError if a class is too small."""
    labels = np.asarray(labels)
    smallest = np.bincount(labels).min()
    if not 0 <= per_class < smallest:
        raise ValueError(f"cannot hold out {per_class} images a class: the smallest class has {smallest}")
    held = np.concatenate([_shuffled(labels, c, seed)[:per_class] for c in range(labels.max() + 1)])
    return np.setdiff1d(np.arange(len(labels)), held), np.sort(held)


def _shuffled(labels, c, seed):
    return np.random.default_rng([seed, c]).permutation(np.flatnonzero(labels == c))


# Where they come from


def num_classes(name):
    """How many classes a dataset has; for a folder, counted from train/ without reading an image."""
    if name in CLASSES:
        return CLASSES[name]
    return len(_class_folders(name, "train"))


def class_sizes(name, split):
    """How many images each class of "train" or "val" has, before any draw; without reading an image."""
    if name in CLASSES:
        return [(50000 if split == "train" else 10000) // CLASSES[name]] * CLASSES[name]
    return np.bincount(_open_folder(name, split)[1]).tolist()


def load(splits, dataset, imbalance=1.0, data_seed=0, val_per_class=0, image_size=32, root="data", device="cpu"):
    """The named splits of a dataset, on the device, as a list of pairs (images, labels).

    train: the training pool less the hold-out, then long-tailed. val: the hold-out of `val_per_class` images a class, or
    the test split if that is 0, as in the paper. test: the dataset's own (a folder's val/), read only if asked for.
    dataset: cifar10, cifar100, synthetic10, synthetic100, or a folder of train/<class>/* and val/<class>/* images.
    """
    chosen = {}
    if "train" in splits or ("val" in splits and val_per_class):
        labels, fetch = _open(dataset, "train", root, image_size)
        rest, held = hold_out(labels, val_per_class, data_seed)
        kept = rest[long_tail_indices(labels[rest], imbalance, data_seed)]
        chosen = {"train": (kept, labels, fetch), "val": (held, labels, fetch)}
    if "test" in splits or ("val" in splits and not val_per_class):
        labels, fetch = _open(dataset, "val", root, image_size)
        chosen["test"] = (np.arange(len(labels)), labels, fetch)
        if not val_per_class:
            chosen["val"] = chosen["test"]
    loaded = []
    for split in splits:
        indices, labels, fetch = chosen[split]
        loaded.append((fetch(indices).to(device), torch.from_numpy(labels[indices]).to(device)))
    return loaded


def _open(name, split, root, image_size):
    """All labels of a split, numpy (n,), and a function from indices to uint8 images (k, H, W, 3)."""
    if name in ("cifar10", "cifar100"):
        try:
            source = getattr(torchvision.datasets, name.upper())(root, train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"cannot download {name} into '{root}': {error}") from None
        return np.asarray(source.targets), lambda indices: torch.from_numpy(source.data[indices])
    if name in CLASSES:
        images, labels = synthetic(CLASSES[name], split)
        return labels, lambda indices: images[indices]
    files, labels = _open_folder(name, split)
    return labels, lambda indices: torch.stack([_decode(files[i], image_size) for i in indices])


def _class_folders(name, split):
    if not os.path.isdir(name):
        raise ValueError(f"unknown dataset '{name}': choose from {', '.join(CLASSES)}, or give a folder of images")
    folder = os.path.join(name, split)
    if not os.path.isdir(folder):
        raise ValueError(f"'{name}' has no folder '{split}/': a dataset is train/<class>/* and val/<class>/*")
    try:
        return torchvision.datasets.folder.find_classes(folder)[0]
    except FileNotFoundError:
        raise ValueError(f"'{folder}' holds no class folders") from None


def _open_folder(name, split):
    """Paths and labels, numpy (n,), of a folder's images."""
    classes, other = _class_folders(name, split), _class_folders(name, "val" if split == "train" else "train")
    if classes != other:
        odd = sorted(set(classes) ^ set(other))
        raise ValueError(f"'{name}': train/ and val/ must hold the same classes; these are in one alone: {', '.join(odd)}")
    try:
        files = torchvision.datasets.ImageFolder(os.path.join(name, split)).samples
    except FileNotFoundError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return [path for path, _ in files], np.array([label for _, label in files])


def _decode(path, size):
    """One image file as uint8 (size, size, 3); another size is scaled by its shorter side, then cut in the centre."""
    try:
        image = torchvision.datasets.folder.default_loader(path)
    except Exception as error:  # a damaged file makes Pillow raise many kinds
        raise ValueError(f"cannot read the image '{path}': {error}") from None
    if image.size != (size, size):
        image = torchvision.transforms.functional.resize(image, size)
        image = torchvision.transforms.functional.center_crop(image, size)
    return torch.from_numpy(np.array(image))


# Images made from a seed, so that everything runs where nothing can be downloaded

_SHAPES = {  # u, v in [-1, 1] around the object's centre -> signed distance, negative inside
    "disc": lambda u, v: (u * u + v * v).sqrt() - 0.8,
    "ring": lambda u, v: ((u * u + v * v).sqrt() - 0.65).abs() - 0.2,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) - 0.7,
    "frame": lambda u, v: (torch.maximum(u.abs(), v.abs()) - 0.6).abs() - 0.18,
    "diamond": lambda u, v: u.abs() + 0.6 * v.abs() - 0.75,
    "triangle": lambda u, v: torch.maximum(v - 0.5, 0.87 * u.abs() - 0.5 * v - 0.4),
    "cross": lambda u, v: torch.minimum(
        torch.maximum(u.abs() - 0.85, v.abs() - 0.25), torch.maximum(u.abs() - 0.25, v.abs() - 0.85)
    ),
    "bar": lambda u, v: torch.maximum(u.abs() - 0.95, v.abs() - 0.32),
    "crescent": lambda u, v: torch.maximum((u * u + v * v).sqrt() - 0.8, 0.7 - ((u - 0.4).square() + v * v).sqrt()),
    "two discs": lambda u, v: ((u.abs() - 0.5).square() + v * v).sqrt() - 0.38,
    "corner": lambda u, v: torch.maximum(torch.maximum(u.abs(), v.abs()) - 0.75, -torch.maximum(u, v) + 0.05),
}
_TEXTURES = {  # u, v as above, turning and scaling with the object -> brightness in [-1, 1]
    "plain": lambda u, v: torch.ones_like(u),
    "shaded": lambda u, v: u.clamp(-1, 1),
    "wide stripes": lambda u, v: (7 * u).sin(),
    "narrow stripes": lambda u, v: (14 * u).sin(),
    "slanted stripes": lambda u, v: (7 * (u + v)).sin(),
    "checks": lambda u, v: (8 * u).sin() * (8 * v).sin(),
    "rings": lambda u, v: (12 * (u * u + v * v).sqrt()).sin(),
    "grid": lambda u, v: torch.maximum((10 * u).sin(), (10 * v).sin()),
    "halves": lambda u, v: (9 * v).tanh(),
    "bright centre": lambda u, v: 1 - 2 * (u * u + v * v).clamp(max=1),
}


def synthetic(classes, split, seed=0):
    """Procedural 32x32 images in the sizes of CIFAR: 50,000 for train, 10,000 otherwise; uint8 (n, 32, 32, 3), labels (n,).

    A class is a shape with a texture and a tendency to one of ten colours. Position, size, angle, colours, contrast,
    background, a piece of clutter and the noise are drawn per image; some show next to nothing, so no network is always right.
    The 10 classes of `synthetic10` pair each texture with a shape of its own; `synthetic100` has the other 100 pairs.
    """
    pairs = [(s, t) for s in range(len(_SHAPES)) for t in range(len(_TEXTURES))]
    mine = [(s, t) for s, t in pairs if (s == t) == (classes == 10)]
    each = (50000 if split == "train" else 10000) // classes
    generator = torch.Generator().manual_seed(1000 * seed + 2 * classes + (split == "train"))
    shapes, textures = list(_SHAPES.values()), list(_TEXTURES.values())
    step = min(each, 500)  # a piece that stays in the cache
    hues = torch.arange(10)[:, None] * 2 * torch.pi / 10 + torch.tensor([0, 2, 4]) * torch.pi / 3
    tints = 0.5 + 0.5 * hues.cos()
    images = []
    for s, t in mine:
        images += [_paint(shapes[s], textures[t], tints[(s + t) % 10], step, generator) for _ in range(each // step)]
    return torch.cat(images), np.repeat(np.arange(classes), each)


def _paint(shape, texture, tint, n, generator):
    def uniform(low, high, *size):
        return low + (high - low) * torch.rand(n, *(size or (1, 1)), generator=generator)

    axis = torch.linspace(-1, 1, 32)

    def frame(spread, smallest, largest):
        """Coordinates of every pixel as the object sees them: it sits off centre, turned and scaled."""
        angle, scale = uniform(-0.5, 0.5), uniform(smallest, largest)
        x, y = axis[None, None, :] - uniform(-spread, spread), axis[None, :, None] - uniform(-spread, spread)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        return x * cos + y * sin, y * cos - x * sin

    u, v = frame(0.2, 0.7, 1.1)
    inside = (0.5 - 8 * shape(u, v)).clamp(0, 1)
    value = texture(u, v)
    p, q = frame(0.9, 0.15, 0.35)  # clutter: a small ellipse anywhere, before or behind the object
    clutter = (0.5 - 4 * (p * p + 2 * q * q - 1)).clamp(0, 1)
    front = (uniform(0, 1) < 0.5).float()
    ground, slope = uniform(0.2, 0.8, 3), uniform(-0.3, 0.3, 3)
    contrast = uniform(0, 1)[..., 0]
    light = torch.lerp(ground, torch.lerp(uniform(0, 1, 3), tint, 0.7), contrast)
    dark = torch.lerp(ground, uniform(0, 1, 3), contrast)
    blot = uniform(0, 1, 3)
    image = torch.empty(n, 32, 32, 3)
    for c in range(3):
        middle, half = (light + dark)[:, c, None, None] / 2, (light - dark)[:, c, None, None] / 2
        plane = ground[:, c, None, None] + slope[:, c, None, None] * axis[None, :, None]
        plane = torch.lerp(plane, blot[:, c, None, None], clutter * (1 - front))
        plane = torch.lerp(plane, middle + half * value, inside)
        image[..., c] = torch.lerp(plane, blot[:, c, None, None], clutter * front)
    noise = torch.empty_like(image).normal_(generator=generator)
    return image.addcmul_(noise, uniform(0.02, 0.1)[..., None]).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


# Batches


def channel_stats(images):
    """Mean and standard deviation of each channel, of pixels in [0, 1]: two float32 (3,). Sums of integers, so exact."""
    n = images[..., 0].numel()
    histogram = torch.stack([torch.bincount(images[..., c].flatten(), minlength=256) for c in range(3)]).double().cpu()
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = histogram @ value / n
    std = (histogram @ value.square() / n - mean.square()).clamp(min=1e-12).sqrt()
    return mean.float(), std.float()


class Normalise:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), channels-last in memory, with zero mean and unit variance a channel."""

    def __init__(self, mean, std, width, device):
        # One number per byte of an image row: a broadcast over three channels alone would not vectorise.
        self.scale = (1 / (255 * std)).repeat(width).to(device)
        self.shift = (-mean / std).repeat(width).to(device)

    def __call__(self, images):
        b, h, w, _ = images.shape
        rows = images.reshape(b, h, 3 * w).float().mul_(self.scale).add_(self.shift)
        return rows.view(b, h, w, 3).permute(0, 3, 1, 2)


class Batches:
    """Shuffled, augmented training batches of a split that is on the device.

    Each image is padded by 4 black pixels, cropped at its own place and flipped at its own toss, then normalised. Order,
    crops and flips depend on (seed, epoch) alone, whatever the device and the number of ranks; rank r of w gets its share
    of every batch. An epoch is ceil(n / batch_size) batches that differ by one image at most, so that none is tiny.
    """

    def __init__(self, split, normalise, batch_size, seed, rank=0, world=1):
        images, self.labels = split
        self.normalise, self.seed, self.rank, self.world = normalise, seed, rank, world
        n, h, w, _ = images.shape
        padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
        places = 2 * PADDING + 1
        row = padded.stride(1)
        # A view of all crops of all images, (n, 9, 9, H, 3W): picking one of each is then a single gather.
        self.crops = padded.as_strided((n, places, places, h, 3 * w), (padded.stride(0), row, 3, row, 1))
        self.count = -(-n // batch_size)
        if n // self.count < world:
            raise ValueError(f"batches of {n // self.count} images cannot be shared by {world} processes")

    def __len__(self):
        return self.count

    def epoch(self, epoch, first=0):
        """Yields (images (B, 3, H, W) float32, labels (B,) int64), from the first-th batch on."""
        n, device = len(self.labels), self.labels.device
        rng = np.random.default_rng([self.seed, epoch])
        order, flips = rng.permutation(n), rng.integers(0, 2, n)
        down, right = rng.integers(0, 2 * PADDING + 1, (2, n))
        draws = torch.from_numpy(np.stack([order, down, right, flips])).to(device)
        for batch in draws.tensor_split(self.count, dim=1)[first:]:
            index, y, x, flip = batch.tensor_split(self.world, dim=1)[self.rank]
            crops = self.crops[index, y, x]
            crops = crops.view(*crops.shape[:2], -1, 3)
            crops = torch.where(flip.bool()[:, None, None, None], crops.flip(2), crops)
            yield self.normalise(crops), self.labels[index]
