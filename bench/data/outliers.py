"""Outliers made of the data itself: images spoiled so much that they are none of the classes any more.

These are the corruptions that TrustDD trains on as pseudo-outliers; the first four are its choice. Outlier Exposure
(Hendrycks, Mazeika, Dietterich, ICLR 2019) uses all but `uniform-speckle` as validation sets, so what is detected after
training on them is no test of unseen outliers. Defined on pixels in [0, 1], before any preprocessing:

    jigsaw            quadrants [a b; c d] become [a' c; d b'], the halves of a' exchanged up and down, of b' left and
                      right: a fixed permutation of the pixels
    invert            1 - x for green and blue, or for grey; red stays
    pixelate          the mean over each of int(0.2 h) x int(0.2 w) cells (6 x 6 of CIFAR's 32 x 32)
    gauss-speckle     x + x e, clipped, e standard normal
    avg-mean          (x + y) / 2 with another image y
    geo-mean          sqrt(x y)
    uniform-speckle   x + x e, clipped, e uniform in [0, 1]
    rgb-ghost         red is green mirrored, green is blue, blue is red

The published ones are for 32x32 colour images; what they are for other sizes, and `invert` of grey ones, is this
benchmark's reading. A last row or column that makes a side odd stays where it is in `jigsaw`. The released code
pixelates bytes, which is at most one grey level away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.errors import UserError, nearest
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from bench.data import Prepared

CELLS = 0.2
"""Cells of `pixelate` along a side, as a part of its pixels."""


def jigsaw(pixels: Tensor) -> Tensor:
    """Permute the pixels."""
    h, w = pixels.shape[2] // 2, pixels.shape[3] // 2
    top, bottom, left, right = slice(h), slice(h, 2 * h), slice(w), slice(w, 2 * w)
    out = pixels.clone()
    out[:, :, top, left] = pixels[:, :, top, left].roll(h // 2, 2)
    out[:, :, top, right] = pixels[:, :, bottom, left]
    out[:, :, bottom, left] = pixels[:, :, bottom, right]
    out[:, :, bottom, right] = pixels[:, :, top, right].roll(w // 2, 3)
    return out


def invert(pixels: Tensor) -> Tensor:
    """Invert all channels but red."""
    kept = pixels[:, :1] if pixels.shape[1] == 3 else pixels[:, :0]
    return torch.cat([kept, 1 - pixels[:, kept.shape[1] :]], 1)


def pixelate(pixels: Tensor) -> Tensor:
    """Replace every cell by its mean."""
    rows, columns = (_cells(side).to(pixels) for side in pixels.shape[2:])
    return rows @ pixels @ columns.T


def _cells(side: int) -> Tensor:
    """Return the matrix [side, side] that replaces numbers by the means over their cells.

    A pixel is in the cell that its centre lies in.
    """
    count = max(1, int(CELLS * side))
    cell = ((torch.arange(side) + 0.5) * count / side).long()
    same = (cell[:, None] == cell).double()
    return same / same.sum(1, keepdim=True)


def speckle(pixels: Tensor, noise: Tensor) -> Tensor:
    """Add noise in proportion to every value and clip."""
    return (pixels + pixels * noise).clamp(0, 1)


def ghost(pixels: Tensor) -> Tensor:
    """Exchange the channels, the new red mirrored left and right."""
    red, green, blue = pixels.unbind(1)
    return torch.stack([green.flip(2), blue, red], 1)


@dataclass(frozen=True)
class Corruption:
    """A way to spoil images.

    apply: pixels [n, c, h, w] -> spoiled pixels, with a second argument of the same shape where `second` says which:
    standard normal or uniform noise, or other images. colour: needs three channels.
    """

    apply: Callable[..., Tensor]
    second: Literal["normal", "uniform", "images"] | None = None
    colour: bool = False


CORRUPTIONS: dict[str, Corruption] = {
    "jigsaw": Corruption(jigsaw),
    "invert": Corruption(invert),
    "pixelate": Corruption(pixelate),
    "gauss-speckle": Corruption(speckle, "normal"),
    "avg-mean": Corruption(lambda pixels, others: (pixels + others) / 2, "images"),
    "geo-mean": Corruption(lambda pixels, others: (pixels * others).sqrt(), "images"),
    "uniform-speckle": Corruption(speckle, "uniform"),
    "rgb-ghost": Corruption(ghost, colour=True),
}


def check(name: str, channels: int) -> None:
    """Raise `UserError` for an unknown corruption, or one that images with so many channels cannot have."""
    if name not in CORRUPTIONS:
        raise UserError(f"unknown corruption {name!r}", hint=nearest(name, CORRUPTIONS))
    if CORRUPTIONS[name].colour and channels != 3:
        raise UserError(f"the corruption {name!r} needs images in colour")


class Corrupted:
    """The training images, spoiled: drawn anew from the same images each time, always the same ones.

    What is random in a corruption belongs to the image and is fixed by `seed`, as if all spoiled images had been made
    at the start and kept. That would take several copies of the training set; here noise has a generator for each
    image, and other images come by one fixed permutation.
    """

    def __init__(self, data: Prepared, seed: int) -> None:
        self.data, self.seed = data, seed
        self.rng = torch.Generator(data.device)
        self.other = torch.randperm(data.train.size, generator=self._of(data.train.size), device=data.device)

    def images(self, name: str, index: Tensor) -> Tensor:
        """Return the training images of `index`, int64 [k], spoiled, in the space of the data."""
        corruption, pixels = CORRUPTIONS[name], self.data.train.pixels(index)
        if corruption.second is None:
            return self.data.forward(corruption.apply(pixels))
        if corruption.second == "images":
            second = self.data.train.pixels(self.other[index])
        else:
            draw = torch.randn if corruption.second == "normal" else torch.rand
            shape, device = pixels.shape[1:], pixels.device
            noise = [draw(shape, generator=self._of(number), device=device) for number in index.tolist()]
            second = torch.stack(noise).to(pixels)
        return self.data.forward(corruption.apply(pixels, second))

    def _of(self, number: int) -> Generator:
        """Return the generator of an image at its start."""
        return self.rng.manual_seed(self.seed + number)
