"""Noise by the recipes of Outlier Exposure, and the artifact of foreign images."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import bench.data
from bench.api import TaskSpec
from bench.data import outside
from bench.data.outside import Outside, OutsideParams, converted, noise
from bench.errors import UserError
from bench.task import LiveTask


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", outside.NOISE)
def test_every_noise_is_drawn_from_its_generator_alone(name):
    first, second = noise(name, 20, (3, 8, 9), rng()), noise(name, 20, (3, 8, 9), rng())
    assert (first.shape, first.dtype) == ((20, 3, 8, 9), torch.float32)
    assert torch.equal(first, second)
    assert not torch.equal(first, noise(name, 20, (3, 8, 9), rng(1)))
    assert first.abs().max() <= 1


def test_laws():
    gaussian = noise("gaussian", 400, (3, 16, 16), rng())
    inner = gaussian[gaussian.abs() < 1]
    assert inner.std() == pytest.approx(0.4398, abs=0.003)  # of N(0, 0.5^2) truncated to [-1, 1]
    assert (gaussian.abs() == 1).float().mean() == pytest.approx(0.0455, abs=0.002)
    rademacher = noise("rademacher", 400, (3, 16, 16), rng())
    assert set(rademacher.unique().tolist()) == {-1.0, 1.0}
    assert rademacher.mean().abs() < 0.01
    uniform = noise("uniform", 400, (3, 16, 16), rng())
    assert uniform.std() == pytest.approx(3**-0.5, abs=0.003)
    assert uniform.mean().abs() < 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_blobs_are_those_of_the_released_code(channels):
    """Image after image: Bernoulli values, blurred over all axes (one grey image: over its two)."""
    drawn = (torch.rand(5, channels, 32, 32, generator=rng()) < 0.7).permute(0, 2, 3, 1).numpy()
    for image, values in zip(noise("blobs", 5, (channels, 32, 32), rng()), drawn, strict=True):
        start = np.float32(values if channels == 3 else values[..., 0])
        blurred = gaussian_filter(start, sigma=1.5, mode="nearest", truncate=4.0)
        blurred[blurred < 0.75] = 0
        expected = (2 * blurred - 1).reshape(32, 32, channels).transpose(2, 0, 1)
        assert np.array_equal(image.numpy(), expected)
        assert 0.02 < (image > -1).float().mean() < 0.6


def test_unknown_names():
    with pytest.raises(UserError, match="known: gaussian"):
        noise("gauss", 1, (3, 8, 8), rng())
    for name in outside.CORRUPTIONS:
        with pytest.raises(UserError, match="methods train on this corruption"):
            outside.check(name)


def test_a_dataset_is_no_ood_set_of_itself_or_of_a_part():
    info = bench.data.info("cifar100_part")
    assert outside.is_own(info, "cifar100")
    assert not outside.is_own(info, "cifar10")
    assert not outside.is_own(info, "blobs")


def test_sets_a_method_learned_from():
    assert outside.is_seen("tiny_imagenet", {"source": "tiny_imagenet_part", "slice": 5, "init": "real"})
    assert not outside.is_seen("cifar100", {"source": "tiny_imagenet_part"})
    assert not outside.is_seen("blobs", {"source": "svhn"})


@pytest.mark.parametrize(("count", "n"), [(None, 100), (7, 7), (1000, 100)])
def test_the_artifact_holds_the_first_test_images(count, n):
    wanted = outside.need("debug", (1, 10, 12), count)
    spec = TaskSpec.model_validate({**wanted.task, "network": wanted.task["network"]})
    params = OutsideParams.model_validate_json(OutsideParams(**wanted.params).model_dump_json())
    images = Outside(params).build(LiveTask(spec))["images"]
    assert (images.shape, images.dtype) == ((n, 1, 10, 12), torch.uint8)
    assert torch.equal(images, converted(bench.data.load("debug").test.images, (1, 10, 12))[:n])
