"""`ddbench estimate`: near what a run takes, one trial for equal cells, none for known ones, failures as rows."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

import bench.suite
from bench import estimate
from bench.run import Store, run_plan

SEEDS, STEPS, NAP = 2, 100, 0.02


def values_of(methods, seeds=SEEDS, **params):
    return {
        "grid": {"datasets": ["debug"], "methods": list(methods), "ipc": [1], "seeds": seeds, "network": "mlp"},
        "methods": {name: {"iterations": STEPS, "nap": NAP, **params} for name in methods if ":" in name},
        "evaluation": {"replicates": 1, "recipe": {"base": "review", "epochs": 4}},
        "evaluators": ["accuracy"],
    }


def plan_of(*args, **params):
    return bench.suite.plan(bench.suite.from_values(values_of(*args, **params), "tiny"))


def tried(plan, store, budget=0.2, **options):
    return estimate.estimate(plan, store, device="cpu", jobs=1, budget=budget, progress=False, **options)


@pytest.fixture(scope="module")
def plan():
    return plan_of(["estimate_fakes:Sleeps"])


@pytest.fixture(scope="module")
def found(plan, tmp_path_factory):
    return tried(plan, Store(tmp_path_factory.mktemp("empty")), budget=1.0)


@pytest.fixture(scope="module")
def ran(plan, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("ran"))
    assert run_plan(plan, store, jobs=1, device="cpu", progress=False).exit_code == 0
    return store


def test_the_estimate_is_near_what_the_run_takes(plan, found, ran):
    (row,) = found.rows
    seconds = [ran.result(cell.key)["seconds"] for cell in plan.cells if cell.kind == "distil"]
    assert min(seconds) >= STEPS * NAP
    assert sum(seconds) / 3 < row.each("distil") * SEEDS < 3 * sum(seconds)
    assert row.total > SEEDS * STEPS * NAP
    assert found.seconds == pytest.approx(row.total)
    assert found.unknown == 0


def test_seeds_share_a_trial(found):
    assert found.tried == 3  # a set, networks trained on it, their accuracy
    assert [(row.cells, row.todo) for row in found.rows] == [(3 * SEEDS, 3 * SEEDS)]


def test_what_is_in_the_store_costs_nothing_and_tells_of_the_rest(plan, ran):
    done = tried(plan, ran)
    assert (done.tried, done.seconds, done.rows[0].todo) == (0, 0.0, 0)
    more = plan_of(["estimate_fakes:Sleeps"], seeds=SEEDS + 1)
    rest = tried(more, ran)
    (row,) = rest.rows
    assert (rest.tried, row.cells, row.todo) == (0, 3 * SEEDS + 3, 3)
    first = [ran.result(cell.key)["seconds"] for cell in plan.cells if cell.kind == "distil"]
    assert min(first) <= row.each("distil") <= max(first)


def test_what_is_stored_is_built_on(plan, ran, tmp_path):
    """Where sets are there but no training, only trainings and evaluations are tried."""
    store = Store(tmp_path)
    for cell in plan.cells:
        if cell.kind == "distil":
            store.cell(cell.key).parent.mkdir(parents=True, exist_ok=True)
            store.cell(cell.key).symlink_to(ran.cell(cell.key), target_is_directory=True)
    rest = tried(plan, store)
    assert (rest.tried, rest.unknown, rest.rows[0].todo) == (2, 0, 2 * SEEDS)


@pytest.mark.parametrize("stored", [False, True])
def test_intermediate_sets_are_those_of_their_own_method(stored, tmp_path):
    """Two methods make sets of one form; what looks into the course of the second is not tried on the first."""
    values = values_of(["random", "estimate_fakes:Sleeps"], seeds=1)
    values["evaluators"].append({"name": "cost", "params": {"looks": [0.5], "replicates": 1}})
    plan = bench.suite.plan(bench.suite.from_values(values, "tiny"))
    store = Store(tmp_path)
    if stored:
        sets = [cell for cell in plan.cells if cell.kind == "distil"]
        assert run_plan(replace(plan, cells=sets), store, jobs=1, device="cpu", progress=False).exit_code == 0
    found = tried(plan, store)
    assert found.unknown == 0
    assert not any("failed" in note for row in found.rows for note in row.notes)


def test_a_small_memory_is_told(plan, found, tmp_path):
    low = tried(plan_of(["random"], 1), Store(tmp_path / "none"), host_room=10.0)
    assert [row.fits for row in low.rows] == [False]
    assert [row.fits for row in found.rows] == [True]
    assert "do not fit" in estimate.conclusion(low)
    assert "do not fit" not in estimate.conclusion(found)


def test_devices_have_a_memory_of_their_own(plan):
    """One cell fits, two at once on a device do not; a timed one is alone there."""
    cell = plan.cells[0]
    for jobs, timed, fits in ((1, False, True), (2, False, False), (2, True, True)):
        found = estimate.Estimate([], 0.0, 0.0, jobs, jobs, 0, 0, host_room=1e6, device_room=100.0)
        row = estimate.Row("x", "debug", 1)
        estimate._add(found, row, replace(cell, timed=timed), estimate.Cost(1.0, host=10.0, device=60.0))
        assert row.fits == fits


def test_what_fails_is_a_row_that_says_so(tmp_path):
    plan = plan_of(["estimate_fakes:Sleeps", "estimate_fakes:Hungry", "estimate_fakes:Broken"], seeds=1)
    found = tried(plan, Store(tmp_path))
    rows = {row.label.split(":")[1]: row for row in found.rows}
    assert found.unknown == 6
    assert rows["Sleeps"].total > 0
    assert any(note.startswith("oom: out of memory") for note in rows["Hungry"].notes)
    assert any(note.startswith("failed: ValueError: made up") for note in rows["Broken"].notes)
    assert any(note.startswith("not measured: distil") for note in rows["Broken"].notes)
    assert "6 cells of unknown cost" in estimate.conclusion(found)
    assert any("made up" in note for note in estimate.notes(found))
    estimate.write_csv(found, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        lines = {row["method"].split(":")[1]: row for row in csv.DictReader(file)}
    assert float(lines["Sleeps"]["total_seconds"]) == rows["Sleeps"].total
    assert lines["Hungry"]["distil_seconds"] == ""
    assert [line["to do"] for line in estimate.table(found)] == ["3/3"] * 3


def test_a_step_longer_than_the_trial_is_the_only_sample(tmp_path):
    found = tried(plan_of(["estimate_fakes:Sleeps"], seeds=1, nap=0.5, iterations=6), Store(tmp_path))
    (row,) = found.rows
    assert "judged by 1 of 6 steps" in row.notes
    assert 3.0 < row.each("distil") < 9.0


def test_results_of_continued_cells_are_not_taken(plan, ran, tmp_path):
    """Their seconds are those of the last try alone."""
    store = Store(tmp_path)
    for cell in plan.cells:
        if cell.kind == "distil":
            folder = store.cell(cell.key)
            folder.mkdir(parents=True)
            for path in ran.cell(cell.key).iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
            result = json.loads((folder / "result.json").read_text())
            result.pop("digest", None)
            result["usage"]["resumed"], result["seconds"] = True, 1e6
            (folder / "result.json").write_text(json.dumps(result))
            break
    (row,) = tried(plan, store).rows
    assert row.todo == 3 * SEEDS - 1
    assert row.each("distil") < 1e5


def test_the_verb_prints_the_table_and_writes_it(ran, tmp_path, monkeypatch):
    from bench.cli import screen
    from bench.cli.estimate import command

    out = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=out, width=80))
    (tmp_path / "tiny.yaml").write_text(json.dumps(values_of(["estimate_fakes:Sleeps"])))
    command(tmp_path / "tiny.yaml", out=ran.root, device="cpu", csv=tmp_path / "table.csv")
    assert "0/6" in out.getvalue()
    assert "(0 trials)" in out.getvalue()
    assert (tmp_path / "table.csv").read_text().startswith("method,dataset,ipc,cells,to_do,distil_seconds")
