"""The identity of cells cannot drift: golden keys, and a list of all fields that say what a result depends on."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import BASE, changed

import bench.data
from bench.api import DatasetInfo, EvalSpec, NetSpec, TaskSpec, Training
from bench.suite import keys
from bench.train.recipe import Recipe

GOLDEN = Path(__file__).parent / "golden_keys.json"
"""Label -> key, by the version of ddbench that first had it. It may be extended, never edited: results are stored
under these keys. A field added later must leave the key alone where it has the value it had before it existed."""

IN_KEY = {
    TaskSpec: {"dataset", "ipc", "network", "preprocessing", "augment", "seed"},
    NetSpec: {"arch", "norm", "width", "depth", "activation", "pooling", "init"},
    Training: {"network", "recipe", "replicates", "snapshot", "weights", "sets", "rates"},
    EvalSpec: {"task", "method", "method_steps", "network", "recipe", "replicates"},
    Recipe: {
        "optimiser", "lr", "momentum", "weight_decay", "epochs", "steps", "use_steps", "batch", "schedule", "warmup",
        "final", "milestones", "gamma", "augment", "loss", "temperature", "outlier_weight", "init", "precision",
        "select", "evaluations", "epochs_augmented", "cutmix", "average", "compile",
    },
}  # fmt: skip
"""What a result depends on: every field of these is part of a key."""

DATASET_FACTS = {
    "name": "in the key",
    "content": "in the key, as the fingerprint",
    "classes": "follows from the content",
    "shape": "follows from the content",
    "train_size": "follows from the content",
    "test_size": "follows from the content",
    "flip": "in the key, through the explicit augmentation",
    "family": "in the key, through the parameters it presets",
    "mean": "a constant of the name: other constants are another dataset",
    "std": "a constant of the name: other constants are another dataset",
    "title": "text",
    "source": "text",
    "licence": "text",
    "constants_source": "text",
    "complete": "says what a result may be compared with",
}
OTHER = {
    "arch": "mlp", "norm": "bn", "width": 7, "depth": 1, "activation": "swish", "pooling": "max", "init": "lecun",
}  # fmt: skip


def all_fields(kind) -> set[str]:
    return set(kind.model_fields) if hasattr(kind, "model_fields") else {field.name for field in fields(kind)}


@pytest.mark.parametrize("kind", IN_KEY, ids=lambda kind: kind.__name__)
def test_every_field_is_classified(kind):
    assert all_fields(kind) == IN_KEY[kind], "is the new field part of the key? extend the list, and keep golden keys"


def test_every_fact_of_a_dataset_is_classified():
    assert set(DatasetInfo.model_fields) == set(DATASET_FACTS)


SPEC = TaskSpec(dataset=bench.data.info("digits"), ipc=10, network=NetSpec())


@pytest.mark.parametrize("field", sorted(IN_KEY[NetSpec]))
def test_every_field_of_a_network_changes_the_key(field):
    other = SPEC.model_copy(update={"network": NetSpec(**{field: OTHER[field]})})
    assert keys.key(keys.task_config(other, "d")) != keys.key(keys.task_config(SPEC, "d"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", bench.data.info("mnist")),
        ("ipc", None),
        ("preprocessing", "none"),
        ("augment", "dsa:color"),
        ("seed", 1),
        ("network", NetSpec(width=3)),
    ],
)
def test_every_field_of_a_task_changes_the_key(field, value):
    other = SPEC.model_copy(update={field: value})
    assert keys.key(keys.task_config(other, "d")) != keys.key(keys.task_config(SPEC, "d"))
    assert keys.key(keys.task_config(SPEC, "e")) != keys.key(keys.task_config(SPEC, "d"))


@pytest.mark.parametrize("field", sorted(IN_KEY[Recipe]))
def test_every_field_of_a_recipe_is_in_the_request(field):
    assert field in Recipe(epochs=1, cutmix=0.5, average=0.9, compile="never").model_dump(mode="json")


def test_a_field_that_came_later_is_in_the_request_only_where_it_changes_what_is_done():
    assert not {"cutmix", "average"} & Recipe(epochs=1, cutmix=0.0, average=None).model_dump(mode="json").keys()
    assert Recipe.model_validate(Recipe(epochs=1, cutmix=0.5).model_dump()).cutmix == 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", NetSpec(width=3)),
        ("recipe", {"a": 1}),
        ("replicates", 2),
        ("snapshot", 5),
        ("weights", True),
        ("sets", ("other",)),
        ("rates", (0.1,)),
    ],
)
def test_every_field_of_a_request_changes_the_key(field, value):
    request = Training(NetSpec(), {}, 1)
    other = replace(request, **{field: value})
    assert keys.key(keys.training_fields(other)) != keys.key(keys.training_fields(request))


def test_equal_values_have_equal_keys():
    assert keys.key({"a": 1, "b": [1.0, None]}) == keys.key({"b": (1.0, None), "a": 1})
    assert keys.key({"a": 1}) != keys.key({"a": 1.0})
    assert keys.canonical({"b": "é", "a": 0.1}) == '{"a":0.1,"b":"\\u00e9"}'
    assert keys.key({}) == "44136fa355b3678a1146"  # sha256 of {}


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("a method", lambda monkeypatch, module: monkeypatch.setattr(module.Fake, "version", 2)),
        ("an artifact", lambda monkeypatch, module: monkeypatch.setattr(module.Networks, "version", 2)),
        ("an evaluator", lambda monkeypatch, module: monkeypatch.setattr(module.Score, "version", 2)),
    ],
)
def test_versions_are_in_the_key(write, fakes, monkeypatch, what, change):
    import fake_methods

    before = [cell.key for cell in write.plan().cells]
    change(monkeypatch, fake_methods)
    after = [cell.key for cell in write.plan().cells]
    first = {"a method": 0, "an artifact": 1, "an evaluator": 2}[
        what
    ]  # distil, train, evaluate, each built on the last
    assert [a == b for a, b in zip(before[:3], after[:3], strict=True)] == [i < first for i in range(3)]


def plans(write) -> dict[str, str]:
    """Return label -> key of a plan with every kind of cell, and of one with another network and thread count."""
    text = changed("[fake]", "[chosen, everything, {name: fake, params: {rate: 1}}]").replace("seeds: 2", "seeds: [3]")
    found = {cell.label: cell.key for cell in write.plan(text.replace("[score]", "[score, clock]")).cells}
    wide = write.plan(BASE.replace("convnet-in-w8-d2", "resnet18-bn") + "threads: 2\n")
    return found | {f"wide: {cell.label}": cell.key for cell in wide.cells}


def test_golden_keys(write, fakes, monkeypatch):
    monkeypatch.setattr(bench.data, "fingerprint", lambda name: "golden")
    found = plans(write)
    golden = {label: key for version in json.loads(GOLDEN.read_text()).values() for label, key in version.items()}
    assert {label: found.get(label) for label in golden} == golden
    assert set(found) == set(golden), f"add the keys of new cells under this version: {json.dumps(found)}"
