"""Speed and memory of every hot path, on random images, as ratios within one run.

    python benchmark.py --json speed.json                        # the paper's width
    python benchmark.py --channels 8 --cells 1 --precision bf16
    python benchmark.py --cuda-graphs                            # one sub-net without and with CUDA graphs
    OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 benchmark.py   # what a second process gains

Every round measures everything once, so that a machine that slows down slows everything down; under torchrun all ranks run
together first, then rank 0 alone. The table gives the median over rounds and the range. "Plain PyTorch" is the super-net
step as public one-shot code writes it, in fp32: NCHW memory, PyTorch's own pooling and batch norm, clipping and an optimiser
that loop over parameters, a loss read at every step, and NATS cells that compute each operation by itself.
"""

import itertools
import json
import resource
import statistics
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from common import data, engine, fast, flags, nats, runtime, spaces

CLASSES = 100
KINDS = ("batches", "super-net step", "P1 step", "P1 classifier step", "sub-net step", "scoring")
RATIOS = {  # name: kind, the kind that it is compared with
    "batches / super-net step": ("batches", "super-net step"),
    "super-net step / plain PyTorch": ("super-net step", "plain super-net step"),
    "P1 step / P2 step": ("P1 step", "super-net step"),
    "CUDA graphs / eager": ("one sub-net, graphs", "one sub-net"),
    "together / one process": ("super-net, together", "super-net, one process"),
}


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    parser.add_argument("--space", choices=spaces.SPACES, default="nats", help="search space")
    parser.add_argument("--archs", nargs="+", metavar="A", help="architectures to measure (default: drawn from --space)")
    flags.add_shape(parser)
    parser.add_argument("--image-size", type=flags.image_size, default=32, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=flags.positive_int, default=128, help="images a step")
    parser.add_argument("--rounds", type=flags.positive_int, default=5, help="rounds, after one to warm up")
    parser.add_argument("--steps", type=flags.number(int, 1, 100), default=6, help="steps of each kind in a round")
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


class FirstBatches:
    """The first `count` batches of an epoch, as engine.train_epoch takes them."""

    def __init__(self, batches, count):
        self.batches, self.count, self.seed = batches, count, batches.seed

    def __len__(self):
        return self.count

    def epoch(self, epoch):
        return itertools.islice(self.batches.epoch(epoch), self.count)


def random_split(n, size, device):
    images = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return images.to(device), (torch.arange(n) % CLASSES).to(device)


class Bench:
    """Networks, data, and functions that do `--steps` steps of a kind and return the number of images."""

    def __init__(self, args, device):
        self.args, self.device, self.space, self.epochs = args, device, spaces.space(args.space), itertools.count(1)
        rng = np.random.default_rng(0)
        given = itertools.cycle([self.space.from_string(text) for text in args.archs or ()])
        self.archs = [next(given) if args.archs else spaces.sample(self.space.CHOICES, rng) for _ in range(args.steps)]
        self.split = random_split(max(50000, args.steps * args.batch_size), args.image_size, device)
        normalise = data.Normalise(*data.channel_stats(self.split[0]), args.image_size, device)
        self.all = data.Batches(self.split, normalise, args.batch_size, 0, runtime.rank(), runtime.world())
        self.batches = FirstBatches(self.all, args.steps)

    def path(self, step):
        return self.archs[step % len(self.archs)]

    def network(self, arch=None):
        net = self.space.Network(CLASSES, self.args.channels, self.args.cells, arch).to(self.device)
        net.train() if arch else engine.use_batch_statistics(net)
        return net

    def training(self, net, batches, **kwargs):
        """A function that trains on these batches."""
        optimizer, ones = engine.sgd(net, 0.01, 0.9, 2e-4), torch.ones(CLASSES, device=self.device)

        def work():
            engine.train_epoch(net, batches, next(self.epochs), optimizer, ones, precision=self.args.precision, **kwargs)
            return len(batches) * self.args.batch_size

        return work

    def supernet_step(self):
        return self.training(self.network(), self.batches, path=self.path)

    def kinds(self):
        """{kind of step: function}."""
        head, val = self.network(), random_split(2000, self.args.image_size, self.device)
        features = engine.CachedFeatures(head, self.batches, 1, self.path)
        classifier = self.training(head, features, backbone=nn.Identity(), freeze_backbone=True)
        subnets = [self.training(self.network(arch), FirstBatches(self.all, 1)) for arch in self.archs]
        score, twenty = engine.scorer(self.network(), self.split, val, 400, 0), FirstBatches(self.all, 20)
        return {
            "batches": lambda: sum(len(labels) for _, labels in twenty.epoch(next(self.epochs))),
            "super-net step": self.supernet_step(),
            "P1 step": self.training(head, self.batches, path=self.path, freeze_backbone=True),
            "P1 classifier step": lambda: sum(classifier() for _ in range(10)),
            "sub-net step": lambda: sum(step() for step in subnets),
            "scoring": lambda: len([score(arch) for arch in self.archs[:3]]) * 2400,
        }

    def with_graphs(self):
        """{kind: function} of one sub-net without and with CUDA graphs."""
        net = self.network(self.archs[0])
        graphs = self.training(net, self.batches, backbone=fast.captured(net))
        return {"one sub-net": self.training(net, self.batches), "one sub-net, graphs": graphs}

    def plain_step(self):
        """The super-net step as public one-shot code writes it."""
        net = self.network().to(memory_format=torch.contiguous_format)
        for module in list(net.modules()):
            if isinstance(module, nats.Cell):
                module.__class__ = PlainCell
            for name, child in module.named_children():
                if isinstance(child, fast.AvgPool3x3):
                    setattr(module, name, nn.AvgPool2d(3, child.stride, 1, count_include_pad=False))
                elif isinstance(child, fast.BatchNorm2d):
                    setattr(module, name, nn.BatchNorm2d(child.num_features, affine=child.affine))
        engine.use_batch_statistics(net)
        optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=2e-4, foreach=False)

        def work():
            for arch, (images, labels) in zip(self.archs, self.all.epoch(next(self.epochs)), strict=False):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(images.contiguous(), arch), labels)
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 5.0, foreach=False)
                optimizer.step()
                loss.item()
            return len(self.archs) * self.args.batch_size

        return work


