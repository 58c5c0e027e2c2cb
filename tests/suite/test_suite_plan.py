"""Plans: dependency order, sharing, keys, data that is not there, and the part that `--only` selects."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from conftest import BASE, changed

import bench.data
import bench.suite
from bench.errors import MissingData, UserError
from bench.suite import keys

pytestmark = pytest.mark.usefixtures("fakes")


def kinds(plan) -> Counter:
    return Counter(cell.config.get("artifact", cell.kind) for cell in plan.cells)


def by_label(plan) -> dict:
    return {cell.label: cell for cell in plan.cells}


def test_inputs_come_first_and_keys_are_hashes_of_the_configuration(write):
    plan = write.plan(changed("[fake]", "[fake, chosen, everything]").replace("[score]", "[score, pair, clock]"))
    seen: set[str] = set()
    for cell in plan.cells:
        assert cell.key == keys.key(cell.config)
        assert len(cell.key) == 20
        assert set(cell.inputs.values()) <= seen
        assert cell.inputs == cell.config["inputs"]
        assert cell.kind == cell.config["kind"]
        assert cell.weight > 0
        seen.add(cell.key)
    assert len(seen) == len(plan.cells)
    assert plan.skipped == []


def test_a_plan_is_the_same_every_time(write):
    first, second = write.plan(), write.plan()
    assert (first.cells, first.skipped) == (second.cells, second.skipped)
    assert first.suite.name == "suite"
    other = write.plan(changed("seeds: 2", "seeds: [2, 3]"))
    assert not {cell.key for cell in first.cells} & {cell.key for cell in other.cells}
    more = write.plan(changed("seeds: 2", "seeds: 3").replace("[1, 10]", "[1, 5, 10]"))
    assert {cell.key for cell in first.cells} < {cell.key for cell in more.cells}


def test_the_configuration_of_each_kind(write):
    cells = by_label(write.plan(changed("[fake]", "[chosen]")))
    task = {
        "dataset": "digits",
        "data": bench.data.fingerprint("digits"),
        "ipc": 10,
        "network": cells["distil chosen, digits, ipc 10, seed 1"].config["task"]["network"],
        "preprocessing": "meanstd",
        "augment": "none",
        "seed": 1,
    }
    features = cells["prepare features digits, seed 1"]
    assert features.config == {
        "kind": "prepare",
        "artifact": "features",
        "version": 1,
        "params": {"epochs": 3},
        "task": {**task, "ipc": None},
        "inputs": {},
        "threads": 1,
    }
    distil = cells["distil chosen, digits, ipc 10, seed 1"]
    assert distil.config == {
        "kind": "distil",
        "method": "chosen",
        "version": 1,
        "params": {"iterations": 100, "rate": 0.5, "sizes": [3]},
        "task": task,
        "inputs": {"features": features.key},
        "timed": False,
        "snapshots": [],
        "threads": 1,
    }
    trained = cells["train convnet-in-w8 on chosen, digits, ipc 10, seed 1"]
    network = {**task["network"]}
    assert network["width"] == 8
    recipe = trained.config["params"]["recipe"]
    assert recipe["epochs"] == 3
    fields = {"network": network, "recipe": recipe, "replicates": 2, "snapshot": None, "weights": False}
    assert trained.config == {
        "kind": "prepare",
        "artifact": "networks",
        "version": 1,
        "params": fields,
        "task": task,
        "inputs": {"distilled": distil.key},
        "threads": 1,
    }
    evaluate = cells["score of chosen, digits, ipc 10, seed 1"]
    assert evaluate.config == {
        "kind": "evaluate",
        "evaluator": "score",
        "version": 1,
        "params": {"top": 1},
        "task": task,
        "method": "chosen",
        "method_steps": 100,
        "eval": {"network": network, "recipe": recipe, "replicates": 2},
        "trainings": [{**fields, "input": "trained0"}],
        "inputs": {"distilled": distil.key, "trained0": trained.key},
        "threads": 1,
    }
    assert evaluate.coords == {
        "dataset": "digits",
        "method": "chosen",
        "label": "chosen",
        "settings": "modified",
        "ipc": 10,
        "seed": 1,
        "distil_network": "convnet-in-w8",
        "evaluator": "score",
        "network": "convnet-in-w8",
    }


def test_equal_requests_are_shared(write):
    plan = write.plan(changed("[fake]", "[fake, chosen]").replace("[score]", "[score, pair]"))
    # 2 methods x 2 ipc x 2 seeds; the networks of `score` serve `pair` too; features do not depend on the ipc
    assert kinds(plan) == {"distil": 8, "networks": 16, "evaluate": 16, "features": 2}


def test_an_evaluator_has_artifacts_too(write):
    plan = write.plan(changed("[fake]", "[fake, chosen]").replace("[score]", "[score, grouped]"))
    # of the dataset alone: one for all evaluations, and `chosen` with seed 0 needs the same one
    assert kinds(plan) == {"distil": 8, "networks": 8, "evaluate": 16, "features": 2}
    cells = by_label(plan)
    shared = cells["prepare features digits, seed 0"]
    for label in ("chosen, digits, ipc 10, seed 1", "fake, digits, ipc 1, seed 0"):
        evaluate, score = cells[f"grouped of {label}"], cells[f"score of {label}"]
        assert evaluate.inputs == {**score.inputs, "groups": shared.key}
        assert evaluate.config["trainings"] == score.config["trainings"]
    assert cells["distil chosen, digits, ipc 10, seed 0"].inputs == {"features": shared.key}


def test_an_evaluator_has_further_sets_and_networks_trained_on_their_union(write):
    plan = write.plan(changed("[fake]", "[fake, chosen]").replace("[score]", "[score, steps]"))
    # two parts for each of the 8 (a method's parameters are those of the ipc of the grid); networks on one and on both
    assert kinds(plan) == {"distil": 8 + 16, "networks": 8 + 16, "evaluate": 16, "features": 2 + 4}
    cells, by_key = by_label(plan), {cell.key: cell for cell in plan.cells}
    for label in ("chosen, digits, ipc 10, seed 1", "fake, digits, ipc 1, seed 0"):
        method, seed = label.split(",")[0], label[-1]
        evaluate = cells[f"steps of {label}"]
        parts = [f"{method}, digits@classes(steps=2, step={k}), ipc 7, seed {seed}" for k in range(2)]
        found = [evaluate.inputs[f"set step{k}"] for k in range(2)]
        assert [by_key[key].label for key in found] == [f"distil {part}" for part in parts]
        assert {by_key[key].config["params"]["rate"] for key in found} == {0.5 if "ipc 10" in label else 0.1}
        assert evaluate.inputs["distilled"] == cells[f"distil {label}"].key
        trained = [by_key[evaluate.inputs[f"trained{k}"]] for k in range(3)]
        assert [cell.inputs for cell in trained] == [
            {"distilled": evaluate.inputs["distilled"]},
            {"union 0000": found[0]},
            {"union 0000": found[0], "union 0001": found[1]},
        ]
        assert trained[0].key == cells[f"score of {label}"].inputs["trained0"]
        assert {cell.config["task"]["dataset"] for cell in trained} == {"digits"}
        assert evaluate.config["trainings"][2]["sets"] == ["step0", "step1"]
        assert "sets" not in evaluate.config["trainings"][0]


def test_a_baseline_and_its_networks_are_made_once_for_all_methods(write):
    text = changed("[score]", "[{name: against, where: {ipc: 10}}]")
    alone = write.plan(text.replace("seeds: 2", "seeds: [1]"))
    other = "[fake, {name: fake, label: other, augment: none, params: {rate: 1}}]"
    both = write.plan(text.replace("[fake]", other))
    # sets: of two rows at two IPC and two seeds; of the baseline one for each seed, and one for all
    count = kinds(both)
    assert (count["distil"], count["networks"], count["evaluate"]) == (8 + 3, 4 + 3, 4)
    cells, by_key = by_label(both), {cell.key: cell for cell in both.cells}
    first, second = (cells[f"against of {label}, digits, ipc 10, seed 1"] for label in ("fake", "other"))
    assert first.inputs["trained0"] != second.inputs["trained0"]
    for name in ("trained1", "trained2", "set plain", "set fixed"):
        assert first.inputs[name] == second.inputs[name]
    plain, fixed = (by_key[first.inputs[f"trained{k}"]] for k in (1, 2))
    assert plain.config["params"]["rates"] == first.config["trainings"][1]["rates"] == [0.1, 0.2]
    assert by_key[plain.inputs["union 0000"]].config["params"]["rate"] == 2.0  # given; else the preset's for its IPC
    assert by_key[fixed.inputs["union 0000"]].config["params"]["rate"] == 0.1
    task = {name: plain.config["task"][name] for name in ("ipc", "seed", "augment")}
    assert task == {"ipc": 10, "seed": 1, "augment": "none"}
    assert (fixed.config["task"]["ipc"], fixed.config["task"]["seed"]) == (None, 7)
    assert plain.config["task"]["network"]["width"] == 4
    assert {first.inputs["trained1"], first.inputs["trained2"]} <= {cell.key for cell in alone.cells}


def test_a_baseline_with_wrong_parameters_is_an_error(write):
    with pytest.raises(UserError, match="gives method 'chosen' wrong parameters"):
        write.plan(changed("[score]", "[{name: against, params: {rate: -1.0}}]"))


def test_views_of_data_that_is_not_there_are_left_out_with_it(write, monkeypatch, tmp_path):
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    plan = write.plan(changed("[digits]", "[digits, fashion_mnist]").replace("[score]", "[steps]"), skip_missing=True)
    assert {cell.coords["dataset"] for cell in plan.skipped} == {"fashion_mnist"}
    assert {cell.skip for cell in plan.skipped} == {"no data"}


def test_a_training_on_a_set_that_nobody_distils_is_an_error(write):
    with pytest.raises(UserError, match="the set 'nowhere', which is not among its distillations"):
        write.plan(changed("[score]", "[stray]"))


def test_labels_with_equal_settings_are_one_cell_that_stands_for_both(write):
    plan = write.plan(
        changed("[fake]", "[fake, {name: fake, label: again}, {name: fake, label: other, params: {rate: 1}}]")
    )
    assert kinds(plan) == {"distil": 8, "networks": 8, "evaluate": 8}
    shared = [cell for cell in plan.cells if cell.also]
    assert len(shared) == 12
    assert {(cell.coords["label"], cell.also[0]["label"]) for cell in shared} == {("fake", "again")}
    assert shared[0].also[0] == {**shared[0].coords, "label": "again"}


def test_networks_with_weights_serve_those_who_ask_for_none(write):
    plan = write.plan(changed("[score]", "[score, {name: keeper, where: {ipc: 10}}, pair]"))
    trained = {cell.key: cell for cell in plan.cells if cell.config.get("artifact") == "networks"}
    kept = {key for key, cell in trained.items() if cell.config["params"]["weights"]}
    assert len(trained) == 8
    assert {trained[key].coords["ipc"] for key in kept} == {10}
    assert len(kept) == 2
    for cell in (cell for cell in plan.cells if cell.kind == "evaluate" and cell.coords["ipc"] == 10):
        assert cell.inputs["trained0"] in kept
        assert cell.config["trainings"][0]["weights"] is (cell.coords["evaluator"] == "keeper")
    alone = {cell.key for cell in write.plan(changed("[score]", "[score, pair]")).cells}
    assert {cell.key for cell in plan.cells if cell.coords["ipc"] == 1} <= alone


def test_one_training_serves_requests_for_fewer_networks(write):
    """`few` wants the networks of `score`, but one less than the suite's two, and keeps their weights."""
    plan = write.plan(changed("[score]", "[few, score]"))
    few, score = (
        {cell.inputs["distilled"]: cell for cell in plan.cells if cell.coords.get("evaluator") == name}
        for name in ("few", "score")
    )
    assert few.keys() == score.keys() != set()
    trained = {cell.key: cell for cell in plan.cells if cell.config.get("artifact") == "networks"}
    assert len(trained) == len(score)
    for made, cell in few.items():
        assert cell.inputs["trained0"] == score[made].inputs["trained0"]
        params = trained[cell.inputs["trained0"]].config["params"]
        assert (params["replicates"], params["weights"]) == (2, True)
        asked = [one.config["trainings"][0] for one in (cell, score[made])]
        assert [(one["replicates"], one["weights"]) for one in asked] == [(1, True), (2, False)]
    alone = write.plan(changed("[score]", "[few]"))
    found = {cell.config["params"]["replicates"] for cell in alone.cells if cell.config.get("artifact") == "networks"}
    assert found == {1}


