"""Ways to spoil test images, on pixels in [0, 1], before any normalisation.

`published`: noise, blur and invert as in the released data processing of Vahidian et al. (ICLR 2025).

    noise    + N(0, 0.005) on every value, clipped
    blur     Pillow's GaussianBlur of radius 2 on 8-bit images
    invert   1 - x

They spoil ImageNet before scaling it (noise of deviation 0.2, blur of radius 2, on about 500x375 pixels), which is a
milder thing afterwards. Images here are scaled already, so above 64 pixels both levels are what they become by
scaling down s = 375/h times with a triangle filter: a deviation of 0.2 * 2/(3 s) and a radius of 2/s. That leaves out
clipping and compression at the original size: in the manner of the published ones.

`common`: severities 1 to 5 of CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019) where the operation is theirs; `rotate`
is ours. Their files are 8-bit, ours keep fractions (but for JPEG and pixelate, which need bytes). Lengths in pixels are
for 32-pixel images and grow with larger ones; for smaller ones they stay, since a blur far below a pixel does nothing.
Their weather, motion, zoom, glass and elastic corruptions are not here.

Random numbers are drawn on the CPU from the generator that is passed in, so the images are the same on every device.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.augment import operations
from bench.lazy import F, torch

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Generator, Tensor

CIFAR10_C = "CIFAR-10-C, make_cifar_c.py of Hendrycks and Dietterich"
SMALL = 64
"""Height up to which the published levels are applied to the stored pixels as they are."""
NOISE_STD, BLUR_RADIUS = math.sqrt(0.005), 2.0
SCALED_NOISE_STD, ORIGINAL_HEIGHT = 0.2, 375
REFERENCE_HEIGHT = 32
"""Height of the images the severities are for."""


@dataclass(frozen=True)
class Distortion:
    """One way to spoil images: `apply(pixels [n, c, h, w], level, rng)`, and its levels for severities 1 to 5.

    source: where the levels come from. colour: whether it needs three channels.
    """

    apply: Callable[[Tensor, Any, Generator], Tensor]
    levels: tuple[Any, ...]
    source: str = CIFAR10_C
    colour: bool = False


# ---------------------------------------------------------------------------------------------- noise


def gaussian_noise(pixels: Tensor, std: float, rng: Generator) -> Tensor:
    """Add normal noise to every value and clip."""
    return (pixels + std * _normal(pixels, rng)).clamp(0, 1)


def speckle_noise(pixels: Tensor, std: float, rng: Generator) -> Tensor:
    """Add normal noise in proportion to every value and clip."""
    return (pixels + std * pixels * _normal(pixels, rng)).clamp(0, 1)


def shot_noise(pixels: Tensor, photons: float, rng: Generator) -> Tensor:
    """Replace every value by a Poisson count around `photons` times it, scaled back and clipped."""
    return (torch.poisson(pixels.cpu() * photons, generator=rng) / photons).clamp(0, 1).to(pixels.device)


def impulse_noise(pixels: Tensor, share: float, rng: Generator) -> Tensor:
    """Set each value with probability `share` to 0 or 1, one as likely as the other."""
    drawn = torch.rand(pixels.shape, generator=rng).to(pixels.device)
    return torch.where(drawn < share, (drawn < share / 2).to(pixels.dtype), pixels)


def _normal(pixels: Tensor, rng: Generator) -> Tensor:
    return torch.randn(pixels.shape, generator=rng).to(pixels.device)


# ---------------------------------------------------------------------------------------------- blur


def gaussian_blur(pixels: Tensor, sigma: float, rng: Generator) -> Tensor:
    """Convolve with a Gaussian cut off at 4 sigma; beyond the border its pixels are repeated."""
    sigma *= _scale(pixels)
    radius = int(4 * sigma + 0.5)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1.0, device=pixels.device) / sigma) ** 2)
    return _convolve(pixels, torch.outer(line, line), "replicate")


def defocus_blur(pixels: Tensor, level: tuple[float, float], rng: Generator) -> Tensor:
    """Convolve with a disk, itself smoothed by a 3x3 Gaussian; the image is mirrored at the border.

    level: radius of the disk and sigma of the smoothing, which fights aliasing and does not scale.
    """
    radius, sigma = level[0] * _scale(pixels), level[1]
    reach = math.floor(radius) + 1
    place = torch.arange(-reach, reach + 1.0, device=pixels.device)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).to(pixels.dtype)[None, None]
    line = torch.exp(-0.5 * (torch.arange(-1.0, 2.0, device=pixels.device) / sigma) ** 2)
    smooth = torch.outer(line, line)[None, None]
    return _convolve(pixels, F.conv2d(disk, smooth, padding=1)[0, 0], "reflect")


def _convolve(pixels: Tensor, kernel: Tensor, border: str) -> Tensor:
    """Convolve every channel with a symmetric kernel [k, k] scaled to sum 1."""
    reach, channels = len(kernel) // 2, pixels.shape[1]
    weight = (kernel / kernel.sum()).expand(channels, 1, -1, -1)
    padded = F.pad(pixels, (reach, reach, reach, reach), mode=border)
    return F.conv2d(padded, weight, groups=channels).clamp(0, 1)


def _scale(pixels: Tensor) -> float:
    """Return by how much lengths grow for images larger than the reference."""
    return max(1.0, pixels.shape[2] / REFERENCE_HEIGHT)


# ---------------------------------------------------------------------------------------------- light and colour


def invert(pixels: Tensor, level: None, rng: Generator) -> Tensor:
    """Return the negative."""
    return 1 - pixels


def brightness(pixels: Tensor, amount: float, rng: Generator) -> Tensor:
    """Add to the value of HSV (the largest channel) and clip it; hue and saturation stay."""
    value = pixels.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, pixels * (brighter / value), brighter)


def contrast(pixels: Tensor, factor: float, rng: Generator) -> Tensor:
    """Bring every channel of an image nearer to its mean."""
    mean = pixels.mean((2, 3), keepdim=True)
    return ((pixels - mean) * factor + mean).clamp(0, 1)


def saturate(pixels: Tensor, level: tuple[float, float], rng: Generator) -> Tensor:
    """Map the saturation s of HSV to level[0] s + level[1], clipped; a grey pixel counts as red, as hue 0 says."""
    value, low = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    depth = value - low
    saturation = depth / value.clamp(min=1e-12)
    wanted = (saturation * level[0] + level[1]).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0], device=pixels.device)[:, None, None]
    below = torch.where(depth > 0, (value - pixels) / depth, red)  # 0 for the largest channel, 1 for the smallest
    return value * (1 - wanted * below)


# ---------------------------------------------------------------------------------------------- geometry and bytes


def rotate(pixels: Tensor, degrees: float, rng: Generator) -> Tensor:
    """Rotate each image about its centre, to the left or to the right; the corners become black."""
    sign = (torch.rand(len(pixels), generator=rng) < 0.5).to(pixels) * 2 - 1
    angle = sign * math.radians(degrees)
    zero, (height, width) = torch.zeros_like(angle), pixels.shape[2:]
    aspect = (height - 1) / (width - 1)  # both axes run from -1 to 1
    rows = (angle.cos(), -angle.sin() * aspect, zero, angle.sin() / aspect, angle.cos(), zero)
    return operations.affine(pixels, torch.stack(rows, 1).view(-1, 2, 3)).clamp(0, 1)


def pillow_blur(pixels: Tensor, radius: float, rng: Generator) -> Tensor:
    """Blur 8-bit images with Pillow's GaussianBlur."""
    from PIL import ImageFilter

    return _with_pillow(pixels, lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def jpeg_compression(pixels: Tensor, quality: int, rng: Generator) -> Tensor:
    """Compress 8-bit images and read them again."""
    import PIL.Image

    def compressed(image: Image) -> Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return PIL.Image.open(buffer)

    return _with_pillow(pixels, compressed)


def pixelate(pixels: Tensor, factor: float, rng: Generator) -> Tensor:
    """Scale 8-bit images down by box averages and up again."""
    from PIL.Image import Resampling

    height, width = pixels.shape[2:]
    small = max(1, int(width * factor)), max(1, int(height * factor))
    return _with_pillow(
        pixels, lambda image: image.resize(small, Resampling.BOX).resize((width, height), Resampling.BOX)
    )


def _with_pillow(pixels: Tensor, change: Callable[[Image], Image]) -> Tensor:
    """Return images after a change of each as 8-bit Pillow image."""
    import numpy as np
    import PIL.Image

    grey = pixels.shape[1] == 1
    arrays: np.ndarray = (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    changed = [np.asarray(change(PIL.Image.fromarray(one[..., 0] if grey else one))) for one in arrays]
    stacked = torch.from_numpy(np.stack(changed)).view(len(arrays), *arrays.shape[1:])
    return stacked.permute(0, 3, 1, 2).to(pixels.device).float().div_(255)


# ---------------------------------------------------------------------------------------------- tables

COMMON: dict[str, Distortion] = {
    "gaussian_noise": Distortion(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Distortion(shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Distortion(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": Distortion(speckle_noise, (0.06, 0.10, 0.12, 0.16, 0.20)),
    "gaussian_blur": Distortion(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": Distortion(defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "brightness": Distortion(brightness, (0.05, 0.10, 0.15, 0.20, 0.30)),
    "contrast": Distortion(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": Distortion(saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)), colour=True),
    "jpeg_compression": Distortion(jpeg_compression, (80, 65, 58, 50, 40)),
    "pixelate": Distortion(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "rotate": Distortion(rotate, (5, 10, 15, 20, 25), source="ours"),
}
"""Name -> distortion with five severities. Levels: deviation; photons; share; deviation; sigma; (radius, sigma);
amount; factor; (factor, amount); quality; factor; degrees."""

PUBLISHED: dict[str, Callable[[Tensor, Any, Generator], Tensor]] = {
    "noise": gaussian_noise,
    "blur": pillow_blur,
    "invert": invert,
}


def published_level(name: str, height: int) -> float | None:
    """Return the level of a published distortion for images of a height; see the head of this file."""
    scale = ORIGINAL_HEIGHT / height
    small = height <= SMALL
    levels = {
        "noise": NOISE_STD if small else SCALED_NOISE_STD * 2 / (3 * scale),
        "blur": BLUR_RADIUS if small else BLUR_RADIUS / scale,
        "invert": None,
    }
    return levels[name]
