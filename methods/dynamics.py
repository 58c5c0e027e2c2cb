"""One ordinary training on the whole real set, and what coreset selections want to know of it.

features     float32 [N, d]: penultimate features of all training images, as stored, network in evaluation mode
forgetting   int64 [N]: how often an image went from classified right to wrong between two visits
learned      bool [N]: whether it was ever classified right
el2n, grand  float32 [N]: error norm, and gradient norm of the last layer, of the trained network
accuracy     float32 [epochs]: on the training batches, before each update

Toneva et al., ICLR 2019 (forgetting); Paul, Ganguli, Dziugaite, "Deep learning on a data diet", NeurIPS 2021 (EL2N,
GraNd; they average ten networks, here it is one). The counts are taken in the training step itself, on the augmented
images where training augments them, and before the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import bench.api
from bench.api import Artifact, Task, param
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


class Dynamics(Artifact):
    """A network trained on the whole real set, seen through its features and its forgetting."""

    title = "Training dynamics on the real set"

    class Params(bench.api.Params):
        """Plain SGD with momentum, constant rate."""

        epochs: int = param(30, "passes over the training set", unit="epochs", ge=1)
        rate: float = param(0.01, "learning rate", source="evaluation training of DC, Zhao et al. 2021", gt=0)
        momentum: float = param(0.9, "momentum of SGD", ge=0, lt=1)
        weight_decay: float = param(5e-4, "weight decay of SGD", ge=0)
        batch: int = param(256, "images per step", unit="images", ge=1)
        augment: Literal["auto", "none"] = param("auto", "auto: crop and flip where the dataset allows flips; or none")

    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Train, count, and read the features."""
        train = task.data.train
        network, record, accuracy = self.fit(task)
        features, logits = outputs(network, train.batches(1024))
        return {
            "features": features,
            "forgetting": record.events,
            "learned": record.learned,
            "el2n": el2n(logits, train.labels),
            "grand": grand(logits, train.labels, features),
            "accuracy": accuracy,
        }

    def fit(self, task: Task) -> tuple[torch.nn.Module, Record, Tensor]:
        """Return the trained network, what was counted on the way, and the accuracy of each epoch [epochs]."""
        p, train = self.params, task.data.train
        network = task.network()
        task.initialise(network, task.rng("initialise"))
        optimiser = torch.optim.SGD(network.parameters(), lr=p.rate, momentum=p.momentum, weight_decay=p.weight_decay)
        augment = self._augmentation(task)
        record = Record(train.size, task.device)
        accuracy = []
        network.train()
        for _ in range(p.epochs):
            right = torch.zeros((), device=task.device)
            for index in batches(train.size, p.batch, task.rng("order")):
                index = index.to(task.device)
                labels = train.labels[index]
                logits = network(augment(train.images(index)))
                correct = logits.detach().argmax(1) == labels
                record.visit(index, correct)
                right += correct.sum()
                optimiser.zero_grad(set_to_none=True)
                F.cross_entropy(logits, labels).backward()
                optimiser.step()
            accuracy.append(right / train.size)
        return network, record, torch.stack(accuracy)

    def _augmentation(self, task: Task) -> Callable[[Tensor], Tensor]:
        if self.params.augment == "none" or not task.spec.dataset.flip:
            return lambda images: images
        from bench.augment import get

        augment, rng = get("crop_flip"), task.rng("augment")
        return lambda images: augment(images, rng)


class Record:
    """Counts of forgetting for `size` images. Before its first visit an image counts as classified wrong."""

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.events = torch.zeros(size, dtype=torch.int64, device=device)
        self.last = torch.zeros(size, dtype=torch.bool, device=device)
        self.learned = torch.zeros(size, dtype=torch.bool, device=device)

    def visit(self, index: Tensor, correct: Tensor) -> None:
        """Note that the images `index` (each at most once) were classified `correct` (bool) in this step."""
        self.events[index] += self.last[index] & ~correct
        self.last[index] = correct
        self.learned[index] |= correct


def batches(size: int, batch: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield the indices of one epoch in random order; the last batch may be smaller."""
    yield from torch.randperm(size, generator=rng, device=rng.device).split(batch)


def outputs(network: Any, images: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the features [N, d] and logits [N, K] of batches of images, network in evaluation mode, in float32."""
    network.eval()
    features, logits = [], []
    with torch.no_grad():
        for batch in images:
            features.append(network.features(batch))
            logits.append(network.head(features[-1]))
    return torch.cat(features).float(), torch.cat(logits).float()


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """Return || softmax(logits) - onehot(labels) ||_2 for each image: [N], within 0 and sqrt(2)."""
    error = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
    return torch.linalg.vector_norm(error, dim=1)


def grand(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Return the norm of the cross entropy's gradient by weight and bias of the last layer, for each image: [N].

    The gradient is (p - y) for the bias and its outer product with the features for the weight, whose common norm is
    || p - y || sqrt(1 + || h ||^2): no backward pass, and no factor from the size of a batch.
    """
    return el2n(logits, labels) * (1 + features.square().sum(1)).sqrt()
