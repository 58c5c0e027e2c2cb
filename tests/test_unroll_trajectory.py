"""The sweep under the loss of trajectory matching: the exact recursion (MTT), and lam held fixed (TESLA)."""

from __future__ import annotations

import pytest
import torch
from unroll_toy import STEPS, close, toy, trajectory

from bench.unroll import differentiate


def plain_sweep(problem, *, exact: bool = True, window: int = STEPS):
    """The adjoint recursion of MTT's derivation, written out; `exact=False` leaves lam as it is (TESLA)."""
    path, gradients = [problem["weights"]], []
    for rate, batch in zip(problem["rates"], problem["batches"], strict=True):
        point = path[-1].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(problem["step_loss"](point, *batch()), point, create_graph=True)
        gradients.append((point, gradient))
        path.append((point - rate * gradient).detach())
    final = path[-1].requires_grad_()
    (lam,) = torch.autograd.grad(problem["outer_loss"](final), final)
    by_images, by_rates = torch.zeros_like(problem["leaves"][0]), torch.zeros_like(problem["rates"])
    for t in reversed(range(STEPS - window, STEPS)):
        point, gradient = gradients[t]
        turn, part = torch.autograd.grad(lam @ gradient, [point, problem["leaves"][0]])
        by_images -= problem["rates"][t] * part
        by_rates[t] = -(lam @ gradient.detach())
        lam = lam - problem["rates"][t] * turn if exact else lam
    return by_images, by_rates


@pytest.mark.parametrize(("mode", "exact"), [("recompute", True), ("identity", False)])
def test_sweep_equals_the_recursion_and_identity_is_the_same_without_its_update(mode, exact):
    found = differentiate(**toy(), mode=mode)
    by_images, by_rates = plain_sweep(toy(), exact=exact)
    close(found.leaves[0], by_images)
    close(found.rates, by_rates)


@pytest.mark.parametrize("window", [1, 3, STEPS])
def test_a_window_is_the_recursion_cut_short(window):
    found = differentiate(**toy(), mode="window", window=window)
    by_images, by_rates = plain_sweep(toy(), window=window)
    close(found.leaves[0], by_images)
    close(found.rates, by_rates)


def test_identity_equals_its_streaming_form():
    """One pass for the end point, one that meets every step again from the start and keeps no weights."""
    problem, _ = trajectory(toy(), toy(1)["weights"])
    rates, (images, _) = problem["rates"], problem["leaves"]
    (lam,) = torch.autograd.grad(problem["outer_loss"](end := differentiate(**problem).weights.requires_grad_()), end)
    point, by_images = problem["weights"], torch.zeros_like(images)
    by_rates = []
    for rate, batch in zip(rates, problem["batches"], strict=True):
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(problem["step_loss"](point, *batch()), point, create_graph=True)
        by_images -= rate * torch.autograd.grad(lam @ gradient, images)[0]
        by_rates.append(-(lam @ gradient.detach()))
        point = point - rate * gradient.detach()
    found = differentiate(**problem, mode="identity")
    close(found.leaves[0], by_images)
    close(found.rates, torch.stack(by_rates))


def test_identity_equals_the_expanded_form_of_the_paper():
    """The factor of d g_i / dx is 2 (beta (theta* - theta_0) + beta^2 G) / Delta = -beta lam for one rate beta."""
    goal = toy(1)["weights"]
    problem, scale = trajectory(toy() | {"rates": torch.full((STEPS,), 0.2, dtype=torch.float64)}, goal)
    images, start = problem["leaves"][0], problem["weights"]
    total = (start - differentiate(**problem).weights) / 0.2
    factor = 2 * (0.2 * (goal - start) + 0.04 * total) / scale
    point, by_images = start, torch.zeros_like(images)
    for batch in problem["batches"]:
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(problem["step_loss"](point, *batch()), point, create_graph=True)
        by_images += torch.autograd.grad(factor @ gradient, images)[0]
        point = point - 0.2 * gradient.detach()
    close(differentiate(**problem, mode="identity").leaves[0], by_images)


def test_error_of_identity_is_first_order_in_the_rate():
    def error(rate: float) -> float:
        problem, _ = trajectory(toy() | {"rates": torch.full((STEPS,), rate, dtype=torch.float64)}, toy(1)["weights"])
        exact = differentiate(**problem).leaves[0]
        return float((differentiate(**problem, mode="identity").leaves[0] - exact).norm() / exact.norm())

    assert 1e-5 < error(1e-4) < 1e-2
    assert error(1e-4) / error(1e-5) == pytest.approx(10, rel=0.1)
    assert error(2e-4) / error(1e-4) == pytest.approx(2, rel=0.1)


def test_trajectory_loss_without_a_rate_and_at_its_goal():
    problem, _ = trajectory(toy(), toy(1)["weights"])
    still = differentiate(**problem | {"rates": torch.zeros(STEPS, dtype=torch.float64)})
    assert float(still.loss) == 1
    assert not still.leaves[0].any()
    (lam,) = torch.autograd.grad(problem["outer_loss"](start := problem["weights"].clone().requires_grad_()), start)
    for rate_gradient, batch in zip(still.rates, problem["batches"], strict=True):
        point = problem["weights"].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(problem["step_loss"](point, *batch()), point)
        close(rate_gradient, -(lam @ gradient))
    there, _ = trajectory(toy(), differentiate(**toy()).weights)
    for mode in ("recompute", "identity", "stored"):
        found = differentiate(**there, mode=mode)
        assert float(found.loss) < 1e-28
        close(found.leaves[0], torch.zeros_like(found.leaves[0]))
        close(found.rates, torch.zeros_like(found.rates))


def test_one_step_is_gradient_matching():
    """For N = 1 the trajectory loss is beta^2 / Delta times the squared distance of g to (theta_0 - theta*) / beta."""
    goal = toy(1)["weights"]
    problem, scale = trajectory(toy(), goal)
    problem |= {"batches": problem["batches"][:1], "rates": problem["rates"][:1]}
    rate, point = problem["rates"][0], problem["weights"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem["step_loss"](point, *problem["batches"][0]()), point, create_graph=True)
    matched = rate**2 / scale * (gradient - (problem["weights"] - goal) / rate).square().sum()
    (expected,) = torch.autograd.grad(matched, problem["leaves"][0])
    for mode in ("recompute", "identity"):
        found = differentiate(**problem, mode=mode)
        close(found.loss, matched.detach())
        close(found.leaves[0], expected)


def test_outer_losses_enter_by_their_slope_alone():
    """DD and MTT are one loop with two ends: a linear loss with the slope of either has its gradients."""
    for problem in (toy(), trajectory(toy(), toy(1)["weights"])[0]):
        found = differentiate(**problem)
        (slope,) = torch.autograd.grad(problem["outer_loss"](end := found.weights.clone().requires_grad_()), end)
        linear = differentiate(**problem | {"outer_loss": lambda w, slope=slope: slope @ w})
        close(linear.leaves[0], found.leaves[0])
        close(linear.rates, found.rates)


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
