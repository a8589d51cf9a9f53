"""Train one sub-net from scratch on the target, and report its accuracy on all, many, medium and few (section 4.1).

    python retrain.py --arch runs/search_p1/result.json --dataset cifar100 --imbalance 100 --out runs/retrain_p1
    torchrun --nproc_per_node=8 retrain.py --arch runs/search_p1/result.json --out runs/retrain_p1
    python retrain.py --describe --dataset cifar10 --arch '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...'

CE with effective-number re-weighting from epoch 160 on (DRW-160), plain CE on balanced data. The test split is read once, at
the end, whatever the accuracy. Products: model.pt, result.json. Paper: 41.93 % on 100x CIFAR-100 after P1 (Table 3a).
"""

import functools
import json
import os

import torch

from common import data, drw, engine, flags, losses, runtime, spaces


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    group = parser.add_argument_group("sub-net")
    group.add_argument("--arch", required=True, help="an architecture string, a DARTS Genotype(...), or search's result.json")
    group.add_argument("--channels", type=int, help="of the first stage (default: nats 16, darts 36)")
    group.add_argument("--cells", type=int, help="nats: a stage (default 5); darts: in all (default 20)")
    group.add_argument("--loss", choices=losses.LOSSES, default="CE-DRW", help="(default CE-DRW)")
    group.add_argument("--describe", action="store_true", help="print the parameters and MACs as JSON; train nothing")
    flags.add_data(parser, dataset="cifar100", imbalance=100)
    flags.add_training(parser, 0.1, 5, "200", "160 180, in proportion to --epochs", "160, in proportion to --epochs")
    flags.add_compile(group)
    flags.add_run(parser, out="runs/retrain")
    args = parser.parse_args(argv)
    if args.arch.endswith(".json") or os.path.exists(args.arch):
        try:
            with open(args.arch) as file:
                args.arch = str(json.load(file)["best"]["arch"])
        except FileNotFoundError:
            raise runtime.UserError(f"there is no file '{args.arch}'") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise runtime.UserError(f"'{args.arch}' is not a result.json of search.py") from None
    args.space = spaces.name_of(args.arch)
    for name, value in spaces.SPACES[args.space].DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    flags.schedule(args, epochs=200, milestones=(160, 180), reweight_from=160)
    flags.check(args)
    return args


def describe(args, arch, num_classes):
    """{arch, params, mmacs} of the sub-net."""
    space = spaces.SPACES[args.space]
    net = space.Network(num_classes, args.channels, args.cells, arch)
    mmacs = spaces.macs_counter(net, args.image_size)() / 1e6
    return {"arch": space.to_string(arch), "params": spaces.parameters(net), "mmacs": mmacs}


def by_size(accuracies, counts):
    """Mean accuracy over the classes of > 100, 20-100 and < 20 training images (Table 6); None where there are none.

    accuracies: % of each class. counts: training images of each class.
    """
    groups = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    return {name: accuracies[mask].mean().item() if mask.any() else None for name, mask in groups.items()}


def main(args):
    # set-up
    space = spaces.SPACES[args.space]
    with runtime.users_mistake():
        arch = space.from_string(args.arch)
        num_classes = data.num_classes(args.dataset)
    device = runtime.setup(args.device, args.seed)
    if args.describe:
        return runtime.print0(json.dumps(describe(args, arch, num_classes)))
    run = runtime.Run(args, device)
    if run.finished:
        return
    precision = flags.precision(args, run, device)

    # data
    with runtime.users_mistake(), runtime.first_rank_first():
        (train,) = data.load(("train",), **flags.data_of(args), root=args.data_root, device=device)
        normalise = data.Normalise(*data.channel_stats(train[0]), args.image_size, device)
        batches = data.Batches(train, normalise, args.batch_size, args.seed, runtime.rank(), runtime.world())
        counts = train[1].bincount()
        weights = drw.class_weights(counts, args.beta).to(device)

    # model
    net = space.Network(num_classes, args.channels, args.cells, arch)
    losses.fit_classifier(net, args.loss)
    net.to(device)
    criterion = functools.partial(losses.LOSSES[args.loss], counts=counts)
    features = engine.compiled(net) if args.compile else None

    # optimiser
    optimizer = engine.sgd(net, args.lr, args.momentum, args.weight_decay)

    # loop
    net.train()
    for epoch in range(run.resume(net, optimizer), args.epochs + 1):
        optimizer.param_groups[0]["lr"] = drw.learning_rate(epoch, args.lr, args.milestones, args.warmup)
        reweight = losses.reweights(args.loss) and drw.reweighted(epoch, args.reweight_from)
        metrics = engine.train_epoch(
            net, batches, epoch, optimizer, weights if reweight else torch.ones_like(weights),
            clip=args.clip, precision=precision, features=features, run=run, criterion=criterion,
        )  # fmt: skip
        engine.average_statistics(net)
        run.epoch_done(args.epochs, len(train[1]), metrics)

    # save
    with runtime.users_mistake(), runtime.first_rank_first():
        ((images, labels),) = data.load(("test",), **flags.data_of(args), root=args.data_root, device=device)
    mine = slice(runtime.rank(), None, runtime.world())
    chunks = engine.normalised_chunks(images[mine], normalise)
    right = engine.correct_by_class(net, chunks, labels[mine])
    adjusted = engine.correct_by_class(net, chunks, labels[mine], adjust=(counts / counts.sum()).log())
    per_class = 100 * runtime.sum_over_ranks(right).double() / labels.bincount(minlength=num_classes)
    overall = 100 * right.sum().item() / len(labels)
    facts = describe(args, arch, num_classes)
    if runtime.rank() == 0:
        runtime.save(run.path("model.pt"), {"kind": "sub-net", **facts, "net": net.state_dict()})
    accuracy = {"all": overall, "balanced": per_class.mean().item(), **by_size(per_class, counts)}
    per_class_adjusted = 100 * runtime.sum_over_ranks(adjusted).double() / labels.bincount(minlength=num_classes)
    adjusted = {
        "all": 100 * adjusted.sum().item() / len(labels),
        "balanced": per_class_adjusted.mean().item(),
        **by_size(per_class_adjusted, counts),
    }
    run.finish({**facts, "accuracy": accuracy, "adjusted": adjusted, "per_class": per_class.tolist(), "seconds": run.seconds})


if __name__ == "__main__":
    runtime.launch(parse_args, main)
