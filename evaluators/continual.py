"""Class-incremental learning from distilled memories: classes come in steps, their images go, their sets stay.

At every step the method distils the images of the new classes alone, without a look at earlier memories, in the space
of all labels. Then networks are trained from scratch on the union of the memories so far (GDumb: nothing is carried
over but the sets) and tested on all classes seen so far, by the largest of all K outputs. Zhao and Bilen (WACV 2023,
CL_DM.py); FRePo and ISA take the same protocol with their own network and recipe, which the suite gives.

The order of the classes is that of the seed: seeds 0 to 4 are the five published orders. Whitened spaces are fitted
on the images of all classes, as FRePo's code does; strictly, that is a look at future classes. Released codes pick the
memory with the best test accuracy; here it is always the last iterate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.api import EvalSpec, Evaluation, Evaluator, Measure, Params, Training, param
from bench.data.views import Classes
from bench.lazy import torch
from evaluators.metrics import correct, diverged, how, per_network, request

if TYPE_CHECKING:
    from torch import Tensor


class ContinualParams(Params):
    """In how many steps the classes come."""

    steps: int = param(5, "steps; the classes are dealt out evenly", source="DM, CL_DM.py: 5 and 10", ge=2)


class Continual(Evaluator):
    """Measure the accuracy on the classes seen after every step, its mean over steps, and forgetting."""

    Params = ContinualParams
    title = "Class-incremental learning"
    citation = "Zhao, Bilen: Dataset Condensation with Distribution Matching, WACV 2023, arXiv 2110.04181"

    @classmethod
    def distillations(cls, params: ContinualParams, spec: EvalSpec) -> Mapping[str, Mapping[str, Any]]:
        """Return the memory of each step. Raises `UserError` where the classes cannot be dealt out evenly."""
        parts = [Classes(steps=params.steps, step=step, order=spec.task.seed) for step in range(params.steps)]
        for part in parts:
            part.chosen(spec.task.dataset.classes)
        view = f"{spec.task.dataset.name}@classes(steps={{0.steps}}, step={{0.step}}, order={{0.order}})"
        return {f"step{part.step}": {"dataset": view.format(part)} for part in parts}

    @classmethod
    def trainings(cls, params: ContinualParams, spec: EvalSpec) -> Sequence[Training]:
        """Return networks for every step, trained on the memories so far."""
        names = [f"step{step}" for step in range(params.steps)]
        return [request(spec, sets=names[: step + 1]) for step in range(params.steps)]

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return the course of the accuracy, its mean and the forgetting, for every network.

        `continual_accuracy` with the number of `classes` seen so far as its tag; `average_accuracy` over the steps;
        `forgetting`: the accuracy on the classes of a step when they were new minus that at the end, mean over all
        steps but the last.
        """
        p, spec = self.params, task.eval_spec
        labels, classes = task.data.test.labels, spec.task.dataset.classes
        requests = self.trainings(p, spec)
        logits = torch.stack([task.trained(training).logits for training in requests])
        step_of = torch.empty(classes, dtype=torch.int64, device=labels.device)
        for step in range(p.steps):
            step_of[Classes(steps=p.steps, step=step, order=spec.task.seed).chosen(classes)] = step
        by_step = step_accuracies(logits, labels, step_of[labels], p.steps)
        counts = torch.bincount(step_of[labels], minlength=p.steps).double()
        lost = torch.stack([diverged(one) for one in logits]).any(0)
        named, tags = how(requests[-1], task), {"steps": p.steps}
        course = seen(by_step, counts)
        measures = []
        for step, values in enumerate(course):
            own = {**tags, "classes": classes // p.steps * (step + 1)}
            measures += per_network("continual_accuracy", values, lost, own, **named)
        measures += per_network("average_accuracy", course.mean(0), lost, tags, **named)
        return measures + per_network("forgetting", forgetting(by_step), lost, tags, **named)


def step_accuracies(logits: Tensor, labels: Tensor, step: Tensor, steps: int) -> Tensor:
    """Return the accuracy [S, S, E] after step i (first) on the test images of the classes of step j (second).

    logits: [S, E, N, K] of the networks after each step; labels, step: int64 [N], the class of each test image and
    the step it comes in.
    """
    right = torch.stack([correct(one, labels) for one in logits]).double()
    return torch.stack([right[:, :, step == j].mean(2) for j in range(steps)], 1)


def seen(by_step: Tensor, counts: Tensor) -> Tensor:
    """Return the accuracy [S, E] after each step on all test images of the classes seen so far.

    by_step: [S, S, E], see `step_accuracies`; counts: [S], test images of the classes of each step.
    """
    known = torch.ones_like(by_step[:, :, 0]).tril() * counts
    return (by_step * known[:, :, None]).sum(1) / known.sum(1)[:, None]


def forgetting(by_step: Tensor) -> Tensor:
    """Return the mean loss of accuracy since a step's classes were new, [E], over all steps but the last."""
    new = by_step.diagonal(dim1=0, dim2=1).T
    return (new - by_step[-1])[:-1].mean(0)
