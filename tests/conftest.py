"""Fixtures: a folder of small images, the stages called in this process, and the stages called as a user does."""

import importlib
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)  # as in ENVIRONMENT: bits depend on it

from common import runtime  # noqa: E402

SMALL = ["--channels", "4", "--cells", "1"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder dataset: 4 classes of 32x32 images that differ in brightness, 30 for training and 10 for validation each."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, n in (("train", 30), ("val", 10)):
        for c in range(4):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(rng.normal(50 + 50 * c, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return str(root)


@pytest.fixture(scope="session")
def supernet(images, tmp_path_factory):
    """supernet.pt of one NATS epoch on `images`."""
    out = tmp_path_factory.mktemp("source") / "run"
    stage("train_supernet", "--dataset", images, *SMALL, "--epochs", 1, "--warmup", 0, "--batch-size", 32, "--out", out)
    return str(out / "supernet.pt")


def stage(script, *argv):
    """A stage in this process. Raises what it raises."""
    module = importlib.import_module(script)
    return module.main(module.parse_args([str(a) for a in argv]))


def refused(script, *argv):
    """The message of the UserError that a stage must raise."""
    with pytest.raises(runtime.UserError) as error:
        stage(script, *argv)
    assert "\n" not in str(error.value)
    return str(error.value)


@contextmanager
def interrupted(after_epoch):
    """A stage in the block is stopped once it has saved this epoch."""
    real = runtime.Run.epoch_done

    def epoch_done(run, *rest):
        real(run, *rest)
        if len(run.history) == after_epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runtime.Run, "epoch_done", epoch_done)
        yield


def weights(out):
    """The weights in a run folder's supernet.pt."""
    return runtime.load_checkpoint(Path(out) / "supernet.pt", "super-net")["net"]


def command(*argv, ranks=0):
    """A stage as a user runs it, under torchrun if `ranks` is given. Returns the finished process, with text output."""
    call = [*TORCHRUN, str(ranks)] if ranks else [sys.executable]
    call += [str(a) for a in argv]
    return subprocess.run(call, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)


def two_ranks(*argv):
    """The stage's output on two ranks that find each other through a port, as torchrun's do, but without its seconds."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(listener.getsockname()[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, argv)], cwd=ROOT, env={**ENVIRONMENT, **variables, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) for rank in "01"
    ]  # fmt: skip
    output = ""
    for process in processes:
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        output += out
    return output
