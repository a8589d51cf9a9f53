"""Every default is the paper's, and every flag of training changes the training."""

import importlib

import pytest
import torch
from conftest import SMALL, stage

from common import flags, runtime

# Section 4.1, and what the paper leaves open (DESIGN: momentum, weight decay, batch size, warm-up, clipping; Guo et al. 2020:
# the search).
TRAINING = {"loss": "CE-DRW", "beta": 0.9999, "batch_size": 128, "momentum": 0.9, "weight_decay": 2e-4, "clip": 5.0,
            "precision": "fp32", "image_size": 32, "val_per_class": 0, "seed": 0}  # fmt: skip
SCRATCH = {**TRAINING, "lr": 0.1, "warmup": 5}
SEARCH = {"generations": 20, "population": 50, "crossovers": 25, "mutations": 25, "mutate_probability": 0.1, "topk": 10,
          "bn_images": 2000, "own_classifier": False, "max_mmacs": None}  # fmt: skip
DEFAULTS = {
    ("train_supernet",): {**SCRATCH, "space": "nats", "channels": 16, "cells": 5, "dataset": "cifar10", "imbalance": 1,
                          "epochs": 600, "milestones": [400, 500], "reweight_from": 400, "sampling": "uniform"},
    ("adapt", "--supernet", "s.pt"): {**TRAINING, "procedure": "P1", "dataset": "cifar100", "imbalance": 100, "lr": 0.01,
                                      "warmup": 0, "epochs": 200, "milestones": [100], "reweight_from": 1,
                                      "features_every": 1, "sampling": "uniform"},
    ("search", "--supernet", "s.pt"): SEARCH,
    ("retrain", "--arch", "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|"): {
        **SCRATCH, "channels": 16, "cells": 5, "dataset": "cifar100", "imbalance": 100, "epochs": 200,
        "milestones": [160, 180], "reweight_from": 160},
}  # fmt: skip
COMMON = [("--lr", 0.05), ("--milestones", 1), ("--warmup", 2), ("--momentum", 0.5), ("--weight-decay", 0.1), ("--clip", 0.01),
          ("--beta", 0.9), ("--batch-size", 20), ("--loss", "BS"), ("--precision", "bf16"), ("--seed", 1),
          ("--data-seed", 1), ("--val-per-class", 5), ("--imbalance", 3), ("--image-size", 12), ("--epochs", 1)]  # fmt: skip


@pytest.mark.parametrize("call", DEFAULTS)
def test_a_default_is_the_papers(call):
    script, *argv = call
    found = vars(importlib.import_module(script).parse_args(argv))
    assert {name: found[name] for name in DEFAULTS[call]} == DEFAULTS[call]


@pytest.mark.parametrize("script", ["train_supernet", "adapt", "retrain"])
def test_every_flag_of_training_changes_the_weights(script, images, supernet, tmp_path):
    own = {
        "train_supernet": [*SMALL],
        "adapt": ["--supernet", supernet, "--procedure", "P2"],
        "retrain": [*SMALL, "--arch", "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"],
    }[script]
    target = ["--dataset", images, "--imbalance", 4, "--image-size", 16, "--batch-size", 40, "--epochs", 2, "--lr", 0.1]
    changes = [*COMMON, ("--reweight-from", 2 if script == "adapt" else 1)]  # P2 re-weights from the first of two epochs
    changes += [("--sampling", "strict")] if script != "retrain" else []
    product, kind = ("model.pt", "sub-net") if script == "retrain" else ("supernet.pt", "super-net")

    def trained(out, *change):
        stage(script, *own, *target, "--warmup", 0, *change, "--out", out)
        return torch.cat([weight.flatten() for weight in runtime.load_checkpoint(out / product, kind)["net"].values()])

    base = trained(tmp_path / "base")
    assert torch.equal(trained(tmp_path / "again"), base)
    assert [change for change in changes if torch.equal(trained(tmp_path / change[0], *change), base)] == []


def test_the_batch_size_is_that_of_all_ranks_together(images, monkeypatch):
    args = importlib.import_module("train_supernet").parse_args(["--dataset", images, "--batch-size", "40"])
    monkeypatch.setattr(flags, "world", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(flags, "rank", lambda rank=rank: rank)
        batches, *_ = flags.training_data(args, "cpu")
        assert [len(labels) for _, labels in batches.epoch(1)] == [20, 20, 20]
