"""kill -9 of runners and workers at random moments, and Ctrl-C: the next run ends with the undisturbed records.

Twenty trials. The cells write a journal of their steps outside the store; it shows that a restart lost no more than
the running block of steps, and that no two processes ever worked on one cell at the same time.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
from campaign import PATIENCE, Campaign

KILLED_RUNNERS, KILLED_WORKERS = 6, 14


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    return Campaign(tmp_path_factory.mktemp("undisturbed")).finish()


def finish(campaign: Campaign) -> bytes:
    """Run to the end and return the records; kills damage nothing."""
    records = campaign.finish()
    assert not (campaign.store.root / "corrupt").exists()
    return records


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
        assert finish(campaign) == undisturbed
        campaign.check_journal()
        if kills == KILLED_RUNNERS:
            return


def test_killed_workers(tmp_path, undisturbed):
    moments, kills = random.Random(2), 0
    campaign = Campaign(tmp_path)
    while kills < KILLED_WORKERS:
        runner, before = campaign.start(), kills
        for _ in range(min(7, KILLED_WORKERS - kills)):
            if not campaign.wait_for_steps(runner, moments.randint(1, 12)):
                break
            kills += campaign.kill_newest_worker()
        errors = runner.communicate(timeout=2 * PATIENCE)[1]
        assert ("killed (signal 9)" in errors) == (kills > before)
        assert runner.returncode == (kills > before), errors
    assert finish(campaign) == undisturbed
    campaign.check_journal()


def test_ctrl_c_ends_soon_and_loses_nothing(tmp_path, undisturbed):
    campaign = Campaign(tmp_path)
    runner = campaign.start(FAULT_GRACE=str(PATIENCE))
    assert campaign.wait_for_steps(runner, 15)
    os.killpg(runner.pid, signal.SIGINT)  # as a terminal does: to the runner, its fork server and its workers
    errors = runner.communicate(timeout=PATIENCE)[1]
    assert runner.returncode == 130
    assert errors.endswith("stopped; finished results are kept, the same command goes on from here\n")
    assert "Traceback" not in errors
    assert finish(campaign) == undisturbed
    campaign.check_journal(block=1)  # asked to stop, each cell wrote a last checkpoint


def test_ctrl_c_while_starting(tmp_path):
    campaign = Campaign(tmp_path)
    runner = campaign.start()
    deadline = time.monotonic() + PATIENCE
    while not (campaign.store.root / "suite.json").exists():  # from here on the runner listens
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(runner.pid, signal.SIGINT)
    errors = runner.communicate(timeout=PATIENCE)[1]
    assert runner.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize(("times", "grace"), [(1, 2), (2, 1000)])
def test_ctrl_c_with_a_cell_that_does_not_listen(tmp_path, times, grace):
    """Such a cell is killed after a moment, and at once on the second Ctrl-C; nobody stays behind."""
    campaign = Campaign(tmp_path)
    runner = campaign.start("stubborn", FAULT_GRACE=str(grace))
    assert campaign.wait_for_steps(runner)
    worker = campaign.entries()[0][1]
    for _ in range(times):
        os.killpg(runner.pid, signal.SIGINT)
        time.sleep(0.3)
    errors = runner.communicate(timeout=PATIENCE)[1]
    assert runner.returncode == 130
    assert "Traceback" not in errors
    deadline = time.monotonic() + PATIENCE
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
        errors = runner.communicate(timeout=2 * PATIENCE)[1]
        assert runner.returncode == 0, errors
    assert (campaign.store.root / "records.jsonl").read_bytes() == undisturbed
    assert finish(campaign) == undisturbed
    campaign.check_journal()
