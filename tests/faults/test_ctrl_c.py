"""Ctrl-C storms on the command line itself: never a traceback, and in the end the records of an undisturbed run.

One to five times, at random moments: while Python modules load, while the suite is read and planned, while cells run,
while the report is written. DDBENCH_FAULT_TRIALS says how many storms over whole runs there are, a tenth of it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from campaign import PATIENCE

ROOT = Path(__file__).parents[2]
STORMS = int(os.environ.get("DDBENCH_FAULT_TRIALS", "0")) // 10
NETWORK = "convnet-in-w4-d2"
SUITE = {
    "title": "tiny",
    "grid": {"datasets": ["digits"], "methods": ["random"], "ipc": [1], "seeds": 2, "network": NETWORK},
    "evaluation": {"network": NETWORK, "recipe": {"base": "review", "epochs": 2}, "replicates": 2},
    "evaluators": ["accuracy"],
}
READY = "import sys, signal, bench; print('up', flush=True); import bench.__main__; bench.__main__.main()"
"""Says so as soon as Python itself is there: what Ctrl-C does before that is Python's own."""


@pytest.fixture(autouse=True)
def sensitive():
    """Whoever runs the tests in the background may ignore Ctrl-C; what is started here would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    file = tmp_path_factory.mktemp("suite") / "tiny.yaml"
    file.write_text(yaml.safe_dump(SUITE))
    return file


def start(suite, out, *words):
    command = [sys.executable, "-c", READY, "run", str(suite), "--out", str(out), *words]
    runner = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert runner.stdout.readline() == "up\n"
    return runner


def storm(runner, chance, longest):
    """Send SIGINT at random moments of the first `longest` seconds; return the exit code."""
    time.sleep(chance.choice([0.3, 1]) * chance.uniform(0, longest))
    for _ in range(chance.randint(1, 5)):
        with suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGINT)
        time.sleep(chance.choice([0, chance.uniform(0, 0.5)]))
    said = "".join(runner.communicate(timeout=PATIENCE))
    assert runner.returncode in (0, 130, -signal.SIGINT), said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    if runner.returncode == 130:
        assert said.endswith("ddbench: stopped; finished results are kept, the same command goes on from here\n")
    return runner.returncode


def test_ctrl_c_while_starting_and_planning(tmp_path, suite):
    chance = random.Random(0)
    codes = [storm(start(suite, tmp_path / "out", "--dry-run"), chance, 0.6) for _ in range(6)]
    assert set(codes) - {0}


def test_ctrl_c_is_not_lost_where_python_drops_exceptions():
    """In the callback of a weak reference, as importlib has one for every module."""
    code = (
        "import signal, time, weakref\n"
        "import bench.cli\n"
        "class Thing: pass\n"
        "def app():\n"
        "    thing = Thing()\n"
        "    reference = weakref.ref(thing, lambda _: [signal.raise_signal(signal.SIGINT), time.sleep(0)])\n"
        "    del thing\n"
        "    time.sleep(60)\n"
        "bench.cli.app = app\n"
        "bench.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 130
    assert done.stderr == "ddbench: stopped; finished results are kept, the same command goes on from here\n"


def test_ctrl_c_that_is_ignored_stays_ignored(tmp_path, suite):
    """As in a job in the background of a shell without job control."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        runner = start(suite, tmp_path / "out", "--dry-run")
    finally:
        signal.signal(signal.SIGINT, before)
    os.killpg(runner.pid, signal.SIGINT)
    assert runner.wait(PATIENCE) == 0


@pytest.mark.skipif(STORMS == 0, reason="set DDBENCH_FAULT_TRIALS=200: minutes")
def test_storms_over_whole_runs(tmp_path, suite):
    def whole(out):
        runner = start(suite, out)
        said = runner.communicate(timeout=4 * PATIENCE)
        assert runner.returncode == 0, said
        return (out / "records.jsonl").read_bytes()

    begin = time.monotonic()
    undisturbed, longest = whole(tmp_path / "undisturbed"), time.monotonic() - begin
    for seed in range(STORMS):
        chance, out = random.Random(seed), tmp_path / str(seed)
        for _ in range(chance.randint(1, 3)):
            storm(start(suite, out), chance, longest)
        assert whole(out) == undisturbed, seed