def test_methods_without_a_budget_are_planned_once(write):
    plan = write.plan(changed("[fake]", "[fake, everything]"))
    cells = [cell for cell in plan.cells if cell.coords["method"] == "everything"]
    assert Counter(cell.kind for cell in cells) == {"distil": 2, "prepare": 2, "evaluate": 2}
    assert {cell.coords["ipc"] for cell in cells} == {None}


def test_timed_evaluators_choose_timed_cells_and_snapshots_are_united(write):
    evaluators = "[{name: clock, where: {seed: [0], ipc: 10}}, score]"
    plan = write.plan(changed("[score]", evaluators))
    timed = [cell for cell in plan.cells if cell.timed]
    assert [cell.label for cell in timed] == ["distil fake, digits, ipc 10, seed 0"]
    assert timed[0].config["timed"] is True
    assert timed[0].config["snapshots"] == [1, 2]
    assert all(
        not c.config["timed"] and c.config["snapshots"] == []
        for c in plan.cells
        if c.kind == "distil" and c not in timed
    )
    steps = [c.config["params"]["snapshot"] for c in plan.cells if c.config.get("artifact") == "networks"]
    assert sorted(map(str, steps)) == ["2", "None", "None", "None", "None"]
    score = by_label(plan)["score of fake, digits, ipc 10, seed 0"]
    assert score.inputs["distilled"] == timed[0].key


