"""Device, process group, seeds, run folder, checkpoints: what every script does around its own work."""

import argparse
import ctypes
import errno
import io
import json
import math
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
import zipfile
from contextlib import contextmanager, suppress
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
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT):
            raise  # the disk's
        raise UserError(f"{where}: {error}" if where else str(error)) from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error


def launch(parse_args, main):
    """Runs a script. A user's mistake is one line on stderr and exit status 2; a full disk and the like, one line and 1;
    SIGTERM and SIGINT end it with 143 and 130, after what `Run.step_done` does while it trains."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _asked_to_stop)
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        main(parse_args())
        status = 0
    except UserError as error:
        status = _tell(error, 2)
    except OSError as error:
        status = _tell(error, 1)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else _tell(end.code, 1) if end.code else 0
    except Exception as error:
        if world() > 1 and isinstance(error, RuntimeError) and "peer" in str(error):
            status = _tell("another rank has ended, and so must this one", 1)
        else:
            traceback.print_exc()
            status = 1
    if dist.is_initialized() and status == 0:
        leave_together()
        dist.destroy_process_group()
    with suppress(OSError):  # nobody reads any more, or the disk is full
        sys.stdout.flush()
        sys.stderr.flush()
    # Without waiting for the other ranks: after an error they may be inside a collective that will never end.
    os._exit(status) if dist.is_initialized() else sys.exit(status)


def _tell(error, status):
    with suppress(OSError):  # in one piece, since ranks speak at once
        sys.stderr.write(f"error: {' '.join(str(error).split()).removeprefix('error: ')}\n")
        sys.stderr.flush()
    return status


_stop = {"in a step": False, "signal": None, "at": -math.inf}


def _asked_to_stop(number, frame):
    """Leaves at once, unless a training step is going on, which is to be finished; the second time, at once anyway.

    What comes within five seconds is the same time: Linux sends `end_with_parent` once for every thread that the parent had.
    """
    if time.monotonic() - _stop["at"] < 5:
        return
    _stop["at"] = time.monotonic()
    if not _stop["in a step"] or _stop["signal"]:
        raise SystemExit(128 + number)
    _stop["signal"] = number


@contextmanager
def uninterrupted():
    """Inside, a signal to stop waits for the end of the block."""
    _stop["in a step"] = True
    try:
        yield
    finally:
        _stop["in a step"] = False
    if _stop["signal"]:
        raise SystemExit(128 + _stop["signal"])


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


def end_with_parent(number):
    """Has Linux send this process a signal when the one that started it dies, which else it would outlive.

    A rank without its torchrun would wait ten minutes for a store that is gone, or train on unnoticed in a folder that is
    to be resumed.
    """
    with suppress(OSError, AttributeError, TypeError):  # not Linux
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def setup(device, seed):
    """Joins the process group if started by torchrun, seeds, and returns this rank's torch.device.

    device: "auto" is a GPU where there is one; ranks go round the GPUs, unless it names one. NCCL where each rank has a GPU of
    its own, gloo otherwise.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    shared = True
    try:
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:  # before anything is put on the first GPU
            shared = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count()
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % max(torch.cuda.device_count(), 1))
        torch.zeros(1, device=device).item()
    except Exception as error:  # each kind of device has its own
        raise UserError(f"cannot use the device '{device}': {str(error).splitlines()[0]}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = True  # the same seed, the same bits
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent(signal.SIGKILL)  # nothing else wakes it up here, and nothing is lost yet
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # else the first rank opens the store, in its own time
            try:
                socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=30).close()
            except OSError:
                raise OSError("torchrun has ended before this rank began") from None
        dist.init_process_group("gloo" if shared else "nccl", timeout=timedelta(minutes=10))
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent(signal.SIGTERM)
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


def asked_to_stop():
    """Whether this process has had a SIGTERM or SIGINT that waits for the end of a step."""
    return _stop["signal"] is not None


