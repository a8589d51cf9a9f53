"""What is faster than PyTorch's own computes the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import darts, fast, nats, spaces
from common.ops import OPS

SHAPES = [(8, 16, 32, 32), (3, 5, 7, 7), (4, 3, 1, 1), (5, 64, 8, 4)]


def channels_last(*shape):
    torch.manual_seed(0)
    return (3 * torch.randn(shape) + 1).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", (True, False))
@pytest.mark.parametrize("mode", ("batch", "running", "cumulative", "eval"))
def test_batch_norm_is_pytorchs(shape, affine, mode):
    ours, theirs = (kind(shape[1], affine=affine) for kind in (fast.BatchNorm2d, nn.BatchNorm2d))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    gradient, found = torch.randn(shape), []
    for module in (ours, theirs):
        module.momentum = None if mode == "cumulative" else 0.1
        module.track_running_stats = mode != "batch"
        if affine:
            nn.init.uniform_(module.weight, generator=torch.Generator().manual_seed(1))
            nn.init.uniform_(module.bias, generator=torch.Generator().manual_seed(2))
        x = channels_last(*shape).requires_grad_()
        with torch.no_grad():  # statistics to evaluate with
            module(2 * x + 1)
        y = module.train(mode != "eval")(x)
        grads = torch.autograd.grad(y, (x, *module.parameters()), gradient)
        if mode == "eval":
            with torch.no_grad():
                grads = *grads, module(x)
        found.append([y.detach(), *grads, *module.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", (1, 2))
def test_average_pooling_is_pytorchs(shape, stride):
    gradients = []
    for pool in (fast.AvgPool3x3(stride), nn.AvgPool2d(3, stride, 1, count_include_pad=False)):
        x = channels_last(*shape).requires_grad_()
        y = pool(x)
        gradients.append(torch.autograd.grad(y.square().sum(), x)[0])
    torch.testing.assert_close(fast.AvgPool3x3(stride)(x), y)
    torch.testing.assert_close(*gradients)


def test_a_cell_is_the_sum_over_its_edges_and_leaves_its_input_alone():
    """Against the definition, edge by edge: the cell shares a ReLU among the edges of a node."""
    torch.manual_seed(0)
    cell = nats.Cell(4, None, affine=False).train()
    archs = [(1, 3, 3, 1, 1, 4), (3, 3, 3, 3, 3, 3), (1, 1, 2, 1, 3, 1), (0, 0, 1, 0, 3, 1), (4, 1, 4, 3, 2, 1)]
    for arch in archs:
        grads, outs = [], []
        for by_definition in (True, False):
            x = channels_last(2, 4, 8, 8).requires_grad_()
            before = x.detach().clone()
            if by_definition:
                nodes = [x]
                for node in (1, 2, 3):
                    total = torch.zeros_like(x)
                    for e, (target, source) in enumerate(nats.EDGES):
                        if target == node and arch[e]:
                            total = total + cell.edges[e][nats.OPERATIONS[arch[e]]](nodes[source])
                    nodes.append(total)
                y = nodes[3]
            else:
                y = cell(x, arch)
            weights = [p for p in cell.parameters()]
            outs.append(y)
            grads.append(torch.autograd.grad(y.square().sum(), (x, *weights), allow_unused=True))
            assert torch.equal(x, before)
        torch.testing.assert_close(*outs)
        for one, other in zip(*grads, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", spaces.SPACES)
def test_features_in_channels_last_are_those_of_plain_layers(name):
    """The whole network, with PyTorch's own batch norm and pooling in contiguous memory."""
    torch.manual_seed(0)
    net = spaces.supernet(name, 4, 4, 3).eval()
    arch = tuple(n - 1 for n in spaces.space(name).CHOICES)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net.features(x, arch)
        for module in list(net.modules()):
            for child_name, child in list(module.named_children()):
                if isinstance(child, fast.AvgPool3x3):
                    setattr(module, child_name, nn.AvgPool2d(3, child.stride, 1, count_include_pad=False))
                elif isinstance(child, fast.BatchNorm2d):
                    plain = nn.BatchNorm2d(child.num_features, affine=child.affine)
                    plain.load_state_dict(child.state_dict())
                    setattr(module, child_name, plain.eval())
        net.to(memory_format=torch.contiguous_format)
        torch.testing.assert_close(net.features(x, arch), expected, rtol=1e-4, atol=1e-5)


def test_factorized_reduce_is_two_strided_convolutions_the_second_one_pixel_further():
    reduce, x = OPS["skip_connect"](4, 2, False).train(), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        halves = [
            F.conv2d(pixels, conv.weight, stride=2)
            for conv, pixels in ((reduce.conv_even, x.relu()), (reduce.conv_odd, x.relu()[:, :, 1:, 1:]))
        ]
        torch.testing.assert_close(reduce(x), F.batch_norm(torch.cat(halves, 1), None, None, training=True))


def test_a_dilated_convolution_reaches_every_second_pixel_of_what_is_positive():
    conv, reached = OPS["dil_conv_3x3"](1, 1, False)[:2], torch.zeros(9, 9)
    nn.init.ones_(conv[1].weight)
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[0, 0, 4, 4] = 1
    reached[2:7:2, 2:7:2] = 1
    assert torch.equal(conv(impulse)[0, 0], reached) and not conv(-impulse).any()


def test_input_0_of_a_darts_cell_is_the_cell_before_last():
    text = "+".join(["|skip_connect~0|max_pool_3x3~1|"] * 4)
    cell = darts.Cell(4, 4, 4, False, False, darts.from_string(f"{text}//{text}"), True).eval()
    one, other = torch.randn(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    nn.init.zeros_(cell.preprocess1[1].weight)
    with torch.no_grad():
        assert torch.equal(cell(one, other)[:, :4], cell.preprocess0(one))
