"""The group risk against closed forms, brute force and the variational form; groups and anchors by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from methods.risk import (
    RiskLoss,
    RiskParams,
    centres,
    cvar,
    cvar_code,
    group_risk,
    influence,
    nearest,
    representatives,
    spread,
)

DOUBLE = torch.float64
TEN = torch.arange(1, 11, dtype=DOUBLE)
ONE = torch.zeros(10, dtype=torch.int64)


def drawn(size=60, count=7, seed=0):
    """Return losses and groups; group 5 is empty."""
    rng = torch.Generator().manual_seed(seed)
    losses = torch.randn(size, generator=rng, dtype=DOUBLE).square()
    groups = torch.randint(count - 1, (size,), generator=rng)
    return losses, groups + (groups == 5), count


# ---------------------------------------------------------------------------------------------- CVaR


@pytest.mark.parametrize(("tail", "value"), [(0.8, 6.5), (0.2, 9.5), (0.25, 9.2), (1.0, 5.5), (1e-9, 10.0)])
def test_the_tail_mean_of_one_to_ten(tail, value):
    shuffled = TEN[torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    assert float(cvar(shuffled, ONE, 1, tail)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("tail", [0.05, 0.2, 0.37, 0.8, 1.0])
def test_it_is_the_minimum_of_the_variational_form(tail):
    losses, groups, count = drawn()
    found = cvar(losses, groups, count, tail)
    for k in set(groups.tolist()):
        own = losses[groups == k].numpy()
        least = minimize_scalar(
            lambda eta, own=own: eta + np.maximum(own - eta, 0).mean() / tail, bounds=(-1, 20), options={"xatol": 1e-10}
        )
        assert float(found[k]) == pytest.approx(least.fun, abs=1e-7)
    assert float(found[5]) == 0


def test_its_gradient_is_the_weight_of_each_loss():
    losses = TEN.clone().requires_grad_()
    (weights,) = torch.autograd.grad(cvar(losses, ONE, 1, 0.25).sum(), losses)
    torch.testing.assert_close(weights, torch.tensor([0.0] * 7 + [0.2, 0.4, 0.4], dtype=DOUBLE))
    losses, groups, count = drawn(size=12, count=4)
    point = losses.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cvar(x, groups, count, 0.37), point)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=30),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.floats(-10, 10),
    st.floats(0, 10),
)
def test_it_is_a_coherent_measure(values, tail, other, shift, scale):
    losses = torch.tensor(values, dtype=DOUBLE)
    one = torch.zeros(len(values), dtype=torch.int64)

    def value(x, mass=tail):
        return float(cvar(x, one, 1, mass))

    low, high = sorted((tail, other))
    assert value(losses, high) <= value(losses, low) + 1e-9
    assert value(losses) >= float(losses.mean()) - 1e-9
    assert value(losses * scale + shift) == pytest.approx(value(losses) * scale + shift, abs=1e-7)


def by_hand(losses, groups, count, alpha):
    """The released code's table, row by row in plain Python."""
    rows = [sorted(x for x, g in zip(losses, groups, strict=True) if g == k) for k in range(count)]
    longest, found = max(map(len, rows)), []
    for row in rows:
        row = [0.0] * (longest - len(row)) + row
        m = max(1, math.floor(alpha * longest))
        kept = [x for x in row[:m] if x != 0]
        mean = sum(kept) / len(kept) if kept else 0.0
        found.append((mean + row[m - 1] * (alpha - m / longest)) / alpha)
    return found


def test_the_released_value():
    for alpha, value in ((0.8, 5.625), (0.5, 6.0), (0.1, 10.0), (1.0, 5.5)):
        assert float(cvar_code(TEN, ONE, 1, alpha)) == pytest.approx(value, abs=1e-12)
    parts = [torch.arange(1, n + 1, dtype=DOUBLE) for n in (1, 2, 3, 5, 8, 10)]
    groups = torch.arange(6).repeat_interleave(torch.tensor([1, 2, 3, 5, 8, 10]))
    found = cvar_code(torch.cat(parts), groups, 6, 0.8)
    assert found.tolist() == pytest.approx([0, 0, 1.25, 2.5, 4.375, 5.625], abs=1e-12)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.8, 0.9, 1.0])
def test_the_released_value_of_any_groups(alpha):
    losses, groups, count = drawn()
    expected = by_hand(losses.tolist(), groups.tolist(), count, alpha)
    assert cvar_code(losses.requires_grad_(), groups, count, alpha).tolist() == pytest.approx(expected, abs=1e-12)


# ---------------------------------------------------------------------------------------------- the risk of groups


