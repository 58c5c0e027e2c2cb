"""The plug-in of ISA: selection, neighbours and the closed form against integrals, loops and hand cases."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from methods.semantic import SemanticParams, crucial, diagnostics, expected_square, moments, nearest, select

EPSILONS = [0.0, 0.5, 1.0, 1.5, -1.0, -0.5]
DOUBLE = torch.float64


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def closed(a, b, epsilon):
    return expected_square(a, b, *moments("isa", epsilon, 1.0))


def by_definition(residuals, features, kappa, epsilon):
    """Sorted list, double loop over cosines, differences of residuals; return (kept, neighbours, squares)."""
    errors = residuals.square().sum(1).tolist()
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    kept = order[: int(kappa * len(order))] if kappa < 1 else order
    neighbours = []
    for i in kept:
        cosines = {j: float(torch.cosine_similarity(features[i], features[j], dim=0)) for j in kept if j != i}
        neighbours.append(max(cosines, key=cosines.get))
    a = residuals[kept]
    b = a - residuals[neighbours]
    return kept, neighbours, a**2 + epsilon * a * b + epsilon**2 / 3 * b**2


# ------------------------------------------------------------------------------------ the closed form


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_closed_form_is_simpsons_rule_and_that_of_gauss(epsilon):
    a, b = numbers(50, 4), numbers(50, 4, seed=1)
    simpson = (a**2 + 4 * (a + epsilon * b / 2) ** 2 + (a + epsilon * b) ** 2) / 6
    torch.testing.assert_close(closed(a, b, epsilon), simpson, rtol=1e-13, atol=1e-14)
    nodes = [0.5 - 12**-0.5, 0.5 + 12**-0.5]
    gauss = sum((a + t * epsilon * b) ** 2 for t in nodes) / 2
    torch.testing.assert_close(closed(a, b, epsilon), gauss, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_other_ways_to_write_it(epsilon):
    own, other = numbers(50, 4), numbers(50, 4, seed=1)
    a, b = own, own - other
    completed = (a + epsilon / 2 * b) ** 2 + epsilon**2 / 12 * b**2
    both = epsilon**2 / 3
    residuals = (1 + epsilon + both) * own**2 - (epsilon + 2 * both) * own * other + both * other**2
    torch.testing.assert_close(closed(a, b, epsilon), completed, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(closed(a, b, epsilon), residuals, rtol=1e-12, atol=1e-13)


def test_hand_case():
    a, b = (torch.tensor(values, dtype=DOUBLE) for values in ((1.0, -2.0), (0.5, 3.0)))
    found = closed(a, b, 0.5)
    torch.testing.assert_close(found, torch.tensor([1.2708333, 1.75], dtype=DOUBLE), rtol=1e-7, atol=0)
    assert found.mean().item() == pytest.approx(1.5104167, rel=1e-7)


def test_monte_carlo_converges_as_the_root_of_the_draws():
    a, b, rng = 1.3, -2.0, torch.Generator().manual_seed(0)
    squares = (a + 0.5 * torch.rand(400, 2500, generator=rng, dtype=DOUBLE) * b) ** 2
    exact = closed(torch.tensor(a), torch.tensor(b), 0.5)
    few, many = (float((squares[:, :n].mean(1) - exact).square().mean().sqrt()) for n in (25, 2500))
    assert few / many == pytest.approx(10, rel=0.15)
    assert few == pytest.approx(float(squares.std()) / 5, rel=0.15)


@pytest.mark.parametrize(
    ("law", "epsilon", "alpha", "reference"),
    [("none", 0.5, 1.0, stats.uniform(0, 0)), ("isa", 0.5, 1.0, stats.uniform(0, 0.5)),
     ("isa", -1.0, 1.0, stats.uniform(-1, 1)), ("symmetric", 0.5, 1.0, stats.uniform(-0.5, 1)),
     ("segment", 9.0, 1.0, stats.uniform(-1, 1)), ("mixup", 9.0, 1.0, stats.beta(1, 1, loc=-1)),
     ("mixup", 9.0, 0.2, stats.beta(0.2, 0.2, loc=-1)), ("mixup", 9.0, 4.0, stats.beta(4, 4, loc=-1))],
)  # fmt: skip
def test_moments_of_every_law(law, epsilon, alpha, reference):
    """Scipy's -1 + Beta is minus a Beta, which is symmetric about a half; a uniform of no width is a point."""
    expected = (0.0, 0.0) if law == "none" else (reference.moment(1), reference.moment(2))
    assert moments(law, epsilon, alpha) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_segment_and_epsilon_minus_one_treat_a_pair_alike():
    own, other = numbers(20, 3), numbers(20, 3, seed=1)
    forth, back = closed(own, own - other, -1.0), closed(other, other - own, -1.0)
    torch.testing.assert_close(forth, back)
    torch.testing.assert_close(forth, (own**2 + own * other + other**2) / 3)
    torch.testing.assert_close(forth, expected_square(own, own - other, *moments("segment", 0.5, 1.0)))


