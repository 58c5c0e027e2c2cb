"""The unrolled inner loop: every exact mode equals autograd, closed forms, and memory that does not grow with T."""

from __future__ import annotations

import gc
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unroll_toy import CLASSES, STEPS, close, toy

from bench import nets, unroll
from bench.unroll import Flat, PlainStep, differentiate, graph_bytes


@pytest.fixture
def no_room(monkeypatch):
    """Every graph is too large to be kept."""
    monkeypatch.setattr(unroll, "KEPT", 0)


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


@pytest.mark.parametrize(
    ("eps", "tolerance"),
    [(1e-5, {"rel": 1e-5}), pytest.param(2e-8, {"rel": 1e-3, "abs": 1e-5}, id="as the authors of DD test")],
)
def test_gradients_equal_central_differences(eps, tolerance):
    problem = toy()
    found = differentiate(**problem, momentum=0.5)
    images, rates = problem["leaves"][0], problem["rates"]
    for tensor, gradient, place in ((images, found.leaves[0], (4, 0, 2, 1)), (rates, found.rates, (2,))):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor[place] += sign * eps
            values.append(differentiate(**problem, momentum=0.5).loss)
            with torch.no_grad():
                tensor[place] -= sign * eps
        assert gradient[place].item() == pytest.approx(((values[0] - values[1]) / (2 * eps)).item(), **tolerance)


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


def test_the_loop_is_plain_descent():
    """What a stored schedule of images and rates gives in anybody's loop is what the outer loss saw."""
    problem = toy()
    network = problem["step_loss"].flat.network
    for rate, batch in zip(problem["rates"], problem["batches"], strict=True):
        images, labels = (part.detach() for part in batch())
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        with torch.no_grad():
            for weight in network.parameters():
                weight.copy_(weight - rate * weight.grad)
    close(differentiate(**toy()).weights, Flat(network).vector())


def test_one_step_is_the_one_step_meta_gradient():
    """dX = -rate d/dX <dL/dw_1, g_0>, with or without momentum, which has no past to carry on."""
    problem = toy()
    problem |= {"batches": problem["batches"][:1], "rates": problem["rates"][:1]}
    point = problem["weights"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem["step_loss"](point, *problem["batches"][0]()), point, create_graph=True)
    after = (point - problem["rates"][0] * gradient).detach().requires_grad_()
    (slope,) = torch.autograd.grad(problem["outer_loss"](after), after)
    (part,) = torch.autograd.grad(slope @ gradient, problem["leaves"][0])
    for momentum in (0.0, 0.9):
        close(differentiate(**problem, momentum=momentum).leaves[0], -problem["rates"][0] * part)


@pytest.mark.parametrize("norm", ["in", "bn", "ln", "gn"])
def test_norms_of_the_real_networks(norm):
    """Second derivatives through every norm, and running statistics that no step changes."""
    rng = torch.Generator().manual_seed(0)
    network = nets.build(f"convnet-{norm}-w4", (1, 8, 8), CLASSES)
    nets.initialise(network, rng)
    network = network.double().train()
    flat = Flat(network)
    images = torch.randn(6, 1, 8, 8, generator=rng, dtype=torch.float64).requires_grad_()
    real = torch.randn(9, 1, 8, 8, generator=rng, dtype=torch.float64)
    labels = torch.arange(CLASSES).repeat(3)
    before = [buffer.clone() for buffer in network.buffers()]
    assert (norm == "bn") == bool(before)
    found = [
        differentiate(
            lambda w, x: F.cross_entropy(flat(w, x), labels[: len(x)]),
            lambda w: F.cross_entropy(flat(w, real), labels),
            flat.vector(),
            [lambda: (images,), lambda: (images[:4],)] * 2,
            torch.full((4,), 0.1, dtype=torch.float64),
            [images],
            mode=mode,
        )
        for mode in ("recompute", "stored", "recompute")
    ]
    assert found[0].leaves[0].abs().max() > 1e-4
    close(found[0].leaves[0], found[1].leaves[0])
    close(found[0].rates, found[1].rates)
    assert torch.equal(found[0].leaves[0], found[2].leaves[0])
    for a, b in zip(before, network.buffers(), strict=True):
        assert torch.equal(a, b)


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

    gc.freeze()  # a collection then looks at what the loop makes alone
    try:
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            differentiate(**problem, mode=mode)
    finally:
        gc.unfreeze()
    return peak


