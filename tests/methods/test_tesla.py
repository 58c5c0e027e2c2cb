"""TESLA against a student whose graph is cut at every step, in float64; soft labels, switches, presets, resume."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.func import functional_call
from trajectory_fakes import SMALL, check_resume, check_ten_steps, task_with_experts, unflatten

import bench.data
import methods.tesla
from bench.train.recipe import resolve
from methods.mtt import FIELDS, MTT
from methods.tesla import TESLA


@pytest.fixture
def prepared(make_task):
    """Return a function that makes a task which has experts."""
    return partial(task_with_experts, make_task)


def tesla(**changes):
    return TESLA(TESLA.Params(**(SMALL | changes)))


KINDS = {
    "formula": ({"gradient_scale": 2}, {"detach": True, "share": 1.0, "soft": False}),
    "released code": ({"gradient_scale": 1}, {"detach": True, "share": 0.5, "soft": False}),
    "exact sweep": ({"gradient_scale": 2, "sweep": "exact"}, {"detach": False, "share": 1.0, "soft": False}),
    "soft labels": ({"gradient_scale": 2, "labels": "soft"}, {"detach": True, "share": 1.0, "soft": True}),
}


@pytest.mark.parametrize("network", ["convnet-in-w4-d2", "convnet-bn-w4-d2"])
@pytest.mark.parametrize("augment", ["none", "dsa:color_crop_cutout_scale_rotate"])
@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_equal_a_plain_reference(prepared, kind, augment, network):
    params, wanted = KINDS[kind]
    task, twin = (prepared(augment=augment, network=network) for _ in range(2))
    check_ten_steps(tesla(batch_syn=4, **params), tesla(batch_syn=4, **params), task, twin, **wanted)


@pytest.mark.parametrize("changes", [{"syn_steps": 1}, {"sweep": "exact"}])
def test_one_student_step_or_the_exact_sweep_is_mtt(prepared, changes):
    results = []
    shared = SMALL | {k: v for k, v in changes.items() if k != "sweep"}
    for method in (MTT(MTT.Params(**shared)), tesla(gradient_scale=2, **changes)):
        method.start(prepared())
        for _ in range(3):
            method.step()
        results.append((method.set.pixels.detach(), method.rate.detach()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)


def test_more_steps_are_not_mtt(prepared):
    results = []
    for method in (MTT(MTT.Params(**SMALL)), tesla(gradient_scale=2)):
        method.start(prepared())
        method.step()
        results.append(method.set.pixels.detach())
    assert (results[0] - results[1]).abs().max() > 1e-5


def test_the_switch_of_the_released_code_halves_the_first_image_step_alone(prepared):
    moves = []
    for scale in (1, 2):
        method = tesla(gradient_scale=scale)
        method.start(prepared())
        before, rate = method.set.pixels.detach().clone(), method.rate.item()
        method.step()
        moves.append((method.set.pixels.detach() - before, method.rate.item() - rate))
    torch.testing.assert_close(2 * moves[0][0], moves[1][0], rtol=1e-6, atol=1e-12)
    assert moves[0][1] == moves[1][1] != 0


@pytest.mark.parametrize("at_once", [1000, 4])
def test_soft_labels_are_predictions_of_the_goal_without_gradient(prepared, monkeypatch, at_once):
    monkeypatch.setattr(methods.tesla, "LABELLED_AT_ONCE", at_once)
    method, twin = tesla(labels="soft"), tesla(labels="soft")
    method.start(prepared())
    twin.start(prepared())
    assert method.export().header.label_kind == "hard"
    before = method.set.pixels.detach().clone()
    method.step()
    _, goal = twin._expert()
    network = method.task.network()
    expected = functional_call(network, unflatten(network, goal), (before,)).softmax(1)
    assert not method.soft.requires_grad
    torch.testing.assert_close(method.soft, expected, rtol=1e-10, atol=0)
    exported = method.export()
    assert exported.header.label_kind == "probabilities"
    torch.testing.assert_close(exported.labels, expected.float())
    torch.testing.assert_close(exported.labels.sum(1), torch.ones(6))
    assert exported.header.learned_rate == method.rate.item()


@pytest.mark.parametrize("network", ["convnet-in-w4-d2", "convnet-bn-w4-d2"])
def test_state_continues_bit_for_bit(prepared, network):
    make = partial(tesla, labels="soft", batch_syn=4)
    check_resume(make, partial(prepared, augment="dsa:color_crop", network=network))


@pytest.mark.parametrize(
    ("name", "ipc", "row"),
    [
        ("cifar10", 1, (50, 2, 5, 1000, 1e-7, 0.01, None, False)),
        ("cifar100", 50, (80, 2, 40, 1000, 1e-5, 0.01, 125, True)),
    ],
)
def test_presets_are_the_commands_of_the_authors(name, ipc, row):
    preset = TESLA.preset(bench.data.info(name), ipc)
    params = TESLA.Params(**preset.params)
    assert preset.source
    assert tuple(getattr(params, field) for field in FIELDS) == row
    assert (params.iterations, params.gradient_scale, params.sweep, params.labels) == (10000, 1, "identity", "hard")


def test_elsewhere_the_row_of_mtt_without_a_source(make_task):
    for name in ("mnist", "cifar10", "cifar100", "tiny_imagenet"):
        for ipc in (10, 20):
            preset, other = (kind.preset(bench.data.info(name), ipc) for kind in (TESLA, MTT))
            assert preset.source is None
            assert preset.params == other.params
    recipe = resolve(TESLA.native_recipe(TESLA.Params(), make_task().spec))
    assert recipe == resolve("mtt")
