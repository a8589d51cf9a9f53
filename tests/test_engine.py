"""What learns, what does not, and what two ranks do."""

import copy
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import two_ranks
from torch import nn

from common import data, engine, losses, nats, runtime, spaces

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


def train(net, epoch=1, paths=None, optimizer=None, **how):
    optimizer = optimizer or torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=2e-4, foreach=True)
    paths = paths or spaces.sampler("nats", 0)
    return engine.train_epoch(net, batches(), epoch, optimizer, torch.tensor([0.5, 1, 1, 1.5]), paths=paths, **how)


def frozen(net):
    return {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("classifier")}


@pytest.mark.parametrize("name", ["nats", "darts", "shufflenet"])
def test_frozen_backbone_is_bit_identical_and_has_no_backward_pass(name):
    net = network(name)
    before, head = frozen(net), net.classifier.weight.clone()
    seen = []
    hook = net.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].requires_grad))
    train(net, paths=spaces.sampler(name, 0), freeze_backbone=True)
    hook.remove()
    assert seen == [False, False]
    assert all(p.grad is None for k, p in net.named_parameters() if not k.startswith("classifier"))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert not torch.equal(head, net.classifier.weight)


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("name", ["nats", "darts", "shufflenet"])
def test_operations_off_the_path_keep_weight_and_momentum(name, together):
    space, net = spaces.space(name), network(name)
    optimizer = engine.sgd(net, 0.1, 0.9, 2e-4)
    rng = np.random.default_rng(0)
    archs = [spaces.sample(space.CHOICES, rng) for _ in range(4)]
    own, others = archs[:together], archs[together:]
    probe = copy.deepcopy(net)
    for arch in own:
        probe(torch.randn(2, 3, 32, 32), arch).sum().backward()
    on_path = {k for k, p in probe.named_parameters() if p.grad is not None}
    for other in others:  # leaves gradients and momentum on other paths
        train(net, paths=lambda step, other=other: [other], optimizer=optimizer)
    before = {k: (p.clone(), _momentum(optimizer, p)) for k, p in net.named_parameters()}
    train(net, paths=lambda step: own, optimizer=optimizer)
    moved = {k for k, p in net.named_parameters() if not torch.equal(p, before[k][0])}
    assert moved == on_path and len(moved) < len(before)
    for k, p in net.named_parameters():
        if k not in on_path and before[k][1] is not None:
            assert torch.equal(_momentum(optimizer, p), before[k][1]), k


def _momentum(optimizer, p):
    buffer = optimizer.state[p].get("momentum_buffer")
    return None if buffer is None else buffer.clone()


@pytest.mark.parametrize("archs", [[ALL_CONV], [ALL_CONV, (1,) * 6, (3, 0, 2, 4, 2, 3)]])
def test_one_step_is_weighted_mean_sgd(archs):
    """Against torch's own cross entropy, whose mean is weighted too, one batch at a time. Paths share it: 20 are 7, 7 and 6."""
    net, reference = network(), network()
    train(net, paths=lambda step: archs, clip=1e9)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1, 0.9, weight_decay=2e-4)
    for x, y in batches().epoch(1):
        optimizer.zero_grad()
        shares = x.split([7, 7, 6]) if len(archs) > 1 else [x]
        logits = torch.cat([reference(share, arch) for share, arch in zip(shares, archs, strict=True)])
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1, 1, 1.5]))(logits, y).backward()
        optimizer.step()
    for (k, p), q in zip(net.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=k)


def test_the_norm_of_the_mean_gradient_is_clipped():
    """Seen from one step: the sum over the batch is 20 times as long as the mean."""

    def length(clip):
        net = network()
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        step = torch.optim.SGD(net.parameters(), 1.0)
        engine.train_epoch(net, batches(20), 1, step, torch.ones(4), paths=lambda step: [ALL_CONV], clip=clip)
        return (torch.cat([p.detach().flatten() for p in net.parameters()]) - before).norm().item()

    free = length(1e9)
    assert length(0.01) == pytest.approx(0.01, rel=1e-3) and free > 0.02
    assert length(2 * free) == free


def test_training_leaves_running_statistics_and_learns():
    net = network()
    before = {k: v.clone() for k, v in net.named_buffers()}
    first = train(net)["loss"]
    last = [train(net, epoch)["loss"] for epoch in range(2, 9)][-1]
    assert all(torch.equal(v, before[k]) for k, v in net.named_buffers())
    assert last < first


