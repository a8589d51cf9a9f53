"""Images painted from a seed, so that everything runs where nothing can be downloaded: `synthetic10`, `synthetic100`.

A class is a shape with a texture, in shades of one of ten colours. Position, size, angle, colours, contrast, background and
noise are drawn for each image.
"""

import numpy as np
import torch
from torch import lerp, maximum, minimum

SHAPES = {  # (u, v) in [-1, 1] around the object's centre -> signed distance to its outline, negative inside
    "disc": lambda u, v: (u * u + v * v).sqrt() - 0.8,
    "ring": lambda u, v: ((u * u + v * v).sqrt() - 0.65).abs() - 0.2,
    "square": lambda u, v: maximum(u.abs(), v.abs()) - 0.7,
    "frame": lambda u, v: (maximum(u.abs(), v.abs()) - 0.6).abs() - 0.18,
    "diamond": lambda u, v: u.abs() + 0.6 * v.abs() - 0.75,
    "triangle": lambda u, v: maximum(v - 0.5, 0.87 * u.abs() - 0.5 * v - 0.4),
    "cross": lambda u, v: minimum(maximum(u.abs() - 0.85, v.abs() - 0.25), maximum(u.abs() - 0.25, v.abs() - 0.85)),
    "bar": lambda u, v: maximum(u.abs() - 0.95, v.abs() - 0.32),
    "crescent": lambda u, v: maximum((u * u + v * v).sqrt() - 0.8, 0.7 - ((u - 0.4).square() + v * v).sqrt()),
    "two discs": lambda u, v: ((u.abs() - 0.5).square() + v * v).sqrt() - 0.38,
    "corner": lambda u, v: maximum(maximum(u.abs(), v.abs()) - 0.75, -maximum(u, v) + 0.05),
}
TEXTURES = {  # (u, v) as above; textures turn and scale with the object -> brightness in [-1, 1]
    "plain": lambda u, v: torch.ones_like(u),
    "shaded": lambda u, v: u.clamp(-1, 1),
    "wide stripes": lambda u, v: (7 * u).sin(),
    "narrow stripes": lambda u, v: (14 * u).sin(),
    "slanted stripes": lambda u, v: (7 * (u + v)).sin(),
    "checks": lambda u, v: (8 * u).sin() * (8 * v).sin(),
    "rings": lambda u, v: (12 * (u * u + v * v).sqrt()).sin(),
    "grid": lambda u, v: maximum((10 * u).sin(), (10 * v).sin()),
    "halves": lambda u, v: (9 * v).tanh(),
    "bright centre": lambda u, v: 1 - 2 * (u * u + v * v).clamp(max=1),
}
CHUNK = 500  # images painted at a time, few enough to stay in the CPU's caches


def pairs(classes):
    """The classes as (shape, texture): in `synthetic10` each texture has a shape of its own, `synthetic100` has the rest."""
    return [(s, t) for s in range(len(SHAPES)) for t in range(len(TEXTURES)) if (s == t) == (classes == 10)]


def paint(classes, split, size=32, seed=0):
    """A split in the sizes of CIFAR, 50,000 "train" or 10,000 other images: uint8 (n, size, size, 3), labels (n,)."""
    per_class = (50000 if split == "train" else 10000) // classes
    generator = torch.Generator().manual_seed(1000 * seed + 2 * classes + (split == "train"))
    shapes, textures = list(SHAPES.values()), list(TEXTURES.values())
    hues = torch.arange(10)[:, None] * 2 * torch.pi / 10 + torch.tensor([0, 2, 4]) * torch.pi / 3
    colours, chunk, images = 0.5 + 0.5 * hues.cos(), min(per_class, CHUNK), []
    for s, t in pairs(classes):
        for _ in range(per_class // chunk):
            images.append(_paint_chunk(shapes[s], textures[t], colours[t], chunk, size, generator))
    return torch.cat(images), np.repeat(np.arange(classes), per_class)


def _paint_chunk(shape, texture, colour, n, size, generator):
    """n images of one class: uint8 (n, size, size, 3)."""

    def uniform(low, high, *columns):
        return low + (high - low) * torch.rand(n, 1, 1, *columns, generator=generator)

    axis, angle, scale = torch.linspace(-1, 1, size), uniform(-0.3, 0.3), uniform(0.8, 1.1)
    x, y = axis - uniform(-0.2, 0.2), axis[:, None] - uniform(-0.2, 0.2)
    u = (x * angle.cos() + y * angle.sin()) / scale  # (n, size, size): the object may be off centre, turned and scaled
    v = (y * angle.cos() - x * angle.sin()) / scale
    inside = (0.5 - size / 4 * shape(u, v)).clamp(0, 1)  # 1 in the object, 0 outside, with an edge two pixels wide
    bright = (1 + texture(u, v)) / 2
    ground, contrast = uniform(0.2, 0.8, 3), uniform(0.6, 1, 1)
    light = lerp(ground, lerp(uniform(0, 1, 3), colour, 0.9), contrast)
    dark = lerp(ground, uniform(0, 1, 3), contrast)
    image = lerp(ground, lerp(dark, light, bright[..., None]), inside[..., None])
    noise = torch.empty_like(image).normal_(generator=generator)
    return image.addcmul_(noise, uniform(0.02, 0.06, 1)).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
