"""The losses against their formulas, written out in float64, in value and gradient."""

import numpy as np
import pytest
import torch

from common import losses, resnet32

RNG = np.random.default_rng(0)
COUNTS = [[5000, 2997, 1, 50], [1, 1, 1, 1], [10**7, 3, 999999, 12], [500] * 4]


def reference(name, logits, labels, counts, weights):
    """sum_i w_i l_i and its gradient with respect to the logits, from the papers' formulas."""
    shifted, scale = logits.copy(), 1.0
    for i, y in enumerate(labels):
        if name == "BS":  # -log(n_y e^z_y / sum_j n_j e^z_j)
            shifted[i] = logits[i] + np.log(counts)
        elif name == "LDAM-DRW":  # -log(e^(s(z_y - D_y)) / (e^(s(z_y - D_y)) + sum_{j != y} e^(s z_j))), D_j = C / n_j^(1/4)
            scale = 30.0
            margins = 1 / np.array(counts) ** 0.25
            shifted[i, y] -= margins[y] * 0.5 / margins.max()
    z = scale * shifted
    exponents = np.exp(z - z.max(1, keepdims=True))
    p = exponents / exponents.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    value = -(weights[labels] * np.log(p[rows, labels])).sum()
    p[rows, labels] -= 1
    return value, scale * weights[labels][:, None] * p


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("counts", COUNTS)
def test_a_loss_is_its_formula_in_value_and_gradient(name, counts):
    for spread in (0.1, 1.0) if name == "LDAM-DRW" else (1.0, 5.0):  # cosines are at most 1
        logits, labels = RNG.uniform(-spread, spread, (40, 4)), RNG.integers(0, 4, 40)
        weights = RNG.uniform(0.5, 1.5, 4)
        z = torch.tensor(logits, requires_grad=True)
        loss = losses.LOSSES[name](z, torch.tensor(labels), torch.tensor(counts), weight=torch.tensor(weights), reduction="sum")
        loss.backward()
        value, gradient = reference(name, logits, labels, counts, weights)
        assert loss.item() == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(z.grad, gradient, rtol=1e-6, atol=1e-6)


def test_post_hoc_adjustment_undoes_what_balanced_softmax_learns():
    """The Bayes classifier for uniform classes divides posteriors by priors (Menon et al. 2021, Eq. 9)."""
    counts = torch.tensor([90, 9, 1])
    posterior = torch.tensor([[0.80, 0.15, 0.05], [0.98, 0.015, 0.005]])
    assert posterior.argmax(1).tolist() == [0, 0]
    assert losses.adjust_logits(posterior.log(), counts).argmax(1).tolist() == [2, 0]
    assert (posterior / (counts / 100)).argmax(1).tolist() == [2, 0]


def test_the_cosine_classifier_gives_cosines():
    layer, x = losses.CosineClassifier(5, 3), torch.randn(7, 5)
    expected = torch.nn.functional.cosine_similarity(x[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(layer(x), expected)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_classifiers_of_the_baselines_start_as_in_the_code_of_cao_et_al():
    torch.testing.assert_close(losses.CosineClassifier(64, 10).weight.norm(dim=1), torch.ones(10))
    torch.manual_seed(0)
    assert resnet32.Network(1000, arch=(0,)).classifier.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.02)
