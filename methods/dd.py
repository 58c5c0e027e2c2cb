"""DD: Dataset Distillation, by differentiating through the training of a network.

Wang, Zhu, Torralba, Efros, 2018 (arXiv 1811.10959); with `inner: momentum` (the method `DDMomentum`), the strengthened
form of Deng and Russakovsky, NeurIPS 2022 (arXiv 2206.02916, without their addressing), which modern comparisons mean
by DD.

`inner: schedule` (2018): the set is an ordered list of S batches with m images per class, used E times in that order;
every one of the T = S * E steps has a learned rate. `inner: momentum` (2022): T steps of SGD with momentum at a fixed
rate on batches drawn anew, and an outer loss on real images of all classes. With `window` only the last W of them are
differentiated; `window_end: random` ends the loop at a random step (RaT-BPTT: Feng, Vedantam, Kempe, ICLR 2024).

Where this differs from the code of 2018: networks are this benchmark's, in its initialisation, drawn anew in every
outer iteration (its modes with fixed or trained networks, domain adaptation and attacks are not here); gradients come
from `bench.unroll` instead of a hand-written sweep (tested to be equal); the outer rate is halved after so many outer
steps, not by a scheduler that newer torch makes an epoch early; IPC other than 10 uses the split `batches` says, which
the authors do not give; CIFAR-10 has this benchmark's constants, and crops of real images are padded with zeros;
two classes are two outputs. BatchNorm normalises by the batch everywhere, also for the outer loss.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from bench.api import DatasetInfo, DistilledSet, Method, Params, Preset, TaskSpec, param
from bench.distilled import make_set
from bench.errors import UserError
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import Task
    from bench.augment import Draw
    from bench.unroll import Batch
    from bench.unroll_compiled import CompiledStep

CODE = "ssnl/dataset-distillation, base_options.py and README"
MOMENTUM_CODE = "RememberThePast-DatasetDistillation, README, config and runner"


class DD(Method):
    """Learn images (and rates, and labels) such that training on them minimises the loss on real data."""

    class Params(Params):
        """Hyper-parameters of both forms."""

        inner: Literal["schedule", "momentum"] = param("schedule", "ordered steps with learned rates, or momentum SGD")
        iterations: int = param(19600, "outer iterations", source=f"400 epochs of CIFAR-10, {CODE}", ge=1)
        batches: int | None = param(None, "S of `schedule`; None: the largest divisor of the IPC up to 10", ge=1)
        epochs: int = param(3, "E, uses of every batch by `schedule`", source=CODE, ge=1)
        steps: int = param(150, "T, steps of `momentum`", source=MOMENTUM_CODE, ge=1)
        per_class: int = param(10, "images per class in a step of `momentum`", source=MOMENTUM_CODE, ge=1)
        inner_lr: float = param(0.02, "first rate of `schedule`, fixed rate of `momentum`", source=CODE, gt=0)
        inner_momentum: float = param(0.9, "of `momentum`", source=MOMENTUM_CODE, ge=0, lt=1)
        init: Literal["noise", "real"] = param(
            "noise",
            "first images: noise, normal for `schedule` and uniform (xavier) for `momentum`; or training images",
            source="ours: real, for short runs",
        )
        labels: Literal["fixed", "learned"] = param(
            "fixed",
            "learned: logits of the labels, at first 10 for the class, are optimised too",
            source="ours: learned",
        )
        real_batch: int = param(1024, "real images of the outer loss of `schedule`", source=CODE, ge=1)
        real_per_class: int = param(64, "real images per class of `momentum`", source=MOMENTUM_CODE, ge=1)
        real_augment: Literal["none", "crop_flip"] = param("none", "augmentation of real images alone", source=CODE)
        networks: int = param(1, "fresh networks per outer iteration", source=f"{CODE} (its documentation: 4)", ge=1)
        outer_lr: float = param(0.01, "Adam for `schedule`, SGD with momentum 0.5 for `momentum`", source=CODE, gt=0)
        decay_every: int = param(1960, "outer steps between decays of the rate (`schedule`)", source=CODE, ge=1)
        decay: float = param(0.5, "factor of each decay", source=CODE, gt=0, le=1)
        clip: float = param(2.0, "largest norm of the outer gradient of `momentum`", source=MOMENTUM_CODE, gt=0)
        window: int | None = param(None, "W, differentiated steps of `momentum`; None: all", source="RaT-BPTT", ge=1)
        window_end: Literal["last", "random"] = param(
            "last", "random: the loop ends after a random number of steps from W to T", source="RaT-BPTT"
        )

        @model_validator(mode="after")
        def _window(self) -> Any:
            if self.window is not None and self.inner == "schedule":
                raise ValueError("window: would leave the learned rates before it without a gradient; inner: momentum")
            if self.window is not None and self.window > self.steps:
                raise ValueError(f"window: {self.window} is more than the {self.steps} steps")
            if self.window is None and self.window_end == "random":
                raise ValueError("window_end: random needs a window")
            return self

    title = "DD: dataset distillation by back-propagation through training"
    citation = "Wang, Zhu, Torralba, Efros, Dataset Distillation, 2018, arXiv 1811.10959"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the authors' settings; they give them for IPC 10 alone."""
        if dataset.family == "mnist":
            return Preset({"inner_lr": 0.02, "decay_every": 2360, "iterations": 23600}, CODE if ipc == 10 else None)
        if dataset.family == "cifar10":
            return Preset({"inner_lr": 0.001, "real_augment": "crop_flip"}, CODE if ipc == 10 else None)
        return Preset({}, None)

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any]:
        """Return the stored steps at the stored rates; for `momentum` 300 epochs of SGD on the set."""
        if params.inner == "schedule":
            return {"base": "dd"}
        return {
            "base": "review",
            "epochs": 300,
            "batch": 640,
            "weight_decay": 0.0,
            "schedule": "constant",
            "augment": spec.augment,
        }

    @property
    def steps(self) -> int:
        """Return the number of outer iterations."""
        return self.params.iterations

    # -------------------------------------------------------------------------------- start

    def start(self, task: Task) -> None:
        """Draw the first images, set rates and labels, and make the outer optimiser."""
        from bench.unroll import Flat

        p, info, ipc = self.params, task.spec.dataset, task.spec.ipc
        if ipc is None:
            raise UserError("DD needs a number of images per class", hint="set `ipc`")
        self.task, self.ipc, self.count = task, ipc, 0
        self.scheduled = p.inner == "schedule"
        present = task.data.train.present
        self.hard = torch.tensor(present, device=task.device).repeat_interleave(ipc)
        dtype = next(task.network().parameters()).dtype
        self.images = self._first_images().to(dtype).requires_grad_()
        self.order = self._order(len(present)) if self.scheduled else None
        count = len(self.order) if self.order is not None else p.steps
        first = torch.full((count,), p.inner_lr, dtype=dtype, device=task.device)
        raw = first.expm1().log()  # so that softplus(raw) is the first rate
        self.raw_rates = raw.requires_grad_(self.scheduled)
        one_hot = F.one_hot(self.hard, info.classes).to(dtype)
        self.label_logits = (one_hot * 10).requires_grad_(p.labels == "learned")
        self.learned = [t for t in (self.images, self.raw_rates, self.label_logits) if t.requires_grad]
        if self.scheduled:
            self.optimiser: torch.optim.Optimizer = torch.optim.Adam(self.learned, lr=p.outer_lr, betas=(0.5, 0.999))
        else:
            self.optimiser = torch.optim.SGD(self.learned, lr=p.outer_lr, momentum=0.5)
        self.model = task.network().train()
        self.flat = Flat(self.model)
        self.fast, self.graphs = self._compiled_step(), ""
        self.queue = torch.empty(0, dtype=torch.int64, device=task.device)

    def choices(self) -> Mapping[str, Any]:
        """Return what was chosen for speed."""
        known = {"graphs": self.graphs} if self.graphs else {}
        return {"inner loop": self.fast.choice, **known}

    def _compiled_step(self) -> CompiledStep:
        from bench import nets
        from bench.unroll_compiled import CompiledStep

        task, p = self.task, self.params
        images = self.order.numel() if self.order is not None else p.steps * p.per_class * len(self.hard) // self.ipc
        images *= 12 * self.steps * p.networks  # in forward passes: 3 for each step, 9 for its adjoint
        work = images * nets.multiply_adds(self.model, task.spec.dataset.shape)
        soft = self.label_logits.requires_grad
        return CompiledStep(self.flat, exact=True, soft=soft, work=work, device=task.device)

    def _first_images(self) -> Tensor:
        """Return the images to start from, float [n, c, h, w], sorted by class."""
        task, info, rng = self.task, self.task.spec.dataset, self.task.rng("init")
        if self.params.init == "real":
            images, _, counts = task.data.train.sample_classes(self.ipc, rng)
            if min(counts) < self.ipc:
                raise UserError(f"{info.name} has a class with {min(counts)} images only", hint="start from noise")
            return images.clone()
        shape = (len(self.hard), *info.shape)
        if self.scheduled:
            return torch.randn(shape, generator=rng, device=task.device)
        bound = (6 / (len(self.hard) + math.prod(info.shape))) ** 0.5  # xavier, of a table with a row for each image
        return (2 * torch.rand(shape, generator=rng, device=task.device) - 1) * bound

    def _order(self, classes: int) -> Tensor:
        """Return int64 [T, C*m]: the images of each step; batch s holds images s*m .. s*m + m - 1 of every class."""
        batches = self.params.batches or max(s for s in range(1, 11) if self.ipc % s == 0)
        if self.ipc % batches:
            raise UserError(f"{batches} batches do not divide {self.ipc} images per class", hint="change `batches`")
        index = torch.arange(len(self.hard), device=self.hard.device).view(classes, batches, -1)
        return index.transpose(0, 1).flatten(1).repeat(self.params.epochs, 1)

    # -------------------------------------------------------------------------------- one outer iteration

    def step(self) -> dict[str, float | Tensor]:
        """Do one outer iteration: average the derivatives over fresh networks, then update what is learned."""
        from bench.unroll import differentiate

        p, task = self.params, self.task
        totals = [torch.zeros_like(tensor) for tensor in self.learned]
        loss = torch.zeros((), device=task.device)
        with task.phase("data"):
            draw = self._augmentation()
            real, target = self._real()
            real = task.augment.apply(real, draw) if draw is not None else real
            batches = self._batches(draw)
        for _ in range(p.networks):
            with task.phase("network"):
                task.initialise(self.model, task.rng("network"))
            with task.phase("set"):
                sweep = differentiate(
                    self._inner_loss,
                    lambda weights: F.cross_entropy(self.flat(weights, real), target),
                    self.flat.vector(),
                    batches,
                    F.softplus(self.raw_rates[: len(batches)]),
                    [self.images, self.label_logits] if self.label_logits.requires_grad else [self.images],
                    momentum=0.0 if self.scheduled else p.inner_momentum,
                    mode="recompute" if p.window is None else "window",
                    window=p.window,
                    fast=self.fast,
                )
                self.graphs = sweep.graphs
                parts = [sweep.leaves[0]]
                if self.scheduled:
                    parts.append(sweep.rates * torch.sigmoid(self.raw_rates.detach()))
                parts += sweep.leaves[1:]
                totals = [total + part / p.networks for total, part in zip(totals, parts, strict=True)]
                loss = loss + sweep.loss / p.networks
        with task.phase("set"):
            self._update(totals)
        return {"loss": loss, "rate": F.softplus(self.raw_rates.detach()).mean()}

    def _inner_loss(self, weights: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.flat(weights, images), labels)

    def _update(self, gradients: list[Tensor]) -> None:
        p = self.params
        for tensor, gradient in zip(self.learned, gradients, strict=True):
            tensor.grad = gradient
        if self.scheduled:
            self.optimiser.param_groups[0]["lr"] = p.outer_lr * p.decay ** (self.count // p.decay_every)
        else:
            torch.nn.utils.clip_grad_norm_(self.learned, p.clip)
        self.optimiser.step()
        self.count += 1

    def _batches(self, draw: Draw | None) -> list[Callable[[], Batch]]:
        """Return the steps of the inner loop, each a function that makes its images and labels."""
        index = list(self.order) if self.order is not None else [self._random_batch() for _ in range(self._length())]
        return [partial(self._batch, chosen, draw) for chosen in index]

    def _batch(self, chosen: Tensor, draw: Draw | None) -> Batch:
        images = self.images[chosen]
        images = self.task.augment.apply(images, draw) if draw is not None else images
        labels = self.label_logits[chosen].softmax(1) if self.label_logits.requires_grad else self.hard[chosen]
        return images, labels

    def _length(self) -> int:
        """Return the number of steps of this inner loop of `momentum`."""
        p = self.params
        if p.window_end == "last":
            return p.steps
        rng = self.task.rng("length")
        return int(torch.randint(p.window, p.steps + 1, (), generator=rng, device=rng.device))

    def _random_batch(self) -> Tensor:
        """Return `per_class` images of every class, without replacement, sorted by class."""
        rng, classes = self.task.rng("batches"), len(self.hard) // self.ipc
        ranks = torch.rand((classes, self.ipc), generator=rng, device=self.hard.device).argsort(1)
        chosen = ranks[:, : self.params.per_class]
        return (chosen + self.ipc * torch.arange(classes, device=chosen.device)[:, None]).flatten()

    def _augmentation(self) -> Draw | None:
        """Return one draw for all real and synthetic batches of this outer iteration, as the code of 2022 does."""
        if self.task.spec.augment == "none":
            return None
        return self.task.augment.draw((1, *self.images.shape[1:]), self.task.rng("augment"), shared=True)

    def _real(self) -> tuple[Tensor, Tensor]:
        """Return the real images and labels of the outer loss."""
        train, rng = self.task.data.train, self.task.rng("real")
        if self.scheduled:  # passes over the shuffled training set; the last batch of a pass may be short
            if not len(self.queue):
                self.queue = torch.randperm(train.size, generator=rng, device=rng.device)
            size = self.params.real_batch
            index, self.queue = self.queue[:size], self.queue[size:]
            images, labels = train.images(index), train.labels[index]
        else:
            images, labels, _ = train.sample_classes(self.params.real_per_class, rng)
        if self.params.real_augment != "none":
            from bench.augment import get

            images = get(self.params.real_augment)(images, self.task.rng("real augment"))
        return images, labels

    # -------------------------------------------------------------------------------- result and state

    def export(self) -> DistilledSet:
        """Return the images; with their order and rates for `schedule`."""
        learned = self.label_logits.requires_grad
        steps = {"steps": self.order, "rates": F.softplus(self.raw_rates)} if self.order is not None else {}
        return make_set(
            self.task,
            self,
            images=self.images.clone(),
            labels=self.label_logits.softmax(1) if learned else self.hard,
            header={"label_kind": "probabilities" if learned else "hard"},
            **steps,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what is learned, the optimiser, the step count and the rest of the pass over the real data."""
        return {
            "learned": [tensor.detach().clone() for tensor in self.learned],
            "optimiser": copy.deepcopy(self.optimiser.state_dict()),
            "count": self.count,
            "queue": self.queue,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        with torch.no_grad():
            for tensor, value in zip(self.learned, state["learned"], strict=True):
                tensor.copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.count, self.queue = state["count"], state["queue"].to(self.task.device)


class DDMomentum(DD):
    """DD as strengthened by Deng and Russakovsky: momentum in the inner loop, fixed rates, batches drawn anew."""

    class Params(DD.Params):
        """The parameters of `DD` with the defaults of this form."""

        inner: Literal["schedule", "momentum"] = param("momentum", "ordered steps with learned rates, or momentum SGD")
        iterations: int = param(500_000, "outer iterations", source=MOMENTUM_CODE, ge=1)
        inner_lr: float = param(0.01, "rate of the inner steps", source=MOMENTUM_CODE, gt=0)
        outer_lr: float = param(0.1, "rate of the outer SGD with momentum 0.5", source=MOMENTUM_CODE, gt=0)

    title = "DD with momentum in the inner loop"
    citation = "Deng, Russakovsky, Remember the Past, NeurIPS 2022, arXiv 2206.02916 (without addressing)"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the one setting in the authors' README, CIFAR-10 with one image per class; elsewhere the same."""
        return Preset({"steps": 150}, MOMENTUM_CODE if (dataset.family, ipc) == ("cifar10", 1) else None)
