"""What learns, what does not, and what two ranks do."""

import contextlib
import copy
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, command
from torch import nn

from common import data, engine, nats, spaces

ALL_CONV = (3,) * 6


def batches(n=40, classes=4, batch_size=20):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return data.Batches((images, torch.arange(n) % classes), lambda x: x.permute(0, 3, 1, 2) / 255.0, batch_size, seed=0)


def network(name="nats"):
    torch.manual_seed(0)
    net = spaces.supernet(name, 4, 4, 2 if name == "darts" else 1)
    engine.use_batch_statistics(net)
    return net


def train(net, epoch=1, path=None, optimizer=None, **how):
    optimizer = optimizer or torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=2e-4, foreach=True)
    choices = spaces.SPACES["nats"].CHOICES
    path = path or (lambda step: spaces.path(choices, 0, step))
    return engine.train_epoch(net, batches(), epoch, optimizer, torch.tensor([0.5, 1, 1, 1.5]), path=path, **how)


def frozen(net):
    return {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("classifier")}


@pytest.mark.parametrize("name", spaces.SPACES)
def test_frozen_backbone_is_bit_identical_and_has_no_backward_pass(name):
    net = network(name)
    space, before, head = spaces.SPACES[name], frozen(net), net.classifier.weight.clone()
    seen = []
    hook = net.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].requires_grad))
    train(net, path=lambda step: spaces.path(space.CHOICES, 0, step), freeze_backbone=True)
    hook.remove()
    assert seen == [False, False]
    assert all(p.grad is None for k, p in net.named_parameters() if not k.startswith("classifier"))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert not torch.equal(head, net.classifier.weight)


@pytest.mark.parametrize("name", spaces.SPACES)
def test_operations_off_the_path_keep_weight_and_momentum(name):
    space, net = spaces.SPACES[name], network(name)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=2e-4, foreach=True)
    rng = np.random.default_rng(0)
    arch, *others = (spaces.sample(space.CHOICES, rng) for _ in range(4))
    probe = copy.deepcopy(net)
    probe(torch.randn(2, 3, 32, 32), arch).sum().backward()
    on_path = {k for k, p in probe.named_parameters() if p.grad is not None}
    for other in others:  # leaves gradients and momentum on other paths
        train(net, path=lambda step, other=other: other, optimizer=optimizer)
    before = {k: (p.clone(), _momentum(optimizer, p)) for k, p in net.named_parameters()}
    train(net, path=lambda step: arch, optimizer=optimizer)
    moved = {k for k, p in net.named_parameters() if not torch.equal(p, before[k][0])}
    assert moved == on_path and len(moved) < len(before)
    for k, p in net.named_parameters():
        if k not in on_path and before[k][1] is not None:
            assert torch.equal(_momentum(optimizer, p), before[k][1]), k


def _momentum(optimizer, p):
    buffer = optimizer.state[p].get("momentum_buffer")
    return None if buffer is None else buffer.clone()


def test_one_step_is_weighted_mean_sgd():
    """Against torch's own cross entropy, whose mean is weighted too, one batch at a time."""
    net, reference = network(), network()
    train(net, path=lambda step: ALL_CONV, clip=1e9)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1, 0.9, weight_decay=2e-4)
    for x, y in batches().epoch(1):
        optimizer.zero_grad()
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1, 1, 1.5]))(reference(x, ALL_CONV), y).backward()
        optimizer.step()
    for (k, p), q in zip(net.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=k)


def test_gradient_is_clipped():
    small, large = network(), network()
    before = small.classifier.weight.clone()
    train(small, path=lambda step: ALL_CONV, clip=1e-4)
    train(large, path=lambda step: ALL_CONV, clip=1e9)
    assert (small.classifier.weight - before).abs().max() < 1e-3 < (large.classifier.weight - before).abs().max()


def test_training_leaves_running_statistics_and_learns():
    net = network()
    before = {k: v.clone() for k, v in net.named_buffers()}
    first = train(net)["loss"]
    last = [train(net, epoch)["loss"] for epoch in range(2, 9)][-1]
    assert all(torch.equal(v, before[k]) for k, v in net.named_buffers())
    assert last < first