class PlainCell(nats.Cell):
    """Every operation has its own ReLU, `none` is a product with 0, and a sum begins with 0."""

    def forward(self, x, arch):
        nodes = [x, 0, 0, 0]
        for (node, source), gene, edge in zip(nats.EDGES, arch, self.edges, strict=True):
            name = nats.OPERATIONS[gene]
            nodes[node] = nodes[node] + (nodes[source] * 0.0 if name == "none" else edge[name](nodes[source]))
        return nodes[3]


def measure(works, rounds, device):
    """{kind: seconds per image in each round}, after one round that is not counted."""
    times = {kind: [] for kind in works}
    for _ in range(rounds + 1):
        for kind, work in works.items():
            start = time.perf_counter()
            images = work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[kind].append((time.perf_counter() - start) / images)
    return {kind: seconds[1:] for kind, seconds in times.items()}


def peak_gib(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def main(args):
    device = runtime.setup(args.device, 0)
    with runtime.user_errors():
        bench = Bench(args, device)
    if runtime.world() > 1:
        times = measure({"super-net, together": bench.supernet_step()}, args.rounds, device)
        dist.barrier()
        dist.destroy_process_group()
        if runtime.rank() > 0:
            return
        times |= measure({"super-net, one process": Bench(args, device).supernet_step()}, args.rounds, device)
    elif args.cuda_graphs:
        with runtime.user_errors():
            times = measure(bench.with_graphs(), args.rounds, device)
    else:
        works = bench.kinds()
        works = {kind: works[kind] for kind in args.only} if args.only else works | {"plain super-net step": bench.plain_step()}
        times = measure(works, args.rounds, device)

    facts = {"flags": vars(args), "figures": {}, "ratios": {}, "peak_gib": peak_gib(device), **runtime.environment(device)}
    print(f"{args.space}, {args.channels} channels, {args.cells} cells, batch {args.batch_size}, {args.precision}, "
          f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}, {args.rounds} rounds")  # fmt: skip
    for kind, seconds in times.items():
        median, low, high = statistics.median(1 / s for s in seconds), 1 / max(seconds), 1 / min(seconds)
        facts["figures"][kind] = {"images/s": median, "low": low, "high": high}
        print(f"{kind:<22} {median:>10,.0f} images/s  [{low:,.0f}, {high:,.0f}]")
    for name, (one, other) in RATIOS.items():
        if one in times and other in times:
            ratio = statistics.median(b / a for a, b in zip(times[one], times[other], strict=True))
            facts["ratios"][name] = ratio
            print(f"{name:<32} {ratio:.2f} x")
    print(f"peak memory: {facts['peak_gib']:.2f} GiB")
    if args.json:
        with runtime.user_errors():
            runtime.write(args.json, json.dumps(facts, indent=1))


if __name__ == "__main__":
    runtime.launch(parse_args, main)
