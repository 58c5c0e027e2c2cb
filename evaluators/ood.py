"""Detection of images from outside the distribution (OOD) by networks trained on a distilled set.

Every network sees every set of images once; all scores and metrics are made of what it said. The protocol is that of
OpenOOD v1.5 (Zhang et al., 2023): the InD test images against one OOD set at a time, AUROC and the false positive rate
at 95 % recall. Conventions of the metrics are in `evaluators.ood_metrics`, the scores in `evaluators.scores`.

Sets are called what they are: `near` and `far` as in OpenOOD, `shifted` where the classes are the same (MNIST for the
8x8 digits), `synthetic` for noise, `seen` where the method itself learned from that dataset (outlier exposure),
`other` where nobody has said. Noise is easy for some networks and erratic for others: never report it alone, and never
call a mean over some far sets that of OpenOOD. Noise is made as pixels, the same for every method whatever its
preprocessing; `space: normalised` feeds it to the network directly, as Outlier Exposure does, and needs the
preprocessing `meanstd`. ODIN's step is one of pixels, which for `meanstd` is the published one and has a meaning under
whitening too.

TrustDD tabulates `scores: [msp]` with `ratio: 1` and `threshold: nearest`; it draws other OOD images for every network
and drops the last incomplete batch, here all networks see the same ones.

A network that diverged tells nothing apart: its score is the same for all images (AUROC 0.5, FPR95 1), tagged
`diverged=1`. What a score cannot do (Mahalanobis with one image per class) and sets that are not on this machine under
`missing: skip` become measures `skipped` that say why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field, Strict

from bench.api import EvalSpec, Evaluation, Evaluator, Measure, Need, Params, Training, param
from bench.data import locate, outside
from bench.errors import MissingData, UserError
from bench.lazy import torch
from evaluators import ood_metrics
from evaluators.metrics import how, request
from evaluators.scores import SCORES, Known, Rule, Undefined
from evaluators.seen import Network, Seen

if TYPE_CHECKING:
    from torch import Tensor

    from bench.train import Handle

Result = TypeVar("Result")

BATCH = 1000
OPENOOD = "OpenOOD v1.5"
ScoreName = Literal[
    "msp", "max_logit", "energy", "entropy", "gen", "odin", "mahalanobis", "rmds", "knn", "vim", "react", "ash_p",
    "ash_b", "ash_s", "scale",
]  # fmt: skip
Group = Literal["near", "far", "shifted", "synthetic", "other"]


class OutsideSet(Params):
    """An OOD set under a name of its own."""

    data: str = Field(description="noise, dataset, folder:PATH[@SIZE] or npz:PATH; its test images are used")
    name: str | None = param(None, "what tables call it; None: as the data", pattern=r"^[^,=]+$")
    group: Group | None = param(None, "near, far, ...; None: what is known of the pair of datasets")


class OODParams(Params):
    """Which sets, which scores, and how they are measured."""

    sets: Annotated[tuple[str | OutsideSet, ...], Strict(False)] = param(
        (*outside.NOISE, "digits", "debug"), "OOD sets; one that is the InD data itself is left out", min_length=1
    )
    scores: Annotated[tuple[ScoreName, ...], Strict(False)] = param(
        ("msp", "max_logit", "energy", "entropy", "gen", "odin", "mahalanobis", "knn", "vim", "react", "ash_s"),
        "scores by name",
        min_length=1,
    )
    fit: Literal["synthetic", "real"] = param(
        "synthetic",
        "images that mahalanobis, rmds, knn, vim and react know: the distilled set, or real training images",
    )
    replicates: int | None = param(None, "networks; None: the suite's", ge=1)
    ratio: float | None = param(
        1.0, "OOD images per InD test image, at most; None: all of a set", source="TrustDD, released code", gt=0
    )
    space: Literal["pixel", "normalised"] = param("pixel", "what noise in [-1, 1] is: pixels, or normalised values")
    missing: Literal["error", "skip"] = param("error", "what becomes of sets that are not on this machine")
    threshold: ood_metrics.Rule = param("at_least", "recall at the threshold of FPR95: 95 % or the nearest to it")
    area: ood_metrics.Area = param("average_precision", "how AUPR is integrated")
    temperature: float = param(1.0, "of the energy", source=OPENOOD, gt=0)
    gen_gamma: float = param(0.1, "exponent of GEN", source=OPENOOD, gt=0)
    gen_top: int = param(100, "largest probabilities that GEN adds up", source=OPENOOD, ge=1)
    odin_temperature: float = param(1000.0, "of ODIN", source=OPENOOD, gt=0)
    odin_step: float = param(0.0014, "ODIN's step in pixels, 1 is white", source=OPENOOD, ge=0)
    neighbours: int = param(50, "k of KNN, at most the number of known images", source=OPENOOD, ge=1)
    vim_dimension: int = param(256, "principal dimensions of ViM, below the rank of the features", source=OPENOOD, ge=1)
    react_percentile: float = param(90.0, "of the known features, where ReAct cuts", source=OPENOOD, ge=0, le=100)
    ash_percentile: float = param(90.0, "of its features that ASH takes away", source=OPENOOD, ge=0, lt=100)
    scale_percentile: float = param(
        85.0, "of its features that SCALE compares with", source="Xu et al. 2024", ge=0, lt=100
    )


class OOD(Evaluator):
    """Measure AUROC, AUPR and FPR95 of every network, OOD set and score."""

    Params = OODParams
    title = "Out-of-distribution detection"
    citation = "Zhang et al.: OpenOOD v1.5, 2023; Ma et al.: Towards Trustworthy Dataset Distillation, 2025"

    @classmethod
    def trainings(cls, params: OODParams, spec: EvalSpec) -> Sequence[Training]:
        """Return the suite's network and recipe, with its weights."""
        return (request(spec, replicates=params.replicates, weights=True),)

    @classmethod
    def needs(cls, params: OODParams, spec: EvalSpec) -> Mapping[str, Need]:
        """Return the images of other datasets. Raises `UserError` for what is no OOD set of this dataset."""
        info = spec.task.dataset
        count = None if params.ratio is None else max(1, round(params.ratio * info.test_size))
        chosen = chosen_sets(params, spec)
        if params.space == "normalised" and spec.task.preprocessing != "meanstd" and any(one.noise for one in chosen):
            raise UserError(
                f"noise of normalised values has no meaning under {spec.task.preprocessing}", hint="use space: pixel"
            )
        real = [one for one in chosen if not one.noise]
        return {
            place(one.name): outside.need(one.data, info.shape, count)
            for one in real
            if params.missing == "error" or locate(one.data) is not None
        }

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return one measure per network, set, score and metric, and the number of images of each set."""
        from bench.train.networks import restore

        (training,) = self.trainings(self.params, task.eval_spec)
        handle, named = restore(task.trained(training), task.spec.dataset), how(training, task)
        learned, sets, lost = task.distilled().header.params, {}, Counter[tuple[str, str, str]]()
        for one in chosen_sets(self.params, task.eval_spec):
            if (images := pictures(one, self.params, task)) is None:
                lost["ood", one.name, "not on this machine"] += 1
            else:
                sets[replace(one, group="seen") if outside.is_seen(one.data, learned) else one] = images
        measures = [Measure("ind_images", task.data.test.size, "images")]
        measures += [Measure("ood_images", len(x), "images", tags={"ood": one.name}) for one, x in sets.items()]
        for e in range(handle.size):
            found, undefined = self._network(task, handle, e, sets)
            measures += found
            lost.update(("score", score, reason) for score, reason in undefined.items())
        for (what, name, reason), times in lost.items():
            measures.append(Measure("skipped", times, "times", tags={what: name, "reason": reason}))
        return [replace(measure, **named) for measure in measures]

    def _network(
        self, task: Evaluation, handle: Handle, e: int, sets: Mapping[Chosen, Tensor]
    ) -> tuple[list[Measure], dict[str, str]]:
        """Return the measures of network e, and the scores it has none for with the reason."""
        p, network = self.params, Network.of(handle, e)
        inside, known = self._look(network, partial(test_pixels, task), task), self._known(network, task)
        undefined: dict[str, str] = {}
        rules: dict[str, Rule] = dict.fromkeys(p.scores, nothing)
        if all(bool(seen.features.isfinite().all()) for seen in (inside, known.seen) if seen is not None):
            rules = attempted({name: partial(SCORES[name].make, known, p) for name in p.scores}, undefined)
        scores = attempted({name: partial(rule, inside) for name, rule in rules.items()}, undefined)
        measures: list[Measure] = []
        for one, images in sets.items():
            seen = self._look(network, partial(batches, images), task)
            for name, values in attempted({name: partial(rules[name], seen) for name in scores}, undefined).items():
                tags = {"ood": one.name, "group": one.group, "score": name}
                tags |= {"fit": p.fit} if SCORES[name].fitted else {}
                measures += compared(scores[name], values, p, tags, e)
        return measures, undefined

    def _look(self, network: Network, pixels: Callable[[], Iterator[Tensor]], task: Evaluation) -> Seen:
        """Return what the network says of images given as pixels, after ODIN's step too where that is wanted."""
        p, forward = self.params, task.data.forward
        seen = network.look(forward(batch) for batch in pixels())
        if "odin" not in p.scores:
            return seen
        stepped = (network.stepped(batch, forward, p.odin_temperature, p.odin_step) for batch in pixels())
        return replace(seen, perturbed=network.look(stepped).logits)

    def _known(self, network: Network, task: Evaluation) -> Known:
        """Return the head and, where a score is fitted, what the network says of the images to fit it on."""
        from bench.distilled import decode

        if not any(SCORES[name].fitted for name in self.params.scores):
            return Known(network.head)
        if self.params.fit == "real":
            train = task.data.train
            return Known(network.head, network.look(train.batches(BATCH)), train.labels)
        distilled = task.distilled()
        labels = distilled.labels if distilled.header.label_kind == "hard" else distilled.labels.argmax(1)
        images = decode(distilled, task.data).to(task.device)
        return Known(network.head, network.look(images.split(BATCH)), labels)


