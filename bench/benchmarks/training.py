"""Evaluation: training several networks on a distilled set and testing them on all test images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bench.train
from bench import nets
from bench.benchmarks import made_up
from bench.benchmarks.case import Case, Sides
from bench.benchmarks.plain import training as field
from bench.train.recipe import Recipe

TEST_BATCH = 1000


def cases(quick: bool) -> list[Case]:
    """Return the cases; `quick` ones are of the size of tests."""
    networks = 2 if quick else 5
    sizes = ((1, 2), (2, 2)) if quick else ((1, 10), (10, 5), (50, 2))
    found = [
        Case(
            f"evaluation training, IPC {ipc}",
            "training",
            f"{networks} networks, {epochs + 1} epochs",
            partial(_training, quick, ipc, networks, epochs),
        )
        for ipc, epochs in sizes
    ]
    test = Case(
        "testing",
        "training",
        f"{networks} networks on {made_up.info(quick).test_size} images",
        lambda: Work(quick, 1, networks, 1).testing(),
    )
    return [*found, test]


def _training(quick: bool, ipc: int, networks: int, epochs: int) -> Sides:
    return Work(quick, ipc, networks, epochs).training()


class Work:
    """A made-up distilled set of `ipc` images per class, and the evaluation of networks on it, done in both ways."""

    def __init__(self, quick: bool, ipc: int, networks: int, epochs: int, **recipe: Any) -> None:
        self.info, self.spec, self.device = made_up.info(quick), made_up.network(quick), made_up.device()
        self.networks, self.epochs, self.recipe = networks, epochs, Recipe(epochs=epochs, augment="dsa", **recipe)
        self.labels = torch.arange(self.info.classes, device=self.device).repeat_interleave(ipc)
        self.images = made_up.pixels(len(self.labels), self.info.shape).to(self.device).float() / 64 - 2
        self.quick = quick

    def rngs(self) -> list[torch.Generator]:
        """Return the generators of the networks, as new."""
        return [torch.Generator(self.device).manual_seed(e) for e in range(self.networks)]

    def fast(self, images: Tensor) -> bench.train.Handle:
        """Train all networks as ddbench does."""
        return bench.train.train(self.spec, images, self.labels, self.recipe, self.rngs(), info=self.info)

    def plain(self, images: Tensor, test: field.Pictures, epochs: int | None = None) -> Tensor:
        """Train and test one network after the other; return logits [E, N, K]."""
        found = []
        for rng in self.rngs():
            network = self.plain_network(rng).to(images.dtype)
            run = field.evaluate(
                network, images, self.labels, test, rng=rng, epochs=self.epochs if epochs is None else epochs
            )
            found.append(run)
        return torch.stack(found)

    def plain_network(self, rng: torch.Generator) -> field.ConvNet:
        """Return the plain network with the weights that ddbench draws from `rng`."""
        channels, side, _ = self.info.shape
        drawn = nets.build(self.spec, self.info.shape, self.info.classes, self.device)
        nets.initialise(drawn, rng, self.spec.init)
        network = field.ConvNet(channels, side, self.info.classes, self.spec.width or 0, self.spec.depth or 0)
        with torch.no_grad():
            for own, other in zip(network.parameters(), drawn.parameters(), strict=True):
                own.copy_(other)
        return network

    def pictures(self, size: int | None = None) -> field.Pictures:
        """Return the test set as bytes that are decoded on request; the first `size` only."""
        split = made_up.dataset(self.quick).test
        pixels = split.images[:size].permute(0, 2, 3, 1).contiguous().numpy()
        return field.Pictures(np.asarray(pixels), split.labels[:size].tolist(), self.info.mean, self.info.std)

    def training(self) -> Sides:
        """Time the training alone: testing is a case of its own."""
        nothing = self.pictures(1)

        def check() -> None:
            test, images = self.pictures(), self.images.double()
            inputs = torch.stack([test[k][0] for k in range(len(test))]).double().to(self.device)
            found = bench.train.predict(self.fast(images), [inputs])
            torch.testing.assert_close(found, self.plain(images, test).float(), rtol=1e-6, atol=1e-6)

        return Sides(lambda: self.fast(self.images), lambda: self.plain(self.images, nothing), check)

    def testing(self) -> Sides:
        """Time the test of networks that stay untrained."""
        data = made_up.Task(self.quick, ipc=1).data
        handle, pictures = self.fast(self.images), self.pictures()
        networks = []
        for e in range(self.networks):
            network = self.plain_network(self.rngs()[e]).to(self.device)
            with torch.no_grad():
                for own, other in zip(network.parameters(), handle.network(e)[0].values(), strict=True):
                    own.copy_(other)
            networks.append(network)

        def slow() -> Tensor:
            loaders = [torch.utils.data.DataLoader(pictures, batch_size=256) for _ in networks]
            criterion = torch.nn.CrossEntropyLoss()
            return torch.stack(
                [
                    field.run_epoch(network, loader, criterion, self.images, None, None)
                    for network, loader in zip(networks, loaders, strict=True)
                ]
            )

        def fast() -> Tensor:
            return bench.train.predict(handle, data.test.batches(TEST_BATCH))

        return Sides(fast, slow, lambda: torch.testing.assert_close(fast(), slow(), rtol=1e-5, atol=1e-5))
