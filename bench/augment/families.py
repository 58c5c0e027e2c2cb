"""The operations of each family: from uniform random numbers to the parameters of its paper.

An operation gets images [n, c, h, w] and `uniform` [n, k], k numbers in [0, 1) per image, of which it uses the first
`numbers`. Ranges are in normalised units for colours, in pixels or parts of the side for positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.augment import operations as ops
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """One operation of a family.

    numbers: uniform numbers per image; None for one per pixel and channel. fill: what stands outside the image: zero,
    or the mean of the batch per `channel`, or the mean of those (`grey`).
    """

    run: Callable[[Tensor, Tensor], Tensor]
    numbers: int | None
    fill: Literal["zero", "channel", "grey"] = "zero"

    def count(self, shape: tuple[int, ...]) -> int:
        """Return how many uniform numbers it uses per image of `shape` (c, h, w)."""
        return math.prod(shape) if self.numbers is None else self.numbers


def _whole(uniform: Tensor, count: int) -> Tensor:
    """Return whole numbers 0 .. count - 1, each equally likely; the product never rounds up to `count`."""
    return (uniform * count).long()


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + uniform * (high - low)


def _share(side: int, ratio: float) -> int:
    return int(side * ratio + 0.5)


# ---------------------------------------------------------------------------------------------- DSA


def _flip(images: Tensor, uniform: Tensor) -> Tensor:
    return ops.flip(images, uniform[:, 0] < 0.5)


def _scale(images: Tensor, uniform: Tensor) -> Tensor:
    factors = _between(uniform, 1 / 1.2, 1.2)
    return ops.scale(images, factors[:, 0], factors[:, 1])


def _rotate(images: Tensor, uniform: Tensor) -> Tensor:
    return ops.affine(images, ops.rotation(_between(uniform[:, 0], -15, 15)))


def _crop(images: Tensor, uniform: Tensor) -> Tensor:
    """Shift by up to an eighth of the side: 4 pixels at 28 and 32, 8 at 64."""
    far = [_share(side, 0.125) for side in images.shape[2:]]
    down, right = (_whole(uniform[:, k], 2 * far[k] + 1) - far[k] for k in (0, 1))
    return ops.crop(images, down, right)


def _cutout(images: Tensor, uniform: Tensor, ratio: float = 0.5) -> Tensor:
    """Erase a box of `ratio` of the sides. Its centre may lie on the border (for an even box even just outside)."""
    height, width = images.shape[2:]
    box = _share(height, ratio), _share(width, ratio)
    row = _whole(uniform[:, 0], height + 1 - box[0] % 2)
    column = _whole(uniform[:, 1], width + 1 - box[1] % 2)
    return ops.cutout(images, row, column, *box)


def _color(images: Tensor, uniform: Tensor) -> Tensor:
    """Brightness, saturation and contrast, always all three in this order."""
    images = ops.brightness(images, uniform[:, 0] - 0.5)
    images = ops.saturation(images, uniform[:, 1] * 2)
    return ops.contrast(images, uniform[:, 2] + 0.5)


_DSA = {
    "color": Operation(_color, 3),
    "crop": Operation(_crop, 2),
    "cutout": Operation(_cutout, 2),
    "flip": Operation(_flip, 1),
    "scale": Operation(_scale, 2),
    "rotate": Operation(_rotate, 1),
}

# ---------------------------------------------------------------------------------------------- DC


def _dc_crop(images: Tensor, uniform: Tensor) -> Tensor:
    """Window of an image padded by 4: shifts -4 .. +3, both axes."""
    return ops.crop(images, _whole(uniform[:, 0], 8) - 4, _whole(uniform[:, 1], 8) - 4)


def _dc_scale(images: Tensor, uniform: Tensor) -> Tensor:
    """Resize height and width by factors in 0.8 .. 1.2 with nearest pixels; zero padding or centre crop.

    Padding and cropping happen on a square canvas that holds both sizes, whose margins are rounded down.
    """
    sides = images.shape[2:]
    sizes = [(_between(uniform[:, k].double(), 0.8, 1.2) * sides[k]).long() for k in (0, 1)]
    canvas = torch.maximum(sizes[0], sizes[1]).clamp(min=max(sides))
    picks = []
    for side, size in zip(sides, sizes, strict=True):
        margin = (canvas - side) // 2 - (canvas - size) // 2
        position = torch.arange(side, device=images.device) + margin[:, None]
        source = position * side // size[:, None]
        picks.append(source.masked_fill((position < 0) | (position >= size[:, None]), -1))
    return ops.pick(images, picks[0], picks[1])


def _dc_rotate(images: Tensor, uniform: Tensor) -> Tensor:
    """Turn by whole degrees -45 .. 44.

    Bicubic convolution on the device stands for the cubic spline of scipy on the host, which the released code
    applies image by image, and the rotation is about the exact centre: pixels differ slightly, the law does not.
    """
    degrees = (_whole(uniform[:, 0], 90) - 45).to(images.dtype)
    return ops.affine(images, ops.rotation(degrees), mode="bicubic")


def _dc_noise(images: Tensor, uniform: Tensor) -> Tensor:
    # 0 would become minus infinity; half the step of the generator is the smallest number that is not
    noise = torch.special.ndtri(uniform.clamp(min=2.0**-25))
    return images + 0.001 * noise.view_as(images)


_DC = {
    "crop": Operation(_dc_crop, 2, fill="channel"),
    "scale": Operation(_dc_scale, 2),
    "rotate": Operation(_dc_rotate, 1, fill="grey"),
    "noise": Operation(_dc_noise, None),
}

# ---------------------------------------------------------------------------------------------- FRePo


def _frepo_color(images: Tensor, uniform: Tensor) -> Tensor:
    images = ops.brightness(images, _between(uniform[:, 0], -0.25, 0.25))
    images = ops.contrast(images, _between(uniform[:, 1], -0.25, 0.25).exp())
    return ops.saturation(images, _between(uniform[:, 2], -0.25, 0.25).exp())


def _window(images: Tensor, side: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Fill the image with a window of it: `side` in parts of the image, its centre moved in half images."""
    zero = torch.zeros_like(side)
    matrix = torch.stack([side, zero, right, zero, side, down], 1).view(-1, 2, 3)
    return ops.affine(images, matrix, padding="border")


