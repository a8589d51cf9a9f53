"""Real harm: signals, full disks, damaged files, killed ranks, numbers that are not finite, leaks, and input from anywhere.

tests/torture.py does more of it, at random moments, for as long as it is let.
"""

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENVIRONMENT, ROOT, SMALL, TORCHRUN, command, interrupted, refused, stage, two_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common import data, drw, engine, kendall, runtime, scoring, spaces

ARCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


def run_until(call, file, **kwargs):
    """Starts a command and returns the process once it has made a file."""
    process = subprocess.Popen([str(a) for a in call], cwd=ROOT, env=ENVIRONMENT, **kwargs)
    while not Path(file).exists():
        time.sleep(0.01)
        assert process.poll() is None
    return process


# Signals and ranks


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_at_once_with_its_status(number, status, images, tmp_path):
    call = [sys.executable, "retrain.py", "--arch", ARCH, *SMALL, "--dataset", images, "--imbalance", 1, "--batch-size", 1,
            "--epochs", 500, "--out", tmp_path]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # In the background of a shell that ignores SIGINT, as in some test runners, the script must still notice it.
    process = run_until(call, tmp_path / "metrics.jsonl", **pipes)
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (status, "")
    assert runtime.load_checkpoint(tmp_path / "last.pt", "run in progress")["history"]


def test_ranks_end_with_a_killed_torchrun_and_resume_to_the_same_end(images, tmp_path):
    argv = ["retrain.py", "--arch", ARCH, *SMALL, "--dataset", images, "--imbalance", 1, "--batch-size", 8, "--epochs", 12]
    killed = tmp_path / "killed"
    process = run_until([*TORCHRUN, 2, *argv, "--out", killed], killed / "metrics.jsonl", stdout=subprocess.PIPE)
    process.kill()
    process.communicate(timeout=60)  # until its ranks, which hold its stdout, have ended, too
    assert not (killed / "result.json").exists()
    results = []
    for out in (killed, tmp_path / "whole"):
        two_ranks(*argv, "--out", out)
        results.append({**json.loads((out / "result.json").read_text()), "seconds": 0})
    assert results[0] == results[1]


