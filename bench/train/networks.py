"""The artifact behind every accuracy: networks trained on a distilled set, kept as their logits on the test set.

Equal requests of several evaluators are one cell. What is kept is raw (logits, curves, on request weights), so that a
new metric needs no new training. The last epoch is what counts; where a recipe asks for best-val or best-test, the
accuracies of evenly spaced epochs are kept beside it and the evaluator labels what it picks from them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, Strict

from bench.api import Artifact, NetSpec, Params, Task, param
from bench.errors import UserError
from bench.lazy import torch
from bench.train import rates
from bench.train.recipe import Recipe, resolve
from bench.train.trainer import Handle, choose_stack, predict, train

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from bench.api import DatasetInfo, DistilledSet, Trained
    from bench.data import Prepared

TEST_BATCH = 1000
VALIDATION_SHARE = 0.1


class NetworksParams(Params):
    """The fields of a `bench.api.Training`."""

    network: NetSpec = Field(description="architecture to train")
    recipe: dict[str, Any] = param({}, "how to train: fields of bench.train.recipe.Recipe; those left out of `review`")
    replicates: int = param(5, "networks trained at once", ge=1)
    snapshot: int | None = param(None, "outer step of the intermediate set; None: the final one", unit="steps")
    weights: bool = param(False, "keep the weights as well")
    rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Strict(False)] = param(
        (), "learning rates to try in place of the recipe's, see bench.train.rates"
    )


class Networks(Artifact):
    """Train `replicates` networks on the distilled set and keep their logits.

    Tensors: `logits` float32 [E, N, K] on the test set after the last epoch; `seconds` [] of training; `stacked` []
    whether they were computed by vmap; `curve/epoch` [T] and `curve/loss` [E, T]; for best-val and best-test
    `curve/selection_epoch` [S], `curve/test_accuracy` [E, S] and (best-val) `curve/val_accuracy` [E, S]; on request
    `weights/<parameter or buffer>` [E, ...]; where rates were tried `curve/rate` [E], that of each network, and
    `curve/rate_score` [E, R], what it was chosen by.
    """

    Params = NetworksParams
    title = "Networks trained on a distilled set"

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self._chosen: dict[str, str] = {}

    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Train and test. Raises `UserError` if set and task do not fit, `Diverged` if no network is finite."""
        from bench.distilled import decode

        recipe, distilled = resolve(self.params.recipe), task.distilled()
        refuse_mismatch(distilled, task)
        images = decode(distilled, task.data).to(task.device)
        if not self.params.rates:
            return self._trained(task, distilled, images, recipe)[1]
        if recipe.use_steps:
            raise UserError("the set's own steps have rates of their own: none can be chosen", hint="another recipe")
        index = rates.held_out(task, distilled) if recipe.select == "last" else None

        def attempt(rate: float) -> tuple[Tensor, dict[str, Tensor]]:
            handle, found = self._trained(task, distilled, images, recipe.model_copy(update={"lr": rate}))
            if index is not None:
                score = rates.accuracy_on(handle, task.data.train, index)
            else:
                looked = "val_accuracy" if recipe.select == "best-val" else "test_accuracy"
                score = found[f"curve/{looked}"].double().amax(1)
            return torch.where(handle.finite(), score, rates.LOST), found

        used = ["validation", *range(self.params.replicates)]
        return rates.choose(self.params.rates, [task.rng(f"evaluation/{name}") for name in used], attempt)

    def choices(self) -> Mapping[str, Any]:
        """Return how the networks were computed: one after the other or by vmap, compiled or plain."""
        return self._chosen

    def _trained(
        self, task: Task, distilled: DistilledSet, images: Tensor, recipe: Recipe
    ) -> tuple[Handle, dict[str, Tensor]]:
        """Return networks trained on a set, and what is kept of them."""
        data, header = task.data, distilled.header
        watch = Watch(recipe, data, task.rng("evaluation/validation")) if recipe.select != "last" else None
        begin = _now(task.device)
        handle = train(
            self.params.network,
            images,
            distilled.labels.to(task.device),
            recipe,
            [task.rng(f"evaluation/{e}") for e in range(self.params.replicates)],
            info=task.spec.dataset,
            label_kind=header.label_kind,
            rate=header.learned_rate,
            outliers=distilled.outliers,
            outlier_weight=header.outlier_weight,
            steps=distilled.steps,
            rates=distilled.rates,
            on_epoch=watch,
        )
        seconds = _now(task.device) - begin - (watch.seconds if watch else 0.0)
        tensors = {
            "logits": predict(handle, data.test.batches(TEST_BATCH)),
            "seconds": torch.tensor(seconds, dtype=torch.float64),
            "stacked": torch.tensor(handle.stack == "vmap"),
        }
        self._chosen = {"stack": handle.stack, "step": handle.compiled}
        curves = {**handle.curves, **(watch.curves() if watch else {})}
        tensors |= {f"curve/{name}": curve for name, curve in curves.items()}
        if self.params.weights:
            tensors |= {f"weights/{name}": tensor for name, tensor in {**handle.params, **handle.buffers}.items()}
        return handle, tensors


