"""The suites that come with ddbench are valid, are planned without torch, and survive any damage with an error."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bench.suite
from bench.errors import UserError

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "suites").glob("*.yaml"))
PRESETS = [(file, preset) for file in FILES for preset in (bench.suite.load(file).presets or (None,))]


@pytest.mark.parametrize(("file", "preset"), PRESETS, ids=[f"{file.stem}-{preset}" for file, preset in PRESETS])
def test_every_preset_is_valid(file, preset):
    plan = bench.suite.plan(bench.suite.load(file, preset), skip_missing=True)
    assert plan.cells or plan.skipped
    assert {cell.skip for cell in plan.skipped} <= {"no data"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_suite_says_what_it_reproduces(file):
    head = file.read_text().split("\ntitle:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "# Reproduces:" in head
    assert "# Expected:" in head
    assert bench.suite.load(file).spec.about


def test_the_defaults_need_no_data():
    for file in FILES:
        assert bench.suite.plan(bench.suite.load(file)).skipped == []


def test_the_laptop_table_has_its_full_shape():
    plan = bench.suite.plan(bench.suite.load(ROOT / "suites/survey_table.yaml", "laptop"))
    cells = [cell.coords for cell in plan.cells if cell.kind == "evaluate" and cell.coords["evaluator"] == "accuracy"]
    selections = {"random", "herding", "kcenter", "forgetting"}
    methods = selections | {"dd", "dc", "dsa", "dm", "mtt", "tesla", "kip", "frepo"}
    assert {(c["method"], c["ipc"]) for c in cells} == {(m, i) for m in methods for i in (1, 10, 50)} | {
        ("whole", None)
    }
    transfer = [c for c in plan.cells if c.kind == "evaluate" and c.coords["evaluator"] == "cross_arch"]
    assert {len(cell.config["trainings"]) for cell in transfer} == {9}
    assert {cell.coords["method"] for cell in transfer} == methods
    assert any(cell.timed for cell in plan.cells)


def test_planning_imports_nothing_heavy():
    code = """
import sys, bench.suite
for preset in ("laptop", "paper"):
    bench.suite.plan(bench.suite.load("suites/survey_table.yaml", preset), skip_missing=True)
print([name for name in ("torch", "pandas", "scipy", "matplotlib", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "[]\n", done.stderr + done.stdout


# ---------------------------------------------------------------------------------------------- damage

ODD = [
    None,
    True,
    False,
    0,
    -1,
    3,
    1e-3,
    10**12,
    "",
    "x",
    "digits",
    "dm",
    ":",
    "math:pi",
    "1e-3",
    [],
    {},
    [[]],
    {"a": 1},
]
KEYS = ["name", "params", "ipc", "grid", "recipe", "presets", "where", "x", "", "label", "base", "epochs"]


def places(tree, path=()):
    """Return the paths of all nodes of a plain tree, but for the root."""
    found = []
    for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        found += [(*path, key), *places(child, (*path, key))]
    return found


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def damage(tree, draw):
    """Delete, duplicate, rename, retype, move or reorder one node."""
    path = draw(st.sampled_from(places(tree)))
    parent, key = at(tree, path[:-1]), path[-1]
    kind = draw(st.sampled_from(["delete", "duplicate", "rename", "retype", "swap", "reorder"]))
    if kind == "delete":
        del parent[key]
    elif kind == "duplicate" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind == "rename" and isinstance(parent, dict):
        parent[draw(st.sampled_from(KEYS)) if draw(st.booleans()) else f"{key}s"] = parent.pop(key)
    elif kind == "swap":
        parent[key] = copy.deepcopy(at(tree, draw(st.sampled_from(places(tree)))))
    elif kind == "reorder" and isinstance(parent, list):
        parent.reverse()
    elif kind == "reorder" and isinstance(parent[key], str):
        parent[key] = parent[key][::-1]
    else:
        parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))


def outcome(file: Path, preset: str | None) -> list[UserError]:
    """Return the errors of a suite, none if it can be planned."""
    try:
        bench.suite.plan(bench.suite.load(file, preset), skip_missing=True)
    except bench.suite.SuiteErrors as error:
        return list(error.errors)
    except UserError as error:
        return [error]
    return []


def check(file: Path, text: str, preset: str | None) -> None:
    """Load a damaged suite: it is valid, or all its errors name the file, a line of it, and fit in one line each."""
    file.write_text(text)
    for error in outcome(file, preset):
        match = re.match(rf"{re.escape(str(file))}:(\d+)", error.where or "")
        assert match, error
        assert 1 <= int(match[1]) <= text.count("\n") + 1
        assert "\n" not in str(error)
        assert error.what


fuzz = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ORIGINALS = [(yaml.safe_load(file.read_text()), file.read_text()) for file in FILES]


@fuzz
@given(st.data())
def test_damaged_trees_give_errors_with_a_place(tmp_path, data):
    tree = copy.deepcopy(data.draw(st.sampled_from([tree for tree, _ in ORIGINALS]), "suite"))
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        damage(tree, data.draw)
    text = yaml.safe_dump(tree, sort_keys=False) if data.draw(st.booleans()) else json.dumps(tree, indent=1)
    check(tmp_path / "suite.yaml", text, data.draw(st.sampled_from([None, "laptop", "mnist"])))


@fuzz
@given(st.data())
def test_damaged_text_gives_errors_with_a_place(tmp_path, data):
    lines = data.draw(st.sampled_from([text for _, text in ORIGINALS]), "suite").splitlines(keepends=True)
    lines = [line for line in lines if not line.startswith("#")]
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        index = data.draw(st.integers(0, len(lines) - 1))
        line = lines[index]
        cut = data.draw(st.integers(0, len(line)))
        inserted = data.draw(st.text("[]{}:,-&*!#'\" \n\t|>?%@ax10.é\x00", max_size=3))
        lines[index] = data.draw(
            st.sampled_from(
                ["", line + line, line[:cut] + inserted + line[cut:], line[:cut] + line[cut + 1 :], "  " + line]
            )
        )
    check(tmp_path / "suite.yaml", "".join(lines), None)
