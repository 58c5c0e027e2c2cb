"""Accuracy on spoiled test images: the networks are trained on the distilled set as it is, only the test changes.

Images are spoiled as pixels in [0, 1] and then go through the preprocessing of the run with its clean statistics.
`evaluators.distortions` says what is done to them. The noise belongs to the test set, not to the run: its generator is
seeded by the content of the dataset, so every network of every method and seed sees the same spoiled images, and they
are made anew from their seed instead of being stored (75 copies of CIFAR-10 would take 2 GiB).

The three published corruptions are measured by default. The common ones, five severities each, are summed up by
`mean_corruption_error` (mean of the errors over severities, then corruptions) and `relative_corruption_error` (the
same minus the clean error). Neither is divided by the errors of AlexNet as in ImageNet-C, and the list is not the whole
of CIFAR-10-C: compare them within ddbench only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, Strict

from bench.api import DatasetInfo, EvalSpec, Evaluation, Evaluator, Measure, Params, Training, param
from bench.errors import UserError, nearest
from bench.lazy import torch
from evaluators.distortions import COMMON, PUBLISHED, published_level
from evaluators.metrics import best_of, diverged, how, per_network, request, top_k

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data import Prepared

BATCH = 1000
"""Images spoiled and classified at once. Noise is drawn batch by batch, so this number is part of the definition."""
SOURCE = "Vahidian et al. 2025, released data processing"
BEST_OF = ("corruption_accuracy", "common_accuracy")
"""Metrics of which the maximum over the networks may be wanted."""
SETS = {"published": tuple(PUBLISHED), "common": tuple(COMMON)}


class CorruptionParams(Params):
    """What is done to the test images."""

    corruptions: Annotated[tuple[str, ...], Strict(False)] = param(
        ("published",), "names, or `published` and `common` for all of a kind", source=SOURCE, min_length=1
    )
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Strict(False)] = param(
        (1, 2, 3, 4, 5), "severities of the common corruptions", source="Hendrycks and Dietterich 2019", min_length=1
    )
    noise_std: float | None = param(None, "deviation of `noise`; None: as published for the size", source=SOURCE, gt=0)
    blur_radius: float | None = param(None, "radius of `blur`; None: as published for the size", source=SOURCE, gt=0)
    best_of_networks: bool = param(
        False, "also the maximum over the networks of one set, as the released script prints", source=SOURCE
    )


class Corruption(Evaluator):
    """Measure the accuracy of every network on every corruption, and the mean errors over the common ones."""

    Params = CorruptionParams
    title = "Accuracy on corrupted images"
    citation = "Hendrycks, Dietterich: Benchmarking Neural Network Robustness to Common Corruptions, ICLR 2019"

    @classmethod
    def trainings(cls, params: CorruptionParams, spec: EvalSpec) -> Sequence[Training]:
        """Return the one request, with weights. Raises `UserError` for corruptions that there are not."""
        chosen(params.corruptions, spec.task.dataset)
        return (request(spec, weights=True),)

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return the accuracies, per network."""
        from bench.train.networks import restore
        from bench.train.trainer import predict

        (training,) = self.trainings(self.params, task.eval_spec)
        trained, labels = task.trained(training), task.data.test.labels
        networks, named, lost = restore(trained, task.spec.dataset), how(training, task), diverged(trained.logits)
        clean = top_k(trained.logits, labels)

        def accuracy(name: str, level: Any, severity: int | None = None) -> Tensor:
            return top_k(predict(networks, spoiled(task.data, name, level, severity)), labels)

        found: list[tuple[str, Tensor, dict[str, Any]]] = [("corruption_accuracy", clean, {"corruption": "clean"})]
        errors = []
        for name in chosen(self.params.corruptions, task.spec.dataset):
            if name in PUBLISHED:
                level = self._level(name, task.spec.dataset.shape[1])
                found.append(("corruption_accuracy", accuracy(name, level), {"corruption": name}))
                continue
            each = {s: accuracy(name, COMMON[name].levels[s - 1], s) for s in self.params.severities}
            for severity, values in each.items():
                found.append(("severity_accuracy", values, {"corruption": name, "severity": severity}))
            errors.append(1 - torch.stack(list(each.values())).mean(0))
            found.append(("common_accuracy", 1 - errors[-1], {"corruption": name}))
        if errors:
            error = torch.stack(errors).mean(0)
            found.append(("mean_corruption_error", error, {}))
            found.append(("relative_corruption_error", error - (1 - clean), {}))
        measures = [one for metric, values, tags in found for one in per_network(metric, values, lost, tags, **named)]
        if self.params.best_of_networks:
            measures += best_of(one for one in measures if one.metric in BEST_OF)
        return measures

    def _level(self, name: str, height: int) -> float | None:
        """Return the level of a published corruption: the suite's, or as published."""
        own = {"noise": self.params.noise_std, "blur": self.params.blur_radius}.get(name)
        return published_level(name, height) if own is None else own


def chosen(names: Sequence[str], info: DatasetInfo) -> list[str]:
    """Return the corruptions that are meant, each once; sets leave out those that need colour where there is none.

    Raises `UserError` for an unknown name, and for one that needs colour where there is none.
    """
    known = {**dict.fromkeys(PUBLISHED, False), **{name: one.colour for name, one in COMMON.items()}}
    grey = info.shape[0] == 1
    found: dict[str, None] = {}
    for name in names:
        if name in SETS:
            found |= dict.fromkeys(one for one in SETS[name] if not (grey and known[one]))
        elif name not in known:
            raise UserError(f"unknown corruption {name!r}", hint=nearest(name, [*known, *SETS]))
        elif grey and known[name]:
            raise UserError(f"corruption {name!r} needs colour, but {info.name} is grey", hint="leave it out")
        else:
            found[name] = None
    return list(found)


def spoiled(data: Prepared, name: str, level: Any, severity: int | None = None) -> Iterator[Tensor]:
    """Yield all test images, spoiled and then preprocessed, in batches. The same call gives the same images."""
    from bench.task import derive_seed

    purpose = f"corruption/{name}/{severity}/{data.info.content}"
    rng = torch.Generator().manual_seed(derive_seed(0, purpose))
    apply = PUBLISHED[name] if severity is None else COMMON[name].apply
    for start in range(0, data.test.size, BATCH):
        yield data.forward(apply(data.test.pixels(slice(start, start + BATCH)), level, rng))