def restore(trained: Trained, info: DatasetInfo) -> Handle:
    """Return the networks of a request that kept its weights, ready for `predict`.

    Raises `ValueError` where the request did not keep them.
    """
    from bench import nets

    if not trained.weights:
        raise ValueError("this request kept no weights")
    spec, device = nets.resolve(trained.training.network, info.shape), trained.logits.device
    module = nets.build(spec, info.shape, info.classes, device)
    params, buffers = (
        {name: trained.weights[name] for name, _ in named}
        for named in (module.named_parameters(), module.named_buffers())
    )
    return Handle(spec, module, params, buffers, choose_stack("auto", device, spec, info.shape, 1))


class Watch:
    """Looks at the networks after evenly spaced epochs, for best-val and best-test.

    The validation images of best-val are a tenth of the real training images, drawn once. The distillation may have
    seen them, the test set has no part in the choice. seconds: time spent here, which is not training.
    """

    def __init__(self, recipe: Recipe, data: Prepared, rng: Generator) -> None:
        self.evaluations, self.data = recipe.evaluations, data
        self.seconds = 0.0
        self.epochs: list[int] = []
        self.found: dict[str, list[Tensor]] = {"test_accuracy": []}
        self.held_out: Tensor | None = None
        if recipe.select == "best-val":
            size = max(1, round(data.train.size * VALIDATION_SHARE))
            order = torch.randperm(data.train.size, generator=rng, device=rng.device)
            self.held_out, self.found["val_accuracy"] = order[:size].to(data.device), []

    def __call__(self, epoch: int, handle: Handle) -> None:
        """Measure if this is one of the epochs to look at; the last one always is."""
        # of T epochs, number k of the S looks is after epoch ceil(k T / S)
        if epoch * self.evaluations % handle.epochs >= self.evaluations:
            return
        begin = _now(self.data.device)
        self.epochs.append(epoch)
        test, train_part = self.data.test, self.data.train
        self._add("test_accuracy", handle, test.batches(TEST_BATCH), test.labels)
        if self.held_out is not None:
            batches = (train_part.images(index) for index in self.held_out.split(TEST_BATCH))
            self._add("val_accuracy", handle, batches, train_part.labels[self.held_out])
        self.seconds += _now(self.data.device) - begin

    def curves(self) -> dict[str, Tensor]:
        """Return `selection_epoch` [S] and the accuracies [E, S]."""
        stacked = {name: torch.stack(values, 1) for name, values in self.found.items()}
        return {"selection_epoch": torch.tensor(self.epochs), **stacked}

    def _add(self, name: str, handle: Handle, batches: Iterable[Tensor], labels: Tensor) -> None:
        right = predict(handle, batches).argmax(2) == labels
        self.found[name].append(right.float().mean(1))


def refuse_mismatch(distilled: DistilledSet, task: Task) -> None:
    """Raise `UserError` if the set was not made for this task's data: other classes, shape or preprocessing."""
    header, info = distilled.header, task.spec.dataset
    pairs = (
        ("preprocessing", header.preprocessing, task.spec.preprocessing),
        ("shape", tuple(header.shape), tuple(info.shape)),
        ("number of classes", header.classes, info.classes),
    )
    for what, theirs, ours in pairs:
        if theirs != ours:
            raise UserError(
                f"the {what} of this set is {theirs}, that of the task {ours}",
                where=f"set of {header.method} on {header.dataset}",
                hint="evaluate it in the space it was made in",
            )


def _now(device: torch.device) -> float:
    """Return the wall clock after the device has finished what it was given, in seconds."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
