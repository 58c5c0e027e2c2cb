"""How a synthetic set is stored: what is learned, and how it becomes images.

One idea: an objective sees images [n, c, h, w], sorted by class, and returns the derivative by these images. What the
optimiser moves is the business of the parametrisation, which carries the derivative back. So every objective
(gradient, distribution, trajectory matching) works on every parametrisation.

    Pixels            the images themselves
    MultiFormation    small images, a grid of them in every stored one (Kim et al., IDC, ICML 2022)
    Parametrised      what methods that learn such a set have in common
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from bench.api import Method
from bench.data import preprocess
from bench.distilled import make_set
from bench.errors import UserError
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import DistilledSet, Task
    from bench.data import Prepared


class Parametrisation(ABC):
    """A synthetic set with hard labels and one optimiser for the whole run.

    labels: int64 [n] of the images that `images` returns, sorted by class; counts: how many each class has. learned:
    the tensors that the optimiser moves, by name.
    """

    labels: Tensor
    counts: tuple[int, ...]
    learned: dict[str, Tensor]
    optimiser: torch.optim.Optimizer

    @abstractmethod
    def images(self) -> Tensor:
        """Return the images [n, c, h, w], in the task's space, as a differentiable function of what is learned."""

    @abstractmethod
    def export(self, task: Task, method: Method, **fields: Any) -> DistilledSet:
        """Return the set as it stands now. fields: `labels` in place of the hard ones, `header`, see `make_set`."""

    def update(self, images: Tensor, derivative: Tensor) -> None:
        """Do one step of the optimiser, given the derivative of the loss by `images`, a function of `self.images()`."""
        self.optimiser.zero_grad()
        images.backward(derivative)
        self.optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what is learned, and the optimiser."""
        learned = {name: tensor.detach().clone() for name, tensor in self.learned.items()}
        return {**learned, "optimiser": copy.deepcopy(self.optimiser.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        with torch.no_grad():
            for name, tensor in self.learned.items():
                tensor.copy_(state[name])
        self.optimiser.load_state_dict(state["optimiser"])


class Pixels(Parametrisation):
    """Synthetic images stored as pixels, the same number of each class.

    init: `noise` draws standard normal values in the preprocessed space, `real` takes training images. The values are
    never clipped. Raises `UserError` where the task has no budget or a class has too few images to start from.
    """

    def __init__(self, task: Task, *, init: Literal["noise", "real"], rate: float, momentum: float) -> None:
        info, per_class = task.spec.dataset, budget(task)
        rng = task.rng("init")
        present = task.data.train.present
        self.labels = torch.tensor(present, device=task.device).repeat_interleave(per_class)
        self.counts = (per_class,) * len(present)
        if init == "real":
            pixels = real_images(task, per_class, rng)
        else:
            pixels = torch.randn((len(self.labels), *info.shape), generator=rng, device=task.device)
        self.pixels = pixels.clone().requires_grad_()
        self.learned = {"pixels": self.pixels}
        self.optimiser = torch.optim.SGD([self.pixels], lr=rate, momentum=momentum)

    def images(self) -> Tensor:
        """Return what is learned."""
        return self.pixels

    def export(self, task: Task, method: Method, **fields: Any) -> DistilledSet:
        """Return the set as it stands now."""
        return make_set(task, method, **{"images": self.pixels.clone(), "labels": self.labels, **fields})


# ------------------------------------------------------------------------------------------------ multi-formation


class MultiFormation(Parametrisation):
    """Stored images of which each cell of a `factor` x `factor` grid is an image of its own, enlarged to full size.

    Stored are pixels in [0, 1]; `images` preprocesses them. Nothing but `clamp` keeps them there, which a method calls
    when it likes. init: `mix` puts another training image, shrunk, into every cell; `random` takes whole training
    images; `noise` draws grey with a deviation of 1/4. choose: those training images are drawn, or the `first` of each
    class in the order of the data. Factor 1 stores whole images, and `mix` is `random`.
    """

    def __init__(
        self,
        task: Task,
        *,
        factor: int,
        rate: float,
        momentum: float,
        init: Literal["mix", "random", "noise"] = "mix",
        choose: Literal["drawn", "first"] = "drawn",
    ) -> None:
        info, per_class, self.factor = task.spec.dataset, budget(task), factor
        present = task.data.train.present
        stored = torch.tensor(present, device=task.device).repeat_interleave(per_class)
        decoded = stored.repeat(factor**2)
        self.order = decoded.argsort(stable=True)  # the decoder goes cell by cell, here classes stay together
        self.labels = decoded[self.order]
        self.counts = (per_class * factor**2,) * len(present)
        self.forward = task.data.forward
        if init == "noise":
            noise = torch.randn((len(stored), *info.shape), generator=task.rng("init"), device=task.device)
            pixels = (noise / 4 + 0.5).clamp(0, 1)
        else:
            cells = factor if init == "mix" else 1
            real = [_real_pixels(task, c, per_class * cells**2, choose) for c in present]
            pixels = torch.cat([compose(images, cells) for images in real])
        self.pixels = pixels.clone().requires_grad_()
        self.learned = {"pixels": self.pixels}
        self.optimiser = torch.optim.SGD([self.pixels], lr=rate, momentum=momentum)

    def images(self) -> Tensor:
        """Return the decoded images, sorted by class, within a class cell by cell."""
        return self.forward(decode_cells(self.pixels, self.factor))[self.order]

    def clamp(self) -> None:
        """Bring all pixels back to [0, 1]."""
        with torch.no_grad():
            self.pixels.clamp_(0, 1)

    def export(self, task: Task, method: Method, **fields: Any) -> DistilledSet:
        """Return the set as it stands now: fewer stored images than labels, one label for each decoded image."""
        header = {"decoder": {"name": "multi_formation", "factor": self.factor}, **fields.pop("header", {})}
        labels = fields.pop("labels", self.labels)[self.order.argsort()]
        return make_set(task, method, images=self.pixels.clone(), labels=labels, header=header, **fields)


def decode_multi_formation(distilled: DistilledSet, prepared: Prepared | None = None) -> Tensor:
    """Return the images of the cells, preprocessed: the decoder of what `MultiFormation` stores.

    Raises `UserError` where stored images, labels and factor do not fit together.
    """
    header, stored, where = distilled.header, distilled.images, f"set of {distilled.header.method}"
    factor = header.decoder.get("factor")
    if type(factor) is not int or factor < 1:
        raise UserError(f"the factor of its decoder is {factor!r}, not a whole number from 1", where=where)
    expected = (len(distilled.labels) // factor**2, *header.shape)
    if stored is None or tuple(stored.shape) != expected or len(distilled.labels) % factor**2:
        found = "no images" if stored is None else f"images of shape {tuple(stored.shape)}"
        raise UserError(f"stores {found}, not {expected} for {len(distilled.labels)} labels", where=where)
    transform = preprocess.from_tensors(header.preprocessing, header.shape, distilled.extra).to(stored.device)
    return transform.forward(decode_cells(stored, factor))


def decode_cells(stored: Tensor, factor: int) -> Tensor:
    """Cut images [n, c, h, w] into factor x factor cells and enlarge each: [n factor^2, c, h, w], cell by cell.

    Cells are taken row by row, of all images one and the same, then the next. Sides that the factor does not divide are
    first padded with grey, 0.5, below and on the right.
    """
    if factor == 1:
        return stored
    height, width = stored.shape[2:]
    padded = F.pad(stored, (0, -width % factor, 0, -height % factor), value=0.5)
    tall, wide = padded.shape[2] // factor, padded.shape[3] // factor
    cells = padded.unfold(2, tall, tall).unfold(3, wide, wide)  # [n, c, row, column, tall, wide]
    cells = cells.permute(2, 3, 0, 1, 4, 5).flatten(0, 2)
    return F.interpolate(cells, (height, width), mode="bilinear", align_corners=False)


def compose(images: Tensor, factor: int) -> Tensor:
    """Put images [n factor^2, c, h, w], cell by cell, into the cells of n images, shrunk to the nearest pixels.

    Where the factor does not divide a side, the first cells are a pixel larger: the grid of the released code, which
    `decode_cells` then does not cut exactly.
    """
    rows = []
    for line in images.split(len(images) // factor):
        tall = _sides(images.shape[2], factor)[len(rows)]
        blocks = line.split(len(line) // factor)
        sides = _sides(images.shape[3], factor)
        cells = [F.interpolate(block, (tall, wide)) for block, wide in zip(blocks, sides, strict=True)]
        rows.append(torch.cat(cells, 3))
    return torch.cat(rows, 2)


def _sides(side: int, factor: int) -> list[int]:
    """Return the sides of the cells along an axis, which make up the whole side."""
    return [side // factor + (cell < side % factor) for cell in range(factor)]


def _real_pixels(task: Task, c: int, count: int, choose: Literal["drawn", "first"]) -> Tensor:
    """Return `count` different training images of a class as pixels in [0, 1]. `UserError` where it has too few."""
    train = task.data.train
    index = train.class_index(c)[:count] if choose == "first" else train.draw_class(c, count, task.rng("init"))
    check_enough(task, len(index), count)
    return train.pixels(index)


# ------------------------------------------------------------------------------------------------ methods


class Parametrised(Method):
    """A method that learns a parametrised set in K+1 outer iterations and keeps nothing else between them.

    Its `Params` have `iterations` (K; counted from 0, as the released codes do), `init`, `lr_img` and `momentum`.
    """

    set: Parametrisation

    @property
    def steps(self) -> int:
        """Return K+1."""
        return self.params.iterations + 1

    def parametrise(self, task: Task) -> Parametrisation:
        """Return the set to learn."""
        p = self.params
        return Pixels(task, init=p.init, rate=p.lr_img, momentum=p.momentum)

    def export(self) -> DistilledSet:
        """Return the images as they stand now."""
        return self.set.export(self.task, self)

    def state_dict(self) -> dict[str, Any]:
        """Return what is learned, and its optimiser."""
        return {"set": self.set.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, after `start`."""
        self.set.load_state_dict(state["set"])


def budget(task: Task) -> int:
    """Return the images per class. Raises `UserError` where the suite sets none."""
    if task.spec.ipc is None:
        raise UserError("this method needs a number of images per class", hint="set `ipc`")
    return task.spec.ipc


def real_images(task: Task, per_class: int, rng: torch.Generator) -> Tensor:
    """Return `per_class` different training images of each class, sorted by class, in the task's space.

    Raises `UserError` where a class has too few.
    """
    pixels, _, counts = task.data.train.sample_classes(per_class, rng)
    check_enough(task, min(counts), per_class)
    return pixels


def check_enough(task: Task, found: int, wanted: int) -> None:
    """Raise `UserError` where a class has fewer images than a set is to start from."""
    if found < wanted:
        raise UserError(
            f"{task.spec.dataset.name} has a class with {found} images; {wanted} are to be drawn",
            hint="lower `ipc`, or start from noise with `init: noise`",
        )
