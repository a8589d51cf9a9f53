"""The flags that several scripts share, and what follows from them. Every default is the paper's or, where it is silent,
the field's most used value (see README)."""

import math

from . import engine
from .runtime import UserError

MOST = 10**7  # of anything that is counted: beyond it nothing ends in a lifetime


def add_run(parser, out, seeds=False):
    """seeds: several may be given."""
    group = parser.add_argument_group("run")
    group.add_argument("--out", default=out, help=f"run folder; the same command again resumes it (default {out})")
    if seeds:
        group.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S", help="of weights and batches (default 0)")
    else:
        group.add_argument("--seed", type=int, default=0, help="of weights, batches and paths (default 0)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default auto: a GPU if there is one)")
    group.add_argument("--data-root", default="data", help="where CIFAR is kept or downloaded to (default data)")


def add_data(parser, dataset, imbalance):
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset", default=dataset, help="cifar10, cifar100, synthetic10, synthetic100, or a folder of "
        f"train/<class>/* and val/<class>/* images (default {dataset})",
    )  # fmt: skip
    group.add_argument(
        "--imbalance", type=float, default=imbalance, metavar="R",
        help=f"keep int(n R^(-c/(C-1))) images of class c; 1 keeps all (default {imbalance:g})",
    )  # fmt: skip
    add_draw(group)


def add_draw(group):
    """The data flags of a script that takes several datasets."""
    group.add_argument("--data-seed", type=int, default=0, help="which images are kept and held out (default 0)")
    group.add_argument(
        "--val-per-class", type=int, default=0, metavar="K",
        help="search on K training images a class, held out before the long-tail draw (default 0: on the test split)",
    )  # fmt: skip
    group.add_argument("--image-size", type=int, default=32, help="folders: images are brought to this size (default 32)")


def data_of(args):
    """The data flags that a checkpoint carries, for the stages that follow: arguments of `data.load`."""
    return {k: getattr(args, k) for k in ("dataset", "imbalance", "data_seed", "val_per_class", "image_size")}


def add_training(parser, lr, warmup, epochs, milestones, reweight_from):
    """The three last are texts for --help: what `schedule` fills in."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=int, help=f"(default {epochs})")
    group.add_argument("--lr", type=float, default=lr, help=f"initial learning rate (default {lr:g})")
    group.add_argument(
        "--milestones", type=int, nargs="*", metavar="E",
        help=f"epochs, counted from 1, at which the rate falls to a hundredth (default {milestones})",
    )  # fmt: skip
    group.add_argument("--warmup", type=int, default=warmup, help=f"epochs of linear warm-up (default {warmup})")
    group.add_argument(
        "--reweight-from", type=int, metavar="E",
        help=f"the epoch from which the loss is re-weighted (default {reweight_from})",
    )  # fmt: skip
    group.add_argument("--beta", type=float, default=0.9999, help="of the effective number of images (default 0.9999)")
    group.add_argument("--batch-size", type=int, default=128, help="over all ranks (default 128)")
    group.add_argument("--momentum", type=float, default=0.9, help="(default 0.9)")
    group.add_argument("--weight-decay", type=float, default=2e-4, help="(default 2e-4)")
    group.add_argument("--clip", type=float, default=5.0, help="largest gradient norm (default 5)")
    group.add_argument(
        "--precision", choices=("fp32", "bf16", "auto"), default="fp32",
        help="of the backbone in training; auto: bf16 where it is measured to be faster (default fp32)",
    )  # fmt: skip


def add_compile(parser):
    parser.add_argument(
        "--compile", action="store_true",
        help="a CPU: torch.compile, which pays in long trainings alone; a GPU: CUDA graphs (see README)",
    )  # fmt: skip


def precision(args, run, device):
    """fp32 or bf16. For --precision auto it is measured once, at the beginning of the run."""
    if args.precision != "auto":
        return args.precision
    return run.once("precision", lambda: engine.faster_precision(device))


def schedule(args, epochs, milestones, reweight_from):
    """Fills in the schedule that was not given: the paper's, in proportion where --epochs is not the paper's.

    epochs, milestones, reweight_from: the paper's. UserError for an epoch beyond the last.
    """
    args.epochs = epochs if args.epochs is None else args.epochs
    if not 1 <= args.epochs < MOST:
        raise UserError(f"--epochs must be at least 1 and below {MOST:g}, not {args.epochs}")

    def scaled(epoch):
        return math.ceil(epoch * args.epochs / epochs)

    if args.milestones is None:  # the first epoch always has the full rate
        args.milestones = sorted({scaled(m) for m in milestones} - {1})
    if args.reweight_from is None:
        args.reweight_from = scaled(reweight_from)
    for flag, values in (("--milestones", args.milestones), ("--reweight-from", [args.reweight_from])):
        for epoch in values:
            if not 1 <= epoch <= args.epochs:
                raise UserError(f"{flag} {epoch} is not one of the {args.epochs} epochs")


def check(args):
    """UserError for a number that no run can use. Flags that a script does not have are passed over."""
    for least, names in (
        (0, "seed seeds data_seed val_per_class warmup backbone_epochs crossovers mutations val_images momentum weight_decay"),
        (1, "batch_size channels cells bn_images generations population topk top jobs rounds steps features_every imbalance"),
    ):
        for name in names.split():
            values = getattr(args, name, None)
            for value in values if isinstance(values, list) else [values]:
                most = 2**63 if "seed" in name else MOST
                if value is not None and not least <= value < most:
                    wanted = f"at least {least}" if not value >= most else f"below {most:g}"
                    raise UserError(f"{_flag(name)} must be {wanted}, not {value}")
    for name in ("lr", "clip", "max_mmacs"):
        value = getattr(args, name, None)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{_flag(name)} must be a positive number, not {value}")
    if not 0 <= getattr(args, "mutate_probability", 0) <= 1:
        raise UserError(f"--mutate-probability must be from 0 to 1, not {args.mutate_probability}")
    size = getattr(args, "image_size", 32)
    if not 4 <= size <= 1024 or size % 4:
        raise UserError(f"--image-size must be a multiple of 4 up to 1024, since it is halved twice, not {size}")
    if (getattr(args, "channels", None) or 0) > 4096:
        raise UserError(f"--channels must be at most 4096, not {args.channels}")
    try:
        getattr(args, "out", "").encode()
    except UnicodeEncodeError:
        raise UserError(f"--out is not a text in UTF-8: {args.out!r}") from None


def _flag(name):
    return "--" + name.replace("_", "-")
