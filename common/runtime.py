"""Processes, run folders and checkpoints: what every script does around its own work."""

import argparse
import ctypes
import importlib.metadata
import io
import json
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
import zlib
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


class UserError(Exception):
    """A mistake of the user's. `launch` prints it as one line."""


class Parser(argparse.ArgumentParser):
    """argparse with the script's docstring as its description, and errors that `launch` prints in one line."""

    class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
        def _get_help_string(self, action):
            hidden = action.default is None or isinstance(action.default, bool)
            return action.help if hidden else super()._get_help_string(action)

    def __init__(self, doc):
        super().__init__(description=doc, formatter_class=self.HelpFormatter, allow_abbrev=False)

    def error(self, message):
        raise UserError(message)


@contextmanager
def user_errors(where=""):
    """Turns a ValueError or an unreadable file in the block into a UserError."""
    try:
        yield
    except (ValueError, OverflowError, RecursionError, OSError) as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error


@contextmanager
def reading(path, what):
    """Turns whatever goes wrong in the block, which reads a file, into a UserError that says what the file should have been."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"there is no file '{error.filename or path}'") from None
    except Exception as error:  # a file cut short, a picture, a folder, a pickle, other keys: each raises its own type
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"'{path}' is not {what}, or is damaged: {reason}") from None


def launch(parse_args, main):
    """Runs a script and exits: with 2 and one line on stderr for a UserError, with 1 and one line for an OSError or a full GPU.

    SIGTERM and SIGINT end it at once with 143 and 130.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    status, message = 1, None
    try:
        main(parse_args())
        if dist.is_initialized():
            dist.barrier()  # a rank that leaves first would cut the connection while the others still read
            dist.destroy_process_group()
        status = 0
    except SystemExit as end:  # --help or a signal
        status = end.code
    except UserError as error:
        status, message = 2, error
    except (OSError, torch.OutOfMemoryError) as error:
        message = error
    except Exception as error:
        if dist.is_initialized() and "peer" in str(error):
            message = "stopped because another rank stopped"
        else:
            traceback.print_exc()
    if message:
        print("error:", *str(message).split(), file=sys.stderr)  # one line, whatever the message holds
    # After an error the other ranks may be in a collective that never ends, so do not wait for them.
    os._exit(status) if dist.is_initialized() else sys.exit(status)


def rank():
    """This process's number among those that torchrun started, 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def world():
    """Number of processes in the process group, 1 if there is no group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def print0(*words):
    """Prints on rank 0."""
    if rank() == 0:
        print(*words, flush=True)


def setup(device, seed, group=True):
    """Joins torchrun's process group, seeds torch, and returns this rank's torch.device.

    device: "auto" is a GPU if there is one; unless the device has a number, ranks cycle over the GPUs. The backend is NCCL if
    every rank has a GPU of its own, gloo otherwise. group: False for ranks that work independently.
    """
    own_gpu = False
    try:
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(auto if device == "auto" else device)
        if device.type == "cuda" and device.index is None:  # decided before anything is put on the first GPU
            own_gpu = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % max(torch.cuda.device_count(), 1))
        torch.zeros(1, dtype=torch.float64, device=device).item()  # what epochs are summed in; MPS lacks it
    except Exception as error:  # each kind of device raises its own
        raise UserError(f"cannot use the device '{device}': {str(error).partition('. ')[0]}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = True  # the same seed gives the same bits
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    if group and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            try:  # else ranks wait ten minutes for a torchrun that was killed before `end_with_parent` ran
                socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=30).close()
            except OSError:
                raise OSError("torchrun ended before this rank began") from None
        with user_errors("torch.distributed"):
            dist.init_process_group("nccl" if own_gpu else "gloo", timeout=timedelta(minutes=10))
    torch.manual_seed(seed)
    return device


def end_with_parent():
    """Makes Linux kill this process when its parent dies. A rank without its torchrun would wait ten minutes for the others."""
    with suppress(OSError, AttributeError, TypeError):  # not Linux
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def sum_over_ranks(tensor):
    """Sums the tensor over ranks, in place, and returns it."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def write(path, content):
    """Writes bytes or text to a file beside `path` and renames it, so that `path` is always complete, old or new.

    Ranks may write the same path at the same time.
    """
    beside = f"{path}.{rank()}.tmp"
    try:
        with open(beside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write '{path}': {error.strerror}") from None
    finally:
        with suppress(OSError):  # renamed, if all went well
            os.remove(beside)


def save(path, contents):
    """torch.save through `write`."""
    stream = io.BytesIO()
    torch.save(contents, stream)
    write(path, stream.getbuffer())


def load_checkpoint(path, kind):
    """The dict that `save` wrote, on the CPU. UserError if it cannot be read, is damaged, or is of another kind."""
    with reading(path, f"the checkpoint of a {kind}"):
        with zipfile.ZipFile(path) as file:  # torch.load does not verify the checksums
            if damaged := file.testzip():
                raise ValueError(f"the checksum of '{damaged}' is wrong")
        contents = torch.load(path, map_location="cpu", weights_only=True)
        if contents["kind"] != kind:
            raise ValueError(f"it is the checkpoint of a {contents['kind']}")
        return contents


def all_finite(state):
    """Whether every tensor of a state dict is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def environment(device):
    """What a number depends on besides its flags: command, commit, versions and machine."""
    git, commit = ["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty"], None
    with suppress(OSError):  # git is not installed
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"  # AVX2 and AVX-512 round differently
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {
        "command": shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]), "commit": commit,
        "torch": torch.__version__, **{name: importlib.metadata.version(name) for name in ("torchvision", "numpy")},
        "device": f"{device.type}: {chip}", "threads": torch.get_num_threads(), "ranks": int(os.environ.get("WORLD_SIZE", 1)),
    }  # fmt: skip