def test_skip_shows_what_is_left_out(write):
    text = BASE + "skip: [{method: fake, ipc: 10, reason: too long}, {seed: 1}]\n"
    plan = write.plan(text)
    assert kinds(plan) == {"distil": 1, "networks": 1, "evaluate": 1}
    assert sorted((cell.coords["ipc"], cell.coords["seed"], cell.skip) for cell in plan.skipped) == [
        (1, 1, "left out by the suite"),
        (10, 0, "too long"),
        (10, 1, "too long"),
    ]
    assert all(cell.kind == "distil" for cell in plan.skipped)
    assert len({cell.key for cell in plan.skipped}) == 3
    # what is left out is not checked: no class has 500 images
    assert len(write.plan(changed("[1, 10]", "[1, 500]") + "skip: [{ipc: 500}]\n").skipped) == 2


def test_data_that_is_not_there(write, monkeypatch, tmp_path):
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "nothing"))
    text = changed("[digits]", "[digits, mnist, cifar10]")
    message = write.error(text)
    first, second = message.splitlines()
    assert first.startswith("suite.yaml:3: grid.datasets[1]: ")
    assert "dataset 'mnist' is not on this machine" in first
    assert "ddbench data get mnist" in first
    assert second.startswith("suite.yaml:3: grid.datasets[2]: ")
    with pytest.raises(MissingData):
        write.plan(changed("[digits]", "[mnist]"))
    plan = write.plan(text, skip_missing=True)
    assert {cell.key for cell in plan.cells} == {cell.key for cell in write.plan().cells}
    assert Counter((cell.coords["dataset"], cell.skip) for cell in plan.skipped) == {
        ("mnist", "no data"): 4,
        ("cifar10", "no data"): 4,
    }
    # what was not asked for need not be there
    assert write.plan(text, only="dataset=digits").skipped == []
    assert "cifar10" not in write.error(text, only="dataset=digits|mnist,evaluator=score")
    assert write.error(text, only="dataset=mnist,evaluator=score").startswith("suite.yaml:3: grid.datasets[1]")


