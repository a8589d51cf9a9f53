"""Speed and memory of every hot path, on made-up images, as ratios within one run.

    python benchmark.py --json results/benchmark.json      # the paper's width
    python benchmark.py --channels 8 --cells 1 --precision bf16
    python benchmark.py --compile                          # what --compile gains, and after how many epochs
    OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 benchmark.py   # what a second process gains

Every round measures everything once, so that a machine that slows down slows all down; the table gives the median over
rounds and the range. "Of the limit" is the time that nothing but the convolutions and matrix products of a step take, at
the same shapes, precision and memory format, over the time of the whole step. "Plain PyTorch" is the same super-net step in
fp32 and in the way of public one-shot code: NCHW, PyTorch's own pooling and batch norm, an optimiser and a clipping that loop
over parameters, and a loss that is read at each step; in a NATS cell each operation by itself, as NATS-Bench's own search code
(AutoDL-Projects, `NAS201SearchCell`) computes it.
"""

import itertools
import json
import resource
import statistics
import sys
import time

import numpy as np
import torch
import torchvision
from torch import nn

from common import data, engine, flags, nats, ops, runtime, spaces

CLASSES = 100
TARGET = sum(data.long_tail_counts([500] * CLASSES, 100))  # images of CIFAR-100 at 100x
PAPER = {  # images that a procedure takes at the paper's settings, by kind of step
    "P1": {"P1 step": 200 * TARGET},
    "P1 --features-every 10": {"P1 step": 20 * TARGET, "P1 classifier step": 200 * TARGET},
    "P2": {"super-net step": 200 * TARGET},
    "P3": {"super-net step": 600 * TARGET},
    "search": {"scoring": 20 * 50 * (10000 + 2000)},
}


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    parser.add_argument("--space", choices=spaces.SPACES, default="nats", help="search space (default nats)")
    parser.add_argument("--channels", type=int, help="of the first stage (default: nats 16, darts 36)")
    parser.add_argument("--cells", type=int, help="nats: a stage (default 5); darts: in all (default 20)")
    parser.add_argument("--batch-size", type=int, default=128, help="(default 128)")
    parser.add_argument("--rounds", type=int, default=5, help="after one to warm up (default 5)")
    parser.add_argument("--steps", type=int, default=6, help="of each kind a round (default 6)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="of training steps (default fp32)"
    )
    parser.add_argument("--compile", action="store_true", help="measure a sub-net without and with it, nothing else")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="measure these alone, without their limits")
    parser.add_argument("--device", default="auto", help="(default auto: a GPU if there is one)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args(argv)
    for name, value in spaces.SPACES[args.space].DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    flags.check(args)
    return args


# What is measured: functions that do `--steps` steps and return how many images went through


class First:
    """The first batches of an epoch, as engine.train_epoch takes them."""

    def __init__(self, batches, count):
        self.batches, self.count, self.seed = batches, count, batches.seed

    def __len__(self):
        return self.count

    def epoch(self, epoch, first=0):
        return itertools.islice(self.batches.epoch(epoch, first), self.count)


def steps(args, device):
    """{kind: function}, and the architectures that they go through."""
    space, rng = spaces.SPACES[args.space], np.random.default_rng(0)
    archs = [spaces.sample(space.CHOICES, rng) for _ in range(args.steps)]
    split = made_up(50000, device)
    normalise = data.Normalise(*data.channel_stats(split[0]), 32, device)
    batches = data.Batches(split, normalise, args.batch_size, 0, runtime.rank(), runtime.world())
    some, ones = First(batches, args.steps), torch.ones(CLASSES, device=device)
    n = args.steps * args.batch_size
    net = space.Network(CLASSES, args.channels, args.cells).to(device)
    engine.use_batch_statistics(net)
    head = space.Network(CLASSES, args.channels, args.cells).to(device)
    engine.use_batch_statistics(head)
    subnets = [space.Network(CLASSES, args.channels, args.cells, arch).to(device).train() for arch in archs]
    searched = space.Network(CLASSES, args.channels, args.cells).to(device)
    scored = engine.scorer(searched, split, made_up(2000, device), 400, 0)
    looked_at = engine.chunks_of(torch.randn(2400, 3, 32, 32, device=device).to(memory_format=torch.channels_last))
    learners = {id(n): engine.sgd(n, 0.01, 0.9, 2e-4) for n in (net, head, *subnets)}
    epoch = iter(range(1, 10**9))

    def train(net, batches=some, **how):
        engine.train_epoch(net, batches, next(epoch), learners[id(net)], ones, precision=args.precision, **how)

    def on_device():
        return sum(len(labels) for _, labels in First(batches, 20).epoch(next(epoch)))

    def supernet_step():
        train(net, path=lambda step: archs[step % len(archs)])
        return n

    def p1_step():
        train(head, path=lambda step: archs[step % len(archs)], freeze_backbone=True)
        return n

    kept = engine.KeptFeatures(head, some, 1, lambda step: archs[step % len(archs)])

    def classifier_step():
        for _ in range(10):
            engine.train_epoch(engine.Head(head.classifier), kept, next(epoch), learners[id(head)], ones)
        return 10 * n

    def subnet_step():
        for subnet in subnets:
            train(subnet, First(batches, 1))
        return n

    def scoring():
        for arch in archs[:3]:
            scored(arch)
        return 2400 * len(archs[:3])

    @torch.inference_mode()
    @engine.exact_products()
    def forward():
        for arch in archs[:3]:
            for images in looked_at:
                searched(images, arch)
        return 2400 * len(archs[:3])

    kinds = {
        "batches": on_device, "super-net step": supernet_step, "P1 step": p1_step, "P1 classifier step": classifier_step,
        "sub-net step": subnet_step, "scoring": scoring, "forward pass": forward,
    }  # fmt: skip
    return kinds, archs, (net, subnets, batches)


def made_up(n, device):
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return images.to(device), (torch.arange(n) % CLASSES).to(device)


def compiled_steps(args, arch, batches, device):
    """{kind: function} for one sub-net without and with --compile, and the seconds that it took to compile."""
    net = spaces.SPACES[args.space].Network(CLASSES, args.channels, args.cells, arch).to(device).train()
    optimizer, ones, some = engine.sgd(net, 0.01, 0.9, 2e-4), torch.ones(CLASSES, device=device), First(batches, args.steps)
    begun = time.perf_counter()
    features = engine.compiled(net)

    def step(features=None):
        engine.train_epoch(net, some, 1, optimizer, ones, precision=args.precision, features=features)
        return args.steps * args.batch_size

    step(features)
    return {"one sub-net": step, "one sub-net, compiled": lambda: step(features)}, time.perf_counter() - begun


class Pictures(torch.utils.data.Dataset):
    """Images as torchvision's CIFAR gives them, with the same augmentation as `data.Batches`."""

    def __init__(self, n):
        self.images, self.labels = (part.numpy() for part in made_up(n, "cpu"))
        t = torchvision.transforms
        steps = [t.RandomCrop(32, 4), t.RandomHorizontalFlip(), t.ToTensor(), t.Normalize((0.5,) * 3, (0.25,) * 3)]
        self.transform = t.Compose(steps)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(torchvision.transforms.functional.to_pil_image(self.images[i])), self.labels[i]


def data_loader(args):
    """Its workers begin at once and never again: after a fork this process takes page faults wherever it writes."""
    pictures = Pictures(50000)
    endless = torch.utils.data.RandomSampler(pictures, replacement=True, num_samples=10**9)
    batches = iter(torch.utils.data.DataLoader(pictures, args.batch_size, sampler=endless, num_workers=2))
    return lambda: sum(len(next(batches)[1]) for _ in range(64))  # of which the workers have at most four ready


class PlainCell(nats.Cell):
    """Every operation has its own ReLU, `none` is a product with 0, and a sum begins with 0."""

    def forward(self, x, arch):
        nodes, edges = [x], iter(zip(arch, self.edges, strict=True))
        for target in (1, 2, 3):
            outputs = []
            for source in range(target):
                gene, edge = next(edges)
                name = nats.OPERATIONS[gene]
                outputs.append(nodes[source] * 0.0 if name == "none" else edge[name](nodes[source]))
            nodes.append(sum(outputs))
        return nodes[3]


def plain_step(args, archs, batches, device):
    """The super-net step in the way of public one-shot code."""
    net = (
        spaces.SPACES[args.space].Network(CLASSES, args.channels, args.cells).to(device, memory_format=torch.contiguous_format)
    )
    for module in list(net.modules()):
        if isinstance(module, nats.Cell):
            module.__class__ = PlainCell
        for name, child in module.named_children():
            if isinstance(child, ops.AvgPool3x3):
                setattr(module, name, nn.AvgPool2d(3, child.stride, 1, count_include_pad=False))
            elif isinstance(child, ops.BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(child.num_features, affine=child.affine))
    engine.use_batch_statistics(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=2e-4, foreach=False)
    epoch = iter(range(1, 10**9))

    def step():
        for arch, (images, labels) in zip(archs, batches.epoch(next(epoch)), strict=False):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images.contiguous(), arch), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0, foreach=False)
            optimizer.step()
            loss.item()
        return len(archs) * args.batch_size

    return step


