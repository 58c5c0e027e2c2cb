"""One store under attack: starts runners on it and knows from a journal outside of it which step was done by whom."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fault_runner

from bench.run import Store

SCRIPT = Path(fault_runner.__file__)
PATIENCE = 120.0
"""Seconds that anything may take on a machine with much else to do."""


class Campaign:
    """One store, its journal, and the runners started on it."""

    def __init__(self, folder: Path, store: Path | None = None) -> None:
        self.store, self.journal = Store(store or folder / "store"), folder / "journal"
        self.journal.mkdir(parents=True)

    def start(self, *words: str, **environment: str) -> subprocess.Popen:
        environment = {**os.environ, "FAKE_JOURNAL": str(self.journal), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), str(self.store.root), *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def entries(self) -> list[tuple[str, int, int]]:
        """Return (cell, process, step) of every whole line written until now."""
        lines = [(p.name, line.split()) for p in sorted(self.journal.iterdir()) for line in p.read_text().splitlines()]
        return [(name, int(words[0]), int(words[1])) for name, words in lines if len(words) == 2]

    def wait_for_steps(self, runner: subprocess.Popen, more: int = 1) -> bool:
        """Wait until `more` further steps were done; return False where the runner ended before."""
        goal = len(self.entries()) + more
        deadline = time.monotonic() + PATIENCE
        while len(self.entries()) < goal:
            if runner.poll() is not None:
                return False
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return True

    def kill_newest_worker(self) -> bool:
        """Kill the process that did the last step; return whether it was there, in the middle of its work."""
        newest = max(self.journal.iterdir(), key=lambda path: path.stat().st_mtime_ns, default=Path("none")).name
        workers = [(process, step) for name, process, step in self.entries() if name == newest]
        if not workers or workers[-1][1] > fault_runner.STEPS - fault_runner.BLOCK:
            return False
        try:
            os.kill(workers[-1][0], signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def turns(self) -> dict[str, list[tuple[int, list[int]]]]:
        """Return for each cell the processes that worked on it, in turn, with the steps that each did.

        Fails where processes worked on it at the same time, or one left out a step.
        """
        found = {}
        for name, lines in itertools.groupby(self.entries(), key=lambda line: line[0]):
            groups = itertools.groupby(lines, key=lambda line: line[1])
            found[name] = [(process, [step for _, _, step in group]) for process, group in groups]
            processes = [process for process, _ in found[name]]
            assert len(set(processes)) == len(processes), f"{name}: {found[name]}"
            for _, steps in found[name]:
                assert steps == list(range(steps[0], steps[-1] + 1))
        return found

    def check_journal(self, block: int = fault_runner.BLOCK) -> None:
        """Check that processes took turns and that each went on at most `block` steps before the last one's end."""
        for turns in self.turns().values():
            steps = [steps for _, steps in turns]
            for before, after in itertools.pairwise(steps):
                assert before[-1] - block < after[0] <= before[-1] + 1
            assert steps[0][0] == 1
            assert steps[-1][-1] == fault_runner.STEPS

    def finish(self) -> bytes:
        """Run to the end; return the records after checking every stored file."""
        runner = self.start()
        errors = runner.communicate(timeout=2 * PATIENCE)[1]
        assert runner.returncode == 0, errors
        for cell in fault_runner.plan().cells:
            self.store.verified(cell.key)
        return (self.store.root / "records.jsonl").read_bytes()
