"""The four stages from flags to result.json, in this process and as a user runs them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, command, interrupted, refused, stage, two_ranks, weights

from common import data, engine, nats, runtime, spaces

TRAIN = [*SMALL, "--warmup", 0, "--batch-size", 32]
SEARCH = ["--generations", 2, "--population", 6, "--crossovers", 3, "--mutations", 3, "--bn-images", 40]
ARCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


def result(out):
    return json.loads((Path(out) / "result.json").read_text())


def untimed(out):
    return {**result(out), "seconds": 0}


def epoch_losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def adapt(procedure, supernet, images, out, *more, epochs=2):
    target = ["--dataset", images, "--imbalance", 5, "--epochs", epochs, "--batch-size", 32]
    stage("adapt", "--procedure", procedure, "--supernet", supernet, *target, *more, "--out", out)
    return weights(out)


# What each stage makes


@pytest.mark.parametrize("space", ["nats", "darts", "shufflenet"])
def test_from_nothing_to_a_sub_net(space, images, tmp_path):
    shape = ["--channels", 4, "--cells", 3 if space == "darts" else 1]
    target = ["--dataset", images, "--imbalance", 10, "--val-per-class", 3, "--batch-size", 32, "--epochs", 1]
    source, p2, found, sub = (tmp_path / name for name in ("source", "p2", "search", "sub"))
    stage("train_supernet", "--space", space, *shape, *target, "--imbalance", 1, "--out", source)
    stage("adapt", "--procedure", "P2", "--supernet", source / "supernet.pt", *target, "--out", p2)
    stage("search", "--supernet", p2 / "supernet.pt", *SEARCH, "--out", found)
    stage("retrain", "--arch", found / "result.json", *target, *shape, "--out", sub)

    assert result(source).keys() == {"procedure", "dataset", "imbalance", "seed", "epochs", "seconds", "supernet"}
    assert [result(source)[k] for k in ("procedure", "imbalance")] == ["source", 1]
    assert [result(p2)[k] for k in ("procedure", "imbalance", "epochs")] == ["P2", 10, 1]
    searched, trained = result(found), result(sub)
    assert searched.keys() == {"best", "topk", "evaluated", "seconds", "data"} and searched["evaluated"] == 12
    accuracies = [top["accuracy"] for top in searched["topk"]]
    assert len(accuracies) == 10 and accuracies == sorted(accuracies, reverse=True)
    assert searched["best"] == searched["topk"][0] and trained["arch"] == searched["best"]["arch"]
    assert trained.keys() == {"arch", "accuracy", "adjusted", "per_class", "params", "mmacs", "seconds"}
    assert trained["mmacs"] == searched["best"]["mmacs"]
    per_class, accuracy = trained["per_class"], trained["accuracy"]
    assert accuracy["all"] == accuracy["balanced"] == pytest.approx(np.mean(per_class))  # a balanced test split
    assert accuracy["many"] is None and trained["adjusted"].keys() == accuracy.keys()
    assert accuracy["medium"] == pytest.approx(per_class[0])  # 27, 12, 5 and 2 training images
    assert accuracy["few"] == pytest.approx(np.mean(per_class[1:]))
    config = json.loads((sub / "config.json").read_text())
    assert config.keys() > {"flags", "torch", "commit", "command", "device"} and config["flags"]["seed"] == 0
    assert config["device"].startswith("cuda") or torch.backends.cpu.get_cpu_capability() in config["device"]


def test_a_trained_sub_net_tells_the_classes_apart(images, tmp_path, monkeypatch):
    """The classes differ in brightness; chance is 25 %. Every epoch ends with an average over ranks, and weights are saved."""
    averaged = []
    monkeypatch.setattr(engine, "average_statistics", averaged.append)
    stage("retrain", "--arch", ARCH, "--dataset", images, "--imbalance", 1, *TRAIN, "--epochs", 12, "--out", tmp_path)
    assert result(tmp_path)["accuracy"]["all"] >= 60 and len(averaged) == 12
    model = runtime.load_checkpoint(tmp_path / "model.pt", "sub-net")
    nats.Network(4, 4, 1, nats.from_string(model["arch"])).load_state_dict(model["net"])


def test_adjusted_accuracy_takes_the_largest_logit_less_the_log_prior(images, tmp_path):
    """Recomputed from model.pt (Menon et al. 2021, Eq. 9). The priors are those of the training images."""
    target = ["--dataset", images, "--imbalance", 10, "--loss", "CE", "--epochs", 24]
    stage("retrain", "--arch", ARCH, *TRAIN, *target, "--out", tmp_path)
    net = nats.Network(4, 4, 1, nats.from_string(ARCH))
    net.load_state_dict(runtime.load_checkpoint(tmp_path / "model.pt", "sub-net")["net"])
    train, (pixels, labels) = data.load(("train", "test"), images, imbalance=10)
    logits = net.eval()(data.Normalise(*data.channel_stats(train[0]), 32, "cpu")(pixels)).detach().numpy()
    priors = train[1].bincount().numpy() / len(train[1])
    expected = 100 * np.mean((logits - np.log(priors)).argmax(1) == labels.numpy())
    assert result(tmp_path)["adjusted"]["all"] == pytest.approx(expected)
    assert result(tmp_path)["accuracy"]["all"] != result(tmp_path)["adjusted"]["all"]


def test_p0_is_the_source_super_net_searched_on_the_source(supernet, images, tmp_path):
    source = runtime.load_checkpoint(supernet, "super-net")
    assert equal(adapt("P0", supernet, images, tmp_path), source["net"])
    assert runtime.load_checkpoint(tmp_path / "supernet.pt", "super-net")["data"] == source["data"]
    assert result(tmp_path)["epochs"] == 0


def test_p1_leaves_the_backbone_and_p2_does_not(supernet, images, tmp_path):
    source = runtime.load_checkpoint(supernet, "super-net")["net"]
    for split in ("train", "val"):  # the target has another number of classes, as in the paper: the classifier is new
        shutil.copytree(f"{images}/{split}", tmp_path / "five" / split)
        shutil.copytree(f"{images}/{split}/class0", tmp_path / "five" / split / "class4")
    p1, p2 = (adapt(p, supernet, tmp_path / "five", tmp_path / p) for p in ("P1", "P2"))
    backbone = [k for k in source if not k.startswith("classifier")]
    assert all(torch.equal(p1[k], source[k]) for k in backbone)
    assert any(not torch.equal(p2[k], source[k]) for k in backbone)
    assert len(p1["classifier.weight"]) == len(p2["classifier.bias"]) == 5


def test_p2_without_backbone_epochs_is_p1(supernet, images, tmp_path):
    p1 = adapt("P1", supernet, images, tmp_path / "p1")
    p2 = adapt("P2", supernet, images, tmp_path / "p2", "--backbone-epochs", 0, "--reweight-from", 1)
    late = adapt("P2", supernet, images, tmp_path / "late", "--backbone-epochs", 0, "--reweight-from", 2)
    assert equal(p1, p2) and not equal(p1, late)


def test_p2_freezes_after_backbone_epochs(supernet, images, tmp_path):
    one = adapt("P2", supernet, images, tmp_path / "one", "--milestones", "--reweight-from", 1, epochs=1)
    two = adapt("P2", supernet, images, tmp_path / "two", "--milestones", "--reweight-from", 1, "--backbone-epochs", 1)
    assert {k for k in one if not torch.equal(one[k], two[k])} == {"classifier.weight", "classifier.bias"}


def test_p1_re_weights_from_its_first_epoch_however_long():
    import adapt

    for epochs in (200, 400, 1000, 3):
        args = adapt.parse_args(["--supernet", "s.pt", "--procedure", "P1", "--epochs", str(epochs)])
        assert args.reweight_from == 1
    assert adapt.parse_args(["--supernet", "s.pt", "--procedure", "P2", "--epochs", "400"]).reweight_from == 200


def test_kept_features_train_the_classifier_alone_and_resume(supernet, images, tmp_path, monkeypatch):
    calls, real = [], engine.CachedFeatures.__init__
    monkeypatch.setattr(engine.CachedFeatures, "__init__", lambda self, *a: calls.append(a[2]) or real(self, *a))
    call = ["P1", supernet, images, tmp_path / "stopped", "--features-every", 3]
    expected = adapt("P1", supernet, images, tmp_path / "whole", "--features-every", 3, epochs=6)
    assert calls == [1, 4]
    source = runtime.load_checkpoint(supernet, "super-net")["net"]
    assert all(torch.equal(expected[k], v) for k, v in source.items() if not k.startswith("classifier"))
    with interrupted(after_epoch=5):  # the third epoch that uses the features of epoch 4
        adapt(*call, epochs=6)
    calls.clear()
    assert equal(adapt(*call, epochs=6), expected) and calls == [4]
    assert not equal(adapt("P1", supernet, images, tmp_path / "plain", epochs=6), expected)
    calls.clear()
    adapt("P2", supernet, images, tmp_path / "p2", "--backbone-epochs", 2, "--features-every", 2, epochs=5)
    assert calls == [3, 5]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graphs_give_the_same_bits(images, tmp_path):
    for name, flags in (("eager", []), ("graphs", ["--cuda-graphs"])):
        stage("retrain", "--arch", ARCH, "--dataset", images, *TRAIN, "--epochs", 2, *flags, "--out", tmp_path / name)
    eager, graphs = (runtime.load_checkpoint(tmp_path / out / "model.pt", "sub-net")["net"] for out in ("eager", "graphs"))
    assert equal(eager, graphs)


def test_same_seed_same_bits_another_seed_others(images, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        stage("retrain", "--arch", ARCH, "--dataset", images, *TRAIN, "--epochs", 2, "--seed", seed, "--out", tmp_path / name)
    assert untimed(tmp_path / "one") == untimed(tmp_path / "again")
    losses = [epoch_losses(tmp_path / name) for name in ("one", "again", "other")]
    assert losses[0] == losses[1] != losses[2]


def test_ce_and_drw_part_at_the_reweighting_epoch(images, tmp_path):
    call = ["train_supernet", "--dataset", images, "--imbalance", 10, *TRAIN, "--epochs", 3]
    for loss, more in (("CE", []), ("CE-DRW", ["--reweight-from", 3])):
        stage(*call, "--loss", loss, *more, "--out", tmp_path / loss)
        assert result(tmp_path / loss)["procedure"] == "P3"
    ce, drw = (epoch_losses(tmp_path / loss) for loss in ("CE", "CE-DRW"))
    assert ce[:2] == drw[:2] and ce[2] != drw[2]


@pytest.mark.parametrize("loss", ["BS", "LDAM-DRW"])
def test_p1_with_another_loss_is_searched_retrained_and_resumed(loss, supernet, images, tmp_path):
    call = ["P1", supernet, images]
    expected = adapt(*call, tmp_path / "p1", "--loss", loss)
    with interrupted(after_epoch=1):
        adapt(*call, tmp_path / "resumed", "--loss", loss)
    assert equal(adapt(*call, tmp_path / "resumed", "--loss", loss), expected)
    assert ("classifier.bias" in expected) == (loss == "BS") and not equal(adapt(*call, tmp_path / "ce"), expected)
    stage("search", "--supernet", tmp_path / "p1/supernet.pt", *SEARCH, "--out", tmp_path / "q")
    stage("retrain", "--arch", tmp_path / "q/result.json", "--dataset", images, *TRAIN, "--epochs", 1, "--loss", loss,
          "--out", tmp_path / "r")  # fmt: skip
    assert result(tmp_path / "r")["accuracy"]["all"] >= 0 and result(tmp_path / "r")["adjusted"] is None


# Search


def test_search_keeps_to_a_limit_and_refuses_an_infeasible_one(supernet, tmp_path):
    argv = ["search", "--supernet", supernet, *SEARCH]
    macs = spaces.macs_counter(spaces.supernet("nats", 4, 4, 1))
    limit = (macs(nats.LIGHTEST) + macs((3, 0, 0, 0, 0, 0))) / 2e6
    stage(*argv, "--max-mmacs", limit, "--out", tmp_path / "tight")
    assert all(top["mmacs"] <= limit for top in result(tmp_path / "tight")["topk"])
    assert "the lightest has" in refused(*argv, "--max-mmacs", 0.1, "--out", tmp_path / "none")
    assert not (tmp_path / "none/config.json").exists()


def test_retrain_refuses_to_train_on_the_images_that_chose_its_architecture(images, tmp_path):
    own = ["--dataset", images, *TRAIN, "--epochs", 1, "--imbalance", 1]
    stage("train_supernet", *own, "--val-per-class", 5, "--out", tmp_path / "s")
    stage("search", "--supernet", tmp_path / "s/supernet.pt", *SEARCH, "--out", tmp_path / "q")
    call = ["retrain", "--arch", tmp_path / "q/result.json", *own, "--out", tmp_path / "r"]
    assert "--val-per-class 5" in refused(*call)
    assert "--data-seed 0" in refused(*call, "--val-per-class", 5, "--data-seed", 1)
    found = json.loads((tmp_path / "q/result.json").read_text())
    found["data"]["dataset"] = os.path.basename(images)  # a path that was relative to another folder
    (tmp_path / "moved.json").write_text(json.dumps(found))
    assert "--val-per-class 5" in refused("retrain", "--arch", tmp_path / "moved.json", *own)
    stage(*call, "--describe")
    stage(*call, "--val-per-class", 5)


def test_describe_needs_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("resnet32").mkdir()  # no result.json of a search
    stage("retrain", "--describe", "--arch", "resnet32", "--dataset", "cifar100")
    capsys.readouterr()
    stage("retrain", "--describe", "--arch", ARCH, "--dataset", "cifar100")
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"arch", "params", "mmacs"} and found["arch"] == ARCH


# Two processes


def test_two_ranks_run_every_stage_and_search_as_one_does(images, tmp_path):
    images = shutil.copytree(images, tmp_path / "images")
    for i in range(3):  # so that a class is neither all right nor all wrong, and its halves differ
        for c in range(4):
            shutil.copy(images / f"val/class{(c + 2) % 4}/9.png", images / f"val/class{c}/{i}.png")
    shared = ["--dataset", images, "--imbalance", 2, "--batch-size", 32, "--epochs", 1]
    chain = [
        ("train_supernet.py", *SMALL, *shared, "--out", tmp_path / "s"),
        ("adapt.py", "--supernet", tmp_path / "s/supernet.pt", *shared, "--out", tmp_path / "p1"),
        ("search.py", "--supernet", tmp_path / "p1/supernet.pt", *SEARCH, "--out", tmp_path / "q"),
        ("retrain.py", "--arch", tmp_path / "q/result.json", *SMALL, *shared, "--out", tmp_path / "r"),
    ]
    for argv in chain[:-1]:
        printed = two_ranks(*argv)
        assert printed.count("done, see") == 1
        assert printed.count("batch norm sees only 1") == ("--batch-size" in argv)
    done = command(*chain[-1], ranks=2)
    assert done.returncode == 0, done.stderr
    trained = result(tmp_path / "r")
    net = nats.Network(4, 4, 1, nats.from_string(trained["arch"]))
    net.load_state_dict(runtime.load_checkpoint(tmp_path / "r/model.pt", "sub-net")["net"])
    (train, _), (test, labels) = data.load(("train", "test"), str(images), imbalance=2)
    chunks = engine.normalised_chunks(test, data.Normalise(*data.channel_stats(train), 32, "cpu"))
    right = 100 * engine.correct_by_class(net, chunks, labels) / 10
    assert trained["per_class"] == right.tolist() and trained["accuracy"]["all"] == pytest.approx(right.mean().item())
    stage("search", *chain[2][1:-1], tmp_path / "alone")
    assert untimed(tmp_path / "q") == untimed(tmp_path / "alone")
