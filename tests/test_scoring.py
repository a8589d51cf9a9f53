"""What a path of a super-net is scored by."""

import numpy as np
import pytest
import torch
from test_engine import ALL_CONV, network

from common import data, drw, engine, nats, scoring, spaces


def test_recalibration_makes_eval_agree_with_batch_statistics():
    net = network()
    images = torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        expected = net(images, ALL_CONV)
        engine.recalibrate(net, [images], ALL_CONV)
        net.eval()
        torch.testing.assert_close(net(images, ALL_CONV), expected, rtol=1e-2, atol=1e-2)  # biased or unbiased variance
        engine.recalibrate(net, [images * 3 + 1, images], ALL_CONV)  # no trace of what was there before
        engine.use_batch_statistics(net)
        engine.recalibrate(net, [images], ALL_CONV)
        net.eval()
        torch.testing.assert_close(net(images, ALL_CONV), expected, rtol=1e-2, atol=1e-2)


def test_score_is_accuracy_whatever_was_scored_before():
    net, rng = network(), np.random.default_rng(0)
    images, labels = torch.randint(0, 256, (60, 32, 32, 3), dtype=torch.uint8), torch.arange(60) % 4
    split = images // (1 + labels[:, None, None, None]), labels  # one class is darker than the next
    archs = [spaces.sample(nats.CHOICES, rng) for _ in range(8)]

    def scores(archs):
        score = scoring.scorer(net, split, split, 40, 0)
        return {a: score(a) for a in archs}

    found = scores(archs)
    for statistic in net.buffers():
        statistic.fill_(100)
    assert scores(archs[::-1]) == found and len(set(found.values())) > 2
    normalise = data.Normalise(*data.channel_stats(split[0]), 32, "cpu")
    last = scores(archs)[archs[-1]]  # whose statistics are still there
    right = engine.correct_by_class(net, engine.normalised_chunks(split[0], normalise), split[1], archs[-1])
    assert right.shape == (4,) and right.sum() * 100 / 60 == pytest.approx(last)


def test_what_a_score_depends_on():
    """The seed chooses the BN images, the training images normalise, and an own classifier weights rare classes as P1 does."""
    net, generator = network(), torch.Generator().manual_seed(0)
    images, labels = torch.randint(0, 256, (120, 32, 32, 3), dtype=torch.uint8, generator=generator), torch.arange(120) % 4
    images, rare = images // (1 + labels[:, None, None, None]), (labels != 3) | (torch.arange(120) < 12)
    val = images[:40], labels[:40]

    def score(train=(images, labels), val=val, n=120, seed=0, own=True):
        return scoring.scorer(net, train, val, n, seed, own)(ALL_CONV)

    assert score() == score() and score(n=20) != score(n=20, seed=1)
    bright = images // 2 + 100, labels
    assert score(val=bright) != pytest.approx(score(train=bright, val=bright))
    normalise = data.Normalise(*data.channel_stats(images[rare]), 32, "cpu")
    known, known_labels = data.Batches((images[rare], labels[rare]), normalise, 120, 0).first(120)
    engine.recalibrate(net, [known], ALL_CONV)
    net.eval()
    with torch.inference_mode():
        features = [net.features(x, ALL_CONV) for x in (known, normalise(val[0]))]
    weights = drw.class_weights(labels[rare].bincount())
    expected, plain = (
        scoring.explained_variance(scoring.least_squares_classifier(features[0], known_labels, w)(features[1]), val[1])
        for w in (weights, torch.ones(4))
    )
    assert score(train=(images[rare], labels[rare])) == pytest.approx(expected, rel=1e-3) != pytest.approx(plain, rel=1e-3)


