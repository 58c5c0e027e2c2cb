"""Evaluation as the field's code does it: one network after the other, each batch from a `DataLoader`.

The training set is a tensor in a `DataLoader` that collates image by image; the optimiser is made anew where the rate
drops; losses and accuracies are fetched from the device batch by batch. The test set is pictures in memory which are
decoded and normalised one by one at every test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from bench import tv
from bench.benchmarks.plain import dsa


class ConvNet(nn.Module):
    """The field's default network: blocks of convolution, instance norm as GroupNorm, ReLU and average pooling."""

    def __init__(self, channels: int, side: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in range(depth):
            layers += [
                nn.Conv2d(channels if block == 0 else width, width, kernel_size=3, padding=1),
                nn.GroupNorm(width, width, affine=True),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(kernel_size=2, stride=2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (side // 2**depth) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        maps = self.features(images)
        return self.classifier(maps.flatten(1))


class Tensors(Dataset):
    """Images and labels that are tensors, handed out one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.detach(), labels.detach()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.images)


class Pictures(Dataset):
    """Bytes [n, h, w, c] that become a picture, a tensor and a normalised tensor whenever they are asked for."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        transforms = tv.torchvision().transforms
        self.pixels, self.labels = pixels, labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        pixels = self.pixels[index]
        picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(picture), self.labels[index]

    def __len__(self) -> int:
        return len(self.pixels)


class Shuffled(Sampler):
    """A new order for every epoch, from a generator."""

    def __init__(self, size: int, rng: Generator) -> None:
        self.size, self.rng = size, rng

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.size, generator=self.rng, device=self.rng.device).tolist())

    def __len__(self) -> int:
        return self.size


def evaluate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    pictures: Pictures,
    *,
    rng: Generator,
    epochs: int,
    rate: float = 0.01,
    augment: bool = True,
    batch: int = 256,
) -> Tensor:
    """Train one network for epochs + 1 passes and test it; return the logits on the test set.

    The rate drops to a tenth after pass epochs // 2 + 1, as `half_reset` does.
    """
    network = network.to(images.device)
    criterion = nn.CrossEntropyLoss().to(images.device)
    loader = DataLoader(
        Tensors(images, labels), batch_size=batch, sampler=Shuffled(len(images), rng), generator=Generator()
    )
    optimiser = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs + 1):
        run_epoch(network, loader, criterion, images, rng if augment else None, optimiser)
        if epoch == epochs // 2 + 1:
            optimiser = torch.optim.SGD(network.parameters(), lr=rate * 0.1, momentum=0.9, weight_decay=5e-4)
    return logits_of(network, pictures, images, batch)


def logits_of(network: nn.Module, pictures: Pictures, like: Tensor, batch: int = 256) -> Tensor:
    """Test one network; return the logits."""
    criterion = nn.CrossEntropyLoss().to(like.device)
    return run_epoch(
        network, DataLoader(pictures, batch_size=batch, generator=Generator()), criterion, like, None, None
    )


def run_epoch(
    network: nn.Module,
    loader: DataLoader,
    criterion: nn.Module,
    like: Tensor,
    rng: Generator | None,
    optimiser: torch.optim.Optimizer | None,
) -> Tensor:
    """Train (with an optimiser) or test over one epoch; return the logits of all images.

    rng: for the augmentation; None for none. like: a tensor of the device and the type of the computation.
    """
    loss_sum, right, seen, found = 0.0, 0, 0, []
    network.train(optimiser is not None)
    for images, labels in loader:
        images, labels = images.to(like), labels.long().to(like.device)
        if rng is not None:
            images = dsa.augment(images, rng)
        with torch.set_grad_enabled(optimiser is not None):
            logits = network(images)
            loss = criterion(logits, labels)
        right += np.sum(np.equal(np.argmax(logits.cpu().data.numpy(), axis=-1), labels.cpu().data.numpy()))
        loss_sum += loss.item() * len(labels)
        seen += len(labels)
        if optimiser is not None:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        found.append(logits.detach())
    assert seen == len(loader.dataset)  # type: ignore[arg-type]
    return torch.cat(found)
