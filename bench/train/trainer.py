"""Trains E networks of one architecture on one small set at the same time.

All E networks live in one set of stacked parameters, so that momentum, weight decay and Adam's moments are updated by
torch.optim once for all of them (these rules act on every number by itself, so the stacked result is that of E
separate optimisers). Forward and backward run either as one `vmap` or network by network; which is faster depends on
the size, see `choose_stack`. Where the training is long they are compiled, see `bench.train.step`. The data stay on
the device and batches are made of indices.

Network e draws its weights, shuffles and augmentations from `rngs[e]` alone. It is therefore the same network
whatever E is and whatever happens to its neighbours: one that diverges leaves the others untouched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

from bench import compiled
from bench.api import DatasetInfo, LabelKind, NetSpec
from bench.errors import Diverged, UserError
from bench.lazy import F, torch
from bench.train import losses, schedule
from bench.train.batches import Batches
from bench.train.recipe import Recipe
from bench.train.step import WITH_BACKWARD, Step, piece_size

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

Stack = Literal["auto", "vmap", "loop"]
POINTS = 200
"""Most points of a training curve; longer trainings are averaged over equal stretches of epochs."""
VMAP_LIMIT = 40_000
"""On a CPU, values of the first feature map of a batch up to which `vmap` wins (see `choose_stack`)."""


@dataclass
class Handle:
    """E trained networks.

    params, buffers: stacked [E, ...]. stack: how they are computed, vmap or loop. epochs: length of the training.
    curves: `epoch` [T] and `loss` [E, T], the mean training loss over the epochs since the point before. compiled:
    whether the steps were, `compiled`, or `plain: ` and why not.
    """

    spec: NetSpec
    module: nn.Module
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    stack: str
    epochs: int = 1
    curves: dict[str, Tensor] = field(default_factory=dict)
    compiled: str = "plain"

    @property
    def size(self) -> int:
        """Return E, the number of networks."""
        return len(next(iter(self.params.values())))

    def network(self, e: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return parameters and buffers of network e, as `bench.nets.call` wants them (views)."""
        return {k: v[e] for k, v in self.params.items()}, {k: v[e] for k, v in self.buffers.items()}

    def finite(self) -> Tensor:
        """Return bool [E]: whether every weight of the network is a finite number."""
        return torch.stack([p.detach().flatten(1).isfinite().all(1) for p in self.params.values()]).all(0)


def choose_stack(stack: Stack, device: torch.device, spec: NetSpec, shape: tuple[int, int, int], batch: int) -> str:
    """Return `vmap` or `loop`. The choice never depends on E, so that results do not either.

    On an accelerator one launch for all networks wins. On a CPU a vmapped convolution becomes a grouped one, which
    saves calls and loses speed within them. Measured on one core, one step of all networks, time vmap / loop:
    ConvNet at 1x8x8, width 32, E=5: 0.67 for batch 10, 0.95 for 50, 1.10 for 100; E=2: 0.94 for batch 10, 1.25 for
    100; at 3x32x32, width 128, E=5: 1.45 for batch 10, 1.96 for 100. At 1x8x8, width 8, batch 100, E=2: ConvNet 1.19,
    AlexNet 1.29, VGG11 1.07, ResNet18 1.00.
    """
    if stack != "auto":
        return stack
    return "vmap" if device.type != "cpu" or batch * (spec.width or 64) * shape[1] * shape[2] <= VMAP_LIMIT else "loop"


