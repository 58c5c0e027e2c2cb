"""An evaluation task made of given logits: nothing is trained here."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.api import DatasetInfo, Distillation, EvalSpec, NetSpec, TaskSpec, Trained, Training


def dataset(classes: int = 3) -> DatasetInfo:
    return DatasetInfo(
        name="tiny", title="tiny", source="made here", licence="none", classes=classes, shape=(1, 8, 8),
        train_size=20, test_size=9, mean=(0.5,), std=(0.5,), constants_source="made here", flip=False, content=None,
        family="tiny",
    )  # fmt: skip


@dataclass
class FakeEvaluation:
    """Hands out the logits of `networks`, by snapshot."""

    labels: torch.Tensor
    logits: dict[Any, torch.Tensor]
    steps: int = 100
    profile: dict[str, Any] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, torch.Tensor] = field(default_factory=dict)
    classes: int = 3
    floats: dict[str, int] = field(default_factory=dict)
    asked: list[Training] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec = TaskSpec(dataset=dataset(self.classes), ipc=1, network=NetSpec())
        self.data = SimpleNamespace(test=SimpleNamespace(labels=self.labels))
        self.eval_spec = EvalSpec(
            self.spec, "dm", self.steps, network=NetSpec(width=4), recipe=self.recipe, replicates=2
        )
        self.distillation = Distillation(self.profile, [], self.seconds)

    def distilled(self) -> SimpleNamespace:
        return SimpleNamespace(header=SimpleNamespace(floats=self.floats))

    def trained(self, training: Training) -> Trained:
        self.asked.append(training)
        return Trained(training, self.logits[training.snapshot], {}, 1.0, self.curves)


@pytest.fixture
def evaluation() -> type[FakeEvaluation]:
    return FakeEvaluation
