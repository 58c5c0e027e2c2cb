"""Tasks that have experts, and the student unrolled as one graph: what the tests of MTT and TESLA share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from methods.experts import Experts

SMALL = {
    "iterations": 9,
    "syn_steps": 4,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "lr_img": 0.2,
    "lr_lr": 1e-6,
    "experts": 3,
    "train_epochs": 3,
}
_BUFFERS: dict[str, Tensor] = {}


def task_with_experts(make_task: Callable[..., Any], dtype: torch.dtype = torch.float64, **arguments: Any) -> Any:
    """Return a task in `dtype` with three experts of three epochs, the same for all tasks with this network."""
    task = make_task(dtype=dtype, **arguments)
    network = str(task.spec.network)
    if network not in _BUFFERS:
        params = Experts.Params(experts=3, epochs=3, batch=20)
        built = Experts(params).build(make_task(seed=5, **{k: v for k, v in arguments.items() if k == "network"}))
        _BUFFERS[network] = built["snapshots"].double()
    task.artifacts["experts"] = {"snapshots": _BUFFERS[network]}
    return task


def unflatten(network: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """Return the parameters of a network from one vector, cut in the order of `named_parameters`."""
    out, at = {}, 0
    for name, weight in network.named_parameters():
        out[name] = vector[at : at + weight.numel()].view(weight.shape)
        at += weight.numel()
    return out


def plain_loss(
    task: Any,
    network: nn.Module,
    images: Tensor,
    rate: Tensor,
    labels: Tensor,
    start: Tensor,
    goal: Tensor,
    chunks: list[Tensor],
    draws: list[Any],
    detach: bool = False,
) -> Tensor:
    """Return the loss of the student unrolled as one graph; `detach` cuts the dependence on earlier steps (TESLA)."""
    weights, total = start, torch.zeros_like(start)
    for chunk, draw in zip(chunks, draws, strict=True):
        point = weights.detach().requires_grad_() if detach else weights.requires_grad_()
        x = task.augment.apply(images[chunk], draw)
        loss = F.cross_entropy(functional_call(network, unflatten(network, point), (x,)), labels[chunk])
        (gradient,) = torch.autograd.grad(loss, point, create_graph=True)
        total = total + gradient
        weights = point - rate * gradient
    end = start.detach() - rate * total if detach else weights
    return (end - goal).square().sum() / (start.detach() - goal).square().sum()


def check_ten_steps(fast: Any, slow: Any, task: Any, twin: Any, *, detach: bool, share: float, soft: bool) -> None:
    """Compare ten outer iterations of `fast` with plain ones; `slow` gives the draws alone.

    share: of the image gradient that is used. soft: labels are the goal's predictions.
    """
    fast.start(task)
    slow.start(twin)
    images = slow.set.pixels.detach().clone().requires_grad_()
    rate = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
    pixel_sgd = torch.optim.SGD([images], lr=0.2, momentum=0.5)
    rate_sgd = torch.optim.SGD([rate], lr=1e-6, momentum=0.5)
    network = twin.network()
    for _ in range(10):
        loss = fast.step()["loss"]
        start, goal = slow._expert()
        chunks = [slow._chunk() for _ in range(4)]
        slow.seen = slow.set.images()
        draws = [slow._draw(chunk) for chunk in chunks]
        predict = partial(functional_call, network, unflatten(network, goal))
        labels = predict((images.detach(),)).softmax(1) if soft else slow.set.labels
        plain = plain_loss(twin, network, images, rate, labels, start, goal, chunks, draws, detach)
        by_images, by_rate = torch.autograd.grad(plain, [images, rate])
        images.grad, rate.grad = by_images * share, by_rate
        pixel_sgd.step()
        rate_sgd.step()
        torch.testing.assert_close(loss, plain.detach(), rtol=1e-9, atol=1e-12)
    assert (images - slow.set.pixels).abs().max() > 1e-3
    torch.testing.assert_close(fast.set.pixels.detach(), images.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fast.rate.detach(), rate.detach(), rtol=1e-9, atol=1e-12)


def check_resume(make: Callable[[], Any], prepared: Callable[..., Any]) -> None:
    """Stop after three of six steps, continue from the saved state, and compare bit for bit."""
    import copy

    def run(stop: int | None = None) -> Any:
        task, method = prepared(), make()
        method.start(task)
        for k in range(6):
            if k == stop:
                state = copy.deepcopy(method.state_dict())
                generators = {name: rng.get_state() for name, rng in task._generators.items()}
                task, method = prepared(), make()
                method.start(task)
                method.load_state_dict(state)
                for name, value in generators.items():
                    task.rng(name).set_state(value)
            method.step()
        return method.export()

    whole, resumed = run(), run(stop=3)
    assert torch.equal(whole.images, resumed.images)
    assert torch.equal(whole.labels, resumed.labels)
    assert whole.header.learned_rate == resumed.header.learned_rate