def test_recalibration_makes_eval_agree_with_batch_statistics():
    net = network()
    images = torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        expected = net(images, ALL_CONV)
        engine.recalibrate(net, [images], ALL_CONV)
        net.eval()
        torch.testing.assert_close(net(images, ALL_CONV), expected, rtol=1e-2, atol=1e-2)  # biased or unbiased variance
        engine.recalibrate(net, [images * 3 + 1, images], ALL_CONV)  # no trace of what was there before
        engine.recalibrate(net, [images], ALL_CONV)
        net.eval()
        torch.testing.assert_close(net(images, ALL_CONV), expected, rtol=1e-2, atol=1e-2)


def test_score_is_accuracy_whatever_was_scored_before():
    net, rng = network(), np.random.default_rng(0)
    split = torch.randint(0, 256, (60, 32, 32, 3), dtype=torch.uint8), torch.arange(60) % 4
    archs = [spaces.sample(nats.CHOICES, rng) for _ in range(4)]

    def scores(archs):
        score = engine.scorer(net, split, split, 40, 0)
        return {a: score(a) for a in archs}

    assert scores(archs) == scores(archs[::-1])
    normalise = data.Normalise(*data.channel_stats(split[0]), 32, "cpu")
    last = scores(archs)[archs[-1]]  # whose statistics are still there
    right = engine.correct_by_class(net, engine.normalised_chunks(split[0], normalise), split[1], archs[-1])
    assert right.shape == (4,) and right.sum() * 100 / 60 == pytest.approx(last)


@pytest.mark.parametrize("name", spaces.SPACES)
def test_a_score_has_the_same_bits_whatever_the_number_of_threads(name):
    net, space, rng = network(name), spaces.SPACES[name], np.random.default_rng(0)
    images, threads = torch.randn(300, 3, 32, 32), torch.get_num_threads()
    for _ in range(5):
        arch, logits = spaces.sample(space.CHOICES, rng), []
        for n in (1, 2):
            torch.set_num_threads(n)
            engine.recalibrate(net, images[:200].split(100), arch)
            net.eval()
            with torch.inference_mode():
                logits.append(net(images, arch))
        torch.set_num_threads(threads)
        assert torch.equal(*logits)


RANKS = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch
from torch import nn
from common import data, engine, runtime, spaces
from test_engine import ALL_CONV, network

runtime.setup("cpu", 0)
net = network()
for module in list(net.modules()):  # a batch norm of each rank's own share is not that of the whole batch
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (37, 32, 32, 3), dtype=torch.uint8, generator=generator)
split = images, torch.arange(37) % 4
batches = data.Batches(split, lambda x: x.permute(0, 3, 1, 2) / 255.0, 37, 0, runtime.rank(), runtime.world())
optimizer = torch.optim.SGD(net.parameters(), 1.0)
before = {{k: p.detach().clone() for k, p in net.named_parameters()}}
metrics = engine.train_epoch(net, batches, 1, optimizer, torch.tensor([0.5, 1, 1, 1.5]), path=lambda step: ALL_CONV, clip=1e9)
gradient = {{k: before[k] - p.detach() for k, p in net.named_parameters()}}
torch.save((gradient, metrics), sys.argv[1] + str(runtime.rank()))
if runtime.world() > 1:
    torch.distributed.destroy_process_group()
