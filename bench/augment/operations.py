"""Differentiable image operations with one parameter per image, no loop over images.

images: float [n, c, h, w]; every parameter is a tensor [n] (or [n, k]). Pixels that come from outside are 0, the
mean colour of normalised data. All operations but the colour shift are linear in the images.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


def _per_image(parameter: Tensor) -> Tensor:
    return parameter[:, None, None, None]


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Reverse the width axis of the images where `mirrored` (bool) holds."""
    return torch.where(_per_image(mirrored), images.flip(3), images)


def pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return out[i, j] = images[rows[i], columns[j]], 0 where an index lies outside; rows [n, h], columns [n, w]."""
    n, channels, height, width = images.shape
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    index = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    picked = images.flatten(2).gather(2, index.flatten(1)[:, None, :].expand(n, channels, -1))
    return picked.view(n, channels, rows.shape[1], columns.shape[1]).masked_fill(~inside, 0)


def crop(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return out[i, j] = images[i + down, j + right], 0 outside (int64)."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) + down[:, None]
    columns = torch.arange(width, device=images.device) + right[:, None]
    return pick(images, rows, columns)


def cutout(images: Tensor, row: Tensor, column: Tensor, height: int, width: int) -> Tensor:
    """Set a box of `height` x `width` pixels centred at (row, column) to 0; parts of it may lie outside."""
    erased = []
    for centre, size, side in ((row, height, images.shape[2]), (column, width, images.shape[3])):
        first = (centre - size // 2)[:, None]
        position = torch.arange(side, device=images.device)
        erased.append((position >= first) & (position < first + size))
    return images.masked_fill((erased[0][:, :, None] & erased[1][:, None, :])[:, None], 0)


def affine(images: Tensor, matrix: Tensor, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    """Resample: the pixel at p (both axes from -1 to 1 between pixel centres) is read at matrix @ (p, 1); [n, 2, 3].

    `align_corners` is fixed to True: for square images both conventions give the same map about the centre.
    """
    grid = F.affine_grid(matrix, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=True)


def scale(images: Tensor, horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Shrink (factor > 1, zeros around) or enlarge (factor < 1) about the centre."""
    return affine(images, scaling(horizontal, vertical))


def scaling(horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Return the matrices [n, 2, 3] of `scale`."""
    zero = torch.zeros_like(horizontal)
    return torch.stack([horizontal, zero, zero, zero, vertical, zero], 1).view(-1, 2, 3)


def rotation(degrees: Tensor) -> Tensor:
    """Return the matrices [n, 2, 3] that turn the picture counter-clockwise."""
    angle = degrees * (math.pi / 180)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3)


def brightness(images: Tensor, shift: Tensor) -> Tensor:
    """Add the same number to all pixels and channels of an image."""
    return images + _per_image(shift)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the difference of each pixel to its own mean over channels."""
    return torch.lerp(images.mean(1, keepdim=True), images, _per_image(factor))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the difference of each pixel to the mean over channels and pixels of its image."""
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, _per_image(factor))
