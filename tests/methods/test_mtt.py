"""MTT, TESLA and their experts against plain unrolled loops in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from methods.experts import Experts
from methods.mtt import MTT
from methods.tesla import TESLA

SMALL = {"iterations": 9, "syn_steps": 4, "expert_epochs": 1, "max_start_epoch": 2, "lr_img": 0.2, "lr_lr": 1e-6}


@pytest.fixture
def prepared(make_task):
    """Return a function that makes a task which has experts, all from the same few trajectories."""
    buffer = Experts(Experts.Params(experts=3, epochs=3, batch=20, stack=2)).build(make_task(seed=5))
    rows = buffer["snapshots"].double()

    def make(dtype=torch.float64, **arguments):
        task = make_task(dtype=dtype, **arguments)
        task.artifacts["experts"] = {"snapshots": rows}
        return task

    return make


def unflatten(network, vector):
    out, at = {}, 0
    for name, weight in network.named_parameters():
        out[name] = vector[at : at + weight.numel()].view(weight.shape)
        at += weight.numel()
    return out


def plain_loss(task, network, images, rate, labels, start, goal, chunks, draws, detach=False):
    """The student unrolled as one graph; `detach` cuts the dependence on earlier steps (TESLA)."""
    weights, total = start, 0.0
    for chunk, draw in zip(chunks, draws, strict=True):
        point = weights.detach().requires_grad_() if detach else weights.requires_grad_()
        x = task.augment.apply(images[chunk], draw)
        loss = F.cross_entropy(functional_call(network, unflatten(network, point), (x,)), labels[chunk])
        (gradient,) = torch.autograd.grad(loss, point, create_graph=True)
        total = total + gradient
        weights = point - rate * gradient
    end = start.detach() - rate * total if detach else weights
    return (end - goal).square().sum() / (start.detach() - goal).square().sum()


@pytest.mark.parametrize("augment", ["none", "dsa:color_crop_cutout_scale_rotate"])
@pytest.mark.parametrize("kind", ["mtt", "tesla", "tesla-scale1", "tesla-exact", "tesla-soft"])
def test_ten_steps_equal_a_plain_reference(prepared, kind, augment):
    options = {
        "tesla": {"gradient_scale": 2},
        "tesla-scale1": {"gradient_scale": 1},
        "tesla-exact": {"gradient_scale": 2, "sweep": "exact"},
        "tesla-soft": {"gradient_scale": 2, "labels": "soft"},
    }.get(kind, {})
    cls = MTT if kind == "mtt" else TESLA
    task, twin = (prepared(augment=augment) for _ in range(2))
    fast, slow = (cls(cls.Params(**SMALL, batch_syn=4, **options)) for _ in range(2))
    fast.start(task)
    slow.start(twin)  # only for its draws; the mathematics below is its own
    images = slow.set.pixels.detach().clone().requires_grad_()
    rate = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
    pixel_sgd = torch.optim.SGD([images], lr=0.2, momentum=0.5)
    rate_sgd = torch.optim.SGD([rate], lr=1e-6, momentum=0.5)
    network = twin.network()
    for _ in range(10):
        loss = fast.step()["loss"]
        start, goal = slow._expert()
        chunks = [slow._chunk() for _ in range(4)]
        draws = [slow._draw(chunk) for chunk in chunks]
        labels = slow.set.labels
        if kind == "tesla-soft":
            labels = functional_call(network, unflatten(network, goal), (images.detach(),)).softmax(1)
        approximate = kind in ("tesla", "tesla-scale1", "tesla-soft")
        plain = plain_loss(twin, network, images, rate, labels, start, goal, chunks, draws, detach=approximate)
        by_images, by_rate = torch.autograd.grad(plain, [images, rate])
        images.grad = by_images / 2 if kind == "tesla-scale1" else by_images
        rate.grad = by_rate
        pixel_sgd.step()
        rate_sgd.step()
        torch.testing.assert_close(loss, plain.detach(), rtol=1e-9, atol=1e-12)
    assert (images - slow.set.pixels).abs().max() > 1e-3
    torch.testing.assert_close(fast.set.pixels.detach(), images.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fast.rate.detach(), rate.detach(), rtol=1e-9, atol=1e-12)


def test_chunks_come_with_the_short_one_first(prepared):
    task = prepared(classes=10, ipc=2)
    task.artifacts["experts"] = {"snapshots": torch.zeros(1, 2, 1, dtype=torch.float64)}
    method = MTT(MTT.Params(**SMALL, batch_syn=8))
    method.start(task)
    chunks = [method._chunk() for _ in range(6)]
    assert [len(chunk) for chunk in chunks] == [4, 8, 8, 4, 8, 8]
    assert sorted(torch.cat(chunks[:3]).tolist()) == list(range(20))


def test_without_a_rate_the_loss_is_one_and_only_the_rate_learns(prepared):
    method = MTT(MTT.Params(**SMALL))
    method.start(prepared())
    with torch.no_grad():
        method.rate.zero_()
    before = method.set.pixels.detach().clone()
    assert float(method.step()["loss"]) == 1.0
    assert torch.equal(method.set.pixels.detach(), before)
    assert float(method.rate.detach()) != 0


def test_start_epochs_stay_in_range(prepared):
    method = MTT(MTT.Params(**(SMALL | {"max_start_epoch": 2, "expert_epochs": 2})))
    method.start(prepared())
    buffer = method.snapshots
    seen = set()
    for _ in range(60):
        start, goal = method._expert()
        (who, begin) = next((i, t) for i in range(3) for t in range(4) if torch.equal(buffer[i, t], start))
        assert torch.equal(buffer[who, begin + 2], goal)
        seen.add(begin)
    assert seen == {0, 1}


def test_one_student_step_is_the_same_for_mtt_and_tesla(prepared):
    results = []
    for method in (
        MTT(MTT.Params(**SMALL | {"syn_steps": 1})),
        TESLA(TESLA.Params(**SMALL | {"syn_steps": 1}, gradient_scale=2)),
    ):
        method.start(prepared())
        method.step()
        results.append((method.set.pixels.detach(), method.rate.detach()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)


def test_scaling_both_rates_is_scaling_the_loss(prepared):
    """Momentum SGD is linear in the gradient, so k times both rates equals k times the loss."""
    paths = []
    for factor in (1.0, 2.0):
        method = MTT(MTT.Params(**SMALL | {"lr_img": 0.2 * factor, "lr_lr": 1e-6 * factor}))
        method.start(prepared())
        update = method.set.update
        method.set.update = lambda images, by, update=update, factor=factor: update(images, by / factor)
        for _ in range(3):
            hook = method.rate.register_hook(lambda g: g)
            step = method.rate_optimiser.step
            method.rate_optimiser.step = lambda factor=factor, method=method, step=step: (
                method.rate.grad.div_(factor), step(),
            )  # fmt: skip
            method.step()
            method.rate_optimiser.step = step
            hook.remove()
        paths.append((method.set.pixels.detach(), method.rate.detach()))
    torch.testing.assert_close(paths[0], paths[1])


def test_soft_labels_are_predictions_without_gradient(prepared):
    method = TESLA(TESLA.Params(**SMALL, labels="soft"))
    method.start(prepared())
    assert method.export().header.label_kind == "hard"
    method.step()
    assert not method.soft.requires_grad
    exported = method.export()
    assert exported.header.label_kind == "probabilities"
    torch.testing.assert_close(exported.labels.sum(1), torch.ones(6))
    assert exported.header.learned_rate == pytest.approx(float(method.rate.detach()))


@pytest.mark.parametrize("cls", [MTT, TESLA])
def test_state_continues_bit_for_bit(prepared, cls):
    options = SMALL | {"batch_syn": 4} | ({"labels": "soft"} if cls is TESLA else {})

    def run(stop=None):
        task = prepared(augment="dsa:color_crop")
        method = cls(cls.Params(**options))
        method.start(task)
        for k in range(6):
            if k == stop:
                state = copy.deepcopy(method.state_dict())
                generators = {name: rng.get_state() for name, rng in task._generators.items()}
                task = prepared(augment="dsa:color_crop")
                method = cls(cls.Params(**options))
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


def test_experts_are_plain_sgd_from_their_own_start(make_task):
    task = make_task()
    built = Experts(Experts.Params(experts=3, epochs=2, batch=60, stack=2)).build(task)
    alone = Experts(Experts.Params(experts=3, epochs=2, batch=60, stack=1)).build(make_task())
    torch.testing.assert_close(built["snapshots"], alone["snapshots"], rtol=1e-4, atol=1e-6)
    network = task.network()
    size = sum(weight.numel() for weight in network.parameters())
    assert built["snapshots"].shape == (3, 3, size)
    assert built["loss"].shape == (3, 2)
    images, labels = task.data.train.images(), task.data.train.labels
    for rows in built["snapshots"]:
        weights = rows[0]
        for t in range(2):  # the batch is the whole set, so one epoch is one step of plain gradient descent
            point = weights.clone().requires_grad_()
            loss = F.cross_entropy(functional_call(network, unflatten(network, point), (images,)), labels)
            (gradient,) = torch.autograd.grad(loss, point)
            weights = weights - 0.01 * gradient
            torch.testing.assert_close(rows[t + 1], weights, rtol=1e-4, atol=1e-6)
    assert not torch.equal(built["snapshots"][0, 0], built["snapshots"][1, 0])
