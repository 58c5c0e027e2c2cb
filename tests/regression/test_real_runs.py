"""Real runs of a tiny suite: repeats pass, more work per step and worthless images are found."""

from __future__ import annotations

import os

import pytest
import yaml

import bench.suite
from bench.regression import baseline, compare, measured
from bench.run import Store, run_plan

NETWORK = "convnet-in-w4-d2"
SUITE = {
    "title": "tiny",
    "grid": {"datasets": ["digits"], "methods": ["busy:Busy"], "ipc": [1, 2], "seeds": 1, "network": NETWORK},
    "evaluation": {"network": NETWORK, "recipe": {"base": "review", "epochs": 30, "lr": 0.1}, "replicates": 2},
    "evaluators": ["accuracy"],
}
DISTILLATIONS = {f"distil busy:Busy, digits, ipc {ipc}" for ipc in (1, 2)}
LIMITS = compare.Limits(slower=2.5, larger=2.5)  # three repeats on a busy machine say little about its noise
REPEATS = int(os.environ.get("DDBENCH_CHECK_REPEATS", "0"))


class Runs:
    """Runs the suite again and again. switch: the file that plants a defect."""

    def __init__(self, folder, monkeypatch):
        monkeypatch.syspath_prepend(os.path.dirname(__file__))
        self.folder, self.count, self.switch = folder, 0, folder / "switch"
        file = folder / "tiny.yaml"
        file.write_text(yaml.safe_dump({**SUITE, "methods": {"busy:Busy": {"switch": str(self.switch)}}}))
        self.plan = bench.suite.plan(bench.suite.load(file))

    def __call__(self, planted="1"):
        self.switch.write_text(planted)
        self.count += 1
        out = self.folder / f"run{self.count}"
        assert run_plan(self.plan, Store(out), jobs=1, progress=False).exit_code == 0
        return measured.read(out)


@pytest.fixture
def run(tmp_path, monkeypatch):
    return Runs(tmp_path, monkeypatch)


def failed(found, known, limits=None):
    return [one for one in compare.check(found, known, limits) if one.failed]


def test_repeats_pass_and_planted_regressions_are_found(run):
    known = baseline.make([run() for _ in range(3)])
    assert {one.name for one in known.costs if "cpu" in one.spread} >= DISTILLATIONS
    again = run()
    found = compare.check(again, known, LIMITS)
    assert [one for one in found if one.failed] == []
    assert {one.kind for one in found if one.verdict == "ok"} == {"cell", "accuracy", "time", "memory"}
    assert baseline.make([again]).accuracy == known.accuracy  # the same digits again

    found = failed(run("5 blind"), known, LIMITS)
    assert {one.name for one in found if one.kind == "time"} == DISTILLATIONS
    assert {one.kind for one in found} == {"time", "accuracy"}


@pytest.mark.skipif(REPEATS == 0, reason="set DDBENCH_CHECK_REPEATS=20: minutes")
def test_many_repeats_and_twice_the_work(run):
    known = baseline.make([run() for _ in range(8)])
    alarms = [failed(run(), known) for _ in range(REPEATS)]
    assert alarms == [[]] * REPEATS
    for n in range(REPEATS):
        slow = failed(run("2"), known)
        assert any(one.name in DISTILLATIONS for one in slow), n
        assert {one.kind for one in slow} == {"time"}
