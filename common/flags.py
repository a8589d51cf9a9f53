"""The flags that several scripts share. Every default is the paper's or, where the paper is silent, a common one."""

import argparse
import math

from . import data, drw, losses, spaces
from .runtime import UserError, print0, rank, user_errors, world


def number(kind, least, most=math.inf, above=False):
    """An argparse type: an int or float of at least `least` (above: greater than it), and below `most`."""

    def parse(text):
        value = kind(text)
        if not least <= value < most or (above and value == least):
            low, high = "greater than" if above else "at least", "finite" if most == math.inf else f"below {most:,}"
            raise argparse.ArgumentTypeError(f"must be {low} {least} and {high}, not {text}")
        return value

    parse.__name__ = kind.__name__  # argparse names it when the text is no number
    return parse


count = number(int, 0, 10**7)
positive_int = number(int, 1, 10**7)
seed = number(int, 0, 2**63)
positive = number(float, 0, above=True)
non_negative = number(float, 0)
ratio = number(float, 1)
fraction = number(float, 0, 1)
width = number(int, 1, 4097)

SCHEDULES = {  # epochs, learning rate, its milestones, re-weighting from (section 4.1); warm-up epochs (ours)
    "sub-net": (200, 0.1, (160, 180), 160, 5),
    "super-net": (600, 0.1, (400, 500), 400, 5),
    "P1": (200, 0.01, (100,), 1, 0),
    "P2": (200, 0.01, (100,), 100, 0),
}


def image_size(text):
    """An argparse type: a multiple of 4, since networks halve the resolution twice."""
    value = number(int, 4, 1025)(text)
    if value % 4:
        raise argparse.ArgumentTypeError(f"must be a multiple of 4, since it is halved twice, not {value}")
    return value


image_size.__name__ = "int"  # in argparse's message


def add_run(parser, out, seeds=False):
    """seeds: take several seeds, --seeds, instead of one."""
    add = parser.add_argument_group("run").add_argument
    add("--out", default=out, help="run folder, on a disk that all nodes share; the same command again resumes it")
    if seeds:
        add("--seeds", type=seed, nargs="+", default=[0], metavar="S", help="seeds of weights and batches")
    else:
        add("--seed", type=seed, default=0, help="seed of weights, batches and paths")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ..., or auto: a GPU if there is one")
    add("--data-root", default="data", help="where CIFAR is kept or downloaded to")


def add_data(parser, dataset, imbalance):
    group = parser.add_argument_group("data")
    add, known = group.add_argument, ", ".join(data.CLASSES)
    add("--dataset", default=dataset, help=f"{known}, or a folder of train/<class>/* and val/<class>/* images")
    text = "keep int(n R^(-c/(C-1))) images of class c; 1 keeps all"
    add("--imbalance", type=ratio, default=imbalance, metavar="R", help=text)
    add_draw(group)


def add_draw(group):
    """The data flags that do not name a dataset."""
    add = group.add_argument
    add("--data-seed", type=seed, default=0, help="seed of the long-tail draw and the hold-out")
    text = "hold out K training images per class before the long-tail draw, for searches; 0: they use the test split"
    add("--val-per-class", type=count, default=0, metavar="K", help=text)
    add("--image-size", type=image_size, default=32, metavar="S", help="images become S x S, a multiple of 4")


def data_of(args):
    """The data flags that a checkpoint carries for the stages that follow: arguments of `data.load`."""
    return {k: getattr(args, k) for k in ("dataset", "imbalance", "data_seed", "val_per_class", "image_size")}


def training_data(args, device, paths=1):
    """This rank's (batches, counts (C,), class weights (C,)) of the training split that the flags describe, on the device.

    paths: how many paths of a super-net share a batch.
    """
    with user_errors():
        (train,) = data.load(("train",), **data_of(args), root=args.data_root, device=device)
        normalise = data.Normalise(*data.channel_stats(train[0]), args.image_size, device)
        batches = data.Batches(train, normalise, args.batch_size, args.seed, rank(), world())
        counts = train[1].bincount()
        weights = drw.class_weights(counts, args.beta)
    own = len(batches.labels) // (len(batches) * world())
    if own < paths:
        raise UserError(f"{paths} paths cannot share a rank's batch of {own} images: raise --batch-size, or use fewer ranks")
    if world() > 1 and own // paths < 32:
        print0(f"batch norm sees only {own // paths} images at a time: raise --batch-size, or use fewer ranks")
    return batches, counts, weights


