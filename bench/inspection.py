"""What was a distilled set made for? Its values and its labels, held against the dataset under every interpretation.

A file of images may not say in which space they live. Two things tell. The values: mean, deviation and the likeness of
neighbouring pixels, as they are and after a whitening is undone, beside those of the real images in each space. And
training: a few small networks learn the set as it is, and are tested on real images in each space; where they are
right, the spaces agree. Networks without norm layers notice shifts, those with instance norm survive a set whose scale
has drifted while it was learned, so the accuracy of a space is the mean over both.

The verdict is cautious. Spaces whose accuracy is clearly below the best are out, unless the values are nearly those of
their real images; among the rest the values decide where they fit one much better than the others; else it is not
decided, and all that remain are named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import bench.data
from bench.api import DatasetInfo, LabelKind, NetSpec
from bench.data.preprocess import KINDS, LARGEST, Transform
from bench.errors import Diverged, UserError
from bench.lazy import torch
from bench.nets import spec as nets
from bench.train.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data import Dataset, Prepared

NORMS = ("none", "in", "bn")
TELLING = ("none", "in")
"""Norms whose networks tell the space: the statistics that batch norm keeps mislead where a set's scale has drifted."""
TIE = 0.2
"""Share of the best accuracy within which another is not out: the images that a set happens to hold make as much."""
ERRORS = 2.5
"""Standard errors within which a lead is noise."""
CLEAR = 0.7
"""A distance of the values below this share of the next one is clear."""
FAR = 1.0
"""A distance beyond which the values fit no space, so that they decide nothing: a set that drifted while learned."""
CLOSE = 0.5
"""A distance within which a space is not out for its accuracy alone: short trainings prefer standardised images."""
LEARNED = 1.5
"""Times the accuracy of guessing that a network must reach to have learned something."""
LOOKED_AT = 2000
"""Real images whose values are compared."""


@dataclass(frozen=True)
class Effort:
    """How much is trained: steps of Adam, networks of each architecture, their width, and test images."""

    steps: int = 100
    replicates: int = 3
    width: int = 32
    test: int = 500
    norms: tuple[str, ...] = NORMS
    depths: tuple[int, ...] = (-1, 0, 1)
    """Relative to the default for the image size."""


@dataclass(frozen=True)
class Look:
    """What the values of images look like; means over channels are printed, channels are compared.

    mean, std: [c]. neighbours: correlation of neighbouring pixels. inner_std, inner_neighbours: the same after the
    whitening of a space is undone. spread: deviation of the images' norms then, relative to their mean.
    """

    low: float
    high: float
    mean: Tensor
    std: Tensor
    neighbours: float
    inner_std: Tensor
    inner_neighbours: float
    spread: float


@dataclass
class Fit:
    """One value of a factor (a space, a network, a kind of labels): its accuracy, its distance, and whether it fits."""

    name: str
    accuracy: float
    behind: float
    error: float
    distance: float | None = None
    look: Look | None = None
    fits: bool = False


@dataclass
class Findings:
    """What was found, what fits first. Where several fit, spaces stand by their values, labels by their rows."""

    spaces: list[Fit]
    networks: list[Fit]
    labels: list[Fit]
    own: Look
    reasons: dict[str, str] = field(default_factory=dict)

    def verdict(self, factor: str) -> list[str]:
        """Return what fits: one name where it is decided."""
        return [fit.name for fit in getattr(self, factor) if fit.fits]