def test_accuracies_by_class_size():
    """Many, medium and few are split at 100 and 20 training images; `all` weighs images, `balanced` weighs classes."""
    counts, correct = torch.tensor([101, 100, 20, 19, 1]), torch.tensor([40, 2, 3, 4, 5])
    found = engine.accuracies(correct, torch.tensor([80, 10, 10, 10, 10]), counts)
    assert found == {"all": 45, "balanced": 38, "many": 50, "medium": 25, "few": 45}


@pytest.mark.parametrize("name", ["nats", "darts", "shufflenet"])
def test_a_score_has_the_same_bits_whatever_the_number_of_threads(name):
    net, space, rng = network(name), spaces.space(name), np.random.default_rng(0)
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


def step_of_ranks(out, loss, freeze_backbone):
    """Saves what this rank's weights move by in one step on 37 images, which two ranks share unevenly, and its metrics.

    The images are small, so that what sums over pixels lose by rounding stays well below the tolerance.
    """
    runtime.setup("cpu", 0)
    net = network()
    losses.match_classifier(net, loss)
    for module in list(net.modules()):  # a batch norm over a rank's share is not that over the whole batch
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    images = torch.randint(0, 256, (37, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = images, torch.arange(37) % 4
    batches = data.Batches(split, lambda x: x.permute(0, 3, 1, 2) / 255.0, 37, 0, runtime.rank(), runtime.world())
    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    metrics = engine.train_epoch(
        net, batches, 1, torch.optim.SGD(net.parameters(), 1.0), torch.tensor([0.5, 1, 1, 1.5]), paths=lambda step: [ALL_CONV],
        freeze_backbone=freeze_backbone, clip=1e9, loss=partial(losses.LOSSES[loss], counts=split[1].bincount()),
    )  # fmt: skip
    step = torch.cat([(before[k] - p.detach()).flatten() for k, p in net.named_parameters()])
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(runtime.rank())
    norm.running_var.fill_(runtime.rank())
    engine.average_statistics(norm)
    torch.save(
        (step, metrics, norm.running_mean.tolist() + norm.running_var.tolist()),
        f"{out}_{loss}_{freeze_backbone}_{runtime.rank()}",
    )


STEPS = [(loss, frozen) for loss in ("CE", "BS", "LDAM-DRW") for frozen in (False, True)]  # P2 and P1


def test_two_ranks_take_the_step_of_one(tmp_path):
    for step in STEPS:
        step_of_ranks(tmp_path / "one", *step)
    two_ranks(__file__, tmp_path / "two")
    for loss, frozen in STEPS:
        (one, metrics, mean), *two = (torch.load(tmp_path / f"{name}_{loss}_{frozen}_{rank}") for name, rank in
                                (("one", 0), ("two", 0), ("two", 1)))  # fmt: skip
        for step, found, mean_of_two in two:
            assert found == pytest.approx(metrics, rel=1e-6) and mean == [0] * 4 and mean_of_two == [0.5] * 4
            assert (step - one).norm() <= 1e-6 * one.norm()
        assert one.abs().max() > 1e-2


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
    metrics = {precision: train(net, paths=lambda step: [ALL_CONV], precision=precision) for precision, net in nets.items()}
    assert metrics["bf16"]["loss"] == pytest.approx(metrics["fp32"]["loss"], rel=0.05)
    assert metrics["bf16"]["loss"] != metrics["fp32"]["loss"]
    assert all(p.dtype == torch.float32 for p in nets["bf16"].parameters())


def test_kept_features_are_those_of_the_backbone_shuffled_anew_each_epoch():
    net, paths = network(), spaces.sampler("nats", 0)
    some = batches()
    kept = engine.CachedFeatures(net, some, 3, paths)
    expected, labels = [], []
    with torch.no_grad():
        for i, (x, y) in enumerate(some.epoch(3)):
            expected.append(net.features(x, *paths(2 * len(some) + i)))
            labels.append(y)
    expected, labels = torch.cat(expected), torch.cat(labels)
    seen = []
    for epoch in (3, 4):
        parts = list(kept.epoch(epoch))
        assert [len(y) for _, y in parts] == [20, 20] and len(kept) == 2
        x, y = (torch.cat(part) for part in zip(*parts, strict=True))
        rows = [int((expected == row).all(1).nonzero()[0]) for row in x]
        assert sorted(rows) == list(range(40)) and torch.equal(labels[rows], y)
        seen.append(rows)
    assert seen[0] != seen[1]


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
            net, batches, 1, engine.sgd(net, 0.01, 0.9, 0), torch.ones(4, device=device), paths=lambda step: [ALL_CONV], **how
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":  # a rank of test_two_ranks_take_the_step_of_one; `launch` has ranks leave together
    runtime.launch(lambda: STEPS, lambda steps: [step_of_ranks(sys.argv[1], *step) for step in steps])
