"""Drawing the randomness of an augmentation, and applying it.

The two are apart: a `Draw` holds uniform random numbers only, so the same draw can be applied to a real and to a
synthetic batch of another size (siamese augmentation), or again later. Images come in `groups` (classes while
distilling, networks while evaluating); each group has its own draw. Groups that drew the same operation are
augmented together, by one call for each distinct operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.augment.families import FAMILIES, Operation
from bench.augment.strategy import parse
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Draw:
    """What was drawn for `groups` groups of images.

    uniform: float32 [groups, m, k], k numbers for each image; m = 1 where all images of a group share them
    (`shared`). choice: int64, the operation of each group [groups, 1], or of each image [groups, m].
    """

    groups: int
    shared: bool
    choice: Tensor
    uniform: Tensor


def joined(draws: Sequence[Draw]) -> Draw:
    """Return draws of one strategy for groups of one size as one draw for all their groups."""
    return Draw(
        sum(draw.groups for draw in draws),
        draws[0].shared,
        torch.cat([draw.choice for draw in draws]),
        torch.cat([draw.uniform for draw in draws]),
    )


class Augment:
    """An augmentation strategy (see `bench.augment.strategy`).

    draw = augment.draw(real.shape, rng, groups=classes, shared=True)
    real, synthetic = augment.apply(real, draw), augment.apply(synthetic, draw)
    """

    def __init__(self, strategy: str) -> None:
        parsed = parse(strategy)
        self.strategy, self.mode = strategy, parsed.mode
        family = FAMILIES[parsed.family]
        self.operations = tuple(family[name] for name in parsed.operations)
        self.stages = tuple(tuple(family[name] for name in stage) for stage in parsed.stages)

    def __repr__(self) -> str:
        return f"Augment({self.strategy!r})"

    def __call__(self, images: Tensor, rng: Generator) -> Tensor:
        """Augment one batch, with parameters of its own for each image."""
        return self.apply(images, self.draw(images.shape, rng))

    def draw(
        self,
        shape: Sequence[int],
        rng: Generator | Sequence[Generator],
        *,
        groups: int = 1,
        shared: bool = False,
    ) -> Draw:
        """Draw for a batch of `shape` (n, c, h, w), n images in `groups` consecutive groups of equal size.

        One operation per group; shared: its parameters are one value for the whole group (siamese mode) and the
        draw fits batches of any size, otherwise one value per image. With one generator for each group, a group's
        draw is the same as that of a batch of one group from its generator alone.
        """
        if shape[0] % groups:
            raise ValueError(f"{shape[0]} images cannot be {groups} groups of equal size")
        rngs = [rng] if isinstance(rng, torch.Generator) else list(rng)
        if len(rngs) not in (1, groups):
            raise ValueError(f"{len(rngs)} generators for {groups} groups")
        each = 1 if shared else shape[0] // groups
        width = sum(_numbers(stage, tuple(shape[1:])) for stage in self.stages)
        parts, options = groups // len(rngs), max(map(len, self.stages), default=0)
        choices = [self._choose(parts, each if self.mode == "each" else 1, options, g) for g in rngs]
        uniform = [torch.rand(parts, each, width, generator=g, device=g.device) for g in rngs]
        return Draw(groups, shared, torch.cat(choices), torch.cat(uniform))

    def _choose(self, groups: int, each: int, options: int, rng: Generator) -> Tensor:
        """Return which of the operations, all equally likely, int64 [groups, each]."""
        if options < 2:
            return torch.zeros(groups, each, dtype=torch.int64, device=rng.device)
        return torch.randint(options, (groups, each), generator=rng, device=rng.device)

    def apply(self, images: Tensor, draw: Draw, counts: Sequence[int] | None = None) -> Tensor:
        """Return the augmented images; differentiable with respect to `images` [n, c, h, w].

        counts: sizes of the groups where they differ (shared draws only). Raises `ValueError` where the draw does
        not fit the batch.
        """
        counts = self._counts(len(images), draw, counts)
        if not self.operations or not len(images):
            return images
        uniform = _spread(draw.uniform, draw, counts).to(images)
        for stage in self.stages:
            images = self._stage(stage, images, uniform, draw, counts)
            uniform = uniform[:, _numbers(stage, tuple(images.shape[1:])) :]
        return images

    @staticmethod
    def _stage(stage: tuple[Operation, ...], images: Tensor, uniform: Tensor, draw: Draw, counts: list[int]) -> Tensor:
        """Run the chosen operation of a stage on every image, each operation once."""
        chosen = draw.choice.unique().tolist() if len(stage) > 1 else [0]
        if len(chosen) == 1:
            operation = stage[chosen[0]]
            return _run(operation, images, uniform, _fill(operation, images, counts))
        choice = _spread(draw.choice.unsqueeze(2), draw, counts)[:, 0]
        order = choice.argsort(stable=True)
        sizes = torch.bincount(choice, minlength=len(stage)).tolist()
        order = order.to(images.device)
        done = []
        for operation, rows in zip(stage, order.split(sizes), strict=True):
            if len(rows):
                fill = _fill(operation, images, counts)
                done.append(_run(operation, images[rows], uniform[rows], None if fill is None else fill[rows]))
        return torch.cat(done)[order.argsort()]

    @staticmethod
    def _counts(size: int, draw: Draw, counts: Sequence[int] | None) -> list[int]:
        """Return the sizes of the groups in a batch of `size` images."""
        if counts is None:
            if size % draw.groups:
                raise ValueError(f"{size} images cannot be {draw.groups} groups of equal size")
            counts = [size // draw.groups] * draw.groups
        if len(counts) != draw.groups or sum(counts) != size:
            raise ValueError(f"groups of {list(counts)} images do not make up {size} images in {draw.groups} groups")
        if not draw.shared and set(counts) != {draw.uniform.shape[1]}:
            raise ValueError(f"drawn for groups of {draw.uniform.shape[1]} images, applied to groups of {list(counts)}")
        return list(counts)


def _numbers(stage: tuple[Operation, ...], shape: tuple[int, ...]) -> int:
    """Return how many uniform numbers a stage uses per image: those of its neediest operation."""
    return max(operation.count(shape) for operation in stage)


def _spread(values: Tensor, draw: Draw, counts: list[int]) -> Tensor:
    """Return [n, k], one row per image, of [groups, 1 or m, k]."""
    if values.shape[1] > 1:
        return values.flatten(0, 1)
    if draw.groups == 1:
        return values[0].expand(counts[0], -1)
    sizes = torch.tensor(counts, device=values.device)
    return values[:, 0].repeat_interleave(sizes, 0, output_size=sum(counts))


def _fill(operation: Operation, images: Tensor, counts: list[int]) -> Tensor | None:
    """Return the colour that stands outside each image, [n, c or 1, 1, 1]: a mean over its group; None for zero."""
    if operation.fill == "zero":
        return None
    with torch.no_grad():
        mean = torch.stack([group.mean((0, 2, 3)) for group in images.split(counts)])
        if operation.fill == "grey":
            mean = mean.mean(1, keepdim=True)
        sizes = torch.tensor(counts, device=images.device)
        return mean.repeat_interleave(sizes, 0, output_size=len(images))[..., None, None]


def _run(operation: Operation, images: Tensor, uniform: Tensor, fill: Tensor | None) -> Tensor:
    """Run one operation with `fill` outside the images."""
    uniform = uniform[:, : operation.count(tuple(images.shape[1:]))]
    return operation.run(images, uniform) if fill is None else operation.run(images - fill, uniform) + fill
