"""Device, process group, seeds, run folder, checkpoints: what every script does around its own work."""

import argparse
import ctypes
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torchvision


class UserError(Exception):
    """A mistake of the user's, told in one line."""


class Parser(argparse.ArgumentParser):
    """argparse, with its errors on one line and a script's docstring as the help text."""

    def __init__(self, doc, **more):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **more)

    def error(self, message):
        self.exit(2, f"error: {message}\n")


@contextmanager
def users_mistake(where=""):
    """Inside, a ValueError or an unreadable file is the user's mistake: a bad string, image, folder or checkpoint."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error


def launch(parse_args, main):
    """Runs a script. A user's mistake is one line on stderr and exit status 2."""
    try:
        main(parse_args())
        status = 0
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        status = 2
    except Exception:
        traceback.print_exc()
        status = 1
    if dist.is_initialized() and status == 0:
        dist.destroy_process_group()
    sys.stdout.flush()
    # Without waiting for the other ranks: after an error they may be inside a collective that will never end.
    os._exit(status) if dist.is_initialized() else sys.exit(status)


# Processes


_alone = False


@contextmanager
def alone():
    """Inside, this process works by itself: it is rank 0 of 1, and nothing that is called waits for other ranks."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def _together():
    return dist.is_initialized() and not _alone


def rank():
    return dist.get_rank() if _together() else 0


def world():
    return dist.get_world_size() if _together() else 1


def print0(*words):
    """Prints on the first rank, at once."""
    if rank() == 0:
        print(*words, flush=True)


def keep_freed_memory():
    """Has glibc keep large blocks that are freed: handing them back and mapping them anew took a third of a CPU step."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc: nothing to be told
        return
    mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped on its own
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def setup(device, seed):
    """Joins the process group if started by torchrun, seeds, and returns this rank's torch.device.

    device: "auto" is a GPU where there is one. NCCL between GPUs, gloo otherwise.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"cannot use the device '{device}': {str(error).splitlines()[0]}") from None
    local = int(os.environ.get("LOCAL_RANK", 0))
    gpu_each = False
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        gpu_each = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= gpus
        if device.index is None:
            device = torch.device("cuda", local % gpus)
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if gpu_each else "gloo", timeout=timedelta(minutes=10))
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(seed)
    return device


@contextmanager
def first_rank_first():
    """The first rank goes through the block before the others: a dataset is downloaded once."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def barrier():
    if _together():
        dist.barrier()


def sum_over_ranks(tensor):
    """The tensor, summed over ranks in place."""
    if _together():
        dist.all_reduce(tensor)
    return tensor


# The run folder


def write(path, content):
    """Writes bytes or text beside the name, flushes, and renames: the old file or the new one, never half of one."""
    beside = f"{path}.{os.getpid()}.tmp"
    with open(beside, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def save(path, contents):
    """torch.save, in the manner of `write`."""
    beside = f"{path}.{os.getpid()}.tmp"
    with open(beside, "wb") as file:
        torch.save(contents, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def load_checkpoint(path, kind):
    """The dict that `save` wrote, on the CPU. UserError if it cannot be read or says that it is of another kind."""
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint '{path}'") from None
    except Exception as error:  # torch.load raises many kinds, for a file cut short, a picture, a folder, a pickle
        raise UserError(f"'{path}' is not a checkpoint, or is damaged: {str(error).splitlines()[0]}") from None
    found = contents.get("kind") if isinstance(contents, dict) else None
    if found != kind:
        raise UserError(f"'{path}' is not a checkpoint of a {kind}" + (f" but of a {found}" if found else ""))
    return contents


def environment(device):
    """What a number depends on besides its flags."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=os.path.dirname(__file__)
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "device": f"{device.type}: {name}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": world(),
    }


class Run:
    """A run folder: config.json, metrics.jsonl, last.pt, the product, and result.json, whose presence means done."""

    def __init__(self, args, device):
        self.folder, flags = args.out, {k: v for k, v in vars(args).items() if k != "out"}
        flags = json.loads(json.dumps(flags))
        self.history, self.seconds = [], 0.0
        config = self.path("config.json")
        with users_mistake():
            os.makedirs(self.folder, exist_ok=True)
        if os.path.exists(config):
            try:
                with open(config) as file:
                    before = dict(json.load(file)["flags"])
            except (OSError, ValueError, KeyError, TypeError):
                raise UserError(f"'{config}' is not the config.json of a run, or is damaged") from None
            differ = [k for k in sorted(before.keys() | flags.keys()) if before.get(k) != flags.get(k)]
            if differ:
                told = ", ".join(f"{k} was {before.get(k)}, is {flags.get(k)}" for k in differ)
                raise UserError(f"'{self.folder}' holds a run with other flags: {told}")
        self.config = {"flags": flags, **environment(device)}
        self.finished = os.path.exists(self.path("result.json"))
        if self.finished:
            print0(f"{self.folder}: already finished, see {self.path('result.json')}")
        self.clock = time.perf_counter()

    def path(self, name):
        return os.path.join(self.folder, name)

    def begin(self):
        """Writes config.json. Not before every flag has proved right: a mistake must not claim the folder."""
        if rank() == 0 and not os.path.exists(self.path("config.json")):
            write(self.path("config.json"), json.dumps(self.config, indent=1))

    def resume(self, net, optimizer):
        """Begins, or loads last.pt where there is one. Returns the epoch to go on with, and starts the clock."""
        self.begin()
        if os.path.exists(self.path("last.pt")):
            last = load_checkpoint(self.path("last.pt"), "run in progress")
            net.load_state_dict(last["net"])
            optimizer.load_state_dict(last["optimizer"])
            self.history, self.seconds = last["history"], last["seconds"]
            print0(f"{self.folder}: resumed after epoch {len(self.history)}")
        self.clock = time.perf_counter()
        return len(self.history) + 1

    def epoch_done(self, epochs, images, metrics, net, optimizer):
        """Records an epoch of so many images and prints its line; the first rank saves."""
        seconds = time.perf_counter() - self.clock
        self.seconds += seconds
        epoch = len(self.history) + 1
        self.history.append({"epoch": epoch, **metrics, "seconds": seconds})
        left = timedelta(seconds=round(self.seconds / epoch * (epochs - epoch)))
        print0(
            f"epoch {epoch}/{epochs}  loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.2f} %  "
            f"{images / seconds:,.0f} images/s  {left} left"
        )
        if not np.isfinite(metrics["loss"]):
            raise UserError(f"the loss is {metrics['loss']} in epoch {epoch}: a lower --lr or --clip may help")
        if rank() == 0:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
            save(self.path("last.pt"), {"kind": "run in progress", "history": self.history, "seconds": self.seconds} | state)
        self.write_lines("metrics.jsonl", self.history)
        self.clock = time.perf_counter()

    def write_lines(self, name, lines):
        """Writes dicts as JSON, one a line; on the first rank."""
        if rank() == 0:
            write(self.path(name), "".join(json.dumps(line) + "\n" for line in lines))

    def save_supernet(self, net, space, channels, cells, data, facts):
        """Writes supernet.pt: the weights, and all that a later stage need not be told. data: arguments of `data.load`."""
        if rank() == 0:
            shape = {"space": space, "channels": channels, "cells": cells, "num_classes": net.classifier.out_features}
            save(self.path("supernet.pt"), {"kind": "super-net", **shape, "data": data, **facts, "net": net.state_dict()})

    def finish(self, result):
        """Writes result.json, last of all."""
        if rank() == 0:
            write(self.path("result.json"), json.dumps(result, indent=1))
        print0(f"{self.folder}: done, see {self.path('result.json')}")