def inspect(
    images: Tensor,
    labels: Tensor,
    data: Dataset,
    *,
    label_kind: LabelKind | None = None,
    effort: Effort | None = None,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> Findings:
    """Return which preprocessing, network and kind of labels fit a set.

    images: float32 [n, c, h, w] as stored. labels: int64 [n] or float32 [n, K]. data: the dataset it stands for.
    label_kind: where it is known. report: told what is trained. Raises `UserError` where nothing can be trained.
    """
    effort = effort or Effort()
    spaces = {kind: bench.data.prepare(data, kind) for kind in kinds(data.info)}
    test = _Test.draw(spaces, effort.test, _rng(seed, "test"))
    possible: list[LabelKind] = [label_kind] if label_kind else label_kinds(labels)
    train = _Trainer(images, labels, data.info, effort, seed, test, report)
    right = {net: train(spec, possible[0]) for net, spec in networks(data.info, effort).items()}
    telling = [found for net, found in right.items() if train.spec(net).norm in TELLING] or list(right.values())
    own = {kind: look(images, prepared.transform) for kind, prepared in spaces.items()}
    real = {kind: _real(prepared, _rng(seed, "real")) for kind, prepared in spaces.items()}
    apart = {kind: distance(own[kind], real[kind]) for kind in spaces}
    mean = torch.stack(telling).mean(0)
    found = _ranked(dict(zip(spaces, mean, strict=True)))
    for fit in found:
        fit.distance, fit.look = apart[fit.name], real[fit.name]
    reason = decide(found, 1 / data.info.classes)
    at = list(spaces).index(next(fit.name for fit in found if fit.fits))
    by_network = _marked(_ranked({net: one[at] for net, one in right.items()}))
    best = by_network[0].name
    others = {kind: train(train.spec(best), kind) for kind in possible[1:]}
    by_label = _ranked({kind: one[at] for kind, one in {possible[0]: right[best], **others}.items()})
    by_label = sorted(_marked(by_label), key=lambda fit: (not fit.fits, [*possible].index(fit.name)))  # type: ignore[arg-type]
    return Findings(found, by_network, by_label, next(iter(own.values())), {"spaces": reason})


# ---------------------------------------------------------------------------------------------- what there is to try


def kinds(info: DatasetInfo) -> list[str]:
    """Return the preprocessings that images of this size can have."""
    channels, height, width = info.shape
    return [kind for kind in KINDS if not kind.startswith("zca") or channels * height * width <= LARGEST]


def label_kinds(labels: Tensor) -> list[LabelKind]:
    """Return what labels can be, the likeliest by their rows first."""
    if labels.dim() == 1:
        return ["hard"]
    sums, low = labels.double().sum(1), float(labels.min())
    found: list[LabelKind] = []
    if low >= 0 and float((sums - 1).abs().max()) < 1e-2:
        found.append("probabilities")
    return [*found, *(["centred", "logits"] if float(sums.abs().max()) < 1 else ["logits", "centred"]), "hard"]  # type: ignore[list-item]


def networks(info: DatasetInfo, effort: Effort) -> dict[str, NetSpec]:
    """Return the ConvNets of the grid by their names; depths that the images do not allow are left out."""
    default = nets.resolve(NetSpec(), info.shape).depth or 1
    found = {}
    for norm in effort.norms:
        for step in effort.depths:
            try:
                wanted = NetSpec.model_validate({"norm": norm, "width": effort.width, "depth": max(1, default + step)})
                spec = nets.resolve(wanted, info.shape)
            except UserError:
                continue
            found[f"norm {norm}, depth {spec.depth}"] = spec
    return found


# ---------------------------------------------------------------------------------------------- training


@dataclass
class _Test:
    """Test images in every space, and their labels."""

    images: list[Tensor]
    labels: Tensor

    @classmethod
    def draw(cls, spaces: dict[str, Prepared], count: int, rng: torch.Generator) -> _Test:
        test = next(iter(spaces.values())).test
        index = torch.randperm(test.size, generator=rng)[:count]
        pixels = test.pixels(index)
        return cls([one.transform.forward(pixels) for one in spaces.values()], test.labels[index])


@dataclass
class _Trainer:
    """Trains networks on the set and returns which test images they get right in every space, float [P, E, N]."""

    images: Tensor
    labels: Tensor
    info: DatasetInfo
    effort: Effort
    seed: int
    test: _Test
    report: Callable[[str], None] | None

    def spec(self, name: str) -> NetSpec:
        return networks(self.info, self.effort)[name]

    def __call__(self, spec: NetSpec, kind: LabelKind) -> Tensor:
        from bench.train.trainer import predict, train

        if self.report:
            self.report(f"{self.effort.replicates} networks, norm {spec.norm}, depth {spec.depth}, {kind} labels")
        recipe = Recipe(
            optimiser="adam", lr=1e-3, weight_decay=0.0, steps=self.effort.steps, schedule="cosine", augment="none"
        )
        target = self.labels.argmax(1) if kind == "hard" and self.labels.dim() == 2 else self.labels
        rngs = [_rng(self.seed, f"network {e}") for e in range(self.effort.replicates)]
        try:
            handle = train(spec, self.images, target, recipe, rngs, info=self.info, label_kind=kind)
        except Diverged:
            return torch.zeros(len(self.test.images), self.effort.replicates, len(self.test.labels))
        logits = [predict(handle, images.split(500)) for images in self.test.images]
        return torch.stack([(one.argmax(2) == self.test.labels) & ~one.isnan().any(2) for one in logits]).float()


# ---------------------------------------------------------------------------------------------- values


def look(images: Tensor, transform: Transform) -> Look:
    """Return what images look like, as they are and with the whitening of `transform` undone."""
    inner = images
    if transform.matrix is not None:
        inner = (images.flatten(1) @ transform.inverse_matrix).view_as(images)
    norms = (inner - inner.mean((1, 2, 3), keepdim=True)).flatten(1).norm(dim=1)
    return Look(
        float(images.min()),
        float(images.max()),
        images.mean((0, 2, 3)),
        _deviation(images),
        neighbours(images),
        _deviation(inner),
        neighbours(inner),
        float(norms.std(correction=0) / norms.mean().clamp_min(1e-12)),
    )


def _deviation(images: Tensor) -> Tensor:
    return images.std((0, 2, 3), correction=0).clamp_min(1e-12)


def neighbours(images: Tensor) -> float:
    """Return the correlation of values with those to the right and below, about the mean of their channel."""
    centred = images - images.mean((0, 2, 3), keepdim=True)
    products = [centred[..., 1:] * centred[..., :-1], centred[..., 1:, :] * centred[..., :-1, :]]
    return float(torch.stack([one.mean() for one in products]).mean() / centred.square().mean().clamp_min(1e-12))


def distance(own: Look, real: Look) -> float:
    """Return how far the values are from those of real images in a space: 0 for the same, beyond 1 quite different.

    The sum of six differences: of the means in deviations, of the logarithms of deviations, twice that of the
    correlations, both once more with the whitening undone, and of the spread of norms.
    """
    parts = [
        float(((own.mean - real.mean) / real.std).abs().mean()),
        float((own.std / real.std).log().abs().mean()),
        2 * abs(own.neighbours - real.neighbours),
        float((own.inner_std / real.inner_std).log().abs().mean()),
        2 * abs(own.inner_neighbours - real.inner_neighbours),
        abs(own.spread - real.spread),
    ]
    return sum(parts)


def _real(prepared: Prepared, rng: torch.Generator) -> Look:
    index = torch.randperm(prepared.train.size, generator=rng)[:LOOKED_AT]
    return look(prepared.transform.forward(prepared.train.pixels(index)), prepared.transform)


# ---------------------------------------------------------------------------------------------- verdicts


def lead(first: Tensor, other: Tensor) -> tuple[float, float]:
    """Return by how much the first is right more often, and its standard error over networks and over test images.

    first, other: [E, N], the same networks or their seeds and the same images.
    """
    apart = (first - other).double()
    over = [means.var(correction=1) / len(means) if len(means) > 1 else 0.0 for means in (apart.mean(1), apart.mean(0))]
    return float(apart.mean()), float(sum(over)) ** 0.5


def _ranked(right: dict[str, Tensor]) -> list[Fit]:
    """Return the fits by accuracy, each with how far it is behind the best. right: name -> [E, N]."""
    best = max(right, key=lambda name: float(right[name].mean()))
    found = [Fit(name, float(one.mean()), *lead(right[best], one)) for name, one in right.items()]
    return sorted(found, key=lambda fit: -fit.accuracy)


def _marked(found: list[Fit]) -> list[Fit]:
    """Mark the best, and what is behind it by no more than noise."""
    for fit in found:
        fit.fits = fit.behind <= ERRORS * fit.error or fit is found[0]
    return found


def decide(found: list[Fit], chance: float) -> str:
    """Mark the spaces that fit and bring them to the front; return what decided. chance: accuracy of guessing."""
    best = found[0]
    tied = [fit for fit in found if fit.behind <= max(TIE * best.accuracy, ERRORS * fit.error)]
    learned = best.accuracy >= LEARNED * chance
    left = [fit for fit in found if not learned or fit in tied or _distance(fit) <= CLOSE]
    if len(left) == 1:
        reason = "decided by accuracy"
    else:
        near = min(_distance(fit) for fit in left)
        if near <= FAR:
            left = [fit for fit in left if _distance(fit) * CLEAR <= near]
        why = "accuracy alone leaves several" if left[0] in tied else "against accuracy"
        reason = "decided by the values" if len(left) == 1 else "not decided"
        reason += f"; {why if learned else 'no network learned from the set'}" if len(left) == 1 or not learned else ""
    for fit in left:
        fit.fits = True
    found.sort(key=lambda fit: (not fit.fits, _distance(fit) if fit.fits else -fit.accuracy))
    return reason


def _distance(fit: Fit) -> float:
    assert fit.distance is not None
    return fit.distance


def _rng(seed: int, name: str) -> torch.Generator:
    from bench.task import derive_seed

    return torch.Generator().manual_seed(derive_seed(seed, f"inspect/{name}"))
