"""DSA alone: one batch with parameters of its own for each image, and one siamese call beside a DM iteration."""

from __future__ import annotations

from functools import partial

import torch

import bench.augment
from bench.augment import operations as ops
from bench.benchmarks import made_up
from bench.benchmarks.case import Case, Sides
from bench.benchmarks.plain import dsa
from bench.registry import METHODS

NAMES = ("color", "crop", "cutout", "flip", "scale", "rotate")


def cases(quick: bool) -> list[Case]:
    """Return the cases; `quick` ones are of the size of tests."""
    size = 12 if quick else 256
    found = [
        Case(
            f"DSA {name}, {size} images",
            "augment",
            "one batch",
            partial(_operation, name, size, quick),
        )
        for name in NAMES
    ]
    found += [
        Case(
            f"DSA {name}, parameters of {size} images",
            "augment",
            "the matrices of one batch",
            partial(_parameters, name, size, quick),
            target=None if quick else 20.0,
        )
        for name in ("scale", "rotate")
    ]
    siamese = Case(
        "DSA siamese call beside a DM iteration",
        "augment",
        "fast: one call for all real images; plain: one DM iteration",
        partial(_siamese, quick),
        target=None if quick else 10.0,
    )
    return [*found, siamese]


def _operation(name: str, size: int, quick: bool) -> Sides:
    """One operation on a batch: drawn and applied."""
    shape, device = made_up.info(quick).shape, made_up.device()
    images = made_up.pixels(size, shape).to(device).float() / 128 - 1
    rngs = {side: torch.Generator(device).manual_seed(3) for side in ("fast", "plain")}
    augment = bench.augment.get(f"dsa:{name}")
    numbers = augment.operations[0].count(shape)

    def fast() -> torch.Tensor:
        return augment(images, rngs["fast"])

    def plain() -> torch.Tensor:
        uniform = torch.rand(1, size, numbers, generator=rngs["plain"], device=device)[0]
        return dsa.OPERATIONS[name](images, uniform)

    def check() -> None:
        for rng in rngs.values():
            rng.manual_seed(4)
        torch.testing.assert_close(fast(), plain(), rtol=1e-5, atol=1e-5)

    return Sides(fast, plain, check)


def _parameters(name: str, size: int, quick: bool) -> Sides:
    """From random numbers to affine matrices."""
    device = made_up.device()
    uniform = torch.rand(size, 2, generator=torch.Generator().manual_seed(3)).to(device)

    def fast() -> torch.Tensor:
        if name == "rotate":
            return ops.rotation(uniform[:, 0] * 30 - 15)
        factors = 1 / 1.2 + uniform * (1.2 - 1 / 1.2)
        return ops.scaling(factors[:, 0], factors[:, 1])

    def plain() -> torch.Tensor:
        return dsa.rotate_matrices(uniform) if name == "rotate" else dsa.scale_matrices(uniform)

    return Sides(fast, plain, lambda: torch.testing.assert_close(fast(), plain(), rtol=1e-6, atol=1e-6))


def _siamese(quick: bool) -> Sides:
    """What the augmentation costs a method: the call on its real images beside a whole iteration."""
    task = made_up.Task(quick, ipc=1 if quick else 10, augment=made_up.STRATEGY)
    kind = METHODS.get("dm")
    method = kind(kind.Params(batch_real=6 if quick else 256))
    method.start(task)
    real = task.data.train.sample_classes(method.params.batch_real, task.rng("real"))
    shape = (len(real.counts), *real.images.shape[1:])

    def siamese() -> torch.Tensor:
        draw = task.augment.draw(shape, task.rng("augment"), groups=len(real.counts), shared=True)
        return task.augment.apply(real.images, draw, counts=real.counts)

    return Sides(siamese, method.step)