@pytest.mark.parametrize("mode", ["recompute", "identity"])
def test_graph_memory_does_not_grow_with_the_steps(mode, no_room):
    assert saved_bytes(100, mode) <= 1.02 * saved_bytes(10, mode)
    assert saved_bytes(40, "stored") > 3 * saved_bytes(10, "stored")


def larger(steps: int):
    """A step of which the maps are larger than the weights, in float32."""
    rng = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(16, 16), nn.Flatten(), nn.Linear(16 * 64, 10))
    images = torch.randn(50, 1, 8, 8, generator=rng).requires_grad_()
    labels = torch.randint(10, (50,), generator=rng)
    flat = Flat(network)
    return {
        "step_loss": lambda w, x: F.cross_entropy(flat(w, x), labels),
        "outer_loss": lambda w: w.square().sum(),
        "weights": flat.vector(),
        "batches": [lambda: (images,)] * steps,
        "rates": torch.full((steps,), 0.01),
        "leaves": [images],
    }


def measured_peak(steps: int, mode: str) -> float:
    """Return the most memory in MiB that all tensors together had at one time, as torch's allocator counts it."""
    problem = larger(steps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        differentiate(**problem, mode=mode)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events)) / 2**20


@pytest.mark.parametrize("mode", ["recompute", "identity"])
def test_measured_memory_does_not_grow_with_the_steps(mode, no_room):
    """A hundred steps need no more than ten but for the weights w_t, 10,000 numbers for each step."""
    few, many = measured_peak(10, mode), measured_peak(100, mode)
    weights = 90 * 10442 * 4 / 2**20
    assert many - few == pytest.approx(weights, rel=0.05)
    assert measured_peak(40, "stored") > measured_peak(10, "stored") + 20


# ------------------------------------------------------------------------------------------ graphs that are kept


@pytest.mark.parametrize(("mode", "window"), [("recompute", None), ("identity", None), ("window", 4)])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_kept_graphs_give_what_rebuilt_ones_give(mode, window, momentum, monkeypatch):
    """The same numbers, and a step's loss is computed once instead of twice where it is differentiated."""
    found, calls = [], []
    for room in (0, unroll.KEPT):
        monkeypatch.setattr(unroll, "KEPT", room)
        problem, count = toy(), 0
        loss = problem["step_loss"]

        def counted(*inputs, loss=loss):
            nonlocal count
            count += 1
            return loss(*inputs)

        problem["step_loss"] = counted
        found.append(differentiate(**problem, mode=mode, window=window, momentum=momentum))
        calls.append(count)
    close(found[0].loss, found[1].loss)
    close(found[0].rates, found[1].rates)
    for a, b in zip(found[0].leaves, found[1].leaves, strict=True):
        assert a.abs().max() > 1e-6
        close(a, b)
    assert calls == [STEPS + (window or STEPS), STEPS]
    assert [sweep.graphs for sweep in found] == ["rebuilt", "kept"]


def bytes_of_a_step(problem) -> int:
    step = PlainStep(problem["step_loss"], steps=1)
    step.gradient(problem["weights"], problem["batches"][0], again=True)
    return graph_bytes(step.graphs[0][1])


def test_graphs_count_as_much_as_the_allocator_gives_for_them(monkeypatch):
    """What 90 more kept steps need beyond their weights is 90 times what the graph of one says."""
    counted = 90 * bytes_of_a_step(larger(1)) / 2**20
    few, many = measured_peak(10, "recompute"), measured_peak(100, "recompute")
    monkeypatch.setattr(unroll, "KEPT", 0)
    lean = measured_peak(100, "recompute") - measured_peak(10, "recompute")
    assert many - few - lean == pytest.approx(counted, rel=0.05)


def test_what_does_not_fit_is_not_kept(monkeypatch):
    """One byte less than all steps need, and none is kept."""
    problem = toy()
    need = STEPS * bytes_of_a_step(problem)
    for room, kept in ((need, STEPS), (need - 1, 0)):
        monkeypatch.setattr(unroll, "KEPT", room)
        step = PlainStep(problem["step_loss"], steps=STEPS)
        for _ in range(STEPS):
            step.gradient(problem["weights"], problem["batches"][0], again=True)
        assert len(step.graphs) == kept
