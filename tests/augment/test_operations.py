"""DSA operation by operation: against loops over pixels, and against the properties each operation must have."""

import operations_by_hand as brute
import pytest
import torch
from scipy import stats

from bench.augment import get
from bench.augment import operations as ops
from bench.augment.families import FAMILIES

DSA = FAMILIES["dsa"]
NAMES = list(DSA)
SIZES = [(3, 8, 8), (1, 7, 7), (2, 6, 9), (3, 1 + 8, 5)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(shape, n=6, seed=1):
    return torch.randn(n, *shape, generator=rng(seed), dtype=torch.float64)


def uniform(n, seed=2):
    return torch.rand(n, 3, generator=rng(seed), dtype=torch.float64)


def at(*numbers, n=6):
    """The same uniform numbers for every image."""
    return torch.tensor(numbers, dtype=torch.float64).expand(n, -1)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_equals_the_loop(name, shape):
    images, numbers = batch(shape, 12), uniform(12)
    expected = torch.stack([brute.DSA[name](image, u) for image, u in zip(images, numbers, strict=True)])
    torch.testing.assert_close(DSA[name].run(images, numbers), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("scale", ((1 - 1 / 1.2) / (1.2 - 1 / 1.2),) * 2),
        ("rotate", (0.5,)),
        ("crop", (0.5, 0.5)),
        ("color", (0.5, 0.5, 0.5)),
        ("flip", (0.5,)),
    ],
)
def test_neutral_parameters_change_nothing(name, numbers):
    images = batch((3, 32, 32))
    torch.testing.assert_close(DSA[name].run(images, at(*numbers)), images, rtol=0, atol=1e-12)
    single = DSA[name].run(images.float(), at(*numbers).float())
    torch.testing.assert_close(single, images.float(), rtol=0, atol=1e-4)


def test_flip_twice_is_the_identity():
    images, numbers = batch((3, 8, 8)), at(0.2)
    assert not torch.equal(DSA["flip"].run(images, numbers), images)
    assert torch.equal(DSA["flip"].run(DSA["flip"].run(images, numbers), numbers), images)


def test_crop_and_back_keeps_the_interior():
    images = batch((3, 16, 16))
    down, right = torch.full((6,), 2), torch.full((6,), -1)
    back = ops.crop(ops.crop(images, down, right), -down, -right)
    assert torch.equal(back[:, :, 2:, :-1], images[:, :, 2:, :-1])
    assert not back[:, :, :2].any()
    assert not back[:, :, :, -1].any()


