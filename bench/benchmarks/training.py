"""Evaluation: training several networks on a distilled set and testing them on all test images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bench.train
from bench import compiled, nets
from bench.benchmarks import made_up
from bench.benchmarks.case import Case, Sides
from bench.benchmarks.plain import training as field
from bench.train import schedule
from bench.train.recipe import Recipe
from bench.train.step import WITH_BACKWARD

WHOLE = Recipe(epochs=1000, augment="dsa")
"""The evaluation that the cases are parts of: what the field calls the default."""


def cases(quick: bool) -> list[Case]:
    """Return the cases; `quick` ones are of the size of tests.

    A case is a part of the whole evaluation, its test set cut in the same proportion. What `compile: auto` chooses
    for the whole is what the part is done with.
    """
    networks = 2 if quick else 5
    sizes = ((1, 2), (2, 2)) if quick else ((1, 20), (10, 10), (50, 4))
    precisions: dict[str, float] = {"fp32": 1.4, "bf16": 2.5}
    found = [
        Case(
            f"evaluation, IPC {ipc}, {precision}",
            "training",
            f"{networks} networks, {epochs} epochs, that part of the test",
            partial(_evaluation, quick, ipc, networks, epochs, precision),
            target=target if ipc > 1 and not quick else None,
            share=None if quick else (epochs + 1) / (WHOLE.passes or 1),
            repeats=None if quick else 5,
        )
        for ipc, epochs in sizes
        for precision, target in precisions.items()
    ]
    test = Case(
        "testing",
        "training",
        f"{networks} networks on {made_up.info(quick).test_size // (1 if quick else 10)} images",
        partial(_test, quick, networks),
    )
    return [*found, test]


def _evaluation(quick: bool, ipc: int, networks: int, epochs: int, precision: str) -> Sides:
    return Work(quick, ipc, networks, epochs, precision=precision).evaluation()


def _test(quick: bool, networks: int) -> Sides:
    return Work(quick, 1, networks, 1).testing()


class Work:
    """A made-up distilled set of `ipc` images per class, and the evaluation of networks on it, done in both ways."""

    def __init__(self, quick: bool, ipc: int, networks: int, epochs: int, precision: Any = "fp32") -> None:
        self.info, self.spec, self.device = made_up.info(quick), made_up.network(quick), made_up.device()
        self.quick, self.networks, self.epochs = quick, networks, epochs
        self.labels = torch.arange(self.info.classes, device=self.device).repeat_interleave(ipc)
        self.images = made_up.pixels(len(self.labels), self.info.shape).to(self.device).float() / 64 - 2
        chosen: Any = "never" if quick or self.reason() else "always"
        update = {"epochs": epochs, "precision": precision, "compile": chosen}
        self.recipe = WHOLE.model_copy(update=update)
        size = self.info.test_size if quick else round(self.info.test_size * (epochs + 1) / (WHOLE.passes or 1))
        self.tested, self.data = slice(0, size), made_up.Task(quick, ipc=1).data
        self.facts = {"compile": chosen if not self.reason() else f"{chosen}: {self.reason()}"}

    def reason(self) -> str | None:
        """Return why the whole evaluation would not be compiled, None where it would be."""
        network = nets.build(self.spec, self.info.shape, self.info.classes)
        batch = min(WHOLE.batch, len(self.labels))
        steps = schedule.total_steps(WHOLE, -(-len(self.labels) // batch))
        work = WITH_BACKWARD * steps * batch * nets.multiply_adds(network, self.info.shape)
        return compiled.reason_against(work, self.device)

    def rngs(self) -> list[torch.Generator]:
        """Return the generators of the networks, as new."""
        return [torch.Generator(self.device).manual_seed(e) for e in range(self.networks)]

    def fast(self, images: Tensor) -> bench.train.Handle:
        """Train all networks as ddbench does."""
        return bench.train.train(self.spec, images, self.labels, self.recipe, self.rngs(), info=self.info)

    def plain(self, images: Tensor, test: field.Pictures) -> Tensor:
        """Train and test one network after the other; return logits [E, N, K]."""
        found = []
        for rng in self.rngs():
            network = self.plain_network(rng).to(images.dtype)
            found.append(field.evaluate(network, images, self.labels, test, rng=rng, epochs=self.epochs))
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
        return network.to(self.device)

    def pictures(self, size: int) -> field.Pictures:
        """Return the first `size` test images as bytes that are decoded on request."""
        split = made_up.dataset(self.quick).test
        pixels = split.images[:size].permute(0, 2, 3, 1).contiguous().numpy()
        return field.Pictures(np.asarray(pixels), split.labels[:size].tolist(), self.info.mean, self.info.std)

    def evaluation(self) -> Sides:
        """Train and test."""
        pictures = self.pictures(self.tested.stop)

        def fast() -> Tensor:
            return bench.train.predict(self.fast(self.images), [self.data.test.images(self.tested)])

        def check() -> None:
            exact = self.recipe.precision == "fp32"
            images, tested = self.images, self.data.test.images(self.tested)
            if exact:
                images, tested = images.double(), tested.double()
            found = bench.train.predict(self.fast(images), [tested])
            tolerance = 1e-6 if exact else 0.05
            torch.testing.assert_close(found, self.plain(images, pictures).float(), rtol=tolerance, atol=tolerance)

        return Sides(fast, lambda: self.plain(self.images, pictures), check, facts=self.facts)

    def testing(self) -> Sides:
        """Test networks that are hardly trained."""
        handle, size = self.fast(self.images), self.data.test.size // (1 if self.quick else 10)
        pictures, networks = self.pictures(size), []
        for rng, e in zip(self.rngs(), range(self.networks), strict=True):
            network = self.plain_network(rng)
            with torch.no_grad():
                for own, other in zip(network.parameters(), handle.network(e)[0].values(), strict=True):
                    own.copy_(other)
            networks.append(network)

        def fast() -> Tensor:
            return bench.train.predict(handle, [self.data.test.images(slice(0, size))])

        def plain() -> Tensor:
            return torch.stack([field.logits_of(network, pictures, self.images) for network in networks])

        return Sides(fast, plain, lambda: torch.testing.assert_close(fast(), plain(), rtol=1e-5, atol=1e-5))
