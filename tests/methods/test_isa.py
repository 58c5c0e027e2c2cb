"""ISA on FRePo and on KIP: augmented samples made one by one, plain references in float64, and both hosts inside."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from test_frepo import double, features, plain_run

from bench import suite
from bench.api import NetSpec, TaskSpec
from bench.data import info
from bench.registry import METHODS
from methods.frepo import FRePo
from methods.isa import ISA, ISAKIP
from methods.kernels import kernel
from methods.kip import KIP
from methods.krr import centred, solve

SMALL = {
    FRePo: {"iterations": 10, "batch": 24, "pool": 3, "width": 4, "depth": 2},
    KIP: {"iterations": 10, "batch": 12, "labels": "learned"},
}
SMALL |= {ISA: SMALL[FRePo], ISAKIP: SMALL[KIP]}
DOUBLE = torch.float64
AS_HOST = {"kappa": 1.0, "epsilon": 0.0}


def started(kind, task, **params):
    method = kind(kind.Params(**(SMALL[kind] | params)))
    method.start(task)
    return method


def run(kind, make_task, steps=6, stop=None, seed=0, **params):
    """Return the exported set and the log of some steps; after `stop` of them all goes on from the state."""
    task, log = make_task(seed=seed), []
    method = started(kind, task, **params)
    for step in range(steps):
        if step == stop:
            state, generators = copy.deepcopy(method.state_dict()), task._generators
            task = make_task(seed=seed)
            method = started(kind, task, **params)
            method.load_state_dict(state)
            for name, rng in generators.items():
                task.rng(name).set_state(rng.get_state())
        log.append(method.step())
    return method.export(), log


def crucial_rows(residuals, similar, kappa):
    """Return the kept rows and the neighbour of each by loops; similar(i, j): how near two samples are."""
    errors = residuals.detach().square().sum(1).tolist()
    kept = sorted(range(len(errors)), key=lambda i: -errors[i])[: int(kappa * len(errors)) if kappa < 1 else None]
    return kept, [max((j for j in kept if j != i), key=lambda j: similar(i, j)) for i in kept]


def cosine_of(real):
    return lambda i, j: float(torch.cosine_similarity(real[i], real[j], dim=0))


def simpson(residual, epsilon):
    """Return the mean of a squared residual, a function of the move, over [0, epsilon]."""
    return sum(w * residual(t * epsilon).square() for t, w in ((0, 1 / 6), (0.5, 4 / 6), (1, 1 / 6)))


def plain_isa(predicted, targets, real, kappa, epsilon):
    """The loss as the paper means it, one sample and one neighbour at a time, without the closed form."""
    residuals = predicted - targets
    kept, pair = crucial_rows(residuals, cosine_of(real), kappa)
    terms = []
    for i, j in zip(kept, pair, strict=True):
        difference = (predicted[i] - predicted[j]) - (targets[i] - targets[j])
        terms.append(simpson(lambda move, r=residuals[i], d=difference: r + move * d, epsilon).mean())
    return torch.stack(terms).mean()


# ------------------------------------------------------------------------------------ augmented samples made


@pytest.mark.parametrize("epsilon", [0.5, -1.0])
def test_the_regression_equals_that_on_explicitly_augmented_features(make_task, epsilon):
    """Features and labels moved together at Simpson's nodes, the whole regression on each: value and gradients."""
    task = make_task(dtype=DOUBLE)
    method = started(ISA, task, epsilon=epsilon, flip=True, ridge=1e-3)
    fast, network = double_of(method)
    real = network.features(task.data.train.images(torch.arange(20))).detach()
    targets = centred(task.data.train.labels[:20], 3, DOUBLE)
    loss = fast._regression(network, real, targets)
    f_s = network.features(torch.cat([fast.images, fast.images.flip(3)]))
    weights = solve(f_s @ f_s.T, torch.cat([fast.labels, fast.labels]), 1e-3)

    def residual(x, y):
        return x @ f_s.T @ weights - y

    kept, pair = crucial_rows(residual(real, targets), cosine_of(real), 0.8)
    x, y, dx, dy = real[kept], targets[kept], real[kept] - real[pair], targets[kept] - targets[pair]
    assert len(kept) == 16
    plain = simpson(lambda move: residual(x + move * dx, y + move * dy), epsilon).mean()
    torch.testing.assert_close(loss, plain, rtol=1e-9, atol=1e-12)
    leaves = [fast.images, fast.labels]
    for own, other in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(plain, leaves), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-10)
    with torch.no_grad():  # the predictor is linear: a bias or a softmax would break this
        r = residual(real, targets)
        torch.testing.assert_close(residual(dx, dy), r[kept] - r[pair], rtol=1e-7, atol=1e-9)


def double_of(method):
    """Return a started method with everything in float64, and its first network in evaluation mode."""
    method.images, method.labels = (t.detach().double().requires_grad_() for t in (method.images, method.labels))
    return method, method.networks[0].double().eval()


