"""The README keeps its promises: the method in it works, the names in it exist, its files are there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench import data
from bench.registry import EVALUATORS, METHODS
from bench.testing import check_method

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_method_of_the_readme_runs_in_a_suite(tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
    (tmp_path / "mean_images.py").write_text(code)
    suite = {
        "grid": {"datasets": ["debug"], "methods": ["random", "mean_images:MeanImages"], "ipc": [1], "seeds": 1,
                 "network": "convnet-in-w4-d2"},
        "evaluation": {"recipe": {"base": "review", "epochs": 2}, "replicates": 1},
        "evaluators": ["accuracy"],
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(suite))
    done = subprocess.run(
        [sys.executable, "-c", "from bench.cli import main; main()", "run", "mine.yaml", "--executor", "inline"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in next(tmp_path.glob("runs/*/records.jsonl")).read_text().splitlines()]
    assert {record["method"] for record in records} == {"random", "mean_images:MeanImages"}


def test_the_method_of_the_readme_keeps_the_contract(tmp_path, monkeypatch):
    (tmp_path / "mean_images.py").write_text(re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1))
    monkeypatch.syspath_prepend(tmp_path)
    check_method("mean_images:MeanImages", {"iterations": 4})


@pytest.mark.parametrize("names", [METHODS.names(), EVALUATORS.names()])
def test_every_built_in_name_is_in_the_tables(names):
    assert [name for name in names if f"`{name}`" not in README] == []


def test_datasets_of_the_tables_exist():
    table = README[README.index("| datasets") : README.index("Networks:")]
    named = [name for name in re.findall(r"`([a-z0-9_]+)`", table) if name != "results"]
    assert [name for name in named if name not in data.names()] == []


def test_files_it_names_are_there():
    for file in re.findall(r"\]\(([\w/.]+)\)|`((?:results|suites)/[\w/.]+)`", README):
        name = next(part for part in file if part)
        assert (ROOT / name).exists(), name
