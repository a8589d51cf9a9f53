"""Effective-number class weights, delayed re-weighting (DRW), and the step learning-rate schedule.

Needs nothing else of this repo; copy the file to use it:

    weights = class_weights(counts) if reweighted(epoch, start=160) else None
    loss = F.cross_entropy(logits, labels, weight=weights)

Epochs are counted from 1, and "at epoch E" means from the E-th epoch on, as the paper's "re-weighting at epoch 1" needs.
"""

import torch


def class_weights(counts, beta=0.9999):
    """(1 - beta) / (1 - beta^n_j) for each class j, scaled to sum to the number of classes (Cui et al. 2019).

    counts: training images of each class, all >= 1. Returns float32 (C,). ValueError for an empty class.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64)
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), not {beta:g}")
    if (counts < 1).any():
        raise ValueError(f"class {int((counts < 1).nonzero()[0])} has no training image: its weight would be infinite")
    weights = (1 - beta) / (1 - beta**counts)
    return (weights * len(counts) / weights.sum()).float()


def reweighted(epoch, start):
    """Whether the loss of this epoch is re-weighted: L_RW from epoch `start` on, L before (Eq. 5); never if it is None."""
    return start is not None and epoch >= start


def learning_rate(epoch, base, milestones, warmup=0, gamma=0.01):
    """Rises linearly over `warmup` epochs to `base`, then is multiplied by `gamma` at each milestone (section 4.1)."""
    rise = min(1.0, epoch / warmup) if warmup else 1.0
    return base * rise * gamma ** sum(epoch >= m for m in milestones)
