"""TrustDD on other hosts: combinations that are not published, with pseudo-outliers.

    trustdd_poe_dm     the outliers match mean embeddings of groups of real ones, under the random network of DM
    trustdd_poe_mtt    a student trains on both sets, and follows experts that trained on real images and outliers

Losses and lambda are those of `methods/trustdd.py`; in DM no network is trained, so lambda counts only afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bench.api import DatasetInfo, Need, Preset, TaskSpec, param
from bench.data import Batch
from bench.lazy import F, torch
from bench.train.losses import outlier_exposure
from methods.dm import DM, DMParams
from methods.experts import Experts
from methods.matching import match_features
from methods.mtt import MTT, next_chunk
from methods.outliers import NONE, Exposed, Joined, OutlierPixels, Pseudo
from methods.trustdd import PUBLISHED, OfPseudo, PseudoParams, TrustDDPOE

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import Task
    from bench.unroll import Batch as Images
    from methods.parametrise import Parametrisation


class TrustDDPOEDM(OfPseudo, DM):
    """Both sets match mean embeddings, of classes and of groups, under the same random network."""

    class Params(PseudoParams, DMParams):
        """Hyper-parameters of DM and of pseudo-outliers."""

    title = "TrustDD-POE on DM: distilled pseudo-outliers (combination, not published)"
    citation = f"{TrustDDPOE.citation}; {DM.citation}"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the settings of DM; nothing is published for the two together."""
        return Preset(super().preset(dataset, ipc).params, None)

    def step(self) -> dict[str, float | Tensor]:
        """Do one iteration of DM, then one of the outliers."""
        p, logged = self.params, super().step()

        def compare(real: Batch, synthetic: Batch) -> tuple[Tensor, Tensor]:
            logged["real_images"] += len(real.images)
            return match_features(self.model, real, synthetic, classes=p.classes, chunk=p.chunk)

        loss = self.update_outliers(compare).mean()
        logged["synthetic_images"] += len(self.set.outside.labels)
        return {**logged, "outlier_loss": loss}


class ExposedExperts(Experts):
    """Experts trained on real images and, beside each batch, on one of pseudo-outliers.

    There are as many outliers as images: each corruption spoils another part of the training images.
    """

    class Params(Experts.Params):
        """How the experts are trained."""

        outlier_weight: float = param(0.5, "lambda, weight of the loss on outliers", ge=0)
        corruptions: tuple[str, ...] = param(PUBLISHED, "what makes outliers of training images")

    title = "expert trajectories with pseudo-outliers"

    def exposure(self, task: Task, size: int) -> dict[str, Any]:
        """Return the outliers and their weight, for `bench.train.train`."""
        pool = Pseudo(task, self.params.corruptions)
        return {"outliers": pool.all(size, task.rng("outliers")), "outlier_weight": self.params.outlier_weight}


class TrustDDPOEMTT(OfPseudo, MTT):
    """A student on both sets follows experts that were trained on real images and outliers."""

    class Params(PseudoParams, MTT.Params):
        """Hyper-parameters of MTT and of pseudo-outliers."""

    title = "TrustDD-POE on MTT: distilled pseudo-outliers (combination, not published)"
    citation = f"{TrustDDPOE.citation}; {MTT.citation}"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the settings of MTT; nothing is published for the two together."""
        return Preset(super().preset(dataset, ipc).params, None)

    @classmethod
    def needs(cls, params: Any, spec: TaskSpec) -> Mapping[str, Need]:
        """Ask for experts that know outliers."""
        own = {"outlier_weight": params.outlier_weight, "corruptions": params.corruptions}
        return {
            name: Need("exposed_experts", {**need.params, **own}, need.task)
            for name, need in super().needs(params, spec).items()
        }

    def start(self, task: Task) -> None:
        """Start as MTT; the outliers have a pass of their own."""
        super().start(task)
        self.left_outside = self.left

    def together(self, inside: Parametrisation, outside: OutlierPixels) -> Exposed:
        """Return both as one set of images."""
        return Joined(inside, outside, self.params.outlier_weight)

    # a chunk of the joined set is a pair: some images, and some outliers beside them

    def _chunk(self) -> Any:
        task, size, inside = self.task, self.params.batch_syn, len(self.set.inside.labels)
        outside = len(self.set.labels) - inside
        self.left, chunk = next_chunk(self.left, inside, size, task.rng("chunks"))
        self.left_outside, other = next_chunk(self.left_outside, outside, size, task.rng("outlier chunks"))
        return chunk, inside + other

    def _draw(self, chunk: Any) -> Any:
        shapes = [(len(part), *self.seen.shape[1:]) for part in chunk]
        names = "augment", "outlier augment"
        return [self.task.augment.draw(shape, self.task.rng(name)) for shape, name in zip(shapes, names, strict=True)]

    def _batch(self, chunk: Any, draw: Any, labels: Tensor) -> Callable[[], Images]:
        def images() -> Images:
            parts = [self.task.augment.apply(self.seen[i], d) for i, d in zip(chunk, draw, strict=True)]
            return torch.cat(parts), labels[torch.cat(chunk)]

        return images

    def _inner_loss(self, weights: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.student(weights, images)
        exposure = outlier_exposure(logits[labels == NONE])
        return F.cross_entropy(logits, labels, ignore_index=NONE) + self.params.outlier_weight * exposure

    def state_dict(self) -> dict[str, Any]:
        """Return the state of MTT and the rest of the pass over the outliers."""
        return {**super().state_dict(), "left_outside": self.left_outside}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict(state)
        self.left_outside = state["left_outside"].to(self.task.device)