def test_the_risk_is_mean_plus_maximum_over_groups_that_are_there():
    losses, groups, count = drawn()
    for a, b in ((1.0, 1.0), (0.5, 2.0), (0.0, 1.0)):
        params = RiskParams(tail=0.37, lambda_mean=a, lambda_max=b)
        values = [float(cvar(losses[groups == k], 0 * groups[groups == k], 1, 0.37)) for k in set(groups.tolist())]
        expected = a * sum(values) / len(values) + b * max(values)
        assert float(group_risk(losses, groups, count, params)) == pytest.approx(expected, abs=1e-12)
        shifted = group_risk(losses - 50, groups, count, params)  # an empty group is no group of loss 0
        assert float(shifted) == pytest.approx(expected - 50 * (a + b), abs=1e-10)


def test_one_group_counts_twice():
    losses = drawn()[0]
    one = torch.zeros(len(losses), dtype=torch.int64)
    single = group_risk(losses, one, 1, RiskParams(tail=0.3))
    torch.testing.assert_close(single, 2 * cvar(losses, one, 1, 0.3)[0])
    torch.testing.assert_close(group_risk(losses, one, 1, RiskParams(tail=1.0)), 2 * losses.mean())


def test_the_released_risk_leaves_out_rows_worth_nothing():
    losses, groups, count = drawn()
    values = [value for value in by_hand(losses.tolist(), groups.tolist(), count, 0.8) if value]
    assert len(values) < count
    found = group_risk(losses.requires_grad_(), groups, count, RiskParams(risk="code"))
    assert float(found) == pytest.approx(sum(values) / len(values) + max(values), abs=1e-12)
    assert not found.requires_grad


def test_influence_is_the_gradient_of_the_mean_and_the_risk():
    losses, groups, count = drawn(size=20, count=4)
    params = RiskParams(tail=0.5)
    shares, step = influence(losses, groups, count, params), 1e-6

    def total(x):
        return float(x.mean() + group_risk(x, groups, count, params))

    slopes = [(total(losses + step * e) - total(losses - step * e)) / (2 * step) for e in torch.eye(20, dtype=DOUBLE)]
    torch.testing.assert_close(shares * 3, torch.tensor(slopes, dtype=DOUBLE), rtol=1e-6, atol=1e-8)  # 1 + 1 + 1
    assert float(shares.sum()) == pytest.approx(1)
    for risk in ("none", "code"):
        torch.testing.assert_close(
            influence(losses, groups, count, RiskParams(risk=risk)), torch.full((20,), 1 / 20, dtype=DOUBLE)
        )


# ---------------------------------------------------------------------------------------------- in training


def batches(count=8, size=12, groups=5):
    rng = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(size, 4, generator=rng, dtype=DOUBLE),
            torch.randint(3, (size,), generator=rng),
            torch.randint(groups, (size,), generator=rng),
        )
        for _ in range(count)
    ]


def model():
    network = torch.nn.Linear(4, 3, dtype=DOUBLE)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE))
    return network


@pytest.mark.parametrize("every", [1, 3])
def test_the_risk_is_added_in_every_third_batch_over_all_since(every):
    params, network = RiskParams(every=every, tail=0.5), model()
    loss, seen = RiskLoss(params, 5), []
    for number, (images, labels, groups) in enumerate(batches()):
        seen.append((images, labels, groups))
        expected = F.cross_entropy(network(images), labels)
        if number % every == 0:
            everything, targets, owners = (torch.cat(parts) for parts in zip(*seen, strict=True))
            each = F.cross_entropy(network(everything), targets, reduction="none")
            expected, seen = expected + group_risk(each, owners, 5, params), []
        found = loss(network, images, labels, groups)
        torch.testing.assert_close(found, expected)
        weights = list(network.parameters())
        gradients = [torch.autograd.grad(x, weights) for x in (found, expected)]
        torch.testing.assert_close(*gradients)
        with torch.no_grad():  # the network moves on, so stored losses would be others
            for weight, gradient in zip(weights, gradients[0], strict=True):
                weight -= 0.3 * gradient


def test_the_released_risk_has_the_gradient_of_cross_entropy_bit_for_bit():
    networks, old = (model(), model()), []
    loss = RiskLoss(RiskParams(risk="code"), 5)
    for number, (images, labels, groups) in enumerate(batches()):
        each = F.cross_entropy(networks[1](images), labels, reduction="none")
        old.append((each.detach(), groups))
        found, plain = loss(networks[0], images, labels, groups), each.mean()
        risk = torch.zeros((), dtype=DOUBLE)
        if number % 3 == 0:
            losses, owners = (torch.cat(parts) for parts in zip(*old, strict=True))
            risk, old = group_risk(losses, owners, 5, RiskParams(risk="code")), []
            assert float(risk) > 0
        assert torch.equal(found.detach(), plain.detach() + risk)
        for value, network in zip((found, plain), networks, strict=True):
            gradients = torch.autograd.grad(value, list(network.parameters()))
            with torch.no_grad():
                for weight, gradient in zip(network.parameters(), gradients, strict=True):
                    weight -= 0.3 * gradient
        assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks), strict=True))


