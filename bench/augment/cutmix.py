"""CutMix: a box of every image comes from another image of the batch, and its label by the box's share (Yun et al.,
ICCV 2019).

With a probability per batch: lam ~ U(0, 1), the box has sides floor(side * sqrt(1 - lam)), its centre may lie anywhere
in the image, and what reaches beyond the border is cut off. All images of a batch have the same box. The weight of the
other label is the exact area of the box that is left (the released code of IDC), not 1 - lam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Cut(NamedTuple):
    """The draw of E batches. partner: int64 [E, b], whose box each image gets; inside: bool [E, h, w], the box."""

    partner: Tensor
    inside: Tensor


def draw(shape: Sequence[int], probability: float, rngs: Sequence[Generator]) -> Cut:
    """Draw for images of `shape` [E, b, c, h, w], the e-th batch from rngs[e] alone."""
    numbers = torch.stack([torch.rand(4, generator=rng, device=rng.device) for rng in rngs])
    partner = torch.stack([torch.randperm(shape[1], generator=rng, device=rng.device) for rng in rngs])
    mixed, lam, centre = numbers[:, 0] < probability, numbers[:, 1], numbers[:, 2:]
    return Cut(partner, box(lam.where(mixed, 1), centre, shape[3], shape[4]))


def box(lam: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """Return the boxes, bool [E, height, width], of lam [E] and centres [E, 2] in parts of the sides.

    Sides are twice the half, rounded down, as in the released code: an odd box is a pixel smaller.
    """
    along = []
    for axis, side in enumerate((height, width)):
        half = (side * (1 - lam).sqrt()).long() // 2
        middle = (centre[:, axis] * side).long()
        position = torch.arange(side, device=lam.device)
        along.append((position >= (middle - half)[:, None]) & (position < (middle + half)[:, None]))
    return along[0][:, :, None] & along[1][:, None, :]


def mix(images: Tensor, target: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """Return images [E, b, c, h, w] and float targets [E, b, K] with the boxes of their partners."""
    partner, inside = (each.to(images.device) for each in cut)
    batch = torch.arange(len(images), device=images.device)[:, None]
    mixed = torch.where(inside[:, None, None], images[batch, partner], images)
    share = inside.to(target.dtype).mean((1, 2))[:, None, None]
    return mixed, target.lerp(target[batch, partner], share)