def train(
    spec: NetSpec,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    rngs: Sequence[Generator],
    *,
    info: DatasetInfo,
    label_kind: LabelKind = "hard",
    rate: float | None = None,
    outliers: Tensor | None = None,
    outlier_weight: float | None = None,
    steps: Tensor | None = None,
    rates: Tensor | None = None,
    stack: Stack = "auto",
    on_epoch: Callable[[int, Handle], None] | None = None,
) -> Handle:
    """Train len(rngs) networks on one set and return them.

    Args:
        spec: the architecture; open sizes are filled in for the shape of the images.
        images: float [n, c, h, w] on the device, preprocessed; their dtype is that of the computation.
        labels: int64 [n] or float [n, K], see `label_kind`.
        recipe: how to train.
        rngs: one generator per network.
        info: the dataset, for the number of classes and what `augment: dsa` means.
        rate: the learning rate stored with the set, for `lr: learned`.
        outliers: float [m, c, h, w], and outlier_weight: the set's own lambda.
        steps, rates: int64 [T, m] and float [T], for `use_steps`.
        stack: vmap, loop, or auto.
        on_epoch: called with (epochs done, networks) after every epoch; an ordered training counts as one epoch.

    Raises:
        UserError: the set lacks what the recipe asks for.
        Diverged: the weights of all networks became NaN or infinite (one alone only spoils its own results).
    """
    from bench import augment

    recipe = recipe.on(augment.resolve(recipe.augment, info))
    batch = steps.shape[1] if recipe.use_steps and steps is not None else min(recipe.batch, len(images))
    handle = _fresh(spec, recipe, info, rngs, images, stack, batch)
    loss, target = losses.targets(labels, label_kind, recipe.loss, info.classes, recipe.temperature)
    if recipe.cutmix and loss == "ce":  # mixed labels are probabilities
        loss, target = "soft_ce", F.one_hot(target, info.classes).to(images.dtype)
    if target.is_floating_point():
        target = target.to(images.dtype)
    weight = outlier_weight if recipe.outlier_weight == "set" else recipe.outlier_weight
    exposed = outliers if weight and not recipe.use_steps else None
    data = Batches(images, target, exposed, augment.get(recipe.augment), rngs, recipe.cutmix)
    work = _work(handle, recipe, info, batch, data.per_epoch(recipe.batch), steps)
    if (
        stack == "auto"
        and images.device.type == "cpu"
        and not compiled.reason_against(work, images.device, recipe.compile)
    ):
        handle.stack = "loop"
    step = Step(handle, recipe, loss, weight or 0.0, images.device, work)
    if recipe.use_steps:
        _ordered(handle, data, step, recipe, steps, rates, on_epoch)
    else:
        _epochs(handle, data, step, recipe, _base_rate(recipe, rate), on_epoch)
    handle.compiled = step.choice
    for parameter in handle.params.values():
        parameter.requires_grad_(False).grad = None
    return handle


def _work(handle: Handle, recipe: Recipe, info: DatasetInfo, batch: int, per_epoch: int, steps: Tensor | None) -> float:
    """Return the multiply-adds of the whole training of one network; not of all, see `bench.train.step`."""
    from bench import nets

    count = len(steps) if recipe.use_steps and steps is not None else schedule.total_steps(recipe, per_epoch)
    one = nets.multiply_adds(handle.module, info.shape, handle.network(0))
    return float(count * batch * one * WITH_BACKWARD)


def _fresh(
    spec: NetSpec,
    recipe: Recipe,
    info: DatasetInfo,
    rngs: Sequence[Generator],
    images: Tensor,
    stack: Stack,
    batch: int,
) -> Handle:
    """Return untrained networks in the precision and on the device of the images."""
    from bench import nets

    if recipe.init is not None:
        spec = spec.model_copy(update={"init": recipe.init})
    spec = nets.resolve(spec, info.shape)
    module, params, buffers = nets.stack(spec, info.shape, info.classes, rngs, images.device)
    return Handle(
        spec,
        module.train(),
        {k: v.detach().to(images.dtype).requires_grad_() for k, v in params.items()},
        {k: v.detach().to(images.dtype) if v.is_floating_point() else v for k, v in buffers.items()},
        choose_stack(stack, images.device, spec, info.shape, batch),
    )


