import json
import re

import pytest
import torch
from pydantic import ValidationError

import bench.report
from bench.report.cost import cost_tables
from bench.report.measures import plain_tables
from evaluators.cost import Cost, CostParams, reached, spent
from methods.dm import DM

PROFILE = {
    "seconds": 50.0, "phases": {"data": 1.0, "network": 2.0, "set": 3.0, "evaluation": 0.0, "other": 44.0},
    "steps": 100, "warmup_steps": 1, "seconds_per_step": 0.5,
    "phases_per_step": {"data": 0.1, "network": 0.125, "set": 0.2, "evaluation": 0.0},
    "peak_host_MiB": 12.5, "host_source": "words", "peak_device_MiB": None,
}  # fmt: skip


def test_seconds_and_memory():
    found = {m.metric: (m.value, m.unit) for m in spent(PROFILE)}
    assert found == {
        "seconds": (50.0, "s"), "steps": (100.0, "steps"), "seconds_per_step": (0.5, "s"),
        "seconds_per_step/data": (0.1, "s"), "seconds_per_step/network": (0.125, "s"),
        "seconds_per_step/set": (0.2, "s"), "seconds_per_step/evaluation": (0.0, "s"),
        "seconds_per_step/other": (pytest.approx(0.075), "s"), "peak_host_MiB": (12.5, "MiB"),
    }  # fmt: skip


def test_a_method_without_steps_has_no_seconds_per_step():
    found = spent({**PROFILE, "steps": 0, "seconds_per_step": None, "phases_per_step": {}})
    assert [m.metric for m in found] == ["seconds", "steps", "peak_host_MiB"]


def test_crossing_is_interpolated():
    (found,) = reached([10.0, 20.0, 40.0], [0.2, 0.4, 0.5], 0.9)  # 0.45 lies halfway between 0.4 and 0.5
    assert (found.metric, found.unit, found.tags) == ("seconds_to_fraction", "s", {"fraction": 0.9})
    assert found.value == pytest.approx(30.0)


def test_the_first_crossing_counts():
    (found,) = reached([10.0, 20.0, 30.0, 40.0], [0.2, 0.6, 0.3, 0.5], 0.8)
    assert found.value == pytest.approx(15.0)


def test_a_first_look_that_is_good_enough_is_a_bound():
    (found,) = reached([10.0, 40.0], [0.5, 0.5], 0.9)
    assert (found.value, found.tags) == (10.0, {"fraction": 0.9, "bound": "upper"})


def test_the_whole_accuracy_is_reached_at_the_end_at_the_latest():
    assert reached([10.0, 40.0], [0.25, 0.5], 1.0)[0].value == pytest.approx(40.0)


def test_looks_are_outer_steps(evaluation):
    spec = evaluation(torch.zeros(1), {}, steps=10).eval_spec
    assert Cost.snapshots(CostParams(looks=(0.01, 0.1, 0.5, 1.0)), spec) == (1, 5)
    assert [t.snapshot for t in Cost.trainings(CostParams(looks=(0.1, 0.5)), spec)] == [1, 5, None]
    for params, steps in ((CostParams(fractions=()), 10), (CostParams(), 0), (CostParams(), 1)):
        few = evaluation(torch.zeros(1), {}, steps=steps).eval_spec
        assert Cost.snapshots(params, few) == ()
        assert Cost.trainings(params, few) == ()
    assert Cost.timed


def test_the_course_of_the_accuracy(evaluation):
    labels = torch.tensor([0, 0, 0, 0])
    wrong, right = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])

    def logits(*correct):
        return torch.stack([torch.stack([right] * c + [wrong] * (4 - c)) for c in correct])

    task = evaluation(
        labels, {10: logits(0, 2), 50: logits(2, 2), None: logits(4, 4)}, steps=100, profile=PROFILE,
        seconds={10: 5.0, 50: 25.0},
    )  # fmt: skip
    found = Cost(CostParams(looks=(0.1, 0.5), fractions=(0.5, 0.75))).evaluate(task)
    course = {(m.metric, m.step, m.replicate): m.value for m in found if m.step is not None}
    assert course == {
        ("accuracy", 10, 0): 0.0, ("accuracy", 10, 1): 0.5, ("seconds", 10, None): 5.0,
        ("accuracy", 50, 0): 0.5, ("accuracy", 50, 1): 0.5, ("seconds", 50, None): 25.0,
        ("accuracy", 100, 0): 1.0, ("accuracy", 100, 1): 1.0, ("seconds", 100, None): 50.0,
    }  # fmt: skip
    times = {m.tags["fraction"]: m.value for m in found if m.metric == "seconds_to_fraction"}
    assert times == pytest.approx({0.5: 25.0, 0.75: 37.5})


