"""A set in a file as a method: planned from its header alone, known by content, evaluated as if just made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import bench.data
import bench.distilled
import bench.run
import bench.suite
from bench.api import NetSpec, TaskSpec
from bench.errors import UserError
from bench.loop import distil
from bench.registry import METHODS
from bench.task import LiveTask
from methods.given import Given

ROOT = Path(__file__).parents[1]
TINY = "convnet-in-w4-d2"


def make(path: Path, maker="random", ipc=2, seed=0, preprocessing="meanstd", dataset="debug", **header) -> Path:
    """Write the set of a coreset method; header: fields to change."""
    network = NetSpec(arch="convnet", norm="in", width=4, depth=2)
    spec = TaskSpec(dataset=bench.data.info(dataset), ipc=ipc, network=network, preprocessing=preprocessing, seed=seed)
    kind = METHODS.get(maker)
    made = distil(kind(kind.Params()), LiveTask(spec)).distilled
    bench.distilled.save(path, replace(made, header=made.header.model_copy(update=header)))
    return path


def suite(entries, dataset="debug", ipc=2, **changes) -> dict:
    return {
        "grid": {"datasets": [dataset], "methods": entries, "ipc": [ipc], **changes},
        "evaluation": {"recipe": {"base": "review", "epochs": 2}, "replicates": 2},
        "evaluators": ["accuracy"],
    }


def plan(values) -> bench.suite.Plan:
    return bench.suite.plan(bench.suite.from_values(values, "test"))


def given(file, **more) -> dict:
    return {"name": "given", "params": {"file": str(file)}, **more}


def keys(values) -> list[str]:
    return [cell.key for cell in plan(values).cells]


def run(values, folder: Path) -> dict[str, list[float]]:
    """Run a suite; return its accuracies by label."""
    summary = bench.run.run_plan(plan(values), bench.run.Store(folder), executor="inline", device="cpu", progress=False)
    assert summary.exit_code == 0, summary.failures
    found: dict[str, list[float]] = {}
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["label"], []).append(record["value"])
    return found


# ---------------------------------------------------------------------------------------------- identity


def test_a_moved_file_is_the_same_cell_and_a_changed_one_is_new(tmp_path):
    first = make(tmp_path / "a.safetensors")
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(first, tmp_path / "elsewhere" / "b.safetensors"))
    changed = make(tmp_path / "c.safetensors", seed=1)
    same = keys(suite([given(first)]))
    assert keys(suite([given(moved)])) == same
    assert not set(keys(suite([given(changed)]))) & set(same)
    before = os.stat(first)
    shutil.copy(changed, first)
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert keys(suite([given(first)])) == keys(suite([given(changed)]))


def test_the_hash_and_the_full_path_are_filled_in(tmp_path, monkeypatch):
    file = make(tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    params = plan(suite([given("a.safetensors")])).cells[0].config["params"]
    digest = subprocess.run(["sha256sum", str(file)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert params == {"file": str(file), "sha256": digest}
    assert keys(suite([{"name": "given", "params": params}])) == keys(suite([given(file)]))


def test_the_place_in_the_file_name_stands_for_the_cell(tmp_path):
    for ipc in (1, 2):
        make(tmp_path / f"debug-{ipc}.safetensors", ipc=ipc)
    values = suite([given(tmp_path / "{dataset}-{ipc}.safetensors")])
    values["grid"]["ipc"] = [1, 2]
    files = [cell.config["params"]["file"] for cell in plan(values).cells if cell.kind == "distil"]
    assert [Path(file).name for file in files] == ["debug-1.safetensors", "debug-2.safetensors"]


def test_one_file_is_one_set_whatever_the_seeds(tmp_path):
    values = suite([given(make(tmp_path / "a.safetensors")), "random"], seeds=[3, 4])
    distilled = [cell.coords for cell in plan(values).cells if cell.kind == "distil"]
    assert [(place["label"], place["seed"]) for place in distilled] == [("given", 3), ("random", 3), ("random", 4)]


def test_space_and_network_are_those_of_the_file(tmp_path):
    file = make(tmp_path / "a.safetensors", preprocessing="zca-kornia")
    task = plan(suite([given(file)])).cells[0].config["task"]
    assert task["preprocessing"] == "zca-kornia"
    assert (task["network"]["norm"], task["network"]["width"], task["network"]["depth"]) == ("in", 4, 2)
    other = plan(suite([given(file)], network="mlp")).cells[0].config["task"]["network"]
    assert other["arch"] == "mlp"
    nothing_said = make(tmp_path / "b.safetensors", network={})
    assert plan(suite([given(nothing_said)])).cells[0].config["task"]["network"]["width"] == 128


def test_native_is_what_the_file_says(tmp_path):
    own = {"base": "mtt", "lr": 0.5}
    file = make(tmp_path / "a.safetensors", native_recipe=own)
    values = suite([given(file)])
    values["evaluation"]["recipe"] = "native"
    assert plan(values).suite.variants[0].recipe["lr"] == 0.5
    values["grid"]["methods"] = [given(make(tmp_path / "b.safetensors"))]
    assert plan(values).suite.variants[0].recipe["epochs"] == 1000  # review
    frepo = METHODS.get("frepo")
    made = {"method": "frepo", "params": frepo.Params().model_dump(mode="json"), "native_recipe": {"base": "frepo"}}
    for params, norm in ((made, "none"), ({**made, "params": {"unheard": 1}}, "in")):
        values["grid"]["methods"] = [given(make(tmp_path / "c.safetensors", **params))]
        assert plan(values).suite.variants[0].network.norm == norm


# ---------------------------------------------------------------------------------------------- running


def test_the_same_numbers_as_the_method_that_made_the_set(tmp_path):
    """The oracle: a suite makes a set and evaluates it; its file, evaluated as given, must give the same numbers."""
    made = run(suite(["random"], network=TINY, seeds=[5]), tmp_path / "first")
    (file,) = (tmp_path / "first").glob("cells/*/*/set.safetensors")
    both = run(suite([given(file, label="file"), "random"], network=TINY, seeds=[5]), tmp_path / "second")
    assert both["file"] == both["random"] == made["random"]
    (again,) = (one for one in (tmp_path / "second").glob("cells/*/*/set.safetensors") if _is_given(one))
    first, second = bench.distilled.load(file), bench.distilled.load(again)
    assert torch.equal(first.images, second.images)
    assert first.header.model_dump(exclude={"provenance"}) == second.header.model_dump(exclude={"provenance"})
    assert second.header.provenance["given"]["provenance"] == first.header.provenance != {}
    assert second.header.provenance["data"] == bench.data.fingerprint("debug")


def _is_given(file: Path) -> bool:
    return json.loads((file.parent / "result.json").read_text())["config"]["method"] == "given"


def test_a_set_that_points_at_training_images(tmp_path):
    file = make(tmp_path / "a.safetensors", maker="whole", ipc=None)
    found = run(suite([given(file), "whole"], network=TINY), tmp_path / "out")
    assert found["given"] != []  # the whole set has no number of images per class: it stands in any column


def test_a_file_that_changes_after_the_plan_is_noticed(tmp_path):
    planned = plan(suite([given(file := make(tmp_path / "a.safetensors"))], network=TINY))
    make(file, seed=1)
    summary = bench.run.run_plan(
        planned, bench.run.Store(tmp_path / "out"), executor="inline", device="cpu", progress=False
    )
    assert "changed since the plan was made" in summary.failures[0][2]


def test_planning_imports_no_torch(tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(suite([given(make(tmp_path / "a.safetensors"))])))
    code = (
        "import bench.suite, sys\n"
        f"print(len(bench.suite.plan(bench.suite.load({str(tmp_path / 's.yaml')!r})).cells), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.split() == ["3", "False"], done.stderr


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("header", "changes", "what", "hint"),
    [
        ({"dataset": "digits"}, {}, "made for 'digits', not for 'debug'", "evaluate it on 'digits'"),
        ({}, {"preprocessing": "zca-kip"}, "preprocessing 'meanstd', not 'zca-kip'", "preprocessing: meanstd"),
        ({}, {"ipc": 1}, "2 images per class, not 1", "put 2 into grid.ipc"),
    ],
)
def test_a_set_for_something_else_is_refused_while_planning(tmp_path, header, changes, what, hint):
    file = make(tmp_path / "a.safetensors", **header)
    with pytest.raises(UserError) as caught:
        plan(suite([given(file)], **changes))
    message = str(caught.value)
    assert message.startswith("test: grid.methods[0]")
    assert str(file) in message
    assert what in message
    assert hint in message


def test_another_shape_under_the_same_name_is_refused(tmp_path):
    file = make(tmp_path / "a.safetensors")
    other = bench.data.info("digits").model_copy(update={"name": "debug"})
    task = TaskSpec(dataset=other, ipc=2, network=NetSpec())
    with pytest.raises(UserError, match=r"holds images 3x8x8 .* debug 1x8x8 .*right file"):
        Given.needs(Given.Params(file=str(file)), task)


def test_own_data_under_another_name_is_the_same_data(tmp_path):
    info = bench.data.info("debug")
    file = make(tmp_path / "a.safetensors", dataset="debug")
    loaded = bench.distilled.load(file)
    named = {"dataset": "npz:/gone/debug.npz", "provenance": {"data": bench.data.fingerprint("debug")}}
    bench.distilled.save(file, replace(loaded, header=loaded.header.model_copy(update=named)))
    assert Given.needs(Given.Params(file=str(file)), TaskSpec(dataset=info, ipc=2, network=NetSpec())) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"PK\x03\x04 not a set", "not a distilled set, or a damaged one"),
    ],
)
def test_a_file_that_is_no_set(tmp_path, content, message):
    file = tmp_path / "x.safetensors"
    if content:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        plan(suite([given(file)]))
    assert str(file) in str(caught.value)


def test_other_mistakes(tmp_path):
    file = make(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"params\.file is missing"):
        plan(suite(["given"]))
    with pytest.raises(UserError, match=r"leave params\.sha256 out"):
        plan(suite([{"name": "given", "params": {"file": str(file), "sha256": "0" * 64}}]))
    two = suite([given(file)])
    two["evaluators"] = ["continual"]
    with pytest.raises(UserError, match="the set was made for 'debug'"):  # it cannot be made anew from other images
        plan(two)