def test_a_rank_whose_torchrun_is_gone_ends_at_once(tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = str(listener.getsockname()[1])  # nobody listens there once it is closed
    variables = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "localhost",
                 "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}  # fmt: skip
    call = [sys.executable, "train_supernet.py", "--out", tmp_path / "r"]
    done = subprocess.run(call, cwd=ROOT, env=ENVIRONMENT | variables, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: torchrun ended before this rank began\n")


# Disks and folders


def test_a_full_disk_leaves_the_old_file_and_one_line(images, tmp_path, monkeypatch):
    (tmp_path / "f.0.tmp").write_text("left by a killed process")
    runtime.write(tmp_path / "f", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"cannot write .*f': No space left"):
        patch.setattr(os, "fsync", full)
        runtime.write(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old" and os.listdir(tmp_path) == ["f"]
    argv = ["train_supernet.py", *SMALL, "--dataset", images, "--epochs", 1, "--warmup", 0, "--out", tmp_path / "r"]
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "-", sys.executable, *map(str, argv)]  # 20 KiB a file
    done = subprocess.run(limited, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "cannot write" in done.stderr and "last.pt" in done.stderr
    assert not [name for name in os.listdir(tmp_path / "r") if name.endswith((".pt", ".tmp"))]


def test_two_runs_in_one_folder(images, tmp_path):
    argv = ["train_supernet.py", *SMALL, "--dataset", images, "--batch-size", 8, "--epochs", 10000, "--out", tmp_path]
    process = run_until([sys.executable, *argv], tmp_path / "metrics.jsonl", stdout=subprocess.DEVNULL)
    done = command(*argv)
    process.kill()
    process.wait()
    assert done.returncode == 2 and "another process is working" in done.stderr and done.stderr.count("\n") == 1


def test_a_file_system_without_locks_does_not_stop_a_run(images, tmp_path, monkeypatch):
    import fcntl

    def unsupported(*args):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, unsupported)
    stage("train_supernet", *SMALL, "--dataset", images, "--epochs", 1, "--warmup", 0, "--out", tmp_path)
    assert (tmp_path / "result.json").exists()


def test_without_git_it_runs(images, tmp_path):
    call = [sys.executable, "train_supernet.py", *SMALL, "--dataset", images, "--epochs", "1", "--out", tmp_path]
    done = subprocess.run(call, cwd=ROOT, env=ENVIRONMENT | {"PATH": "/nonexistent"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "config.json").read_text())["commit"] is None


# Damaged files


def test_a_changed_bit_of_a_checkpoint_is_refused_or_without_effect(supernet, tmp_path):
    content, rng, refusals = Path(supernet).read_bytes(), random.Random(0), 0
    good = runtime.load_checkpoint(supernet, "super-net")
    for _ in range(40):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (tmp_path / "c.pt").write_bytes(changed)
        try:
            found = runtime.load_checkpoint(tmp_path / "c.pt", "super-net")
        except runtime.UserError as error:
            refusals += 1
            assert "c.pt" in str(error)
        else:
            assert found.keys() == good.keys() and all(torch.equal(good["net"][k], w) for k, w in found["net"].items())
    assert refusals > 15


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(supernet, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = runtime.load_checkpoint(supernet, "super-net")
    content = Path(supernet).read_bytes()
    Path("half.pt").write_bytes(content[: len(content) // 2])
    torch.save(Hostile(), "hostile.pt")
    torch.save({**good, "channels": 8}, "wider.pt")
    torch.save({**good, "net": {k: w * float("nan") for k, w in good["net"].items()}}, "nan.pt")
    torch.save({**good, "kind": "sub-net"}, "subnet.pt")
    for name, message in (("half", "damaged"), ("hostile", "damaged"), ("wider", "size mismatch"), ("nan", "not finite"),
                          ("subnet", "it is the checkpoint of a sub-net")):  # fmt: skip
        told = refused("search", "--supernet", f"{name}.pt", "--out", tmp_path / "q")
        assert f"{name}.pt" in told and message in told
    assert not (tmp_path / "pwned").exists()


def test_a_last_pt_that_does_not_fit_is_refused_by_name(images, tmp_path, monkeypatch):
    call = ["train_supernet", "--dataset", images, *SMALL, "--warmup", 0, "--batch-size", 40, "--epochs", 2, "--out", tmp_path]
    with interrupted(after_epoch=1):
        stage(*call)
    good, trained = torch.load(tmp_path / "last.pt", weights_only=True), []
    monkeypatch.setattr(engine, "train_epoch", lambda *a, **k: trained.append(0))
    torch.save({**good, "net": {}}, tmp_path / "last.pt")
    assert "last.pt' is not the checkpoint of this run" in refused(*call)
    assert not trained


def test_damaged_json_of_a_run_is_refused_by_name(supernet, tmp_path):
    unreadable = {"generation": 1, "arch": "x", "accuracy": 10.0, "seconds": 1.0}
    for text in (json.dumps({"arch": ARCH}), json.dumps(unreadable), "[1]", "{"):
        (tmp_path / "scores.jsonl").write_text(text + "\n")
        assert "scores.jsonl" in refused("search", "--supernet", supernet, "--out", tmp_path)
    (tmp_path / "scores.jsonl").unlink()
    (tmp_path / "config.json").write_text('{"flags"')
    assert "config.json" in refused("search", "--supernet", supernet, "--out", tmp_path)
    (tmp_path / "found.json").write_text('{"best": 1}')
    assert "found.json" in refused("retrain", "--arch", tmp_path / "found.json", "--out", tmp_path / "r")


def test_a_super_net_of_fewer_classes_than_the_data_is_refused(supernet, images, tmp_path):
    more = tmp_path / "more"
    shutil.copytree(images, more)
    for split in ("train", "val"):
        shutil.copytree(more / split / "class0", more / split / "class9")
    good = runtime.load_checkpoint(supernet, "super-net")
    runtime.save(tmp_path / "odd.pt", {**good, "data": {**good["data"], "dataset": str(more)}})
    assert "has 4 classes" in refused("search", "--supernet", tmp_path / "odd.pt", "--out", tmp_path / "q")


# Numbers


def test_a_loss_that_is_not_finite_is_told_with_its_epoch_and_not_saved(images, tmp_path, monkeypatch):
    real, calls = engine.average_gradients, []

    def spoil(gradients, weight):
        calls.append(0)
        if len(calls) == 12:
            gradients[0].fill_(float("nan"))
        return real(gradients, weight)

    monkeypatch.setattr(engine, "average_gradients", spoil)
    message = refused("train_supernet", *SMALL, "--dataset", images, "--imbalance", 3, "--batch-size", 8, "--epochs", 2,
                      "--out", tmp_path)  # fmt: skip
    assert "not finite after epoch 2: a lower --lr" in message  # 74 images are ten batches an epoch
    last = runtime.load_checkpoint(tmp_path / "last.pt", "run in progress")
    assert len(last["history"]) == 1 and runtime.all_finite(last["net"])


def test_weights_that_the_last_step_broke_are_not_saved(images, tmp_path):
    huge = ["--dataset", images, "--imbalance", 1, "--warmup", 0, "--epochs", 1, "--lr", 1e300, "--clip", 1e300,
            "--batch-size", 500, *SMALL]  # fmt: skip
    assert "weights are not finite after epoch 1" in refused("train_supernet", *huge, "--out", tmp_path)
    assert not (tmp_path / "result.json").exists() and not (tmp_path / "last.pt").exists()


def test_classes_of_a_few_images_and_batches_of_one_or_of_all(tmp_path):
    root = tmp_path / "few"
    for split in ("train", "val"):
        for c in range(3):
            (root / split / f"c{c}").mkdir(parents=True)
            for i in range((5, 2, 1)[c]):
                Image.fromarray(np.full((8, 8, 3), 40 * c + i, np.uint8)).save(root / split / f"c{c}/{i}.png")
    for size in (1, 1000):
        argv = ["--dataset", root, "--imbalance", 1, "--image-size", 8, "--epochs", 1, "--batch-size", size]
        stage("train_supernet", *SMALL, *argv, "--out", tmp_path / f"s{size}")
        stage("search", "--supernet", tmp_path / f"s{size}/supernet.pt", "--generations", 1, "--population", 2, "--crossovers",
              1, "--mutations", 1, "--out", tmp_path / f"q{size}")  # fmt: skip
        stage("retrain", "--arch", tmp_path / f"q{size}/result.json", *SMALL, *argv, "--out", tmp_path / f"r{size}")
        accuracy = json.loads((tmp_path / f"r{size}/result.json").read_text())["accuracy"]
        assert accuracy["medium"] is None and accuracy["few"] == accuracy["balanced"]


# Leaks


def test_no_test_image_is_read_before_the_report_and_no_held_out_one_is_trained_on(images, tmp_path, monkeypatch):
    read, counts = [], []
    decode, epoch, weights = data._decode, engine.train_epoch, drw.class_weights
    monkeypatch.setattr(data, "_decode", lambda path, size: read.append(path) or decode(path, size))
    monkeypatch.setattr(drw, "class_weights", lambda n, *beta: counts.append(n.tolist()) or weights(n, *beta))

    def watched(*a, **k):
        assert not [path for path in read if "/val/" in path]
        return epoch(*a, **k)

    monkeypatch.setattr(engine, "train_epoch", watched)
    files, labels = data._list_folder(images, "train")
    held_out = {files[i] for i in data.hold_out(labels, 5, 3)[1]}
    own = ["--val-per-class", 5, "--data-seed", 3, "--imbalance", 2, "--epochs", 1, "--batch-size", 32, "--dataset", images]
    stage("train_supernet", *SMALL, *own, "--out", tmp_path / "s")
    stage("adapt", "--supernet", tmp_path / "s/supernet.pt", *own, "--out", tmp_path / "p")
    assert read and not held_out & set(read) and not [path for path in read if "/val/" in path]
    read.clear()
    splits, scorer = [], scoring.scorer
    monkeypatch.setattr(scoring, "scorer", lambda net, *more: splits.extend(more[:2]) or scorer(net, *more))
    stage("search", "--supernet", tmp_path / "p/supernet.pt", "--generations", 1, "--population", 2, "--crossovers", 1,
          "--mutations", 1, "--out", tmp_path / "q")  # fmt: skip
    assert held_out < set(read) and not [path for path in read if "/val/" in path]
    bn, scored = ({image.numpy().tobytes() for image in split[0]} for split in splits)
    assert len(scored) == len(held_out) and not bn & scored  # BN statistics come from the one, accuracies from the other
    read.clear()
    stage("retrain", "--arch", tmp_path / "q/result.json", *SMALL, *own, "--out", tmp_path / "r")
    assert not held_out & set(read) and sum("/val/" in path for path in read) == 40  # the one final report
    read.clear()
    own = ["--val-per-class", 5, "--data-seed", 3, "--datasets", f"{images}:2", "--epochs", 1, "--batch-size", 32]
    (tmp_path / "archs.txt").write_text(ARCH + "\n")
    stage("rank_transfer", *SMALL, *own, "--archs", tmp_path / "archs.txt", "--out", tmp_path / "t")
    assert read and not held_out & set(read)
    # 30 images per class, less the 5 held out, in a tail of 2: in all four stages that train
    assert len(counts) >= 4 and all(n == [25, 19, 15, 12] for n in counts)


# Input from anywhere

NATS = "|{}|+|none~0|none~1|+|none~0|none~1|none~2|"
PARTS = ["|", "+", "//", "~0", "~9", "none", "nor_conv_3x3", "sep_conv_3x3", "Genotype(", "[(", "'", ")", " "]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PARTS)).map("".join)), st.sampled_from(["{}", "Genotype({})", NATS]))
def test_any_text_is_an_architecture_or_a_value_error(text, form):
    try:
        name, arch = spaces.parse(form.format(text))
    except ValueError as error:
        assert str(error)
        return
    assert spaces.parse(spaces.space(name).to_string(arch)) == (name, arch)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(spaces.SPACES), st.integers(0, 2**32))
def test_an_architecture_survives_its_string(name, seed):
    space = spaces.space(name)
    arch = spaces.sample(space.CHOICES, np.random.default_rng(seed))
    assert spaces.parse(space.to_string(arch)) == (name, arch)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=50), st.floats(1, 1e6))
def test_any_classes_have_a_long_tail(sizes, ratio):
    counts = data.long_tail_counts(sizes, ratio)
    assert len(counts) == len(sizes) and all(1 <= k <= n for k, n in zip(counts, sizes, strict=True)) and counts[0] == sizes[0]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)), min_size=2, max_size=30))
def test_tau_is_symmetric_bounded_and_turns_with_the_order(pairs):
    x, y = zip(*pairs, strict=True)
    tau = kendall.kendall_tau(x, y)
    assert np.isnan(tau) or -1 <= tau <= 1
    for one, other, sign in ((y, x, 1), (x, [-v for v in y], -1), (x[::-1], y[::-1], 1)):
        assert kendall.kendall_tau(one, other) == pytest.approx(sign * tau, nan_ok=True)
