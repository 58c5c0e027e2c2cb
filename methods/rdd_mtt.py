"""RDD over MTT: trajectories of experts that were trained under the group risk. A combination that is not published.

RDD (Vahidian et al., ICLR 2025) changes the training of networks on real images. In trajectory matching that is the
training of the experts: cross-entropy, in every third batch plus the group risk (`methods/risk.py`). A student on the
synthetic images must then arrive where a robust expert is, so the risk reaches the images through its goal. Experts
know no synthetic images for groups to form around: each class is cut into k-means clusters of its features, anew
before each epoch. All else is MTT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bench.api import Artifact, DatasetInfo, Need, Preset, TaskSpec, param
from bench.lazy import torch
from methods import experts, mtt
from methods.risk import CODE, RiskLoss, RiskParams, centres, embed

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from bench.api import Task


class ClusterParams(RiskParams):
    """The risk of groups within classes."""

    centres: int = param(10, "groups of a class, at most", source=f"{CODE}: as many as anchors", ge=1)


class RobustExperts(Artifact):
    """The experts of `methods.experts.Experts`, with the group risk in their loss: same draws, same tensors.

    One after the other: losses in groups are not a mean over images, which the stacked trainer computes.
    """

    title = "expert trajectories under the group risk"

    class Params(experts.Experts.Params, ClusterParams):
        """How the experts are trained."""

    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Train the experts on augmented real images."""
        p = self.params
        images, labels = experts.training_images(task, p.images, "expert images")
        network = task.network().train()
        size = sum(weight.numel() for weight in network.parameters())
        snapshots, curves = torch.empty(p.experts, p.epochs + 1, size), torch.empty(p.experts, p.epochs)
        for number in range(p.experts):
            rng, clusters = task.rng(f"expert/{number}"), task.rng(f"groups/{number}")
            task.initialise(network, rng)
            snapshots[number, 0] = vector(network)
            optimiser = torch.optim.SGD(network.parameters(), lr=p.lr)
            for epoch in range(p.epochs):
                groups, count = within_classes(embed(network, images), labels, p.centres, clusters)
                curves[number, epoch] = self.epoch(task, network, optimiser, (images, labels, groups), count, rng)
                snapshots[number, epoch + 1] = vector(network)
                task.report(number * p.epochs + epoch + 1, p.experts * p.epochs, "epochs of experts")
        return {"snapshots": snapshots, "loss": curves}

    def epoch(
        self,
        task: Task,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        data: tuple[Tensor, Tensor, Tensor],
        count: int,
        rng: Generator,
    ) -> float:
        """Train one epoch on images, labels and groups; return the mean loss of its batches, the risk included."""
        images, labels, groups = data
        objective, losses = RiskLoss(self.params, count), []
        order = torch.randperm(len(labels), generator=rng, device=rng.device).to(task.device)
        for index in order.split(self.params.batch):
            loss = objective(network, task.augment(images[index], rng), labels[index], groups[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())


def vector(network: nn.Module) -> Tensor:
    """Return all weights as one vector, in the order of `bench.unroll.Flat`."""
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def within_classes(features: Tensor, labels: Tensor, count: int, rng: Generator) -> tuple[Tensor, int]:
    """Return the k-means group of every row among those of its class, int64 [n], and the number of groups."""
    groups, total = torch.empty_like(labels), 0
    for label in labels.unique():
        index = (labels == label).nonzero().squeeze(1)
        found, owner = centres(features[index], count, rng)
        groups[index] = total + owner
        total += len(found)
    return groups, total


class RDDMTT(mtt.MTT):
    """Trajectory matching with experts trained under the group risk."""

    class Params(mtt.MTT.Params, ClusterParams):
        """Hyper-parameters of MTT and of its experts' risk."""

    title = "RDD on MTT: experts under the group risk (combination, not published)"
    citation = "Vahidian et al., ICLR 2025, on Cazenavette et al., CVPR 2022"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return MTT's setting, without a source: the combination is not published."""
        return Preset(super().preset(dataset, ipc).params, None)

    @classmethod
    def needs(cls, params: Any, spec: TaskSpec) -> Mapping[str, Need]:
        """Ask for the robust experts; all IPC and seeds share them."""
        plain = super().needs(params, spec)["experts"]
        risk = params.model_dump(include=set(ClusterParams.model_fields))
        return {"experts": Need("robust_experts", {**plain.params, **risk}, plain.task)}