def predict(handle: Handle, batches: Iterable[Tensor]) -> Tensor:
    """Return the logits of all networks in evaluation mode, float32 [E, N, K], on the device.

    batches: images float [b, c, h, w] in order, preprocessed. A CPU takes them in pieces that its caches hold.
    """
    from bench.nets import call

    training = handle.module.training
    module = handle.module.eval()

    def forward(params: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return call(module, params, buffers, images)[0]

    networks = [handle.network(e) for e in range(handle.size)]
    parts: list[Tensor] = []
    with torch.no_grad():
        for images in _pieces(handle, batches):
            if handle.stack == "vmap" and images.device.type != "cpu":
                logits = torch.vmap(forward, in_dims=(0, 0, None))(handle.params, handle.buffers, images)
            else:
                logits = torch.stack([forward(*network, images) for network in networks])
            parts.append(logits.float())
    module.train(training)
    return torch.cat(parts, 1)


def _pieces(handle: Handle, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    for images in batches:
        if images.device.type == "cpu" and len(images):
            yield from images.split(piece_size(handle.spec, images.shape[2:], len(images)))
        else:
            yield images


# ---------------------------------------------------------------------------------------------- the two loops


def _epochs(
    handle: Handle,
    data: Batches,
    step: Step,
    recipe: Recipe,
    base: float,
    on_epoch: Callable[[int, Handle], None] | None,
) -> None:
    """Train on shuffled batches to the end of the recipe."""
    per_epoch = data.per_epoch(recipe.batch)
    total = schedule.total_steps(recipe, per_epoch)
    reset = schedule.reset_step(recipe, per_epoch)
    epochs = handle.epochs = math.ceil(total / per_epoch)
    every = math.ceil(epochs / POINTS)
    curve, stretch = _Curve(handle), []
    average = _Average(handle, recipe.average) if recipe.average else None
    optimiser, batches = _optimiser(handle, recipe, base), data.batches(islice(data.shuffled(recipe.batch), total))
    for epoch in range(1, epochs + 1):
        for done in range((epoch - 1) * per_epoch, min(epoch * per_epoch, total)):
            if done == reset:
                optimiser = _optimiser(handle, recipe, base)
            optimiser.param_groups[0]["lr"] = base * schedule.factor(recipe, done, per_epoch)
            stretch.append(step(*next(batches)))
            optimiser.step()
        if epoch % every == 0 or epoch == epochs:
            curve.add(epoch, stretch)
            stretch = []
        if average:
            average.add(epoch)
        if on_epoch:
            on_epoch(epoch, average.handle if average else handle)
    curve.close()
    if average:
        handle.params = average.handle.params


def _ordered(
    handle: Handle,
    data: Batches,
    step: Step,
    recipe: Recipe,
    steps: Tensor | None,
    rates: Tensor | None,
    on_epoch: Callable[[int, Handle], None] | None,
) -> None:
    """Run exactly the stored steps at the stored rates (DD)."""
    if steps is None or rates is None:
        raise UserError("the recipe runs the set's own steps, but the set has none", hint="choose another recipe")
    optimiser = _optimiser(handle, recipe, 1.0)
    found = []
    batches = data.batches((index.expand(handle.size, -1), None) for index in steps)
    for batch, rate in zip(batches, rates.tolist(), strict=True):
        optimiser.param_groups[0]["lr"] = rate
        found.append(step(*batch))
        optimiser.step()
    curve = _Curve(handle)
    curve.add(1, found)
    curve.close()
    if on_epoch:
        on_epoch(1, handle)


class _Average:
    """Networks whose weights are the running average of those in training, epoch by epoch; buffers are the last."""

    def __init__(self, training: Handle, decay: float) -> None:
        self.training, self.decay = training, decay
        self.handle = replace(training, params={k: torch.zeros_like(v) for k, v in training.params.items()})

    def add(self, epoch: int) -> None:
        """Take in the weights after this epoch, counted from 1: the mean of all so far, while that is young."""
        share = 1 - min(self.decay, 1 - 1 / epoch)
        for name, average in self.handle.params.items():
            average.lerp_(self.training.params[name].detach(), share)
        self.handle = replace(self.training, params=self.handle.params)


class _Curve:
    """The training curve of the networks, and the check that some of them still are numbers."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.epochs: list[int] = []
        self.losses: list[Tensor] = []

    def add(self, epoch: int, stretch: list[Tensor]) -> None:
        """Append the mean losses since the point before. Raises `Diverged` if all of them are NaN."""
        self.epochs.append(epoch)
        self.losses.append(torch.stack(stretch).mean(0))
        self.handle.curves = {"epoch": torch.tensor(self.epochs), "loss": torch.stack(self.losses, 1)}
        if bool(self.losses[-1].isnan().all()):
            raise self._diverged("loss", epoch)

    def close(self) -> None:
        """Check the weights once more: the last step can have spoilt them. Raises `Diverged`."""
        if not bool(self.handle.finite().any()):
            raise self._diverged("weights", self.epochs[-1])

    def _diverged(self, what: str, epoch: int) -> Diverged:
        return Diverged(f"the {what} of all {self.handle.size} evaluation networks is NaN after epoch {epoch}")


def _optimiser(handle: Handle, recipe: Recipe, base: float) -> torch.optim.Optimizer:
    parameters = list(handle.params.values())
    if recipe.optimiser == "adam":
        return torch.optim.Adam(parameters, base, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, base, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def _base_rate(recipe: Recipe, learned: float | None) -> float:
    if recipe.lr != "learned":
        return recipe.lr
    if learned is None:
        raise UserError("the recipe uses the learned rate, but this set has none", hint="give the recipe a rate: lr")
    if not (math.isfinite(learned) and learned > 0):
        raise UserError(f"the learned rate of this set is {learned}", hint="give the recipe a rate: lr")
    return learned
