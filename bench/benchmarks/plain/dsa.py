"""Differentiable siamese augmentation with parameters made image by image, as loops over the batch.

Affine matrices are nested lists of 0-d tensors, index grids are meshed for every batch, and one operation is drawn
for the whole batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

NAMES = ("color", "crop", "cutout", "flip", "scale", "rotate")


def augment(images: Tensor, rng: Generator) -> Tensor:
    """Return the images under one operation, with parameters of its own for each image."""
    chosen = NAMES[int(torch.randint(len(NAMES), (1, 1), generator=rng, device=rng.device))]
    uniform = torch.rand(1, len(images), 3, generator=rng, device=rng.device)[0].to(images.device)
    return OPERATIONS[chosen](images, uniform)


def color(images: Tensor, uniform: Tensor) -> Tensor:
    """Shift the brightness, then scale the saturation, then the contrast."""
    images = images + (uniform[:, 0] - 0.5)[:, None, None, None]
    mean = images.mean(1, keepdim=True)
    images = (images - mean) * (uniform[:, 1] * 2)[:, None, None, None] + mean
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (uniform[:, 2] + 0.5)[:, None, None, None] + mean


def crop(images: Tensor, uniform: Tensor) -> Tensor:
    """Shift by whole pixels, zeros from outside."""
    n, _, height, width = images.shape
    far = [int(side * 0.125 + 0.5) for side in (height, width)]
    down, right = ((uniform[:, k] * (2 * far[k] + 1)).long() - far[k] for k in (0, 1))
    which, rows, columns = _mesh(n, height, width, images.device)
    rows = torch.clamp(rows + down[:, None, None] + 1, 0, height + 1)
    columns = torch.clamp(columns + right[:, None, None] + 1, 0, width + 1)
    padded = F.pad(images, [1, 1, 1, 1])
    return padded.permute(0, 2, 3, 1).contiguous()[which, rows, columns].permute(0, 3, 1, 2).contiguous()


def cutout(images: Tensor, uniform: Tensor) -> Tensor:
    """Multiply with a mask that is 0 in a box of half the sides."""
    n, _, height, width = images.shape
    box = [int(side * 0.5 + 0.5) for side in (height, width)]
    centre_row = (uniform[:, 0] * (height + 1 - box[0] % 2)).long()
    centre_column = (uniform[:, 1] * (width + 1 - box[1] % 2)).long()
    which, rows, columns = _mesh(n, box[0], box[1], images.device)
    rows = rows + centre_row[:, None, None] - box[0] // 2
    columns = columns + centre_column[:, None, None] - box[1] // 2
    padded = torch.ones(n, height + 2 * box[0], width + 2 * box[1], dtype=images.dtype, device=images.device)
    padded[which, rows + box[0], columns + box[1]] = 0
    return images * padded[:, box[0] : box[0] + height, box[1] : box[1] + width].unsqueeze(1)


def flip(images: Tensor, uniform: Tensor) -> Tensor:
    """Mirror every second image on average."""
    return torch.where((uniform[:, 0] < 0.5)[:, None, None, None], images.flip(3), images)


def scale(images: Tensor, uniform: Tensor) -> Tensor:
    """Enlarge or shrink by factors of their own in both directions."""
    return _warp(images, scale_matrices(uniform))


def scale_matrices(uniform: Tensor) -> Tensor:
    """Return the matrix of each image, [n, 2, 3], made number by number."""
    low, high = 1 / 1.2, 1.2
    sx, sy = (low + uniform[:, k] * (high - low) for k in (0, 1))
    zero = torch.zeros((), device=uniform.device)
    return _stack([[[sx[i], zero, zero], [zero, sy[i], zero]] for i in range(len(uniform))])


def rotate(images: Tensor, uniform: Tensor) -> Tensor:
    """Turn by up to 15 degrees."""
    return _warp(images, rotate_matrices(uniform))


def rotate_matrices(uniform: Tensor) -> Tensor:
    """Return the matrix of each image, [n, 2, 3], made number by number."""
    angle = (-15 + uniform[:, 0] * 30) * math.pi / 180
    zero = torch.zeros((), device=uniform.device)
    return _stack(
        [
            [[torch.cos(angle[i]), torch.sin(-angle[i]), zero], [torch.sin(angle[i]), torch.cos(angle[i]), zero]]
            for i in range(len(uniform))
        ]
    )


def _stack(matrices: list[list[list[Tensor]]]) -> Tensor:
    return torch.stack([torch.stack([torch.stack(row) for row in matrix]) for matrix in matrices])


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, align_corners=True)


def _mesh(n: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    ranges = (torch.arange(side, dtype=torch.long, device=device) for side in (n, height, width))
    which, rows, columns = torch.meshgrid(*ranges, indexing="ij")
    return which, rows, columns


OPERATIONS = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}
