"""Groups of an APM set on real digits: kept apart, merged in order, stopped and continued, planned as cells."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import bench.data
import bench.suite
from bench.api import NetSpec, TaskSpec
from bench.errors import UserError
from bench.loop import distil
from bench.run.job import Stopped
from bench.task import LiveTask
from methods.apm import APM, APMParams, merge
from methods.apm_slice import APMSlice
from methods.teachers import Teachers

NETWORK = NetSpec(norm="in", width=4, depth=1, activation="relu", pooling="avg")
FEW = {"iterations": 5, "student_epochs": 2, "students": 2, "mid_gap": 1, "lr_img": 5.0, "teachers": 2}
SLICES = {"group 0": 0, "group 1": 1_000_000}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """The folder of two hasty teachers."""
    folder = tmp_path_factory.mktemp("teachers")
    save_file(
        Teachers(Teachers.Params(teachers=2, epochs=1, images=10)).build(task(None)), folder / "tensors.safetensors"
    )
    return folder


def task(ipc, seed=0, **options):
    spec = TaskSpec(dataset=bench.data.info("digits"), ipc=ipc, network=NETWORK, augment="dsa:crop_rotate", seed=seed)
    return LiveTask(spec, **options)


def group(pool, name):
    return APMSlice(APMParams(**FEW)).build(task(1, SLICES[name], inputs={"teachers": pool}))


def test_groups_made_in_any_order_merge_to_the_same_set(pool, tmp_path):
    sets = []
    for order in (("group 0", "group 1"), ("group 1", "group 0")):
        inputs = {"teachers": pool}
        for name in order:
            folder = inputs[name] = tmp_path / f"{order[0]} first, {name}"
            folder.mkdir()
            save_file(group(pool, name), folder / "tensors.safetensors")
        sets.append(distil(APM(APMParams(groups=2, **FEW)), task(2, inputs=inputs)).distilled)
    first, second = sets
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.images, merge([group(pool, name)["images"] for name in SLICES], 10))
    assert (first.images.shape, first.labels.shape, first.header.ipc) == ((20, 1, 8, 8), (20, 10), 2)


def test_the_first_group_is_the_plain_run_and_the_second_another(pool):
    plain = distil(APM(APMParams(**FEW)), task(1, inputs={"teachers": pool})).distilled.images
    assert torch.equal(group(pool, "group 0")["images"], plain)
    assert not torch.equal(group(pool, "group 1")["images"], plain)


def test_a_group_that_was_stopped_continues(pool, tmp_path):
    heard = []

    def report(step, steps, text=""):
        heard.append((step, steps))
        if len(heard) == 3:
            raise Stopped

    artifact, options = APMSlice(APMParams(**FEW)), {"inputs": {"teachers": pool}, "folder": tmp_path, "report": report}
    with pytest.raises(Stopped):
        artifact.build(task(1, **options))
    assert torch.equal(artifact.build(task(1, **options))["images"], group(pool, "group 0")["images"])
    assert heard == [(step, 6) for step in (1, 2, 3, 4, 5, 6)]


SUITE = """\
title: Groups
grid:
  datasets: [digits]
  methods:
    - {name: apm, label: in groups, params: {groups: 3}}
    - {name: apm, label: hard, params: {groups: 3, labels: hard}}
  ipc: [IPC]
  seeds: 2
evaluators: [accuracy]
"""


def test_groups_are_cells_that_need_the_teachers_alone(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE.replace("IPC", "9"))
    plan = bench.suite.plan(bench.suite.load(file))
    cells = {cell.key: cell for cell in plan.cells}
    (pool,) = (key for key, cell in cells.items() if cell.config.get("artifact") == "teachers")
    slices = {key: cell for key, cell in cells.items() if cell.config.get("artifact") == "apm_slice"}
    assert len(slices) == 6
    assert {tuple(cell.inputs.items()) for cell in slices.values()} == {(("teachers", pool),)}
    assert {cell.config["task"]["ipc"] for cell in slices.values()} == {3}
    distillations = [cell for cell in plan.cells if cell.kind == "distil"]
    assert len(distillations) == 4
    for cell in distillations:
        seeds = [cells[cell.inputs[f"group {g}"]].config["task"]["seed"] for g in range(3)]
        assert seeds == [cell.coords["seed"] + g * 1_000_000 for g in range(3)]
    file.write_text(SUITE.replace("IPC", "10"))
    with pytest.raises(UserError, match="cannot be 3 equal groups"):
        bench.suite.plan(bench.suite.load(file))
