"""Which ways to train and to score a super-net rank architectures better, at equal cost? README.md has what came out.

    python results/supernet/ways.py uniform --seed 0               # one super-net -> runs/supernet/uniform_s0.jsonl
    python results/supernet/ways.py uniform --seed 0 --final       # on the other architectures and the test images
    python results/supernet/table.py runs/supernet/*.jsonl         # tau of each way, over the seeds that are there

Truth: published NATS-Bench accuracies on CIFAR-10 (data/nats_bench_sample.csv), connected architectures only. Cost: the
multiply-accumulates of `--epochs` epochs of uniform sampling with 8 channels and 1 cell per stage. A way whose step costs more
gets fewer epochs. A super-net is scored on images that were held out of its training, and by --final on the test split. It
is kept beside its scores, and the same command with other options scores it further.
"""

import argparse
import copy
import json
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from table import measures, read_truth, weight

from common import data, drw, engine, flags, nats, runtime, scoring, spaces

BASE = {"channels": 8, "cells": 1, "lr": 0.1, "weight_decay": 2e-4, "decay": "steps", "sampling": "uniform", "cost": 1}
WAYS = {
    "uniform": {},
    "no decay": {"decay": "none"},
    "cosine": {"decay": "cosine"},
    "no weight decay": {"weight_decay": 0.0},
    "6 channels, 2 cells": {"channels": 6, "cells": 2},
    "twice the cost": {"cost": 2},
    "convolutions 3, shared batch, cosine": {"sampling": "convolutions 3, shared batch", "decay": "cosine"},
    "by weights, shared batch, cosine": {"sampling": "by weights, shared batch", "decay": "cosine"},
    "by weights, shared batch, 2 cells": {"sampling": "by weights, shared batch", "channels": 6, "cells": 2},
}
FLAGS = {  # sampling: what --sampling of train_supernet.py calls it
    "strict": "strict",
    "strict, shared batch": "strict",
    "convolutions 3, shared batch": "convolutions",
}
SHARES = {  # sampling: (shares of none, skip, 1x1, 3x3 and pool, paths per step)
    "by weights": ((12, 14, 24, 36, 14), 1),
    "by weights, shared batch": ((12, 14, 24, 36, 14), 5),
    "convolutions 2, shared batch": ((1, 1, 2, 2, 1), 5),
}
WAYS |= {name: {"sampling": name} for name in (*FLAGS, *SHARES, "distinct", "best:3", "worst:3")}


class Sampling:
    """How the paths of a step are chosen. `engine.train_epoch` takes lists of architectures."""

    def __init__(self, kind, seed):
        self.kind, _, tries = kind.partition(":")
        self.seed, self.tries = seed, int(tries or 1)
        self.copies = 5 if self.kind == "strict" else 1  # of the batch
        self.work = (3 * self.copies + (self.tries if self.tries > 1 else 0)) / 3  # forward passes, over those of one path
        self.flag = spaces.sampler("nats", seed, FLAGS.get(self.kind, "uniform"))
        if self.kind == "distinct":
            groups = defaultdict(list)
            for arch in np.ndindex(*nats.CHOICES):
                groups[nats.canonical(arch)[0]].append(tuple(map(int, arch)))
            self.groups = list(groups.values())

    def draw(self, step):
        """The step's candidates, each a list of architectures."""
        rng = np.random.default_rng([self.seed, step, 1])
        if self.kind == "distinct":  # uniform over functions, then over the strings of one
            group = self.groups[rng.integers(len(self.groups))]
            return [[group[rng.integers(len(group))]]]
        if self.kind in SHARES:  # operations without weights have nothing to learn
            p, paths = SHARES[self.kind]
            return [[tuple(rng.choice(5, 6, p=np.array(p) / sum(p)).tolist()) for _ in range(paths)]]
        if self.tries == 1:
            return [self.flag(step)]
        first = spaces.sample(nats.CHOICES, rng)
        found = [[first]]
        while len(found) < self.tries:  # attentive sampling (Wang et al. 2021): candidates of like cost
            arch = spaces.sample(nats.CHOICES, rng)
            if abs(weight(arch) - weight(first)) <= 3:
                found.append([arch])
        return found


class OwnBatches:
    """The training batches, repeated for each copy, and the latest of them for attentive sampling."""

    def __init__(self, batches, copies):
        self.batches, self.copies, self.latest = batches, copies, None

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch):
        for images, labels in self.batches.epoch(epoch):
            self.latest = images, labels
            yield images.repeat(self.copies, 1, 1, 1), labels.repeat(self.copies)


