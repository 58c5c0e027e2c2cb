"""The evaluation augmentations of DC and FRePo against their definitions."""

import math

import operations_by_hand as brute
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage, stats

from bench.augment import Draw, get
from bench.augment.families import FAMILIES

DC, FREPO = FAMILIES["dc"], FAMILIES["frepo"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n, shape=(3, 10, 10), seed=1):
    return torch.randn(n, *shape, generator=rng(seed), dtype=torch.float64)


def run(name, images, uniform):
    """Apply one operation of DC through a draw, so that the fill is that of the batch."""
    return get(f"dc:{name}").apply(
        images, Draw(1, False, torch.zeros(1, len(images), dtype=torch.int64), uniform[None])
    )


def test_dc_crop_pads_with_the_mean_of_each_channel():
    images, uniform = batch(40), torch.rand(40, 2, generator=rng(2))
    padded = images.mean((0, 2, 3))[None, :, None, None].expand(40, 3, 18, 18).clone()
    padded[:, :, 4:14, 4:14] = images
    corners = (uniform * 8).long().tolist()
    expected = [image[:, r : r + 10, c : c + 10] for image, (r, c) in zip(padded, corners, strict=True)]
    torch.testing.assert_close(run("crop", images, uniform), torch.stack(expected))
    assert {corner for pair in corners for corner in pair} == set(range(8))


@pytest.mark.parametrize("shape", [(3, 10, 10), (1, 28, 28), (2, 9, 13)])
def test_dc_scale_resizes_with_nearest_pixels_on_a_canvas(shape):
    images, uniform = batch(30, shape), torch.rand(30, 2, generator=rng(2))
    expected = []
    height, width = shape[1:]
    for image, (u, v) in zip(images, uniform.double().tolist(), strict=True):
        h, w = int((0.8 + u * (1.2 - 0.8)) * height), int((0.8 + v * (1.2 - 0.8)) * width)
        side = max(h, w, height, width)
        canvas = torch.zeros(shape[0], side, side, dtype=image.dtype)
        top, left = (side - h) // 2, (side - w) // 2
        canvas[:, top : top + h, left : left + w] = F.interpolate(image[None], (h, w))[0]
        top, left = (side - height) // 2, (side - width) // 2
        expected.append(canvas[:, top : top + height, left : left + width])
    torch.testing.assert_close(run("scale", images, uniform), torch.stack(expected))


def test_dc_rotate_is_scipys_rotation_up_to_the_interpolation():
    axis = torch.linspace(-1, 1, 28, dtype=torch.float64)
    blob = torch.exp(-((axis[:, None] - 0.3) ** 2 + (axis + 0.2) ** 2) / 0.5)
    images = torch.stack([blob, 2 * blob])[None].expand(5, 2, 28, 28)
    uniform = torch.tensor([0.0, 0.2, 0.5, 0.8, 0.999])[:, None]
    turned = run("rotate", images, uniform)
    fill = images.mean().item()
    for image, degrees in zip(turned, (-45, -27, 0, 27, 44), strict=True):
        oracle = ndimage.rotate(images[0].numpy(), degrees, axes=(-2, -1), reshape=False, mode="constant", cval=fill)
        inner = (slice(None), slice(6, 22), slice(6, 22))
        assert abs(image.numpy() - oracle)[inner].max() < 0.02
    assert turned[0, :, 0, 0].tolist() == pytest.approx([fill, fill])


def test_dc_noise():
    images = torch.zeros(50, 3, 8, 8)
    noise = get("dc:noise")(images, rng()) / 0.001
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3


def test_dc_draws_one_operation_for_each_image():
    augment = get("dc:crop_scale_rotate")
    draw = augment.draw((3000, 1, 8, 8), rng())
    assert stats.chisquare(torch.bincount(draw.choice.flatten()).numpy()).pvalue > 1e-3
    shared = augment.draw((30, 1, 8, 8), rng(), groups=3, shared=True)
    assert shared.choice.shape == (3, 1)


def test_dc_fills_with_the_mean_of_the_own_group():
    images = torch.cat([torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8)])
    augment = get("dc:crop_rotate")
    out = augment.apply(images, augment.draw(images.shape, rng(), groups=2))
    torch.testing.assert_close(out, images)


# ---------------------------------------------------------------------------------------------- FRePo


def test_frepo_translates_by_up_to_an_eighth_with_the_edge_repeated():
    images = batch(3, (2, 16, 16))
    uniform = torch.tensor([[1.0, 0.5], [0.5, 0.0], [0.75, 0.75]], dtype=torch.float64)
    out = FREPO["translate"].run(images, uniform)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    shifts = [(0, 2), (-2, 0), (1, 1)]
    for image, source, (down, right) in zip(out, padded, shifts, strict=True):
        torch.testing.assert_close(image, source[:, 2 + down : 18 + down, 2 + right : 18 + right])


def test_frepo_crop_zooms_and_stays_inside():
    ramp = torch.linspace(0, 1, 21, dtype=torch.float64).expand(200, 1, 21, 21)
    out = FREPO["crop"].run(ramp, torch.rand(200, 3, generator=rng(), dtype=torch.float64))[:, 0, 10]
    slope = (out[:, 11] - out[:, 9]) * 10
    assert slope.min() >= 0.8 - 1e-9
    assert slope.max() <= 1.25 + 1e-9
    enlarged = out[slope < 1]
    assert (enlarged.diff(dim=1) > 1e-6).all()  # a window inside the image repeats no edge
    identity = torch.tensor([[-0.5 + 1.0, 0.3, 0.9]], dtype=torch.float64)
    torch.testing.assert_close(FREPO["crop"].run(ramp[:1], identity), ramp[:1])


def test_frepo_colours_cutout_flip_and_rotation():
    images = batch(6)
    neutral = torch.full((6, 3), 0.5, dtype=torch.float64)
    torch.testing.assert_close(FREPO["color"].run(images, neutral), images)
    torch.testing.assert_close(FREPO["rotate"].run(images, neutral), images)
    strongest = FREPO["color"].run(images, torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64).expand(6, 3))
    torch.testing.assert_close(strongest.std((1, 2, 3)), images.std((1, 2, 3)) * math.exp(0.25))
    uniform = torch.rand(6, 2, generator=rng(3), dtype=torch.float64)
    for name, expected in (("flip", brute.flip), ("cutout", lambda image, u: brute.cutout(image, u, 0.25))):
        loop = torch.stack([expected(image, u) for image, u in zip(images, uniform, strict=True)])
        assert torch.equal(FREPO[name].run(images, uniform), loop)
    turned = FREPO["rotate"].run(torch.ones(6, 3, 10, 10), torch.rand(6, 1, generator=rng()))
    torch.testing.assert_close(turned, torch.ones(6, 3, 10, 10))
