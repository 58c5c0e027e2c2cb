"""Class-incremental learning: metrics against loops, and a whole run on digits whose memories are looked into."""

import json

import pytest
import torch
from safetensors.torch import load_file

import bench.data
import bench.distilled
import bench.report
import bench.suite
from bench.api import EvalSpec, NetSpec, TaskSpec
from bench.data.views import Classes
from bench.errors import UserError
from bench.report.measures import measure_tables
from bench.run import Store, run_plan
from evaluators.continual import Continual, ContinualParams, forgetting, seen, step_accuracies


@pytest.fixture
def outcome():
    """Return logits [S, E, N, K], labels, and the step of each class, with classes of unequal size."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 3 + [1] * 5 + [2] * 7 + [3] * 2 + [4] * 4 + [5] * 6)
    step_of = torch.tensor([2, 0, 1, 0, 2, 1])
    return torch.randn((3, 2, len(labels), 6), generator=rng) + 2 * torch.eye(6)[labels], labels, step_of


def by_hand(logits, labels, step_of, after, e, steps):
    """Return the share of right predictions of network e after a step, on images of classes of these steps."""
    hits = [
        int(logits[after, e, n].argmax()) == int(labels[n])
        for n in range(len(labels))
        if int(step_of[labels[n]]) in steps
    ]
    return sum(hits) / len(hits)


def test_accuracies_are_those_of_a_loop(outcome):
    logits, labels, step_of = outcome
    by_step = step_accuracies(logits, labels, step_of[labels], 3)
    course = seen(by_step, torch.bincount(step_of[labels], minlength=3).double())
    for e in range(2):
        for after in range(3):
            for j in range(3):
                assert float(by_step[after, j, e]) == pytest.approx(by_hand(*outcome, after, e, {j}))
            assert float(course[after, e]) == pytest.approx(by_hand(*outcome, after, e, set(range(after + 1))))
        lost = [by_hand(*outcome, j, e, {j}) - by_hand(*outcome, 2, e, {j}) for j in range(2)]
        assert float(forgetting(by_step)[e]) == pytest.approx(sum(lost) / 2)


def test_predictions_are_over_all_classes_also_those_not_seen_yet():
    logits = torch.zeros(1, 1, 2, 4)
    logits[0, 0, :, 3] = 1.0  # a class of a later step wins: both images are wrong
    assert step_accuracies(logits, torch.tensor([0, 1]), torch.tensor([0, 0]), 1).tolist() == [[[0.0]]]


def test_classes_that_cannot_be_dealt_out_are_an_error_while_planning():
    spec = EvalSpec(TaskSpec(dataset=bench.data.info("digits"), ipc=1, network=NetSpec()), "random", 0)
    with pytest.raises(UserError, match="steps must divide"):
        Continual.distillations(ContinualParams(steps=3), spec)


SUITE = """\
title: Continual
grid: {datasets: [digits], methods: [random, dm, frepo], ipc: [4], seeds: [1], network: convnet-in-w8-d2}
methods:
  dm: {iterations: 2, batch_real: 8}
  frepo: {iterations: 2, batch: 16, width: 4, pool: 2}
evaluation: {network: convnet-in-w8-d2, recipe: {base: dc, epochs: 30}, replicates: 2}
evaluators: [accuracy, continual]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("continual")
    (folder / "suite.yaml").write_text(SUITE)
    plan = bench.suite.plan(bench.suite.load(folder / "suite.yaml"))
    store = Store(folder / "out")
    assert run_plan(plan, store, executor="inline", device="cpu", progress=False).exit_code == 0
    records = [json.loads(line) for line in (folder / "out" / "records.jsonl").read_text().splitlines()]
    return plan, store, records


@pytest.mark.parametrize("method", ["random", "dm", "frepo"])
def test_memories_hold_the_classes_of_their_step_in_the_space_of_all_labels(run, method):
    plan, store, _ = run
    (cell,) = [c for c in plan.cells if c.coords["label"] == method and c.config.get("evaluator") == "continual"]
    for step in range(5):
        held = bench.distilled.load(store.verified(cell.inputs[f"set step{step}"]) / "set.safetensors")
        labels = held.labels if held.labels.dim() == 1 else held.labels.argmax(1)
        wanted = Classes(steps=5, step=step, order=1).chosen(10)
        assert labels.tolist() == [c for c in wanted for _ in range(4)]
        assert held.header.classes == 10
        if method == "frepo":
            assert held.labels.shape == (8, 10)


def test_networks_train_on_the_union_of_the_memories_so_far(run):
    plan, store, records = run
    (cell,) = [c for c in plan.cells if c.coords["label"] == "dm" and c.config.get("evaluator") == "continual"]
    by_key = {c.key: c for c in plan.cells}
    sets = [cell.inputs[f"set step{step}"] for step in range(5)]
    labels = bench.data.load("digits").test.labels
    for step in range(5):
        trained = by_key[cell.inputs[f"trained{step}"]]
        assert list(trained.inputs.values()) == sets[: step + 1]
        logits = load_file(store.verified(trained.key) / "tensors.safetensors")["logits"]
        known = sorted(c for k in range(step + 1) for c in Classes(steps=5, step=k, order=1).chosen(10))
        here = torch.isin(labels, torch.tensor(known))
        for e in range(2):
            (value,) = [
                r["value"]
                for r in records
                if (r["label"], r["metric"], r["replicate"]) == ("dm", "continual_accuracy", e)
                and r["tags"] == {"steps": 5, "classes": 2 * step + 2}
            ]
            right = (logits[e].argmax(1) == labels)[here].double().mean()
            assert value == pytest.approx(float(right))
            assert set(logits[e][here].argmax(1).tolist()) <= set(range(10))
    first = [r["value"] for r in records if r["label"] == "dm" and r["tags"] == {"steps": 5, "classes": 2}]
    assert min(first) > 0.6  # two classes, four images of each


def test_the_table_shows_the_course(run):
    _, store, _ = run
    (table,) = [t for t in measure_tables(bench.report.load(store.root)) if t.title.startswith("Class-incremental")]
    assert table.index == ("method", "IPC", "steps")
    heads = [head for head, title in table.columns if title == "accuracy"]
    assert heads == ["2", "4", "6", "8", "10"]
    assert {title for _, title in table.columns} == {"accuracy", "average", "forgetting"}
    assert len(table.rows) == 3
