"""Kendall's rank correlation tau-b in O(n log n). Needs numpy and nothing else of this repo; copy the file to use it."""

import numpy as np


def kendall_tau(x, y):
    """Tau-b of two sequences of n numbers (Kendall 1945) by Knight's (1966) method; NaN if either is constant or n < 2.

    tau_b = (concordant - discordant) / sqrt((pairs - ties in x) * (pairs - ties in y)).
    ValueError for sequences of different lengths or with a NaN.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"two sequences of the same length are needed, not of shapes {x.shape} and {y.shape}")
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("a NaN has no rank")
    n = len(x)
    x, y = (np.unique(v, return_inverse=True)[1].astype(np.int64) for v in (x, y))  # ranks, so that pairs make one key
    counts = (np.unique(v, return_counts=True)[1] for v in (x, y, x * n + y))
    pairs, (tied_x, tied_y, tied_both) = n * (n - 1) // 2, (int((c * (c - 1) // 2).sum()) for c in counts)
    discordant = _inversions(y[np.lexsort((y, x))])
    numerator = pairs - tied_x - tied_y + tied_both - 2 * discordant
    denominator = np.sqrt(float((pairs - tied_x) * (pairs - tied_y)))
    return numerator / denominator if denominator else float("nan")


def _inversions(values):
    """How many pairs i < j have values[i] > values[j], for integers in [0, n): a merge sort from the bottom up.

    Per inversion, a merge moves an element of the right half one place to the left and one of the left half one place to the
    right, hence // 2. One stable sort does all merges of a width.
    """
    n, total, width, places = len(values), 0, 1, np.arange(len(values))
    while width < n:
        order = np.argsort(places // (2 * width) * n + values, kind="stable")
        total += int(np.abs(order - places).sum()) // 2
        values, width = values[order], 2 * width
    return total
