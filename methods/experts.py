"""Expert trajectories: networks trained on real data, their weights kept after every epoch (MTT, section 3.1).

One artifact per dataset x network x preprocessing x augmentation, shared by MTT, TESLA, every IPC and every seed, as
the authors share their buffer. A row is read only when a student needs it, so that distilling never has the whole
buffer in memory; training the experts does, once: experts x (epochs + 1) x P x 4 bytes, 6.5 GB for the authors' 100
experts of CIFAR-10. A student reads the first `max_start_epoch + expert_epochs` snapshots alone, and these do not
depend on how long the experts are trained after them: a smaller `epochs` saves time and space at the same results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import bench.api
from bench.api import Artifact, Need, param
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from bench.api import Task
    from bench.train.trainer import Handle

TOGETHER = 10
"""Networks trained at once. Each has its own generator, so this changes no result beyond rounding."""


class Experts(Artifact):
    """Weights of `experts` networks before training and after each of `epochs` epochs.

    Plain SGD without momentum and decay, so that a student without them can follow. Tensors: `snapshots` float32
    [experts, epochs + 1, P] in the order of `bench.unroll.Flat`, without the running statistics of BatchNorm; `loss`
    float32 [experts, T], the training loss over the epochs (at most 200 points).
    """

    title = "expert trajectories"

    class Params(bench.api.Params):
        """How the experts are trained."""

        experts: int = param(100, "networks", source="MTT, released commands", ge=1)
        epochs: int = param(50, "epochs of each", unit="epochs", source="MTT, released commands", ge=1)
        lr: float = param(0.01, "constant SGD rate", source="MTT, released code", gt=0)
        batch: int = param(256, "batch size", unit="images", source="MTT, released code", ge=1)
        images: int | None = param(None, "real images per class, drawn once; None: all", source="ours: fewer", ge=1)

    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Train the experts, `TOGETHER` at a time, on augmented real images."""
        from bench import nets
        from bench.train import train
        from bench.train.recipe import Recipe

        p, info = self.params, task.spec.dataset
        recipe = Recipe(
            lr=p.lr,
            momentum=0.0,
            weight_decay=0.0,
            epochs=p.epochs,
            batch=p.batch,
            schedule="constant",
            augment=task.spec.augment,
        )
        images, labels = training_images(task, p.images, "expert images")
        exposure = self.exposure(task, len(images))
        size = nets.parameter_count(task.spec.network, info.shape, info.classes)
        snapshots = torch.empty(p.experts, p.epochs + 1, size)  # filled in place: the buffer is the largest thing here
        losses = []
        for part, rngs in together(task, p.experts, "expert"):
            rows = snapshots[part]
            # the same draws as the training's own: its weights before the first epoch
            _, start, _ = nets.stack(task.spec.network, info.shape, info.classes, list(map(_copy, rngs)), task.device)
            rows[:, 0] = flat(start)

            def keep(epoch: int, handle: Handle, rows: Tensor = rows, before: int = part.start) -> None:
                rows[:, epoch] = flat(handle.params)
                task.report(before * p.epochs + epoch * len(rows), p.experts * p.epochs, "epochs of experts")

            handle = train(task.spec.network, images, labels, recipe, rngs, info=info, on_epoch=keep, **exposure)
            losses.append(handle.curves["loss"].float().cpu())
        return {"snapshots": snapshots, "loss": torch.cat(losses)}

    def exposure(self, task: Task, size: int) -> dict[str, Any]:
        """Return what else the training of `size` images is given: nothing here."""
        return {}


def training_images(task: Task, per_class: int | None, stream: str) -> tuple[Tensor, Tensor]:
    """Return real images and their labels: all of them, or `per_class` of each class drawn from `stream`."""
    real = task.data.train
    if per_class is None:
        return real.images(), real.labels
    batch = real.sample_classes(per_class, task.rng(stream))
    return batch.images, batch.labels


def together(task: Task, count: int, stream: str) -> Iterator[tuple[slice, list[Generator]]]:
    """Yield which of `count` networks are trained at once, and their generators."""
    for start in range(0, count, TOGETHER):
        part = range(start, min(start + TOGETHER, count))
        yield slice(part.start, part.stop), [task.rng(f"{stream}/{number}") for number in part]


def _copy(rng: Generator) -> Generator:
    twin = torch.Generator(rng.device)
    twin.set_state(rng.get_state())
    return twin


def flat(params: Mapping[str, Tensor]) -> Tensor:
    """Return stacked parameters [E, ...] as one matrix [E, P]; it shares no memory with them."""
    return torch.cat([weight.detach().flatten(1) for weight in params.values()], 1)


def need(experts: int, epochs: int, lr: float, batch: int, images: int | None) -> Need:
    """Return the request for a buffer; it depends on neither the IPC nor the seed of the asking task."""
    params = {"experts": experts, "epochs": epochs, "lr": lr, "batch": batch, "images": images}
    return Need("experts", params, {"ipc": None, "seed": 0})
