"""`ddbench import` says what it recognised and what it wrote; `ddbench show` what a foreign file is."""

import json

import official_files as official
import pytest
import torch
from typer.testing import CliRunner

from bench.cli import app
from bench.distilled import load
from bench.errors import UserError

IMAGES, LABELS = torch.randn(10, 3, 8, 8), torch.arange(10)


def ddbench(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, UserError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_import_writes_a_set_that_describes_itself(tmp_path):
    path, target = official.pair(tmp_path, IMAGES, LABELS), tmp_path / "set.safetensors"
    told = ddbench("import", path, "--dataset", "debug", "--zca", "--rate", "0.03", "-o", target)
    assert "images and labels of MTT, TESLA, GLaD or RDD, images 10x3x8x8, labels: classes" in told
    assert "debug, zca-kornia, 10 hard labels, 1 images per class, method imported, recipe mtt" in told
    made = load(target)
    assert made.images.equal(IMAGES)
    assert made.header.learned_rate == 0.03
    with pytest.raises(UserError, match="a set of ddbench already"):
        ddbench("import", target, "--dataset", "debug", "-o", tmp_path / "again.safetensors")


def test_import_says_what_is_missing(tmp_path):
    path, target = official.pair(tmp_path, IMAGES, LABELS), tmp_path / "set.safetensors"
    with pytest.raises(UserError, match="say --dataset"):
        ddbench("import", path, "-o", target)
    with pytest.raises(UserError, match=r"--preprocessing meanstd \| zca-kornia"):
        ddbench("import", path, "--dataset", "debug", "-o", target)
    with pytest.raises(UserError, match="is not mean and deviation"):
        ddbench("import", path, "--dataset", "debug", "--no-zca", "--constants", "0.5", "-o", target)
    assert not target.exists()
    constants = "0.4,0.5,0.6/0.2,0.2,0.2"
    told = ddbench("import", path, "--dataset", "debug", "--no-zca", "--constants", constants, "-o", target)
    assert "moved from mean and deviation 0.4000, 0.5000, 0.6000 / 0.2000" in told


def test_show_recognises_foreign_files(tmp_path):
    path = official.res(tmp_path, [(IMAGES, LABELS)] * 3)
    facts = json.loads(ddbench("show", path, "--json"))
    assert facts["format"] == "results of DC, DSA or DM (res)"
    assert (facts["sets"], facts["images"], facts["space"]) == (3, "float32 [10, 3, 8, 8]", "meanstd")
    assert "results of DC" in ddbench("show", path)
