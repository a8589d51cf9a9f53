"""Which images, where they come from, and how they are augmented."""

import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from common import data, synthetic


@pytest.mark.parametrize(("classes", "each"), [(10, 5000), (100, 500)])
def test_counts_at_every_ratio_are_exact(classes, each):
    """int(n mu^c) in integers: the largest k with k^(C-1) R^c <= n^(C-1)."""
    for ratio in range(1, 1001):
        counts = data.long_tail_counts([each] * classes, ratio)
        assert counts[0] == each and min(counts) >= 1 and sorted(counts, reverse=True) == counts
        for c, k in enumerate(counts):
            low, high = (n ** (classes - 1) * ratio**c <= each ** (classes - 1) for n in (k, k + 1))
            assert (low or k == 1) and not high, (ratio, c)


def test_totals_are_the_published_ones():
    """Cui et al. 2019 and LDAM-DRW: 12,406 images of CIFAR-10 and 10,847 of CIFAR-100 at 100x."""
    assert sum(data.long_tail_counts([5000] * 10, 100)) == 12406
    assert sum(data.long_tail_counts([500] * 100, 100)) == 10847


@pytest.mark.parametrize("ratio", [0.99, 0, -1, float("nan")])
def test_a_ratio_below_one_is_refused(ratio):
    with pytest.raises(ValueError, match="at least 1"):
        data.long_tail_counts([10, 10], ratio)


def test_a_single_class_and_unequal_classes():
    assert data.long_tail_counts([7], 100) == [7]
    assert data.long_tail_counts([4900] * 10, 49)[-1] == 100  # 4900 * (1 / 49) is 99.99...
    assert data.long_tail_counts([32] * 6, 32) == [32, 16, 8, 4, 2, 1]  # 32 ** (4 / 5) is 16.000000000000004
    assert data.long_tail_counts([100, 50, 3], 1) == [100, 50, 3]
    assert data.long_tail_counts([100, 50, 3], 100) == [100, 5, 1]


def test_draw_is_seeded_nested_and_long_tailed():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 50))
    ten, twenty = (data.long_tail_indices(labels, r, seed=1) for r in (10, 20))
    assert np.bincount(labels[ten]).tolist() == data.long_tail_counts([50] * 10, 10)
    assert set(twenty) < set(ten)
    assert not np.array_equal(ten, data.long_tail_indices(labels, 10, seed=2))
    assert np.array_equal(ten, data.long_tail_indices(labels, 10, seed=1))


def test_hold_out_comes_before_the_draw_and_is_disjoint(images):
    train, val = data.load(("train", "val"), images, imbalance=3, val_per_class=7)
    full, test = data.load(("train", "val"), images)
    assert val[1].bincount().tolist() == [7] * 4
    assert train[1].bincount().tolist() == data.long_tail_counts([23] * 4, 3)
    names = [{row.tobytes() for row in split[0].flatten(1).numpy()} for split in (train, val, test)]
    assert not names[0] & names[1] and not names[2] & (names[0] | names[1])
    assert names[0] | names[1] < {row.tobytes() for row in full[0].flatten(1).numpy()}
    labels = np.arange(40) % 4
    assert len({tuple(data.hold_out(labels, 3, seed)[1]) for seed in range(5)}) == 5
    with pytest.raises(ValueError, match="smallest class has 30"):
        data.load(("train",), images, val_per_class=30)


def test_a_naturally_imbalanced_folder_is_used_as_it_is(images, tmp_path):
    root = tmp_path / "own"
    shutil.copytree(images, root)
    for i in range(25):
        (root / "train" / "class2" / f"{i}.png").unlink()
    ((_, labels),) = data.load(("train",), str(root), imbalance=1)
    assert labels.bincount().tolist() == [30, 30, 5, 30]


def test_folder_images_are_read_exactly_and_others_resized(images, tmp_path):
    ((pixels, labels),) = data.load(("test",), images)
    assert pixels.shape == (40, 32, 32, 3) and labels.tolist() == sorted(list(range(4)) * 10)
    first = torch.from_numpy(np.array(Image.open(f"{images}/val/class0/0.png")))
    assert torch.equal(pixels[0], first)
    assert data.load(("test",), images, image_size=16)[0][0].shape == (40, 16, 16, 3)
    assert data.class_sizes(images, "train") == [30] * 4
    shutil.copytree(images, tmp_path / "wide")
    tall, grey = np.zeros((40, 20, 3), np.uint8), np.full((20, 20, 3), 99, np.uint8)
    tall[10:30] = grey  # its centre
    Image.fromarray(tall).save(tmp_path / "wide/val/class0/0.png")
    assert torch.equal(data.load(("test",), str(tmp_path / "wide"), image_size=20)[0][0][0], torch.from_numpy(grey))


