"""Rates by trial: each network's own best, chosen by images it has not seen and never by the test set."""

from __future__ import annotations

import json

import pytest
import torch

import bench.data
import bench.distilled
from bench.api import DistilledSet, Header, NetSpec, TaskSpec
from bench.errors import Diverged, UserError
from bench.task import LiveTask
from bench.train import rates
from bench.train.networks import Networks, NetworksParams
from bench.train.recipe import resolve

NET = NetSpec(norm="in", width=4, depth=2)
TRIED = (0.001, 0.02, 0.3)


@pytest.fixture(scope="module")
def digits():
    return bench.data.prepare(bench.data.load("digits"), "meanstd", "cpu")


@pytest.fixture
def make_task(tmp_path, digits):
    """Return a function: (training images per class, fields of the header) -> a task with a set of real images."""

    def make(per_class=3, **fields):
        info = bench.data.info("digits")
        index = torch.cat([digits.train.class_index(c)[:per_class] for c in range(10)])
        known = {
            "dataset": "digits", "classes": 10, "shape": info.shape, "preprocessing": "meanstd", "ipc": per_class,
            "seed": 0, "method": "random", "method_version": 1, "params": {}, "network": {}, "augment": "none",
        }  # fmt: skip
        parts = {"images": digits.train.images(index), "labels": digits.train.labels[index], "indices": index}
        bench.distilled.save(tmp_path / "set.safetensors", DistilledSet(Header(**{**known, **fields}), **parts))
        spec = TaskSpec(dataset=info, ipc=per_class, network=NET)
        return LiveTask(spec, inputs={"distilled": tmp_path})

    return make


def build(task, rates=(), recipe=None, **params):
    how = resolve({"base": "dc", "epochs": 8, **(recipe or {})})
    fields = {"network": NET.model_dump(), "recipe": how.model_dump(mode="json"), "replicates": 3, "rates": rates}
    return Networks(NetworksParams.model_validate_json(json.dumps(fields | params))).build(task)


# ---------------------------------------------------------------------------------------------- the choice


def attempt(table):
    """Return an attempt that scores as a table says and keeps the rate; None diverges."""

    def run(rate):
        if table[rate] is None:
            raise Diverged("gone")
        score = torch.tensor(table[rate], dtype=torch.float64)
        rows = torch.full((len(score), 2), rate)
        return score, {"logits": rows, "seconds": torch.tensor(1.0), "curve/epoch": torch.arange(3)}

    return run


def test_each_network_is_kept_at_its_own_best_rate_and_the_first_of_equals():
    table = {0.1: [0.5, 0.5, -1.0], 0.2: [0.9, 0.1, 0.3], 0.3: [0.7, 0.5, 0.3], 0.4: None}
    found = rates.choose(list(table), [], attempt(table))
    assert found["curve/rate"].tolist() == [0.2, 0.1, 0.2]
    torch.testing.assert_close(found["logits"], torch.tensor([[0.2, 0.2], [0.1, 0.1], [0.2, 0.2]]))
    assert found["curve/rate_score"].tolist() == [[0.5, 0.9, 0.7, -1], [0.5, 0.1, 0.5, -1], [-1, 0.3, 0.3, -1]]
    assert float(found["seconds"]) == 3.0
    assert found["curve/epoch"].tolist() == [0, 1, 2]


def test_a_search_that_diverges_everywhere_is_an_error():
    with pytest.raises(Diverged, match=r"at every rate: 1, 2"):
        rates.choose([1.0, 2.0], [], attempt({1.0: None, 2.0: None}))


def test_every_try_begins_with_the_same_draws():
    rng, drawn = torch.Generator().manual_seed(3), []

    def draw(rate):
        drawn.append(torch.rand(4, generator=rng))
        return torch.zeros(1, dtype=torch.float64), {"seconds": torch.tensor(0.0)}

    rates.choose([1.0, 2.0, 3.0], [rng], draw)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


# ---------------------------------------------------------------------------------------------- the artifact


