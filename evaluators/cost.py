"""What the distillation cost, and how soon it was good enough.

Seconds per outer step, whole and split (`set`: the update of the set alone), as in the cost study of Yu, Liu and Wang
(TPAMI 2024); total seconds; peak memory above that of the idle process; and the seconds until the set reached a
fraction of its final accuracy. For the last, sets kept at a few outer steps are evaluated like the final one, which
costs one training each.

The study measures with full batches. Batches are parameters of the methods, so a suite of its cost table says there
that every network sees the whole set at once, asks for no looks, and needs only as many outer steps as a median wants:

    grid: {datasets: [cifar10], methods: [dd, dc, dsa, dm, mtt, frepo], ipc: [1, 10, 20, 50], network: convnet}
    methods:
      dd: {batches: 1, iterations: 20}
      dc: {batch_train: 1000000, iterations: 20}        # at least the size of the set; dsa alike
      mtt: {batch_syn: null, iterations: 20}            # tesla alike
      frepo: {online_batch: 1000000, iterations: 20}
    evaluators: [{name: cost, params: {fractions: []}}]

dm, kip and label_solve have no batches of the set. A method that runs out of memory at some IPC is a row that says so.
What is prepared for several sets (experts, teachers) is a cell of its own and not part of these seconds.

Rule of the last: accuracy is taken as linear between neighbouring looks, the final set included, and the first
crossing counts. Where the first look is already good enough its seconds are an upper bound, reported with the tag
`bound=upper`. What is never reached (accuracy fell at the end) gives no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, Strict

from bench.api import EvalSpec, Evaluation, Evaluator, Measure, Params, Training, param
from evaluators.metrics import accuracies, mean_accuracy, request

Fractions = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Strict(False)]


class CostParams(Params):
    """Where to look."""

    fractions: Fractions = param((0.9,), "fractions of the final accuracy whose time is measured; () for none")
    looks: Fractions = param((0.1, 0.25, 0.5, 0.75), "when to evaluate, as fractions of the outer steps")
    replicates: int | None = param(None, "networks per look; None: the suite's", ge=1)


class Cost(Evaluator):
    """Measure time and memory of the distillation. Its cell is timed and runs alone on the device."""

    Params = CostParams
    title = "Run time and memory"
    citation = "Yu, Liu, Wang: Dataset Distillation: A Comprehensive Review, TPAMI 2024"
    timed = True

    @classmethod
    def snapshots(cls, params: CostParams, spec: EvalSpec) -> Sequence[int]:
        """Return the outer steps of the looks, in order, without repetitions and without the last one."""
        if not params.fractions:
            return ()
        steps = {max(1, round(look * spec.method_steps)) for look in params.looks}
        return tuple(sorted(step for step in steps if step < spec.method_steps))

    @classmethod
    def trainings(cls, params: CostParams, spec: EvalSpec) -> Sequence[Training]:
        """Return one request per look and one for the final set; none where there is nothing to look at."""
        looks = cls.snapshots(params, spec)
        return tuple(request(spec, snapshot=s, replicates=params.replicates) for s in (*looks, None)) if looks else ()

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return seconds and memory; with looks also `accuracy` and `seconds` by step, and `seconds_to_fraction`."""
        measures = spent(task.distillation.profile)
        requests = self.trainings(self.params, task.eval_spec)
        if not requests:
            return measures
        labels, last = task.data.test.labels, task.eval_spec.method_steps
        seconds, accuracy = [], []
        for training in requests:
            networks = task.trained(training)
            step = last if training.snapshot is None else training.snapshot
            seconds.append(task.distillation.snapshots[step] if step < last else task.distillation.profile["seconds"])
            accuracy.append(mean_accuracy(networks, labels))
            own = [m for m in accuracies(networks, task) if (m.metric, m.selection) == ("accuracy", "last")]
            measures += [replace(measure, step=step) for measure in own]
            measures.append(Measure("seconds", seconds[-1], "s", step=step))
        for fraction in self.params.fractions:
            measures += reached(seconds, accuracy, fraction)
        return measures


def spent(profile: Mapping[str, Any]) -> list[Measure]:
    """Return seconds and memory of a profile (see `bench.profile.Profile.summary`); what it lacks is left out.

    `seconds` in total, `steps`; `seconds_per_step` and `seconds_per_step/<phase>`, medians over the outer steps,
    where `other` is what the phases leave of the whole step; `peak_host_MiB` and `peak_device_MiB`.
    """
    per_step, phases_per_step = profile["seconds_per_step"], dict(profile["phases_per_step"])
    if per_step is not None:
        phases_per_step["other"] = max(0.0, per_step - sum(phases_per_step.values()))
    found = {
        "seconds": (profile["seconds"], "s"),
        "steps": (profile["steps"], "steps"),
        "seconds_per_step": (per_step, "s"),
        **{f"seconds_per_step/{phase}": (value, "s") for phase, value in phases_per_step.items()},
        "peak_host_MiB": (profile["peak_host_MiB"], "MiB"),
        "peak_device_MiB": (profile["peak_device_MiB"], "MiB"),
    }
    return [Measure(metric, float(value), unit) for metric, (value, unit) in found.items() if value is not None]


def reached(seconds: Sequence[float], accuracy: Sequence[float], fraction: float) -> list[Measure]:
    """Return the seconds at which `fraction` of the last accuracy was first reached, or nothing.

    seconds, accuracy: the looks in order, the final set last.
    """
    target = fraction * accuracy[-1]
    tags: dict[str, str | int | float] = {"fraction": fraction}
    for i, value in enumerate(accuracy):
        if value < target:
            continue
        if i == 0:
            return [Measure("seconds_to_fraction", seconds[0], "s", tags={**tags, "bound": "upper"})]
        share = (target - accuracy[i - 1]) / (value - accuracy[i - 1])
        return [Measure("seconds_to_fraction", seconds[i - 1] + share * (seconds[i] - seconds[i - 1]), "s", tags=tags)]
    return []
