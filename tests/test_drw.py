import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import drw


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=200))
def test_weights_follow_the_published_recipe(counts):
    """Cui et al. 2019, as LDAM-DRW computes it: (1 - beta) / (1 - beta^n), over the sum, times C."""
    weights = (1 - 0.9999) / (1.0 - np.power(0.9999, counts))
    expected = weights / weights.sum() * len(counts)
    found = drw.class_weights(counts).numpy()
    assert found == pytest.approx(expected, rel=1e-5)
    assert found.sum() == pytest.approx(len(counts), rel=1e-5)
    assert np.isfinite(found).all()


def test_balanced_weights_are_ones():
    assert drw.class_weights([500] * 100).tolist() == pytest.approx([1] * 100)


@pytest.mark.parametrize("counts", [[3, 0, 2], [0]])
def test_an_empty_class_is_refused(counts):
    with pytest.raises(ValueError, match="infinite"):
        drw.class_weights(counts)


def test_schedule_is_the_papers():
    """Section 4.1: 0.1, decayed by 0.01 at epochs 160 and 180, re-weighted at 160; five epochs of warm-up."""
    rates = [drw.learning_rate(e, 0.1, (160, 180), warmup=5) for e in (1, 4, 5, 159, 160, 179, 180, 200)]
    assert rates == pytest.approx([0.02, 0.08, 0.1, 0.1, 1e-3, 1e-3, 1e-5, 1e-5])
    assert [drw.reweighted(e, 160) for e in (1, 159, 160, 200)] == [False, False, True, True]
    assert drw.reweighted(1, 1) and not drw.reweighted(500, None)
