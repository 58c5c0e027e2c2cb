"""The unrolled inner loop: every exact mode equals autograd, closed forms, and memory that does not grow with T."""

from __future__ import annotations

import gc
import math

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.unroll import Flat, differentiate

STEPS, IMAGES, CLASSES = 6, 9, 3


def toy(seed: int = 0, norm: bool = True):
    """A small ConvNet in float64, its images with uneven chunks, and real images for the outer loss."""
    rng = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4) if norm else nn.Identity())
    network.extend([nn.Softplus(), nn.Flatten()])
    network.append(nn.Linear(4 * 16, CLASSES)).double()
    for weight in network.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=rng, dtype=torch.float64)
    images = torch.randn(IMAGES, 1, 4, 4, generator=rng, dtype=torch.float64).requires_grad_()
    labels = torch.softmax(torch.randn(IMAGES, CLASSES, generator=rng, dtype=torch.float64), 1).requires_grad_()
    real = torch.randn(20, 1, 4, 4, generator=rng, dtype=torch.float64)
    target = torch.randint(CLASSES, (20,), generator=rng)
    flat = Flat(network)
    chunks = [torch.randperm(IMAGES, generator=rng)[: 3 + t % 3] for t in range(STEPS)]
    rates = 0.1 + 0.2 * torch.rand(STEPS, generator=rng, dtype=torch.float64)
    return {
        "step_loss": lambda w, x, y: F.cross_entropy(flat(w, x), y),
        "outer_loss": lambda w: F.cross_entropy(flat(w, real), target),
        "weights": flat.vector(),
        "batches": [lambda c=c: (images[c] * 1.5, labels[c]) for c in chunks],
        "rates": rates,
        "leaves": [images, labels],
    }


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_recomputing_equals_the_stored_graph(momentum, seed):
    plain = differentiate(**toy(seed), momentum=momentum, mode="stored")
    lean = differentiate(**toy(seed), momentum=momentum, mode="recompute")
    close(lean.loss, plain.loss)
    close(lean.weights, plain.weights)
    close(lean.rates, plain.rates)
    for a, b in zip(lean.leaves, plain.leaves, strict=True):
        assert b.abs().max() > 1e-6
        close(a, b)


def test_gradients_equal_central_differences():
    problem = toy()
    found = differentiate(**problem, momentum=0.5)
    images, rates = problem["leaves"][0], problem["rates"]
    for tensor, gradient, place in ((images, found.leaves[0], (4, 0, 2, 1)), (rates, found.rates, (2,))):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor[place] += sign * 1e-5
            values.append(differentiate(**problem, momentum=0.5).loss)
            with torch.no_grad():
                tensor[place] -= sign * 1e-5
        assert gradient[place].item() == pytest.approx(((values[0] - values[1]) / 2e-5).item(), rel=1e-5)


def test_the_loop_is_ordinary_sgd():
    problem = toy()
    weights = problem["weights"].clone().requires_grad_()
    optimiser = torch.optim.SGD([weights], lr=1.0, momentum=0.7)
    for rate, batch in zip(problem["rates"], problem["batches"], strict=True):
        optimiser.param_groups[0]["lr"] = float(rate)
        optimiser.zero_grad()
        problem["step_loss"](weights, *(part.detach() for part in batch())).backward()
        optimiser.step()
    close(differentiate(**problem, momentum=0.7).weights, weights.detach())


def test_identity_treats_the_weights_of_every_step_as_constants():
    problem = toy()
    found = differentiate(**problem, mode="identity")
    path = [problem["weights"]]
    for rate, batch in zip(problem["rates"], problem["batches"], strict=True):
        point = path[-1].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(problem["step_loss"](point, *batch()), point)
        path.append((path[-1] - rate * gradient).detach())
    rates = problem["rates"].clone().requires_grad_()
    moved = path[0]
    for t, batch in enumerate(problem["batches"]):
        point = path[t].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(problem["step_loss"](point, *batch()), point, create_graph=True)
        moved = moved - rates[t] * gradient
    by_rates, *by_leaves = torch.autograd.grad(problem["outer_loss"](moved), [rates, *problem["leaves"]])
    close(found.rates, by_rates)
    for a, b in zip(found.leaves, by_leaves, strict=True):
        close(a, b)
    exact = differentiate(**problem)
    assert (found.leaves[0] - exact.leaves[0]).abs().max() > 1e-6


