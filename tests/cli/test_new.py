"""`ddbench new`: what it writes passes its own test and runs in its own suite, found beside the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "PYTHONSAFEPATH": "1"}
    done = [sys.executable, *map(str, command)]
    return subprocess.run(done, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


def ddbench(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as the installed script does: without the current folder among the imports."""
    return run("-c", "from bench.cli import main; main()", *arguments, cwd=cwd)


@pytest.mark.parametrize("what", ["method", "evaluator"])
def test_what_is_written_works(what, tmp_path):
    done = ddbench("new", what, "class_means", "--dir", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pytest test_class_means.py" in done.stdout
    folder = tmp_path / "mine"
    assert {file.name for file in folder.iterdir()} == {"class_means.py", "test_class_means.py", "class_means.yaml"}
    for tool in (["check", "--ignore", "D,I001"], ["format", "--check"]):
        checked = run("-m", "ruff", *tool, "--config", ROOT / "pyproject.toml", ".", cwd=folder)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "2 passed" in tested.stdout
    planned = ddbench("plan", "class_means.yaml", cwd=folder)
    assert planned.returncode == 0, planned.stdout + planned.stderr


def test_the_suite_finds_the_file_beside_the_user(tmp_path):
    assert ddbench("new", "method", "class_means", cwd=tmp_path).returncode == 0
    suite = yaml.safe_load((tmp_path / "class_means.yaml").read_text())
    suite["grid"].update(seeds=1, ipc=[1], network="convnet-in-w4-d2", methods=["random", "class_means:ClassMeans"])
    suite["methods"] = {"class_means:ClassMeans": {"iterations": 2}}
    suite["evaluation"].update(recipe={"base": "review", "epochs": 2}, replicates=1)
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(suite))
    ran = ddbench("run", "short.yaml", cwd=tmp_path)  # in processes of their own
    assert ran.returncode == 0, ran.stdout + ran.stderr
    records = [json.loads(line) for line in next(tmp_path.glob("runs/*/records.jsonl")).read_text().splitlines()]
    assert {record["method"] for record in records} == {"random", "class_means:ClassMeans"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my-method", "cannot be the name of a Python module"),
        ("class", "cannot be the name of a Python module"),
        ("json", "a module 'json' exists already"),
        ("dm", "there is a method 'dm' already"),
        ("there", "there is such a file already"),
    ],
)
def test_names_that_cannot_be(name, words, tmp_path):
    (tmp_path / "there.yaml").write_text("mine")
    done = ddbench("new", "method", name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["there.yaml"]
    assert (tmp_path / "there.yaml").read_text() == "mine"
