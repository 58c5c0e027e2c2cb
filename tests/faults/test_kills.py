"""kill -9 of runners and workers at random moments, and Ctrl-C: the next run ends with the undisturbed records.

Twenty trials. The cells write a journal of their steps outside the store; it shows that a restart lost no more than
the running block of steps, and that no two processes ever worked on one cell at the same time.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import fault_runner
import pytest

from bench.run import Store

SCRIPT = Path(fault_runner.__file__)
KILLED_RUNNERS, KILLED_WORKERS = 6, 14


class Campaign:
    """One store, its journal, and the runners started on it."""

    def __init__(self, folder: Path) -> None:
        self.store, self.journal = Store(folder / "store"), folder / "journal"
        self.journal.mkdir(parents=True)

    def start(self, *words: str) -> subprocess.Popen:
        environment = {**os.environ, "FAKE_JOURNAL": str(self.journal), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), str(self.store.root), *words],
            env=environment,
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
        deadline = time.monotonic() + 60
        while len(self.entries()) < goal:
            if runner.poll() is not None:
                return False
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return True

    def kill_newest_worker(self) -> bool:
        """Kill the process that did the last step; return whether it was there."""
        newest = max(self.journal.iterdir(), key=lambda path: path.stat().st_mtime_ns).name
        workers = [process for name, process, _ in self.entries() if name == newest]
        if not workers:  # the file was made this moment and holds no line yet
            return False
        try:
            os.kill(workers[-1], signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def check_journal(self, block: int = fault_runner.BLOCK) -> None:
        """Check that processes took turns and that each went on at most `block` steps before the last one's end."""
        for _, lines in itertools.groupby(self.entries(), key=lambda line: line[0]):
            turns = [[step for _, _, step in group] for _, group in itertools.groupby(lines, key=lambda line: line[1])]
            for turn in turns:
                assert turn == list(range(turn[0], turn[-1] + 1))
            for before, after in itertools.pairwise(turns):
                assert before[-1] - block < after[0] <= before[-1] + 1
            assert turns[0][0] == 1
            assert turns[-1][-1] == fault_runner.STEPS

    def finish(self) -> bytes:
        """Run to the end; return the records after checking every stored file."""
        runner = self.start()
        errors = runner.communicate(timeout=120)[1]
        assert runner.returncode == 0, errors
        for cell in fault_runner.plan().cells:
            self.store.verified(cell.key)
        assert not (self.store.root / "corrupt").exists()
        return (self.store.root / "records.jsonl").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    return Campaign(tmp_path_factory.mktemp("undisturbed")).finish()


def test_killed_runners(tmp_path, undisturbed):
    moments, kills = random.Random(1), 0
    for index in itertools.count():
        campaign = Campaign(tmp_path / str(index))
        while kills < KILLED_RUNNERS:
            runner = campaign.start()
            if moments.random() < 0.2:
                time.sleep(moments.uniform(0, 1.5))  # while it starts
            elif not campaign.wait_for_steps(runner, moments.randint(1, 40)):
                assert runner.communicate()[0] is None
                break
            runner.kill()
            runner.communicate()
            kills += runner.returncode == -signal.SIGKILL
        assert campaign.finish() == undisturbed
        campaign.check_journal()
        if kills == KILLED_RUNNERS:
            return


def test_killed_workers(tmp_path, undisturbed):
    moments, kills = random.Random(2), 0
    campaign = Campaign(tmp_path)
    while kills < KILLED_WORKERS:
        runner = campaign.start()
        for _ in range(min(7, KILLED_WORKERS - kills)):
            if not campaign.wait_for_steps(runner, moments.randint(1, 12)):
                break
            kills += campaign.kill_newest_worker()
        errors = runner.communicate(timeout=120)[1]
        assert "killed (signal 9)" in errors
        assert runner.returncode == 1
    assert campaign.finish() == undisturbed
    campaign.check_journal()


def test_ctrl_c_ends_soon_and_loses_nothing(tmp_path, undisturbed):
    campaign = Campaign(tmp_path)
    runner = campaign.start()
    assert campaign.wait_for_steps(runner, 15)
    begin = time.monotonic()
    os.killpg(runner.pid, signal.SIGINT)  # as a terminal does: to the runner, its fork server and its workers
    errors = runner.communicate(timeout=30)[1]
    assert time.monotonic() - begin < 15  # a second on a machine that has nothing else to do
    assert runner.returncode == 130
    assert errors.endswith("stopped\n")
    assert "Traceback" not in errors
    assert campaign.finish() == undisturbed
    campaign.check_journal(block=1)  # asked to stop, each cell wrote a last checkpoint


def test_ctrl_c_while_starting(tmp_path):
    campaign = Campaign(tmp_path)
    runner = campaign.start()
    deadline = time.monotonic() + 30
    while not (campaign.store.root / "suite.json").exists():  # from here on the runner listens
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)
    begin = time.monotonic()
    os.killpg(runner.pid, signal.SIGINT)
    errors = runner.communicate(timeout=30)[1]
    assert time.monotonic() - begin < 15  # a second on a machine that has nothing else to do
    assert runner.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize(("times", "seconds"), [(1, 15.0), (2, 10.0)])
def test_ctrl_c_with_a_cell_that_does_not_listen(tmp_path, times, seconds):
    """Such a cell is killed after a moment, and at once on the second Ctrl-C; nobody stays behind."""
    campaign = Campaign(tmp_path)
    runner = campaign.start("stubborn")
    assert campaign.wait_for_steps(runner)
    worker = campaign.entries()[0][1]
    begin = time.monotonic()
    for _ in range(times):
        os.killpg(runner.pid, signal.SIGINT)
        time.sleep(0.3)
    errors = runner.communicate(timeout=30)[1]
    assert time.monotonic() - begin < seconds
    assert runner.returncode == 130
    assert "Traceback" not in errors
    deadline = time.monotonic() + 5
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}").exists()


def test_two_runners_on_one_store_that_are_killed_in_turn(tmp_path, undisturbed):
    campaign, moments = Campaign(tmp_path), random.Random(3)
    first, second = campaign.start(), campaign.start()
    for runner in (first, second):
        campaign.wait_for_steps(runner, moments.randint(5, 30))
        runner.kill()
        runner.communicate()
    both = [campaign.start(), campaign.start()]
    for runner in both:
        errors = runner.communicate(timeout=120)[1]
        assert runner.returncode == 0, errors
    assert (campaign.store.root / "records.jsonl").read_bytes() == undisturbed
    assert campaign.finish() == undisturbed
    campaign.check_journal()