@pytest.mark.parametrize("epsilon", [*EPSILONS, 20.0, -20.0, -1.5])
def test_at_least_a_quarter_of_the_plain_square_remains(epsilon):
    a, b = numbers(200, 3), numbers(200, 3, seed=1)
    assert (closed(a, b, epsilon) >= a**2 / 4 * (1 - 1e-12)).all()
    worst = -1.5 * a  # the residual of the neighbour that takes most of it away at epsilon 1
    torch.testing.assert_close(closed(a, worst, 1.0), a**2 / 4)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, -1.0, 3.0])
def test_the_form_of_a_pair_is_positive_definite(epsilon):
    """Its matrix, read off at unit residuals, has determinant epsilon^2 / 12."""
    first, second = torch.tensor([1.0, 0.0, 1.0], dtype=DOUBLE), torch.tensor([0.0, 1.0, 1.0], dtype=DOUBLE)
    form = closed(first, first - second, epsilon)
    mixed = (form[2] - form[0] - form[1]) / 2
    assert (form[0] * form[1] - mixed**2).item() == pytest.approx(epsilon**2 / 12)
    if epsilon in (0.5, 1.0):
        stated = {0.5: (1.58333, -0.33333, 0.08333), 1.0: (2.33333, -0.83333, 0.33333)}[epsilon]
        assert (form[0].item(), mixed.item(), form[1].item()) == pytest.approx(stated, abs=1e-5)


# ------------------------------------------------------------------------------------ selection


@pytest.mark.parametrize(
    ("kappa", "expected"),
    [(0.8, [9, 8, 7, 6, 5, 4, 3, 2]), (0.85, [9, 8, 7, 6, 5, 4, 3, 2]), (-0.2, [1, 0]), (-0.25, [1, 0]), (0.01, [9]),
     (-0.01, [0]), (0, None), (1, None), (1.5, None), (-1, None)],
)  # fmt: skip
def test_hardest_and_easiest_in_any_order_of_the_batch(kappa, expected):
    errors = torch.arange(10.0)
    for order in (torch.arange(10), torch.randperm(10, generator=torch.Generator().manual_seed(0))):
        found = select(errors[order], kappa)
        assert order[found].tolist() == (order.tolist() if expected is None else expected)


def test_sizes_of_the_kept_part():
    assert [len(select(torch.rand(1024), kappa)) for kappa in (0.8, -0.8, 0.5)] == [819, 819, 512]
    assert len(select(torch.rand(100), 0.29)) == 29  # 0.29 * 100 is 28.999999999999996
    assert select(torch.zeros(5), 0.6).tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------ neighbours


def test_neighbours_are_the_second_best_of_all_by_cosine():
    features = numbers(40, 6) * torch.linspace(0.1, 9, 40, dtype=DOUBLE)[:, None]
    unit = features / features.norm(dim=1, keepdim=True)
    expected = (unit @ unit.T).topk(2, dim=1).indices[:, 1]
    assert torch.equal(nearest(features @ features.T), expected)
    single = features.float()
    assert torch.equal(nearest(single @ single.T), expected)
    assert not torch.equal(expected[expected], torch.arange(40))  # one direction only


def test_zero_features_duplicates_and_a_single_sample():
    features = numbers(6, 4)
    features[2], features[5] = 0, features[1]
    residuals = numbers(6, 3, seed=1).requires_grad_()
    found = crucial(residuals, lambda kept: features[kept] @ features[kept].T, SemanticParams(kappa=1.0))
    assert found.pair[1] == 5
    assert found.pair[5] == 1
    assert found.pair[2] != 2
    assert torch.isfinite(torch.autograd.grad(found.squares.mean(), residuals)[0]).all()
    assert nearest(torch.zeros(4, 4)).tolist() == [1, 0, 0, 0]
    alone = crucial(residuals[:1], lambda kept: features[kept] @ features[kept].T, SemanticParams())
    torch.testing.assert_close(alone.squares, residuals[:1].square())