def test_methods_that_need_other_data(write, monkeypatch, tmp_path):
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "nothing"))
    text = changed("[fake]", "[fake, abroad]")
    message = write.error(text)
    assert message.startswith("suite.yaml:4: grid.methods[1]: dataset 'cifar10' is not on this machine")
    assert "ddbench data get cifar10" in message
    plan = write.plan(text, skip_missing=True)
    assert {cell.key for cell in plan.cells} == {cell.key for cell in write.plan().cells}
    assert [(cell.coords["method"], cell.skip) for cell in plan.skipped] == [("abroad", "no data")] * 4
    assert write.plan(text, only="method=fake").skipped == []
    with pytest.raises(MissingData):
        write.plan(text, only="method=abroad")
    both = write.plan(text.replace("[digits]", "[digits, mnist]"), skip_missing=True)
    assert Counter(cell.coords["dataset"] for cell in both.skipped) == {"digits": 4, "mnist": 8}


def test_mistakes_show_without_the_data(write, monkeypatch, tmp_path):
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "nothing"))
    message = write.error(changed("[digits]", "[mnist]").replace("[score]", "[late]"), skip_missing=True)
    assert message.startswith("suite.yaml:9: evaluators[0]: step 101 never comes")


PLANNING_MISTAKES = [
    ("[fake]", "[broken]", "suite.yaml:4: grid.methods[0]: method 'broken' fails while planning: ZeroDivisionError"),
    ("[fake]", "[needs_endless]", "suite.yaml:4: grid.methods[0]: artifact 'endless' needs artifacts that need"),
    ("[score]", "[late]", "suite.yaml:9: evaluators[0]: step 101 never comes: 'fake' has 100 steps"),
    (
        "[score]",
        "[{name: grouped, params: {called: trained0}}]",
        "suite.yaml:9: evaluators[0]: evaluator 'grouped' calls an artifact 'trained0', the name of another input",
    ),
    ("[score]", "[score, {name: pair, params: {other: convnit}}]", "suite.yaml:9: evaluators[1]: unknown network"),
    ("[score]", "[score, {name: pair, params: {other: alexnet_}}]", "suite.yaml:9: evaluators[1]: unknown network"),
]


