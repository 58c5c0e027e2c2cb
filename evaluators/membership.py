"""Membership inference: does a network trained on the distilled set give away which real images were distilled?

    membership   five attackers on single networks. Members are training images of the task, non-members test images.
                 The protocol of FRePo and ISA is a suite over views such as `mnist@chunk(size=10000, index=0)`.
    lira         the whole pipeline as the target: the method distils several random halves of audited images, which
                 may carry wrong labels (canaries), and each run in turn is attacked with the others as shadows.

Networks under attack are always trained on the distilled set. The released scripts of FRePo and ISA train them on the
first, real prototypes instead, which are a random selection: the method `random` is that baseline by its right name,
and `whole` is training on the members themselves.

Members and non-members of `membership` come from different official splits, and AUC says little about the few images
that leak most: see `lira` and its true positive rate at low false positive rates (Carlini, Feldman, Nasr, arXiv
2209.14987). Chunks are drawn from a random order; the scripts take them as stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Strict

from bench.api import DistilledSet, EvalSpec, Evaluation, Evaluator, Measure, Params, Training, param
from bench.data.views import Half
from bench.errors import Diverged
from bench.lazy import F, torch
from evaluators.metrics import diverged, how, request

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 1000
Rates = Annotated[tuple[float, ...], Strict(False)]


class MembershipParams(Params):
    """Who attacks, and with what."""

    attacks: Annotated[tuple[Literal["threshold", "logistic", "mlp", "forest", "neighbours"], ...], Strict(False)] = (
        param(("threshold", "logistic", "mlp", "forest", "neighbours"), "attackers", source="FRePo, script/mia.py")
    )
    grid: bool = param(False, "search the published grids (minutes per network) instead of taking their middle")
    images: int | None = param(10_000, "most members, and most non-members, drawn at random; None: all", ge=2)
    rates: Rates = param((0.001, 0.01), "false positive rates at which true positives are counted")


class Membership(Evaluator):
    """Attack every network by the five attackers."""

    Params = MembershipParams
    title = "Membership inference"
    citation = "Zhou, Nezhadarya, Ba, Dataset Distillation using Neural Feature Regression, NeurIPS 2022, section 5"

    @classmethod
    def trainings(cls, params: MembershipParams, spec: EvalSpec) -> Sequence[Training]:
        """Return the suite's networks, with weights: they are asked about training images."""
        return (request(spec, weights=True),)

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return `mia_auc`, `mia_tpr` and the like by attack for every network, and how well it fits its members.

        `mia_auc_null` is the deviation that the AUC of a meaningless score would have. A network that diverged gives
        nothing away: it is left out, and the measure `skipped` says so.
        """
        from bench.train.networks import restore
        from evaluators import attacks

        (training,) = self.trainings(self.params, task.eval_spec)
        trained, named = task.trained(training), how(training, task)
        lost = diverged(trained.logits).tolist()
        outputs, labels, member = self._ask(task, restore(trained, task.spec.dataset))
        losses = example_losses(outputs, labels, regresses(task.distilled(), training))
        measures = [Measure("mia_auc_null", attacks.null_deviation(int(member.sum()), int((~member).sum())), **named)]
        reasons: dict[str, int] = {}
        for e in (e for e, gone in enumerate(lost) if not gone):
            right = outputs[e].argmax(1) == labels
            for name, of in (("member_accuracy", member), ("other_accuracy", ~member)):
                measures.append(Measure(name, float(right[torch.from_numpy(of)].double().mean()), replicate=e, **named))
            features = torch.cat([outputs[e], losses[e][:, None]], 1).double().numpy()
            for attack in self.params.attacks:
                if attack == "threshold":
                    scores = -losses[e].double().numpy()
                else:
                    seed = int(torch.randint(2**31, (), generator=task.rng(f"attack/{attack}/{e}")))
                    scores = attacks.trained_attack(attack, features, member, grid=self.params.grid, seed=seed)
                found, missing = attacks.summary(scores, member, self.params.rates)
                measures += _named("mia", found, attack, replicate=e, **named)
                reasons |= dict.fromkeys(missing, 1)
        if any(lost):
            reasons[f"{sum(lost)} of {len(lost)} networks diverged"] = sum(lost)
        return measures + _skipped(reasons)

    def _ask(self, task: Evaluation, networks: Any) -> tuple[Tensor, Tensor, np.ndarray]:
        """Return the outputs [E, n, K] on members and others, labels [n], and bool [n] who is a member."""
        from bench.train import predict

        outputs, labels, rng = [], [], task.rng("membership")
        for part in (task.data.train, task.data.test):
            order = torch.randperm(part.size, generator=rng, device=rng.device)[: self.params.images]
            index = order.to(part.labels.device)
            outputs.append(predict(networks, (part.images(rows) for rows in index.split(BATCH))).cpu())
            labels.append(part.labels[index].cpu())
        member = np.repeat([True, False], [len(part) for part in labels])
        return torch.cat(outputs, 1), torch.cat(labels), member


class LiRAParams(Params):
    """The runs, the audited images, and the test."""

    runs: int = param(8, "distillations, each of a random half of the audited images", source="LiRA: 16", ge=4)
    audit: int = param(500, "audited training images", source="Zhao, Zhang, ICLR 2025, arXiv 2502.12976", ge=2)
    mislabelled: bool = param(True, "audited images carry wrong labels (canaries)", source="arXiv 2502.12976")
    alone: bool = param(False, "distil nothing but audited images")
    variants: Annotated[tuple[Literal["online", "online-fixed", "offline", "offline-fixed"], ...], Strict(False)] = (
        param(("online-fixed", "offline-fixed"), "tests; `fixed` needs fewer runs", source="LiRA")
    )
    rates: Rates = param((0.001, 0.01), "false positive rates at which true positives are counted")


class LiRA(Evaluator):
    """Attack the whole pipeline, distillation and training, by the likelihood ratio of Carlini et al."""

    Params = LiRAParams
    title = "Membership inference by LiRA"
    citation = "Carlini et al., Membership Inference Attacks From First Principles, 2022, arXiv 2112.03570"

    @classmethod
    def distillations(cls, params: LiRAParams, spec: EvalSpec) -> Mapping[str, Mapping[str, Any]]:
        """Return one distillation per run, of its view and with a seed of its own."""
        view = "{}@half(runs={}, run={}, audit={}, mislabelled={}, seed={}, alone={})"
        found = {}
        for run in range(params.runs):
            half = cls._half(params, spec, run)
            settings = (half.runs, half.run, half.audit, str(half.mislabelled).lower(), half.seed)
            name = view.format(spec.task.dataset.name, *settings, str(half.alone).lower())
            found[f"run{run}"] = {"dataset": name, "seed": spec.task.seed * params.runs + run}
        return found

    @classmethod
    def trainings(cls, params: LiRAParams, spec: EvalSpec) -> Sequence[Training]:
        """Return the suite's networks for every run."""
        return [request(spec, sets=[f"run{run}"], weights=True) for run in range(params.runs)]

    @staticmethod
    def _half(params: LiRAParams, spec: EvalSpec, run: int = 0) -> Half:
        return Half(
            runs=params.runs,
            run=run,
            audit=params.audit,
            mislabelled=params.mislabelled,
            seed=spec.task.seed,
            alone=params.alone,
        )

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return `lira_auc`, `lira_balanced_accuracy` and `lira_tpr` over all runs, each attacked in turn.

        Raises `Diverged` if all networks of a run diverged.
        """
        from evaluators import attacks

        p, requests = self.params, self.trainings(self.params, task.eval_spec)
        index, labels, member = self._half(p, task.eval_spec).audited(task.data)
        statistic = np.stack([self._statistic(task, one, index, labels, f"run{r}") for r, one in enumerate(requests)])
        named, members = how(requests[0], task), member.cpu().numpy()
        measures, reasons = [], {}
        for variant in p.variants:
            found, missing = attacks.summary(attacks.lira(statistic, members, variant), members, p.rates)
            measures += _named("lira", found, variant, **named)
            reasons |= dict.fromkeys(missing, 1)
        found, _ = attacks.summary(statistic, members, ())  # one threshold for all images, for comparison
        return measures + _named("lira", found, "threshold", **named) + _skipped(reasons)

    def _statistic(self, task: Evaluation, training: Training, index: Tensor, labels: Tensor, name: str) -> np.ndarray:
        """Return the statistic of the audited images [a], the mean over the networks of a run that are finite."""
        from bench.train import predict
        from bench.train.networks import restore
        from evaluators import attacks

        trained = task.trained(training)
        kept = ~diverged(trained.logits)
        if not kept.any():
            raise Diverged(f"all networks of {name} diverged")
        networks = restore(trained, task.spec.dataset)
        train = task.data.train
        outputs = predict(networks, (train.images(rows) for rows in index.to(train.labels.device).split(BATCH)))[kept]
        how_sure = attacks.margin if regresses(task.distilled(name), training) else attacks.log_odds
        return how_sure(outputs.cpu().numpy(), labels.cpu().numpy()).mean(0)


def regresses(distilled: DistilledSet, training: Training) -> bool:
    """Tell whether networks were trained on the set by squared error: their outputs are then no log probabilities."""
    loss = training.recipe.get("loss", "auto")
    return loss == "mse" or (loss == "auto" and distilled.header.label_kind == "centred")


def example_losses(outputs: Tensor, labels: Tensor, regressed: bool) -> Tensor:
    """Return the loss of every example [E, n]: cross entropy, or half the squared error to the centred one-hot label.

    outputs: [E, n, K]; labels: int64 [n].
    """
    if regressed:
        target = F.one_hot(labels, outputs.shape[2]) - 1 / outputs.shape[2]
        return 0.5 * (outputs - target).square().sum(2)
    return torch.stack([F.cross_entropy(one.double(), labels, reduction="none") for one in outputs])


def _named(prefix: str, found: Iterable[tuple[str, float, dict[str, float]]], attack: str, **how: Any) -> list[Measure]:
    return [Measure(f"{prefix}_{name}", value, tags={"attack": attack, **tags}, **how) for name, value, tags in found]


def _skipped(reasons: Mapping[str, int]) -> list[Measure]:
    return [Measure("skipped", times, "times", tags={"reason": reason}) for reason, times in reasons.items()]
