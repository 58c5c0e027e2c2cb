"""Accuracy of kernel ridge regression on a distilled set: the evaluation of KIP's main tables.

No network is trained: the predictor is the kernel of an infinitely wide one. Such numbers are never comparable with
those of trained networks and stand in a column of their own.
"""

from __future__ import annotations

from typing import Literal

from bench.api import Evaluation, Evaluator, Measure, Params, param
from bench.lazy import torch
from methods.kernels import architecture, kernel
from methods.krr import RIDGE, centred, solve


class KernelRegression(Evaluator):
    """Regress centred labels on the distilled images with a closed-form kernel and test on real images."""

    class Params(Params):
        """The kernel regression."""

        kernel: str = param("fc1", "fc<L>, conv<L>, conv<L>-gap, convnet, convnet3, myrtle5", source="KIP.ipynb")
        kind: Literal["ntk", "nngp"] = param("ntk", "which kernel of the infinitely wide network", source="KIP.ipynb")
        ridge: float = param(RIDGE, "ridge relative to the mean diagonal", source="KIP.ipynb", gt=0)
        chunk: int = param(1000, "test images per block; bounds memory, changes nothing", ge=1)

    title = "accuracy of kernel ridge regression"
    citation = "Nguyen et al., Dataset Distillation with Infinitely Wide Convolutional Networks, NeurIPS 2021"

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return the test accuracy. Hard labels are centred one-hot vectors, other labels are taken as they are."""
        from bench.distilled import decode

        p, distilled, test = self.params, task.distilled(), task.data.test
        architecture(p.kernel)
        support, labels = decode(distilled, task.data).double(), distilled.labels
        if distilled.header.label_kind == "hard":
            labels = centred(labels, task.spec.dataset.classes, torch.float64)
        gram = kernel(p.kernel, p.kind)
        with torch.no_grad():
            weights = solve(gram(support, support), labels.double(), p.ridge)
            predicted = torch.cat([(gram(x.double(), support) @ weights).argmax(1) for x in test.batches(p.chunk)])
        accuracy = (predicted == test.labels).double().mean().item()
        return [Measure("krr_accuracy", accuracy, network=f"{p.kind}-{p.kernel}", selection="last")]
