"""Train one sub-net from scratch on the target and report its accuracy: all, many, medium, few (section 4.1, Table 6).

    python retrain.py --arch runs/search_p1/result.json --dataset cifar100 --imbalance 100 --out runs/retrain_p1
    torchrun --nproc_per_node=8 retrain.py --arch runs/search_p1/result.json --batch-size 256 --out runs/retrain_p1
    python retrain.py --arch resnet32 --loss LDAM-DRW --dataset cifar10 --imbalance 100 --out runs/baseline
    python retrain.py --describe --dataset cifar10 --arch '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...'

The default loss is CE with effective-number re-weighting from epoch 160 on (DRW-160). The test split is read once, after the
last epoch. Products: model.pt, result.json. In it, `balanced` is the mean over classes, for an uneven test split; `adjusted`
has the accuracies after post-hoc logit adjustment, for CE and CE-DRW (BS and LDAM-DRW know the class sizes already).
Paper: 41.93 % on 100x CIFAR-100 after P1 (Table 3a).
"""

import json
import os
from functools import partial

import torch

from common import data, drw, engine, fast, flags, losses, runtime, spaces


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    group = parser.add_argument_group("sub-net")
    text = "architecture string, DARTS Genotype(...), resnet32, or the result.json of a search"
    group.add_argument("--arch", required=True, help=text)
    flags.add_shape(group)
    group.add_argument("--describe", action="store_true", help="print parameters and multiply-accumulates as JSON, and stop")
    flags.add_data(parser, dataset="cifar100", imbalance=100)
    flags.add_training(parser, "sub-net")
    group.add_argument("--cuda-graphs", action="store_true", help="on a GPU: the same result, several times as fast")
    flags.add_run(parser, out="runs/retrain")
    args = parser.parse_args(argv)
    if args.arch.endswith(".json") or os.path.isfile(args.arch):
        args.arch = searched_arch(args)
    with runtime.user_errors():
        args.space, genes = spaces.parse(args.arch)
        args.arch = spaces.space(args.space).to_string(genes)
    flags.fill_shape(args, args.space)
    flags.fill_schedule(args, "sub-net")
    return args


def searched_arch(args):
    """The best architecture in search.py's result.json. UserError if training would see its validation images."""
    with runtime.reading(args.arch, "a result.json of search.py"), open(args.arch) as file:
        found = json.load(file)
        arch, searched = str(found["best"]["arch"]), found["data"]
        # By name: a path that was relative may mean nothing here.
        names = {os.path.basename(os.path.realpath(path)) for path in (searched["dataset"], args.dataset)}
        per_class, seed = searched["val_per_class"], searched["data_seed"]
    same_hold_out = (per_class, seed) == (args.val_per_class, args.data_seed) or per_class == args.val_per_class == 0
    if len(names) == 1 and not same_hold_out and not args.describe:
        given = f"--val-per-class {per_class} --data-seed {seed}"
        advice = "give the same, so that no validation image is trained on"
        raise runtime.UserError(f"the architecture in '{args.arch}' was found with {given}: {advice}")
    return arch


def main(args):
    # set-up
    space = spaces.space(args.space)
    with runtime.user_errors():
        num_classes = len(data.class_sizes(args.dataset, "train"))
    device = runtime.setup(args.device, args.seed)
    net = space.Network(num_classes, args.channels, args.cells, space.from_string(args.arch))
    losses.match_classifier(net, args.loss)
    mmacs = spaces.macs_counter(net, args.image_size)() / 1e6
    facts = {"arch": args.arch, "params": spaces.parameters(net), "mmacs": mmacs}
    if args.describe:
        return runtime.print0(json.dumps(facts))
    run = runtime.Run(args, device)
    if run.finished:
        return

    # data
    batches, counts, weights = flags.training_data(args, device)

    # model
    net.to(device)
    with runtime.user_errors():
        backbone = fast.captured(net) if args.cuda_graphs else None

    # optimiser
    optimizer = engine.sgd(net, args.lr, args.momentum, args.weight_decay)
    loss = partial(losses.LOSSES[args.loss], counts=counts)

    # loop
    net.train()
    for epoch in range(run.resume(net, optimizer), args.epochs + 1):
        optimizer.param_groups[0]["lr"] = drw.learning_rate(epoch, args.lr, args.milestones, args.warmup)
        class_weights = weights if drw.reweighted(epoch, args.reweight_from) else torch.ones_like(weights)
        metrics = engine.train_epoch(
            net, batches, epoch, optimizer, class_weights,
            loss=loss, clip=args.clip, precision=args.precision, backbone=backbone,
        )  # fmt: skip
        engine.average_statistics(net)
        run.epoch_done(args.epochs, metrics)

    # save
    with runtime.user_errors():
        ((images, labels),) = data.load(("test",), **flags.data_of(args), root=args.data_root, device=device)
    share = slice(runtime.rank(), None, runtime.world())
    chunks = engine.normalised_chunks(images[share], batches.normalise)
    test_counts = labels.bincount(minlength=num_classes)
    correct = runtime.sum_over_ranks(engine.correct_by_class(net, chunks, labels[share]))
    found = {"accuracy": engine.accuracies(correct, test_counts, counts), "adjusted": None}
    if args.loss in ("CE", "CE-DRW"):  # BS and LDAM-DRW know the class sizes already
        adjust = partial(losses.adjust_logits, counts=counts)
        adjusted = runtime.sum_over_ranks(engine.correct_by_class(net, chunks, labels[share], adjust=adjust))
        found["adjusted"] = engine.accuracies(adjusted, test_counts, counts)
    if runtime.rank() == 0:
        runtime.save(run.path("model.pt"), {"kind": "sub-net", **facts, "loss": args.loss, "net": net.state_dict()})
    per_class = (100 * correct.double() / test_counts).tolist()
    run.finish({**facts, **found, "per_class": per_class, "seconds": run.seconds})


if __name__ == "__main__":
    runtime.launch(parse_args, main)