def train(args, way, train_split, report):
    """Trains a super-net in this way and returns it. Calls report(epoch, {name of weights: net}) at the epochs to be scored."""
    torch.manual_seed(args.seed)
    net = spaces.supernet("nats", 10, way["channels"], way["cells"])
    sampling = Sampling(way["sampling"], args.seed)
    budget = way["cost"] * args.epochs * mean_macs(BASE, "uniform")
    epochs = way["epochs"] = max(1, round(budget / (mean_macs(way, way["sampling"]) * sampling.work)))
    normalise = data.Normalise(*data.channel_stats(train_split[0]), 32, "cpu")
    batches = OwnBatches(data.Batches(train_split, normalise, 128, args.seed), sampling.copies)
    optimizer = engine.sgd(net, way["lr"], 0.9, way["weight_decay"])
    averages = {f"average {decay:g}": copy.deepcopy(net) for decay in args.average}

    @torch.no_grad()
    def follow(*_):  # weights off the path have no gradient, and their averages are left alone
        for decay, average in zip(args.average, averages.values(), strict=True):
            pairs = [(a, p) for a, p in zip(average.parameters(), net.parameters(), strict=True) if p.grad is not None]
            torch._foreach_lerp_(*map(list, zip(*pairs, strict=True)), 1 - decay)

    optimizer.register_step_post_hook(follow)

    def paths(step):
        candidates = sampling.draw(step)
        if len(candidates) == 1:
            return candidates[0]
        images, labels = batches.latest
        with torch.no_grad():
            losses = [F.cross_entropy(net(images, *candidate), labels).item() for candidate in candidates]
        return candidates[int((np.argmin if sampling.kind == "best" else np.argmax)(losses))]

    def loss(*args, **kwargs):  # the gradients of copies are added up, not averaged
        return sampling.copies * F.cross_entropy(*args, **kwargs)

    schedule = argparse.Namespace(epochs=epochs, milestones=None, reweight_from=None, loss="CE")
    flags.fill_schedule(schedule, "super-net")
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        rate = drw.learning_rate(epoch, way["lr"], schedule.milestones if way["decay"] == "steps" else (), warmup=1)
        if way["decay"] == "cosine":
            rate *= (1 + np.cos(np.pi * (epoch - 1) / epochs)) / 2
        optimizer.param_groups[0]["lr"] = rate
        engine.use_batch_statistics(net)
        metrics = engine.train_epoch(
            net, batches, epoch, optimizer, torch.ones(10), paths=paths, loss=loss, precision=way["precision"]
        )
        metrics["loss"] /= sampling.copies
        print(f"epoch {epoch}/{epochs}  {metrics}  {time.perf_counter() - start:.1f} s", flush=True)
        if epoch == epochs or epoch in args.score_at:
            report(epoch, epoch == epochs, {"last": net, **(averages if epoch == epochs else {})})
    return net


def mean_macs(way, sampling, paths=300):
    """Multiply-accumulates of an image on a mean path."""
    net, chosen = spaces.supernet("nats", 10, way["channels"], way["cells"]), Sampling(sampling, 0)
    macs = spaces.macs_counter(net)
    return np.mean([macs(arch) for step in range(paths) for arch in chosen.draw(step)[0]])


@torch.inference_mode()
def scores(net, archs, bn_chunks, bn_labels, val_chunks, labels, recalibrate):
    """{architecture string: (accuracy in %, mean loss, the same of a classifier of its own: accuracy, squared error)}.

    bn_chunks: images to fit the architecture's own classifier, and to re-calibrate batch norm. recalibrate: or else batch norm
    uses the statistics of the batch.
    """
    found = {}
    for text in archs:
        arch = nats.from_string(text)
        if recalibrate:
            engine.recalibrate(net, bn_chunks, arch)
            net.eval()
        else:
            engine.use_batch_statistics(net)
        known, features = (torch.cat([net.features(x, arch) for x in chunks]) for chunks in (bn_chunks, val_chunks))
        logits = net.classifier(features).double()
        own = scoring.least_squares_classifier(known, bn_labels, torch.ones(10))(features)
        error = F.mse_loss(own, F.one_hot(labels).double()).item()
        shares = [100 * (guesses.argmax(1) == labels).double().mean().item() for guesses in (logits, own)]
        found[text] = shares[0], F.cross_entropy(logits, labels).item(), shares[1], error
    return found