def _frepo_crop(images: Tensor, uniform: Tensor) -> Tensor:
    """Zoom: a window of side 0.8 .. 1.25 (log-uniform) whose centre is random as far as the edges allow."""
    side = _between(uniform[:, 0], math.log(0.8), math.log(1.25)).exp()
    room = (1 - side).abs()
    return _window(images, side, room * _between(uniform[:, 1], -1, 1), room * _between(uniform[:, 2], -1, 1))


def _frepo_rotate(images: Tensor, uniform: Tensor) -> Tensor:
    return ops.affine(images, ops.rotation(_between(uniform[:, 0], -15, 15)), padding="border")


def _frepo_translate(images: Tensor, uniform: Tensor) -> Tensor:
    """Shift by up to an eighth of the side; 2 / (side - 1) is one pixel."""
    height, width = images.shape[2:]
    right, down = (
        _between(uniform[:, k], -0.125, 0.125) * 2 * side / (side - 1) for k, side in enumerate((width, height))
    )
    return _window(images, torch.ones_like(right), right, down)


_FREPO = {
    "flip": Operation(_flip, 1),
    "color": Operation(_frepo_color, 3),
    "crop": Operation(_frepo_crop, 3),
    "rotate": Operation(_frepo_rotate, 1),
    "translate": Operation(_frepo_translate, 2),
    "cutout": Operation(lambda images, uniform: _cutout(images, uniform, 0.25), 2),
}

FAMILIES: dict[str, dict[str, Operation]] = {"none": {}, "dsa": _DSA, "dc": _DC, "frepo": _FREPO}
