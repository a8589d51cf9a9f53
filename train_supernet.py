"""Train a super-net: on a balanced source (Eq. 3), or on the imbalanced target itself (Eq. 6, procedure P3).

    python train_supernet.py --dataset cifar10 --out runs/source
    torchrun --nproc_per_node=8 train_supernet.py --batch-size 256 --out runs/source
    python train_supernet.py --dataset cifar100 --imbalance 100 --out runs/p3

By default a step trains one uniformly drawn path (Guo et al. 2020). On balanced data the default loss, CE-DRW, is plain CE,
since all its weights are 1. Products: supernet.pt, result.json. Paper, 100x CIFAR-100: sub-nets of P3 reach 41.53 % (Table 3a).
"""

from functools import partial

import torch

from common import drw, engine, flags, losses, runtime, spaces


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    group = parser.add_argument_group("super-net")
    group.add_argument("--space", choices=spaces.SPACES, default="nats", help="search space")
    flags.add_shape(group)
    flags.add_sampling(group)
    flags.add_data(parser, dataset="cifar10", imbalance=1)
    flags.add_training(parser, "super-net")
    flags.add_run(parser, out="runs/supernet")
    args = parser.parse_args(argv)
    flags.fill_shape(args, args.space)
    flags.fill_schedule(args, "super-net")
    return args


def main(args):
    # set-up
    device = runtime.setup(args.device, args.seed)
    run = runtime.Run(args, device)
    if run.finished:
        return

    # data
    paths = spaces.sampler(args.space, args.seed, args.sampling)
    batches, counts, weights = flags.training_data(args, device, len(paths(0)))

    # model
    net = spaces.supernet(args.space, len(counts), args.channels, args.cells)
    losses.match_classifier(net, args.loss)
    net.to(device)

    # optimiser
    optimizer = engine.sgd(net, args.lr, args.momentum, args.weight_decay)
    loss = partial(losses.LOSSES[args.loss], counts=counts)

    # loop
    engine.use_batch_statistics(net)
    for epoch in range(run.resume(net, optimizer), args.epochs + 1):
        optimizer.param_groups[0]["lr"] = drw.learning_rate(epoch, args.lr, args.milestones, args.warmup)
        class_weights = weights if drw.reweighted(epoch, args.reweight_from) else torch.ones_like(weights)
        metrics = engine.train_epoch(
            net, batches, epoch, optimizer, class_weights, loss=loss, paths=paths, clip=args.clip, precision=args.precision
        )
        run.epoch_done(args.epochs, metrics)

    # save
    procedure = "source" if counts.min() == counts.max() else "P3"
    facts = {"procedure": procedure, "dataset": args.dataset, "imbalance": args.imbalance, "seed": args.seed}
    shape = {"space": args.space, "channels": args.channels, "cells": args.cells}
    run.finish_supernet(net, facts, args.epochs, **shape, loss=args.loss, data=flags.data_of(args))


if __name__ == "__main__":
    runtime.launch(parse_args, main)