@pytest.mark.parametrize(("old", "new", "message"), PLANNING_MISTAKES)
def test_mistakes_that_show_while_planning(write, old, new, message):
    found = write.error(changed(old, new))
    assert found.startswith(message)
    assert "\n" not in found


def test_only_selects_cells_with_what_they_build_on(write):
    text = changed("[fake]", "[fake, chosen, everything]").replace("[score]", "[score, pair]")
    whole = write.plan(text)
    part = write.plan(text, only="method=chosen|fake, ipc=10,seed=0,evaluator=SCORE")
    assert kinds(part) == {"distil": 2, "networks": 2, "evaluate": 2, "features": 1}
    assert [cell for cell in whole.cells if cell in part.cells] == part.cells
    assert kinds(write.plan(text, only="kind=distil,label=fake")) == {"distil": 4}
    assert kinds(write.plan(text, only="ipc=none,evaluator=score")) == {"distil": 2, "networks": 2, "evaluate": 2}
    assert kinds(write.plan(text, only="network=mlp,seed=0,method=fake,ipc=1")) == {"distil": 1, "networks": 1}
    labels = write.plan(changed("[fake]", "[fake, {name: fake, label: again}]"), only="label=again")
    assert len(labels.cells) == 12


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("methd=dm", "--only: unknown key 'methd' (did you mean 'method'?)"),
        ("method", "--only: 'method' is not of the form key=value"),
        ("method=", "--only: 'method=' is not of the form key=value"),
        ("method=fake|", "--only: 'method=fake|' is not of the form"),
        ("", "--only: '' is not of the form key=value"),
        ("ipc=1,,", "--only: '' is not of the form key=value"),
        ("ipc=1,ipc=10", "--only: the key 'ipc' stands twice"),
        (
            "method=fak,ipc=10",
            "--only: 'method=fak,ipc=10' selects no cell (method is one of: fake; ipc is one of: 1, 10)",
        ),
    ],
)
def test_only_explains_itself(write, only, message):
    assert write.error(BASE, only=only).startswith(message)


def test_threads_change_keys_and_limits_do_not(write):
    cells = {cell.key for cell in write.plan().cells}
    assert {cell.key for cell in write.plan(BASE + "limits: {seconds: 5}\n").cells} == cells
    assert not {cell.key for cell in write.plan(BASE + "threads: 2\n").cells} & cells


def test_ten_thousand_cells_in_two_seconds(write):
    text = changed("[fake]", "[fake, chosen]").replace("seeds: 2", "seeds: 500").replace("[score]", "[score, pair]")
    suite = write.load(text)
    begin = time.process_time()  # of this process alone: others share the cores
    plan = bench.suite.plan(suite)
    assert time.process_time() - begin < 2
    assert len(plan.cells) >= 10_000
    assert len({cell.key for cell in plan.cells}) == len(plan.cells)


def test_a_dataset_that_changes_changes_keys(write, monkeypatch):
    before = {cell.key for cell in write.plan().cells}
    monkeypatch.setattr(bench.data, "fingerprint", lambda name: "another")
    assert not {cell.key for cell in write.plan().cells} & before


def test_a_broken_dataset_is_an_error_with_its_place(write, monkeypatch):
    def broken(name):
        raise UserError("the file is damaged")

    monkeypatch.setattr(bench.data, "fingerprint", broken)
    assert write.error(BASE).startswith("suite.yaml:3: grid.datasets[0]: the file is damaged")