# ------------------------------------------------------------------------------------ the whole


@pytest.mark.parametrize(("kappa", "epsilon"), [(0.8, 0.5), (0.5, 1.0), (1.0, -1.0), (0.3, 0.0)])
def test_all_of_it_equals_plain_loops(kappa, epsilon):
    residuals, features = numbers(30, 4), numbers(30, 7, seed=1)
    params = SemanticParams(kappa=kappa, epsilon=epsilon)
    found = crucial(residuals, lambda kept: features[kept] @ features[kept].T, params)
    kept, neighbours, squares = by_definition(residuals, features, kappa, epsilon)
    order = found.kept.argsort() if kappa < 1 else torch.arange(30)
    expected = torch.tensor(kept).argsort()
    assert torch.equal(found.kept[order], torch.tensor(kept)[expected])
    torch.testing.assert_close(found.squares[order], squares[expected])
    assert (found.pair is None) == (epsilon == 0)
    if epsilon:
        assert torch.equal(found.kept[found.pair][order], torch.tensor(neighbours)[expected])


def test_a_duplicate_with_the_same_label_leaves_epsilon_without_effect():
    half, features = numbers(8, 3), numbers(8, 5, seed=1)
    residuals, both = half.repeat(2, 1), features.repeat(2, 1)
    for epsilon in (0.5, 7.0):
        params = SemanticParams(kappa=1.0, epsilon=epsilon)
        found = crucial(residuals, lambda kept: both[kept] @ both[kept].T, params)
        torch.testing.assert_close(found.squares, residuals**2)


def test_no_inner_products_are_asked_for_without_augmentation():
    def never(kept):
        raise AssertionError

    residuals = numbers(10, 3)
    for params in ({"law": "none"}, {"epsilon": 0.0}, {"law": "symmetric", "epsilon": 0.0}):
        found = crucial(residuals, never, SemanticParams(kappa=1.0, **params))
        assert torch.equal(found.squares, residuals**2)


def test_gradient_equals_central_differences_away_from_ties():
    residuals, features = numbers(10, 3).requires_grad_(), numbers(10, 4, seed=1)
    params = SemanticParams(kappa=0.6)

    def loss(residuals):
        return crucial(residuals, lambda kept: features[kept] @ features[kept].T, params).squares.mean()

    assert torch.autograd.gradcheck(loss, residuals)


def test_diagnostics_by_hand():
    targets = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=DOUBLE)
    residuals = torch.tensor([[-1.0, 1], [0, 0.5], [0, 0], [0.5, 0]], dtype=DOUBLE)
    features = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.5, 1]], dtype=DOUBLE)
    found = crucial(residuals, lambda kept: features[kept] @ features[kept].T, SemanticParams(kappa=0.75))
    logged = {name: float(value) for name, value in diagnostics(residuals, targets, found).items()}
    assert set(found.kept.tolist()) == {0, 1, 3}
    expected = {
        "batch_accuracy": 0.75, "kept_error": 1.25 / 3, "dropped_error": 0.0, "least_kept": 0.5, "same_label": 2 / 3,
        "size_a": 3 / 6, "size_b": ((1 + 0.5) + (1 + 0.5) + (0.5 + 0.5)) / 6,
    }  # fmt: skip
    assert logged == pytest.approx(expected)
    whole = crucial(residuals, lambda kept: features, SemanticParams(kappa=1.0, law="none"))
    assert set(diagnostics(residuals, targets, whole)) == {"batch_accuracy", "kept_error", "least_kept"}


def test_a_class_that_is_not_in_the_batch_is_not_the_one_that_loses_most():
    targets = torch.eye(3, dtype=DOUBLE)[[0, 0, 1, 1]]
    found = crucial(numbers(4, 3), lambda kept: kept, SemanticParams(kappa=1.0, law="none"))
    assert diagnostics(numbers(4, 3), targets, found)["least_kept"] == 1
