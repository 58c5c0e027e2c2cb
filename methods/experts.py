"""Expert trajectories: networks trained on real data, their weights kept after every epoch (MTT, section 3.1).

One artifact per dataset x network x preprocessing x seed, shared by MTT, TESLA and every IPC. A row is read only when
a student needs it, so the whole buffer never has to fit in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bench.api import Artifact, Need, Params, param
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from bench.api import Task


class Experts(Artifact):
    """Weights of `experts` networks before training and after each of `epochs` epochs.

    Plain SGD without momentum and decay, so that a student without them can follow. Tensors: `snapshots` float32
    [experts, epochs + 1, P] in the order of `bench.unroll.Flat`, `loss` float32 [experts, epochs].
    """

    title = "expert trajectories"

    class Params(Params):
        """How the experts are trained."""

        experts: int = param(100, "networks", source="MTT, released commands", ge=1)
        epochs: int = param(50, "epochs of each", unit="epochs", source="MTT, released commands", ge=1)
        lr: float = param(0.01, "constant SGD rate", source="MTT, released code", gt=0)
        batch: int = param(256, "batch size", unit="images", source="MTT, released code", ge=1)
        stack: int = param(10, "networks trained at once", ge=1)

    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Train the experts, `stack` at a time; the result does not depend on how many at a time."""
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
        images, labels = task.data.train.images(), task.data.train.labels
        rows, losses = [], []
        for first in range(0, p.experts, p.stack):
            rngs = [task.rng(f"expert/{k}") for k in range(first, min(first + p.stack, p.experts))]
            # the same draws as the training's own: its weights before the first epoch
            _, start, _ = nets.stack(task.spec.network, info.shape, info.classes, list(map(_copy, rngs)), task.device)
            course = [flat(start)]
            handle = train(
                task.spec.network,
                images,
                labels,
                recipe,
                rngs,
                info=info,
                on_epoch=lambda epoch, handle, course=course: course.append(flat(handle.params)),  # type: ignore[misc]
            )
            rows.append(torch.stack(course, 1).cpu())
            losses.append(handle.curves["loss"].float().cpu())
        return {"snapshots": torch.cat(rows), "loss": torch.cat(losses)}


def _copy(rng: Generator) -> Generator:
    twin = torch.Generator(rng.device)
    twin.set_state(rng.get_state())
    return twin


def flat(params: Mapping[str, Tensor]) -> Tensor:
    """Return stacked parameters as one matrix [E, P], a copy."""
    return torch.cat([weight.detach().flatten(1) for weight in params.values()], 1).clone()


def need(experts: int, epochs: int) -> Need:
    """Return the request for a buffer; it does not depend on the IPC."""
    return Need("experts", {"experts": experts, "epochs": epochs}, {"ipc": None})