def barrier():
    if _together():
        dist.barrier()


def leave_together():
    """Waits for the other ranks: one that goes at once breaks the connection while they still read its last words."""
    with suppress(RuntimeError):
        barrier()


def sum_over_ranks(tensor):
    """The tensor, summed over ranks in place."""
    if _together():
        dist.all_reduce(tensor)
    return tensor


# The run folder


def write(path, content):
    """Writes bytes or text beside the name, flushes, and renames: the old file or the new one, never half of one."""
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            os.remove(beside)
        if isinstance(error, OSError):
            told = OSError(f"cannot write '{path}': {error.strerror}")
            told.errno = error.errno
            raise told from None
        raise


def save(path, contents):
    """torch.save, in the manner of `write`."""
    stream = io.BytesIO()
    torch.save(contents, stream)
    write(path, stream.getbuffer())


def load_checkpoint(path, kind):
    """The dict that `save` wrote, on the CPU. UserError if it cannot be read, has lost a bit, or is of another kind."""
    try:
        with zipfile.ZipFile(path) as file:  # torch.load does not look at the checksums
            damaged = file.testzip()
        if damaged:
            raise ValueError(f"the checksum of '{damaged}' is wrong")
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint '{path}'") from None
    except Exception as error:  # many kinds, for a file cut short, a picture, a folder, a pickle
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"'{path}' is not a checkpoint, or is damaged: {told}") from None
    found = contents.get("kind") if isinstance(contents, dict) else None
    if found != kind:
        raise UserError(f"'{path}' is not a checkpoint of a {kind}" + (f" but of a {found}" if isinstance(found, str) else ""))
    return contents


def environment(device):
    """What a number depends on besides its flags."""
    try:
        git = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(git, capture_output=True, text=True, cwd=os.path.dirname(__file__)).stdout.strip()
    except OSError:
        commit = ""  # no git here
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "commit": commit or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "device": f"{device.type}: {name}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": world(),
    }


def _copy(to, source):
    """Copies {name: tensor} into tensors of the same names. ValueError if one is of another shape or type, or not finite."""
    kinds = [{n: (t.shape, t.dtype, t.layout) for n, t in tensors.items()} for tensors in (to, source)]
    if kinds[0] != kinds[1] or not all(torch.isfinite(t).all() for t in source.values()):
        raise ValueError
    with torch.no_grad():
        for name, tensor in source.items():
            to[name].copy_(tensor)


_locks = {}  # of this process: path -> open file


def at_work(folder):
    """Whether a process is at work in a run folder, as far as this system can tell."""
    try:
        import fcntl

        with open(os.path.join(folder, "lock")) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        pass
    return False


