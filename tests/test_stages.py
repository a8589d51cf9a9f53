"""The four stages from flags to result.json, in this process and as a user runs them."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, command, stage

import retrain
from common import data, engine, nats, runtime, spaces

TRAIN = [*SMALL, "--warmup", 0, "--batch-size", 32]
SEARCH = ["--generations", 2, "--population", 6, "--crossovers", 3, "--mutations", 3, "--bn-images", 40]
ARCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


def result(out):
    return json.loads((out / "result.json").read_text())


def weights(out):
    return runtime.load_checkpoint(out / "supernet.pt", "super-net")["net"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def adapt(procedure, supernet, images, out, *more, epochs=2):
    batch = ["--batch-size", 32]
    stage("adapt", "--procedure", procedure, "--supernet", supernet, "--dataset", images, "--imbalance", 5,
          "--epochs", epochs, *batch, *more, "--out", out)  # fmt: skip
    return weights(out)


def refused(script, *argv):
    with pytest.raises(runtime.UserError) as error:
        stage(script, *argv)
    return str(error.value)


# What each stage makes


@pytest.mark.parametrize("space", spaces.SPACES)
def test_from_nothing_to_a_sub_net(space, images, tmp_path):
    shape = ["--channels", 4, "--cells", 1 if space == "nats" else 3]
    target = ["--dataset", images, "--imbalance", 10, "--val-per-class", 3, "--batch-size", 32]
    stage("train_supernet", "--space", space, "--dataset", images, *shape, "--val-per-class", 3, "--epochs", 1,
          "--batch-size", 32, "--out", tmp_path / "source")  # fmt: skip
    stage("adapt", "--procedure", "P2", "--supernet", tmp_path / "source/supernet.pt", *target, "--epochs", 1,
          "--out", tmp_path / "p2")  # fmt: skip
    stage("search", "--supernet", tmp_path / "p2/supernet.pt", *SEARCH, "--out", tmp_path / "search")
    stage("retrain", "--arch", tmp_path / "search/result.json", *target, *shape, "--epochs", 1, "--out", tmp_path / "sub")

    source, p2, found, sub = (result(tmp_path / name) for name in ("source", "p2", "search", "sub"))
    assert source.keys() == {"procedure", "dataset", "imbalance", "seed", "epochs", "seconds", "supernet"}
    assert (source["procedure"], p2["procedure"], p2["imbalance"], p2["epochs"]) == ("source", "P2", 10, 1)
    assert found.keys() == {"best", "topk", "evaluated", "seconds"} and found["evaluated"] == 12
    accuracies = [top["accuracy"] for top in found["topk"]]
    assert len(accuracies) == 10 and accuracies == sorted(accuracies, reverse=True) and found["best"] == found["topk"][0]
    assert sub.keys() == {"arch", "accuracy", "per_class", "params", "mmacs", "seconds"}
    assert sub["arch"] == found["best"]["arch"] and sub["mmacs"] == found["best"]["mmacs"]
    assert sub["accuracy"]["all"] == pytest.approx(np.mean(sub["per_class"]))
    assert sub["accuracy"]["many"] is None  # 27, 12, 5 and 2 training images: none above 100
    assert sub["accuracy"]["medium"] == pytest.approx(sub["per_class"][0])
    assert sub["accuracy"]["few"] == pytest.approx(np.mean(sub["per_class"][1:]))
    for name in ("source", "p2", "search", "sub"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config.keys() > {"flags", "torch", "commit", "command", "device"} and config["flags"]["seed"] == 0
    lines = [json.loads(line) for line in (tmp_path / "sub/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1] and lines[0].keys() > {"loss", "accuracy", "seconds"}


def test_many_medium_and_few_are_split_at_100_and_20():
    found = retrain.by_size(torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([101, 100, 20, 19, 1]))
    assert found == {"many": 1, "medium": 2.5, "few": 4.5}


def test_a_trained_sub_net_tells_the_classes_apart(images, tmp_path):
    """The classes differ in brightness; chance is 25 %."""
    stage("retrain", "--arch", ARCH, "--dataset", images, "--imbalance", 1, *TRAIN, "--epochs", 12, "--out", tmp_path / "r")
    assert result(tmp_path / "r")["accuracy"]["all"] >= 60
    model = runtime.load_checkpoint(tmp_path / "r/model.pt", "sub-net")
    net = nats.Network(4, 4, 1, nats.from_string(model["arch"]))
    net.load_state_dict(model["net"])


def test_p0_is_the_source_super_net_searched_on_the_source(supernet, images, tmp_path):
    source = runtime.load_checkpoint(supernet, "super-net")
    assert equal(adapt("P0", supernet, images, tmp_path / "p0"), source["net"])
    assert runtime.load_checkpoint(tmp_path / "p0/supernet.pt", "super-net")["data"] == source["data"]
    assert result(tmp_path / "p0")["epochs"] == 0


def test_p1_leaves_the_backbone_and_p2_does_not(supernet, images, tmp_path):
    source = runtime.load_checkpoint(supernet, "super-net")["net"]
    p1, p2 = adapt("P1", supernet, images, tmp_path / "p1"), adapt("P2", supernet, images, tmp_path / "p2")
    backbone = [k for k in source if not k.startswith("classifier")]
    assert all(torch.equal(p1[k], source[k]) for k in backbone)
    assert any(not torch.equal(p2[k], source[k]) for k in backbone)
    assert not torch.equal(p1["classifier.weight"], source["classifier.weight"])


def test_p2_without_backbone_epochs_is_p1(supernet, images, tmp_path):
    p1 = adapt("P1", supernet, images, tmp_path / "p1")
    p2 = adapt("P2", supernet, images, tmp_path / "p2", "--backbone-epochs", 0, "--reweight-from", 1)
    late = adapt("P2", supernet, images, tmp_path / "late", "--backbone-epochs", 0, "--reweight-from", 2)
    assert equal(p1, p2) and not equal(p1, late)


def test_p2_freezes_after_backbone_epochs(supernet, images, tmp_path):
    one = adapt("P2", supernet, images, tmp_path / "one", "--milestones", "--reweight-from", 1, epochs=1)
    two = adapt("P2", supernet, images, tmp_path / "two", "--milestones", "--reweight-from", 1, "--backbone-epochs", 1)
    differ = {k for k in one if not torch.equal(one[k], two[k])}
    assert differ == {"classifier.weight", "classifier.bias"}


def test_features_kept_over_epochs_train_the_classifier_alone_and_resume(supernet, images, tmp_path, monkeypatch):
    more = ["--features-every", 3]
    calls, real = [], engine.KeptFeatures.__init__

    def counted(self, net, batches, epoch, *rest):
        calls.append(epoch)
        real(self, net, batches, epoch, *rest)

    monkeypatch.setattr(engine.KeptFeatures, "__init__", counted)
    # Stopped after epoch 5 of 6, the third that would use the features of epoch 4.
    done = runtime.Run.epoch_done

    def stop(run, *rest):
        done(run, *rest)
        if len(run.history) == 5:
            raise KeyboardInterrupt

    expected = adapt("P1", supernet, images, tmp_path / "six", *more, epochs=6)
    assert calls == [1, 4]
    source = runtime.load_checkpoint(Path(supernet), "super-net")["net"]
    assert all(torch.equal(expected[k], v) for k, v in source.items() if not k.startswith("classifier"))
    monkeypatch.setattr(runtime.Run, "epoch_done", stop)
    with pytest.raises(KeyboardInterrupt):
        adapt("P1", supernet, images, tmp_path / "stopped", *more, epochs=6)
    monkeypatch.setattr(runtime.Run, "epoch_done", done)
    calls.clear()
    assert equal(adapt("P1", supernet, images, tmp_path / "stopped", *more, epochs=6), expected)
    assert calls == [4]
    assert not equal(adapt("P1", supernet, images, tmp_path / "plain", epochs=6), expected)


def test_p2_keeps_features_once_the_backbone_is_frozen(supernet, images, tmp_path, monkeypatch):
    calls, real = [], engine.KeptFeatures.__init__
    monkeypatch.setattr(engine.KeptFeatures, "__init__", lambda self, *a: calls.append(a[2]) or real(self, *a))
    adapt("P2", supernet, images, tmp_path / "p2", "--backbone-epochs", 2, "--features-every", 2, epochs=5)
    assert calls == [3, 5]
    for procedure in ("P0", "P2"):
        told = refused("adapt", "--procedure", procedure, "--supernet", supernet, "--dataset", images,
                       "--features-every", 2, "--out", tmp_path / "refused")  # fmt: skip
        assert "--features-every" in told


def test_the_precision_that_auto_picks_is_kept_by_the_run(images, tmp_path, monkeypatch, capsys):
    call = ["--dataset", images, *TRAIN, "--epochs", 2, "--precision", "auto", "--out", tmp_path / "run"]
    monkeypatch.setattr(engine, "faster_precision", lambda device: "bf16")
    asked, real = [], engine.train_epoch

    def stopped(*a, **k):
        asked.append(k["precision"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*a, **k)

    monkeypatch.setattr(engine, "train_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        stage("train_supernet", *call)
    assert "precision: bf16" in capsys.readouterr().out
    monkeypatch.setattr(engine, "faster_precision", lambda device: "fp32")
    stage("train_supernet", *call)
    assert asked == ["bf16"] * 3
    assert json.loads((tmp_path / "run/config.json").read_text())["chosen"] == {"precision": "bf16"}


@pytest.mark.skipif(not (shutil.which("g++") or torch.cuda.is_available()), reason="torch.compile needs a C++ compiler")
def test_a_compiled_sub_net_is_the_eager_one_but_for_rounding_and_resumes(images, tmp_path, monkeypatch):
    call = ["--arch", ARCH, "--dataset", images, *TRAIN, "--epochs", 2, "--lr", 0.01]
    stage("retrain", *call, "--out", tmp_path / "eager")
    call.append("--compile")
    stage("retrain", *call, "--out", tmp_path / "whole")
    done = runtime.Run.epoch_done

    def stop(run, *rest):
        done(run, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime.Run, "epoch_done", stop)
    with pytest.raises(KeyboardInterrupt):
        stage("retrain", *call, "--out", tmp_path / "half")
    monkeypatch.setattr(runtime.Run, "epoch_done", done)
    stage("retrain", *call, "--out", tmp_path / "half")
    outs = ("eager", "whole", "half")
    eager, whole, half = (runtime.load_checkpoint(tmp_path / out / "model.pt", "sub-net")["net"] for out in outs)
    assert equal(whole, half)
    for k in eager:
        torch.testing.assert_close(whole[k], eager[k], rtol=1e-2, atol=1e-3, msg=k)


def test_same_seed_same_bits_another_seed_others(images, tmp_path):
    def accuracies(name, seed):
        stage("retrain", "--arch", ARCH, "--dataset", images, "--imbalance", 2, *TRAIN, "--epochs", 2, "--seed", seed,
              "--out", tmp_path / name)  # fmt: skip
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return result(tmp_path / name)["accuracy"], [json.loads(line)["loss"] for line in lines]

    one, again, other = accuracies("a", 0), accuracies("b", 0), accuracies("c", 1)
    assert one == again and one[1] != other[1]


def test_ce_and_drw_part_at_the_reweighting_epoch(images, tmp_path):
    losses = {}
    for loss in ("CE", "CE-DRW"):
        stage("train_supernet", "--dataset", images, "--imbalance", 10, *TRAIN, "--epochs", 3, "--reweight-from", 3,
              "--loss", loss, "--out", tmp_path / loss)  # fmt: skip
        lines = (tmp_path / loss / "metrics.jsonl").read_text().splitlines()
        losses[loss] = [json.loads(line)["loss"] for line in lines]
        assert result(tmp_path / loss)["procedure"] == "P3"
    assert losses["CE"][:2] == losses["CE-DRW"][:2] and losses["CE"][2] != losses["CE-DRW"][2]


def test_search_keeps_to_a_limit_and_refuses_an_infeasible_one(supernet, tmp_path):
    argv = ["--supernet", supernet, *SEARCH]
    net = spaces.supernet("nats", 4, 4, 1)
    macs = spaces.macs_counter(net)
    limit = (macs(nats.LIGHTEST) + macs((3, 0, 0, 0, 0, 0))) / 2e6
    stage("search", *argv, "--max-mmacs", limit, "--out", tmp_path / "tight")
    assert all(top["mmacs"] <= limit for top in result(tmp_path / "tight")["topk"])
    assert "the lightest has" in refused("search", *argv, "--max-mmacs", 0.1, "--out", tmp_path / "none")
    assert not (tmp_path / "none/scores.jsonl").exists()


def test_search_on_a_hold_out_never_opens_the_test_split(images, tmp_path, monkeypatch):
    stage("train_supernet", "--dataset", images, *TRAIN, "--val-per-class", 5, "--epochs", 1, "--out", tmp_path / "s")
    opened, real = [], data._open
    monkeypatch.setattr(data, "_open", lambda name, split, *more: opened.append(split) or real(name, split, *more))
    stage("search", "--supernet", tmp_path / "s/supernet.pt", *SEARCH, "--out", tmp_path / "q")
    assert opened == ["train"]


def test_describe_needs_no_data(capsys):
    stage("retrain", "--describe", "--arch", ARCH, "--dataset", "cifar100")
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"arch", "params", "mmacs"} and found["arch"] == ARCH


# Interrupted, finished, repeated


def test_resumed_after_any_epoch_it_ends_the_same(images, tmp_path, monkeypatch):
    argv = ["train_supernet", "--dataset", images, "--imbalance", 5, *TRAIN, "--epochs", 3, "--out"]
    stage(*argv, tmp_path / "whole")
    real = runtime.Run.epoch_done
    for stop in (1, 2):

        def interrupted(run, *a, stop=stop):
            real(run, *a)
            if len(run.history) == stop:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(runtime.Run, "epoch_done", interrupted)
            stage(*argv, tmp_path / f"{stop}")
        stage(*argv, tmp_path / f"{stop}")
        assert equal(weights(tmp_path / "whole"), weights(tmp_path / f"{stop}"))
        assert len((tmp_path / f"{stop}/metrics.jsonl").read_text().splitlines()) == 3


def test_killed_in_the_middle_it_ends_the_same(images, tmp_path):
    argv = ["retrain.py", "--arch", ARCH, "--dataset", images, "--imbalance", 2, *TRAIN, "--epochs", 40, "--out"]
    argv = [str(a) for a in argv]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert command(*argv, whole).returncode == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen([sys.executable, *argv, str(killed)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while not (killed / "metrics.jsonl").exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()
    done = command(*argv, killed)
    assert "resumed after epoch" in done.stdout
    assert {**result(whole), "seconds": 0} == {**result(killed), "seconds": 0}


def test_search_resumes_with_the_scores_it_has(supernet, tmp_path, monkeypatch):
    argv = ["search", "--supernet", supernet, *SEARCH, "--out"]
    stage(*argv, tmp_path / "whole")
    real, calls = engine.scorer, []

    def scorer(*a):
        score = real(*a)

        def counted(arch):
            if len(calls) == 8:
                calls.append("stop")
                raise KeyboardInterrupt
            calls.append(arch)
            return score(arch)

        return counted

    monkeypatch.setattr(engine, "scorer", scorer)
    with pytest.raises(KeyboardInterrupt):
        stage(*argv, tmp_path / "q")
    stage(*argv, tmp_path / "q")
    assert len(calls) == 13 and len(set(calls)) == 13  # twelve architectures and the stop
    assert {**result(tmp_path / "whole"), "seconds": 0} == {**result(tmp_path / "q"), "seconds": 0}


def test_a_finished_run_says_so_and_other_flags_are_refused(supernet, tmp_path):
    argv = ["search", "--supernet", supernet, *SEARCH, "--out", tmp_path / "q"]
    stage(*argv)
    before = (tmp_path / "q/result.json").stat().st_mtime_ns
    done = command("search.py", *argv[1:])
    assert done.returncode == 0 and "already finished" in done.stdout, done.stderr
    assert (tmp_path / "q/result.json").stat().st_mtime_ns == before
    done = command("search.py", *argv[1:], "--seed", 5)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "seed was 0, is 5" in done.stderr


# Two processes


def test_two_ranks_run_every_stage_and_search_as_one_does(images, tmp_path):
    shared = ["--dataset", images, "--imbalance", 2, "--batch-size", 32, "--epochs", 1]
    chain = [
        ("train_supernet.py", *SMALL, *shared, "--out", tmp_path / "s"),
        ("adapt.py", "--supernet", tmp_path / "s/supernet.pt", *shared, "--out", tmp_path / "p1"),
        ("search.py", "--supernet", tmp_path / "p1/supernet.pt", *SEARCH, "--out", tmp_path / "q"),
        ("retrain.py", "--arch", tmp_path / "q/result.json", *SMALL, *shared, "--out", tmp_path / "r"),
    ]
    for argv in chain:
        done = command(*argv, ranks=2)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("done, see") == 1
    assert result(tmp_path / "r")["accuracy"]["all"] == pytest.approx(np.mean(result(tmp_path / "r")["per_class"]))
    stage("search", *chain[2][1:-1], tmp_path / "alone")
    assert {**result(tmp_path / "q"), "seconds": 0} == {**result(tmp_path / "alone"), "seconds": 0}


# The user's mistakes: one line and exit 2


@pytest.mark.parametrize(
    ("script", "argv", "told"),
    [
        ("train_supernet", ["--dataset", "cifar11"], "unknown dataset 'cifar11'"),
        ("retrain", ["--arch", ARCH.replace("none~0", "nonne~0")], "'nonne~0'"),
        ("train_supernet", ["--dataset", "IMAGES", "--imbalance", "0.5"], "at least 1, not 0.5"),
        ("train_supernet", ["--dataset", "IMAGES", "--epochs", "10", "--milestones", "5", "11"], "--milestones 11"),
        ("retrain", ["--arch", ARCH, "--epochs", "10", "--reweight-from", "160"], "--reweight-from 160"),
        ("adapt", ["--supernet", "nowhere.pt"], "no checkpoint 'nowhere.pt'"),
        ("adapt", ["--supernet", "SUPERNET", "--procedure", "P1", "--backbone-epochs", "3"], "of P2, not of P1"),
        ("train_supernet", ["--dataset", "IMAGES", "--epochs", "0"], "at least 1 and below 1e+07, not 0"),
        ("train_supernet", ["--dataset", "IMAGES", "--lr", "nan"], "positive number"),
        ("train_supernet", ["--dataset", "IMAGES", "--batch-size", "0"], "--batch-size must be at least 1"),
        ("train_supernet", ["--dataset", "IMAGES", "--val-per-class", "30"], "smallest class has 30"),
        ("train_supernet", ["--dataset", "IMAGES", "--device", "warp"], "cannot use the device 'warp'"),
        ("train_supernet", ["--dataset", "IMAGES", "--beta", "1"], "beta must be in"),
        ("train_supernet", ["--dataset", "IMAGES", "--image-size", "30"], "multiple of 4"),
        ("train_supernet", ["--dataset", "IMAGES", "--imbalance", "inf"], "--imbalance"),
        ("train_supernet", ["--dataset", "IMAGES", "--momentum", "-1"], "--momentum"),
        ("adapt", ["--supernet", "SUPERNET", "--procedure", "P2", "--epochs", "2", "--backbone-epochs", "9"], "beyond the 2"),
        ("train_supernet", ["--dataset", "IMAGES", "--epochs", "1" + 400 * "0"], "--epochs"),
        ("train_supernet", ["--dataset", "IMAGES", "--image-size", "4000000000"], "up to 1024"),
        ("train_supernet", ["--dataset", "IMAGES", "--channels", "1000000"], "at most 4096"),
        ("train_supernet", ["--dataset", "IMAGES", "--device", "hpu"], "cannot use the device 'hpu'"),
        ("retrain", ["--arch", "nowhere.json"], "no file 'nowhere.json'"),
        ("search", ["--supernet", "SUPERNET", "--population", "10"], "exceed the population"),
        ("search", ["--supernet", "SUPERNET", "--generations", "0"], "--generations must be at least 1"),
        ("search", ["--supernet", "SUPERNET", "--max-mmacs", "nan"], "--max-mmacs"),
        ("search", ["--supernet", "SUPERNET", "--mutate-probability", "7"], "from 0 to 1"),
        ("reproduce", ["quick", "--source", "IMAGES", "--target", "cifar11"], "unknown dataset 'cifar11'"),
    ],
)
def test_a_mistake_is_told_in_one_line(script, argv, told, images, supernet, tmp_path):
    argv = [{"IMAGES": images, "SUPERNET": supernet}.get(a, a) for a in argv]
    assert told in refused(script, *argv, "--out", tmp_path / "r")


def test_mistakes_as_the_user_sees_them(tmp_path):
    for argv in (["train_supernet.py", "--dataset", "cifar11"], ["retrain.py", "--arch", "x"], ["search.py"],
                 ["train_supernet.py", "--epoch", "3"], ["adapt.py", "--supernet", __file__]):  # fmt: skip
        done = command(*argv, "--out", tmp_path / "r")
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_a_folder_without_val_or_with_a_damaged_image_is_named(images, tmp_path):
    root = tmp_path / "own"
    shutil.copytree(images, root)
    argv = ["train_supernet", "--dataset", root, *TRAIN, "--epochs", 1, "--out", tmp_path / "r"]
    damaged = root / "train/class1/3.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert str(damaged) in refused(*argv)
    damaged.write_text("not an image")
    assert str(damaged) in refused(*argv)
    shutil.rmtree(root / "val/class2")
    assert "class2" in refused(*argv)
    shutil.rmtree(root / "val")
    assert "no folder 'val/'" in refused(*argv)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(supernet, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = runtime.load_checkpoint(supernet, "super-net")
    argv = ["search", *SEARCH, "--out", tmp_path / "q", "--supernet"]
    half, other, wider, less, hostile = (tmp_path / f"{name}.pt" for name in ("half", "other", "wider", "less", "hostile"))
    whole = Path(supernet).read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    torch.save({**good, "space": "darts"}, other)
    torch.save({**good, "channels": 8}, wider)
    torch.save({k: v for k, v in good.items() if k != "data"}, less)
    hostile.write_bytes(pickle.dumps(Hostile()))
    for path, told in (
        (half, "damaged"),
        (other, "'darts'"),
        (wider, "channels"),
        (less, "does not say its 'data'"),
        (hostile, "damaged"),
    ):
        message = refused(*argv, path)
        assert path.name in message and told in message, message
    assert not (tmp_path / "pwned").exists()
    stage("retrain", "--arch", ARCH, "--dataset", images, "--imbalance", 1, *TRAIN, "--epochs", 1, "--out", tmp_path / "r")
    assert "of a super-net but of a sub-net" in refused(*argv, tmp_path / "r/model.pt")
