"""`ddbench evaluate`: files in, tables out; the same numbers as a run, cached, with the recipe told."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import bench.distilled
import bench.suite
from bench.cli import app
from bench.errors import UserError
from bench.suite.sets import around, images_per_class

TINY = "convnet-in-w4-d2"
RECIPE = "{base: review, epochs: 2}"
QUICK = ("--recipe", RECIPE, "--replicates", "2", "--device", "cpu", "--executor", "inline")


def ddbench(*arguments: object) -> int:
    return app([str(one) for one in arguments], standalone_mode=False) or 0


def suite(**changes) -> dict:
    return {
        "grid": {"datasets": ["debug"], "methods": ["random"], "ipc": [2], "seeds": 1, "network": TINY},
        "evaluation": {"recipe": {"base": "review", "epochs": 2}, "replicates": 2},
        "evaluators": ["accuracy"],
        **changes,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return the results of a suite run from the command line."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "s.yaml").write_text(yaml.safe_dump(suite()))
    ddbench("run", folder / "s.yaml", "--out", folder / "out", "--device", "cpu", "--executor", "inline")
    return folder / "out"


@pytest.fixture(scope="module")
def file(made) -> Path:
    return next(made.glob("cells/*/*/set.safetensors"))


def records(folder: Path) -> list[dict]:
    """Return the accuracies."""
    found = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [record for record in found if record["metric"] == "accuracy"]


def variant(file: Path, path: Path, tensors=None, **header) -> Path:
    """Write the set again with another header, or other tensors."""
    found = bench.distilled.load(file)
    found = replace(found, header=found.header.model_copy(update=header), **(tensors or {}))
    bench.distilled.save(path, found)
    return path


# ---------------------------------------------------------------------------------------------- numbers


def test_the_numbers_of_the_run_that_made_the_set_and_a_second_call_is_cached(made, file, tmp_path, capsys):
    assert ddbench("evaluate", file, *QUICK, "--out", tmp_path) == 0
    first = capsys.readouterr().out
    key = lambda record: (record["metric"], record["replicate"], record["network"], record["recipe"], record["value"])  # noqa: E731
    assert sorted(map(key, records(tmp_path))) == sorted(map(key, records(made)))
    assert f"report: {tmp_path / 'report.html'}" in first.replace("\n", "")
    assert "| random |" in first
    assert ddbench("evaluate", file, *QUICK, "--out", tmp_path) == 0
    assert "3 cached" in capsys.readouterr().out


def test_a_suite_lends_its_protocol_and_the_evaluators_meant_for_the_method(file, tmp_path):
    entries = [
        "accuracy",
        {"name": "cross_arch", "where": {"method": ["dm"]}},
        {"name": "krr", "where": {"label": ["random"], "ipc": [2]}},
        {"name": "ood", "where": {"ipc": [1]}},
    ]
    lent = suite(evaluators=entries, threads=2, presets={"small": {"evaluation": {"replicates": 3}}})
    lent["grid"]["methods"].append("dm")
    lent["evaluation"] |= {"network": "mlp", "recipes": {"random": "dc"}}
    (tmp_path / "lent.yaml").write_text(yaml.safe_dump(lent))
    base = bench.suite.load(tmp_path / "lent.yaml", "small")
    found = around([file], "evaluate", base=base)
    assert [one.name for one in found.evaluators] == ["accuracy", "krr"]
    assert (found.variants[0].network.arch, found.spec.evaluation.replicates, found.preset) == ("mlp", 3, "small")
    assert found.variants[0].recipe["epochs"] == 300  # dc's, which the suite has for this method
    assert found.spec.threads == 2
    plain = around([file], "evaluate", base=base, evaluators=["ood", "accuracy"], recipe="dm", network="lenet")
    assert [one.name for one in plain.evaluators] == ["accuracy"]  # ood is there, but not for this IPC
    assert (plain.variants[0].network.arch, plain.variants[0].recipe["epochs"]) == ("lenet", 1000)
    assert [one.name for one in around([file], "e", base=base, evaluators=["subgroup"]).evaluators] == ["subgroup"]


def test_several_files_are_rows_at_their_own_places(made, file, tmp_path, capsys):
    one = variant(file, tmp_path / "one.safetensors", ipc=None, floats={"decoded": 3 * 64 * 20})
    first = bench.distilled.load(file)
    half = {"images": first.images[::2], "labels": first.labels[::2], "indices": first.indices[::2]}
    other = variant(file, tmp_path / "other.safetensors", half, ipc=1)
    assert ddbench("evaluate", one, other, *QUICK, "--out", tmp_path / "out") == 0
    assert {(record["label"], record["ipc"]) for record in records(tmp_path / "out")} == {("one", 2), ("other", 1)}
    table = capsys.readouterr().out
    assert "| one | skipped |" in table


def test_the_number_of_images_where_the_classes_differ(file):
    header = bench.distilled.read_header(file)
    pixels = 3 * 8 * 8
    for images, ipc in ((10, 1), (26, 3), (4, 1), (300, 30), (10_000, 30)):
        uneven = header.model_copy(update={"ipc": None, "floats": {"decoded": images * pixels}})
        assert images_per_class(uneven) == ipc
    assert images_per_class(header) == 2


# ---------------------------------------------------------------------------------------------- what it tells


def test_the_recipe_of_the_set_is_the_default_and_is_told(file, tmp_path, capsys):
    quick = (
        "--replicates",
        "1",
        "--device",
        "cpu",
        "--executor",
        "inline",
        "--network",
        TINY,
        "--out",
        tmp_path / "out",
    )
    own = variant(file, tmp_path / "own.safetensors", native_recipe={"base": "mtt", "lr": 0.25, "epochs": 1})
    ddbench("evaluate", own, *quick)
    said = capsys.readouterr().out
    assert "made by random, seed 0, debug, images per class 2, meanstd, hard labels" in said
    assert "recipe review(lr=0.25, epochs=1) (the set's own) on convnet-in-w4" in said
    assert {record["recipe"] for record in records(tmp_path / "out")} == {"review(lr=0.25, epochs=1)"}
    suite = around([file], "evaluate")
    assert suite.variants[0].recipe["epochs"] == 1000
    from bench.cli.evaluate import tell

    tell(suite)
    assert "recipe review (the set has none of its own)" in capsys.readouterr().out


def test_files_of_other_projects(file, tmp_path, capsys, monkeypatch):
    found = bench.distilled.load(file)
    foreign = tmp_path / "images.pt"
    torch.save({"images": found.images, "labels": found.labels}, foreign)
    with pytest.raises(UserError, match="ddbench inspect"):
        ddbench("evaluate", foreign, "--dataset", "debug", *QUICK, "--out", tmp_path / "out")
    with pytest.raises(UserError, match="--dataset"):
        ddbench("evaluate", foreign, *QUICK, "--out", tmp_path / "out")
    told = ("--dataset", "debug", "--preprocessing", "meanstd", "--network", TINY)
    assert ddbench("evaluate", foreign, *told, *QUICK, "--out", tmp_path / "out") == 0
    assert "imported as" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    os.rename(foreign, tmp_path / "moved.pt")
    assert ddbench("evaluate", "moved.pt", *told, *QUICK, "--out", tmp_path / "out") == 0
    values = {record["value"] for record in records(tmp_path / "out")}
    ddbench("evaluate", file, *QUICK, "--out", tmp_path / "again")
    assert values == {record["value"] for record in records(tmp_path / "again")}  # meanstd images keep their values


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "digits"], "evaluate: grid.methods\\[0\\]: .*made for 'debug', not for 'digits'"),
        (["--preprocessing", "zca-kip"], "'meanstd', not 'zca-kip'"),
        (["--evaluators", "acuracy"], "evaluate: evaluators\\[0\\]: unknown evaluator 'acuracy'"),
        (["--recipe", "foo"], "unknown recipe 'foo'"),
        (["--recipe", "{base: review, epoch: 3}"], "unknown recipe field 'epoch'"),
        (["--preset", "laptop"], "add --suite FILE"),
        (["--evaluators", "continual"], "the set was made for 'debug'"),
    ],
)
def test_mistakes(file, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        ddbench("evaluate", file, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_file_twice_and_a_file_that_is_none(file, tmp_path):
    with pytest.raises(UserError, match="named twice"):
        ddbench("evaluate", file, file)
    with pytest.raises(UserError, match="there is no such file"):
        ddbench("evaluate", tmp_path / "none.safetensors")
