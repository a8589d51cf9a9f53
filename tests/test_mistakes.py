"""The user's mistakes, and a full disk or GPU: one line on stderr, exit 2 or 1, and nothing is lost."""

import os
import shutil

import pytest
import torch
from conftest import SMALL, command, refused
from test_stages import ARCH, TRAIN

from common import runtime


@pytest.mark.parametrize(
    ("script", "argv", "message"),
    [
        ("train_supernet", ["--dataset", "cifar11"], "unknown dataset 'cifar11'"),
        ("train_supernet", ["--dataset", "IMAGES", "--imbalance", "0.5"], "at least 1 and finite, not 0.5"),
        ("train_supernet", ["--dataset", "IMAGES", "--epochs", "10", "--milestones", "5", "11"], "names epoch 11"),
        ("train_supernet", ["--dataset", "IMAGES", "--epochs", "ten"], "--epochs: invalid int value: 'ten'"),
        (
            "train_supernet",
            ["--dataset", "IMAGES", "--epochs", "0"],
            "--epochs: must be at least 1 and below 10,000,000, not 0",
        ),
        ("train_supernet", ["--dataset", "IMAGES", "--lr", "nan"], "--lr: must be greater than 0 and finite, not nan"),
        ("train_supernet", ["--dataset", "IMAGES", "--val-per-class", "30"], "smallest class has 30"),
        ("train_supernet", ["--dataset", "IMAGES", "--device", "warp"], "cannot use the device 'warp'"),
        ("train_supernet", ["--dataset", "IMAGES", "--beta", "1"], "beta must be in"),
        ("train_supernet", ["--dataset", "IMAGES", "--image-size", "30"], "multiple of 4"),
        ("train_supernet", ["--dataset", "IMAGES", "--image-size", "ten"], "invalid int value: 'ten'"),
        ("train_supernet", ["--dataset", "IMAGES", "--channels", "1000000"], "below 4,097"),
        ("train_supernet", ["--precision", "auto"], "invalid choice: 'auto'"),
        (
            "train_supernet",
            ["--dataset", "IMAGES", *SMALL, "--sampling", "strict", "--batch-size", "4"],
            "5 paths cannot share",
        ),
        ("retrain", ["--arch", ARCH.replace("none~0", "nonne~0")], "'nonne~0'"),
        ("retrain", ["--arch", ARCH, "--epochs", "10", "--reweight-from", "160"], "names epoch 160"),
        ("retrain", ["--arch", ARCH, "--loss", "BS", "--reweight-from", "3"], "not to BS"),
        ("retrain", ["--arch", "nowhere.json"], "no file 'nowhere.json'"),
        ("retrain", ["--arch", ARCH, "--dataset", "IMAGES", "--device", "cpu", "--cuda-graphs"], "--cuda-graphs needs a GPU"),
        ("adapt", ["--supernet", "nowhere.pt"], "no file 'nowhere.pt'"),
        ("adapt", ["--supernet", "SUPERNET", "--procedure", "P1", "--backbone-epochs", "3"], "belongs to P2, not to P1"),
        ("adapt", ["--supernet", "S", "--procedure", "P0", "--features-every", "2"], "--features-every needs"),
        ("adapt", ["--supernet", "S", "--procedure", "P0", "--sampling", "strict"], "belongs to P1 and P2"),
        ("search", ["--supernet", "SUPERNET", "--population", "10"], "exceed the population"),
        ("search", ["--supernet", "SUPERNET", "--mutate-probability", "7"], "--mutate-probability"),
    ],
)
def test_a_mistake_is_told_in_one_line(script, argv, message, images, supernet, tmp_path):
    argv = [{"IMAGES": images, "SUPERNET": supernet}.get(a, a) for a in argv]
    assert message in refused(script, *argv, "--out", tmp_path / "r")
    assert not (tmp_path / "r/config.json").exists()


def test_mistakes_as_the_user_sees_them(tmp_path):
    for argv in (["retrain.py", "--arch", "x"], ["train_supernet.py", "--epoch", "3"], ["adapt.py", "--supernet", __file__]):
        done = command(*argv, "--out", tmp_path / "r")
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_a_folder_without_val_or_with_a_damaged_image_is_named(images, tmp_path):
    root = tmp_path / "own"
    shutil.copytree(images, root)
    argv = ["train_supernet", "--dataset", root, *TRAIN, "--epochs", 1, "--out", tmp_path / "r"]
    damaged = root / "train/class1/3.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert str(damaged) in refused(*argv)
    shutil.rmtree(root / "val/class2")
    assert "class2" in refused(*argv)
    shutil.rmtree(root / "val")
    assert str(root / "val") in refused(*argv)
    assert not os.path.exists(tmp_path / "r/config.json")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory\nof 80 GiB"), OSError("no space left")])
def test_a_full_disk_or_gpu_is_told_in_one_line(error, monkeypatch, capsys):
    def main(args):
        raise error

    monkeypatch.setattr(runtime.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        runtime.launch(lambda: None, main)
    assert end.value.code == 1 and capsys.readouterr().err == f"error: {' '.join(str(error).split())}\n"
