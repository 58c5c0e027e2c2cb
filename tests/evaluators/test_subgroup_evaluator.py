"""Groups of test images: statistics against loops written out, k-means against scikit-learn, and a whole suite."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import accuracy_score

import bench.data
import bench.report
import bench.suite
from bench.api import NetSpec, TaskSpec
from bench.errors import UserError
from bench.registry import ARTIFACTS, EVALUATORS
from bench.report.measures import measure_tables
from bench.run import Store, run_plan
from bench.task import LiveTask
from evaluators.groups import Groups, GroupsParams, of_features, of_pixels
from evaluators.subgroup import Grouping, Subgroup, SubgroupParams, each_group, statistics

RNG = torch.Generator().manual_seed(0)
IMAGES, CLASSES = 400, 3
LABELS = torch.randint(CLASSES, (IMAGES,), generator=RNG)
LOGITS = torch.randn(2, IMAGES, CLASSES, generator=RNG) + torch.nn.functional.one_hot(LABELS, CLASSES)
PIXELS = torch.randint(5, (IMAGES,), generator=RNG)
GIVEN = torch.tensor([-1, 4, 7])[torch.randint(3, (IMAGES,), generator=RNG)]
TRAIN_LABELS = torch.randint(CLASSES, (1000,), generator=RNG)
TRAIN_GIVEN = torch.tensor([-1, 4, 7, 9])[torch.multinomial(torch.tensor([1.0, 5, 2, 2]), 1000, True, generator=RNG)]


@pytest.fixture
def make(evaluation):
    """Return an evaluation task with groups."""

    def make(logits=LOGITS, given=GIVEN):
        task = evaluation(LABELS, {None: logits})
        test = SimpleNamespace(labels=LABELS, groups=given)
        train = SimpleNamespace(labels=TRAIN_LABELS, groups=None if given is None else TRAIN_GIVEN)
        task.data = SimpleNamespace(test=test, train=train)
        task.artifact = lambda name: {"groups": {"pixels": PIXELS, "features": (PIXELS + LABELS) % 4}[name]}
        return task

    return make


def measured(task, **params):
    """Return (metric, tags as sorted pairs, replicate) -> value."""
    found = Subgroup(SubgroupParams(**params)).evaluate(task)
    named = {(m.metric, tuple(sorted(m.tags.items())), m.replicate): m.value for m in found}
    assert len(named) == len(found)
    assert {(m.network, m.recipe, m.selection) for m in found} == {("convnet-in-w4", "review", "last")}
    return named


def by_hand(e, groups):
    """Return group -> (accuracy by scikit-learn, number of images)."""
    predicted = LOGITS[e].argmax(1)
    found = {}
    for group in sorted(set(groups.tolist())):
        chosen = groups == group
        found[group] = accuracy_score(LABELS[chosen], predicted[chosen]), int(chosen.sum())
    return found


@pytest.mark.parametrize(("family", "name", "groups"), [("pixels", "cluster", PIXELS), ("given", "group", GIVEN)])
def test_statistics_are_those_of_a_loop(make, family, name, groups):
    found = measured(make(), families=[family], smallest=100)
    tags = (("groups", family),)
    for e in range(2):
        each = by_hand(e, groups)
        accuracies = [accuracy for accuracy, _ in each.values()]
        accuracy = accuracy_score(LABELS, LOGITS[e].argmax(1))
        assert found["accuracy", (), e] == pytest.approx(accuracy, abs=1e-12)
        assert found[f"{name}_min", tags, e] == pytest.approx(min(accuracies), abs=1e-12)
        assert found[f"{name}_mean", tags, e] == pytest.approx(np.mean(accuracies), abs=1e-12)
        assert found[f"{name}_gap", tags, e] == pytest.approx(accuracy - min(accuracies), abs=1e-12)
        assert found["class_min", (), e] == pytest.approx(min(a for a, _ in by_hand_classes(e)), abs=1e-12)
        for group, (value, count) in each.items():
            own = (("group", str(group)), ("groups", family), ("images", count))
            assert found[f"{name}_accuracy", own, e] == pytest.approx(value, abs=1e-12)
        # accuracy is the mean with the sizes as weights, and no group mean is below the worst group
        assert sum(a * n for a, n in each.values()) / IMAGES == pytest.approx(accuracy, abs=1e-12)
        assert min(accuracies) < np.mean(accuracies)
    assert found["small_groups", tags, None] == sum(n < 100 for _, n in by_hand(0, groups).values())


def by_hand_classes(e):
    return by_hand(e, LABELS).values()


def test_adjusted_accuracy_has_the_weights_of_training(make):
    found = measured(make(), families=["given"])
    for e in range(2):
        each = by_hand(e, GIVEN)  # group 9 of training is never tested: the others share its weight
        counts = {group: int((group == TRAIN_GIVEN).sum()) for group in each}
        expected = sum(each[g][0] * counts[g] for g in each) / sum(counts.values())
        assert found["group_adjusted", (("groups", "given"),), e] == pytest.approx(expected, abs=1e-12)
    assert not any(metric == "cluster_adjusted" for metric, _, _ in measured(make(), families=["pixels"]))
    unseen = Grouping("group", torch.tensor([[1, 2]]), torch.tensor([[3, 3]]))
    assert "group_adjusted" not in statistics(unseen, torch.ones(1, 2, dtype=torch.bool), torch.zeros(2, dtype=bool))


def test_groups_split_by_class(make):
    found = measured(make(), families=["given"], by_class=True)
    split = (("groups", "given"), ("split", "class"))
    lowest, weighted, weights = 1.0, 0.0, 0
    for label in range(CLASSES):
        for group in (-1, 4, 7):
            chosen = (label == LABELS) & (group == GIVEN)
            accuracy = accuracy_score(LABELS[chosen], LOGITS[1][chosen].argmax(1))
            own = (("group", f"{label}/{group}"), ("groups", "given"), ("images", int(chosen.sum())), split[1])
            assert found["group_accuracy", own, 1] == pytest.approx(accuracy, abs=1e-12)
            count = int(((label == TRAIN_LABELS) & (group == TRAIN_GIVEN)).sum())
            lowest, weighted, weights = min(lowest, accuracy), weighted + accuracy * count, weights + count
    assert found["group_min", split, 1] == pytest.approx(lowest, abs=1e-12)
    assert found["group_adjusted", split, 1] == pytest.approx(weighted / weights, abs=1e-12)
    assert found["group_min", split, 1] <= found["group_min", split[:1], 1]


def test_small_groups_may_be_left_out(make):
    keys, right = torch.tensor([[0, 0, 0, 1, 2, 2]]), torch.tensor([[True, True, False, False, True, False]])
    grouping = Grouping("cluster", keys)
    torch.testing.assert_close(each_group(grouping, right), torch.tensor([[2 / 3, 0, 1 / 2]], dtype=torch.float64))
    left = statistics(grouping, right, grouping.counts < 2)
    assert {name: value.item() for name, value in left.items()} == pytest.approx(
        {"cluster_min": 1 / 2, "cluster_mean": 7 / 12, "cluster_gap": 0.0}
    )
    assert statistics(grouping, right, grouping.counts < 4) == {}
    limit = sorted(n for _, n in by_hand(0, PIXELS).values())[1]
    kept, out = (measured(make(), families=["pixels"], smallest=limit, small=s) for s in ("keep", "leave_out"))
    tags = (("groups", "pixels"),)
    large = [accuracy for accuracy, n in by_hand(0, PIXELS).values() if n >= limit]
    assert len(large) == 4
    assert out["cluster_mean", tags, 0] == pytest.approx(np.mean(large), abs=1e-12)
    assert out["small_groups", tags, None] == kept["small_groups", tags, None] == 1
    none = measured(make(), families=["pixels"], smallest=IMAGES, small="leave_out")
    assert not any(metric == "cluster_min" for metric, _, _ in none)
    assert ("class_min", (), 0) in none


def test_families_have_their_own_tags_and_absent_labels_no_numbers(make):
    found = measured(make(), families=["pixels", "features", "given"])
    assert {tags for metric, tags, _ in found if metric == "cluster_min"} == {
        (("groups", "pixels"),),
        (("groups", "features"),),
    }
    assert measured(make()).keys() < found.keys()
    without = measured(make(given=None))
    assert {metric for metric, _, _ in without} == {
        "accuracy", "class_min", "cluster_min", "cluster_mean", "cluster_gap", "cluster_accuracy", "small_groups"
    }  # fmt: skip


def test_best_network_of_a_set_as_the_published_script_prints(make):
    found, plain = measured(make(), best_of_networks=True), measured(make())
    for metric, groups in (("cluster_min", "pixels"), ("cluster_mean", "pixels"), ("group_min", "given")):
        values = [plain[metric, (("groups", groups),), e] for e in range(2)]
        assert found[metric, (("best_of", 2), ("groups", groups)), None] == max(values)
    assert not any("gap" in metric and replicate is None for metric, _, replicate in found)
    assert {key: value for key, value in found.items() if ("best_of", 2) not in key[1]} == plain


def test_a_diverged_network_is_wrong_everywhere_and_tagged(make):
    logits = LOGITS.clone()
    logits[1] = math.nan
    found = measured(make(logits))
    assert found["cluster_mean", (("diverged", 1), ("groups", "pixels")), 1] == 0.0
    assert found["cluster_mean", (("groups", "pixels"),), 0] > 0


# ------------------------------------------------------------------------------------------------ the artifact


def task_of(dataset, **fields):
    spec = TaskSpec(dataset=bench.data.info(dataset), ipc=None, network=NetSpec(width=8, depth=2), **fields)
    return LiveTask(spec)


@pytest.mark.parametrize("dataset", ["digits", "debug"])
def test_groups_are_those_of_scikit_learn_on_normalised_pixels(dataset):
    found = Groups(GroupsParams(clusters=6)).build(task_of(dataset))
    data, info = bench.data.load(dataset), bench.data.info(dataset)
    pixels = data.test.images.numpy().astype(np.float32) / np.float32(255)
    mean, std = (np.array(v, np.float32)[None, :, None, None] for v in (info.mean, info.std))
    rows = ((pixels - mean) / std).reshape(len(pixels), -1)
    plain = KMeans(n_clusters=6, random_state=0, n_init=10).fit(rows)
    assert found["groups"].dtype == torch.int64
    assert np.array_equal(found["groups"].numpy(), plain.labels_)
    assert float(found["inertia"]) == pytest.approx(plain.inertia_, rel=1e-5)
    # each image is in the group with the nearest mean, in float64
    centres = np.stack([rows[plain.labels_ == k].astype(np.float64).mean(0) for k in range(6)])
    distances = np.linalg.norm(rows[:, None].astype(np.float64) - centres[None], axis=2)
    assert np.array_equal(distances.argmin(1), plain.labels_)
    again = Groups(GroupsParams(clusters=6)).build(task_of(dataset))
    assert torch.equal(found["groups"], again["groups"])


def test_more_starts_are_never_worse():
    one, ten = (Groups(GroupsParams(clusters=10, starts=n)).build(task_of("digits")) for n in (1, 10))
    assert float(ten["inertia"]) <= float(one["inertia"])


def test_groups_of_features_follow_the_classes_more_than_groups_of_pixels():
    """A network trained on the labels brings images of a class together: what the second family is for."""
    from sklearn.metrics import normalized_mutual_info_score as shared

    labels = bench.data.load("digits").test.labels.numpy()
    pixels = Groups(GroupsParams(starts=3)).build(task_of("digits"))["groups"].numpy()
    params = GroupsParams(space="features", starts=3, epochs=30)
    features = Groups(params).build(task_of("digits"))["groups"]
    assert shared(labels, features.numpy()) > shared(labels, pixels) + 0.1
    assert torch.equal(features, Groups(params).build(task_of("digits"))["groups"])


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="100 test images cannot make 101 groups"):
        Groups(GroupsParams(clusters=101)).build(task_of("debug"))


def test_needs_depend_on_the_dataset_alone(evaluation):
    spec = evaluation(LABELS, {}).eval_spec
    assert set(Subgroup.needs(SubgroupParams(), spec)) == {"pixels"}
    both = SubgroupParams(families=("features", "pixels"), reference="mlp", epochs=3)
    assert Subgroup.needs(both, spec) == {"pixels": of_pixels(10, 10), "features": of_features(10, 10, "mlp", 3)}
    assert of_pixels(10, 10).params == {"space": "pixels", "clusters": 10, "starts": 10}
    assert of_features(10, 10, "mlp", 3).task["network"] == NetSpec(arch="mlp")


# ------------------------------------------------------------------------------------------------ a whole suite

SUITE = """\
title: Groups
grid: {datasets: [debug], methods: [random], ipc: [1], seeds: 2, network: convnet-in-w8-d2}
evaluation: {network: convnet-in-w8-d2, recipe: {base: dc, epochs: 30}, replicates: 2}
evaluators: [accuracy, {name: subgroup, params: {families: [pixels, given]}}]
"""


def test_a_suite_shares_networks_and_groups(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE)
    plan = bench.suite.plan(bench.suite.load(file))
    artifacts = [cell.config["artifact"] for cell in plan.cells if cell.kind == "prepare"]
    assert sorted(artifacts) == ["groups", "networks", "networks"]
    assert "subgroup" in EVALUATORS.names()
    assert "groups" in ARTIFACTS.names()
    subgroups = [cell for cell in plan.cells if cell.config.get("evaluator") == "subgroup"]
    assert len({cell.inputs["pixels"] for cell in subgroups}) == 1
    run_plan(plan, Store(tmp_path / "out"), executor="inline", device="cpu", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    clean, again = (
        {
            (r["seed"], r["replicate"]): r["value"]
            for r in lines
            if r["evaluator"] == evaluator and r["metric"] == "accuracy"
        }
        for evaluator in ("accuracy", "subgroup")
    )
    assert clean == pytest.approx(again)
    assert len(again) == 4
    for key in clean:
        groups = [r for r in lines if (r["seed"], r["replicate"]) == key and r["metric"] == "group_accuracy"]
        assert [r["tags"]["images"] for r in groups] == [50, 50]
        assert sum(r["value"] for r in groups) / 2 == pytest.approx(clean[key])
    titled = {table.title: table for table in measure_tables(bench.report.load(tmp_path / "out"))}
    table = titled["Accuracy by groups of test images, debug"]
    worst, gap = table.columns.index(("given", "worst")), table.columns.index(("pixels", "gap"))
    assert table.columns[:2] == (("", "accuracy"), ("", "worst class"))
    assert table.rows[0].cells[worst].value <= table.rows[0].cells[0].value
    assert table.rows[0].cells[gap].value >= 0
    assert table.rows[0].cells[table.columns.index(("pixels", "small groups"))].text == "10"
    assert len(titled["Measures of subgroup, debug"].columns) == 12  # every group


def test_planning_imports_nothing_heavy():
    code = (
        "import sys, evaluators.subgroup, evaluators.corruption, evaluators.groups;"
        "assert not {'torch', 'numpy', 'sklearn', 'PIL'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
