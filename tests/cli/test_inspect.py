"""`ddbench inspect`: what it prints, the command it proposes, and that the command works."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
import torch

import bench
import bench.data
from bench.cli import app
from bench.errors import UserError

QUICK = ("--quick", "--steps", "25", "--replicates", "2", "--test", "200")


def ddbench(*arguments: object) -> int:
    return app([str(one) for one in arguments], standalone_mode=False) or 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return sets of one real image per class, by their space, and the folder of the files."""
    folder = tmp_path_factory.mktemp("sets")
    sets = {}
    for space in ("none", "meanstd", "zca-kornia"):
        task = bench.load_task("digits", 1, preprocessing=space)
        sets[space] = bench.distil("random", task, store=folder, progress=False)
        bench.save(sets[space], folder / f"{space}.safetensors")
        torch.save({"images": sets[space].images, "labels": sets[space].labels}, folder / f"{space}.pt")
    return sets, folder


@pytest.mark.parametrize("space", ["none", "meanstd", "zca-kornia"])
def test_the_command_it_proposes_makes_the_set(made, space, capsys, monkeypatch, tmp_path):
    sets, folder = made
    ddbench("inspect", folder / f"{space}.pt", "--dataset", "digits", *QUICK)
    said = capsys.readouterr().out
    assert f"fits     {space}" in said
    command = shlex.split(said.strip().splitlines()[-1])
    assert command[:2] == ["ddbench", "import"]
    monkeypatch.chdir(tmp_path)
    ddbench(*command[1:])
    again = bench.load(tmp_path / f"{space}.safetensors")
    assert again.header.preprocessing == space
    assert torch.equal(again.images, sets[space].images)


def test_a_set_of_ddbench_is_held_against_its_header(made, capsys, tmp_path):
    sets, folder = made
    ddbench("inspect", folder / "meanstd.safetensors", *QUICK)
    said = capsys.readouterr().out
    assert "meanstd, as its header says" in said
    assert "method         random" in said
    header = sets["zca-kornia"].header.model_copy(update={"preprocessing": "none"})
    bench.save(replace(sets["zca-kornia"], header=header), tmp_path / "lying.safetensors")
    ddbench("inspect", tmp_path / "lying.safetensors", *QUICK, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["next"] == "zca-kornia, but its header says none: is it what it claims?"
    assert found["preprocessing"] == "none"
    best = found["spaces"][0]
    assert (best["name"], best["fits"], best["behind"]) == ("zca-kornia", True, 0.0)
    assert best["accuracy"] == max(row["accuracy"] for row in found["spaces"]) <= 1
    assert {row["name"] for row in found["networks"]} == {"norm none, depth 2", "norm in, depth 2"}


def test_pixels_as_bytes_and_values_that_a_format_calls_pixels(made, capsys, tmp_path):
    sets, _ = made
    shown = (sets["none"].images * 255).round().byte()
    torch.save({"images": shown, "labels": sets["none"].labels}, tmp_path / "bytes.pt")
    ddbench("inspect", tmp_path / "bytes.pt", "--dataset", "digits", *QUICK)
    assert "--preprocessing none -o bytes.safetensors" in capsys.readouterr().out
    torch.save([sets["meanstd"].images, sets["meanstd"].labels], tmp_path / "idc.pt")
    ddbench("inspect", tmp_path / "idc.pt", "--dataset", "digits", *QUICK)
    assert "--preprocessing meanstd --no-pixels -o idc.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["meanstd.pt"], "say --dataset NAME"),
        (["meanstd.pt", "--dataset", "debug"], "images 1x8x8, those of debug are 3x8x8"),
        (["meanstd.safetensors", "--dataset", "mnist"], "a set of digits, not of mnist"),
        (["none.txt"], "there is no such file"),
    ],
)
def test_mistakes(made, arguments, message):
    with pytest.raises(UserError, match=message):
        ddbench("inspect", made[1] / arguments[0], *arguments[1:])


def test_labels_of_too_many_classes(made, tmp_path):
    torch.save({"images": made[0]["none"].images, "labels": torch.arange(10) + 5}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="labels of 15 classes, digits has 10"):
        ddbench("inspect", tmp_path / "x.pt", "--dataset", "digits")
