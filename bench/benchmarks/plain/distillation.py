"""One outer iteration of the matching methods as the field's code does it.

Class by class, one forward pass for each class and side, gradients of all parameters whether the distance counts them
or not, graphs of all classes kept for one backward pass, augmentation parameters as nested lists. `randomness` (real
images, augmentations, fresh weights) comes from the task as it does for the fast side, so that both can be compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bench.benchmarks.plain import dsa
from bench.benchmarks.plain.training import Shuffled

if TYPE_CHECKING:
    from bench.task import LiveTask


class Matching(ABC):
    """A set of images and the optimiser that moves them. `loss` says what is compared for one class."""

    def __init__(self, task: LiveTask, rate: float, batch_real: int) -> None:
        self.task, self.batch_real = task, batch_real
        self.classes, self.ipc = task.spec.dataset.classes, task.spec.ipc or 1
        real = [task.data.train.sample_class(c, self.ipc, task.rng("init")) for c in range(self.classes)]
        self.images = torch.cat(real).requires_grad_()
        self.optimiser = torch.optim.SGD([self.images], lr=rate, momentum=0.5)

    def new_network(self, trained: bool) -> nn.Module:
        """Build a network and draw its weights."""
        network = self.task.network().requires_grad_(trained).train()
        self.task.initialise(network, self.task.rng("network"))
        return network

    def update(self, network: nn.Module) -> None:
        """Do one step of the images on the sum over the classes."""
        task, shape = self.task, (self.classes, *self.images.shape[1:])
        real = [task.data.train.sample_class(c, self.batch_real, task.rng("real")) for c in range(self.classes)]
        draw = task.augment.draw(shape, task.rng("augment"), groups=self.classes, shared=True)
        loss = torch.zeros((), device=task.device)
        for c, batch in enumerate(real):
            synthetic = self.images[c * self.ipc : (c + 1) * self.ipc]
            if task.spec.augment != "none":
                batch, synthetic = (self._augmented(side, draw, c) for side in (batch, synthetic))
            loss = loss + self.loss(network, c, batch, synthetic)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    @staticmethod
    def _augmented(images: Tensor, draw: Any, c: int) -> Tensor:
        operation = dsa.OPERATIONS[dsa.NAMES[int(draw.choice[c, 0])]]
        return operation(images, draw.uniform[c].expand(len(images), -1).to(images))

    @abstractmethod
    def step(self) -> None:
        """Do what is timed."""

    @abstractmethod
    def loss(self, network: nn.Module, c: int, real: Tensor, synthetic: Tensor) -> Tensor:
        """Return the distance of one class."""


class Distribution(Matching):
    """DM."""

    def step(self) -> None:
        """Do one iteration."""
        self.update(self.new_network(trained=False))

    def loss(self, network: nn.Module, c: int, real: Tensor, synthetic: Tensor) -> Tensor:
        """Return the squared distance of the mean embeddings."""
        embed: Any = network.features
        return ((embed(real).detach().mean(0) - embed(synthetic).mean(0)) ** 2).sum()


class Gradients(Matching):
    """DC and DSA: one update of the images; the network stays as it was drawn."""

    def step(self) -> None:
        """Do one update."""
        if not hasattr(self, "network"):
            self.network = self.new_network(trained=True)
        self.update(self.network)

    def loss(self, network: nn.Module, c: int, real: Tensor, synthetic: Tensor) -> Tensor:
        """Return the sum of one minus the cosine of the gradients of every output unit, layer by layer."""
        weights = list(network.parameters())
        sides = []
        for images, graph in ((real, False), (synthetic, True)):
            labels = torch.full((len(images),), c, device=images.device)
            value = nn.CrossEntropyLoss()(network(images), labels)
            sides.append(torch.autograd.grad(value, weights, create_graph=graph))
        total = torch.zeros((), device=real.device)
        for a, b in zip(*sides, strict=True):
            if a.dim() > 1:
                a, b = a.detach().clone().flatten(1), b.flatten(1)
                norms = torch.norm(a, dim=-1) * torch.norm(b, dim=-1) + 0.000001
                total = total + torch.sum(1 - torch.sum(a * b, dim=-1) / norms)
        return total


def regression(method: Any, network: nn.Module, real: Tensor, targets: Tensor) -> list[Tensor]:
    """Return the derivatives of FRePo's loss by images and labels, real features with a graph."""
    images, labels = method.images, method.labels
    if method.params.flip:
        images, labels = torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
    embed: Any = network.features
    f_t, f_s = embed(real), embed(images).double()
    kernel = f_s @ f_s.T
    eye = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    weights = torch.linalg.solve(kernel + method.params.ridge * kernel.trace() / len(kernel) * eye, labels.double())
    predicted = f_t.double() @ f_s.T @ weights
    loss = 0.5 * (predicted - targets).square().sum(1).mean()
    top = method.labels.topk(2, dim=1).values
    margin = (top[:, 0] - top[:, 1]).clamp(max=1 / labels.shape[1]).mean()
    return list(torch.autograd.grad(loss - margin, [method.images, method.labels]))


def imitate(student: nn.Module, teacher: nn.Module, images: Tensor, rng: Any, p: Any) -> nn.Module:
    """Train a student of APM on augmented images from a `DataLoader` to predict the teacher's logits."""
    optimiser = torch.optim.SGD(student.requires_grad_().train().parameters(), p.lr_net, 0.9, weight_decay=5e-4)
    with torch.no_grad():
        targets = teacher(images)
    order = Shuffled(len(images), rng)
    loader = DataLoader(TensorDataset(images, targets), p.batch_train, sampler=order, generator=torch.Generator())
    for epoch in range(p.student_epochs + 1):
        if epoch == p.student_epochs // 2 + 1:
            optimiser.param_groups[0]["lr"] = p.lr_net * 0.1
        for batch, target in loader:
            loss = F.l1_loss(student(dsa.augment(batch, rng)), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return student
