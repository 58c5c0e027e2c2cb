"""Random real images with the outputs of a teacher for labels: what soft labels alone are worth.

The images are those of `random` for the same seed. The teacher is a network trained on all real images (the artifact of
APM, one network by default, of the architecture the set is made for); it looks at each image once, un-augmented, and
its answer is stored. This is the baseline that a set with soft labels has to beat, in DD-Ranking as in the study of
Qin, Deng and Alvarez-Melis ("A Label is Worth a Thousand Images in Dataset Distillation", NeurIPS 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from bench.api import DistilledSet, Need, Task, TaskSpec, param
from bench.distilled import make_set
from bench.lazy import torch
from methods.random import Random
from methods.teachers import CODE, need, predict, read


class RandomSoft(Random):
    """IPC random images of every class, labelled by a teacher."""

    class Params(Random.Params):
        """Kind of the labels, and the training of the teachers."""

        labels: Literal["probabilities", "logits", "centred"] = param(
            "probabilities", "softmax of the outputs, the outputs, or softmax minus 1/K; mean over the teachers"
        )
        temperature: float = param(1.0, "of the softmax", gt=0)
        teachers: int = param(1, "teacher networks", source="DD-Ranking, configurations", ge=1)
        train_epochs: int = param(100, "epochs of each teacher", unit="epochs", source=CODE, ge=1)
        train_lr: float = param(0.05, "rate of the teachers, a tenth in the second half", source=CODE, gt=0)
        train_batch: int = param(256, "batch of the teachers", unit="images", source=CODE, ge=1)
        train_images: int | None = param(None, "real images per class of the teachers; None: all", source="ours", ge=1)

    title = "Random with a teacher's labels"
    citation = "uniform selection without replacement; Qin et al., NeurIPS 2024"

    @classmethod
    def needs(cls, params: Any, spec: TaskSpec) -> Mapping[str, Need]:
        """Return the teachers."""
        p = params
        return {"teachers": need(p.teachers, p.train_epochs, p.train_lr, p.train_batch, p.train_images)}

    def start(self, task: Task) -> None:
        """Choose the images and label them."""
        super().start(task)
        with task.phase("set"):
            images = task.data.train.images(self.indices)
            found = [predict(read(task, k), images) for k in range(self.params.teachers)]
            outputs = torch.stack(found)
            soft = (outputs / self.params.temperature).softmax(2).mean(0)
            self.soft = {
                "probabilities": soft, "logits": outputs.mean(0), "centred": soft - 1 / soft.shape[1]
            }[self.params.labels]  # fmt: skip

    def export(self) -> DistilledSet:
        """Return the chosen images with their labels."""
        return make_set(
            self.task,
            self,
            images=self.task.data.train.images(self.indices),
            labels=self.soft,
            indices=self.indices,
            header={"label_kind": self.params.labels},
        )
