"""The corruptions behind pseudo-outliers: on index images, against Pillow, and by their closed forms."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

import bench.data
from bench.data import Dataset, Split, outside, prepare
from bench.data.outliers import CORRUPTIONS, Corrupted, check
from bench.errors import UserError

RNG = torch.Generator().manual_seed(0)
BYTES = torch.randint(256, (5, 3, 32, 32), generator=RNG)
COLOUR = BYTES / 255


def apply(name, pixels, *second):
    return CORRUPTIONS[name].apply(pixels, *second)


def index_image(channels, height, width):
    return torch.arange(channels * height * width, dtype=torch.float64).view(1, channels, height, width)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 12)])
def test_jigsaw_moves_the_quadrants(shape):
    given = index_image(*shape)
    found = apply("jigsaw", given)
    h, w = shape[1] // 2, shape[2] // 2

    def source(i, j):
        """Where the pixel at row i and column j comes from."""
        if i < h and j < w:  # upper left: its own quadrant, upper and lower halves exchanged
            return (i + h // 2) % h, j
        if i < h:  # upper right: the lower left quadrant
            return i + h, j - w
        if j < w:  # lower left: the lower right quadrant
            return i, j + w
        return i - h, w + (j - w + w // 2) % w  # lower right: the upper right quadrant, its halves exchanged

    for c in range(shape[0]):
        for i in range(shape[1]):
            for j in range(shape[2]):
                assert found[0, c, i, j] == given[(0, c, *source(i, j))]


@pytest.mark.parametrize("shape", [(3, 33, 32), (1, 7, 7), (1, 30, 30), (3, 1, 1)])
def test_jigsaw_is_a_permutation_of_odd_sizes_too(shape):
    given = index_image(*shape)
    found = apply("jigsaw", given)
    assert found.flatten().sort().values.equal(given.flatten())
    assert given.equal(index_image(*shape))  # the argument is as it was


def test_invert_leaves_red_alone_and_undoes_itself():
    found = apply("invert", COLOUR)
    assert torch.equal(found[:, 0], COLOUR[:, 0])
    assert torch.equal(found[:, 1:], 1 - COLOUR[:, 1:])
    torch.testing.assert_close(apply("invert", found), COLOUR)
    assert torch.equal(apply("invert", COLOUR[:, :1]), 1 - COLOUR[:, :1])


def test_pixelate_is_constant_on_the_published_cells():
    edges = [0, 5, 11, 16, 21, 27, 32]
    found = apply("pixelate", COLOUR.double())
    expected = torch.empty_like(found)
    for top, bottom in pairwise(edges):
        for left, right in pairwise(edges):
            cell = slice(None), slice(None), slice(top, bottom), slice(left, right)
            expected[cell] = COLOUR.double()[cell].mean((2, 3), keepdim=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(apply("pixelate", found), found)


@pytest.mark.parametrize("side", [32, 28, 64, 8, 3])
def test_pixelate_is_pillows_box_filter(side):
    for image in torch.randint(256, (4, side, side), generator=RNG, dtype=torch.uint8):
        small = (max(1, int(side * 0.2)),) * 2
        shrunk = Image.fromarray(image.numpy()).resize(small, Image.Resampling.BOX)
        expected = torch.from_numpy(np.array(shrunk.resize((side, side), Image.Resampling.BOX)))
        found = apply("pixelate", image[None, None] / 255)[0, 0] * 255
        assert (found - expected).abs().max() <= 1


def test_speckle_is_proportional_and_clipped():
    for name, noise in (("gauss-speckle", torch.randn), ("uniform-speckle", torch.rand)):
        drawn = noise(COLOUR.shape, generator=torch.Generator().manual_seed(1))
        found = apply(name, COLOUR, drawn)
        assert torch.equal(found == 0, (COLOUR == 0) | (drawn <= -1))
        assert (found.min(), found.max()) == (0, 1)
        inner = (found > 0) & (found < 1)
        torch.testing.assert_close((found / COLOUR - 1)[inner], drawn[inner], rtol=1e-4, atol=1e-4)


def test_means_of_two_images():
    others = COLOUR.flip(0)
    torch.testing.assert_close(apply("avg-mean", COLOUR, others), (COLOUR + others) / 2)
    torch.testing.assert_close(apply("geo-mean", COLOUR, others).square(), COLOUR * others)
    normalised = (COLOUR - 0.4) / 0.2, (others - 0.4) / 0.2  # the published mean is of normalised images: the same
    torch.testing.assert_close((apply("avg-mean", COLOUR, others) - 0.4) / 0.2, sum(normalised) / 2)


def test_ghost_on_an_index_image():
    red, green, blue = index_image(3, 4, 6)[0]
    found = apply("rgb-ghost", index_image(3, 4, 6))[0]
    for j in range(6):
        assert torch.equal(found[0, :, j], green[:, 5 - j])
    assert torch.equal(found[1], blue)
    assert torch.equal(found[2], red)


def test_no_corruption_is_an_unseen_test_set():
    assert set(CORRUPTIONS) == set(outside.CORRUPTIONS)


def test_names_are_checked():
    for name in CORRUPTIONS:
        check(name, 3)
    with pytest.raises(UserError, match="in colour"):
        check("rgb-ghost", 1)
    with pytest.raises(UserError, match="unknown corruption 'jigsaws'") as error:
        check("jigsaws", 3)
    assert "jigsaw" in str(error.value)


# ------------------------------------------------------------------------------------------------ the training images


@pytest.fixture(scope="module")
def data():
    info = bench.data.info("debug").model_copy(update={"shape": (3, 32, 32)})
    images = torch.randint(256, (40, 3, 32, 32), generator=RNG, dtype=torch.uint8)
    split = Split(images, torch.arange(40) % 10)
    return prepare(Dataset(info, tuple("0123456789"), split, split), "meanstd")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_spoiled_the_same_way_whenever_it_is_asked_for(data, name):
    whole = Corrupted(data, 7).images(name, torch.arange(40))
    again = Corrupted(data, 7)
    for index in torch.tensor([[5, 0, 39], [5, 6, 7]]):
        torch.testing.assert_close(again.images(name, index), whole[index])
    other = Corrupted(data, 8).images(name, torch.arange(40))
    assert torch.equal(other, whole) == (CORRUPTIONS[name].second is None)


def test_images_are_spoiled_before_they_are_preprocessed(data):
    index = torch.tensor([3, 1])
    found = Corrupted(data, 7).images("jigsaw", index)
    assert torch.equal(found, data.forward(apply("jigsaw", data.train.pixels(index))))


def test_noise_is_normal_and_of_the_image_alone(data):
    pixels = data.train.pixels()
    found = data.to_pixels(Corrupted(data, 7).images("gauss-speckle", torch.arange(40)))
    inner = (found > 0) & (found < 1) & (pixels > 0)
    noise = (found / pixels - 1)[(pixels > 0) & (pixels < 0.2)].double()  # clipped at -1, and above at 4 or more
    noise = noise[noise > -0.9]
    assert scipy.stats.kstest(noise.numpy(), scipy.stats.truncnorm(-0.9, np.inf).cdf).pvalue > 0.01
    ratios = (found / pixels - 1).masked_fill(~inner, 0).flatten(1)
    correlations = torch.corrcoef(ratios) - torch.eye(40)
    assert correlations.abs().max() < 0.15


def test_the_other_image_is_another_one_for_each(data):
    corrupted = Corrupted(data, 7)
    assert sorted(corrupted.other.tolist()) == list(range(40))
    mixed = data.to_pixels(corrupted.images("avg-mean", torch.tensor([4])))
    pixels = data.train.pixels(torch.stack([torch.tensor(4), corrupted.other[4]]))
    torch.testing.assert_close(mixed[0], pixels.mean(0))
