"""Architectures, and networks against the published ones."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common import darts, engine, nats, resnet32, shufflenet, spaces

ALL_CONV = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
)


CELLS = {"shufflenet": 4}  # so that every gene is read


def cost(space, arch, num_classes=10):
    net = space.Network(num_classes, arch=arch)
    return spaces.macs_counter(net)() / 1e6, spaces.parameters(net)


# Golden values: NAS-Bench-201 / NATS-Bench's own figures for CIFAR-10 and CIFAR-100; DARTS's for its second-order cell.
@pytest.mark.parametrize(
    ("space", "text", "num_classes", "mmacs", "params"),
    [
        (nats, ALL_CONV, 10, 220.12, 1.531546e6),
        (nats, ALL_CONV.replace("nor_conv_3x3~2", "none~2").replace("nor_conv_3x3~1|none", "none~1|none"), 10, 149.34, None),
        (nats, "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", 10, 7.78, 0.073306e6),
        (nats, "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", 100, 7.79, 0.079156e6),
        (darts, DARTS_V2, 10, 528.36, 3.349342e6),
        (resnet32, "resnet32", 10, 68.86, 464154),  # 0.46 M and 69 M (He et al. 2016)
        (shufflenet, "-".join("3" * 20), 10, 157.700096, 2034442),  # a public CIFAR version, and the classifier's 10 biases
        (shufflenet, "-".join("x" * 20), 10, 205.355008, 2748530),
    ],
)  # fmt: skip
def test_cost_is_that_of_the_published_network(space, text, num_classes, mmacs, params):
    macs, found = cost(space, space.from_string(text), num_classes)
    assert macs == pytest.approx(mmacs, abs=0.005)
    assert params is None or found == params


@pytest.mark.parametrize("name", spaces.SPACES)
def test_lightest_is_lightest(name):
    space, rng = spaces.space(name), np.random.default_rng(0)
    macs = spaces.macs_counter(spaces.supernet(name, 10, 16 if name == "shufflenet" else 4, 3))
    others = [spaces.sample(space.CHOICES, rng) for _ in range(10)]
    for i, n in enumerate(space.CHOICES):  # and every neighbour
        others += [(*space.LIGHTEST[:i], value, *space.LIGHTEST[i + 1 :]) for value in range(n) if value != space.LIGHTEST[i]]
    lightest = macs(space.LIGHTEST)
    assert all(lightest <= macs(other) for other in others)


@given(st.tuples(*(st.integers(0, n - 1) for n in darts.CHOICES)))
def test_a_darts_node_has_two_inputs_that_come_before_it(arch):
    for cell in darts.decode(arch):
        for node, ((_, a), (_, b)) in enumerate(cell):
            assert 0 <= a < b < 2 + node


def test_the_benchmarks_own_string():
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
    assert nats.to_string(nats.from_string(text)) == text


def test_genotype_is_read_in_either_order_of_inputs():
    arch = darts.from_string(DARTS_V2)
    assert darts.decode(arch)[0][2] == (("skip_connect", 0), ("sep_conv_3x3", 1))
    assert darts.decode(arch)[1][1] == (("max_pool_3x3", 1), ("skip_connect", 2))


@pytest.mark.parametrize(
    ("space", "text", "message"),
    [
        (nats, "|nor_conv_3x3~0|+|none~0|skip_conect~1|+|none~0|none~1|none~2|", "skip_conect~1"),
        (nats, "|nor_conv_3x3~0|+|none~0|none~2|+|none~0|none~1|none~2|", "none~2"),
        (nats, "|nor_conv_3x3~0|+|none~0|none~1|", "6 tokens"),
        (nats, "nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|", r"must read '\|nor_conv_3x3~0\|"),
        (darts, darts.to_string(darts.LIGHTEST).replace("max_pool_3x3~1", "max_pol_3x3~1", 1), "max_pol_3x3~1"),
        (darts, darts.to_string(darts.LIGHTEST).replace("max_pool_3x3~1", "max_pool_3x3~0", 1), "distinct"),
        (darts, darts.to_string(darts.LIGHTEST).replace("max_pool_3x3~1", "max_pool_3x3~9", 1), "max_pool_3x3~9"),
        (darts, darts.to_string(darts.LIGHTEST).split("//")[0], "cell//cell"),
        (darts, DARTS_V2.replace("('skip_connect', 0)", "('none', 0)"), "none~0"),
        (darts, DARTS_V2.replace("[2, 3, 4, 5]", "[2, 3, 4]"), "concat"),
        (darts, "Genotype(normal=__import__('os').system('false'))", "not a DARTS genotype"),
        (shufflenet, "3-5-7", "20 tokens joined by '-', this has 3"),
        (shufflenet, "-".join("3" * 19) + "-9", "unknown block '9'"),
    ],
)
def test_a_wrong_string_is_refused_with_the_token(space, text, message):
    with pytest.raises(ValueError, match=message):
        space.from_string(text)


@pytest.mark.parametrize("name", spaces.SPACES)
def test_super_net_path_equals_sub_net(name):
    """With the chosen operations' weights copied, and BN using the batch, for ten random architectures."""
    space, rng, cells = spaces.space(name), np.random.default_rng(1), CELLS.get(name, 3)
    torch.manual_seed(0)
    supernet = spaces.supernet(name, 10, 4, cells)
    engine.use_batch_statistics(supernet)
    assert [k for k, p in supernet.named_parameters() if p.ndim == 1] == ["classifier.bias"]  # batch norm is not affine
    images = torch.randn(8, 3, 32, 32)
    for _ in range(10):
        arch = spaces.sample(space.CHOICES, rng)
        subnet = space.Network(10, 4, cells, arch).train()
        weights = supernet.state_dict()
        own = {k for k, _ in subnet.named_parameters()}
        missing = subnet.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False).missing_keys
        assert not [k for k in own & set(missing) if subnet.state_dict()[k].ndim > 1]  # every convolution was copied
        torch.testing.assert_close(supernet(images, arch), subnet(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", spaces.SPACES)
def test_supernet_holds_every_path_and_changes_with_each_gene(name):
    space = spaces.space(name)
    torch.manual_seed(0)
    net = spaces.supernet(name, 10, 4, CELLS.get(name, 3))
    engine.use_batch_statistics(net)
    images, base = torch.randn(4, 3, 32, 32), tuple(min(3, n - 1) for n in space.CHOICES)
    with torch.no_grad():
        reference = net(images, base)
        for i, n in enumerate(space.CHOICES):
            for value in set(range(n)) - {base[i]}:
                assert not torch.equal(net(images, (*base[:i], value, *base[i + 1 :])), reference), (i, value)


def test_a_shuffle_block_passes_even_channels_on_and_computes_with_odd_ones():
    """ShuffleNet-v2: channels are split into halves, of which one is unchanged, and shuffled, so that both meet in the next."""
    block = shufflenet.Block(8, 8, 1, "5", affine=True).eval()
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        out = block(x)
        assert torch.equal(out[:, :4], x[:, ::2]) and torch.equal(out[:, 4:], block.main(x[:, 1::2]))


def test_multiply_accumulates_of_shuffle_blocks_add_up():
    macs, rng = spaces.macs_counter(spaces.supernet("shufflenet", 10, 8, 4)), np.random.default_rng(0)
    arch, lightest = spaces.sample(shufflenet.CHOICES, rng), shufflenet.LIGHTEST
    alone = [macs((*lightest[:i], gene, *lightest[i + 1 :])) - macs(lightest) for i, gene in enumerate(arch)]
    assert macs(arch) == macs(lightest) + sum(alone) > macs(lightest)


@pytest.mark.parametrize("channels", [1, 5, 16])
def test_resnet32_computes_what_he_et_al_describe(channels):
    """Against their section 4.2, written anew. Option A: a shortcut takes every second pixel and pads with zero channels."""
    torch.manual_seed(0)
    net, images = resnet32.Network(10, channels, 2, (0,)).train(), torch.randn(4, 3, 16, 16)
    for p in net.parameters():
        nn.init.normal_(p)
    weights = iter(net.parameters())

    def convolved(x, stride=1):
        return F.batch_norm(
            F.conv2d(x, next(weights), None, stride, 1), None, None, next(weights), next(weights), training=True
        )

    x = F.relu(convolved(images))
    for stride in (1, 1, 2, 1, 2, 1):
        out, shortcut = convolved(F.relu(convolved(x, stride))), x
        if stride == 2:
            c = x.shape[1]
            shortcut = torch.zeros_like(out)
            shortcut[:, c // 2 : c // 2 + c] = x[:, :, ::2, ::2]
        x = F.relu(out + shortcut)
    assert x.shape == (4, 4 * channels, 4, 4)
    torch.testing.assert_close(net(images), F.linear(x.mean((2, 3)), *weights), rtol=1e-3, atol=1e-3)


def test_mutation_and_crossover_follow_their_probabilities():
    rng = np.random.default_rng(0)
    one, other = (0,) * 6, (4,) * 6
    mutants = np.array([spaces.mutate(one, nats.CHOICES, 0.1, rng) for _ in range(4000)])
    assert (mutants != 0).mean() == pytest.approx(0.1 * 4 / 5, abs=0.01)  # a redrawn gene is its old value one time in five
    children = np.array([spaces.crossover(one, other, rng) for _ in range(2000)])
    assert set(np.unique(children)) == {0, 4} and (children == 0).mean() == pytest.approx(0.5, abs=0.03)
    draws = np.concatenate([spaces.sampler("nats", 0)(step) for step in range(4000)])
    assert np.bincount(draws.flatten(), minlength=5) / draws.size == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("name", ["nats", "darts", "shufflenet"])
def test_strict_paths_use_every_value_of_every_gene_equally_often(name):
    choices = spaces.space(name).CHOICES
    sampler = spaces.sampler(name, 0, "strict")
    steps = [np.array(sampler(step)) for step in range(300)]
    assert {paths.shape for paths in steps} == {(max(choices), len(choices))}
    for paths in steps:
        for gene, n in zip(paths.T, choices, strict=True):
            assert np.ptp(np.bincount(gene, minlength=n)) <= (len(paths) % n > 0)
    one, other = np.concatenate(steps)[:, :2].T  # genes are independent
    pairs = np.bincount(one * choices[1] + other, minlength=choices[0] * choices[1]) / len(one)
    assert pairs == pytest.approx(1 / (choices[0] * choices[1]), abs=0.03)
    assert len(np.unique(steps[0], axis=0)) > 1 and not np.array_equal(steps[0], steps[1])
    assert np.array_equal(steps[7], sampler(7)) and not np.array_equal(steps[7], spaces.sampler(name, 1, "strict")(7))


@pytest.mark.parametrize("name", ["nats", "darts", "shufflenet"])
def test_convolutions_are_drawn_three_times_as_often(name):
    space, sampler = spaces.space(name), spaces.sampler(name, 0, "convolutions")
    steps = [np.array(sampler(step)) for step in range(1000)]
    assert steps[0].shape == (max(space.CHOICES), len(space.CHOICES)) and len(np.unique(steps[0], axis=0)) > 1
    for gene, (values, n) in enumerate(zip(np.concatenate(steps).T, space.CHOICES, strict=True)):
        operations = getattr(space, "OPERATIONS", ())
        likely = ["conv" in operations[value] for value in range(n)] if n == len(operations) else [False] * n
        expected = np.where(likely, 3, 1) / np.sum(np.where(likely, 3, 1))
        assert np.bincount(values, minlength=n) / len(values) == pytest.approx(expected, abs=0.03), gene


@pytest.mark.parametrize("sampling", spaces.SAMPLINGS)
def test_every_rank_draws_the_same_paths(sampling, monkeypatch):
    paths = spaces.sampler("nats", 0, sampling)(7)
    monkeypatch.setenv("RANK", "1")
    assert spaces.sampler("nats", 0, sampling)(7) == paths
