"""How a synthetic set is stored: what is learned, and how it becomes images.

One idea: an objective sees images [n, c, h, w], sorted by class, and returns the derivative by these images. What the
optimiser moves is the business of the parametrisation, which carries the derivative back. So every objective
(gradient, distribution, trajectory matching) works on every parametrisation.

    Pixels           the images themselves
    Parametrised     what methods that learn such a set have in common
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from bench.api import Method
from bench.distilled import make_set
from bench.errors import UserError
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import DistilledSet, Task


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
    if min(counts) < per_class:
        raise UserError(
            f"{task.spec.dataset.name} has a class with {min(counts)} images; {per_class} are to be drawn",
            hint="lower `ipc`, or start from noise with `init: noise`",
        )
    return pixels