def add_sampling(group):
    text = (
        "uniform: one path per step. The others: as many paths as the largest gene has values share the batch. strict: they "
        "use every value of a gene equally often. convolutions: convolutions are three times as likely as other operations"
    )
    group.add_argument("--sampling", choices=spaces.SAMPLINGS, default="uniform", help=text)


def add_shape(group):
    text = "width of the first stage (default: 16 for nats and resnet32, 36 for darts, 64 for shufflenet)"
    group.add_argument("--channels", type=width, help=text)
    text = "cells per stage (default 5: nats), cells in all (20: darts), or blocks per stage (4: shufflenet, 5: resnet32)"
    group.add_argument("--cells", type=positive_int, help=text)


def fill_shape(args, space):
    """Fills in the channels and cells that were not given: the named space's defaults."""
    for name, value in spaces.space(space).DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def add_training(parser, *stages):
    """Defaults are the SCHEDULES of these stages, of which `fill_schedule` chooses one."""
    epochs, lr, milestones, _, warmup = SCHEDULES[stages[0]]
    add = parser.add_argument_group("training").add_argument
    text = "cross entropy (CE), balanced softmax (BS), or LDAM, which needs a cosine classifier; -DRW: see --reweight-from"
    add("--loss", choices=losses.LOSSES, default="CE-DRW", help=text)
    add("--epochs", type=positive_int, default=epochs, help="passes over the training images")
    add("--lr", type=positive, default=lr, help="initial learning rate")
    default = f"default: {' and '.join(map(str, milestones))} of {epochs}, in proportion to --epochs"
    text = f"epochs, counted from 1, at which the learning rate is multiplied by 0.01 ({default})"
    add("--milestones", type=positive_int, nargs="*", metavar="E", help=text)
    add("--warmup", type=count, default=warmup, help="epochs of linear warm-up, not scaled to --epochs")
    default = ", ".join(f"{stage} {SCHEDULES[stage][3]} of {epochs}" for stage in stages)
    text = f"epoch from which a -DRW loss is re-weighted (default: {default})"
    add("--reweight-from", type=positive_int, metavar="E", help=text)
    add("--beta", type=float, default=0.9999, help="beta of the effective number (1 - beta^n) / (1 - beta)")
    add("--batch-size", type=positive_int, default=128, help="images per step, over all ranks that train one network")
    add("--momentum", type=non_negative, default=0.9, help="momentum of SGD")
    add("--weight-decay", type=non_negative, default=2e-4, help="weight decay of SGD")
    add("--clip", type=positive, default=5.0, help="largest gradient norm")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="precision of the backbone in training")


def fill_schedule(args, stage):
    """Fills in what was not given of the schedule: the stage's, scaled to --epochs. UserError for an epoch beyond the last."""
    epochs, _, milestones, reweight_from, _ = SCHEDULES[stage]

    def scaled(epoch):
        return 1 if epoch == 1 else math.ceil(epoch * args.epochs / epochs)

    if args.milestones is None:  # a milestone at epoch 1 would lower the rate before anything is learned
        args.milestones = sorted({scaled(m) for m in milestones} - {1})
    if not args.loss.endswith("-DRW"):
        if args.reweight_from is not None:
            raise UserError(f"--reweight-from belongs to the -DRW losses, not to {args.loss}")
    elif args.reweight_from is None:
        args.reweight_from = scaled(reweight_from)
    latest = max([*args.milestones, args.reweight_from or 0])
    if latest > args.epochs:
        raise UserError(f"--milestones or --reweight-from names epoch {latest}, but there are only {args.epochs} epochs")


def add_scoring(group):
    text = "training images from which BN statistics are rebuilt"
    group.add_argument("--bn-images", type=positive_int, default=2000, help=text)
    text = "score a path not by its accuracy (Eq. 2) but by the variance of the labels, in %%, that a linear classifier of"
    text += " its own explains, fitted to its features of the BN images; long-tailed data need many --bn-images"
    group.add_argument("--own-classifier", action="store_true", help=text)