def test_meta_gradient_equals_central_differences(make_task):
    task = make_task(dtype=DOUBLE)
    fast, network = double_of(started(ISA, task, flip=True, ridge=1e-3))
    real, targets = features(15, network.feature_size), features(15, 3, 1)

    def loss():
        return fast._regression(network, real, targets)

    gradients = torch.autograd.grad(loss(), [fast.images, fast.labels])
    places = ((1, 0, 3, 2), (2, 1))
    for tensor, gradient, place in zip((fast.images, fast.labels), gradients, places, strict=True):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor[place] += sign * 1e-6
                values.append(loss())
                tensor[place] -= sign * 1e-6
        assert gradient[place].item() == pytest.approx(((values[0] - values[1]) / 2e-6).item(), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize(("kappa", "epsilon"), [(0.8, 0.5), (0.5, -1.0)])
def test_ten_steps_equal_a_plain_reference(make_task, kappa, epsilon):
    task = make_task(dtype=DOUBLE)
    fast = started(ISA, task, flip=True, max_age=4, kappa=kappa, epsilon=epsilon)

    def loss(*batch):
        return plain_isa(*batch, kappa, epsilon)

    losses, images, labels, ages = plain_run(fast, task, make_task(dtype=DOUBLE), loss)
    for plain in losses:
        torch.testing.assert_close(fast.step()["loss"], plain, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fast.images.detach(), images, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(fast.labels.detach(), labels, rtol=1e-5, atol=1e-7)
    assert fast.ages == ages


# ------------------------------------------------------------------------------------ FRePo inside


@pytest.mark.parametrize("neither", [AS_HOST, {"kappa": 1.0, "law": "none"}, {"kappa": 0.0, "epsilon": 0.0}])
def test_frepo_is_isa_without_selection_and_augmentation_bit_for_bit(make_task, neither):
    host, log = run(FRePo, make_task)
    same, own = run(ISA, make_task, normalisation="half_sum", **neither)
    assert torch.equal(same.images, host.images)
    assert torch.equal(same.labels, host.labels)
    assert [step["loss"] for step in own] == [step["loss"] for step in log]


def test_the_mean_is_two_over_k_times_frepo(make_task):
    """Value and gradients; the label margin beside it stays as it is, so it weighs K/2 times as much."""
    fast, network = double_of(started(ISA, make_task(classes=4, dtype=DOUBLE), **AS_HOST))
    host, _ = double(make_task(classes=4, dtype=DOUBLE))
    host.images, host.labels = fast.images, fast.labels
    real, targets = features(15, network.feature_size), features(15, 4, 1)
    ours, theirs = (method._regression(network, real, targets) for method in (fast, host))
    torch.testing.assert_close(ours, theirs / 2, rtol=1e-12, atol=0)
    leaves = [fast.images, fast.labels]
    for own, other in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(own, other / 2)


def test_the_default_differs_from_frepo_in_every_part(make_task):
    host, _ = run(FRePo, make_task)
    for params in ({}, {"epsilon": 0.0}, {"kappa": 1.0}, {"kappa": -0.8, "epsilon": 0.0}, {"law": "symmetric"}):
        other, log = run(ISA, make_task, normalisation="half_sum", **params)
        assert not torch.equal(other.images, host.images)
        assert ("dropped_error" in log[0]) == (params.get("kappa") != 1.0)


# ------------------------------------------------------------------------------------ on KIP


def test_kip_is_its_isa_without_selection_and_augmentation_up_to_rounding(make_task):
    host, log = run(KIP, make_task)
    same, own = run(ISAKIP, make_task, **AS_HOST, chunk=5)
    torch.testing.assert_close(same.images, host.images, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(same.labels, host.labels, rtol=1e-6, atol=1e-7)
    for a, b in zip(own, log, strict=True):
        torch.testing.assert_close(a["loss"], b["loss"], rtol=1e-9, atol=0)
    other, _ = run(ISAKIP, make_task)
    assert (other.images - host.images).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "chunk"), [("fc1", 1000), ("fc1", 5), ("conv1-gap", 7)])
def test_ten_steps_on_kip_equal_a_plain_reference(make_task, name, chunk):
    """Samples moved in the feature space of the kernel: rows of K_ts and labels move together."""
    task, twin = make_task(shape=(1, 4, 4)), make_task(shape=(1, 4, 4))
    fast = started(ISAKIP, task, kernel=name, chunk=chunk, kappa=0.7, ridge=1e-3)
    images, labels = (t.detach().clone().requires_grad_() for t in (fast.images, fast.labels))
    adam, gram = torch.optim.Adam([images, labels], lr=0.04), kernel(name)
    for _ in range(10):
        loss = fast.step()["loss"]
        batch = twin.data.train.sample_classes(4, twin.rng("targets"))
        x_t, y_t = batch.images.double(), centred(batch.labels, 3, DOUBLE)
        k_ss, k_ts = gram(images, images), gram(x_t, images)
        weights = (k_ss + 1e-3 * k_ss.trace() / 6 * torch.eye(6, dtype=DOUBLE)).inverse() @ labels
        k_tt = gram(x_t, x_t).tolist()
        kept, pair = crucial_rows(k_ts @ weights - y_t, lambda i, j, k=k_tt: k[i][j] / (k[i][i] * k[j][j]) ** 0.5, 0.7)
        assert len(kept) == 8
        k, y, dk, dy = k_ts[kept], y_t[kept], k_ts[kept] - k_ts[pair], y_t[kept] - y_t[pair]
        plain = simpson(lambda t, k=k, y=y, dk=dk, dy=dy, w=weights: (k + t * dk) @ w - (y + t * dy), 0.5).mean() / 2
        adam.zero_grad()
        plain.backward()
        adam.step()
        torch.testing.assert_close(loss, plain.detach(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(fast.images.detach(), images.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fast.labels.detach(), labels.detach(), rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------------ both


@pytest.mark.parametrize("kind", [ISA, ISAKIP])
def test_state_continues_bit_for_bit_and_seeds_matter(make_task, kind):
    whole, resumed, other = (run(kind, make_task, stop=s, seed=n)[0] for s, n in ((None, 0), (3, 0), (3, 1)))
    assert torch.equal(whole.images, resumed.images)
    assert torch.equal(whole.labels, resumed.labels)
    assert not torch.equal(whole.images, other.images)
    assert whole.header.method == {ISA: "isa", ISAKIP: "isa_kip"}[kind]
    assert whole.header.label_kind == "centred"
    assert (whole.header.params["kappa"], whole.header.params["epsilon"]) == (0.8, 0.5)


@pytest.mark.parametrize(("kind", "kept"), [(ISA, 19), (ISAKIP, 9)])
def test_the_log_tells_what_selection_and_augmentation_do(make_task, kind, kept):
    _, log = run(kind, make_task)
    for step in log:
        step = {name: float(value) for name, value in step.items()}
        assert step["kept_error"] > step["dropped_error"] >= 0
        assert all(0 <= step[name] <= 1 for name in ("batch_accuracy", "least_kept", "same_label"))
        assert step["same_label"] * kept == pytest.approx(round(step["same_label"] * kept), abs=1e-6)
        assert step["size_a"] > 0
        assert step["size_b"] > 0
        assert set(step) == {
            "loss", "kept_error", "dropped_error", "batch_accuracy", "least_kept", "same_label", "size_a", "size_b",
        }  # fmt: skip


def test_loss_falls(make_task):
    for kind in (ISA, ISAKIP):
        _, log = run(kind, make_task, 30, **({"lr": 0.03, "iterations": 30} if kind is ISA else {}))
        losses = [float(step["loss"]) for step in log]
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_names_presets_and_native_evaluation():
    assert (METHODS.get("isa"), METHODS.get("isa_kip")) == (ISA, ISAKIP)
    p = ISA.Params()
    assert (p.kappa, p.epsilon, p.law, p.normalisation, p.iterations, p.pool) == (0.8, 0.5, "isa", "mean", 500_000, 10)
    sources = {(name, ipc): ISA.preset(info(name), ipc).source for name in ("cifar10", "mnist") for ipc in (1, 10)}
    assert [place for place, source in sources.items() if source] == [("cifar10", 10)]
    assert ISA.preset(info("cifar10"), 1).params == FRePo.preset(info("cifar10"), 1).params
    assert ISAKIP.preset(info("cifar10"), 10).source is None
    assert "combination" in ISAKIP.title

    def steps(kind, name, ipc):
        spec = TaskSpec(dataset=info(name), ipc=ipc, network=NetSpec())
        return kind.native_recipe(kind.Params(), spec)["steps"]

    places = [("cifar10", 1), ("cifar10", 10), ("tiny_imagenet", 1), ("cifar10", 50), ("cifar100", 10),
              ("tiny_imagenet", 10), ("cifar100", 50)]  # fmt: skip
    assert [steps(ISA, *place) for place in places] == [1000, 2000, 2000, 5000, 4000, 5000, 40000]
    assert [steps(FRePo, *place) for place in places] == [1000, 2000, 20000, 5000, 10000, 40000, 40000]


def test_the_suite_trains_on_the_sets_of_both_methods_alike():
    """The steps are FRePo's at every size, also where the native ones differ."""
    file = Path(__file__).parents[2] / "suites" / "isa.yaml"
    steps = {}
    for preset in suite.load(file).presets:
        for row in suite.load(file, preset).variants:
            if row.name in ("frepo", "isa"):
                place = preset, row.task.dataset.name, row.task.ipc
                steps.setdefault(place, {})[row.label] = row.recipe["steps"]
    assert all(len(set(found.values())) == 1 and len(found) >= 2 for found in steps.values())
    large = ("cifar100", "tiny_imagenet")
    published = {place[1:]: found["frepo"] for place, found in steps.items() if place[1] in large}
    assert published == {
        ("cifar100", 1): 2000, ("cifar100", 10): 10000, ("cifar100", 50): 40000, ("tiny_imagenet", 1): 20000,
        ("tiny_imagenet", 10): 40000,
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [{"kappa": 1.5}, {"kappa": -2}, {"law": "gauss"}, {"alpha": 0.0}])
def test_parameters_out_of_range(wrong):
    for kind in (ISA, ISAKIP):
        with pytest.raises(ValueError):
            kind.Params(**wrong)
