"""Committed runs: what results/README.md says of them follows from the records beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import stats

RESULTS = Path(__file__).parents[1] / "results"


def accuracies(name: str, label: str, ipc: int) -> stats.Summary:
    lines = (RESULTS / name / "records.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if (r["label"], r["ipc"], r["metric"]) == (label, ipc, "accuracy")]
    return stats.summary([r["value"] for r in records], groups=[r["seed"] for r in records])


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
@pytest.mark.parametrize(("run", "ipc"), [("mnist", 1), ("mnist_ipc10", 10), ("cifar10_ipc10", 10)])
def test_distilled_sets_beat_random_images_by_both_intervals(run, ipc, method):
    ours, random = accuracies(run, method, ipc), accuracies(run, "random", ipc)
    assert ours.over == random.over == "sets"
    assert ours.low > random.high


def test_herding_and_k_center_behave_as_known():
    one = [accuracies("mnist", method, 1) for method in ("herding", "kcenter")]
    assert one[0].mean == one[1].mean  # both take the image nearest to the class mean
    assert one[0].low > accuracies("mnist", "random", 1).high
    for run in ("mnist", "cifar10"):
        assert accuracies(run, "kcenter", 10).high < accuracies(run, "random", 10).low
        assert accuracies(run, "herding", 10).low > accuracies(run, "random", 10).mean


@pytest.mark.parametrize("run", ["laptop", "mnist", "mnist_ipc10", "cifar10", "cifar10_ipc10"])
def test_every_cell_of_a_committed_run_has_a_result(run):
    states = [json.loads(line)["state"] for line in (RESULTS / run / "states.jsonl").read_text().splitlines()]
    assert set(states) == {"ok"}
