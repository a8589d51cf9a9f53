"""Real harm: signals, full disks, damaged files, lost ranks, numbers that are none, and input from anywhere.

tests/torture.py does more of it, at random moments, for as long as it is let.
"""

import copy
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
from conftest import ROOT, SMALL, command, stage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import rank_transfer
from common import data, drw, engine, kendall, runtime, spaces

ARCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def product(out):
    """What a run made, but for the seconds that it took."""
    result = json.loads((out / "result.json").read_text())
    name = next(name for name in ("supernet.pt", "model.pt") if (out / name).exists())
    weights = runtime.load_checkpoint(out / name, "super-net" if name == "supernet.pt" else "sub-net")["net"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    drop = {"seconds": 0, "supernet": ""}
    return {**result, **drop}, [{**line, **drop} for line in lines], {k: w.tolist() for k, w in weights.items()}


def refused(script, *argv):
    with pytest.raises(runtime.UserError) as error:
        stage(script, *argv)
    return str(error.value)


def stages(images, supernet):
    target = ["--dataset", images, "--imbalance", 3, "--batch-size", 8, "--epochs", 2]
    return {
        "train": ["train_supernet", *SMALL, *target, "--warmup", 0],
        "P1": ["adapt", "--procedure", "P1", "--supernet", supernet, *target],
        "P2": ["adapt", "--procedure", "P2", "--supernet", supernet, *target, "--backbone-epochs", 1],
        "retrain": ["retrain", "--arch", ARCH, *SMALL, *target, "--warmup", 0],
    }


# Stopped


@pytest.mark.parametrize("name", ["train", "P1", "P2", "retrain"])
def test_asked_to_stop_it_saves_the_step_and_goes_on_to_the_same_end(name, images, supernet, tmp_path, monkeypatch):
    argv = [*stages(images, supernet)[name], "--out"]
    stage(*argv, tmp_path / "whole")
    for stop in random.Random(name).sample(range(1, 15), 2):
        calls = []
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(engine, "asked_to_stop", lambda calls=calls, stop=stop: calls.append(0) or len(calls) == stop)
            stage(*argv, tmp_path / f"{stop}")
        assert end.value.code == 143 and len(calls) == stop
        stage(*argv, tmp_path / f"{stop}")
        assert product(tmp_path / f"{stop}") == product(tmp_path / "whole")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_status(number, status, images, tmp_path):
    argv = [sys.executable, "retrain.py", "--arch", ARCH, *SMALL, "--dataset", images, "--imbalance", 1, "--batch-size", 1,
            "--epochs", 500, "--out", tmp_path / "r"]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, argv)), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "r/metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(number)
    told, error = process.communicate(timeout=20)
    assert process.returncode == status and error == "" and "asked to stop; saved after epoch" in told
    assert runtime.load_checkpoint(tmp_path / "r/last.pt", "run in progress")["within"]["step"] > 0


def test_two_ranks_stop_together_and_go_on_exactly_though_torchrun_is_killed(images, tmp_path):
    argv = [
        "retrain.py",
        "--arch",
        ARCH,
        *SMALL,
        "--dataset",
        images,
        "--imbalance",
        1,
        "--batch-size",
        4,
        "--epochs",
        6,
        "--out",
    ]
    assert command(*argv, tmp_path / "whole", ranks=2).returncode == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    call, last = [str(a) for a in (*torchrun, *argv, tmp_path / "stopped")], tmp_path / "stopped/last.pt"
    for number, epochs in ((signal.SIGTERM, 1), (signal.SIGKILL, 3)):
        process = subprocess.Popen(call, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not last.exists() or len(runtime.load_checkpoint(last, "run in progress")["history"]) < epochs:
            time.sleep(0.01)
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]  # until the ranks, which have its stderr, are gone as well
        assert runtime.load_checkpoint(last, "run in progress")["within"], told.decode()
        assert not (tmp_path / "stopped/result.json").exists()
    assert command(*argv, tmp_path / "stopped", ranks=2).returncode == 0
    assert product(tmp_path / "stopped") == product(tmp_path / "whole")


