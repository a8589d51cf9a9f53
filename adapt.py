"""Adapt a super-net, trained on a balanced source, to an imbalanced target: procedures P0, P1 and P2 of Table 2.

    python adapt.py --procedure P1 --supernet runs/source/supernet.pt --dataset cifar100 --imbalance 100 --out runs/p1
    torchrun --nproc_per_node=8 adapt.py --procedure P1 --supernet runs/source/supernet.pt --out runs/p1

P0 changes nothing: search goes on in the source super-net, on the source. P1 freezes the backbone and trains a new linear
classifier with the re-weighted loss (Eq. 4). P2 trains both, re-weighting late (Eq. 5). Products: supernet.pt, result.json.
Paper, CIFAR-10 -> 100x CIFAR-100: sub-nets of P0, P1, P2 reach 40.83, 41.93, 41.86 % (Table 3a); P1 took 2000 s of a V100.
"""

import torch
from torch import nn

from common import data, drw, engine, flags, runtime, spaces


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    group = parser.add_argument_group("adaptation")
    group.add_argument("--procedure", choices=("P0", "P1", "P2"), default="P1", help="Table 2 (default P1)")
    group.add_argument("--supernet", required=True, help="the source's supernet.pt")
    group.add_argument(
        "--backbone-epochs", type=int, metavar="E",
        help="P2: freeze the backbone after E epochs, Table 4 (default: all of them)",
    )  # fmt: skip
    group.add_argument(
        "--features-every", type=int, default=1, metavar="K",
        help="with a frozen backbone: compute the features in each K-th epoch, and train the classifier on them in all, "
        "shuffled over batches and paths (default 1: in every epoch, batch by batch, as the paper)",
    )  # fmt: skip
    flags.add_data(parser, dataset="cifar100", imbalance=100)
    flags.add_training(parser, 0.01, 0, "200", "100, in proportion to --epochs", "P1: 1; P2: 100, in proportion")
    flags.add_run(parser, out="runs/adapt")
    args = parser.parse_args(argv)
    flags.schedule(args, epochs=200, milestones=(100,), reweight_from=1 if args.procedure == "P1" else 100)
    if args.backbone_epochs is not None and args.procedure != "P2":
        raise runtime.UserError(f"--backbone-epochs is of P2, not of {args.procedure}")
    if args.backbone_epochs is None:
        args.backbone_epochs = args.epochs if args.procedure == "P2" else 0
    if args.backbone_epochs > args.epochs:
        raise runtime.UserError(f"--backbone-epochs {args.backbone_epochs} is beyond the {args.epochs} epochs")
    flags.check(args)
    if args.features_every > 1 and (args.procedure == "P0" or args.backbone_epochs == args.epochs):
        raise runtime.UserError("--features-every is for epochs with a frozen backbone, and there are none")
    return args


def main(args):
    # set-up
    device = runtime.setup(args.device, args.seed)
    run = runtime.Run(args, device)
    if run.finished:
        return
    precision = flags.precision(args, run, device)
    source = runtime.load_checkpoint(args.supernet, "super-net")
    shape = [source[k] for k in ("space", "channels", "cells")]
    facts = {"procedure": args.procedure, "dataset": args.dataset, "imbalance": args.imbalance, "seed": args.seed}
    with runtime.users_mistake(args.supernet):
        net = spaces.supernet_from(source)
    if args.procedure == "P0":  # the checkpoint goes on naming the source's data, on which it is searched
        run.begin()
        run.save_supernet(net, *shape, source["data"], facts)
        return run.finish({**facts, "epochs": 0, "seconds": 0.0, "supernet": run.path("supernet.pt")})

    # data
    with runtime.users_mistake(), runtime.first_rank_first():
        (train,) = data.load(("train",), **flags.data_of(args), root=args.data_root, device=device)
        normalise = data.Normalise(*data.channel_stats(train[0]), args.image_size, device)
        batches = data.Batches(train, normalise, args.batch_size, args.seed, runtime.rank(), runtime.world())
        counts = train[1].bincount()
        weights = drw.class_weights(counts, args.beta).to(device)

    # model: the source's backbone under a new classifier
    net.classifier = nn.Linear(net.classifier.in_features, len(counts))
    net.to(device)
    choices = spaces.SPACES[source["space"]].CHOICES

    # optimiser
    optimizer = engine.sgd(net, args.lr, args.momentum, args.weight_decay)

    # loop
    def path(step):
        return spaces.path(choices, args.seed, step)

    engine.use_batch_statistics(net)
    head, kept_from, kept = engine.Head(net.classifier), None, None
    for epoch in range(run.resume(net, optimizer), args.epochs + 1):
        optimizer.param_groups[0]["lr"] = drw.learning_rate(epoch, args.lr, args.milestones, args.warmup)
        step = (optimizer, weights if drw.reweighted(epoch, args.reweight_from) else torch.ones_like(weights))
        frozen = epoch - args.backbone_epochs  # the how many-th epoch with a frozen backbone
        if frozen > 0 and args.features_every > 1:
            first = epoch - (frozen - 1) % args.features_every
            if kept_from != first:
                kept, kept_from = engine.KeptFeatures(net, batches, first, path, precision), first
            metrics = engine.train_epoch(head, kept, epoch, *step, clip=args.clip, run=run)
        else:
            metrics = engine.train_epoch(
                net, batches, epoch, *step, path=path, freeze_backbone=frozen > 0,
                clip=args.clip, precision=precision, run=run,
            )  # fmt: skip
        run.epoch_done(args.epochs, len(train[1]), metrics)

    # save
    run.save_supernet(net, *shape, flags.data_of(args), facts)
    run.finish({**facts, "epochs": args.epochs, "seconds": run.seconds, "supernet": run.path("supernet.pt")})


if __name__ == "__main__":
    runtime.launch(parse_args, main)
