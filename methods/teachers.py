"""Teachers: networks trained to convergence on real data, whose predictions students imitate (APM, section 3.1).

One artifact per dataset x network x preprocessing x augmentation, shared by every IPC and every seed. A teacher is what
its training ended with, where the authors keep the epoch that is best on the test set. One teacher is read at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import bench.api
from bench.api import Artifact, Need, param
from bench.lazy import torch
from methods import experts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.api import Task
    from bench.train.trainer import Handle

CODE = "mchen725/DD_APM, model_train/train.py and README"


class Teachers(Artifact):
    """Weights of `teachers` converged networks.

    Tensors: `state/<parameter or buffer>` [teachers, ...]; `loss` float32 [teachers, T], the training loss over the
    epochs (at most 200 points).
    """

    title = "teachers"

    class Params(bench.api.Params):
        """How the teachers are trained: momentum 0.9, decay 5e-4, a tenth of the rate after half the epochs."""

        teachers: int = param(100, "networks", source=CODE, ge=1)
        epochs: int = param(100, "epochs of each", unit="epochs", source=CODE, ge=1)
        lr: float = param(0.05, "SGD rate, a tenth in the second half", source=CODE, gt=0)
        batch: int = param(256, "batch size", unit="images", source=CODE, ge=1)
        images: int | None = param(None, "real images per class, drawn once; None: all", source="ours: fewer", ge=1)

    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Train the teachers, some at a time, on augmented real images."""
        from bench.train import train
        from bench.train.recipe import Recipe

        p = self.params
        recipe = Recipe(lr=p.lr, epochs=p.epochs, batch=p.batch, schedule="step", augment=task.spec.augment)
        images, labels = experts.training_images(task, p.images, "teacher images")
        states, losses = [], []
        for part, rngs in experts.together(task, p.teachers, "teacher"):

            def tell(epoch: int, handle: Handle, before: int = part.start) -> None:
                done = before * p.epochs + epoch * handle.size
                task.report(done, p.teachers * p.epochs, "epochs of teachers")

            info = task.spec.dataset
            handle = train(task.spec.network, images, labels, recipe, rngs, info=info, on_epoch=tell)
            states.append({**handle.params, **handle.buffers})
            losses.append(handle.curves["loss"].float())
        stacked = {f"state/{name}": torch.cat([state[name] for state in states]) for name in states[0]}
        return {**stacked, "loss": torch.cat(losses)}


def need(teachers: int, epochs: int, lr: float, batch: int, images: int | None) -> Need:
    """Return the request for a pool of teachers; it depends on neither the IPC nor the seed of the asking task."""
    params = {"teachers": teachers, "epochs": epochs, "lr": lr, "batch": batch, "images": images}
    return Need("teachers", params, {"ipc": None, "seed": 0})


def read(task: Task, number: int) -> nn.Module:
    """Return one teacher of the artifact `teachers`, ready to predict."""
    network = task.network().requires_grad_(False).eval()
    rows = {name: task.artifact_slice("teachers", f"state/{name}")[number] for name in network.state_dict()}
    network.load_state_dict(rows)
    return network


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Return logits without a graph, [n, C], a thousand images at a time."""
    with torch.no_grad():
        return torch.cat([network(part) for part in images.split(1000)])