NEUTRAL = {"out", "device", "data_root", "cuda_graphs"}  # flags that do not change the result


def _resolved(flags):
    """Flags with the real path of each file or folder, so that two spellings of one path are the same."""
    return {k: os.path.realpath(v) if isinstance(v, str) and os.path.exists(v) else v for k, v in flags.items()}


def _checksums(flags):
    """{flag: checksum of the file that it names}: a super-net that was trained anew is another input."""
    return {k: zlib.crc32(Path(v).read_bytes()) for k, v in flags.items() if isinstance(v, str) and os.path.isfile(v)}


class Run:
    """A run folder: config.json, what a resume needs (last.pt), the product, and result.json, whose presence means done."""

    def __init__(self, args, device):
        self.folder, self.history = args.out, []
        flags = json.loads(json.dumps(vars(args)))
        with user_errors():
            inputs = {"resolved": _resolved(flags), "inputs": _checksums(flags)}
            self.config = {"flags": flags, **inputs, **environment(device)}
            os.makedirs(self.folder, exist_ok=True)
        if os.path.exists(self.path("config.json")):
            self._compare_flags()
        self.finished = os.path.exists(self.path("result.json"))
        if self.finished:
            path = self.path("result.json")
            with reading(path, "the result.json of a run (remove it to go on)"), open(path) as file:
                json.load(file)
            print0(f"{self.folder}: already finished, see {path}")
        elif rank() == 0:
            self._lock()

    def _compare_flags(self):
        """UserError if a flag that changes the result is not what it was when the run began."""
        with reading(self.path("config.json"), "the config.json of a run"), open(self.path("config.json")) as file:
            saved = json.load(file)
            was, now = flags = saved["flags"], self.config["flags"]
            real_paths = saved.get("resolved", {}), self.config["resolved"]  # a committed config.json has no paths of a machine

            def same(name):  # as written or, if it is a path, as a real path
                return any(was.get(name) == now.get(name) for was, now in (flags, real_paths))

            changed = [f"{k} was {was.get(k)}, is {now.get(k)}" for k in sorted({*was, *now} - NEUTRAL) if not same(k)]
            before = saved.get("inputs", {})
            changed += [f"'{now[k]}' has changed" for k, crc in self.config["inputs"].items() if before.get(k, crc) != crc]
        if changed:
            raise UserError(f"'{self.folder}' holds a run with other flags or files: {', '.join(changed)}; give another --out")

    def _lock(self):
        """Keeps a second run out of the folder where files can be locked. UserError if another run has it."""
        with user_errors():
            self.lock = open(self.path("lock"), "w")  # noqa: SIM115
        try:
            import fcntl

            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"another process is working in '{self.folder}'") from None
        except (ImportError, OSError):
            pass  # Windows, or a file system without locks

    def path(self, name):
        return os.path.join(self.folder, name)

    def begin(self):
        """Writes config.json: after all flags have been checked, so that a mistake does not claim the folder."""
        if rank() == 0 and not os.path.exists(self.path("config.json")):
            write(self.path("config.json"), json.dumps(self.config, indent=1))

    def resume(self, net, optimizer):
        """Begins, or loads last.pt if there is one. Returns the epoch to go on with, and starts the clock."""
        self.begin()
        self.net, self.optimizer, path = net, optimizer, self.path("last.pt")
        if os.path.exists(path):
            last = load_checkpoint(path, "run in progress")
            with reading(path, "the checkpoint of this run (remove it to start anew)"):
                net.load_state_dict(last["net"])
                optimizer.load_state_dict(last["optimizer"])
                self.history = last["history"]
            print0(f"{self.folder}: resumed after epoch {len(self.history)}")
        self.clock = time.perf_counter()
        return len(self.history) + 1

    def epoch_done(self, epochs, metrics):
        """Records an epoch. Saves before it prints, since stdout may be closed or full."""
        epoch, seconds = len(self.history) + 1, time.perf_counter() - self.clock
        self.history.append({"epoch": epoch, **metrics, "seconds": seconds})
        if rank() == 0:
            last = {"kind": "run in progress", "history": self.history}
            save(self.path("last.pt"), {**last, "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()})
        self.write_lines("metrics.jsonl", self.history)
        left = timedelta(seconds=round(self.seconds / epoch * (epochs - epoch)))
        result = f"loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.2f} %"
        print0(f"epoch {epoch}/{epochs}  {result}  {seconds:.1f} s, {left} left")
        self.clock = time.perf_counter()

    @property
    def seconds(self):
        """Seconds of all epochs, those before a resume included."""
        return sum((line["seconds"] for line in self.history), 0.0)

    def write_lines(self, name, lines):
        """Rank 0 writes dicts as JSON, one per line."""
        if rank() == 0:
            write(self.path(name), "".join(json.dumps(line) + "\n" for line in lines))

    def finish_supernet(self, net, facts, epochs, **rest):
        """Writes supernet.pt and result.json. rest: what only later stages need: space, channels, cells, loss, data."""
        path = self.path("supernet.pt")
        if rank() == 0:
            classes = net.classifier.out_features
            save(path, {"kind": "super-net", **facts, **rest, "num_classes": classes, "net": net.state_dict()})
        self.finish({**facts, "epochs": epochs, "seconds": self.seconds, "supernet": path})

    def finish(self, result):
        """Writes result.json, last of all."""
        if rank() == 0:
            write(self.path("result.json"), json.dumps(result, indent=1))
            self.lock.close()
            os.remove(self.lock.name)
        print0(f"{self.folder}: done, see {self.path('result.json')}")
