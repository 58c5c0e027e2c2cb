"""How sure networks are of what they say."""

from __future__ import annotations

from collections.abc import Sequence

from bench.api import EvalSpec, Evaluation, Evaluator, Measure, Params, Training


class ToyConfidence(Evaluator):
    """Measure the mean of the largest probability on the test images."""

    Params = Params
    title = "confidence"

    @classmethod
    def trainings(cls, params: Params, spec: EvalSpec) -> Sequence[Training]:
        """Return the suite's networks."""
        return [Training(spec.network, spec.recipe, spec.replicates)]

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return one measure for each network."""
        (training,) = self.trainings(self.params, task.eval_spec)
        sure = task.trained(training).logits.softmax(2).amax(2).double().mean(1)
        return [Measure("confidence", value, replicate=e) for e, value in enumerate(sure.tolist())]