def test_all_modes_agree_for_one_step():
    problem = toy()
    problem |= {"batches": problem["batches"][:1], "rates": problem["rates"][:1]}
    plain = differentiate(**problem, mode="stored")
    for mode, window in (("recompute", None), ("identity", None), ("window", 1)):
        found = differentiate(**problem, mode=mode, window=window)
        close(found.leaves[0], plain.leaves[0])
        close(found.rates, plain.rates)


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_closed_form_of_a_quadratic(steps):
    """Loss ||w - x||^2 / 2: w_T = q w_0 + (1 - q) x with q = (1 - b)^T."""
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(5, generator=rng, dtype=torch.float64).requires_grad_()
    start, goal = (torch.randn(5, generator=rng, dtype=torch.float64) for _ in range(2))
    rate = 0.15
    problem = {
        "step_loss": lambda w, x: (w - x).square().sum() / 2,
        "outer_loss": lambda w: (w - goal).square().sum(),
        "weights": start,
        "batches": [lambda: (image,)] * steps,
        "rates": torch.full((steps,), rate, dtype=torch.float64),
        "leaves": [image],
    }
    keep = (1 - rate) ** steps
    end = keep * start + (1 - keep) * image.detach()
    slope = 2 * (end - goal)
    found = differentiate(**problem)
    close(found.weights, end)
    close(found.leaves[0], (1 - keep) * slope)
    close(found.rates.sum(), steps * (1 - rate) ** (steps - 1) * slope @ (image.detach() - start))
    close(differentiate(**problem, mode="identity").leaves[0], steps * rate * slope)
    for window in range(1, steps + 1):
        truncated = differentiate(**problem, mode="window", window=window)
        close(truncated.leaves[0], (1 - (1 - rate) ** window) * slope)


def test_a_window_leaves_earlier_images_without_gradient():
    problem = toy()
    late = set(problem["batches"][-1].__defaults__[0].tolist())
    found = differentiate(**problem, mode="window", window=1).leaves[0].flatten(1).abs().sum(1)
    assert {i for i, size in enumerate(found.tolist()) if size > 0} == late
    whole = differentiate(**problem, mode="window", window=STEPS)
    close(whole.leaves[0], differentiate(**problem).leaves[0])


def test_window_and_mode_belong_together():
    with pytest.raises(ValueError, match="window"):
        differentiate(**toy(), mode="window")
    with pytest.raises(ValueError, match="window"):
        differentiate(**toy(), mode="recompute", window=2)


def test_the_network_is_left_as_it_was():
    network = nn.Linear(3, 2)
    before = network.weight.clone()
    flat = Flat(network)
    flat(flat.vector() + 1, torch.ones(1, 3))
    assert torch.equal(network.weight, before)


def saved_bytes(steps: int, mode: str) -> int:
    """Return the largest number of bytes that graphs hold at one time, counted where autograd saves tensors.

    Without normalisation: its second derivative saves its own result, a cycle that such counting hooks never free.
    """
    problem = toy(norm=False)
    problem["batches"] = [problem["batches"][0]] * steps
    problem["rates"] = problem["rates"][:1].repeat(steps)
    held, peak = 0, 0
    step_loss = problem["step_loss"]

    def collected(*inputs):
        gc.collect()
        return step_loss(*inputs)

    problem["step_loss"] = collected

    class Kept:
        def __init__(self, tensor):
            nonlocal held, peak
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            held += self.size
            peak = max(peak, held)

        def __del__(self):
            nonlocal held
            held -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        differentiate(**problem, mode=mode)
    return peak


def test_graph_memory_of_the_recomputing_mode_does_not_grow_with_the_steps():
    assert saved_bytes(100, "recompute") <= 1.02 * saved_bytes(10, "recompute")
    assert saved_bytes(40, "stored") > 3 * saved_bytes(10, "stored")


def test_measured_memory_of_the_process_stays_the_same():
    """At 200 images a stored step holds several MiB, so a graph kept over 90 more steps would show."""
    rng = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(16 * 64, 10))
    images = torch.randn(200, 1, 8, 8, generator=rng).requires_grad_()
    labels = torch.randint(10, (200,), generator=rng)
    flat = Flat(network)

    def growth(steps: int, mode: str) -> float:
        gc.collect()
        before, peak = psutil.Process().memory_info().rss, 0

        def outer(w):
            nonlocal peak
            peak = max(peak, psutil.Process().memory_info().rss)
            return w.square().sum()

        differentiate(
            lambda w, x: F.cross_entropy(flat(w, x), labels),
            outer,
            flat.vector(),
            [lambda: (images,)] * steps,
            torch.full((steps,), 0.01),
            [images],
            mode=mode,
        )
        return (max(peak, psutil.Process().memory_info().rss) - before) / 2**20

    growth(3, "recompute")
    assert growth(100, "recompute") < growth(10, "recompute") + 20
    assert growth(30, "stored") > 60
    assert math.isfinite(growth(1, "stored"))
