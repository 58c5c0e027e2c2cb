"""Batches for many networks at once: indices [E, b] in, augmented images [E, b, c, h, w] out.

Shuffles and augmentations of network e come from its own generator, in the same order as if it were alone: one
permutation per epoch (a second one for outliers), then the draws of each batch: augmentation, CutMix, augmentation of
the outliers, which are augmented by themselves (TrustDD's code).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.augment import cutmix
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from bench.augment import Augment


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

    def epoch(self, batch: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the indices of the images and of the outliers of each batch, in new shuffles.

        With outliers, two loaders run side by side and the shorter one ends the epoch (TrustDD's code).
        """
        inside = self.orders(len(self.images)).split(batch, 1)
        if self.outliers is None:
            yield from ((index, None) for index in inside)
        else:
            yield from zip(inside, self.orders(len(self.outliers)).split(batch, 1), strict=False)

    def per_epoch(self, batch: int) -> int:
        """Return the number of batches of an epoch."""
        count = math.ceil(len(self.images) / batch)
        return count if self.outliers is None else min(count, math.ceil(len(self.outliers) / batch))

    def gather(self, index: Tensor, outside: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return augmented images [E, b (+ b'), c, h, w], outliers last, and targets [E, b] or [E, b, K]."""
        images, target = self._augmented(self.images[index]), self.target[index]
        if self.mixed:
            images, target = cutmix.mix(images, target, cutmix.draw(images, self.mixed, self.rngs))
        if outside is not None and self.outliers is not None:
            images = torch.cat([images, self._augmented(self.outliers[outside])], 1)
        return images, target

    def _augmented(self, images: Tensor) -> Tensor:
        """Return images [E, b, c, h, w] under new draws, of the same operations for all images of a network."""
        flat = images.flatten(0, 1)
        draw = self.augment.draw(flat.shape, self.rngs, groups=len(self.rngs), shared=False)
        return self.augment.apply(flat, draw).view_as(images)
