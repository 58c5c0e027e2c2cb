"""DD: Dataset Distillation, by differentiating through the training of a network.

Wang, Zhu, Torralba, Efros, 2018 (arXiv 1811.10959); with `inner: momentum`, the strengthened form of Deng and
Russakovsky, NeurIPS 2022 (arXiv 2206.02916, without their addressing), which modern comparisons mean by DD.

`inner: schedule` (2018): the set is an ordered list of S batches with m images per class, used E times in that order;
every one of the T = S * E steps has a learned rate. `inner: momentum` (2022): T steps of SGD with momentum at a fixed
rate on batches drawn anew, and an outer loss on real images of all classes.

Where this differs from the code of 2018: gradients come from `bench.unroll` instead of a hand-written sweep (tested
to be equal); the decay of the outer rate is counted in outer steps; IPC other than 10 uses the split `batches` says,
which the authors do not give; CIFAR-10 uses this benchmark's constants and no augmentation of real batches unless
the suite asks for one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from bench.api import DatasetInfo, DistilledSet, Method, Params, Preset, TaskSpec, param
from bench.distilled import make_set
from bench.errors import UserError
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import Task
    from bench.augment import Draw
    from bench.unroll import Batch

CODE = "ssnl/dataset-distillation, base_options.py and README"


class DD(Method):
    """Learn images (and rates, and labels) such that training on them minimises the loss on real data."""

    class Params(Params):
        """Hyper-parameters of both forms."""

        inner: Literal["schedule", "momentum"] = param("schedule", "ordered steps with learned rates, or momentum SGD")
        iterations: int = param(20000, "outer iterations", source=f"400 epochs of CIFAR-10, {CODE}", ge=1)
        batches: int | None = param(None, "S, ordered batches of `schedule`; None: min(IPC, 10)", ge=1)
        epochs: int = param(3, "E, uses of every batch by `schedule`", source=CODE, ge=1)
        steps: int = param(150, "T, steps of `momentum`", source="RememberThePast README", ge=1)
        per_class: int = param(10, "images per class in a step of `momentum`", source="RememberThePast README", ge=1)
        inner_lr: float = param(0.02, "first rate of `schedule`, fixed rate of `momentum`", source=CODE, gt=0)
        inner_momentum: float = param(0.9, "of `momentum`", source="RememberThePast config", ge=0, lt=1)
        labels: Literal["fixed", "learned"] = param("fixed", "learned: logits of the labels are optimised too")
        real_batch: int = param(1024, "real images of the outer loss of `schedule`", source=CODE, ge=1)
        real_per_class: int = param(64, "real images per class of `momentum`", source="RememberThePast runner", ge=1)
        networks: int = param(1, "fresh networks per outer iteration", source=CODE, ge=1)
        outer_lr: float = param(0.01, "Adam for `schedule`, SGD with momentum 0.5 for `momentum`", source=CODE, gt=0)
        decay_every: int = param(1960, "outer steps between halvings of the rate (`schedule`)", source=CODE, ge=1)
        decay: float = param(0.5, "factor of each decay", source=CODE, gt=0, le=1)
        clip: float = param(2.0, "largest norm of the outer gradient of `momentum`", source="RememberThePast", gt=0)
        window: int | None = param(None, "differentiate through the last W steps only", source="ours", ge=1)

    title = "DD: dataset distillation by back-propagation through training"
    citation = "Wang, Zhu, Torralba, Efros, Dataset Distillation, 2018, arXiv 1811.10959"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the authors' settings; they give them for IPC 10 alone."""
        if dataset.family == "mnist":
            return Preset({"inner_lr": 0.02, "decay_every": 2360, "iterations": 23600}, CODE if ipc == 10 else None)
        if dataset.family == "cifar10":
            return Preset({"inner_lr": 0.001}, CODE if ipc == 10 else None)
        return Preset({}, None)

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any]:
        """Return the stored steps at the stored rates; for `momentum` 300 epochs of SGD on the set."""
        if params.inner == "schedule":
            return {"base": "dd"}
        return {"base": "dc", "augment": "none", "schedule": "constant", "weight_decay": 0.0, "batch": 640}

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
        rng = task.rng("init")
        n, pixels = ipc * info.classes, info.shape[0] * info.shape[1] * info.shape[2]
        images = torch.randn((n, *info.shape), generator=rng, device=task.device)
        if not self.scheduled:  # the xavier law of an embedding table [n, pixels]
            images = (torch.rand((n, *info.shape), generator=rng, device=task.device) * 2 - 1) * (
                6 / (pixels + n)
            ) ** 0.5
        self.hard = torch.arange(info.classes, device=task.device).repeat_interleave(ipc)
        dtype = next(task.network().parameters()).dtype
        self.images = images.to(dtype).requires_grad_()
        self.order = self._order(info.classes) if self.scheduled else None
        count = len(self.order) if self.order is not None else p.steps
        raw = (
            torch.full((count,), p.inner_lr, dtype=dtype, device=task.device).expm1().log()
        )  # softplus(raw) = inner_lr
        self.raw_rates = raw.requires_grad_(self.scheduled)
        one_hot = F.one_hot(self.hard, info.classes).to(dtype)
        self.label_logits = (one_hot * 10).requires_grad_(p.labels == "learned")
        self.learned = [t for t in (self.images, self.raw_rates, self.label_logits) if t.requires_grad]
        if self.scheduled:
            self.optimiser: torch.optim.Optimizer = torch.optim.Adam(self.learned, lr=p.outer_lr, betas=(0.5, 0.999))
        else:
            self.optimiser = torch.optim.SGD(self.learned, lr=p.outer_lr, momentum=0.5)
        self.network = task.network().train()
        self.flat = Flat(self.network)
        self.queue = torch.empty(0, dtype=torch.int64, device=task.device)

    def _order(self, classes: int) -> Tensor:
        """Return int64 [T, C*m]: the images of each step; batch s holds images s*m .. s*m + m - 1 of every class."""
        batches = self.params.batches or min(self.ipc, 10)
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
        for _ in range(p.networks):
            with task.phase("network"):
                task.initialise(self.network, task.rng("network"))
            with task.phase("set"):
                rates = F.softplus(self.raw_rates)
                window = min(p.window, len(rates)) if p.window else None
                sweep = differentiate(
                    lambda weights, images, labels: F.cross_entropy(self.flat(weights, images), labels),
                    lambda weights: F.cross_entropy(self.flat(weights, real), target),
                    self.flat.vector(),
                    self._batches(draw),
                    rates,
                    [self.images, self.label_logits] if self.label_logits.requires_grad else [self.images],
                    momentum=0.0 if self.scheduled else p.inner_momentum,
                    mode="window" if window else "recompute",
                    window=window,
                )
                parts = [sweep.leaves[0]]
                if self.scheduled:
                    parts.append(sweep.rates * torch.sigmoid(self.raw_rates.detach()))
                parts += sweep.leaves[1:]
                totals = [total + part / p.networks for total, part in zip(totals, parts, strict=True)]
                loss = loss + sweep.loss / p.networks
        with task.phase("set"):
            self._update(totals)
        return {"loss": loss, "rate": F.softplus(self.raw_rates.detach()).mean()}

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
        """Return the steps of the inner loop as functions of images and labels."""
        index = list(self.order) if self.order is not None else [self._random_batch() for _ in range(self.params.steps)]

        def batch(chosen: Tensor) -> Batch:
            images = self.images[chosen]
            images = self.task.augment.apply(images, draw) if draw is not None else images
            labels = self.label_logits[chosen].softmax(1) if self.label_logits.requires_grad else self.hard[chosen]
            return images, labels

        return [lambda chosen=chosen: batch(chosen) for chosen in index]

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
        if not self.scheduled:
            batch = train.sample_classes(self.params.real_per_class, rng)
            return batch.images, batch.labels
        size = min(self.params.real_batch, train.size)
        if len(self.queue) < size:  # a new pass over the shuffled training set; the short rest is dropped
            self.queue = torch.randperm(train.size, generator=rng, device=rng.device)
        index, self.queue = self.queue[:size], self.queue[size:]
        return train.images(index), train.labels[index]

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