class Run:
    """A run folder: config.json, metrics.jsonl, last.pt, the product, and result.json, whose presence means done."""

    def __init__(self, args, device):
        self.folder, flags = args.out, {k: v for k, v in vars(args).items() if k != "out"}
        flags = json.loads(json.dumps(flags))
        self.history, self.seconds, self.chosen = [], 0.0, {}
        config = self.path("config.json")
        with users_mistake():
            os.makedirs(self.folder, exist_ok=True)
        if os.path.exists(config):
            try:
                with open(config) as file:
                    saved = json.load(file)
                    before, self.chosen = {**saved["flags"]}, {**saved["chosen"]}
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                raise UserError(f"'{config}' is not the config.json of a run, or is damaged") from None
            differ = [k for k in sorted(before.keys() | flags.keys()) if before.get(k) != flags.get(k)]
            if differ:
                told = ", ".join(f"{k} was {before.get(k)}, is {flags.get(k)}" for k in differ)
                raise UserError(f"'{self.folder}' holds a run with other flags: {told}")
        self._agree(flags)
        self.config = {"flags": flags, "chosen": self.chosen, **environment(device)}
        self.finished = os.path.exists(self.path("result.json"))
        if self.finished:
            print0(f"{self.folder}: already finished, see {self.path('result.json')}")
        elif rank() == 0:
            self._lock()
            for name in os.listdir(self.folder):  # halves of files, from a process that was killed as it wrote
                if name.endswith(".tmp"):
                    os.remove(self.path(name))
        self.step, self.totals, self.asked = 0, None, []
        self.clock = time.perf_counter()

    def _agree(self, flags):
        """UserError if another rank was given other flags."""
        if world() > 1:
            mine = {k: v for k, v in flags.items() if k != "device"}
            every = [None] * world()
            dist.all_gather_object(every, {**mine, "out": self.folder})
            for other, theirs in enumerate(every):
                differ = [k for k in theirs if theirs[k] != every[0].get(k)]
                if differ:
                    told = ", ".join(f"{k} is {every[0].get(k)} on rank 0 and {theirs[k]} on rank {other}" for k in differ)
                    raise UserError(f"the ranks have other flags: {told}")

    def _lock(self):
        """UserError if another process is at work in this folder. The lock goes with the process, however that ends."""
        try:
            import fcntl
        except ImportError:  # not POSIX: two runs in one folder are not noticed
            return
        path = os.path.abspath(self.path("lock"))
        if path not in _locks:
            file = open(path, "w")  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is at work in '{self.folder}'") from None
            _locks[path] = file

    def path(self, name):
        return os.path.join(self.folder, name)

    def once(self, name, choose):
        """What `choose()` gave when this run began, on the first rank: kept in config.json, told, and never chosen again."""
        if name not in self.chosen:
            choice = [choose() if rank() == 0 else None]
            if world() > 1:
                dist.broadcast_object_list(choice)
            self.chosen[name] = choice[0]
        print0(f"{name}: {self.chosen[name]}")
        return self.chosen[name]

    def begin(self):
        """Writes config.json. Not before every flag has proved right: a mistake must not claim the folder."""
        if rank() == 0 and not os.path.exists(self.path("config.json")):
            write(self.path("config.json"), json.dumps(self.config, indent=1))

    def resume(self, net, optimizer):
        """Begins, or loads last.pt where there is one. Returns the epoch to go on with, and starts the clock."""
        self.begin()
        self.net, self.optimizer, self.before = net, optimizer, 0.0
        if os.path.exists(self.path("last.pt")):
            last = load_checkpoint(self.path("last.pt"), "run in progress")
            try:
                self._take_up(last)
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError):
                raise UserError(f"'{self.path('last.pt')}' is not of this run, or is damaged") from None
            print0(f"{self.folder}: resumed after epoch {len(self.history)}" + (f" and {self.step} steps" if self.step else ""))
        self.clock = time.perf_counter()
        return len(self.history) + 1

    def _take_up(self, last):
        """Goes on from last.pt, after all in it has been looked at. Any of the errors that `resume` knows says no."""
        epochs, within = self.config["flags"]["epochs"], last["within"]
        history, seconds = list(last["history"]), float(last["seconds"])
        if last["flags"] != self.config["flags"] or not 0 <= seconds < math.inf or len(history) > epochs:
            raise ValueError
        for epoch, line in enumerate(history, start=1):
            numbers = [line["loss"], line["accuracy"], line["seconds"]]
            if line["epoch"] != epoch or not all(isinstance(n, float) and math.isfinite(n) for n in numbers):
                raise ValueError
        _copy(dict(self.net.state_dict()), last["net"])
        _copy(self._momenta(), last["momenta"])
        self.history, self.seconds = history, seconds
        if within is not None:  # after a step of an epoch; ranks: what each had of its own
            step, seconds, ranks = within["step"], float(within["seconds"]), within["ranks"]
            if type(step) is not int or step < 1 or len(history) == epochs or not 0 <= seconds < math.inf:
                raise ValueError
            totals = [part["totals"] for part in ranks]
            for part in totals:
                _copy({"": torch.zeros(5, dtype=torch.float64)}, {"": part})
            self.step, self.before, exact = step, seconds, len(ranks) == world()  # as many ranks as before go on exactly
            _copy(dict(self.net.named_buffers()), ranks[rank() if exact else 0]["buffers"])
            device = next(self.net.parameters()).device
            if exact:
                self.totals = totals[rank()].to(device)
            elif rank() == 0:
                self.totals = sum(totals).to(device)

    def _momenta(self):
        """{parameter's name: its momentum}."""
        return {n: self.optimizer.state[p]["momentum_buffer"] for n, p in self.net.named_parameters()}

    def epoch_begins(self):
        """From here to the end of the epoch, a signal to stop waits for the end of a step."""
        _stop["in a step"] = True

    def step_done(self, totals, asked):
        """After each step. Once a rank has been asked to stop, all save this very step and leave.

        totals: what the epoch has added up on this rank. asked: how many ranks have been asked to stop, the same on all. On
        a GPU the number is looked at eight steps late, so that nobody waits for it.
        """
        self.step += 1
        if isinstance(asked, torch.Tensor) and asked.is_cuda:
            there = torch.empty((), pin_memory=True).copy_(asked, non_blocking=True), torch.cuda.Event()
            there[1].record()
            self.asked.append(there)
            if len(self.asked) < 8:
                return
            asked, event = self.asked.pop(0)
            event.synchronize()
        if asked:
            mine = {"totals": totals.cpu(), "buffers": {name: buffer.cpu() for name, buffer in self.net.named_buffers()}}
            ranks = [mine] * world()
            if world() > 1:
                dist.all_gather_object(ranks, mine)
            seconds = self.before + time.perf_counter() - self.clock
            if all(torch.isfinite(part["totals"]).all() for part in ranks):
                self._save({"step": self.step, "seconds": seconds, "ranks": ranks})
                print0(f"{self.folder}: asked to stop; saved after epoch {len(self.history)} and {self.step} steps")
            else:
                print0(f"{self.folder}: asked to stop; the loss is not finite, so the last epoch stays what is saved")
            leave_together()
            raise SystemExit(128 + (_stop["signal"] or signal.SIGTERM))

    def _save(self, within):
        if rank() == 0:
            lock = _locks[os.path.abspath(self.path("lock"))] if _locks else None
            if lock and not (os.path.exists(lock.name) and os.path.samestat(os.stat(lock.name), os.fstat(lock.fileno()))):
                raise OSError(f"'{self.folder}' is no longer the folder that this run began in")
            state = {"net": self.net.state_dict(), "momenta": self._momenta(), "within": within, "history": self.history}
            facts = {"kind": "run in progress", "flags": self.config["flags"], "seconds": self.seconds}
            save(self.path("last.pt"), facts | state)

    def epoch_done(self, epochs, images, metrics):
        """Records an epoch of so many images; the first rank saves, and then prints: there may be nobody who reads."""
        seconds = self.before + time.perf_counter() - self.clock
        self.seconds += seconds
        epoch = len(self.history) + 1
        self.history.append({"epoch": epoch, **metrics, "seconds": seconds})
        left = timedelta(seconds=round(self.seconds / epoch * (epochs - epoch)))
        self._save(None)
        self.write_lines("metrics.jsonl", self.history)
        print0(
            f"epoch {epoch}/{epochs}  loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.2f} %  "
            f"{images / seconds:,.0f} images/s  {left} left"
        )
        self.step, self.totals, self.before = 0, None, 0.0
        if world() == 1 or epoch == epochs:  # several ranks agree on it in the next step
            _stop["in a step"] = False
            if _stop["signal"]:
                raise SystemExit(128 + _stop["signal"])
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
            lock = _locks.pop(os.path.abspath(self.path("lock")), None)
            if lock:
                os.remove(lock.name)
                lock.close()
        print0(f"{self.folder}: done, see {self.path('result.json')}")
