"""Score a path of a super-net: its accuracy, as in Eq. 2, or how well its features classify."""

import torch
import torch.nn.functional as F

from . import drw, engine
from .data import Batches, Normalise, channel_stats


def least_squares_classifier(features, labels, class_weights, ridge=1e-3):
    """A function (n, D) -> scores (n, C), fitted to features (m, D) by weighted least squares to one-hot labels.

    Solves Eq. 4 for the squared error, which has a closed form. class_weights: (C,). ridge: penalty of the squared weights,
    relative to the mean variance of a feature.
    """
    weights = class_weights.double()[labels]
    weights = (weights / weights.sum())[:, None]
    features, targets = features.double(), F.one_hot(labels, len(class_weights)).double()
    mean, prior = (weights * features).sum(0), (weights * targets).sum(0)
    centred = features - mean
    covariance = centred.T @ (weights * centred)
    covariance.diagonal().add_(ridge * covariance.diagonal().mean() + 1e-12)  # without a path to the output, all is zero
    classifier = torch.linalg.solve(covariance, centred.T @ (weights * (targets - prior)))
    return lambda x: (x.double() - mean) @ classifier + prior


def explained_variance(scores, labels):
    """100 (1 - squared error / variance) of scores (n, C) for one-hot labels (n,); negative if their mean is better."""
    truth = F.one_hot(labels, scores.shape[1]).double()
    return 100 * (1 - (scores - truth).square().sum() / (truth - truth.mean(0)).square().sum()).item()


def scorer(net, train, val, bn_images, seed, own_classifier=False):
    """A function from an architecture to the accuracy in % of that path of a super-net: Acc of Eq. 2.

    train, val: splits on the device. BN statistics are rebuilt from the same `bn_images` of train (or all, if there are fewer;
    the seed chooses them) for every path, and accuracy is over all of val. own_classifier: the score is instead the
    `explained_variance` of a `least_squares_classifier` of the path's features of the BN images, re-weighted if train is
    long-tailed; the super-net's classifier is not used. ValueError if the net has too few classes.
    """
    classes = net.classifier.out_features
    if max(int(labels.max()) for _, labels in (train, val)) >= classes:
        raise ValueError(f"the super-net has {classes} classes, and the data have more")
    normalise = Normalise(*channel_stats(train[0]), train[0].shape[2], train[0].device)
    # Augmented as in training: plain images have no black borders, which changes the statistics and worsens the ranking.
    images, labels = Batches(train, normalise, bn_images, seed).first(bn_images)
    bn_chunks, val_chunks = engine.chunks_of(images), engine.normalised_chunks(val[0], normalise)
    class_weights = drw.class_weights(train[1].bincount())

    @torch.inference_mode()
    @engine.no_tf32()
    def score(arch):
        engine.recalibrate(net, bn_chunks, arch)
        if not own_classifier:
            return 100 * engine.correct_by_class(net, val_chunks, val[1], arch).sum().item() / len(val[1])
        net.eval()
        known, features = (torch.cat([net.features(x, arch) for x in chunks]) for chunks in (bn_chunks, val_chunks))
        return explained_variance(least_squares_classifier(known, labels, class_weights)(features), val[1])

    return score
