"""One outer iteration of every method, or the part of it that takes the time.

The fast side is the method itself, which compiles what its whole published run is long enough for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.benchmarks import made_up
from bench.benchmarks.case import Case, Sides
from bench.benchmarks.plain import distillation as field
from bench.registry import METHODS
from bench.unroll import differentiate


def cases(quick: bool) -> list[Case]:
    """Return the cases; `quick` ones are of the size of tests."""
    ipc = 2 if quick else 10
    matching = [
        ("DM", "dm", {}, "one iteration", 1.5),
        ("DM bf16", "dm", {"precision": "bf16"}, "one iteration", 3.0),
        ("DC", "dc", {}, "one image update", 1.5),
        ("DSA", "dsa", {}, "one image update", 1.5),
    ]
    found = [
        _case(f"{title}, IPC {ipc}", unit, partial(_matching, name, params, quick, ipc), quick, target)
        for title, name, params, unit, target in matching
    ]
    found.append(_case(f"FRePo, IPC {ipc}", "one outer step", partial(_frepo, quick, ipc), quick, 1.5))
    found.append(_case(f"APM students, IPC {ipc}", "one student, six epochs", partial(_apm, quick, ipc), quick, 1.5))
    for size in (2,) if quick else (1, 10):
        for title, compile_, target in (("MTT plain", False, 1 / 1.3), ("MTT compiled", True, 1.0)):
            make = partial(_unrolled, "mtt", compile_, quick, size)
            case = _case(f"{title}, IPC {size}", "one iteration, T = 50", make, quick, target)
            found.append(replace(case, memory=True, repeats=3 if size > 1 else None))
    for steps in (3, 6) if quick else (10, 100):
        make = partial(_alone, quick, steps)
        case = Case(f"MTT alone, IPC 1, T = {steps}", "distillation", "one iteration", make)
        found.append(replace(case, memory=True, repeats=1))
    found += [
        Case("TESLA, IPC 1", "distillation", "one iteration, T = 50", partial(_unrolled, "tesla", True, quick, 1)),
        Case("KIP kernel block", "distillation", "images with themselves", partial(_kernel, quick)),
    ]
    return found


def _case(name: str, unit: str, make: Callable[[], Sides], quick: bool, target: float) -> Case:
    return Case(name, "distillation", unit, make, target=None if quick else target)


def _start(name: str, task: made_up.Task, **params: Any) -> Any:
    """Return a method at the beginning of its published run on the task."""
    kind = METHODS.get(name)
    method = kind(kind.Params.model_validate(params))
    method.start(task)
    return method


# ------------------------------------------------------------------------------------------------ matching


def _matching(name: str, params: dict[str, Any], quick: bool, ipc: int) -> Sides:
    """DM, DC and DSA beside the loop over classes."""
    params = {**params, "init": "real", "batch_real": 5 if quick else 256}
    augment = "none" if name == "dc" else made_up.STRATEGY

    def make() -> tuple[Any, Callable[[], Any], field.Matching]:
        method = _start(name, made_up.Task(quick, ipc, augment=augment), **params)
        kind = field.Distribution if name == "dm" else field.Gradients
        plain = kind(made_up.Task(quick, ipc, augment=augment), method.params.lr_img, method.params.batch_real)
        if name == "dm":
            return method, method.step, plain
        method.task.initialise(method.model, method.task.rng("network"))
        method.real_images = 0
        return method, method.update_images, plain

    def check() -> None:
        method, step, plain = make()
        first = plain.images.detach().clone()
        for _ in range(2):
            step()
            plain.step()
        _near(method.set.images() - first, plain.images - first, 0.1 if "precision" in params else 1e-3)

    method, step, plain = make()
    return Sides(step, plain.step, check, method.choices())


# ------------------------------------------------------------------------------------------------ other methods


def _frepo(quick: bool, ipc: int) -> Sides:
    """FRePo beside real features with a graph and one general solve."""

    def make() -> Any:
        size = {"width": 4, "depth": 2, "batch": 12} if quick else {}
        return _start("frepo", made_up.Task(quick, ipc), flip=True, **size)

    def plain_step(method: Any) -> None:
        p, task = method.params, method.task
        who = int(torch.randint(p.pool, (), generator=task.rng("pool"), device=task.device))
        batch = task.data.train.sample_mixed(p.batch, task.rng("real"))
        targets = torch.nn.functional.one_hot(batch.labels, task.spec.dataset.classes) - 1 / task.spec.dataset.classes
        gradients = field.regression(method, method.networks[who].eval(), batch.images, targets)
        method.lamb.step(gradients, p.lr)
        method._online(who)

    def check() -> None:
        method, other = make(), make()
        method.step()
        plain_step(other)
        for a, b in zip(method.learned, other.learned, strict=True):
            _near(a, b, 1e-4)

    method, other = make(), make()
    return Sides(method.step, lambda: plain_step(other), check, method.choices())


def _apm(quick: bool, ipc: int) -> Sides:
    """The training of APM's students beside one from a `DataLoader`."""

    def make() -> tuple[Any, torch.nn.Module]:
        task = made_up.Task(quick, ipc, augment=made_up.STRATEGY)
        teacher = task.network()
        task.initialise(teacher, task.rng("teacher"))
        task.artifacts["teachers"] = {}
        method = _start("apm", task, student_epochs=5, students=5, batch_train=4 if quick else 256, teachers=1)
        method.teacher = teacher.requires_grad_(False).eval()
        return method, teacher

    def plain(method: Any, teacher: torch.nn.Module) -> torch.nn.Module:
        task, student = method.task, method.task.network()
        task.initialise(student, task.rng("student"))
        return field.imitate(student, teacher, method.set.images().detach(), task.rng("student"), method.params)

    def check() -> None:
        (method, _), others = make(), make()
        snapshots = method._imitate(method.set.images().detach())
        for name, weight in plain(*others).state_dict().items():
            _near(snapshots[name][-1], weight, 1e-3)

    method, teacher = make()
    other = copy.copy(method)
    fast = partial(method._imitate, method.set.images().detach())
    return Sides(fast, lambda: plain(other, teacher), check, method.choices())


