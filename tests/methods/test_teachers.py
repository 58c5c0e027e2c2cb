"""Teachers: converged by the authors' schedule, kept with their running statistics, one cell for all who ask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import bench.suite
import methods.experts
from methods import teachers
from methods.teachers import Teachers


def built(task, **params):
    return Teachers(Teachers.Params(**({"teachers": 2, "epochs": 2, "batch": 60} | params))).build(task)


def reading(task, tensors):
    """Return the task with these teachers."""
    task.artifacts["teachers"] = tensors
    return task


@pytest.mark.parametrize("network", ["convnet-in-w4-d2", "convnet-bn-w4-d2"])
def test_a_teacher_is_sgd_with_momentum_and_decay_and_a_drop_at_half(make_task, network):
    """The batch is the whole set, so an epoch is one step: at 0.05, 0.05, then at 0.005."""
    task = make_task(network=network)
    found = built(task, epochs=3)
    images, labels = task.data.train.images(), task.data.train.labels
    for number in range(2):
        network = task.network().train()
        task.initialise(network, make_task().rng(f"teacher/{number}"))
        velocity = [torch.zeros_like(weight) for weight in network.parameters()]
        for rate in (0.05, 0.05, 0.005):
            gradients = torch.autograd.grad(F.cross_entropy(network(images), labels), list(network.parameters()))
            with torch.no_grad():
                for weight, v, gradient in zip(network.parameters(), velocity, gradients, strict=True):
                    v.mul_(0.9).add_(gradient + 5e-4 * weight)
                    weight -= rate * v
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(found[f"state/{name}"][number], tensor, rtol=1e-4, atol=1e-6)


def test_teachers_know_their_training_images(make_task):
    task = make_task()
    for number in range(2):
        network = teachers.read(reading(task, built(task, epochs=20, batch=16)), number)
        logits = teachers.predict(network, task.data.train.images())
        assert (logits.argmax(1) == task.data.train.labels).float().mean() > 0.95


@pytest.mark.parametrize("network", ["convnet-in-w4-d2", "convnet-bn-w4-d2"])
def test_a_teacher_read_back_predicts_alone_and_is_frozen(make_task, network):
    task = make_task(network=network)
    found = built(task, teachers=3, batch=16)
    states = {name.removeprefix("state/"): rows for name, rows in found.items() if name != "loss"}
    images = task.data.test.images()
    for number in (2, 0):
        network = teachers.read(reading(task, found), number)
        expected = task.network()
        expected.load_state_dict({name: rows[number] for name, rows in states.items()})
        assert torch.equal(teachers.predict(network, images), expected.eval()(images).detach())
        assert not network.training
        assert not any(weight.requires_grad for weight in network.parameters())
    assert found["loss"].shape == (3, 2)


def test_how_many_at_a_time_changes_nothing(make_task, monkeypatch):
    whole = built(make_task(augment="dsa:color_crop"), teachers=3, batch=16)
    monkeypatch.setattr(methods.experts, "TOGETHER", 2)
    apart = built(make_task(augment="dsa:color_crop"), teachers=3, batch=16)
    for name, tensor in whole.items():
        torch.testing.assert_close(apart[name], tensor, rtol=1e-4, atol=1e-6)


def test_fewer_images_are_other_teachers_with_the_same_start(make_task):
    whole, same, fewer = (built(make_task(), epochs=1, images=k)["state/head.weight"] for k in (None, 20, 5))
    torch.testing.assert_close(same, whole, rtol=1e-4, atol=1e-6)
    assert (fewer - whole).abs().max() > 1e-4


def test_the_runner_hears_how_far_the_training_is(make_task, monkeypatch):
    monkeypatch.setattr(methods.experts, "TOGETHER", 2)
    task, heard = make_task(), []
    task.report = lambda step, steps, text: heard.append((step, steps))
    built(task, teachers=3)
    assert heard == [(2, 6), (4, 6), (5, 6), (6, 6)]


SUITE = """\
title: Teachers are shared
grid: {datasets: [digits], methods: [apm], ipc: [1, 10], seeds: 2, network: convnet-w8}
evaluators: [accuracy]
"""


def test_sizes_and_seeds_share_one_pool(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE)
    plan = bench.suite.plan(bench.suite.load(file))
    pools = {cell.key for cell in plan.cells if cell.config.get("artifact") == "teachers"}
    asking = [cell for cell in plan.cells if cell.kind == "distil"]
    assert len(pools) == 1
    assert len(asking) == 4
    assert {cell.inputs["teachers"] for cell in asking} == pools