def run(args):
    way = {**BASE, "precision": args.precision, **WAYS[args.way]}
    name = re.sub(r"\W+", "_", args.way)  # best:3 -> best_3, since Windows allows no colon
    trained = Path(args.out) / f"{name}_s{args.seed}.pt"
    out = trained.with_suffix(".final.jsonl" if args.final else ".jsonl")
    truth = read_truth(args.truth)
    archs = list(truth)[args.archs :] if args.final else list(truth)[: args.archs]
    source = {"dataset": args.dataset, "val_per_class": args.val_per_class}
    train_split, (val_images, labels) = data.load(("train", "test" if args.final else "val"), **source)
    normalise = data.Normalise(*data.channel_stats(train_split[0]), 32, "cpu")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # batch statistics need mixed classes
    labels, val_chunks = labels[order], engine.normalised_chunks(val_images[order], normalise)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    known = {tuple(line[key] for key in ("epoch", "weights", "bn_images")) for line in lines}
    facts = runtime.environment(torch.device("cpu"))

    def report(epoch, final, nets):
        for name, net in nets.items():
            for n in args.bn_images if final and name == "last" else args.bn_images[:1]:
                if (epoch, name, n) in known or (args.final and not final):
                    continue
                start = time.perf_counter()
                images, bn_labels = next(data.Batches(train_split, normalise, n or 2000, args.seed).epoch(0))
                found = scores(copy.deepcopy(net), archs, engine.chunks_of(images), bn_labels, val_chunks, labels, n > 0)
                line = {"way": args.way, "seed": args.seed, "epoch": epoch, "weights": name, "bn_images": n, "scores": found}
                lines.append({**line, "settings": way, **facts})
                seconds, accuracies = time.perf_counter() - start, [found[a][0] for a in archs]
                spread = f"accuracies {np.mean(accuracies):.2f} +- {np.std(accuracies):.2f}"
                taus = ", ".join(f"{tau['tau']:.2f} by {score}" for score, tau in measures(found, truth).items())
                print(f"epoch {epoch} {name} bn {n}: tau {taus}; {spread}; {seconds:.0f} s", flush=True)

    if trained.exists():
        if args.score_at or args.average:
            raise runtime.UserError(f"'{trained}' is already trained: --score-at and --average need another --out")
        saved = runtime.load_checkpoint(trained, "super-net")
        net, way = spaces.supernet("nats", 10, way["channels"], way["cells"]), {key: saved[key] for key in (*way, "epochs")}
        net.load_state_dict(saved["net"])
        report(way["epochs"], True, {"last": net})
    else:
        net = train(args, way, train_split, report)
        trained.parent.mkdir(parents=True, exist_ok=True)
        runtime.save(str(trained), {"kind": "super-net", "net": net.state_dict(), **way})
    runtime.write(out, "".join(json.dumps(line) + "\n" for line in lines))


def parse_args():
    parser = runtime.Parser(__doc__)
    parser.add_argument("way", choices=WAYS, help="what differs from uniform sampling with the paper's schedule")
    parser.add_argument("--final", action="store_true", help="score on the other architectures and on the test images")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and paths")
    parser.add_argument(
        "--epochs", type=flags.positive_int, default=20, help="of uniform sampling; other ways have as many as cost the same"
    )
    parser.add_argument("--score-at", type=int, nargs="*", default=[], metavar="E", help="epochs to score at while training")
    parser.add_argument("--average", type=float, nargs="*", default=[], metavar="D", help="decays of averages while training")
    parser.add_argument(
        "--bn-images", type=int, nargs="+", default=[2000], help="images for batch-norm statistics; 0: each batch's own"
    )
    parser.add_argument("--archs", type=int, default=100, help="the first so many connected architectures of --truth")
    parser.add_argument("--truth", default="data/nats_bench_sample.csv", help="CSV of published accuracies")
    parser.add_argument("--dataset", default="data/cifar10", help="as in train_supernet.py")
    parser.add_argument("--val-per-class", type=int, default=300, help="training images to hold out and score on")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="precision of training")
    parser.add_argument("--out", default="runs/supernet", help="folder of the files")
    return parser.parse_args()


def main(args):
    with runtime.user_errors():
        run(args)


if __name__ == "__main__":
    runtime.launch(parse_args, main)