def test_a_rank_whose_torchrun_is_gone_ends_at_once(tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = str(listener.getsockname()[1])  # and nobody listens there
    variables = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "localhost",
                 "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}  # fmt: skip
    done = subprocess.run([sys.executable, "train_supernet.py", "--out", tmp_path / "r"], cwd=ROOT, env=ENVIRONMENT | variables,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "error: torchrun has ended before this rank began\n")


def test_a_lost_rank_ends_the_others_and_other_flags_are_noticed(images, tmp_path):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "--no-python",
        "bash",
        "-c",
    ]
    train = f"{sys.executable} train_supernet.py {' '.join(SMALL)} --dataset {images} --batch-size 8 --out {tmp_path}"
    run = {"cwd": ROOT, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 100}
    done = subprocess.run([*torchrun, f"{train}/a --epochs 2 --seed $RANK"], **run)
    assert done.returncode and "error: the ranks have other flags: seed is 0 on rank 0 and 1 on rank 1" in done.stderr
    begun = time.time()
    lost = f"if [ $RANK = 1 ]; then timeout -s KILL 12 {train}/b --epochs 10000; else {train}/b --epochs 10000; fi"
    assert subprocess.run([*torchrun, lost], **run).returncode
    assert time.time() - begun < 12 + 60


# Disks


def test_a_full_disk_leaves_the_old_file_and_one_line(images, tmp_path, monkeypatch):
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


def test_a_folder_that_vanishes_is_told(images, tmp_path, monkeypatch):
    real = engine.train_epoch
    monkeypatch.setattr(engine, "train_epoch", lambda *a, **k: shutil.rmtree(tmp_path / "r") or real(*a, **k))
    with pytest.raises(OSError, match="no longer the folder"):
        stage("train_supernet", *SMALL, "--dataset", images, "--epochs", 1, "--warmup", 0, "--out", tmp_path / "r")


