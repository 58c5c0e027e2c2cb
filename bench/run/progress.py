"""What a person sees while a plan runs: live on a terminal or in a notebook, plain lines with the time elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.run.tally import Happening, Tally

SHOWN = 12
"""Most running cells that are shown, one line each."""
QUIET = 30.0
"""Seconds between two lines about the progress of one cell where there is no live display."""


class Lines:
    """One line for every cell that starts or ends, for logs and pipes. Cached cells are counted, not listed."""

    def __init__(self, cells: Sequence[Any], out: Any = None) -> None:
        self.tally, self.out = Tally(cells), out or sys.stderr
        self._cached = 0
        self._said: dict[str, float] = {}

    def __call__(self, event: Happening) -> None:
        """Print what happened."""
        self.tally.note(event)
        if event.state == "cached":
            self._cached += 1
            return
        now, key = time.monotonic(), event.cell.key
        if event.progress is not None and now - self._said.get(key, 0.0) < QUIET:
            return
        self._said[key] = now
        if self._cached:
            self._print(f"done already: {self._cached}")
            self._cached = 0
        text = f"{event.state} {event.cell.label} {_position(event.progress)}".rstrip()
        if event.state == "ok" and event.seconds is not None:
            text += f" ({duration(event.seconds)})"
            if left := self.tally.time_left():
                text += f", about {duration(left)} left"
        self._print(f"{text}: {event.reason}" if event.reason else text)

    def _print(self, text: str) -> None:
        tally = self.tally
        print(f"{time.strftime('%H:%M:%S')} [{len(tally.finished)}/{tally.total}] {text}", file=self.out, flush=True)


class Screen:
    """A bar for the plan and a line for each running cell, redrawn in place; failures stay above it."""

    def __init__(self, cells: Sequence[Any], console: Console) -> None:
        self.tally, self.console = Tally(cells), console
        self._begin = time.monotonic()
        self._running: dict[str, tuple[Any, float, Any]] = {}

    def __call__(self, event: Happening) -> None:
        """Take an event in; the next redraw shows it."""
        self.tally.note(event)
        key = event.cell.key
        if event.state == "running":
            begin = self._running[key][1] if key in self._running else time.monotonic()
            self._running[key] = (event.cell, begin, event.progress)
            return
        self._running.pop(key, None)
        if event.reason and event.state != "skipped":
            self.console.print(Text(f"{event.state}: {event.cell.label}: {event.reason}", style="red"))

    def __rich__(self) -> RenderableType:
        tally, left = self.tally, self.tally.time_left()
        head = Table.grid(padding=(0, 2))
        failed = f", [red]{tally.failed} failed[/red]" if tally.failed else ""
        remaining = f"about {duration(left)} left" if left is not None else ""
        head.add_row(
            ProgressBar(total=max(1, tally.total), completed=len(tally.finished), width=30),
            f"{len(tally.finished)}/{tally.total} cells{failed}",
            duration(time.monotonic() - self._begin),
            remaining,
        )
        rows = Table.grid(padding=(0, 2))
        running = list(self._running.values())
        for cell, begin, progress in running[:SHOWN]:
            rows.add_row(Text(f"  {cell.label}"), Text(_position(progress)), duration(time.monotonic() - begin))
        if len(running) > SHOWN:
            rows.add_row(f"  and {len(running) - SHOWN} more")
        return Group(head, rows)


@contextmanager
def display(cells: Sequence[Any]) -> Iterator[Any]:
    """Give a function that takes events and shows them on stderr, live where that is a terminal."""
    console = Console(stderr=True)
    notebook = console.is_jupyter and find_spec("ipywidgets") is not None  # what redraws in place there
    if not (console.is_terminal or notebook):
        yield Lines(cells)
        return
    screen = Screen(cells, console)
    with Live(screen, console=console, refresh_per_second=5, transient=True):
        yield screen


def duration(seconds: float) -> str:
    """Return seconds as people say them: 0.4 s, 12 s, 3:05 min, 2:10 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def _position(progress: Any) -> str:
    if progress is None:
        return ""
    steps = f"step {progress.step}/{progress.steps}" if progress.steps else ""
    return " ".join(part for part in (steps, progress.text) if part)
