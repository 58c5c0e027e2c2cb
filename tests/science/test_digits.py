"""The science on embedded real data: at one image per class every method beats random images by both intervals.

Everything runs as a user would run it: a suite, the plan, the scheduler, the trainer, the records. The settings are
those of the laptop preset, so this is also the check that its table says something.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bench import stats, suite
from bench.run import Store, run_plan

LAPTOP = Path(__file__).parents[2] / "suites" / "survey_table.yaml"
METHODS = ["herding", "dc", "dsa", "dm", "dd", "mtt", "tesla", "kip", "frepo"]


def run(folder: Path, methods: list[str], seeds: int) -> dict[str, stats.Summary]:
    """Return the accuracy of each method at one image per class; one observation is one distilled set."""
    text = yaml.safe_load(LAPTOP.read_text())
    laptop = text["presets"]["laptop"]
    small = {
        "grid": {**text["grid"], **laptop["grid"], "methods": methods, "ipc": [1], "seeds": seeds},
        "methods": laptop["methods"],
        "evaluation": {**laptop["evaluation"], "replicates": 2},
        "evaluators": ["accuracy"],
    }
    (folder / "science.yaml").write_text(yaml.safe_dump(small))
    plan = suite.plan(suite.load(folder / "science.yaml"))
    summary = run_plan(plan, Store(folder), progress=False)
    assert summary.exit_code == 0, summary.failures
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    found = {}
    for method in methods:
        own = [record for record in records if record["label"] == method]
        found[method] = stats.summary([r["value"] for r in own], groups=[r["seed"] for r in own])
        assert found[method].over == "sets"
    return found


@pytest.fixture(scope="module")
def accuracies(tmp_path_factory):
    random = run(tmp_path_factory.mktemp("random"), ["random"], 10)
    return {**random, **run(tmp_path_factory.mktemp("methods"), METHODS, 3)}


@pytest.mark.parametrize("method", METHODS)
def test_one_image_per_class_beats_a_random_one_by_both_intervals(accuracies, method):
    assert accuracies[method].low > accuracies["random"].high
