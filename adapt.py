"""Adapt a super-net that was trained on a balanced source to an imbalanced target: procedures P0, P1 and P2 of Table 2.

    python adapt.py --procedure P1 --supernet runs/source/supernet.pt --dataset cifar100 --imbalance 100 --out runs/p1
    torchrun --nproc_per_node=8 adapt.py --supernet runs/source/supernet.pt --batch-size 256 --out runs/p1

P0 changes nothing: search.py will search the source's super-net on the source. P1 freezes the backbone and trains a new
linear classifier, re-weighted from the first epoch (Eq. 4). P2 trains both and re-weights from the middle (Eq. 5).
Products: supernet.pt, result.json. Paper, CIFAR-10 -> 100x CIFAR-100: sub-nets of P0, P1, P2 reach 40.83, 41.93, 41.86 %
(Table 3a), and P1 took 2000 s on a V100.
"""

from functools import lru_cache, partial

import torch
from torch import nn

from common import drw, engine, flags, losses, runtime, spaces


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    group = parser.add_argument_group("adaptation")
    group.add_argument("--procedure", choices=("P0", "P1", "P2"), default="P1", help="way to adapt, Table 2")
    group.add_argument("--supernet", required=True, help="supernet.pt of the source")
    text = "P2: freeze the backbone after E epochs, Table 4 (default: never; 0: from the start)"
    group.add_argument("--backbone-epochs", type=flags.count, metavar="E", help=text)
    text = "with a frozen backbone: recompute its features only every K epochs and reuse them, reshuffled, in between"
    group.add_argument("--features-every", type=flags.positive_int, default=1, metavar="K", help=text)
    flags.add_sampling(group)
    flags.add_data(parser, dataset="cifar100", imbalance=100)
    flags.add_training(parser, "P1", "P2")
    flags.add_run(parser, out="runs/adapt")
    args = parser.parse_args(argv)
    flags.fill_schedule(args, "P1" if args.procedure == "P1" else "P2")
    if args.backbone_epochs is None:
        args.backbone_epochs = args.epochs if args.procedure == "P2" else 0
    elif args.procedure != "P2":
        raise runtime.UserError(f"--backbone-epochs belongs to P2, not to {args.procedure}")
    if args.procedure == "P0" and args.sampling != "uniform":
        raise runtime.UserError(f"--sampling {args.sampling} belongs to P1 and P2: P0 trains nothing")
    if args.features_every > 1 and (args.procedure == "P0" or args.backbone_epochs >= args.epochs):
        raise runtime.UserError("--features-every needs epochs with a frozen backbone, and there are none")
    return args


def main(args):
    # set-up
    device = runtime.setup(args.device, args.seed)
    run = runtime.Run(args, device)
    if run.finished:
        return
    source, net = spaces.load_supernet(args.supernet)
    shape = {key: source[key] for key in ("space", "channels", "cells")}
    facts = {"procedure": args.procedure, "dataset": args.dataset, "imbalance": args.imbalance, "seed": args.seed}
    if args.procedure == "P0":  # search.py reads the source's data flags from the checkpoint
        run.begin()
        return run.finish_supernet(net, facts, epochs=0, **shape, loss=source["loss"], data=source["data"])

    # data
    paths = spaces.sampler(source["space"], args.seed, args.sampling)
    batches, counts, weights = flags.training_data(args, device, len(paths(0)))

    # model: the source's backbone under a new classifier
    net.classifier = nn.Linear(net.classifier.in_features, len(counts))
    losses.match_classifier(net, args.loss)  # LDAM's takes cosines
    net.to(device)

    # optimiser: a frozen weight has no gradient, so SGD leaves it alone, weight decay included
    optimizer = engine.sgd(net, args.lr, args.momentum, args.weight_decay)
    loss = partial(losses.LOSSES[args.loss], counts=counts)

    # loop
    @lru_cache(maxsize=1)
    def features_of(epoch):
        return engine.CachedFeatures(net, batches, epoch, paths, args.precision)

    engine.use_batch_statistics(net)
    for epoch in range(run.resume(net, optimizer), args.epochs + 1):
        optimizer.param_groups[0]["lr"] = drw.learning_rate(epoch, args.lr, args.milestones, args.warmup)
        class_weights = weights if drw.reweighted(epoch, args.reweight_from) else torch.ones_like(weights)
        frozen_epochs = max(0, epoch - args.backbone_epochs)  # so far, this one included
        inputs, kwargs = batches, {"paths": paths, "precision": args.precision}
        if frozen_epochs and args.features_every > 1:
            latest = epoch - (frozen_epochs - 1) % args.features_every
            inputs, kwargs = features_of(latest), {"backbone": nn.Identity()}
        metrics = engine.train_epoch(
            net, inputs, epoch, optimizer, class_weights, loss=loss, freeze_backbone=frozen_epochs > 0, clip=args.clip, **kwargs
        )
        run.epoch_done(args.epochs, metrics)

    # save
    run.finish_supernet(net, facts, args.epochs, **shape, loss=args.loss, data=flags.data_of(args))


if __name__ == "__main__":
    runtime.launch(parse_args, main)
