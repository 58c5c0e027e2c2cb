"""A registry of fakes, and suites written as text."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

import bench.suite
from bench.errors import UserError
from bench.registry import ARTIFACTS, EVALUATORS, METHODS

FAKES = {
    METHODS: {
        "fake": "Fake",
        "chosen": "Chosen",
        "abroad": "Abroad",
        "everything": "Everything",
        "broken": "Broken",
        "needs_endless": "NeedsEndless",
    },
    EVALUATORS: {
        "score": "Score",
        "pair": "Pair",
        "keeper": "Keeper",
        "few": "Few",
        "steps": "Steps",
        "against": "Against",
        "stray": "Stray",
        "clock": "Clock",
        "late": "Late",
        "grouped": "Grouped",
    },
    ARTIFACTS: {"features": "Features", "networks": "Networks", "endless": "Endless"},
}
BASE = """\
title: A test
grid:
  datasets: [digits]
  methods: [fake]
  ipc: [1, 10]
  seeds: 2
  network: convnet-in-w8-d2
evaluation: {network: convnet-in-w8-d2, recipe: {base: review, epochs: 3}, replicates: 2}
evaluators: [score]
"""


@pytest.fixture
def fakes(monkeypatch):
    """Replace the built-in methods, evaluators and artifacts."""
    for registry, names in FAKES.items():
        table = {name: f"fake_methods:{target}" for name, target in names.items()}
        monkeypatch.setattr(registry, "builtin", table)
        monkeypatch.setitem(registry.__dict__, "targets", table)


class Writer:
    """Writes suite files and loads them."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "suite.yaml"

    def __call__(self, text: str = BASE) -> Path:
        self.file.write_text(textwrap.dedent(text))
        return self.file

    def load(self, text: str = BASE, preset: str | None = None) -> bench.suite.Suite:
        return bench.suite.load(self(text), preset)

    def plan(self, text: str = BASE, preset: str | None = None, **options) -> bench.suite.Plan:
        return bench.suite.plan(self.load(text, preset), **options)

    def error(self, text: str, **options) -> str:
        """Return the message of the error that a suite gives, with `suite.yaml` for the file."""
        with pytest.raises(UserError) as caught:
            self.plan(text, **options)
        return str(caught.value).replace(str(self.file), "suite.yaml")


@pytest.fixture
def write(tmp_path) -> Writer:
    return Writer(tmp_path)


def changed(old: str, new: str, text: str = BASE) -> str:
    """Return the base suite with one piece of text replaced."""
    assert old in text
    return text.replace(old, new)