def test_two_runs_in_one_folder(images, tmp_path):
    argv = ["train_supernet.py", *SMALL, "--dataset", images, "--batch-size", 8, "--epochs", 10000, "--out", tmp_path / "r"]
    call = [sys.executable, *map(str, argv)]
    process = subprocess.Popen(call, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not (tmp_path / "r/metrics.jsonl").exists():
        time.sleep(0.01)
    done = command(*argv)
    process.kill()
    process.wait()
    assert done.returncode == 2 and "another process is at work" in done.stderr and done.stderr.count("\n") == 1


# Files from elsewhere


def test_a_changed_bit_of_a_checkpoint_is_refused_or_without_effect(supernet, tmp_path):
    whole, rng, refusals = Path(supernet).read_bytes(), random.Random(0), 0
    good = runtime.load_checkpoint(supernet, "super-net")
    for _ in range(60):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (tmp_path / "c.pt").write_bytes(changed)
        try:
            found = runtime.load_checkpoint(tmp_path / "c.pt", "super-net")
            net = spaces.supernet_from(found)
        except (runtime.UserError, ValueError) as error:
            refusals += 1
            assert "c.pt" in str(error) or isinstance(error, ValueError)
        else:
            assert all(torch.equal(good["net"][k], w) for k, w in net.state_dict().items())
            assert {k: v for k, v in found.items() if k != "net"} == {k: v for k, v in good.items() if k != "net"}
    assert refusals > 20


def test_a_last_pt_of_another_run_or_a_score_that_is_none_is_refused(images, supernet, tmp_path):
    argv = stages(images, supernet)["train"]
    os.makedirs(tmp_path / "r")
    torch.save({"kind": "run in progress", "net": {}, "optimizer": {}}, tmp_path / "r/last.pt")
    assert "last.pt' is not of this run" in refused(*argv, "--out", tmp_path / "r")
    os.makedirs(tmp_path / "q")
    for text in ('{"arch": "x"}', "[1]", "{", '{"arch": 5, "accuracy": 1.0, "seconds": 1.0}'):
        (tmp_path / "q/scores.jsonl").write_text(text + "\n")
        assert "scores.jsonl" in refused("search", "--supernet", supernet, "--out", tmp_path / "q")


# Numbers


def test_a_loss_that_is_lost_is_told_with_its_step_and_architecture(images, supernet, tmp_path, monkeypatch):
    argv = stages(images, supernet)["train"]
    stage(*argv[:-2], "--warmup", 0, "--out", tmp_path / "sound")
    real, calls = engine.average_gradients, []

    def spoil(gradients, weight, asked):
        calls.append(0)
        if len(calls) == 12:
            gradients[0].fill_(float("nan"))
        return real(gradients, weight, asked)

    monkeypatch.setattr(engine, "average_gradients", spoil)
    message = refused(*argv, "--out", tmp_path / "r")
    arch = spaces.SPACES["nats"].to_string(spaces.path(spaces.SPACES["nats"].CHOICES, 0, 12))
    assert f"epoch 2, step 3, architecture {arch}" in message  # 74 images, ten batches an epoch
    last = runtime.load_checkpoint(tmp_path / "r/last.pt", "run in progress")
    assert len(last["history"]) == 1 and all(torch.isfinite(w).all() for w in last["net"].values())


def test_what_the_last_step_broke_is_no_product(images, tmp_path):
    loud = ["--dataset", images, "--imbalance", 1, "--warmup", 0, "--epochs", 1, "--lr", 1e300, "--clip", 1e300,
            "--batch-size", 500, *SMALL]  # fmt: skip
    for script, more in (("train_supernet", []), ("retrain", ["--arch", ARCH])):
        with pytest.raises(runtime.UserError, match="the weights are not finite after epoch 1"):
            stage(script, *loud, *more, "--out", tmp_path / script)
        assert not (tmp_path / script / "result.json").exists() and not (tmp_path / script / "last.pt").exists()


def test_asked_to_stop_with_a_lost_loss_it_keeps_the_last_epoch(images, tmp_path, monkeypatch):
    call = ["--dataset", images, *SMALL, "--warmup", 0, "--batch-size", 10, "--epochs", 2, "--out", tmp_path / "r"]
    real, steps = torch.nn.functional.cross_entropy, []

    def lost(*args, **kwargs):
        steps.append(0)
        return real(*args, **kwargs) * (float("nan") if len(steps) > 14 else 1)

    monkeypatch.setattr(engine.F, "cross_entropy", lost)
    monkeypatch.setattr(engine, "asked_to_stop", lambda: len(steps) == 16)
    with pytest.raises(SystemExit):
        stage("train_supernet", *call)
    last = runtime.load_checkpoint(tmp_path / "r/last.pt", "run in progress")
    assert len(last["history"]) == 1 and last["within"] is None


def changed(value, *place):
    """A function that puts a value, or what a function makes of the old one, into nested containers."""

    def change(contents):
        *outer, key = place
        for part in outer:
            contents = contents[part]
        contents[key] = value(contents[key]) if callable(value) else value

    return change


WEIGHT = "stem.0.weight"
OTHERS = {
    "momentum of another shape": changed(lambda m: m[:1], "momenta", WEIGHT),
    "momentum that is none": changed(None, "momenta", WEIGHT),
    "momentum that is not finite": changed(lambda m: m / 0, "momenta", WEIGHT),
    "no momenta": changed({}, "momenta"),
    "history of text": changed("abc", "history"),
    "history of nothing": changed(None, "history"),
    "too long a history": changed(lambda h: h * 100, "history"),
    "a loss that is none": changed(float("nan"), "history", 0, "loss"),
    "seconds of text": changed("many", "seconds"),
    "seconds that are none": changed(float("nan"), "seconds"),
    "weights as double": changed(lambda w: w.double(), "net", WEIGHT),
    "weights that are not finite": changed(lambda w: w * float("inf"), "net", WEIGHT),
    "another seed": changed(1, "flags", "seed"),
    "a step that is text": changed({"step": "1", "seconds": 0.0, "ranks": []}, "within"),
    "a step of no rank": changed({"step": 1, "seconds": 0.0, "ranks": []}, "within"),
    "totals of another shape": changed(
        {"step": 1, "seconds": 0.0, "ranks": [{"totals": torch.zeros(3), "buffers": {}}]}, "within"
    ),
}


def test_a_last_pt_in_which_one_thing_is_wrong_is_refused_by_name(images, tmp_path, monkeypatch):
    call = ["--dataset", images, *SMALL, "--warmup", 0, "--batch-size", 40, "--epochs", 2, "--out", tmp_path / "r"]
    done = runtime.Run.epoch_done

    def stop(*args):
        done(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime.Run, "epoch_done", stop)
    with pytest.raises(KeyboardInterrupt):
        stage("train_supernet", *call)
    monkeypatch.setattr(runtime.Run, "epoch_done", done)
    good, trained = (tmp_path / "r/last.pt").read_bytes(), []
    monkeypatch.setattr(engine, "train_epoch", lambda *a, **k: trained.append(0))
    for name, change in OTHERS.items():
        (tmp_path / "r/last.pt").write_bytes(good)
        last = runtime.load_checkpoint(tmp_path / "r/last.pt", "run in progress")
        change(last)
        runtime.save(tmp_path / "r/last.pt", last)
        with pytest.raises(runtime.UserError, match=r"last.pt' is not of this run, or is damaged"):
            stage("train_supernet", *call)
        assert not trained, name


def test_scores_that_cannot_be_are_refused(supernet, tmp_path):
    call = ["--supernet", supernet, "--generations", 1, "--population", 2, "--crossovers", 0, "--mutations", 0]
    call += ["--out", tmp_path]
    stage("search", *call)
    (tmp_path / "result.json").unlink()
    good = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
    for key, value in (("accuracy", "NaN"), ("accuracy", 150.0), ("accuracy", -5.0), ("seconds", "NaN"), ("seconds", -1.0)):
        line = json.dumps({**good, key: value}).replace('"NaN"', "NaN")
        for text in (line, "[" * 100000):
            (tmp_path / "scores.jsonl").write_text(text + "\n")
            with pytest.raises(runtime.UserError, match=r"scores\.jsonl"):
                stage("search", *call)


def test_a_super_net_of_fewer_classes_than_the_data_or_of_an_odd_image_size_is_refused(supernet, images, tmp_path):
    more = tmp_path / "more"
    shutil.copytree(images, more)
    for split in ("train", "val"):
        shutil.copytree(more / split / "class0", more / split / "class9")
    good = runtime.load_checkpoint(supernet, "super-net")
    for name, value, told in (
        ("dataset", str(more), "knows 4 classes"),
        ("image_size", 30, "image_size"),
        ("image_size", 10**12, "1024"),
    ):
        runtime.save(tmp_path / "odd.pt", {**good, "data": {**good["data"], name: value}})
        for script, flags in (("search", []), ("rank_transfer", ["--archs", "random:2"])):
            with pytest.raises(runtime.UserError, match=told):
                stage(script, "--supernet", tmp_path / "odd.pt", *flags, "--out", tmp_path / script)


def test_without_git_it_runs(images, tmp_path):
    call = [sys.executable, "train_supernet.py", *SMALL, "--dataset", images, "--epochs", "1", "--out", tmp_path / "r"]
    done = subprocess.run(call, cwd=ROOT, env=ENVIRONMENT | {"PATH": "/nonexistent"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r/config.json").read_text())["commit"] is None


def test_classes_of_a_few_images_and_batches_of_one_or_of_all(tmp_path):
    root = tmp_path / "few"
    for split in ("train", "val"):
        for c in range(3):
            (root / split / f"c{c}").mkdir(parents=True)
            for i in range((5, 2, 1)[c]):
                Image.fromarray(np.full((8, 8, 3), 40 * c + i, np.uint8)).save(root / split / f"c{c}/{i}.png")
    for size in (1, 3, 1000):
        argv = ["--dataset", root, "--imbalance", 1, "--image-size", 8, "--epochs", 1, "--batch-size", size]
        stage("train_supernet", *SMALL, *argv, "--out", tmp_path / f"s{size}")
        stage("adapt", "--supernet", tmp_path / f"s{size}/supernet.pt", *argv, "--out", tmp_path / f"p{size}")
        stage("search", "--supernet", tmp_path / f"p{size}/supernet.pt", "--generations", 1, "--population", 2, "--crossovers",
              1, "--mutations", 1, "--out", tmp_path / f"q{size}")  # fmt: skip
        stage("retrain", "--arch", tmp_path / f"q{size}/result.json", *SMALL, *argv, "--out", tmp_path / f"r{size}")
        assert json.loads((tmp_path / f"r{size}/result.json").read_text())["accuracy"]["medium"] is None


# Leaks


def test_no_test_image_is_read_before_the_report_and_no_held_out_one_is_trained_on(images, tmp_path, monkeypatch):
    read, trained = [], {"yet": False}
    real, epoch = data._decode, engine.train_epoch
    monkeypatch.setattr(data, "_decode", lambda path, size: read.append(path) or real(path, size))

    def watched(*a, **k):
        trained["yet"] = True
        assert not [path for path in read if "/val/" in path]
        return epoch(*a, **k)

    monkeypatch.setattr(engine, "train_epoch", watched)
    counts, weights = [], drw.class_weights
    monkeypatch.setattr(drw, "class_weights", lambda n, *beta: counts.append(n.tolist()) or weights(n, *beta))
    files, labels = data._open_folder(images, "train")
    held = {files[i] for i in data.hold_out(labels, 5, 3)[1]}
    own = ["--val-per-class", 5, "--data-seed", 3, "--dataset", images, "--imbalance", 2, "--epochs", 1, "--batch-size", 32]
    stage("train_supernet", *SMALL, *own, "--out", tmp_path / "s")
    stage("adapt", "--supernet", tmp_path / "s/supernet.pt", *own, "--out", tmp_path / "p")
    assert read and not held & set(read) and not [path for path in read if "/val/" in path]
    read.clear()
    bn, scorer = [], engine.scorer
    monkeypatch.setattr(
        engine, "scorer", lambda net, train, val, *more: bn.append((train, val)) or scorer(net, train, val, *more)
    )
    stage("search", "--supernet", tmp_path / "p/supernet.pt", "--generations", 1, "--population", 2, "--crossovers", 1,
          "--mutations", 1, "--out", tmp_path / "q")  # fmt: skip
    assert held < set(read) and not [path for path in read if "/val/" in path]
    (train, _), (val, _) = bn[0]  # BN statistics come from the one, accuracies from the other
    assert len(val) == len(held) and not {x.cpu().numpy().tobytes() for x in train} & {x.cpu().numpy().tobytes() for x in val}
    read.clear()
    stage("retrain", "--arch", ARCH, *SMALL, *own, "--out", tmp_path / "r")
    assert not held & set(read) and sum("/val/" in path for path in read) == 40  # the one final report
    read.clear()
    own = ["--val-per-class", 5, "--data-seed", 3, "--datasets", f"{images}:2", "--epochs", 1, "--batch-size", 32]
    (tmp_path / "archs.txt").write_text(ARCH + "\n")
    stage("rank_transfer", *SMALL, *own, "--archs", tmp_path / "archs.txt", "--out", tmp_path / "t")
    assert not held & set(read) and trained["yet"]
    # 30 images a class, less the 5 held out, in a tail of 2: in all four that train, twice in the last
    assert len(counts) >= 4 and all(n == [25, 19, 15, 12] for n in counts)


# Input from anywhere

PARTS = [
    "|",
    "+",
    "//",
    "~0",
    "~1",
    "~9",
    "none",
    "nor_conv_3x3",
    "sep_conv_3x3",
    "skip_connect",
    "Genotype(",
    "[(",
    "'",
    ")",
    " ",
]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PARTS)).map("".join)), st.sampled_from(sorted(spaces.SPACES)))
def test_any_text_is_an_architecture_or_a_value_error(text, name):
    space = spaces.SPACES[name]
    try:
        arch = space.from_string(text)
    except ValueError:
        return
    assert space.from_string(space.to_string(arch)) == arch


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(spaces.SPACES)), st.integers(0, 2**32))
def test_an_architecture_survives_its_string(name, seed):
    arch = spaces.sample(spaces.SPACES[name].CHOICES, np.random.default_rng(seed))
    assert spaces.SPACES[name].from_string(spaces.SPACES[name].to_string(arch)) == arch


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
json_lines = st.lists(
    st.fixed_dictionaries({k: json_values | st.integers(1, 3) | st.sampled_from("abc") for k in rank_transfer.KEYS}), max_size=6
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(), st.text().map(str.encode), json_lines.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
                 st.lists(st.lists(st.sampled_from(["arch", "x", "1", "", '"', "nan"]))).map(
                     lambda rows: "\n".join(map(",".join, rows)).encode())))  # fmt: skip