def test_nothing_is_trained_for_the_bare_cost(evaluation):
    task = evaluation(torch.zeros(1), {}, profile=PROFILE)
    assert len(Cost(CostParams(fractions=())).evaluate(task)) == len(spent(PROFILE))
    assert task.asked == []


@pytest.mark.parametrize("fields", [{"fractions": (1.5,)}, {"looks": (0.0,)}, {"replicates": 0}])
def test_bad_parameters(fields):
    with pytest.raises(ValidationError):
        CostParams(**fields)


# ------------------------------------------------------------------------------------ the table of the review

SUITE = """
grid:
  datasets: [digits]
  methods: [random, dd, dc, dsa, dm, mtt, tesla, kip, frepo]
  ipc: [1, 2]
  network: convnet-in-w4-d2
methods:
  dd: {batches: 1, iterations: 3, epochs: 1, real_batch: 20}
  dc: &full {batch_train: 1000000, iterations: 2, outer_loop: 1, inner_loop: 1, batch_real: 4}
  dsa: *full
  dm: {iterations: 2, batch_real: 4}
  mtt: &experts {batch_syn: null, iterations: 2, experts: 1, train_epochs: 2, expert_epochs: 1, max_start_epoch: 1,
                 syn_steps: 2, zca: false}
  tesla: *experts
  kip: {iterations: 3, batch: 20}
  frepo: {online_batch: 1000000, iterations: 3, batch: 20, width: 4, pool: 2}
evaluation: {recipe: {base: review, epochs: 1}, replicates: 1}
evaluators:
  - {name: cost, params: {fractions: []}}
  - {name: krr}
"""


class Hungry(DM):
    """DM that asks for a petabyte at its first step from two images per class on."""

    def step(self):
        return {"loss": torch.empty(10**15).sum()} if self.task.spec.ipc == 2 else super().step()


def run(tmp_path, methods):
    from bench import suite
    from bench.run import Store, run_plan

    grid = re.sub(r"methods: \[.*", lambda _: f"methods: {json.dumps(methods)}", SUITE)
    file = tmp_path / "suite.yaml"
    file.write_text(grid)
    run_plan(suite.plan(suite.load(file)), Store(tmp_path / "out"), executor="inline", progress=False)
    return bench.report.load(tmp_path / "out")


def test_a_suite_gives_the_table_over_images_per_class_with_a_row_for_lost_memory(tmp_path):
    hungry = {"name": "test_cost_evaluator:Hungry", "label": "hungry", "params": {"iterations": 2, "batch_real": 4}}
    results = run(tmp_path, ["dm", "kip", "frepo", hungry])
    (table,) = cost_tables(results)
    texts = {row.header: [cell.text for cell in row.cells] for row in table.rows}
    assert len(texts) == 8
    assert set(texts.pop(("hungry", "2"))) == {"oom"}
    heads = [head[1] for head in table.columns]
    assert {"whole step", "set update", "network update", "data", "outer steps", "seconds", "host"} <= set(heads)
    for row in texts.values():
        cells = dict(zip(heads, row, strict=True))
        assert float(cells["set update"].split()[0]) <= float(cells["whole step"].split()[0])
    assert "seconds_to_fraction" not in set(results.records["metric"])


def test_kernel_regression_has_a_table_of_its_own(tmp_path):
    results = run(tmp_path, ["kip", "random"])
    (table,) = [table for table in plain_tables(results) if "krr" in table.name]
    assert [head[1] for head in table.columns] == ["krr_accuracy"]
    assert [row.header for row in table.rows] == [("kip", "1"), ("kip", "2"), ("random", "1"), ("random", "2")]
    assert any("ntk-fc1" in line for line in table.notes)
    assert not (results.records["metric"] == "accuracy").any()


def test_the_parameters_of_full_batches_are_those_of_the_methods(tmp_path):
    from bench import suite

    file = tmp_path / "suite.yaml"
    file.write_text(SUITE)
    plan = suite.plan(suite.load(file))
    params = {cell.coords["method"]: cell.config["params"] for cell in plan.cells if cell.kind == "distil"}
    assert (params["dd"]["batches"], params["mtt"]["batch_syn"], params["tesla"]["batch_syn"]) == (1, None, None)
    assert (params["dc"]["batch_train"], params["frepo"]["online_batch"]) == (10**6, 10**6)