# The limit


def products(net, shape, *arch):
    """[(convolution or linear layer, the shape of its input)] of a forward pass of images of this shape, in order."""
    calls, hooks = [], []
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooks.append(module.register_forward_hook(lambda m, inputs, _: calls.append((m, inputs[0].shape))))
    with torch.no_grad():
        net(torch.zeros(shape, device=net.classifier.weight.device), *arch)
    for hook in hooks:
        hook.remove()
    return calls


def only_products(calls, learns, precision="fp32"):
    """A function that runs these `products` and nothing else. learns: backward too, but not into the images."""
    buffers, ready, device = {}, [], calls[0][0].weight.device
    low = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def buffer(shape, learned=False):  # one for all of a shape: keeping every layer's own would take gigabytes
        if (shape, learned) not in buffers:
            x = torch.randn(shape, device=device, dtype=dtype)
            buffers[shape, learned] = (
                x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x
            ).requires_grad_(learned)
        return buffers[shape, learned]

    for module, shape in calls:
        with torch.no_grad(), low:
            gradient = buffer(module(buffer(shape)).shape)
        ready.append((module, buffer(shape, learns and shape[1] != 3), gradient))

    def work():
        with torch.set_grad_enabled(learns), low:
            for module, x, gradient in ready:
                y = module(x)
                if learns:
                    torch.autograd.grad(y, (x, module.weight) if x.requires_grad else (module.weight,), gradient)

    return work


