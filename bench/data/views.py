"""Views: datasets derived from others by name, for questions that need another training set than the published one.

    mnist@rare(share=0.05)                  a rare subgroup with group labels (group robustness)
    mnist@chunk(size=10000, index=2)        a part of the training images (membership inference)
    cifar100@classes(steps=5, step=1)       the classes of one step (class-incremental learning)
    cifar10@half(runs=8, run=3, audit=500)  a random half of the audited images, and all others (membership inference)

A view is a function of the canonical order of its base and of its arguments, so its fingerprint is known without
reading anything. Labels, class names and constants of normalisation stay those of the base. Views can be chained.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import ValidationError

from bench.api import DatasetInfo, Params, param
from bench.data.arrays import Split
from bench.errors import UserError, nearest
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data.prepared import Dataset

NAME = re.compile(r"(?P<base>.+)@(?P<view>[a-z_]+)\((?P<arguments>[^()]*)\)")


# ---------------------------------------------------------------------------------------------- the views


class ViewParams(Params):
    """The arguments of a view."""

    shares_space: ClassVar[bool] = False
    """Whether whitening is that of the base, so that sets of several views can be used together."""


class Rare(ViewParams):
    """A minority of images of every class that looks different. Groups: 0 majority, 1 minority."""

    share: float = param(0.05, "of the training images of each class that are changed", ge=0, le=1)
    test: float = param(0.5, "of the test images of each class that are changed", ge=0, le=1)
    change: Literal["invert", "rotate", "mirror"] = param(
        "invert", "what is done to them: 255 minus the value, a quarter turn, left and right exchanged"
    )
    seed: int = param(0, "of the choice", ge=0)

    def info(self, base: DatasetInfo) -> DatasetInfo:
        """Return the facts of the view."""
        return base

    def apply(self, base: Dataset) -> Halves:
        """Return both halves with the chosen images changed."""
        rng = np.random.default_rng(self.seed)
        return Halves(*(self._changed(*half, rng) for half in ((base.train, self.share), (base.test, self.test))))

    def _changed(self, split: Split[Tensor], share: float, rng: np.random.Generator) -> Split[Tensor]:
        groups = torch.zeros_like(split.labels)
        for label in split.labels.unique():
            index = (split.labels == label).nonzero().squeeze(1).numpy()
            groups[torch.from_numpy(rng.permutation(index)[: round(share * len(index))])] = 1
        rare, images = groups == 1, split.images.clone()
        images[rare] = {
            "invert": lambda chosen: 255 - chosen,
            "rotate": lambda chosen: chosen.rot90(1, (2, 3)),
            "mirror": lambda chosen: chosen.flip(3),
        }[self.change](images[rare])
        return Split(images, split.labels, groups)


class Chunk(ViewParams):
    """Consecutive training images, in an order that has nothing to do with their content."""

    size: int = param(10_000, "training images", source="FRePo, script/mia.py", ge=1)
    index: int = param(0, "which chunk", ge=0)

    def info(self, base: DatasetInfo) -> DatasetInfo:
        """Return the facts of the view. Raises `UserError` for a chunk beyond the end."""
        if (self.index + 1) * self.size > base.train_size:
            raise UserError(f"chunk {self.index} of {self.size} images is beyond the {base.train_size} of {base.name}")
        return base.model_copy(update={"train_size": self.size})

    def apply(self, base: Dataset) -> Halves:
        """Return the chunk and the whole test set."""
        return Halves(_take(base.train, torch.arange(self.index * self.size, (self.index + 1) * self.size)), base.test)


class Classes(ViewParams):
    """The training images of the classes of one step; the test set and the space of labels stay whole."""

    shares_space: ClassVar[bool] = True
    steps: int = param(5, "number of steps; the classes are dealt out evenly", source="DM, CL_DM.py", ge=1)
    step: int = param(0, "which step, from 0", ge=0)
    order: int = param(0, "seed of the order of the classes, as published 0 to 4", source="DM, CL_DM.py", ge=0)

    def chosen(self, classes: int) -> list[int]:
        """Return the classes of this step, ascending. Raises `UserError` where they cannot be dealt out evenly."""
        if classes % self.steps or self.step >= self.steps:
            raise UserError(f"step {self.step} of {self.steps} over {classes} classes", hint="steps must divide them")
        order = np.random.RandomState(self.order).permutation(classes)  # the legacy generator gives published orders
        return sorted(order.reshape(self.steps, -1)[self.step].tolist())

    def info(self, base: DatasetInfo) -> DatasetInfo:
        """Return the facts of the view, its size as if classes were equally large."""
        self.chosen(base.classes)
        return base.model_copy(update={"train_size": base.train_size // self.steps})

    def apply(self, base: Dataset) -> Halves:
        """Return the training images of these classes and the whole test set."""
        wanted = torch.tensor(self.chosen(base.info.classes))
        return Halves(_take(base.train, torch.isin(base.train.labels, wanted).nonzero().squeeze(1)), base.test)


class Half(ViewParams):
    """All training images but a random half of the audited ones; over all runs each is in exactly half of them."""

    shares_space: ClassVar[bool] = True
    runs: int = param(8, "number of runs, even", source="LiRA, arXiv 2112.03570", ge=2, multiple_of=2)
    run: int = param(0, "which run, from 0", ge=0)
    audit: int = param(500, "audited training images", source="arXiv 2502.12976", ge=2)
    mislabelled: bool = param(True, "audited images get a wrong label (canaries)", source="arXiv 2502.12976")
    seed: int = param(0, "of the audited images, their labels, and the halves", ge=0)
    alone: bool = param(False, "leave out all images that are not audited")

    def audited(self, base: Dataset) -> tuple[Tensor, Tensor, Tensor]:
        """Return the audited images' indices [a] and labels [a], and bool [runs, a]: who is in which run."""
        rng, size = np.random.default_rng(self.seed), len(base.train.labels)
        index = torch.from_numpy(np.sort(rng.permutation(size)[: self.audit]))
        ranks = rng.random((self.runs, len(index))).argsort(0).argsort(0)
        labels = base.train.labels[index]
        if self.mislabelled:
            labels = (labels + torch.from_numpy(rng.integers(1, base.info.classes, len(index)))) % base.info.classes
        return index, labels, torch.from_numpy(ranks < self.runs // 2)

    def info(self, base: DatasetInfo) -> DatasetInfo:
        """Return the facts of the view; the size is that of an average run."""
        if self.run >= self.runs or self.audit > base.train_size:
            raise UserError(
                f"run {self.run} of {self.runs} with {self.audit} audited images of {base.train_size} cannot be"
            )
        rest = 0 if self.alone else base.train_size - self.audit
        return base.model_copy(update={"train_size": rest + self.audit // 2})

    def apply(self, base: Dataset) -> Halves:
        """Return the training images of this run and the whole test set."""
        index, labels, member = self.audited(base)
        kept = torch.full((len(base.train.labels),), not self.alone)
        kept[index] = member[self.run]
        changed = base.train.labels.clone()
        changed[index] = labels
        return Halves(_take(replace(base.train, labels=changed), kept.nonzero().squeeze(1)), base.test)


VIEWS: dict[str, type[Any]] = {"rare": Rare, "chunk": Chunk, "classes": Classes, "half": Half}


class Halves(NamedTuple):
    """Training and test images of a view."""

    train: Split[Tensor]
    test: Split[Tensor]


def _take(split: Split[Tensor], index: Tensor) -> Split[Tensor]:
    groups = None if split.groups is None else split.groups[index]
    return Split(split.images[index], split.labels[index], groups)


# ---------------------------------------------------------------------------------------------- names


@dataclass(frozen=True)
class View:
    """A view by name: `base@view(arguments)`."""

    base: str
    kind: str
    arguments: Any

    def info(self, name: str, base: DatasetInfo) -> DatasetInfo:
        """Return the facts of the view: never complete, so that no number is put beside a published one."""
        facts = self.arguments.info(base)
        title = f"{base.title}; view {name.removeprefix(self.base)[1:]}"
        return facts.model_copy(update={"name": name, "title": title, "complete": False, "content": None})

    def fingerprint(self, base: str) -> str:
        """Return the content hash of the view of a base with this content hash."""
        return hashlib.sha256(f"view 1 {base} {self.kind} {self.arguments.model_dump_json()}".encode()).hexdigest()


def parse(name: str) -> View | None:
    """Return the view a name means, None for a plain dataset. Raises `UserError` for what is wrong in it."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    kind = match["view"]
    if kind not in VIEWS:
        raise UserError(f"unknown view {kind!r} in {name!r}", hint=nearest(kind, VIEWS))
    arguments: dict[str, str] = {}
    for part in filter(None, (text.strip() for text in match["arguments"].split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{part!r} in {name!r} is not an argument", hint="write it as name=value")
        arguments[key.strip()] = value.strip()
    known = VIEWS[kind].model_fields
    for key in arguments.keys() - known.keys():
        raise UserError(f"unknown argument {key!r} in {name!r}", hint=nearest(key, known))
    try:
        return View(match["base"], kind, VIEWS[kind].model_validate_strings(arguments))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{first['loc'][0]} in {name!r}: {first['msg']}") from None


def base(name: str) -> str:
    """Return the name of the dataset that a view is one of, however many views there are on each other."""
    view = parse(name)
    return base(view.base) if view else name
