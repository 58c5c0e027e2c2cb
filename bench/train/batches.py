"""Batches for many networks at once: indices [E, b] in, augmented images [E, b, c, h, w] out.

Shuffles and augmentations of network e come from its own generator, in the same order as if it were alone: one
permutation per epoch (a second one for outliers), then the draws of each batch: augmentation, CutMix, augmentation of
the outliers, which are augmented by themselves (TrustDD's code).

Only the draws have an order. Small batches of several steps are augmented in one go, which for a few small images
takes hardly longer than one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bench.augment import cutmix
from bench.augment.transform import joined
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from bench.augment import Augment, Draw

    Indices = tuple[Tensor, Tensor | None]
    Batch = tuple[Tensor, Tensor]

AHEAD = 2**18
"""Values of the images that are augmented in one go: those of several steps, where a step has fewer."""


class _Dealt(NamedTuple):
    """What a step was dealt, or several together: indices of images [E, b] and outliers [E, b'], and the randomness."""

    inside: Tensor
    outside: Tensor | None
    draw: Draw
    cut: cutmix.Cut | None
    outside_draw: Draw | None

    @property
    def size(self) -> tuple[int, int]:
        """Return b and b'."""
        return self.inside.shape[1], 0 if self.outside is None else self.outside.shape[1]


@dataclass
class Batches:
    """One set for E networks.

    images: float [n, c, h, w]; target: int64 [n] or float [n, K]; outliers: float [m, c, h, w] or None, all on one
    device. augment: a `bench.augment.Augment`. rngs: E generators. mixed: probability of CutMix per batch, which leaves
    outliers alone and needs float targets.
    """

    images: Tensor
    target: Tensor
    outliers: Tensor | None
    augment: Augment
    rngs: Sequence[Generator]
    mixed: float = 0.0

    def orders(self, size: int) -> Tensor:
        """Return one shuffle per network, int64 [E, size]."""
        drawn = [torch.randperm(size, generator=rng, device=rng.device) for rng in self.rngs]
        return torch.stack(drawn).to(self.images.device)

    def shuffled(self, batch: int) -> Iterator[Indices]:
        """Yield the indices of the images and of the outliers of each batch, in new shuffles every epoch, for ever.

        With outliers, two loaders run side by side and the shorter one ends the epoch (TrustDD's code).
        """
        while True:
            inside = self.orders(len(self.images)).split(batch, 1)
            if self.outliers is None:
                yield from ((index, None) for index in inside)
            else:
                yield from zip(inside, self.orders(len(self.outliers)).split(batch, 1), strict=False)

    def per_epoch(self, batch: int) -> int:
        """Return the number of batches of an epoch."""
        count = math.ceil(len(self.images) / batch)
        return count if self.outliers is None else min(count, math.ceil(len(self.outliers) / batch))

    def batches(self, indices: Iterable[Indices]) -> Iterator[Batch]:
        """Yield the augmented images of each step, [E, b (+ b'), c, h, w], outliers last; targets [E, b] or [E, b, K].

        indices: of images [E, b] and of outliers [E, b'] or None.
        """
        waiting: list[_Dealt] = []
        values = 0
        for inside, outside in indices:
            waiting.append(self._deal(inside, outside))
            values += inside.numel() * self.images[0].numel()
            if values >= AHEAD:
                yield from self._together(waiting)
                waiting, values = [], 0
        yield from self._together(waiting)

    def _deal(self, inside: Tensor, outside: Tensor | None) -> _Dealt:
        """Draw what is random about one step."""
        draw = self._draw(inside)
        cut = cutmix.draw((*inside.shape, *self.images.shape[1:]), self.mixed, self.rngs) if self.mixed else None
        return _Dealt(inside, outside, draw, cut, None if outside is None else self._draw(outside))

    def _draw(self, index: Tensor) -> Draw:
        """Draw for images [E, b], of the same operation for all of a network where the strategy takes one of them."""
        shape = (index.numel(), *self.images.shape[1:])
        return self.augment.draw(shape, self.rngs, groups=len(self.rngs), shared=False)

    def _together(self, steps: Sequence[_Dealt]) -> Iterator[Batch]:
        """Yield the batches of these steps; those of one size are made at once."""
        made: dict[int, Batch] = {}
        for size in {step.size for step in steps}:
            alike = [number for number, step in enumerate(steps) if step.size == size]
            images, target = self._made(_joined([steps[number] for number in alike]))
            each = zip(images.split(len(self.rngs)), target.split(len(self.rngs)), strict=True)
            made |= zip(alike, each, strict=True)
        yield from (made[number] for number in range(len(steps)))

    def _made(self, step: _Dealt) -> Batch:
        images, target = self._augmented(self.images[step.inside], step.draw), self.target[step.inside]
        if step.cut is not None:
            images, target = cutmix.mix(images, target, step.cut)
        if self.outliers is not None and step.outside_draw is not None:
            images = torch.cat([images, self._augmented(self.outliers[step.outside], step.outside_draw)], 1)
        return images, target

    def _augmented(self, images: Tensor, draw: Draw) -> Tensor:
        return self.augment.apply(images.flatten(0, 1), draw).view_as(images)


def _joined(steps: Sequence[_Dealt]) -> _Dealt:
    """Return steps of one size as one of more networks."""
    if len(steps) == 1:
        return steps[0]
    inside, outside, draw, cut, outside_draw = zip(*steps, strict=True)
    return _Dealt(
        torch.cat(inside),
        None if outside[0] is None else torch.cat(outside),
        joined(draw),
        None if cut[0] is None else cutmix.Cut(*map(torch.cat, zip(*cut, strict=True))),
        None if outside_draw[0] is None else joined(outside_draw),
    )
