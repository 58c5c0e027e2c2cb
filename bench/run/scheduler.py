"""Runs a plan: what the store lacks is computed in the order of dependencies, the rest is left alone.

The store is the only truth. The scheduler compares the plan with it, hands what is missing to an executor, and
derives the records from what was published; killed at any moment and started again, it finds everything that was
finished. Nothing of its decisions reaches a computation, so results do not depend on how many cells run at once.

Torch-free: a run with nothing to do costs the reading of its results.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from bench.errors import UserError
from bench.run import devices, outputs, provenance
from bench.run.board import DONE, FAILED, Board
from bench.run.executors import EXECUTORS, GRACE, Executor
from bench.run.job import Job, Outcome, Progress
from bench.run.store import Damaged, Store

WRITE_SECONDS = 3.0
"""Least time between two updates of records.jsonl and states.jsonl while cells end."""
POLL_SECONDS = 0.2
"""How often signals, time limits and the claims of other runners are looked at."""
DAMAGE_LIMIT = 2
"""How often one cell is computed again because its stored result turned out damaged."""


@dataclass(frozen=True)
class Event:
    """Something happened to a cell: its state is now `state`, or `progress` tells where it is.

    state `damaged`: the stored result cannot be trusted, was moved aside and is computed again.
    """

    cell: Any
    state: str
    reason: str = ""
    seconds: float | None = None
    progress: Progress | None = None


@dataclass
class RunSummary:
    """How a run ended. counts: cells by state; failures: (cell, state, reason) of all others than ok and cached."""

    counts: dict[str, int]
    failures: list[tuple[Any, str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """Return 0 where every cell has a result, else 1."""
        return int(any(state not in DONE for state, count in self.counts.items() if count))


def run_plan(
    plan: Any,
    store: Store,
    *,
    jobs: int | None = None,
    device: str = "auto",
    executor: str = "local",
    options: Mapping[str, str] | None = None,
    fail_fast: bool = False,
    timeout: float | None = None,
    progress: bool = True,
    on_event: Callable[[Event], None] | None = None,
) -> RunSummary:
    """Compute what `store` lacks of `plan` and write the files of `bench.run.outputs` into its root.

    jobs: cells at once; default: one per core on a CPU, one per GPU. device: see `bench.run.devices`. options: of the
    executor, see `bench.run.slurm_jobs.Options`; Ray has `address`. timeout: seconds per cell; default: the suite's.
    progress: show it. on_event: called for each `Event`.

    Raises `UserError` for a device or executor that does not exist, or a device that is needed and not here, and
    `KeyboardInterrupt` after SIGINT or SIGTERM, when the running cells have had a moment for a last checkpoint and
    everything finished is written.
    """
    from bench.run.progress import display

    devices.check(device)
    make = EXECUTORS.get(executor)
    if options and executor in ("local", "inline"):
        raise UserError(f"executor {executor!r} has no options", hint="--executor slurm and ray have")
    made = {"options": options} if options else {}
    timeout = timeout or plan.suite.spec.limits.seconds
    with display(plan.cells) if progress else nullcontext() as show:
        listeners = [listener for listener in (show, on_event) if listener]
        runner = _Runner(plan, store, device, jobs, timeout, fail_fast, listeners)
        runner.executor = make(jobs, runner.progressed, **made)
        return runner.run()


def states(plan: Any, store: Store) -> list[tuple[Any, str, str]]:
    """Return (cell, state, reason) for every cell of a plan, as the store tells it; nothing is changed."""
    board, finished, tried = Board(plan.cells), store.finished(), store.tried()
    for cell in plan.cells:
        try:
            if cell.key in finished and store.result(cell.key):
                board.done(cell.key, "cached")
        except Damaged as error:
            board.reason[cell.key] = f"the stored result is damaged and will be computed again: {error}"
    for cell in plan.cells:
        if cell.key not in tried or board.state[cell.key] != "planned":
            continue
        if store.claimed(cell.key):
            board.state[cell.key] = "running"
        elif failure := store.failure(cell.key):
            board.fail(cell.key, failure["state"], failure["reason"])
    found = [(cell, board.state[cell.key], board.reason[cell.key]) for cell in plan.cells]
    return found + [(cell, "skipped", cell.skip) for cell in plan.skipped]


class _Runner:
    """One run: the board, the executor, and the files that follow the board."""

    executor: Executor

    def __init__(
        self,
        plan: Any,
        store: Store,
        device: str,
        jobs: int | None,
        timeout: float | None,
        fail_fast: bool,
        listeners: list[Callable[[Event], None]],
    ) -> None:
        self.plan, self.store, self.device, self.jobs, self.timeout = plan, store, device, jobs, timeout
        self.fail_fast, self.listeners = fail_fast, listeners
        self.board = Board(plan.cells)
        self.interrupts = 0
        self._submitting = False
        self._begin = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._records: dict[str, bytes] = {}
        self._environments: dict[str, str] = {}
        self._elsewhere: dict[str, Any] = {}  # claimed by others: key -> the failure known when we began to wait
        self._damaged: Counter[str] = Counter()
        self._write_at = 0.0

    # -------------------------------------------------------------------------------- the course of a run

    def run(self) -> RunSummary:
        """Compute what is missing."""
        self._compare()
        self._leave("suite.json", outputs.manifest(self.plan))
        self.board.open()
        with self._signals():
            try:
                self._loop()
            except KeyboardInterrupt:
                self.interrupts = max(self.interrupts, 1)
            except UserError:
                self.executor.kill()
                raise
            if self.interrupts or self.board.running:
                try:
                    self._wind_up()
                finally:
                    self.executor.kill()
        self._write()
        if self.interrupts:
            raise KeyboardInterrupt
        self.store.tidy()
        failures = [
            (cell, self.board.state[cell.key], self.board.reason[cell.key])
            for cell in self.plan.cells
            if self.board.state[cell.key] not in DONE
        ]
        counts = {state: count for state, count in self.board.counts.items() if count}
        return RunSummary(counts, failures, time.monotonic() - self._begin)

    def _compare(self) -> None:
        """Mark what the store has; warm the executor up and find its devices as soon as something is missing."""
        warm, finished = False, self.store.finished()
        for cell in self.plan.cells:
            if not (cell.key in finished and self._load(cell.key, "cached")) and not warm:
                self.executor.start()
                self.board.devices = getattr(self.executor, "devices", devices.here)(self.device, self.jobs)
                warm = True

    def _loop(self) -> None:
        poll_at = 0.0
        while not self.interrupts:
            self._launch()
            if not self.board.running:
                if not self._elsewhere:
                    return
                time.sleep(POLL_SECONDS)
            for outcome in self.executor.wait(POLL_SECONDS) if self.board.running else ():
                self._ended(outcome)
                if self.fail_fast and outcome.state in FAILED:
                    return
            now = time.monotonic()
            if self._elsewhere and now >= poll_at:
                self._look_elsewhere()
                poll_at = now + POLL_SECONDS
            if now >= self._write_at:
                self._write()

    def _launch(self) -> None:
        """Start cells until nothing more may start."""
        while not self.interrupts:
            key = self.board.take()
            if key is None:
                return
            cell = self.board.cells[key]
            if self.store.claimed(key):
                self._wait_elsewhere(key)
                continue
            self._tell(Event(cell, "running"))
            job = Job(
                self.store.root.absolute(),
                key,
                cell.kind,
                cell.label,
                dict(cell.config),
                dict(cell.inputs),
                self.board.device(key),
                self.timeout,
                provenance.environment(),
                cell.weight,
                cell.timed,
            )
            self._submitting = True  # from here on a signal may interrupt: this can take as long as importing torch
            try:
                self.executor.submit(job)
            finally:
                self._submitting = False

    def _ended(self, outcome: Outcome) -> None:
        """Take note of the end of a try."""
        key = outcome.key
        self._seconds[key] = outcome.seconds
        if outcome.state == "claimed":
            self._wait_elsewhere(key)
        elif outcome.state == "damaged":
            self._repair(key, outcome.damaged)
        elif outcome.state == "stopped":
            self.board.again(key)
        elif outcome.state == "ok":
            if not self._load(key, "ok"):
                self._failed(key, "failed", "the result vanished from the store, or was damaged there")
        else:
            self._failed(key, outcome.state, outcome.reason)

    def _wind_up(self) -> None:
        """Stop what runs, let it write its checkpoints, and kill what does not end."""
        deadline = time.monotonic() + getattr(self.executor, "grace", GRACE) + 1.0
        self.executor.stop()
        while self.board.running and time.monotonic() < deadline and self.interrupts < 2:
            for outcome in self.executor.wait(POLL_SECONDS):
                self._ended(outcome)
        for key in (*self.board.running, *self._elsewhere):
            self.board.again(key)

    # -------------------------------------------------------------------------------- what happens to one cell

    def _load(self, key: str, state: str) -> bool:
        """Mark a cell finished if the store has a sound result; what is damaged is moved aside."""
        try:
            result = self.store.result(key)
        except Damaged as error:
            self._discard(key, str(error))
            return False
        if result is None:
            return False
        cell = self.board.cells[key]
        self._seconds[key] = result["seconds"]
        if lines := outputs.record_lines(self.plan, cell, result):
            self._records[key] = outputs.packed(lines)
        self._environments[key] = sys.intern(json.dumps(result.get("provenance", {})))
        self.board.done(key, state)
        self._tell(Event(cell, state, seconds=result["seconds"]))
        return True

    def _failed(self, key: str, state: str, reason: str) -> None:
        skipped = self.board.fail(key, state, reason)
        for other in (key, *skipped):
            cell = self.board.cells[other]
            self._tell(Event(cell, self.board.state[other], self.board.reason[other], self._seconds.get(other)))

    def _repair(self, key: str, damaged: Mapping[str, str]) -> None:
        """Have damaged inputs computed again, and then the cell that found them."""
        for bad, why in damaged.items():
            lost = bad not in self.board.cells or self.board.state[bad] in FAILED
            if lost or self._damaged[bad] >= DAMAGE_LIMIT:
                label = self.board.cells[bad].label if bad in self.board.cells else bad
                self._failed(key, "failed", f"its input {label} cannot be used: {why}")
                return
        self.board.again(key)
        for bad, why in damaged.items():
            if self.board.state[bad] in DONE:  # else another cell has noticed before
                self._discard(bad, why)
                self.board.again(bad)

    def _discard(self, key: str, why: str) -> None:
        self._damaged[key] += 1
        with self._writing():
            self.store.discard(key)
        self._tell(Event(self.board.cells[key], "damaged", f"the stored result was damaged and moved aside: {why}"))

    def _wait_elsewhere(self, key: str) -> None:
        self.board.leave(key)
        self._elsewhere[key] = self.store.failure(key)

    def _look_elsewhere(self) -> None:
        """See what became of the cells that another runner has claimed."""
        for key, known in list(self._elsewhere.items()):
            if self.store.claimed(key):
                continue
            del self._elsewhere[key]
            self.store.look_again(key)
            if self._load(key, "cached"):
                continue
            failure = self.store.failure(key)
            if failure is not None and failure != known:
                self._failed(key, failure["state"], failure["reason"])
            else:
                self.board.again(key)

    # -------------------------------------------------------------------------------- telling and writing

    def progressed(self, progress: Progress) -> None:
        """Pass on what a running cell says."""
        self._tell(Event(self.board.cells[progress.key], "running", progress=progress))

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)

    def _write(self) -> None:
        """Bring records.jsonl, states.jsonl and environment.jsonl up to date."""
        begin = time.monotonic()
        board = self.board
        kept = (self._records[cell.key] for cell in self.plan.cells if cell.key in self._records)
        records = (line for lines in kept for line in outputs.unpacked(lines))
        rows = (
            outputs.state_line(cell, board.state[cell.key], board.reason[cell.key], self._seconds.get(cell.key))
            for cell in self.plan.cells
        )
        left = (outputs.state_line(cell, "skipped", cell.skip, None) for cell in self.plan.skipped)
        self._leave("records.jsonl", records)
        self._leave("states.jsonl", itertools.chain(rows, left))
        finished = (self._environments[cell.key] for cell in self.plan.cells if board.state[cell.key] in DONE)
        self._leave("environment.jsonl", outputs.environment_lines(finished))
        now = time.monotonic()
        self._write_at = now + max(WRITE_SECONDS, 20 * (now - begin))  # at most a twentieth of the time goes here

    def _leave(self, name: str, lines: Iterable[str]) -> None:
        """Write one of the files for people."""
        with self._writing():
            outputs.write_changed(self.store.root / name, lines)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise `UserError` where the store cannot be written: full disk, no right to do so."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the results folder {self.store.root} cannot be written: {error.strerror or error}",
                hint="finished results are kept; the same command goes on from there",
            ) from error

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as the wish to end; the second one ends everything at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def wish(signum: int, frame: Any) -> None:
            self.interrupts += 1
            if self.interrupts > 1:  # and the third one ends this process as it stands
                signal.signal(signum, signal.SIG_DFL)
            if self._submitting or self.interrupts > 1:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