def limits(args, archs, net, subnets):
    """{kind: function} that takes the time of the convolutions and matrix products of that kind of step."""
    passes = -(-2400 // engine.chunk(net.classifier.weight.device))
    batch, chunk = (args.batch_size, 3, 32, 32), (2400 // passes, 3, 32, 32)
    by_path = [call for arch in archs for call in products(net, batch, arch)]
    return {
        "super-net step": only_products(by_path, True, args.precision),
        "P1 step": only_products(by_path, False, args.precision),
        "sub-net step": only_products([call for subnet in subnets for call in products(subnet, batch)], True, args.precision),
        "scoring": engine.exact_products()(
            only_products([call for arch in archs[:3] for call in products(net, chunk, arch)] * passes, False)
        ),
    }


# Measuring


def seconds_of(work, device):
    begun = time.perf_counter()
    images = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, images


def peak_gib(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def measure(works, rounds, device):
    """({kind: seconds of each round}, {kind: images of a round}), after one round that is not counted."""
    times, images = {kind: [] for kind in works}, {}
    for done in range(rounds + 1):
        for kind, work in works.items():
            seconds, images[kind] = seconds_of(work, device)
            if done:
                times[kind].append(seconds)
            if kind.startswith("DataLoader"):
                time.sleep(0.5)  # its workers go on until their queues are full
    return times, images


def processes(args, device, together):
    """{kind: function} under torchrun: super-net steps of one process while the others wait, and of all, which share batches;
    sub-net steps of one process, and of all at the same time, each with batches and nets of its own, as in rank_transfer.py.
    """
    with runtime.alone():
        by_itself = steps(args, device)[0]

    def at_work(kind, ranks):
        def work():
            if runtime.rank() < ranks:
                with runtime.alone():
                    by_itself[kind]()
                    if device.type == "cuda":
                        torch.cuda.synchronize()
            runtime.barrier()
            return ranks * args.steps * args.batch_size

        return work

    n = runtime.world()
    return {
        "super-net, one process": at_work("super-net step", 1), f"super-net, {n} together": together,
        "sub-nets, one process": at_work("sub-net step", 1), f"sub-nets, {n} each its own": at_work("sub-net step", n),
    }  # fmt: skip


def main(args):
    device = runtime.setup(args.device, 0)
    if args.steps * args.batch_size > 50000:
        raise runtime.UserError("--steps of --batch-size must fit into the 50,000 images that there are")
    if args.precision == "auto":
        if runtime.world() > 1:
            raise runtime.UserError("--precision auto is for one process: give what it took")
        args.precision = engine.faster_precision(device)
    if (runtime.world() > 1) + args.compile + bool(args.only) > 1:
        raise runtime.UserError("torchrun, --compile and --only each measure something of their own: one at a time")
    works, archs, (net, subnets, batches) = steps(args, device)
    seconds_of(works["super-net step"], device)
    memory, compiling = peak_gib(device), None
    if runtime.world() > 1:
        works = processes(args, device, works["super-net step"])
    elif args.compile:
        works, compiling = compiled_steps(args, archs[0], batches, device)
    elif args.only:
        unknown = [kind for kind in args.only if kind not in works]
        if unknown:
            raise runtime.UserError(f"unknown kind '{unknown[0]}': choose from {', '.join(works)}")
        works = {kind: works[kind] for kind in args.only}
    else:
        for kind, work in limits(args, archs, net, subnets).items():
            works[f"{kind}: limit"] = work
        works["plain super-net step"] = plain_step(args, archs, batches, device)
        works["DataLoader, 2 workers"] = data_loader(args)
    times, images = measure(works, args.rounds, device)
    if runtime.rank() > 0:
        return

    figures = {}
    for kind, seconds in times.items():
        if not kind.endswith(": limit"):
            rates = [images[kind] / s for s in seconds]
            figures[kind] = {"images/s": statistics.median(rates), "low": min(rates), "high": max(rates)}
            if f"{kind}: limit" in times:
                figures[kind]["of the limit"] = statistics.median(
                    limit / whole for limit, whole in zip(times[f"{kind}: limit"], seconds, strict=True)
                )
    result = {"flags": vars(args), "figures": figures, **runtime.environment(device)}
    print(f"{args.space}, {args.channels} channels, {args.cells} cells, batch {args.batch_size}, {args.precision}, "
          f"{result['device']}, {result['threads']} threads, torch {result['torch']}, {args.rounds} rounds")  # fmt: skip
    for kind, figure in figures.items():
        limit = f"   {100 * figure['of the limit']:.0f} % of the limit" if "of the limit" in figure else ""
        print(f"{kind:<22} {figure['images/s']:>10,.0f} images/s  [{figure['low']:,.0f}, {figure['high']:,.0f}]{limit}")
    if runtime.world() > 1:
        rates = [figure["images/s"] for figure in figures.values()]
        result["ratios"] = {"together": rates[1] / rates[0], "each its own": rates[3] / rates[2]}
        print(f"{runtime.world()} processes that share batches are {rates[1] / rates[0]:.2f} x one, "
              f"{runtime.world()} with nets of their own {rates[3] / rates[2]:.2f} x")  # fmt: skip
    elif compiling:
        eager, fast = (1 / figures[kind]["images/s"] for kind in works)
        result["compile"] = {"seconds": compiling, "images to break even": compiling / (eager - fast) if fast < eager else None}
        told = (
            f"pays after {compiling / (eager - fast) / TARGET:.1f} epochs of {TARGET:,} images"
            if fast < eager
            else "never pays"
        )
        print(f"compiled in {compiling:.1f} s, which {told}")
    elif not args.only:
        result |= derived(times, images, figures, memory)
    if args.json:
        with runtime.users_mistake():
            runtime.write(args.json, json.dumps(result, indent=1))


def derived(times, images, figures, memory):
    """Prints and returns the ratios, the memory, and what the paper's procedures would cost at these speeds."""

    def ratio(one, other):
        """Median over rounds of how many times the images/s of the other."""
        per_image = [(times[kind], images[kind]) for kind in (other, one)]
        (slow, m), (fast, n) = per_image
        return statistics.median((a / m) / (b / n) for a, b in zip(slow, fast, strict=True))

    ratios = {
        "batches / DataLoader": ratio("batches", "DataLoader, 2 workers"),
        "batches / super-net step": ratio("batches", "super-net step"),
        "super-net step / plain PyTorch": ratio("super-net step", "plain super-net step"),
        "P1 step / P2 step": ratio("P1 step", "super-net step"),
        "scoring / forward pass": ratio("scoring", "forward pass"),
    }
    hours = {p: sum(n / figures[kind]["images/s"] / 3600 for kind, n in work.items()) for p, work in PAPER.items()}
    print(f"batches are {ratios['batches / DataLoader']:.1f} x a DataLoader, "
          f"and take {100 / ratios['batches / super-net step']:.1f} % of a super-net step")  # fmt: skip
    print(f"a super-net step is {ratios['super-net step / plain PyTorch']:.2f} x plain PyTorch; "
          f"a P1 step is {ratios['P1 step / P2 step']:.2f} x a P2 step")  # fmt: skip
    print(f"scoring takes {1 / ratios['scoring / forward pass']:.2f} x the time of the forward passes alone")
    print(f"peak memory of super-net training on 50,000 images: {memory:.2f} GiB")
    print("at the paper's epochs, 100x CIFAR-100, one device:")
    for procedure, h in hours.items():
        print(f"  {procedure:<22} {h:.2f} h, P3 is {hours['P3'] / h:.1f} x as long")
    return {"ratios": ratios, "peak_gib": memory, "hours": hours}


if __name__ == "__main__":
    runtime.launch(parse_args, main)