def test_colours_keep_their_means():
    images, u = batch((3, 8, 8)), uniform(6)[:, 0]
    torch.testing.assert_close(ops.saturation(images, 2 * u).mean(1), images.mean(1))
    torch.testing.assert_close(ops.contrast(images, u + 0.5).mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(ops.brightness(images, u).mean((2, 3)) - images.mean((2, 3)), u[:, None].expand(-1, 3))


def test_grey_and_flat_images():
    grey, flat = batch((1, 8, 8)), torch.full((6, 3, 8, 8), 0.7, dtype=torch.float64)
    torch.testing.assert_close(ops.saturation(grey, uniform(6)[:, 0]), grey)
    torch.testing.assert_close(ops.saturation(flat, uniform(6)[:, 0]), flat)
    torch.testing.assert_close(ops.contrast(flat, uniform(6)[:, 0]), flat)


@pytest.mark.parametrize("side", [5, 8, 28, 32])
def test_cutout_erases_between_a_quarter_of_the_box_and_all_of_it(side):
    box = int(side * 0.5 + 0.5)
    erased = DSA["cutout"].run(torch.ones(500, 3, side, side), torch.rand(500, 2, generator=rng()))
    zeros = (erased == 0).sum((2, 3))
    assert (zeros == zeros[:, :1]).all()
    assert zeros.min() == ((box + 1) // 2) ** 2
    assert zeros.max() == box**2


def test_rotation_turns_counter_clockwise_and_back():
    picture = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    picture[0, 0, 16, 28] = 1
    turned = ops.affine(picture, ops.rotation(torch.tensor([15.0], dtype=torch.float64)))
    row, column = divmod(int(turned.argmax()), 33)
    assert (row, column) == (13, 28)  # 12 pixels right of the centre: up by 12 sin 15 = 3.1
    axis = torch.linspace(-1, 1, 33, dtype=torch.float64)
    blob = torch.exp(-((axis[:, None] - 0.2) ** 2 + axis**2) / 0.3)[None, None]
    angle = torch.tensor([12.0], dtype=torch.float64)
    back = ops.affine(ops.affine(blob, ops.rotation(angle)), ops.rotation(-angle))
    inner = (slice(None), slice(None), slice(4, 29), slice(4, 29))
    torch.testing.assert_close(back[inner], blob[inner], rtol=0, atol=0.02)


def test_scale_above_one_shrinks():
    ones = torch.ones(1, 1, 32, 32)
    small, large = (ops.scale(ones, torch.tensor([s]), torch.tensor([s])) for s in (1.2, 1 / 1.2))
    assert small[0, 0, 0].max() == 0
    torch.testing.assert_close(small[0, 0, 4:28, 4:28], ones[0, 0, 4:28, 4:28])
    torch.testing.assert_close(large, ones)


def test_both_conventions_of_corners_agree_on_squares():
    images = batch((3, 32, 32))
    for matrix in (ops.rotation(torch.full((6,), 11.0, dtype=torch.float64)),
                   torch.tensor([[1.13, 0, 0], [0, 0.9, 0]], dtype=torch.float64).expand(6, 2, 3)):  # fmt: skip
        grid = torch.nn.functional.affine_grid(matrix, list(images.shape), align_corners=False)
        other = torch.nn.functional.grid_sample(images, grid, align_corners=False)
        torch.testing.assert_close(ops.affine(images, matrix), other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "color"])
def test_geometry_is_linear(name):
    x, y, numbers = batch((3, 8, 8)), batch((3, 8, 8), seed=5), uniform(6)
    run = DSA[name].run
    torch.testing.assert_close(run(2 * x + y, numbers), 2 * run(x, numbers) + run(y, numbers))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_adjoint(name):
    """Finite differences in float64; for the linear operations also <A x, w> = <x, A' w>."""
    numbers = uniform(2)
    small = batch((2, 5, 5), 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda images: DSA[name].run(images, numbers), (small,))
    x, w = batch((3, 8, 8), 2).requires_grad_(), batch((3, 8, 8), 2, seed=7)
    (adjoint,) = torch.autograd.grad((DSA[name].run(x, numbers) * w).sum(), x)
    zero = DSA[name].run(torch.zeros_like(x), numbers)
    left = ((DSA[name].run(x, numbers) - zero) * w).sum()
    torch.testing.assert_close(left, (x * adjoint).sum())


# ---------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("strategy", ["dsa:color_crop_cutout_flip_scale_rotate", "dsa:color_crop_cutout_scale_rotate"])
def test_operations_are_equally_likely(strategy):
    augment = get(strategy)
    many = augment.draw((6000, 3, 8, 8), rng(), groups=6000, shared=True).choice.flatten()
    fresh = torch.cat([augment.draw((1, 3, 8, 8), rng(seed)).choice.flatten() for seed in range(2000)])
    for choice in (many, fresh):
        counts = torch.bincount(choice, minlength=len(augment.operations))
        assert len(counts) == len(augment.operations)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_parameters_have_the_ranges_of_the_paper():
    numbers = torch.rand(20000, 3, generator=rng(), dtype=torch.float64)
    ones = torch.ones(20000, 1, 1, 1, dtype=torch.float64)
    shift = ops.brightness(0 * ones, numbers[:, 0] - 0.5)
    torch.testing.assert_close(DSA["color"].run(ones * 2, numbers)[:, 0, 0, 0], shift[:, 0, 0, 0] + 2)
    # contrast and saturation are seen on an image with mean 0: two colours, two pixels
    image = torch.tensor([[[1.0, -1.0]], [[0.0, 0.0]]], dtype=torch.float64).expand(20000, 2, 1, 2)
    centred = DSA["color"].run(image, torch.cat([numbers[:, :0], 0 * numbers[:, :1] + 0.5, numbers[:, 1:]], 1))
    contrast = centred.mean(1)[:, 0, 0] / 0.5
    saturation = (centred[:, 0, 0, 0] - centred[:, 1, 0, 0]) / contrast
    for factor, low, high in ((contrast, 0.5, 1.5), (saturation, 0, 2)):
        assert low <= factor.min() < low + 0.01
        assert high - 0.01 < factor.max() <= high
        assert factor.mean().item() == pytest.approx(1, abs=0.02)


def test_crop_reaches_every_shift_up_to_an_eighth():
    picture = torch.zeros(4000, 1, 32, 32)
    picture[:, :, 16, 16] = 1
    spots = DSA["crop"].run(picture, torch.rand(4000, 2, generator=rng())).flatten(1).argmax(1)
    for shifts in (spots // 32 - 16, spots % 32 - 16):
        counts = torch.bincount(shifts + 4)
        assert len(counts) == 9
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_the_largest_uniform_number_stays_inside():
    top = torch.full((1, 3), 1 - 2.0**-24)
    counts = torch.arange(1, 5000)
    assert torch.equal((counts * top[0, 0]).long(), counts - 1)
    for name in NAMES:
        out = DSA[name].run(torch.randn(1, 3, 32, 32, generator=rng()), top)
        assert out.isfinite().all()
    cut = DSA["cutout"].run(torch.ones(1, 1, 32, 32), top)
    assert (cut == 0).sum() == 8 * 8
