"""Transfer to other architectures: one distilled set, networks it was not distilled with.

The default list is that of the cross-architecture table of Yu, Liu and Wang (TPAMI 2024): ConvNet without norm and
with the two common ones, AlexNet, ResNet18 and VGG11 with instance or batch norm. "Instance norm" is GroupNorm with
as many groups as channels, as in the field's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Strict

from bench.api import EvalSpec, Evaluation, Evaluator, Measure, NetSpec, Params, Training, param
from bench.nets import spec as nets
from evaluators.metrics import accuracies, request

REVIEW = (
    "convnet-none",
    "convnet-in",
    "convnet-bn",
    "alexnet-none",
    "alexnet-in",
    "resnet18-in",
    "resnet18-bn",
    "vgg11-in",
    "vgg11-bn",
)


class CrossArchParams(Params):
    """Which networks."""

    networks: Annotated[tuple[str | NetSpec, ...], Strict(False)] = param(
        REVIEW, "names or mappings", source="Yu, Liu and Wang, TPAMI 2024, cross-architecture table"
    )
    width: int | None = param(None, "base width of those that have one and name none; None: their defaults", ge=1)
    replicates: int | None = param(None, "networks per architecture; None: the suite's", ge=1)


class CrossArch(Evaluator):
    """Measure the test accuracy of every network of the list, trained with the suite's recipe."""

    Params = CrossArchParams
    title = "Cross-architecture accuracy"
    citation = "Zhao, Mopuri, Bilen: Dataset Condensation with Gradient Matching, ICLR 2021"

    @classmethod
    def trainings(cls, params: CrossArchParams, spec: EvalSpec) -> Sequence[Training]:
        """Return one request per network. Raises `UserError` for one that does not fit the dataset."""
        return tuple(
            request(spec, _narrowed(nets.parse(network), params.width), replicates=params.replicates)
            for network in params.networks
        )

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return one measure per network of each architecture."""
        requests = self.trainings(self.params, task.eval_spec)
        return [measure for training in requests for measure in accuracies(task.trained(training), task)]


def _narrowed(network: NetSpec, width: int | None) -> NetSpec:
    """Return the network with the suite's base width, where the architecture has one and none is given."""
    if width is None or network.width is not None or nets.architecture(network.arch).width is None:
        return network
    return network.model_copy(update={"width": width})
