"""What the verbs print of many cells."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench.cli import screen


@pytest.fixture
def printed(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=out, width=200))
    return out


def rows(failed, skipped):
    states = ["skipped"] * skipped + ["failed"] * failed
    return [{"kind": "distil", "label": f"c{i}", "state": state, "reason": "why"} for i, state in enumerate(states)]


def test_every_reason_is_printed_where_there_are_few(printed):
    screen.print_states(rows(3, 4))
    assert printed.getvalue().count(": why") == 7
    assert "and more" not in printed.getvalue()


def test_of_many_reasons_those_of_failures_come_first_and_the_rest_is_counted(printed, monkeypatch):
    monkeypatch.setattr(screen, "REASONS", 5)
    screen.print_states(rows(3, 400))
    lines = [line.split(":")[0] for line in printed.getvalue().splitlines() if line.endswith(": why")]
    assert lines == ["failed"] * 3 + ["skipped"] * 2
    assert "and more: 398 skipped" in printed.getvalue()
