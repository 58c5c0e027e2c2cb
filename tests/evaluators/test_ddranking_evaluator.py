"""DD-Ranking: fixed points of the score, a whole run against trainings written out, shared baselines, soft labels."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import bench.data
import bench.distilled
import bench.nets
import bench.report
import bench.suite
from bench import stats
from bench.api import EvalSpec, NetSpec, TaskSpec
from bench.errors import UserError
from bench.report.measures import measure_tables
from bench.report.results import summarise
from bench.run import Store, run_plan
from bench.task import derive_seed
from bench.train import predict, train
from bench.train import recipe as recipes
from evaluators.ddranking import CHECK, DDRanking, DDRankingParams, runs, score, scores

RATES = [0.01, 0.1]
NET = NetSpec(norm="in", width=4, depth=2)
SUITE = """\
title: DD-Ranking
grid: {datasets: [digits], methods: [random, dm, frepo], ipc: [2], seeds: [1], network: convnet-in-w4-d2}
methods:
  dm: {iterations: 2, batch_real: 8}
  frepo: {iterations: 2, batch: 16, width: 4, pool: 2}
evaluation: {network: convnet-in-w4-d2, recipe: {base: dsa, epochs: 10}, replicates: 2}
evaluators: [{name: ddranking, params: {w: 0.7, g: 0.2, rates: [0.01, 0.1], full: {epochs: 2}}}]
"""


def spec_of(ipc=10, dataset="digits", **fields):
    task = TaskSpec(dataset=bench.data.info(dataset), ipc=ipc, network=NET)
    return EvalSpec(task, "dm", 10, NET, **{"recipe": {}, "replicates": 2, **fields})


def planned(folder, text):
    (folder / "suite.yaml").write_text(text)
    return bench.suite.plan(bench.suite.load(folder / "suite.yaml"))


# ---------------------------------------------------------------------------------------------- the formulas


def test_fixed_points_of_the_score():
    found = score(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.0, 1 / (math.e + 1), 1.0], abs=1e-12)
    assert float(found[1]) == pytest.approx(0.268941, abs=5e-7)


def test_the_score_rises_and_is_convex():
    found = score(torch.linspace(-1, 1, 201, dtype=torch.float64))
    assert bool((found.diff() > 0).all())
    assert bool((found.diff().diff() > 0).all())


@pytest.mark.parametrize("augments", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_scores_are_those_of_the_formulas(augments, soft):
    a = {"own": 0.6, "random": 0.5, "turned": 0.45, "random_turned": 0.4, "full": 0.9, "hard": 0.3}
    if not soft:
        del a["hard"]
    given = {run: torch.tensor([value], dtype=torch.float64) for run, value in a.items()}
    found = {name: float(value) for name, value in scores(given, augments, 0.25, 0.8).items()}
    hlr, ior = 0.9 - (0.3 if soft else 0.6), 0.1
    alpha = 0.25 * ior - 0.75 * hlr
    beta = 0.8 * 0.1 + 0.2 * 0.05 if augments else 0.8 * 0.05 + 0.2 * 0.1
    expected = {
        "hlr": hlr, "ior": ior, "alpha": alpha, "beta": beta,
        "lrs": (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1)),
        "ars": (math.exp(beta) - math.exp(-1)) / (math.e - math.exp(-1)),
    }  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-12)


# ---------------------------------------------------------------------------------------------- what is trained


def test_runs_differ_in_what_they_are_to_tell_apart_alone():
    spec = spec_of(recipe={"base": "idc", "loss": "mse", "lr": 0.02})
    found = runs(DDRankingParams(), spec)
    assert {run: t.sets for run, t in found.items() if t.sets} == {
        "random": ("random",), "random_turned": ("random",), "full": ("full",)
    }  # fmt: skip
    assert found["own"].rates == (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
    assert found["own"].recipe == recipes.resolve({"base": "idc", "loss": "mse", "lr": 0.02}).model_dump(mode="json")

    def differ(a, b):
        fields = found[a].recipe.keys() | found[b].recipe.keys()
        return {name for name in fields if found[a].recipe.get(name) != found[b].recipe.get(name)}

    assert differ("own", "random") == set()
    assert differ("turned", "random_turned") == set()
    assert differ("own", "turned") == {"augment", "cutmix"}
    assert differ("turned", "hard") == {"loss"}
    assert (found["hard"].recipe["loss"], found["hard"].recipe["augment"]) == ("ce", "none")
    full = recipes.resolve(found["full"].recipe)
    assert (full.lr, full.momentum, full.weight_decay, full.batch, full.epochs) == (0.01, 0.9, 5e-4, 512, 200)
    assert (full.schedule, full.milestones, full.gamma, full.augment) == ("step", (0.5,), 0.1, "none")
    assert found["full"].rates == ()
    kept = runs(DDRankingParams(augment_hard=True), spec)["hard"].recipe
    assert {name: kept.get(name) for name in ("augment", "cutmix")} == {"augment": "idc", "cutmix": 0.5}
    assert runs(DDRankingParams(labels="hard"), spec).keys() == found.keys() - {"hard"}


def test_a_recipe_without_augmentation_is_turned_to_one_with_and_keeps_its_length():
    found = runs(DDRankingParams(), spec_of(recipe={"base": "dc", "epochs_augmented": 1000}))
    assert (found["own"].recipe["augment"], found["turned"].recipe["augment"]) == ("dc", "dsa")
    assert recipes.resolve(found["turned"].recipe).on("dsa:color").epochs == 300


def test_a_learned_rate_is_used_by_its_set_and_searched_for_random_images():
    learned = runs(DDRankingParams(), spec_of(recipe={"base": "mtt"}))
    assert (learned["own"].rates, learned["own"].recipe["lr"]) == ((), "learned")
    assert (learned["turned"].rates, learned["turned"].recipe["lr"]) == ((), "learned")
    assert learned["hard"].rates  # searched, as published
    assert learned["random"] == runs(DDRankingParams(), spec_of(recipe={"base": "dsa"}))["random"]  # shared with DSA
    fixed = runs(DDRankingParams(own_rate="recipe"), spec_of(recipe={"base": "dsa", "lr": 0.03}))
    assert (fixed["own"].rates, fixed["own"].recipe["lr"], fixed["random"].rates[-3]) == ((), 0.03, 0.03)


@pytest.mark.parametrize("recipe", ["dsa", "frepo"])
def test_the_published_protocol_looks_at_the_test_set_every_ten_epochs(recipe):
    found = runs(DDRankingParams(protocol="ddranking"), spec_of(recipe={"base": recipe}))
    assert {t.recipe["select"] for t in found.values()} == {"best-test"}
    assert found["full"].recipe["evaluations"] == 200 // CHECK
    assert found["own"].recipe["evaluations"] == {"dsa": 100, "frepo": 20}[recipe]
    last = runs(DDRankingParams(), spec_of(recipe={"base": recipe, "select": "best-test"}))
    assert {t.recipe["select"] for t in last.values()} == {"last"}


def test_protocols_that_random_images_cannot_follow_are_refused_while_planning():
    with pytest.raises(UserError, match="cannot follow the ordered steps"):
        DDRanking.trainings(DDRankingParams(), spec_of(recipe={"base": "dd"}))
    with pytest.raises(UserError, match="the loss l1 compares logits"):
        DDRanking.trainings(DDRankingParams(), spec_of(recipe={"base": "apm"}))
    labelled = DDRankingParams(baseline="random_soft", baseline_params={"labels": "logits"})
    assert DDRanking.trainings(labelled, spec_of(recipe={"base": "apm"}))
    with pytest.raises(UserError, match="no random set is as large"):
        DDRanking.distillations(DDRankingParams(), spec_of(ipc=None))


def test_baselines_are_trained_once_for_all_methods_and_repeats(tmp_path):
    text = SUITE.replace("[random, dm, frepo]", "[dm, dsa, {name: frepo, augment: dsa}]").replace("[1]", "[1, 2]")
    text = text.replace("methods:\n", "methods:\n  dsa: {iterations: 2, outer_loop: 1, inner_loop: 1, batch_real: 8}\n")
    plan = planned(tmp_path, text)
    by_key = {cell.key: cell for cell in plan.cells}
    trained = [cell for cell in plan.cells if cell.config.get("artifact") == "networks"]
    made_by = [by_key[next(iter(cell.inputs.values()))].config["method"] for cell in trained]
    assert {name: made_by.count(name) for name in made_by} == {
        "random": 2 * 2, "whole": 1, "dm": 2 * 3, "dsa": 2 * 3, "frepo": 2 * 3
    }  # fmt: skip
    assert [cell.config["method"] for cell in plan.cells if cell.kind == "distil"].count("random") == 2


# ---------------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddranking")
    plan, store = planned(folder, SUITE), Store(folder / "out")
    assert run_plan(plan, store, executor="inline", device="cpu", progress=False).exit_code == 0
    records = [json.loads(line) for line in (folder / "out" / "records.jsonl").read_text().splitlines()]
    return plan, store, records


def measured(records, label, metric, **tags):
    """Return the values of a metric, in the order of the repeats."""
    found = [r for r in records if (r["label"], r["metric"]) == (label, metric) and tags.items() <= r["tags"].items()]
    assert [r["replicate"] for r in found] == [0, 1]
    return [r["value"] for r in found]


def trained_apart(data, images, labels, kind, recipe, seed, tried, own_indices):
    """Return [accuracy], [rate] of two networks trained from scratch at each rate, without any of the harness."""
    order = torch.randperm(
        data.train.size, generator=torch.Generator().manual_seed(derive_seed(seed, "evaluation/rates"))
    )
    held = [i for i in order[: round(data.train.size / 10)].tolist() if i not in own_indices]
    best: list[tuple[float, float, float]] = [(-1, 0, 0)] * 2
    for rate in tried:
        rngs = [torch.Generator().manual_seed(derive_seed(seed, f"evaluation/{e}")) for e in range(2)]
        how = recipe.model_copy(update={"lr": rate})
        handle = train(bench.nets.resolve(NET, (1, 8, 8)), images, labels, how, rngs, info=data.info, label_kind=kind)
        on_held = predict(handle, [data.train.images(torch.tensor(held))]).argmax(2)
        on_test = predict(handle, data.test.batches(1000)).argmax(2)
        for e in range(2):
            chosen_by = float((on_held[e] == data.train.labels[held]).double().mean())
            accuracy = float((on_test[e] == data.test.labels).double().mean())
            if chosen_by > best[e][0]:
                best[e] = (chosen_by, accuracy, rate)
    return [one[1] for one in best], [one[2] for one in best]


@pytest.mark.parametrize("method", ["dm", "frepo"])
def test_scores_are_those_of_networks_trained_apart_from_the_same_seeds(run, method):
    plan, store, records = run
    data = bench.data.prepare(bench.data.load("digits"), "meanstd", "cpu")
    (cell,) = [c for c in plan.cells if c.kind == "evaluate" and c.coords["label"] == method]
    syn = bench.distilled.load(store.verified(cell.inputs["distilled"]) / "set.safetensors")
    rnd = bench.distilled.load(store.verified(cell.inputs["set random"]) / "set.safetensors")
    assert torch.equal(rnd.images, data.train.images(rnd.indices))
    assert rnd.labels.tolist() == [c for c in range(10) for _ in range(2)]

    dsa = recipes.resolve({"base": "dsa", "epochs": 10})
    plain = dsa.model_copy(update={"augment": "none"})
    as_it_is, hard = (syn.images, syn.labels, syn.header.label_kind), syn.header.label_kind == "hard"
    drawn, own = (rnd.images, rnd.labels, "hard"), set(rnd.indices.tolist())
    apart = {
        "own": trained_apart(data, *as_it_is, dsa, 1, RATES, set()),
        "random": trained_apart(data, *drawn, dsa, 1, RATES, own),
        "turned": trained_apart(data, *as_it_is, plain, 1, RATES, set()),
        "random_turned": trained_apart(data, *drawn, plain, 1, RATES, own),
    }
    if not hard:
        apart["hard"] = trained_apart(data, syn.images, syn.labels.argmax(1), "hard", plain, 1, RATES, set())
    full = recipes.resolve({"base": "whole", "epochs": 2, "batch": 512, "schedule": "step", "augment": "none"})
    everything = (data.train.images(), data.train.labels, "hard")
    apart["full"] = trained_apart(data, *everything, full, 0, [0.01], set())  # one for all seeds

    for name, (accuracy, rate) in apart.items():
        assert measured(records, method, "accuracy", run=name) == pytest.approx(accuracy, abs=1e-12)
        if name != "full":
            assert measured(records, method, "rate", run=name) == rate
    assert hard == (not [r for r in records if r["label"] == method and r["tags"].get("run") == "hard"])
    for e in range(2):
        a = {name: accuracy[e] for name, (accuracy, _) in apart.items()}
        hlr, ior = a["full"] - a["own" if hard else "hard"], a["own"] - a["random"]
        beta = 0.2 * ior + 0.8 * (a["turned"] - a["random_turned"])
        expected = {"hlr": hlr, "ior": ior, "alpha": 0.7 * ior - 0.3 * hlr, "beta": beta}
        for name, difference in (("lrs", expected["alpha"]), ("ars", beta)):
            expected[name] = (math.exp(difference) - math.exp(-1)) / (math.e - math.exp(-1))
        for name, value in expected.items():
            assert measured(records, method, name)[e] == pytest.approx(value, abs=1e-12)


def test_random_images_are_no_better_than_themselves(run):
    _, _, records = run
    assert measured(records, "random", "ior") == [0.0, 0.0]
    assert measured(records, "random", "beta") == [0.0, 0.0]
    assert measured(records, "random", "ars") == pytest.approx([1 / (math.e + 1)] * 2)
    assert min(measured(records, "random", "accuracy", run="own")) > 0.15  # they learned: chance is 0.1


def test_the_interval_of_ior_is_that_of_pairs(run):
    _, store, records = run
    own, random = (measured(records, "dm", "accuracy", run=name) for name in ("own", "random"))
    expected = stats.paired(own, random)
    frame = bench.report.load(store.root).records
    frame = frame[(frame["label"] == "dm") & (frame["metric"] == "ior")].assign(flag=False)
    found = summarise(frame, ["label"]).iloc[0]
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((expected.mean, expected.low, expected.high))


def test_tables_show_scores_with_intervals_and_how_they_were_made(run):
    _, store, _ = run
    tables = {table.title: table for table in measure_tables(bench.report.load(store.root))}
    assert len(tables) == 3
    table = tables["DD-Ranking scores, digits"]
    assert table.index == ("method", "IPC", "own protocol", "against")
    assert [title for _, title in table.columns] == ["LRS", "ARS", "HLR", "IOR"]
    assert [row.header for row in table.rows] == [
        (name, "2", "review(epochs=10)", "random") for name in ("random", "dm", "frepo")
    ]
    assert table.rows[0].cells[1].text == "26.9 % [26.9, 26.9]"
    assert any("selection: last" in note for note in table.notes)
    behind = tables["Accuracies behind the DD-Ranking scores, digits"]
    assert ("own", "accuracy") in behind.columns
    assert ("hard", "rate") in behind.columns
    assert len(behind.rows) == 3


# ---------------------------------------------------------------------------------------------- other protocols


def test_the_published_protocol_takes_the_best_looks_and_says_so(tmp_path):
    text = SUITE.replace("[random, dm, frepo]", "[dm]").replace("w: 0.7", "protocol: ddranking")
    plan, store = planned(tmp_path, text.replace("epochs: 10", "epochs: 20")), Store(tmp_path / "out")
    assert run_plan(plan, store, executor="inline", device="cpu", progress=False).exit_code == 0
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert {r["selection"] for r in records} == {"best-test"}
    (cell,) = [c for c in plan.cells if c.kind == "evaluate"]
    names = list(runs(DDRankingParams(), spec_of()))
    for index, name in enumerate(names):
        if name == "hard":
            continue
        tensors = load_file(store.verified(cell.inputs[f"trained{index}"]) / "tensors.safetensors")
        looks = tensors["curve/test_accuracy"]
        assert looks.shape[1] == (1 if name == "full" else 2)
        assert measured(records, "dm", "accuracy", run=name) == pytest.approx(looks.amax(1).tolist())
        if name != "full":
            torch.testing.assert_close(tensors["curve/rate_score"].amax(1), looks.amax(1).double())
    (table, *_) = measure_tables(bench.report.load(tmp_path / "out"))
    assert any("selection: best-test" in note for note in table.notes)


def test_random_images_with_the_labels_of_a_teacher(tmp_path):
    params = "{baseline: random_soft, baseline_params: {labels: centred, train_epochs: 3}, rates: [0.1]}"
    text = SUITE.replace("[random, dm, frepo]", "[random, frepo]").replace("[accuracy]", "[]")
    text = text[: text.index("evaluators")] + f"evaluators: [{{name: ddranking, params: {params}}}]\n"
    plan = planned(tmp_path, text.replace("{base: dsa, epochs: 10}", "{base: dsa, epochs: 2}"))
    store = Store(tmp_path / "out")
    wanted = bench.suite.plan(plan.suite, "kind=distil")
    assert run_plan(wanted, store, executor="inline", device="cpu", progress=False).exit_code == 0
    (cell,) = [c for c in plan.cells if c.kind == "distil" and c.config["method"] == "random_soft"]
    (random,) = [c for c in plan.cells if c.kind == "distil" and c.config["method"] == "random"]
    soft, plain = (bench.distilled.load(store.verified(c.key) / "set.safetensors") for c in (cell, random))
    assert torch.equal(soft.images, plain.images)
    assert torch.equal(soft.indices, plain.indices)
    assert soft.header.label_kind == "centred"
    tensors = load_file(store.verified(cell.inputs["teachers"]) / "tensors.safetensors")
    network = bench.nets.build(bench.nets.resolve(NET, (1, 8, 8)), (1, 8, 8), 10)
    network.load_state_dict({name[6:]: value[0] for name, value in tensors.items() if name.startswith("state/")})
    with torch.no_grad():
        expected = torch.softmax(network.eval()(soft.images), 1) - 0.1
    torch.testing.assert_close(soft.labels, expected)
    evaluated = [c for c in plan.cells if c.kind == "evaluate"]
    assert {c.inputs["set random"] for c in evaluated} == {cell.key}


def test_a_promise_of_hard_labels_is_kept_or_refused():
    task = SimpleNamespace(
        eval_spec=spec_of(), distilled=lambda: SimpleNamespace(header=SimpleNamespace(label_kind="centred"))
    )
    with pytest.raises(UserError, match="the labels of this set are soft"):
        DDRanking(DDRankingParams(labels="hard")).evaluate(task)


def test_planning_imports_nothing_heavy():
    code = (
        "import sys, evaluators.ddranking, bench.train.rates;"
        "assert not {'torch', 'numpy', 'sklearn', 'PIL'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