def test_networks_are_those_trained_apart_at_the_rate_that_held_out_images_choose(make_task, digits):
    found = build(make_task(), TRIED)
    apart = [build(make_task(), recipe={"lr": rate}, weights=True) for rate in TRIED]
    index = rates.held_out(make_task(), make_task().distilled())
    network = bench.nets.build(NET, (1, 8, 8), 10)
    for e in range(3):
        accuracy = []
        for one in apart:
            network.load_state_dict({k.removeprefix("weights/"): v[e] for k, v in one.items() if "weights/" in k})
            with torch.no_grad():
                predicted = network.eval()(digits.train.images(index)).argmax(1)
            accuracy.append(float((predicted == digits.train.labels[index]).double().mean()))
        chosen = accuracy.index(max(accuracy))
        assert found["curve/rate_score"][e].tolist() == pytest.approx(accuracy)
        assert float(found["curve/rate"][e]) == TRIED[chosen]
        assert torch.equal(found["logits"][e], apart[chosen]["logits"][e])
        assert torch.equal(found["curve/loss"][e], apart[chosen]["curve/loss"][e])
    assert len({round(value, 6) for value in accuracy}) > 1  # the rates make a difference


def test_the_choice_never_looks_at_the_test_set_but_where_it_says_so(make_task):
    best_test = {"select": "best-test", "evaluations": 2}
    plain, looking = build(make_task(), TRIED), build(make_task(), TRIED, best_test)
    poisoned = make_task()
    poisoned.data.test.labels.copy_((poisoned.data.test.labels + 1) % 10)
    again = build(poisoned, TRIED)
    for name in ("logits", "curve/rate", "curve/rate_score"):
        assert torch.equal(plain[name], again[name])
    assert not torch.equal(looking["curve/rate_score"], build(poisoned, TRIED, best_test)["curve/rate_score"])


def test_best_test_takes_the_rate_with_the_best_looked_at_accuracy(make_task):
    recipe = {"select": "best-test", "evaluations": 3}
    found = build(make_task(), TRIED, recipe)
    apart = torch.stack([build(make_task(), recipe={**recipe, "lr": r})["curve/test_accuracy"] for r in TRIED], 1)
    torch.testing.assert_close(found["curve/rate_score"], apart.amax(2).double())
    torch.testing.assert_close(found["curve/test_accuracy"].amax(1), apart.amax((1, 2)))


def test_best_val_holds_out_the_same_images_at_every_rate(make_task):
    recipe = {"select": "best-val", "evaluations": 1}
    found = build(make_task(), TRIED, recipe)
    apart = [build(make_task(), recipe={**recipe, "lr": rate})["curve/val_accuracy"][:, 0] for rate in TRIED]
    torch.testing.assert_close(found["curve/rate_score"], torch.stack(apart, 1).double())


def test_a_rate_that_diverges_loses_and_is_no_error(make_task):
    found = build(make_task(), (0.01, 1e30))
    assert found["curve/rate"].tolist() == [0.01] * 3
    assert found["curve/rate_score"][:, 1].tolist() == [-1.0] * 3


def test_a_set_is_never_asked_about_its_own_images(make_task, digits):
    task = make_task(30)
    own, chosen = task.distilled().indices, rates.held_out(task, task.distilled())
    tenth = round(digits.train.size / 10)
    assert not set(own.tolist()) & set(chosen.tolist())
    assert tenth / 2 < len(chosen) < tenth
    union = bench.distilled.merge([task.distilled()] * 2, [task.distilled().images] * 2)
    assert torch.equal(union.indices, torch.cat([own, own]))
    assert torch.equal(rates.held_out(make_task(30), union), chosen)
    foreign = make_task(30, dataset="digits@chunk(size=500, index=0)")  # its indices count other images
    assert len(rates.held_out(foreign, foreign.distilled())) == tenth


def test_a_set_of_all_images_leaves_none_to_choose_by(make_task):
    with pytest.raises(UserError, match="no training image is left to choose a learning rate by"):
        build(make_task(10_000), TRIED)


def test_ordered_steps_have_rates_of_their_own(make_task):
    with pytest.raises(UserError, match="rates of their own"):
        build(make_task(), TRIED, {"base": "dd", "epochs": None})
