"""FRePo: the regression, LAMB, the pool and the labels, against closed forms and a plain reference in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bench.nets import initialise
from methods.frepo import FRePo, Lamb, label_margin
from methods.krr import centred, solve


def method(**params):
    return FRePo(FRePo.Params(**({"iterations": 10, "batch": 24, "pool": 3, "width": 4, "depth": 2} | params)))


def features(n=12, q=5, seed=0):
    return torch.randn(n, q, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_dual_equals_primal():
    f_s, f_t = features(4, 9), features(6, 9, 1)
    y = features(4, 3, 2)
    ridge = 1e-3 * (f_s @ f_s.T).diagonal().mean()
    primal = f_t @ (f_s.T @ f_s + ridge * torch.eye(9, dtype=torch.float64)).inverse() @ f_s.T @ y
    torch.testing.assert_close(f_t @ f_s.T @ solve(f_s @ f_s.T, y, 1e-3), primal)


def test_scale_of_all_features_has_no_effect_and_no_gradient():
    f_s, f_t = features(4, 9).requires_grad_(), features(6, 9, 1).requires_grad_()
    y_s, y_t = features(4, 3, 2), features(6, 3, 3)

    def loss(s, t):
        return (t @ s.T @ solve(s @ s.T, y_s) - y_t).square().sum(1).mean() / 2

    value = loss(f_s, f_t)
    torch.testing.assert_close(loss(3 * f_s, 3 * f_t), value)
    by_s, by_t = torch.autograd.grad(value, [f_s, f_t])
    along_s, along_t = ((by * f.detach()).sum() for by, f in ((by_s, f_s), (by_t, f_t)))
    assert abs(along_s + along_t) < 1e-8
    assert abs(along_s) > 1e-6


def test_lamb_moves_every_tensor_by_the_rate_times_its_norm():
    tensors = [features(4, 9), features(4, 3, 1)]
    lamb = Lamb(tensors)
    for step in range(5):
        before = [t.clone() for t in tensors]
        lamb.step((features(4, 9, step + 5), features(4, 3, step + 9)), 1e-3)
        for old, new in zip(before, tensors, strict=True):
            assert (new - old).norm().item() == pytest.approx(1e-3 * old.norm().item(), rel=1e-9)


def test_lamb_direction_is_that_of_adam():
    start, gradients = features(4, 3), [features(4, 3, k + 1) for k in range(4)]
    own, moments = start.clone(), torch.nn.Parameter(start.clone())
    lamb, adam = Lamb([own], eps=1e-8), torch.optim.Adam([moments], lr=1.0, eps=1e-8)
    for gradient in gradients:
        before_own, before_adam = own.clone(), moments.detach().clone()
        lamb.step((gradient,), 0.01)
        moments.grad = gradient.clone()
        adam.step()
        a, b = own - before_own, moments.detach() - before_adam
        torch.testing.assert_close(a / a.norm(), b / b.norm())


def test_lamb_ignores_a_constant_factor_of_the_loss_and_stays_at_zero():
    a, b, zero = features(4, 3), features(4, 3), torch.zeros(3, dtype=torch.float64)
    first, second, third = Lamb([a], eps=0.0), Lamb([b], eps=0.0), Lamb([zero])
    for k in range(3):
        first.step((features(4, 3, k + 1),), 0.1)
        second.step((7 * features(4, 3, k + 1),), 0.1)
        third.step((torch.zeros(3, dtype=torch.float64),), 0.1)
    torch.testing.assert_close(a, b)
    assert torch.equal(zero, torch.zeros(3, dtype=torch.float64))


def test_label_margin_and_its_gradient():
    labels = torch.tensor([[0.9, -0.1, -0.1], [0.3, 0.2, 0.0]], dtype=torch.float64, requires_grad=True)
    value = label_margin(labels)
    assert value.item() == pytest.approx(-(1 / 3 + 0.1) / 2)
    (gradient,) = torch.autograd.grad(value, labels)
    expected = [[0, 0, 0], [-0.5, 0.5, 0]]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("classes", [3, 10, 12])
def test_first_labels_have_the_stated_norm(make_task, classes):
    fast = method()
    fast.start(make_task(classes=classes, per_class=5, ipc=1))
    expected = (1 - 1 / classes) * 10 / classes
    torch.testing.assert_close(fast.labels.detach().square().sum(1), torch.full((classes,), expected))


def test_pool_ages_and_replacement(make_task):
    fast = method(pool=10, max_age=100, width=2, depth=1)
    fast.start(make_task())
    assert fast.ages == list(range(0, 100, 10))
    fast.ages[4] = 100
    old = {k: v.clone() for k, v in fast.networks[4].state_dict().items()}
    fast._online(4)
    assert fast.ages[4] == 101
    trained = {k: v.clone() for k, v in fast.networks[4].state_dict().items()}
    assert any(not torch.equal(old[k], trained[k]) for k in old)
    fast._online(4)
    assert fast.ages[4] == 0
    assert not fast.optimisers[4].state
    assert not torch.equal(next(fast.networks[4].parameters()), next(iter(trained.values())))


def test_no_gradient_reaches_networks_from_the_images_step(make_task):
    fast = method(pool=1, max_age=-1 + 1)
    fast.start(make_task())
    fast.ages = [5]  # too old: the network step replaces it instead of training it
    fast.step()
    assert all(weight.grad is None for weight in fast.networks[0].parameters())


def test_meta_gradient_equals_central_differences(make_task):
    fast = method(flip=True)
    fast.start(make_task(dtype=torch.float64))
    fast.images = fast.images.detach().double().requires_grad_()
    fast.labels = fast.labels.detach().double().requires_grad_()
    network = fast.networks[0].double().eval()
    real, targets = features(7, network.feature_size), features(7, 3, 1)
    by_images, by_labels = torch.autograd.grad(fast._regression(network, real, targets), [fast.images, fast.labels])
    for tensor, gradient, place in ((fast.images, by_images, (1, 0, 3, 2)), (fast.labels, by_labels, (2, 1))):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor[place] += sign * 1e-6
                values.append(fast._regression(network, real, targets))
                tensor[place] -= sign * 1e-6
        assert gradient[place].item() == pytest.approx(((values[0] - values[1]) / 2e-6).item(), rel=1e-4, abs=1e-8)


def test_flip_of_symmetric_images_halves_the_ridge(make_task):
    fast = method(ridge=1e-2)
    fast.start(make_task(dtype=torch.float64))
    half = torch.randn(6, 1, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fast.images = torch.cat([half, half.flip(3)], 3)
    fast.labels = fast.labels.detach().double()

    class Symmetric:
        feature_size = 64

        def features(self, images):
            return images.flatten(1)

    real, targets = features(7, 64), features(7, 3, 1)
    doubled = method(ridge=1e-2, flip=True)
    doubled.images, doubled.labels, doubled.count = fast.images, fast.labels, 0
    halved = method(ridge=5e-3)
    halved.images, halved.labels, halved.count = fast.images, fast.labels, 0
    torch.testing.assert_close(
        doubled._regression(Symmetric(), real, targets), halved._regression(Symmetric(), real, targets)
    )


def test_ten_steps_equal_a_plain_reference(make_task):
    """Everything spelled out: explicit inverse, LAMB from its formula, networks trained by hand-written Adam."""
    task, twin = make_task(dtype=torch.float64), make_task(dtype=torch.float64)
    fast = method(flip=True, max_age=4)
    fast.start(task)
    images, labels = (t.detach().double().clone().requires_grad_() for t in (fast.images, fast.labels))
    nets = [copy.deepcopy(network) for network in fast.networks]
    adams = [torch.optim.Adam(net.parameters(), lr=3e-4) for net in nets]
    ages, moments = list(fast.ages), {}
    twin.rng("init")
    twin.rng("network").set_state(task.rng("network").get_state())
    for step in range(10):
        loss = fast.step()["loss"]
        who = int(torch.randint(3, (), generator=twin.rng("pool")))
        batch = twin.data.train.sample_mixed(24, twin.rng("real"))
        net = nets[who].eval()
        f_t = net.features(batch.images).detach()
        f_s = net.features(torch.cat([images, torch.flip(images, [3])]))
        k = f_s @ f_s.T
        a = k + 1e-6 * k.trace() / len(k) * torch.eye(len(k), dtype=k.dtype)
        f = f_t @ f_s.T @ a.inverse() @ torch.cat([labels, labels])
        plain = 0.5 * (f - centred(batch.labels, 3, torch.float64)).square().sum(1).mean()
        top = labels.sort(dim=1, descending=True).values
        margin = -torch.minimum(top[:, 0] - top[:, 1], torch.tensor(1 / 3)).mean()
        gradients = torch.autograd.grad(plain + margin, [images, labels])
        rate = 3e-5 + (3e-4 - 3e-5) * 0.5 * (1 + math.cos(math.pi * step / 10))
        with torch.no_grad():
            for tensor, g in zip((images, labels), gradients, strict=True):
                m, v = moments.get(id(tensor), (0.0, 0.0))
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                moments[id(tensor)] = m, v
                u = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-6)
                tensor -= rate * tensor.norm() / u.norm() * u
        if ages[who] > 4:
            initialise(nets[who], twin.rng("network"), "lecun")
            adams[who], ages[who] = torch.optim.Adam(nets[who].parameters(), lr=3e-4), 0
        else:
            nets[who].train()
            adams[who].zero_grad()
            (0.5 * (nets[who](images.detach()) - labels.detach()).square().sum(1).mean()).backward()
            adams[who].step()
            ages[who] += 1
        torch.testing.assert_close(loss, plain.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fast.images.detach(), images.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(fast.labels.detach(), labels.detach(), rtol=1e-5, atol=1e-7)
    assert fast.ages == ages


def test_state_continues_bit_for_bit(make_task):
    def run(stop=None):
        task = make_task()
        fast = method(max_age=3)
        fast.start(task)
        for k in range(8):
            if k == stop:
                state = copy.deepcopy(fast.state_dict())
                generators = {name: rng.get_state() for name, rng in task._generators.items()}
                task = make_task()
                fast = method(max_age=3)
                fast.start(task)
                fast.load_state_dict(state)
                for name, value in generators.items():
                    task.rng(name).set_state(value)
            fast.step()
        return fast.export()

    whole, resumed = run(), run(stop=4)
    assert torch.equal(whole.images, resumed.images)
    assert torch.equal(whole.labels, resumed.labels)