def nothing(seen: Seen) -> Tensor:
    """Return NaN for every image: the rule of a network that diverged."""
    return torch.full((len(seen.logits),), torch.nan)


def attempted(made: Mapping[str, Callable[[], Result]], undefined: dict[str, str]) -> dict[str, Result]:
    """Return what the functions return, without those that raise `Undefined`; their reasons go to `undefined`."""
    found = {}
    for name, function in made.items():
        try:
            found[name] = function()
        except Undefined as error:
            undefined[name] = str(error)
    return found


def compared(inside: Tensor, outside: Tensor, params: OODParams, tags: Mapping[str, str], e: int) -> Iterator[Measure]:
    """Yield the metrics of one score of network e on one set; scores with a NaN tell nothing apart."""
    lost = bool(inside.isnan().any()) or bool(outside.isnan().any())
    known, strange = (torch.zeros_like(values) if lost else values for values in (inside, outside))
    found = ood_metrics.measure(known.cpu().numpy(), strange.cpu().numpy(), rule=params.threshold, area=params.area)
    for metric, value in found.items():
        yield Measure(metric, value, replicate=e, tags={**tags, "diverged": 1} if lost else dict(tags))


# ---------------------------------------------------------------------------------------------- the sets


@dataclass(frozen=True)
class Chosen:
    """An OOD set of the evaluator: its name in tables, its data, its group."""

    name: str
    data: str
    group: str

    @property
    def noise(self) -> bool:
        """Whether it is made here."""
        return self.data in outside.NOISE


