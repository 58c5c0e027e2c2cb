"""Test accuracy of networks trained from scratch on the distilled set: the number every paper reports.

The suite's default network is trained `replicates` times with the suite's default recipe; each network gives one
number, after the last epoch. Means and intervals are made from these numbers by the report, never here. What the set
stores is measured beside it, because some methods keep more numbers per image than others.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.api import EvalSpec, Evaluation, Evaluator, Measure, Params, Training
from evaluators.metrics import accuracies, request


class AccuracyParams(Params):
    """No parameters: network, recipe (with its selection rule) and replicates are the suite's."""


class Accuracy(Evaluator):
    """Measure `accuracy` (and `top5_accuracy` for more than ten classes) of every network, and `storage` of the set.

    storage: floats the set stores over those of as many real images with hard labels as its IPC says.
    """

    version = 2
    Params = AccuracyParams
    title = "Test accuracy"
    citation = "Wang, Zhu, Torralba, Efros: Dataset Distillation, 2018"

    @classmethod
    def trainings(cls, params: AccuracyParams, spec: EvalSpec) -> Sequence[Training]:
        """Return the one request: the suite's network and recipe."""
        return (request(spec),)

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return one measure per network, metric and selection rule."""
        (training,) = self.trainings(self.params, task.eval_spec)
        floats = task.distilled().header.floats
        storage = [Measure("storage", floats["stored"] / floats["raw"], "ratio")] if floats.get("raw") else []
        return [*accuracies(task.trained(training), task), *storage]
