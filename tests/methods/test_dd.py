"""DD in both forms against a plain unrolled loop in float64, and its stored schedule as an ordinary SGD loop."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from bench.errors import UserError
from methods.dd import DD

FORMS = {
    "schedule": {"inner": "schedule", "epochs": 2, "batches": 2, "inner_lr": 0.1, "real_batch": 25},
    "learned-labels": {"inner": "schedule", "epochs": 2, "inner_lr": 0.1, "real_batch": 25, "labels": "learned"},
    "two-networks": {"inner": "schedule", "epochs": 1, "inner_lr": 0.1, "real_batch": 25, "networks": 2},
    "momentum": {"inner": "momentum", "steps": 4, "per_class": 1, "inner_lr": 0.05, "real_per_class": 7},
}


def method(form, **params):
    return DD(DD.Params(**({"iterations": 10} | FORMS[form] | params)))


def plain_step(task, twin, images, raw, labels, form, real, target):
    """One outer loss: networks unrolled as one graph, in the plainest way."""
    p, total = twin.params, 0.0
    for _ in range(p.networks):
        network = task.network()
        task.initialise(network, task.rng("network"))
        weights = {name: w.detach().clone().requires_grad_() for name, w in network.named_parameters()}
        velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
        for t in range(len(raw) if form != "momentum" else p.steps):
            chosen = twin.order[t] if form != "momentum" else twin._random_batch()
            y = labels[chosen].softmax(1) if labels.requires_grad else twin.hard[chosen]
            loss = F.cross_entropy(functional_call(network, weights, (images[chosen],)), y)
            gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            rate = F.softplus(raw[t]) if form != "momentum" else 0.05
            for name, g in zip(list(weights), gradients, strict=True):
                velocity[name] = (0.9 * velocity[name] if form == "momentum" else 0) + g
                weights[name] = weights[name] - rate * velocity[name]
        total = total + F.cross_entropy(functional_call(network, weights, (real,)), target) / p.networks
    return total


@pytest.mark.parametrize("form", FORMS)
def test_ten_steps_equal_a_plain_reference(make_task, form):
    task, other = (make_task(dtype=torch.float64) for _ in range(2))
    fast, twin = method(form), method(form)
    fast.start(task)
    twin.start(other)  # for its draws and its order of steps only
    images = twin.images.detach().clone().requires_grad_()
    raw = twin.raw_rates.detach().clone().requires_grad_(form != "momentum")
    labels = twin.label_logits.detach().clone().requires_grad_(form == "learned-labels")
    leaves = [leaf for leaf in (images, raw, labels) if leaf.requires_grad]
    if form == "momentum":
        optimiser = torch.optim.SGD(leaves, lr=0.01, momentum=0.5)
    else:
        optimiser = torch.optim.Adam(leaves, lr=0.01, betas=(0.5, 0.999))
    for _ in range(10):
        loss = fast.step()["loss"]
        real, target = twin._real()
        plain = plain_step(other, twin, images, raw, labels, form, real, target)
        optimiser.zero_grad()
        plain.backward()
        if form == "momentum":
            torch.nn.utils.clip_grad_norm_(leaves, 2.0)
        optimiser.step()
        torch.testing.assert_close(loss, plain.detach(), rtol=1e-9, atol=1e-11)
    assert (images - twin.images).abs().max() > 1e-4
    torch.testing.assert_close(fast.images.detach(), images.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fast.raw_rates.detach(), raw.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fast.label_logits.detach(), labels.detach(), rtol=1e-6, atol=1e-8)


def test_first_rates_are_the_given_ones(make_task):
    dd = method("schedule", inner_lr=0.037)
    dd.start(make_task())
    torch.testing.assert_close(F.softplus(dd.raw_rates.detach()), torch.full((4,), 0.037))


def test_order_visits_every_image_once_per_epoch_with_all_classes_in_a_step(make_task):
    dd = method("schedule", epochs=3)
    dd.start(make_task(classes=3, ipc=4))
    assert dd.order.shape == (6, 6)
    assert all(sorted(dd.hard[step].tolist()) == [0, 0, 1, 1, 2, 2] for step in dd.order)
    assert sorted(dd.order[:2].flatten().tolist()) == list(range(12))
    assert torch.equal(dd.order[:2], dd.order[2:4])


def test_the_exported_schedule_is_the_training_of_the_outer_loss(make_task):
    """An ordinary SGD loop over the stored steps at the stored rates ends at the weights the outer loss saw."""
    task = make_task(dtype=torch.float64)
    dd = method("schedule")
    dd.start(task)
    for _ in range(3):
        dd.step()
    stored = dd.export()
    before = task.rng("network").get_state()
    images, rates = dd.images.detach().clone(), F.softplus(dd.raw_rates.detach())
    real_state, queue = task.rng("real").get_state(), dd.queue
    loss = dd.step()["loss"]
    network = task.network()
    rng = torch.Generator()
    rng.set_state(before)
    task.initialise(network, rng)
    sgd = torch.optim.SGD(network.parameters(), lr=1.0)
    for index, rate in zip(stored.steps, rates.tolist(), strict=True):
        sgd.param_groups[0]["lr"] = rate
        sgd.zero_grad()
        F.cross_entropy(network(images[index]), stored.labels[index]).backward()
        sgd.step()
    task.rng("real").set_state(real_state)
    dd.queue = queue
    real, target = dd._real()
    torch.testing.assert_close(F.cross_entropy(network(real), target).detach(), loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(stored.rates.double(), rates, rtol=1e-6, atol=0)


def test_loss_falls(make_task):
    dd = method("schedule", outer_lr=0.1)
    dd.start(make_task())
    losses = [float(dd.step()["loss"]) for _ in range(40)]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_a_pass_over_the_real_data_repeats_nothing(make_task):
    dd = method("schedule", real_batch=25)
    task = make_task(per_class=20)
    dd.start(task)
    seen = torch.cat([dd._real()[0] for _ in range(2)])
    assert len(seen.flatten(1).unique(dim=0)) == 50
    assert len(dd._real()[0]) == 25


def test_batches_must_divide_the_images(make_task):
    with pytest.raises(UserError, match="3 batches"):
        method("schedule", batches=3).start(make_task(ipc=4))


def test_window_runs_and_keeps_early_rates(make_task):
    dd = method("schedule", window=1)
    dd.start(make_task())
    before = dd.raw_rates.detach().clone()
    dd.step()
    assert torch.equal(dd.raw_rates.detach()[:-1], before[:-1])
    assert dd.raw_rates.detach()[-1] != before[-1]


@pytest.mark.parametrize("form", FORMS)
def test_state_continues_bit_for_bit(make_task, form):
    def run(stop=None):
        task = make_task(augment="dsa:color_crop")
        dd = method(form)
        dd.start(task)
        for k in range(6):
            if k == stop:
                state = copy.deepcopy(dd.state_dict())
                generators = {name: rng.get_state() for name, rng in task._generators.items()}
                task = make_task(augment="dsa:color_crop")
                dd = method(form)
                dd.start(task)
                dd.load_state_dict(state)
                for name, value in generators.items():
                    task.rng(name).set_state(value)
            dd.step()
        return dd.export()

    whole, resumed = run(), run(stop=3)
    assert torch.equal(whole.images, resumed.images)
    assert torch.equal(whole.labels, resumed.labels)
    if form != "momentum":
        assert torch.equal(whole.rates, resumed.rates)
