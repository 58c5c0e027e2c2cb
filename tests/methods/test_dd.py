"""DD in both forms against a plain unrolled loop in float64, and its stored schedule as an ordinary SGD loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch.func import functional_call

import bench.data
from bench.errors import UserError
from bench.train.recipe import resolve
from methods.dd import DD, DDMomentum

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
    passes = [[dd._real()[0] for _ in range(3)] for _ in range(2)]
    for batches in passes:
        assert [len(batch) for batch in batches] == [25, 25, 10]
        assert len(torch.cat(batches).flatten(1).unique(dim=0)) == 60
    assert not torch.equal(passes[0][0], passes[1][0])


def test_batches_must_divide_the_images(make_task):
    with pytest.raises(UserError, match="3 batches"):
        method("schedule", batches=3).start(make_task(ipc=4))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"window": 2}, "without a gradient"),
        ({"inner": "momentum", "steps": 3, "window": 4}, "more than the 3 steps"),
        ({"inner": "momentum", "window_end": "random"}, "needs a window"),
    ],
)
def test_windows_that_make_no_sense_are_refused(params, message):
    with pytest.raises(ValidationError, match=message):
        DD.Params(**params)


def test_a_random_end_differentiates_a_window_anywhere(make_task):
    dd = method("momentum", steps=6, window=2, window_end="random")
    dd.start(make_task())
    assert {dd._length() for _ in range(100)} == {2, 3, 4, 5, 6}
    dd.step()
    assert dd.images.grad.abs().max() > 0


def test_a_window_of_all_steps_is_the_whole_gradient(make_task):
    results = []
    for window in (None, 4, 1):
        dd = method("momentum", window=window)
        dd.start(make_task(dtype=torch.float64))
        dd.step()
        results.append(dd.images.grad)
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=0)
    assert (results[0] - results[2]).abs().max() > 1e-6


def test_a_step_leaves_the_weights_of_the_network(make_task):
    task = make_task(network="convnet-bn-w4")
    dd = method("schedule")
    dd.start(task)
    state = task.rng("network").get_state()
    buffers = [buffer.clone() for buffer in dd.model.buffers()]
    dd.step()
    fresh, rng = task.network(), torch.Generator()
    rng.set_state(state)
    task.initialise(fresh, rng)
    for a, b in zip(dd.model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(dd.model.buffers(), buffers, strict=True):
        assert torch.equal(a, b)


def test_first_images(make_task):
    task = make_task(shape=(1, 16, 16), ipc=10)
    normal, uniform, real = method("schedule"), method("momentum"), method("schedule", init="real")
    for dd in (normal, uniform, real):
        dd.start(make_task(shape=(1, 16, 16), ipc=10))
    assert normal.images.std().item() == pytest.approx(1, abs=0.05)
    bound = math.sqrt(6 / (256 + 30))
    assert 0.98 * bound < uniform.images.abs().max().item() <= bound
    assert abs(uniform.images.mean().item()) < 0.01
    train = task.data.train
    for image, label in zip(real.images.detach(), real.hard, strict=True):
        assert (train.images(train.class_index(int(label))) == image).flatten(1).all(1).any()
    with pytest.raises(UserError, match="20 images"):
        method("schedule", init="real").start(make_task(ipc=30))


def test_augmentation_of_real_images_leaves_the_synthetic_ones(make_task):
    plain, augmented = (method("schedule", real_augment=kind) for kind in ("none", "crop_flip"))
    for dd in (plain, augmented):
        dd.start(make_task())
    assert not torch.equal(plain._real()[0], augmented._real()[0])
    assert torch.equal(plain._batches(None)[0]()[0], augmented._batches(None)[0]()[0])


def test_the_outer_rate_is_halved(make_task):
    dd = method("schedule", decay_every=2, outer_lr=0.4)
    dd.start(make_task())
    rates = []
    for _ in range(5):
        dd.step()
        rates.append(dd.optimiser.param_groups[0]["lr"])
    assert rates == [0.4, 0.4, 0.2, 0.2, 0.1]


def test_presets_are_those_of_the_authors():
    """base_options.py and README: 10 steps of one image per class, 3 times, rate 0.02 (MNIST) or 0.001 (CIFAR-10)."""
    common = {"epochs": 3, "outer_lr": 0.01, "decay": 0.5, "real_batch": 1024, "networks": 1, "labels": "fixed"}
    for name, own in (
        ("mnist", {"inner_lr": 0.02, "iterations": 400 * 59, "decay_every": 40 * 59, "real_augment": "none"}),
        ("cifar10", {"inner_lr": 0.001, "iterations": 400 * 49, "decay_every": 40 * 49, "real_augment": "crop_flip"}),
    ):
        for ipc in (1, 10, 50):
            preset = DD.preset(bench.data.info(name), ipc)
            assert (preset.source is not None) == (ipc == 10)
            params = DD.Params(**preset.params)
            assert (common | own).items() <= params.model_dump().items()
    for name in ("fashion_mnist", "cifar100", "tiny_imagenet", "digits"):
        assert all(DD.preset(bench.data.info(name), ipc).source is None for ipc in (1, 10, 50))


@pytest.mark.parametrize(("ipc", "batches"), [(1, 1), (10, 10), (50, 10), (12, 6), (7, 7), (11, 1)])
def test_default_batches_divide_the_images(make_task, ipc, batches):
    dd = DD(DD.Params(epochs=1))
    dd.start(make_task(ipc=ipc))
    assert len(dd.order) == batches


def test_the_form_with_momentum_has_its_own_settings(make_task):
    preset = DDMomentum.preset(bench.data.info("cifar10"), 1)
    params = DDMomentum.Params(**preset.params)
    assert preset.source
    assert DDMomentum.preset(bench.data.info("cifar10"), 10).source is None
    expected = {"inner": "momentum", "steps": 150, "inner_lr": 0.01, "inner_momentum": 0.9, "per_class": 10}
    expected |= {"outer_lr": 0.1, "clip": 2.0, "iterations": 500_000, "real_per_class": 64}
    assert expected.items() <= params.model_dump().items()
    recipe = resolve(DDMomentum.native_recipe(params, make_task(augment="dsa:color_crop").spec))
    wanted = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "epochs": 300, "epochs_augmented": None, "batch": 640}
    assert (wanted | {"augment": "dsa:color_crop", "schedule": "constant"}).items() <= recipe.model_dump().items()
    assert DD.native_recipe(DD.Params(), make_task().spec) == {"base": "dd"}
    dd = DDMomentum(params.model_copy(update={"steps": 2}))
    dd.start(make_task())
    dd.step()
    assert dd.export().steps is None


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