def test_synthetic_sets_are_fixed_varied_and_share_no_class():
    (ten,) = data.load(("test",), "synthetic10", image_size=16)
    again = synthetic.paint(10, "val", 16)[0]
    assert torch.equal(ten[0], again) and ten[0].shape == (10000, 16, 16, 3) and ten[0].dtype == torch.uint8
    assert ten[1].bincount().tolist() == [1000] * 10
    hundred, labels = synthetic.paint(100, "val", 16)
    assert np.bincount(labels).tolist() == [100] * 100
    assert len(np.unique(torch.cat([ten[0], hundred]).flatten(1).numpy(), axis=0)) == 20000
    assert not set(synthetic.pairs(10)) & set(synthetic.pairs(100)) and len(synthetic.pairs(100)) == 100
    train, test = (synthetic.paint(10, split, 4)[0][:1000] for split in ("train", "val"))
    assert not torch.equal(train, test)


def test_built_in_datasets_have_any_image_size(tmp_path, monkeypatch):
    """Against torchvision's own resizing; 32x32 is left alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(
        torchvision.datasets, "CIFAR10", lambda *a, **k: SimpleNamespace(data=pixels, targets=list(range(10)) * 2)
    )
    ((same, _),) = data.load(("test",), "cifar10", root=tmp_path)
    ((larger, _),) = data.load(("test",), "cifar10", image_size=64, root=tmp_path)
    assert np.array_equal(same, pixels)
    expected = torchvision.transforms.functional.resize(torch.from_numpy(pixels).permute(0, 3, 1, 2), [64, 64])
    assert torch.equal(larger, expected.permute(0, 2, 3, 1))


def test_one_process_of_a_node_downloads_while_the_others_wait(tmp_path, monkeypatch):
    """Not only global rank 0: nodes have disks of their own, and so have runs that are not ranks of one group."""
    events = []

    def slow_download(root, **kwargs):
        events.append("begin")
        time.sleep(0.2)
        events.append("end")
        return SimpleNamespace(data=np.zeros((10, 32, 32, 3), np.uint8), targets=list(range(10)))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", slow_download)
    threads = [threading.Thread(target=data.load, args=(("test",), "cifar10"), kwargs={"root": tmp_path}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert events == ["begin", "end"] * 3
    (tmp_path / "file").touch()
    data.load(("test",), "cifar10", root=tmp_path / "file" / "x")  # no lock can be made, as where the folder is read-only
    assert len(events) == 8


def test_channel_stats_equal_torchs():
    pixels = torch.randint(0, 256, (50, 32, 32, 3), dtype=torch.uint8)
    mean, std = data.channel_stats(pixels)
    scaled = pixels.double() / 255
    assert mean.tolist() == pytest.approx(scaled.mean((0, 1, 2)).tolist(), rel=1e-6)
    assert std.tolist() == pytest.approx(scaled.std((0, 1, 2), correction=0).tolist(), rel=1e-6)


def test_normalise_equals_torchvision():
    pixels = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    mean, std = data.channel_stats(pixels)
    found = data.Normalise(mean, std, 32, "cpu")(pixels)
    expected = torchvision.transforms.functional.normalize(pixels.permute(0, 3, 1, 2).float() / 255, mean, std)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


def identity(images):
    return images.float()


def test_each_image_has_its_own_crop_and_flip_of_black_padding():
    n = 64
    pixels = torch.randint(1, 256, (n, 8, 8, 3), dtype=torch.uint8)
    batches = data.Batches((pixels, torch.arange(n)), identity, 20, seed=0)
    padded = torch.zeros(n, 16, 16, 3)
    padded[:, 4:12, 4:12] = pixels.float()
    draws = set()
    for epoch in (1, 2, 3):
        seen = []
        for crops, labels in batches.epoch(epoch):
            for crop, i in zip(crops, labels.tolist(), strict=True):
                matches = [
                    (y, x, flip)
                    for y in range(9)
                    for x in range(9)
                    for flip in (False, True)
                    if torch.equal(crop, padded[i, y : y + 8, x : x + 8].flip(1) if flip else padded[i, y : y + 8, x : x + 8])
                ]
                assert matches, "not a crop of its image"
                draws.add(matches[0])
                seen.append(i)
        assert sorted(seen) == list(range(n)) and seen != sorted(seen)
    assert len(draws) > 80  # of 162, in 192 draws


def test_batches_are_even_seeded_and_shared_by_ranks():
    pixels, labels = torch.randint(0, 256, (101, 8, 8, 3), dtype=torch.uint8), torch.arange(101)

    def epoch(number, **ranks):
        return list(data.Batches((pixels, labels), identity, 25, seed=3, **ranks).epoch(number))

    whole = epoch(1)
    assert [len(y) for _, y in whole] == [21, 20, 20, 20, 20]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, epoch(1), strict=True))
    other = next(data.Batches((pixels, labels), identity, 25, seed=4).epoch(1))
    assert not torch.equal(whole[0][1], epoch(2)[0][1]) and not torch.equal(whole[0][1], other[1])
    for (x, y), (x0, y0), (x1, y1) in zip(whole, epoch(1, rank=0, world=2), epoch(1, rank=1, world=2), strict=True):
        assert torch.equal(x, torch.cat([x0, x1])) and torch.equal(y, torch.cat([y0, y1]))
    with pytest.raises(ValueError, match="cannot be shared"):
        data.Batches((pixels[:3], labels[:3]), identity, 128, 0, 0, 4)