def test_any_file_is_accuracies_or_a_value_error(tmp_path, contents):
    (tmp_path / "f").write_bytes(contents)
    try:
        units = rank_transfer.collect([tmp_path / "f"])
    except ValueError:
        return
    assert all(0 <= a <= 100 for archs in units.values() for seeds in archs.values() for a in seeds.values())


def test_what_hides_in_json_and_csv_is_told(tmp_path):
    for contents in (
        '{"a":' * 100000,
        "arch,x\na," + "1" * 200000,
        '{"arch": "a", "dataset": "d", "imbalance": 1' + "0" * 400 + "}",
    ):
        (tmp_path / "f").write_text(contents)
        with pytest.raises(ValueError):
            rank_transfer.collect([tmp_path / "f"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_metadata_of_a_checkpoint_fit_or_are_a_value_error(supernet, data):
    checkpoint = runtime.load_checkpoint(supernet, "super-net")
    changed = copy.deepcopy({k: v for k, v in checkpoint.items() if k != "net"}) | {"net": dict(checkpoint["net"])}
    place = changed if data.draw(st.booleans()) else changed["data"]
    values = json_values | st.sampled_from(["nats", "darts"]) | st.integers(-3, 300) | st.just(torch.zeros(3))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(values)
    try:
        net = spaces.supernet_from(changed)
    except ValueError:
        return
    assert all(torch.equal(w, checkpoint["net"][k]) for k, w in net.state_dict().items())


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
