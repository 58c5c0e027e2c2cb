import pytest
import torch

import bench.data
from bench.data import prepared as prepared_module
from bench.data import preprocess


@pytest.fixture
def dataset():
    return bench.data.load("debug")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", bench.data.PREPROCESSINGS)
def test_images_are_the_transform_of_the_pixels(dataset, kind):
    data = bench.data.prepare(dataset, kind)
    assert (data.preprocessing, data.info.content, data.class_names[3]) == (kind, dataset.content, "pattern 3")
    for half, split in ((data.train, dataset.train), (data.test, dataset.test)):
        expected = data.forward(split.images / 255)
        torch.testing.assert_close(half.images(), expected, rtol=1e-5, atol=1e-5)
        index = torch.tensor([3, 0, 3, 99])
        torch.testing.assert_close(half.images(index), expected[index], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.cat(list(half.batches(32))), expected, rtol=1e-5, atol=1e-5)
        assert [len(batch) for batch in half.batches(32)][-1] == half.size % 32
        assert half.images().dtype == torch.float32
        assert torch.equal(half.labels, split.labels)
        assert torch.equal(half.groups, split.groups)
    if kind != "zca-kip":
        torch.testing.assert_close(data.to_pixels(data.train.images()), dataset.train.images / 255, rtol=0, atol=1e-4)


def test_whitened_images_are_kept_only_within_the_bound(dataset, monkeypatch):
    data = bench.data.prepare(dataset, "zca-kornia")
    assert data.train.images() is data.train.images()
    kept = data.train.images(torch.arange(7))
    monkeypatch.setattr(prepared_module, "WHITENED_BYTES", 300 * 3 * 8 * 8 * 4 - 1)
    anew = bench.data.prepare(dataset, "zca-kornia").train
    assert anew.images() is not anew.images()
    torch.testing.assert_close(anew.images(torch.arange(7)), kept, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(prepared_module, "WHITENED_BYTES", 2**30)
    monkeypatch.setattr(prepared_module, "CHUNK", 77)
    torch.testing.assert_close(bench.data.prepare(dataset, "zca-kornia").train.images(), data.train.images())


def test_whitening_is_fitted_on_the_training_half_alone(dataset):
    data = bench.data.prepare(dataset, "zca-kornia")
    alone = preprocess.fit("zca-kornia", dataset.train.images, torch.device("cpu"))
    assert torch.equal(data.transform.matrix, alone.matrix)


def test_class_index(dataset):
    part = bench.data.prepare(dataset).train
    for c in range(10):
        assert torch.equal(part.class_index(c), (dataset.train.labels == c).nonzero().flatten())
    assert part.present == tuple(range(10))


def test_sampling_draws_without_replacement(dataset):
    part = bench.data.prepare(dataset).train
    for k, expected in ((7, 7), (30, 30), (1000, 30)):
        index = part.draw_class(4, k, rng())
        assert len(index) == len(set(index.tolist())) == expected
        assert (part.labels[index] == 4).all()
        assert torch.equal(part.sample_class(4, k, rng()), part.images(index))
    assert part.draw_class(4, 7, rng()).tolist() != part.draw_class(4, 7, rng(1)).tolist()
    generator = rng()
    assert part.draw_class(4, 7, generator).tolist() != part.draw_class(4, 7, generator).tolist()


def test_sampling_is_uniform(dataset):
    """Each of the 30 images of a class is drawn 3,000 x 5/30 = 500 times on average; five deviations are 103."""
    part, generator = bench.data.prepare(dataset).train, rng()
    drawn = torch.cat([part.draw_class(2, 5, generator) for _ in range(3000)])
    counts = torch.bincount(drawn, minlength=part.size)[part.class_index(2)]
    assert counts.sum() == 15000
    assert (counts - 500).abs().max() < 103


def test_class_sorted_batches_equal_sampling_class_by_class(dataset):
    part = bench.data.prepare(dataset).train
    images, labels, counts = part.sample_classes(6, rng())
    generator = rng()
    one_by_one = torch.cat([part.sample_class(c, 6, generator) for c in range(10)])
    assert torch.equal(images, one_by_one)
    assert torch.equal(labels, torch.arange(10).repeat_interleave(6))
    assert counts == (6,) * 10


def test_unequal_classes_give_unequal_counts(dataset):
    keep = torch.cat([torch.arange(300)[dataset.train.labels == c][: 3 + c] for c in range(10)])
    split = bench.data.Split(dataset.train.images[keep], dataset.train.labels[keep])
    smaller = bench.data.Dataset(dataset.info, dataset.class_names, split, dataset.test)
    part = bench.data.prepare(smaller).train
    assert part.sample_classes(8, rng()).counts == tuple(min(8, 3 + c) for c in range(10))
    assert part.groups is None


def test_mixed_batches(dataset):
    part = bench.data.prepare(dataset).train
    batch = part.sample_mixed(128, rng())
    index = torch.randperm(300, generator=rng())[:128]
    assert torch.equal(batch.images, part.images(index))
    assert torch.equal(batch.labels, part.labels[index])
    assert batch.counts == (128,)
    assert len(set(index.tolist())) == 128
    assert len(part.sample_mixed(1000, rng()).images) == 300


def test_nothing_touches_the_global_generator(dataset):
    before = torch.random.get_rng_state()
    part = bench.data.prepare(dataset, "zca-kip").train
    part.sample_classes(3, rng())
    part.sample_mixed(3, rng())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_real_cifar10_whitens(real):
    """A few hundred images are enough to see that the scale is right: variances are S / (S + 0.1) < 1."""
    dataset = bench.data.load(real("cifar10"))
    small = preprocess.fit("zca-frepo", dataset.train.images[:400, :, ::2, ::2].contiguous(), torch.device("cpu"))
    z = small.forward(dataset.train.images[:400, :, ::2, ::2] / 255)
    assert 0.1 < float(z.var()) < 1
