"""Small parts: words for failures, the displays, provenance, records of cells with several places."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import run_fakes as fakes
import torch
from rich.console import Console

from bench.api import Measure
from bench.errors import Diverged, MissingData, UserError
from bench.run import Event, failures, outputs, provenance, worker
from bench.run.job import Progress
from bench.run.progress import Lines, Screen, duration


def raised(action):
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UserError("no such thing", where="x.yaml:3", hint="try y"), "failed", "x.yaml:3: no such thing (try y)"),
        (MissingData("no mnist", hint="get it"), "failed", "no mnist (get it)"),
        (Diverged("loss is nan"), "diverged", "loss is nan"),
        (MemoryError(), "oom", "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "oom", "out of memory: CUDA out of memory. Tried"),
        (RuntimeError("something else"), "failed", "RuntimeError: something else"),
        (ValueError("\n\n  first\nsecond"), "failed", "ValueError: first"),
        (KeyError(), "failed", "KeyError"),
    ],
)
def test_words_for_exceptions(error, state, reason):
    assert failures.classify(error) == (state, reason)


def test_running_out_of_host_memory_is_recognised():
    state, reason = failures.classify(raised(lambda: torch.empty(10**15)))
    assert (state, len(reason.splitlines())) == ("oom", 1)


def test_long_reasons_are_cut():
    assert len(failures.one_line("x" * 1000)) == 300


def test_words_for_exit_codes():
    assert failures.of_exit(-9) == ("killed", "killed (signal 9): out of memory?")
    assert failures.of_exit(-11) == ("killed", "killed (signal 11: Segmentation fault)")
    assert failures.of_exit(1)[0] == "failed"


def test_measures_must_be_finite_numbers():
    stored = worker.plain(Measure("accuracy", torch.tensor(0.5), tags={"k": 1}))
    assert json.loads(json.dumps(stored)) == {
        "metric": "accuracy", "value": 0.5, "unit": "fraction", "network": None, "recipe": None, "selection": None,
        "replicate": None, "step": None, "tags": {"k": 1},
    }  # fmt: skip
    for value in (float("nan"), float("inf")):
        with pytest.raises(Diverged, match="accuracy is"):
            worker.plain(Measure("accuracy", value))


def test_a_cell_with_two_places_gives_records_for_both():
    cell = fakes.cell("number", value=1)
    cell.also = ({**cell.coords, "label": "other", "network": "mlp"},)
    lines = outputs.record_lines(fakes.plan(cell), cell, {"measures": [fakes.measure(0.5)]})
    rows = [json.loads(line) for line in lines]
    assert [(row["label"], row["network"], row["value"]) for row in rows] == [("m", None, 0.5), ("other", "mlp", 0.5)]
    assert len(json.loads("\n".join(outputs.manifest(fakes.plan(cell))))["plan"]) == 2


def test_left_out_cells_are_listed_with_their_reason(tmp_path):
    from bench.run import Store, run_plan, states

    cell = fakes.cell("number", value=1)
    cell.skip = "no data"
    plan = fakes.plan()
    plan.skipped.append(cell)
    assert states(plan, Store(tmp_path)) == [(cell, "skipped", "no data")]
    assert run_plan(plan, Store(tmp_path), progress=False).exit_code == 0
    row = json.loads((tmp_path / "states.jsonl").read_text())
    assert (row["state"], row["reason"]) == ("skipped", "no data")
    assert len(json.loads((tmp_path / "suite.json").read_text())["plan"]) == 1


# ------------------------------------------------------------------------------------ displays


def cells(count):
    return [fakes.cell("number", value=value, weight=float(value + 1)) for value in range(count)]


def test_lines_for_logs():
    out = io.StringIO()
    made = cells(3)
    show = Lines(made, out)
    show(Event(made[0], "cached"))
    show(Event(made[1], "running"))
    show(Event(made[1], "running", progress=Progress("k", 1, 10)))  # too soon after the last line
    show(Event(made[1], "ok", seconds=2.0))
    show(Event(made[2], "oom", "out of memory"))
    texts = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in out.getvalue().splitlines()]
    assert texts == [
        "[1/3] done already: 1",
        "[1/3] running number 1",
        "[2/3] ok number 1 (2.0 s), about 3.0 s left",
        "[3/3] oom number 2: out of memory",
    ]


def test_screen_shows_running_cells_and_failures():
    made = cells(3)
    made[1].label = "dm [/red] ipc=1"  # not markup
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    screen = Screen(made, console)
    screen(Event(made[0], "failed", "why"))
    screen(Event(made[1], "running", progress=Progress("k", 3, 10, "inner [loop]")))
    console.print(screen)
    text = console.file.getvalue()
    assert "failed: number 0: why" in text
    assert "1/3 cells, 1 failed" in text
    assert "dm [/red] ipc=1" in text
    assert "step 3/10 inner [loop]" in text
    screen(Event(made[1], "ok", seconds=1.0))
    console.file = io.StringIO()
    console.print(screen)
    assert "dm" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (12.3, "12 s"), (185, "3:05 min"), (7800, "2:10 h"), (59.9, "60 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# ------------------------------------------------------------------------------------ provenance


def test_provenance_names_no_host_and_no_path():
    import getpass
    import socket

    text = json.dumps({**provenance.environment(), **provenance.of_device("cpu")})
    assert socket.gethostname() not in text
    assert f"/{getpass.getuser()}" not in text
    assert provenance.commit(Path("/nowhere")) == {}


def test_commit_and_dirty_flag(tmp_path):
    import subprocess

    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words], check=True)

    git("init", "-q")
    (tmp_path / "api.py").write_text("1")
    assert provenance.commit(tmp_path) == {}
    git("add", "api.py")
    git("commit", "-qm", "first")
    clean = provenance.commit(tmp_path)
    assert (len(clean["commit"]), clean["dirty"]) == (40, False)
    (tmp_path / "api.py").write_text("2")
    assert provenance.commit(tmp_path)["dirty"]