def chosen_sets(params: OODParams, spec: EvalSpec) -> list[Chosen]:
    """Return the sets for a dataset, without itself. Raises `UserError` if one is none, or where none is left."""
    info = spec.task.dataset
    chosen: dict[str, Chosen] = {}
    for given in params.sets:
        one = OutsideSet(data=given) if isinstance(given, str) else given
        name, group = one.name or one.data.replace(",", " ").replace("=", " "), one.group
        try:
            outside.check(one.data)
            if outside.is_own(info, one.data):
                continue
            group = group or outside.distance(info, one.data)
        except MissingData:  # own data, of which nothing is known then
            if params.missing == "error":
                raise
        if name in chosen:
            raise UserError(f"two OOD sets are called {name!r}", hint="give one of them another name")
        chosen[name] = Chosen(name, one.data, group or "other")
    if not chosen:
        raise UserError(f"no OOD set is left for {info.name}", hint=f"noise: {', '.join(outside.NOISE)}")
    return list(chosen.values())


def place(name: str) -> str:
    """Return what the artifact of a set is called."""
    return f"outside/{name}"


def pictures(one: Chosen, params: OODParams, task: Evaluation) -> Tensor | None:
    """Return the images of a set: bytes, or noise as float pixels; None for one that was skipped.

    What noise stands for under `normalised` may lie beyond 0 and 1 as a pixel; forward() turns it back.
    """
    if not one.noise:
        try:
            return task.artifact(place(one.name))["images"]
        except KeyError:  # not planned: it was not on the machine of the plan
            return None
    count = max(1, round((params.ratio or 1.0) * task.data.test.size))
    values = outside.noise(one.data, count, task.spec.dataset.shape, task.rng(f"ood/{one.data}"))
    if params.space == "pixel":
        return (values + 1) / 2
    transform = task.data.transform
    return values * transform.std[:, None, None] + transform.mean[:, None, None]


def batches(images: Tensor) -> Iterator[Tensor]:
    """Yield pixels float32 [b, c, h, w] of images as bytes or pixels."""
    for part in images.split(BATCH):
        yield part.float() / 255 if part.dtype == torch.uint8 else part


def test_pixels(task: Evaluation) -> Iterator[Tensor]:
    """Yield the InD test images as pixels."""
    test = task.data.test
    return (test.pixels(slice(start, start + BATCH)) for start in range(0, test.size, BATCH))
