"""TESLA: trajectory matching with the adjoint held fixed, and soft labels from the expert.

Cui, Wang, Si, Hsieh, Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory, ICML 2023 (arXiv
2211.10586). The loop, loss, experts and evaluation of MTT with two changes: the gradient of every student step uses
the derivative of the final loss, as if the student's weights did not depend on earlier steps; and labels may be the
target expert's predictions.

The paper calls the gradient exact. It is exact for one student step; beyond that it is a first-order approximation,
because the weights of step i do depend on the images of the steps before (tested here). The released code multiplies
a tuple by two instead of the gradient in it, so that its image gradient is half of the formula and its published
rates belong to the half: `gradient_scale: 1` is that code, `2` the formula.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from bench.api import DatasetInfo, DistilledSet, Preset, param
from bench.lazy import torch
from methods import mtt

if TYPE_CHECKING:
    from torch import Tensor

    from bench.unroll import Mode

README = "README of justincui03/tesla"
LABELLED_AT_ONCE = 1000
"""Images in one pass of an expert that gives soft labels; bounds memory."""
# dataset, IPC: syn_steps, expert_epochs, max_start_epoch, lr_img, lr_lr, lr_init, batch_syn, zca
ROWS = {
    ("cifar10", 1): (50, 2, 5, 1e3, 1e-7, 1e-2, None, False),
    ("cifar100", 50): (80, 2, 40, 1e3, 1e-5, 1e-2, 125, True),
}


class TESLA(mtt.MTT):
    """MTT with constant-memory approximate gradients and, optionally, soft labels."""

    class Params(mtt.TrajectoryParams):
        """Hyper-parameters of TESLA."""

        iterations: int = param(10000, "outer iterations; one more is run", source="TESLA, released code", ge=0)
        sweep: Literal["identity", "exact"] = param("identity", "identity: TESLA; exact: the gradient of MTT")
        gradient_scale: Literal[1, 2] = param(1, "1: the released code's image gradient; 2: the paper's formula")
        labels: Literal["hard", "soft"] = param("hard", "soft: the target expert's predictions, anew each iteration")

    title = "TESLA: trajectory matching with constant memory"
    citation = "Cui et al., Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory, ICML 2023"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the README's commands; elsewhere MTT's row, without a source."""
        row = ROWS.get((dataset.family, ipc))
        if row:
            return Preset(dict(zip(mtt.FIELDS, row, strict=True)), README)
        return Preset(super().preset(dataset, ipc).params, None)

    def start(self, task: Any) -> None:
        """Start as MTT, with hard labels until the first expert gave soft ones."""
        super().start(task)
        self.soft: Tensor | None = None

    def _mode(self) -> Mode:
        return "identity" if self.params.sweep == "identity" else "recompute"

    def _image_scale(self) -> float:
        return self.params.gradient_scale / 2

    def _labels(self, goal: Tensor) -> Tensor:
        """Return hard labels, or the softmax outputs [n, K] of the expert with weights `goal` on the images."""
        if self.params.labels == "hard":
            return self.set.labels
        with torch.no_grad():
            parts = [self.student(goal, images) for images in self.seen.split(LABELLED_AT_ONCE)]
        self.soft = torch.cat(parts).softmax(1)
        return self.soft

    def export(self) -> DistilledSet:
        """Return images, learned rate, and the labels of the last iteration."""
        if self.soft is None:
            return super().export()
        header = {"learned_rate": self.rate.item(), "label_kind": "probabilities"}
        return self.set.export(self.task, self, labels=self.soft.clone(), header=header)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of MTT and the soft labels."""
        return super().state_dict() | ({} if self.soft is None else {"soft": self.soft})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict(state)
        self.soft = state["soft"].to(self.task.device) if "soft" in state else None
