"""A second synthetic set, of outliers: real ones in groups to learn it from, and how it stands beside the first set.

Outliers have no class. They come in as many groups as there are classes, so that what compares classes compares groups
of outliers as well, and wherever a label is asked for theirs is uniform: cross-entropy with it is the loss of Outlier
Exposure (Hendrycks, Mazeika, Dietterich, ICLR 2019).

    Pseudo    group c holds the training images, spoiled by the corruption number c mod k   (POE)
    Foreign   group c holds a part of another dataset that no other group has               (OE)

    Exposed   a parametrised set with outliers beside it, which objectives for classes do not see
    Joined    both as one set of images, for objectives that look at all at once
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.data import outliers
from bench.errors import UserError
from bench.lazy import torch
from methods.parametrise import Parametrisation, Pixels

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from bench.api import DistilledSet, Method, Task

NONE = -1
"""Label of an outlier in a joined set."""
SLICE = 10_000
"""Foreign images of one group, where there are enough."""


# ---------------------------------------------------------------------------------------------- real outliers


class Pool(ABC):
    """Real outliers in groups."""

    @abstractmethod
    def draw(self, group: int, count: int, rng: Generator) -> Tensor:
        """Return at most `count` different images of a group, [k, c, h, w], in the space of the task."""


class Pseudo(Pool):
    """Every group holds all training images, spoiled. What is random in that is drawn once, see `Corrupted`."""

    def __init__(self, task: Task, corruptions: Sequence[str]) -> None:
        for name in corruptions:
            outliers.check(name, task.spec.dataset.shape[0])
        rng = task.rng("corruptions")
        seed = int(torch.randint(2**31, (), generator=rng, device=rng.device))
        self.train, self.corruptions = task.data.train, corruptions
        self.corrupted = outliers.Corrupted(task.data, seed)

    def draw(self, group: int, count: int, rng: Generator) -> Tensor:
        """Return images of all classes, as they come."""
        index = torch.randperm(self.train.size, generator=rng, device=rng.device)[:count]
        name = self.corruptions[group % len(self.corruptions)]
        return self.corrupted.images(name, index.to(self.train.labels.device))

    def all(self, count: int, rng: Generator) -> Tensor:
        """Return `count` different training images, equally many under each corruption."""
        index = torch.randperm(self.train.size, generator=rng, device=rng.device)[:count].to(self.train.labels.device)
        parts = index.chunk(len(self.corruptions))
        return torch.cat([self.corrupted.images(n, part) for n, part in zip(self.corruptions, parts, strict=False)])


class Foreign(Pool):
    """Every group holds images of its own out of uint8 [n, c, h, w], assigned once at random.

    size: of a group; None: an equal share, at most `SLICE`. Raises `UserError` where there are too few images.
    """

    def __init__(self, task: Task, images: Tensor, groups: int, size: int | None) -> None:
        size = min(SLICE, len(images) // groups) if size is None else size
        if groups * size > len(images) or not size:
            raise UserError(
                f"{groups} groups of {size} outliers are more than the {len(images)} images of the source",
                hint="lower `slice`, or leave it out for an equal share",
            )
        rng = task.rng("slices")
        order = torch.randperm(len(images), generator=rng, device=rng.device)[: groups * size]
        self.data, self.pixels, self.slices = task.data, images, order.to(images.device).view(groups, size)

    def draw(self, group: int, count: int, rng: Generator) -> Tensor:
        """Return images of the group's slice."""
        mine = self.slices[group]
        index = mine[torch.randperm(len(mine), generator=rng, device=rng.device)[:count].to(mine.device)]
        return self.data.forward(self.pixels[index].float() / 255)


# ---------------------------------------------------------------------------------------------- synthetic outliers


class OutlierPixels(Pixels):
    """Synthetic outliers: pixels with uniform labels [n, K] and an optimiser of their own.

    first: what they start from, sorted by group; counts: how many each group has.
    """

    def __init__(self, first: Tensor, counts: tuple[int, ...], classes: int, *, rate: float, momentum: float) -> None:
        self.labels = torch.full((len(first), classes), 1 / classes, dtype=first.dtype, device=first.device)
        self.counts = counts
        self.pixels = first.clone().requires_grad_()
        self.learned = {"pixels": self.pixels}
        self.optimiser = torch.optim.SGD([self.pixels], lr=rate, momentum=momentum)


class Exposed(Parametrisation):
    """Any parametrised set, with synthetic outliers beside it that are stored with it.

    weight: lambda, how much the loss on outliers counts where networks are trained on the result.
    """

    def __init__(self, inside: Parametrisation, outside: OutlierPixels, weight: float) -> None:
        self.inside, self.outside, self.weight = inside, outside, weight
        self.labels, self.counts, self.learned = inside.labels, inside.counts, inside.learned
        self.optimiser = inside.optimiser

    def images(self) -> Tensor:
        """Return the images that have classes."""
        return self.inside.images()

    def update(self, images: Tensor, derivative: Tensor) -> None:
        """Do one step of these."""
        self.inside.update(images, derivative)

    def export(self, task: Task, method: Method, **fields: Any) -> DistilledSet:
        """Return both sets as they stand now."""
        header = {**fields.pop("header", {}), "outlier_weight": self.weight}
        return self.inside.export(task, method, header=header, outliers=self.outside.images().clone(), **fields)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both."""
        return {"inside": self.inside.state_dict(), "outside": self.outside.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.inside.load_state_dict(state["inside"])
        self.outside.load_state_dict(state["outside"])


class Joined(Exposed):
    """Both sets as one: the outliers are the last images, with the label `NONE`."""

    def __init__(self, inside: Parametrisation, outside: OutlierPixels, weight: float) -> None:
        super().__init__(inside, outside, weight)
        self.labels = torch.cat([inside.labels, inside.labels.new_full((len(outside.labels),), NONE)])
        self.counts = (*inside.counts, *outside.counts)

    def images(self) -> Tensor:
        """Return all images."""
        return torch.cat([self.inside.images(), self.outside.images()])

    def update(self, images: Tensor, derivative: Tensor) -> None:
        """Do one step of both."""
        for part in (self.inside, self.outside):
            part.optimiser.zero_grad()
        images.backward(derivative)
        for part in (self.inside, self.outside):
            part.optimiser.step()
