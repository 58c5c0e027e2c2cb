"""Images from elsewhere come in the shape asked for, as Pillow would make them."""

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data.outside import fit


def picture(*shape):
    """Return smooth random bytes: white noise scaled up."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, shape[0], 5, 7, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


def pillow(image, mode, size):
    """Return bytes [1, c, h, w] by Pillow: convert, scale so that the target is covered, crop in the middle."""
    array = image[0].permute(1, 2, 0).numpy()
    found = Image.fromarray(array.squeeze()).convert(mode)
    scale = max(size / found.width, size / found.height)
    found = found.resize((round(found.width * scale), round(found.height * scale)), Image.Resampling.BILINEAR)
    left, top = (found.width - size) // 2, (found.height - size) // 2
    cropped = np.array(found.crop((left, top, left + size, top + size)))
    return torch.from_numpy(cropped).reshape(1, size, size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("given", [(1, 28, 28), (3, 32, 32), (3, 40, 64), (3, 51, 37), (1, 8, 8)])
@pytest.mark.parametrize("wanted", [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
def test_as_pillow(given, wanted):
    image = picture(*given)
    found = fit(image / 255, wanted)
    assert found.shape == (1, *wanted)
    expected = pillow(image, "L" if wanted[0] == 1 else "RGB", wanted[1])
    assert (found * 255 - expected).abs().max() <= 1.6  # Pillow rounds after each of its three steps


def test_images_that_fit_are_left_alone():
    image = picture(3, 32, 32) / 255
    assert torch.equal(fit(image, (3, 32, 32)), image)
    grey = picture(1, 8, 8) / 255
    assert torch.equal(fit(grey, (3, 8, 8)), grey.repeat(1, 3, 1, 1))


def test_oblong_targets_are_covered():
    ramp = torch.linspace(0, 1, 20).expand(1, 1, 20, 20)
    assert torch.equal(fit(ramp, (1, 10, 20)), ramp[:, :, 5:15])
    assert fit(ramp, (1, 7, 30)).shape == (1, 1, 7, 30)