def test_explained_variance_is_that_of_weighted_least_squares():
    """Reference: numpy's least squares, with an intercept, square roots of the weights, and the ridge as further rows."""
    rng, ridge = np.random.default_rng(0), 0.05
    known, features = rng.normal(2, 3, (60, 5)), rng.normal(2, 3, (40, 5))
    known_labels, labels = np.arange(60) % 3, np.arange(40) % 3
    known[:, :3] += 9 * np.eye(3)[known_labels]
    features[:, :3] += 9 * np.eye(3)[labels]
    class_weights = np.array([0.5, 1.0, 1.5])
    weights = class_weights[known_labels] / class_weights[known_labels].sum()
    mean = weights @ known
    penalty = np.sqrt(ridge * np.mean(weights @ (known - mean) ** 2))
    root = np.sqrt(weights)[:, None]
    rows = np.vstack([root * np.c_[known, np.ones(60)], np.c_[penalty * np.eye(5), np.zeros(5)]])
    solution = np.linalg.lstsq(rows, np.vstack([root * np.eye(3)[known_labels], np.zeros((5, 3))]), rcond=None)[0]
    truth = np.eye(3)[labels]
    error = np.square(np.c_[features, np.ones(40)] @ solution - truth).sum() / np.square(truth - truth.mean(0)).sum()
    known, known_labels, features, labels, class_weights = (
        torch.tensor(value) for value in (known, known_labels, features, labels, class_weights)
    )

    def explained(known, features, ridge):
        classifier = scoring.least_squares_classifier(known, known_labels, class_weights, ridge)
        return scoring.explained_variance(classifier(features), labels)

    assert 5 < 100 * (1 - error) == pytest.approx(explained(known, features, ridge), rel=1e-9)
    assert explained(torch.eye(3)[known_labels], torch.eye(3)[labels], 1e-9) > 99.99
    assert explained(torch.zeros(60, 5), torch.zeros(40, 5), 1e-3) <= 0  # without features the classes' weights are guessed
    assert explained(known, features.flip(0), ridge) < 0  # features of other images


def test_an_own_classifier_scores_the_features_and_not_the_classifier_of_the_super_net():
    net, (images, labels) = network(), (torch.randint(0, 256, (60, 32, 32, 3), dtype=torch.uint8), torch.arange(60) % 4)
    images[labels == 3] //= 2  # darker
    scores = []
    for factor in (1, -1):
        with torch.no_grad():
            net.classifier.weight *= factor
        scores.append([scoring.scorer(net, (images, labels), (images, labels), 60, 0, own)(ALL_CONV) for own in (False, True)])
    assert scores[0][0] != scores[1][0] and scores[0][1] == scores[1][1] > 1
    assert scoring.scorer(net, (images, labels), (images, labels), 60, 0, True)((0,) * 6) <= 0  # no path to the output


@pytest.mark.parametrize(("n", "bn_images", "used"), [(108, 20, 20), (100, 50, 50), (60, 80, 60)])
def test_scoring_uses_as_many_bn_images_as_it_says(n, bn_images, used, monkeypatch):
    split = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8), torch.arange(n) % 4
    seen, real = [], engine.recalibrate
    monkeypatch.setattr(engine, "recalibrate", lambda net, chunks, *arch: seen.append(chunks) or real(net, chunks, *arch))
    scoring.scorer(network(), split, split, bn_images, 0)(ALL_CONV)
    assert sum(len(chunk) for chunk in seen[0]) == used


def test_scoring_is_in_fp32_and_training_may_round_to_tf32(monkeypatch):
    seen, features = [], nats.Network.features
    monkeypatch.setattr(nats.Network, "features", lambda *a: seen.append(torch.backends.cudnn.allow_tf32) or features(*a))
    split = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8), torch.arange(8) % 4
    for own_classifier in (False, True):
        scoring.scorer(nats.Network(4, 4, 1), split, split, 8, 0, own_classifier)(ALL_CONV)
    net = nats.Network(4, 4, 1)
    engine.recalibrate(net, [torch.randn(2, 3, 8, 8)], ALL_CONV)  # as retrain.py and rank_transfer.py do
    engine.correct_by_class(net, [torch.randn(2, 3, 8, 8)], torch.arange(2), ALL_CONV)
    assert len(seen) == 7 and not any(seen) and torch.backends.cudnn.allow_tf32
