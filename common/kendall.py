"""Kendall's rank correlation tau-b in O(n log n). Needs numpy and nothing else of this repo; copy the file to use it."""

import numpy as np


def kendall_tau(x, y):
    """Tau-b of two sequences of n numbers; ties are handled (Kendall 1945); NaN if either is constant or n < 2.

    tau_b = (concordant - discordant) / sqrt((pairs - ties in x) * (pairs - ties in y)), by Knight's (1966) method.
    ValueError for sequences of different lengths or with a NaN.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"two sequences of the same length are needed, not of shapes {x.shape} and {y.shape}")
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("a NaN has no rank")
    n = len(x)
    x, y = (np.unique(v, return_inverse=True)[1].astype(np.int64) for v in (x, y))  # ranks, so that pairs make one key
    pairs, tied_x, tied_y, tied_both = n * (n - 1) // 2, _tied(x), _tied(y), _tied(x * n + y)
    discordant = _inversions(y[np.lexsort((y, x))])
    numerator = pairs - tied_x - tied_y + tied_both - 2 * discordant
    denominator = np.sqrt(float((pairs - tied_x) * (pairs - tied_y)))
    return max(-1.0, min(1.0, numerator / denominator)) if denominator else float("nan")  # clips the rounding error


def _tied(values):
    """How many pairs are equal."""
    counts = np.unique(values, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _inversions(values):
    """How many pairs i < j have values[i] > values[j], for integers in [0, n): a merge sort from the bottom up.

    In each merge every element of the right half moves left past the larger ones of the left half, one inversion each;
    the left half moves as far to the right in all. All merges of one width are one stable sort of runs.
    """
    n, total, width = len(values), 0, 1
    places = np.arange(n)
    while width < n:
        order = np.argsort(places // (2 * width) * n + values, kind="stable")
        total += int(np.abs(order - places).sum()) // 2
        values, width = values[order], 2 * width
    return total