"""


def test_two_ranks_take_the_step_of_one(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(root=str(ROOT)))
    assert sys.executable
    for ranks, name in ((0, "one"), (2, "two")):
        done = command(script, tmp_path / name, ranks=ranks)
        assert done.returncode == 0, done.stderr
    (one, metrics), *two = (torch.load(tmp_path / name) for name in ("one0", "two0", "two1"))
    for gradient, found in two:
        assert found == pytest.approx(metrics, rel=1e-5)
        for k in one:
            torch.testing.assert_close(gradient[k], one[k], rtol=1e-5, atol=1e-6)
    assert max(g.abs().max() for g in one.values()) > 1e-2


# Faster ways


def test_fused_sgd_is_sgd_though_paths_come_and_go():
    optimizers, nets = [], [network(), network()]
    optimizers.append(engine.sgd(nets[0], 0.1, 0.9, 2e-4))
    optimizers.append(torch.optim.SGD(nets[1].parameters(), 0.1, 0.9, weight_decay=2e-4, foreach=False, fused=False))
    for net, optimizer in zip(nets, optimizers, strict=True):
        for epoch in (1, 2, 3):
            train(net, epoch, optimizer=optimizer)
    for (k, p), q in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=k)


def test_bf16_is_near_fp32_and_keeps_fp32_weights():
    nets = {precision: network() for precision in ("fp32", "bf16")}
    metrics = {precision: train(net, path=lambda step: ALL_CONV, precision=precision) for precision, net in nets.items()}
    assert metrics["bf16"]["loss"] == pytest.approx(metrics["fp32"]["loss"], rel=0.05)
    assert metrics["bf16"]["loss"] != metrics["fp32"]["loss"]
    assert all(p.dtype == torch.float32 for p in nets["bf16"].parameters())


def test_the_faster_precision_is_the_one_that_took_less_time(monkeypatch):
    clock, cost = [0.0], {"fp32": 1.0, "bf16": 1.0}

    def perf_counter():
        return clock[0]

    def autocast(device, dtype, enabled):
        clock[0] += cost["bf16" if enabled else "fp32"]
        return contextlib.nullcontext()

    monkeypatch.setattr(engine.time, "perf_counter", perf_counter)
    monkeypatch.setattr(torch, "autocast", autocast)
    for bf16, picked in ((0.5, "bf16"), (1.0, "fp32"), (0.95, "fp32"), (2.0, "fp32")):
        cost["bf16"] = bf16
        assert engine.faster_precision(torch.device("cpu")) == picked


def test_kept_features_are_those_of_the_backbone_shuffled_anew_each_epoch():
    net, choices = network(), spaces.SPACES["nats"].CHOICES
    some = batches()
    kept = engine.KeptFeatures(net, some, 3, lambda step: spaces.path(choices, 0, step))
    expected, labels = [], []
    with torch.no_grad():
        for i, (x, y) in enumerate(some.epoch(3)):
            expected.append(net.features(x, spaces.path(choices, 0, 2 * len(some) + i)))
            labels.append(y)
    expected, labels = torch.cat(expected), torch.cat(labels)
    seen = []
    for epoch in (3, 4):
        parts = list(kept.epoch(epoch))
        assert [len(y) for _, y in parts] == [20, 20] and len(kept) == 2
        x, y = (torch.cat(part) for part in zip(*parts, strict=True))
        rows = [int((expected == row).all(1).nonzero()[0]) for row in x]
        assert sorted(rows) == list(range(40)) and torch.equal(labels[rows], y)
        assert torch.equal(x[20:], next(iter(kept.epoch(epoch, 1)))[0])
        seen.append(rows)
    assert seen[0] != seen[1]


def test_choosing_a_precision_draws_no_random_number():
    """One rank chooses, and all must go on to build the same network."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    engine.faster_precision(torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_scoring_is_in_fp32_and_training_may_round_to_tf32(monkeypatch):
    seen, features = [], nats.Network.features
    monkeypatch.setattr(nats.Network, "features", lambda *a: seen.append(torch.backends.cudnn.allow_tf32) or features(*a))
    split = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8), torch.arange(8) % 4
    engine.scorer(nats.Network(4, 4, 1), split, split, 8, 0)(ALL_CONV)
    assert seen == [False, False] and torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("how", [{}, {"freeze_backbone": True}, {"precision": "bf16"}])
def test_no_step_waits_for_the_gpu(how):
    device = torch.device("cuda")
    split = torch.randint(0, 256, (200, 32, 32, 3), dtype=torch.uint8, device=device), torch.arange(200, device=device) % 4
    batches = data.Batches(split, data.Normalise(*data.channel_stats(split[0]), 32, device), 20, 0)
    net = nats.Network(4, 4, 1).to(device)
    engine.use_batch_statistics(net)
    epoch = batches.epoch

    def watched(*args):
        for i, batch in enumerate(epoch(*args)):
            if i == 3:
                torch.cuda.set_sync_debug_mode("error")
            yield batch
        torch.cuda.set_sync_debug_mode("default")

    batches.epoch = watched
    try:
        engine.train_epoch(
            net, batches, 1, engine.sgd(net, 0.01, 0.9, 0), torch.ones(4, device=device), path=lambda step: ALL_CONV, **how
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
