"""Membership inference end to end on digits: memorising networks give members away, others do not."""

import json

import pytest
import torch

import bench.data
import bench.distilled
import bench.report
import bench.suite
from bench.data.views import Half
from bench.report.measures import measure_tables
from bench.run import Store, run_plan
from evaluators.attacks import ATTACKS

SUITE = """\
title: Membership
grid: {{datasets: ["digits@chunk(size=100)"], methods: [{method}], ipc: [1], seeds: 1, network: convnet-in-w8-d2}}
evaluation: {{network: convnet-in-w8-d2, recipe: {recipe}, replicates: 2}}
evaluators: [{{name: membership, params: {{rates: [0.1]}}}}]
"""
AUDIT = """\
title: Audit
grid: {datasets: [digits], methods: [whole, random], ipc: [1], seeds: [3], network: mlp}
evaluation: {network: mlp, recipe: {base: dc, lr: 0.05, epochs: 150, batch: 16}, replicates: 1}
evaluators:
  - {name: lira, params: {runs: 4, audit: 120, alone: true, mislabelled: true, rates: [0.05, 0.001]}}
"""


def run(folder, text):
    (folder / "suite.yaml").write_text(text)
    plan = bench.suite.plan(bench.suite.load(folder / "suite.yaml"))
    store = Store(folder / "out")
    assert run_plan(plan, store, executor="inline", device="cpu", progress=False).exit_code == 0
    return plan, store, [json.loads(line) for line in (folder / "out" / "records.jsonl").read_text().splitlines()]


def values(records, metric, label=None, **tags):
    return [r["value"] for r in records if r["metric"] == metric and label in (None, r["label"]) and r["tags"] == tags]


def test_networks_that_memorise_their_members_give_them_away(tmp_path):
    _, store, records = run(tmp_path, SUITE.format(method="whole", recipe="{base: dc, epochs: 60, batch: 16}"))
    assert min(values(records, "member_accuracy")) > 0.95
    found = {name: values(records, "mia_auc", attack=name) for name in ATTACKS}
    assert {len(one) for one in found.values()} == {2}
    assert min(found["threshold"]) > 0.65
    assert max(sum(one) / 2 for name, one in found.items() if name != "threshold") > 0.6
    (table, *_) = [t for t in measure_tables(bench.report.load(store.root)) if "AUC" in t.title]
    assert ("threshold", "AUC") in table.columns


def test_networks_that_never_saw_either_half_are_at_one_half(tmp_path):
    """They learn from ten images: members and others are new to them, but for those ten."""
    _, _, records = run(tmp_path, SUITE.format(method="random", recipe="{base: dc, epochs: 1, lr: 1e-9}"))
    deviation = values(records, "mia_auc_null")[0]
    assert deviation == pytest.approx(((100 + 355 + 1) / (12 * 100 * 355)) ** 0.5)
    for attack in ATTACKS:
        for value in values(records, "mia_auc", attack=attack):
            assert abs(value - 0.5) < 4 * deviation


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    return run(tmp_path_factory.mktemp("audit"), AUDIT)


def test_every_run_is_distilled_from_its_half(audit):
    plan, store, _ = audit
    (cell,) = [c for c in plan.cells if c.config.get("evaluator") == "lira" and c.coords["label"] == "random"]
    base = bench.data.prepare(bench.data.load("digits"))
    index, labels, member = Half(runs=4, audit=120, alone=True, seed=3).audited(base)
    for r in range(4):
        held = bench.distilled.load(store.verified(cell.inputs[f"set run{r}"]) / "set.safetensors")
        mine = base.train.images(index[member[r]])
        for image, label in zip(held.images, held.labels, strict=True):
            here = (mine == image).flatten(1).all(1)
            assert int(label) in labels[member[r]][here].tolist()
    seeds = {
        c.config["task"]["seed"] for c in plan.cells if c.kind == "distil" and "half" in c.config["task"]["dataset"]
    }
    assert seeds == {12, 13, 14, 15}


def test_canaries_betray_training_on_them_and_less_so_a_selection(audit):
    _, store, records = audit
    whole, random = (values(records, "lira_auc", label, attack="online-fixed")[0] for label in ("whole", "random"))
    assert whole > 0.9
    assert random < whole - 0.1
    assert not torch.isnan(torch.tensor([whole, random])).any()
    assert values(records, "lira_tpr", "whole", attack="online-fixed", rate=0.05)[0] > 0.5
    reasons = [r["tags"]["reason"] for r in records if r["metric"] == "skipped"]
    assert reasons == ["240 non-members are too few for a false positive rate of 0.001"] * 2
    tables = [t for t in measure_tables(bench.report.load(store.root)) if "LiRA" in t.title]
    assert len(tables) == 2
    assert any("240 non-members" in note for note in tables[0].notes)