def toy(seed, risk):
    """Return the minority accuracy of a linear model on 2000 samples of which 5 % have their second sign flipped."""
    rng = torch.Generator().manual_seed(seed)

    def data(size, share):
        sign = torch.randint(2, (size,), generator=rng) * 2.0 - 1
        rare = torch.rand(size, generator=rng) < share
        x = torch.stack([sign, sign.where(~rare, -sign)], 1) + torch.randn(size, 2, generator=rng)
        return x, (sign > 0).long(), rare.long()

    x, y, groups = data(2000, 0.05)
    network = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(network.weight)
    torch.nn.init.zeros_(network.bias)
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    loss = RiskLoss(RiskParams(risk=risk, every=1), 2)
    for _ in range(180):
        optimiser.zero_grad()
        loss(network, x, y, groups).backward()
        optimiser.step()
    x, y, _ = data(4000, 1.0)
    return float((network(x).argmax(1) == y).double().mean())


def test_a_linear_model_learns_the_rare_group_under_the_risk_and_not_as_released():
    """Measured: cross-entropy 0.59, with the risk 0.83 to 0.88, as released as without."""
    plain, robust = ([toy(seed, risk) for seed in range(3)] for risk in ("none", "paper"))
    assert min(robust) > max(plain) + 0.15
    assert 0.8 < sum(robust) / 3 < 0.9
    assert 0.5 < sum(plain) / 3 < 0.66
    assert toy(0, "code") == plain[0]


# ---------------------------------------------------------------------------------------------- groups


def points(n=40, f=6, seed=0):
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_a_sample_belongs_to_the_nearest_anchor():
    x, anchors = points(), points(9, seed=1)
    found = nearest(x, anchors)
    assert found.tolist() == [min(range(9), key=lambda k: float((row - anchors[k]).norm())) for row in x]
    assert torch.equal(nearest(x, x), torch.arange(len(x)))
    turn = torch.linalg.qr(points(6, seed=2)).Q
    assert torch.equal(nearest(x @ turn, anchors @ turn), found)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    assert torch.equal(order[nearest(x, anchors[order])], found)


@pytest.mark.parametrize("rule", ["last", "all"])
def test_anchors_lie_far_apart(rule):
    sets = torch.stack([points(50, seed=seed) for seed in range(3)])
    found = spread(sets, 10, rule)
    for rows, chosen in zip(sets, found.tolist(), strict=True):
        assert chosen[0] == 0
        assert len(set(chosen)) == 10
        for at in range(1, 10):
            seen = chosen[at - 1 : at] if rule == "last" else chosen[:at]
            gaps = {i: min(float((rows[i] - rows[k]).norm()) for k in seen) for i in range(50) if i not in chosen[:at]}
            assert chosen[at] == max(gaps, key=gaps.get)


def test_equal_rows_are_taken_once_each():
    assert sorted(spread(torch.ones(1, 4, 2), 4)[0].tolist()) == [0, 1, 2, 3]


def test_representatives_of_clear_clusters_are_their_middles():
    """Four far clusters, each with one point in its very middle."""
    rng, middles = torch.Generator().manual_seed(0), 100 * torch.eye(4)
    around = torch.randn(4, 5, 4, generator=rng)
    rows = torch.cat([middles[:, None] + around, middles[:, None] - around, middles[:, None]], 1)
    best = [representatives(rows.flatten(0, 1), 4, torch.Generator().manual_seed(seed)).tolist() for seed in range(20)]
    assert [10, 21, 32, 43] in best  # not from every start: k-means finds a local optimum
    assert all(len(found) <= 4 for found in best)


def test_centres_are_means_of_their_rows_and_draw_from_the_generator_alone():
    before = torch.random.get_rng_state()
    rows = points(60)
    found, owner = centres(rows, 8, torch.Generator().manual_seed(0))
    again, _ = centres(rows, 8, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sorted(set(owner.tolist())) == list(range(len(found)))
    for k, centre in enumerate(found):
        torch.testing.assert_close(centre, rows[owner == k].mean(0), rtol=0, atol=0.02)
    assert all(float((a - b).norm()) > 0.1 for a, b in itertools.combinations(found, 2))
    few, _ = centres(rows[:3], 8, torch.Generator().manual_seed(0))
    assert len(few) == 3
