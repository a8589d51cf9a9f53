"""The losses of long-tailed recognition. Needs nothing else of this repo; copy the file to use it:

    loss = balanced_softmax(logits, labels, counts)                 # counts: training images of each class, (C,)
    loss = ldam(logits, labels, counts, weight=class_weights)       # with logits of a `CosineClassifier`

Every loss takes logits (B, C), labels (B,) and counts (C,), and `weight` (C,) and `reduction` as F.cross_entropy does.
"""

import torch.nn.functional as F
from torch import nn


def cross_entropy(logits, labels, counts, weight=None, reduction="mean"):
    """-log softmax(z)_y. The counts are ignored: they enter through `weight` alone (CE-DRW)."""
    return F.cross_entropy(logits, labels, weight, reduction=reduction)


def balanced_softmax(logits, labels, counts, weight=None, reduction="mean"):
    """-log softmax(z + log n)_y (Ren et al. 2020, Eq. 4).

    The same as logit-adjusted cross entropy at tau = 1, whose log pi differs by a constant (Menon et al. 2021, Eq. 10).
    """
    return F.cross_entropy(logits + counts.log(), labels, weight, reduction=reduction)


def ldam(logits, labels, counts, weight=None, reduction="mean", largest=0.5, scale=30.0):
    """-log softmax(s (z - Delta_y e_y))_y with Delta_j proportional to n_j^(-1/4) (Cao et al. 2019, Eqs. 12, 13).

    logits: cosines of a `CosineClassifier`. largest: the margin Delta of the rarest class. scale: s, which is only in their
    code, as are both defaults.
    """
    margins = counts.double() ** -0.25
    margins = (largest * margins / margins.max()).to(logits.dtype)
    return F.cross_entropy(scale * (logits - margins * F.one_hot(labels, len(counts))), labels, weight, reduction=reduction)


def adjust_logits(logits, counts, tau=1.0):
    """z - tau log pi: post-hoc logit adjustment for a net trained with CE or CE-DRW (Menon et al. 2021, Eq. 9)."""
    return logits - tau * (counts / counts.sum()).log()


class CosineClassifier(nn.Linear):
    """cos(w_c, x) for each class c: the normalised classifier that `ldam` needs. (B, D) -> (B, C), in [-1, 1]."""

    def __init__(self, in_features, num_classes):
        super().__init__(in_features, num_classes, bias=False)
        # Vectors of length 1, as in Cao et al.'s code: the shorter a normalised weight is, the further a step turns it.
        nn.init.uniform_(self.weight, -1, 1)
        self.weight.data = F.normalize(self.weight.data)

    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


LOSSES = {"CE": cross_entropy, "CE-DRW": cross_entropy, "BS": balanced_softmax, "LDAM-DRW": ldam}


def match_classifier(net, name):
    """Replaces the net's linear classifier by a `CosineClassifier` if the named loss needs one."""
    if name == "LDAM-DRW":
        net.classifier = CosineClassifier(net.classifier.in_features, net.classifier.out_features)
