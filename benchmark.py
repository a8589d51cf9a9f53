"""Speed of every hot path on random images, compared within one run, and peak memory.

    python benchmark.py --json speed.json                        # the paper's width
    python benchmark.py --channels 8 --cells 1 --precision bf16
    python benchmark.py --cuda-graphs                            # one sub-net without and with CUDA graphs
    OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 benchmark.py   # what a second process gains

Every round measures everything once, so that a machine that slows down slows everything down. Under torchrun only the
super-net step is measured: on all ranks together first, then on rank 0 alone. A line gives the median over rounds, the range,
and the ratio to the first line. The plain super-net step is in fp32 and NCHW memory, with PyTorch's own batch norm and pooling.
"""

import json
import resource
import statistics
import sys
import time
from itertools import count

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from common import data, engine, fast, flags, runtime, scoring, spaces

CLASSES = 100
KINDS = ("plain super-net step", "super-net step", "P1 step", "P1 classifier step", "sub-net step", "scoring", "batches")


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    parser.add_argument("--space", choices=spaces.SPACES, default="nats", help="search space")
    parser.add_argument("--archs", nargs="+", metavar="A", help="architectures to measure (default: drawn from --space)")
    flags.add_shape(parser)
    parser.add_argument("--image-size", type=flags.image_size, default=32, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=flags.positive_int, default=128, help="images per step")
    parser.add_argument("--rounds", type=flags.positive_int, default=5, help="rounds, after one to warm up")
    parser.add_argument("--steps", type=flags.positive_int, default=6, help="training steps of each kind in a round")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="precision of the backbone in training")
    parser.add_argument("--cuda-graphs", action="store_true", help="measure only one sub-net, without and with CUDA graphs")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", help=f"measure only some of: {', '.join(KINDS)}")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ..., or auto: a GPU if there is one")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file, too")
    args = parser.parse_args(argv)
    for text in args.archs or ():
        with runtime.user_errors("--archs"):
            args.space = spaces.parse(text)[0]
    flags.fill_shape(args, args.space)
    return args


def random_batches(n, args, device):
    """(split of n images, batches of it)."""
    images = torch.randint(0, 256, (n, args.image_size, args.image_size, 3), dtype=torch.uint8, device=device)
    split = images, torch.arange(n, device=device) % CLASSES
    normalise = data.Normalise(*data.channel_stats(images), args.image_size, device)
    return split, data.Batches(split, normalise, args.batch_size, 0, runtime.rank(), runtime.world())


def prepare(args, device):
    """{kind: function that does some steps of that kind and returns the number of images}."""
    space, epochs, ones = spaces.space(args.space), count(1), torch.ones(CLASSES, device=device)
    given, rng = [space.from_string(text) for text in args.archs or ()], np.random.default_rng(0)
    archs = [given[i % len(given)] if given else spaces.sample(space.CHOICES, rng) for i in range(args.steps)]
    _, batches = random_batches(args.steps * args.batch_size, args, device)
    _, one_batch = random_batches(args.batch_size, args, device)

    def paths(step):
        return [archs[step % args.steps]]

    def network(arch=None):
        net = space.Network(CLASSES, args.channels, args.cells, arch).to(device)
        net.train() if arch else engine.use_batch_statistics(net)
        return net

    def training(net, batches=batches, precision=args.precision, **kwargs):
        optimizer = engine.sgd(net, 0.01, 0.9, 2e-4)

        def work():
            engine.train_epoch(net, batches, next(epochs), optimizer, ones, precision=precision, **kwargs)
            return len(batches) * args.batch_size

        return work

    if args.cuda_graphs:
        net = network(archs[0])
        return {"one sub-net": training(net), "one sub-net, graphs": training(net, backbone=fast.captured(net))}
    (small, _), (_, large) = (random_batches(n, args, device) for n in (2000, 50000))
    head, plain_net = network(), plain(network())
    features = engine.CachedFeatures(head, batches, 1, paths)
    subnet_steps = [training(network(arch), one_batch) for arch in archs]
    score = scoring.scorer(network(), small, small, 400, 0)

    def plain_features(images, arch):
        return plain_net.features(images.contiguous(), arch)

    return {
        "plain super-net step": training(plain_net, precision="fp32", paths=paths, backbone=plain_features),
        "super-net step": training(network(), paths=paths),
        "P1 step": training(head, paths=paths, freeze_backbone=True),
        "P1 classifier step": training(head, features, backbone=nn.Identity(), freeze_backbone=True),
        "sub-net step": lambda: sum(step() for step in subnet_steps),
        "scoring": lambda: 2400 * len([score(arch) for arch in archs[:3]]),
        "batches": lambda: sum(len(labels) for _, labels in large.epoch(next(epochs))),
    }


def plain(net):
    """The super-net with PyTorch's own layers in the place of ours."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, fast.AvgPool3x3):
                setattr(module, name, nn.AvgPool2d(3, child.stride, 1, count_include_pad=False))
            elif isinstance(child, fast.BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(child.num_features, affine=False, track_running_stats=False))
    return net.to(memory_format=torch.contiguous_format)


def measure(args, device):
    """{kind: seconds per image in each round}, after one round that is not counted."""
    works = prepare(args, device)
    works = {kind: work for kind, work in works.items() if args.cuda_graphs or kind in (args.only or KINDS)}
    times = {kind: [] for kind in works}
    for _ in range(args.rounds + 1):
        for kind, work in works.items():
            start = time.perf_counter()
            images = work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[kind].append((time.perf_counter() - start) / images)
    return {kind: seconds[1:] for kind, seconds in times.items()}


def main(args):
    device = runtime.setup(args.device, 0)
    if runtime.world() > 1:
        args.only, args.cuda_graphs = ["super-net step"], False
    with runtime.user_errors():
        times = measure(args, device)
    if runtime.world() > 1:
        dist.barrier()
        dist.destroy_process_group()
        if runtime.rank() > 0:
            return
        times = {"one process": measure(args, device)["super-net step"], "together": times["super-net step"]}

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = (torch.cuda.max_memory_allocated() if device.type == "cuda" else peak) / 2**30
    facts = {"flags": vars(args), "figures": {}, "peak_gib": peak, **runtime.environment(device)}
    print(f"{args.space}, {args.channels} channels, {args.cells} cells, batch {args.batch_size}, {args.precision}, "
          f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}, {args.rounds} rounds")  # fmt: skip
    first = next(iter(times))
    for kind, seconds in times.items():
        median, low, high = statistics.median(1 / s for s in seconds), 1 / max(seconds), 1 / min(seconds)
        ratio = statistics.median(a / b for a, b in zip(times[first], seconds, strict=True))
        facts["figures"][kind] = {"images/s": median, "low": low, "high": high, f"x {first}": ratio}
        print(f"{kind:<20} {median:>10,.0f} images/s  [{low:,.0f}, {high:,.0f}]  {ratio:.2f} x {first}")
    print(f"peak memory: {peak:.2f} GiB")
    if args.json:
        with runtime.user_errors():
            runtime.write(args.json, json.dumps(facts, indent=1))


if __name__ == "__main__":
    runtime.launch(parse_args, main)
