import numpy as np
import pytest
import scipy.stats

from common.kendall import kendall_tau


def test_equals_scipy_with_heavy_ties():
    rng = np.random.default_rng(0)
    defined = 0
    for _ in range(1000):
        n = rng.integers(2, 80)
        x = rng.integers(0, rng.integers(1, 20), n)
        y = x * rng.integers(-1, 2) + rng.integers(0, rng.integers(1, 20), n)
        expected = scipy.stats.kendalltau(x, y).statistic
        found = kendall_tau(x, y)
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
        defined += not np.isnan(found)
        assert np.isnan(found) or -1 <= found <= 1
    assert defined > 800


def test_extremes_and_floats():
    x = np.random.default_rng(0).normal(size=15625)
    assert kendall_tau(x, np.exp(x)) == 1 and kendall_tau(x, -x) == -1
    y = x + np.random.default_rng(1).normal(size=15625)
    assert kendall_tau(x, y) == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2, 3]), ([1, float("nan")], [1, 2]), ([[1, 2]], [[1, 2]])])
def test_refuses_what_has_no_ranks(x, y):
    with pytest.raises(ValueError):
        kendall_tau(x, y)


def test_constant_or_short_is_nan():
    assert np.isnan(kendall_tau([1, 1, 1], [1, 2, 3])) and np.isnan(kendall_tau([], [])) and np.isnan(kendall_tau([1], [1]))
