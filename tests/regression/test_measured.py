"""A results folder is read as what can be compared: accuracies of final sets, costs of cells, states."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UserError
from bench.regression import baseline, measured
from bench.regression.measured import Where

CELLS = {
    "d0": ("distil", "distil dm, digits, ipc 1, seed 0"),
    "d1": ("distil", "distil dm, digits, ipc 1, seed 1"),
    "t0": ("prepare", "train net on dm, digits, ipc 1, seed 0"),
    "e0": ("evaluate", "accuracy of dm, digits, ipc 1, seed 0"),
    "e1": ("evaluate", "accuracy of dm, digits, ipc 1, seed 1"),
}
ORIGIN = {
    "ddbench": "0.1.0", "commit": "abc", "dirty": False, "python": "3.12", "packages": {"torch": "2"},
    "system": "Linux", "cpu": "made up", "device": "cpu", "threads": 1,
}  # fmt: skip


def usage(cpu: float, step: float | None = 0.002, **more: Any) -> dict[str, Any]:
    calibration = step and {"version": 1, "cpu_seconds": step, "seconds": 10 * step}
    own = {"seconds": 10 * cpu, "cpu_seconds": cpu, "own_process": True, "resumed": False, "calibration": calibration}
    return {**own, **more}


def write(out: Path, results: dict[str, dict[str, Any]], records: list[dict[str, Any]], states: dict[str, Any]) -> Path:
    """Write a results folder. results: key -> fields of result.json; states: key -> (state, reason)."""
    coords = {"dataset": "digits", "method": "dm", "label": "dm", "settings": "modified", "ipc": 1, "evaluator": None}
    rows = [
        {"key": key, "kind": kind, "label": label, "coords": {**coords, "seed": int(label[-1])}, "inputs": {}}
        for key, (kind, label) in CELLS.items()
    ]
    out.mkdir(parents=True)
    (out / "suite.json").write_text(json.dumps({"name": "made_up", "preset": "laptop", "plan": rows}))
    lines = [{**row, **dict(zip(("state", "reason"), states.get(row["key"], ("ok", "")), strict=True))} for row in rows]
    (out / "states.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    place = {"suite": "made_up", "preset": "laptop", **coords, "evaluator": "accuracy", "network": "net", "cell": "e0"}
    full = [{**place, "unit": "fraction", "selection": "last", "tags": {}, **record} for record in records]
    (out / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in full))
    for key, fields in results.items():
        folder = out / "cells" / key[:2] / key
        folder.mkdir(parents=True)
        config = {"kind": CELLS[key][0], "version": 1, "params": {"rate": 1}, "task": {"ipc": 1, "seed": int(key[-1])}}
        stored = {"key": key, "label": CELLS[key][1], "state": "ok", "files": {}, "config": config, "inputs": {}}
        times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00"}
        (folder / "result.json").write_text(json.dumps({**stored, **times, "provenance": ORIGIN, **fields}))
    return out


def test_accuracies_are_those_of_final_sets_by_seed_and_replicate(tmp_path):
    records = [
        {"metric": "accuracy", "value": 0.5, "seed": 0, "replicate": 0},
        {"metric": "accuracy", "value": 0.6, "seed": 0, "replicate": 1},
        {"metric": "accuracy", "value": 0.7, "seed": 1, "replicate": 0},
        {"metric": "accuracy", "value": 0.1, "seed": 0, "replicate": 0, "step": 5},  # of a set on the way
        {"metric": "mia_auc", "value": 0.6, "seed": 0, "replicate": 0},  # more is not better
        {"metric": "krr_accuracy", "value": 0.8, "seed": 0, "network": None, "tags": {"b": 2, "a": "x"}},
    ]
    found = measured.read(write(tmp_path / "run", {}, records, {}))
    networks = Where("digits", "dm", 1, "accuracy", "accuracy", "net", "", "", "last", "")
    assert found.accuracy == {
        networks: {0: {0: 0.5, 1: 0.6}, 1: {0: 0.7}},
        networks._replace(metric="krr_accuracy", network="", tags="a=x, b=2"): {0: {0: 0.8}},
    }
    assert (found.suite, found.preset, found.costs) == ("made_up", "laptop", [])


def test_costs_are_multiples_of_the_calibration_of_the_run(tmp_path):
    results = {
        "d0": {"usage": usage(4.0, 0.001), "profile": {"peak_host_MiB": 30.0, "peak_device_MiB": None}},
        "d1": {"usage": usage(2.0, 0.003), "profile": {"peak_host_MiB": None}},
        "t0": {"usage": usage(0.1, None), "profile": {"peak_host_MiB": 3.0}},
    }
    found = measured.read(write(tmp_path / "run", results, [], {}))
    distil, train = found.costs
    assert (distil.name, train.name) == ("distil dm, digits, ipc 1", "train net on dm, digits, ipc 1")
    assert [sample.cpu for sample in distil.samples] == pytest.approx([4.0 / 0.002, 2.0 / 0.002])
    assert [sample.wall for sample in distil.samples] == pytest.approx([40.0 / 0.02, 20.0 / 0.02])
    assert [sample.MiB for sample in distil.samples] == [30.0, None]
    assert [sample.cpu for sample in train.samples] == pytest.approx([0.2 / 0.002])  # short ones count as 0.2 s
    assert [sample.MiB for sample in train.samples] == [measured.SMALL]
    assert distil.median("cpu_seconds") == 3.0
    assert distil.hardware == "system Linux, cpu made up, device cpu, threads 1"
    assert found.origin["calibration"][distil.hardware] == pytest.approx({"cpu_seconds": 0.002, "seconds": 0.02})
    assert (found.origin["commit"], found.origin["started"]) == (["abc"], ["2026-01-01T00:00:00+00:00"])


def test_the_speed_of_a_machine_is_that_near_a_cell():
    rng = random.Random(0)
    rows = [(rng.uniform(0, 300), rng.uniform(1, 2), rng.uniform(2, 4)) for _ in range(200)]
    machine = measured._Machine(rows)
    for begin, end in ((-100, -50), (0, 1), (50, 51), (120, 180), (299, 300), (400, 500)):
        near = [row for row in rows if begin - measured.NEAR <= row[0] <= end + measured.NEAR]
        near = near if len(near) >= measured.FEW else rows  # nobody else was there: the mean over the run
        assert machine.step(begin, end) == pytest.approx([statistics.fmean(row[i] for row in near) for i in (1, 2)])


def test_a_slow_minute_of_the_machine_is_no_slower_cell(tmp_path):
    def at(minute: int, slow: float) -> dict[str, Any]:
        times = {"started": f"2026-01-01T00:{minute:02}:00+00:00", "finished": f"2026-01-01T00:{minute:02}:30+00:00"}
        return {**times, "usage": usage(4.0 * slow, 0.001 * slow)}

    keys = {f"m{minute}{n}": (minute, 1.0 if minute < 5 else 2.0) for minute in (1, 9) for n in range(measured.FEW)}
    out = tmp_path / "run"
    write(out, {}, [], {})
    plan = json.loads((out / "suite.json").read_text())
    for key, (minute, slow) in keys.items():
        label = f"distil {key}, seed 0"
        plan["plan"].append({**plan["plan"][0], "key": key, "label": label})
        folder = out / "cells" / key[:2] / key
        folder.mkdir(parents=True)
        stored = {"key": key, "label": label, "state": "ok", "files": {}, "config": {}, "inputs": {}}
        (folder / "result.json").write_text(json.dumps({**stored, "provenance": ORIGIN, **at(minute, slow)}))
    (out / "suite.json").write_text(json.dumps(plan))
    found = measured.read(out)
    assert len(found.costs) == len(keys)
    assert {round(sample.cpu) for cost in found.costs for sample in cost.samples} == {4000}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"usage": usage(4.0, resumed=True)},
        {"usage": usage(4.0, own_process=False)},
        {"usage": usage(4.0), "files": {"lost": {"size": 1, "sha256": ""}}},
    ],
)
def test_cells_without_a_whole_measurement_have_no_cost(tmp_path, fields):
    found = measured.read(write(tmp_path / "run", {"d0": fields}, [], {}))
    assert (found.costs, found.origin["calibration"]) == ([], {})
    assert found.origin["commit"] == ([] if "files" in fields else ["abc"])  # where it comes from is known all the same


def test_settings_tell_costs_apart_and_versions_do_not(tmp_path):
    digests = []
    for name, changed in [("a", {}), ("b", {"version": 2, "inputs": {"x": "y"}}), ("c", {"params": {"rate": 2}})]:
        config = {"kind": "distil", "version": 1, "params": {"rate": 1}, "task": {"ipc": 1, "seed": 0}, **changed}
        run = write(tmp_path / name, {"d0": {"usage": usage(4.0), "config": config}}, [], {})
        digests.append(measured.read(run).costs[0].digest)
    assert digests[0] == digests[1] != digests[2]


def test_states_are_those_of_evaluations(tmp_path):
    run = write(tmp_path / "run", {}, [], {"e1": ("diverged", "loss is nan")})
    assert measured.read(run).cells == {CELLS["e0"][1]: ("ok", ""), CELLS["e1"][1]: ("diverged", "loss is nan")}


def test_a_baseline_survives_its_file(tmp_path):
    records = [{"metric": "accuracy", "value": 0.5, "seed": 0, "replicate": 0}]
    runs = [
        measured.read(write(tmp_path / f"{n}", {"d0": {"usage": usage(4.0 + n)}}, records, {})) for n in range(3)
    ]  # fmt: skip
    made = baseline.make(runs)
    baseline.save(tmp_path / "sub" / "baseline.json", made)
    assert baseline.load(tmp_path / "sub" / "baseline.json") == made
    assert made.costs[0].values["cpu"] == pytest.approx([2000, 2500, 3000])
    assert made.accuracy[0].values == {0: {0: 0.5}}
    text = (tmp_path / "sub" / "baseline.json").read_text()
    assert sum('"distil dm' in line for line in text.splitlines()) == len(made.costs) == 1


def test_accuracies_of_several_runs_are_averaged(tmp_path):
    records = [{"metric": "accuracy", "seed": 0, "replicate": 0}]
    runs = [write(tmp_path / f"{n}", {}, [{**records[0], "value": 0.5 + 0.1 * n}], {}) for n in range(2)]
    assert baseline.make([measured.read(run) for run in runs]).accuracy[0].values == {0: {0: pytest.approx(0.55)}}


def test_what_makes_no_baseline(tmp_path):
    good = measured.read(write(tmp_path / "good", {}, [], {}))
    bad = measured.read(write(tmp_path / "bad", {}, [], {"e1": ("oom", "out of memory")}))
    with pytest.raises(
        UserError, match="1 cells have no result, the first is accuracy of dm, digits, ipc 1, seed 1: oom"
    ):
        baseline.make([good, bad])
    assert baseline.make([good, bad], with_failures=True).cells == [CELLS["e0"][1]]
    bad.preset = "paper"
    with pytest.raises(UserError, match="different suites"):
        baseline.make([good, bad], with_failures=True)
    with pytest.raises(UserError, match=r"there is no baseline .*--update"):
        baseline.load(tmp_path / "none.json")
    (tmp_path / "odd.json").write_text('{"suite": 1}')
    with pytest.raises(UserError, match=r"odd.json: not a baseline: suite"):
        baseline.load(tmp_path / "odd.json")
    with pytest.raises(UserError, match="holds no run"):
        measured.read(tmp_path / "nothing")
