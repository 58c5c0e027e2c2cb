"""Accuracy of kernel ridge regression on a distilled set: the evaluation of KIP's main tables.

No network is trained: the predictor is the kernel of an infinitely wide one. Such numbers are never comparable with
those of trained networks and stand in a column of their own, `krr_accuracy`.

Regression wants labels around zero, so every kind becomes what KIP regresses on, or the nearest to it: hard labels and
probabilities minus 1/K; centred labels as they are; logits minus their mean over the classes, which softmax ignores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.api import DistilledSet, Evaluation, Evaluator, Measure, Params, param
from bench.errors import UserError
from bench.lazy import torch
from methods.kernels import KERNELS, architecture, kernel
from methods.krr import RIDGE, centred, solve

if TYPE_CHECKING:
    from torch import Tensor


class KernelRegressionParams(Params):
    """The kernel regression."""

    kernel: str = param("fc1", KERNELS, source="KIP.ipynb")
    kind: Literal["ntk", "nngp"] = param("ntk", "which kernel of the infinitely wide network", source="KIP.ipynb")
    ridge: float = param(RIDGE, "ridge relative to the mean diagonal", source="KIP.ipynb", gt=0)
    chunk: int = param(1000, "test images per block; bounds memory, changes nothing", source="ours", ge=1)
    largest: int = param(20_000, "most images of a set: 20,000 make a kernel matrix of 3 GiB", source="ours", ge=1)


class KernelRegression(Evaluator):
    """Regress the labels on the distilled images with a closed-form kernel and test on real images, in float64."""

    Params = KernelRegressionParams
    title = "Accuracy of kernel ridge regression"
    citation = "Nguyen et al., Dataset Distillation with Infinitely Wide Convolutional Networks, NeurIPS 2021"

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return the test accuracy.

        Raises `UserError` for an unknown kernel, a set too large for it, and one whose kernel matrix has no
        Cholesky factor.
        """
        from bench.distilled import decode

        p, distilled, test = self.params, task.distilled(), task.data.test
        architecture(p.kernel)
        if len(distilled.labels) > p.largest:
            raise UserError(
                f"kernel regression on {len(distilled.labels)} images needs a matrix of as many rows and columns",
                hint=f"leave this method out with `where`, or raise `largest` ({p.largest})",
            )
        support, gram = decode(distilled, task.data).double(), kernel(p.kernel, p.kind)
        labels = regressed(distilled, task.spec.dataset.classes)
        with torch.no_grad():
            try:
                weights = solve(gram(support, support), labels, p.ridge)
            except torch.linalg.LinAlgError as error:
                raise UserError(
                    f"the kernel matrix of the set cannot be solved: {error}", hint="a larger ridge"
                ) from error
            predicted = torch.cat([(gram(x.double(), support) @ weights).argmax(1) for x in test.batches(p.chunk)])
        accuracy = (predicted == test.labels).double().mean().item()
        return [Measure("krr_accuracy", accuracy, network=f"{p.kind}-{p.kernel}", selection="last")]


def regressed(distilled: DistilledSet, classes: int) -> Tensor:
    """Return the labels that are regressed on, float64 [n, K]."""
    labels, kind = distilled.labels, distilled.header.label_kind
    if kind == "hard":
        return centred(labels, classes, torch.float64)
    labels = labels.double()
    if kind == "probabilities":
        return labels - 1 / classes
    return labels - labels.mean(1, keepdim=True) if kind == "logits" else labels
