"""Expert trajectories: plain SGD from their own start, independent of how many at a time, one cell for all who ask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from trajectory_fakes import unflatten

import bench.suite
import methods.experts
from bench.errors import UserError
from bench.unroll import Flat
from methods.experts import Experts, flat


def test_experts_are_plain_sgd_from_their_own_start(make_task):
    task = make_task()
    built = Experts(Experts.Params(experts=3, epochs=2, batch=60)).build(task)
    network = task.network()
    size = sum(weight.numel() for weight in network.parameters())
    assert built["snapshots"].shape == (3, 3, size)
    assert built["snapshots"].dtype == torch.float32
    assert built["loss"].shape == (3, 2)
    images, labels = task.data.train.images(), task.data.train.labels
    for number, rows in enumerate(built["snapshots"]):
        fresh = make_task()
        task.initialise(network, fresh.rng(f"expert/{number}"))
        assert torch.equal(rows[0], Flat(network).vector())
        weights = rows[0]
        for t in range(2):  # the batch is the whole set, so one epoch is one step of plain gradient descent
            point = weights.clone().requires_grad_()
            loss = F.cross_entropy(functional_call(network, unflatten(network, point), (images,)), labels)
            (gradient,) = torch.autograd.grad(loss, point)
            weights = weights - 0.01 * gradient
            torch.testing.assert_close(rows[t + 1], weights, rtol=1e-4, atol=1e-6)
    assert not torch.equal(built["snapshots"][0, 0], built["snapshots"][1, 0])


def test_how_many_at_a_time_changes_nothing(make_task, monkeypatch):
    params = Experts.Params(experts=3, epochs=2, batch=16)
    together = Experts(params).build(make_task(augment="dsa:color_crop"))["snapshots"]
    for number in (1, 2):
        monkeypatch.setattr(methods.experts, "TOGETHER", number)
        apart = Experts(params).build(make_task(augment="dsa:color_crop"))["snapshots"]
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-6)


def test_shorter_training_is_the_beginning_of_a_longer_one(make_task):
    short, long = (Experts(Experts.Params(experts=2, epochs=t, batch=16)).build(make_task()) for t in (1, 3))
    assert torch.equal(short["snapshots"], long["snapshots"][:, :2])


def test_experts_of_fewer_images(make_task):
    """With as many images as there are, in batches of all, fewer images per class is the whole set in another order."""
    whole, same, fewer = (
        Experts(Experts.Params(experts=1, epochs=1, batch=100, images=k)).build(make_task())["snapshots"]
        for k in (None, 20, 5)
    )
    torch.testing.assert_close(same, whole, rtol=1e-4, atol=1e-6)
    assert (fewer[:, 1] - whole[:, 1]).abs().max() > 1e-5
    assert torch.equal(fewer[:, 0], whole[:, 0])


def test_flat_weights_are_a_copy_in_the_order_of_the_network(make_task):
    network = make_task().network()
    stacked = {name: torch.randn(2, *weight.shape) for name, weight in network.named_parameters()}
    rows = flat(stacked)
    parts = Flat(network).unflatten(rows[1])
    for name, weight in stacked.items():
        assert torch.equal(parts[name], weight[1])
        weight.zero_()
    assert rows.abs().min() > 0


SUITE = """\
title: Experts are shared
grid: {{datasets: [digits], methods: [mtt, tesla], ipc: [1, 10], seeds: 2, network: convnet-w8}}
methods:
  mtt: {{max_start_epoch: 2, expert_epochs: 2, experts: 4, train_epochs: 3}}
  tesla: {{max_start_epoch: 1, expert_epochs: 3, experts: {experts}, train_epochs: 3}}
evaluators: [accuracy]
"""


@pytest.mark.parametrize(("experts", "cells"), [(4, 1), (5, 2)])
def test_methods_sizes_and_seeds_share_one_buffer(tmp_path, experts, cells):
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE.format(experts=experts))
    plan = bench.suite.plan(bench.suite.load(file))
    buffers = {cell.key for cell in plan.cells if cell.config.get("artifact") == "experts"}
    asking = [cell for cell in plan.cells if cell.kind == "distil"]
    assert len(buffers) == cells
    assert len(asking) == 8
    assert {cell.inputs["experts"] for cell in asking} == buffers


def test_a_suite_that_reads_beyond_its_experts_is_refused_while_planning(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE.format(experts=4).replace("max_start_epoch: 2", "max_start_epoch: 3"))
    with pytest.raises(UserError, match="up to epoch 4 of 3"):
        bench.suite.plan(bench.suite.load(file))


def test_the_runner_hears_how_far_the_training_is(make_task, monkeypatch):
    monkeypatch.setattr(methods.experts, "TOGETHER", 2)
    task, heard = make_task(), []
    task.report = lambda step, steps, text: heard.append((step, steps))
    Experts(Experts.Params(experts=3, epochs=2, batch=60)).build(task)
    assert heard == [(2, 6), (4, 6), (5, 6), (6, 6)]