def _alone(quick: bool, steps: int) -> Sides:
    """MTT without the stored graph beside it, whose memory grows with the steps."""
    return replace(_unrolled("mtt", False, quick, 1, steps), plain=None)


def _unrolled(name: str, compile_: bool, quick: bool, ipc: int, steps: int = 50) -> Sides:
    """The differentiated student of MTT by recomputation beside the stored graph of all its steps.

    TESLA's is not stored by the field either: both sides recompute, one of them compiled.
    """
    task = made_up.Task(quick, ipc, augment=made_up.STRATEGY)
    network = task.network()
    size = sum(weight.numel() for weight in network.parameters())
    rng = torch.Generator().manual_seed(0)
    ends = []
    for _ in range(2):
        task.initialise(network, rng)
        ends.append(torch.cat([weight.detach().flatten() for weight in network.parameters()]))
    start, goal = ends
    task.artifacts["experts"] = {"snapshots": torch.zeros(1, 1, size)}
    method = _start(name, task, syn_steps=min(steps, 6) if quick else steps, experts=1, lr_init=0.01)
    method.seen = method.set.images().detach().requires_grad_()
    chunks = [method._chunk() for _ in range(method.params.syn_steps)]
    batches = [method._batch(chunk, method._draw(chunk), method.set.labels) for chunk in chunks]
    scale = (start - goal).square().sum()

    def sweep(**options: Any) -> Any:
        return differentiate(
            method._inner_loss,
            lambda weights: (weights - goal).square().sum() / scale,
            start.to(task.device),
            batches,
            method.rate.detach().expand(len(batches)),
            [method.seen],
            **options,
        )

    def fast() -> Any:
        return sweep(mode=method._mode(), fast=method.fast if compile_ else None)

    def plain() -> Any:
        return sweep(mode="stored" if name == "mtt" else method._mode())

    def check() -> None:
        found, expected = fast(), plain()
        _near(found.leaves[0], expected.leaves[0], 1e-3)
        _near(found.rates, expected.rates, 1e-3)

    return Sides(fast, plain, check, method.choices() if compile_ else {"student": "plain"})


def _kernel(quick: bool) -> Sides:
    """The kernel of images with themselves, of which half is computed, beside that of any two sets."""
    facts = made_up.info(quick)
    gram = _start("kip", made_up.Task(quick, 1), kernel="convnet3").kernel
    images = made_up.pixels(4 if quick else 8, facts.shape).to(made_up.device()).double() / 64 - 2
    twins = images.clone()

    def check() -> None:
        _near(gram(images, images), gram(images, twins), 1e-12)

    return Sides(lambda: gram(images, images), lambda: gram(images, twins), check)


def _near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise `AssertionError` where two results of float32 are further apart than this part of their size."""
    apart = float((found - expected).detach().norm() / expected.detach().norm())
    assert apart <= tolerance, f"{apart:.1e} apart, {tolerance:.0e} allowed"
