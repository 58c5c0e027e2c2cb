"""One trial: a run that is disturbed at random in some of eight ways, and then ends with the undisturbed records.

The number of a trial is its seed, so that one that fails can be repeated alone. What was done to it is in `done`.

    runner    kill -9 of the runner, while it starts or works
    worker    kill -9 of processes that compute cells
    server    kill -9 of the fork server
    full      no space on the disk, for as long as one run lasts, from a random moment on
    readonly  the store must not be written
    damage    finished artifacts with changed bytes, cut short, or removed, between runs or while one works
    clock     two runners that see each other's heartbeats alone, and a clock that jumps by hours
    two       two runners at once, one of them perhaps killed
    storm     one to five Ctrl-C at random moments, from the first moment on
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import fault_runner
import psutil
from campaign import PATIENCE, Campaign

HOURS = 3600
ANYWHERE = ("runner", "worker", "server", "damage", "clock", "two", "storm")
ON_A_DISK = ("full", "readonly")
"""Faults that need a small file system of their own."""
ROUGH = {"runner", "worker", "server", "full", "damage", "storm", "two"}
"""Faults after which a cell may have been begun twice."""


class Trial:
    """A store, a seed, and what is done to it. disk: a small file system for the store, where there is one."""

    def __init__(self, folder: Path, seed: int, disk: Path | None = None) -> None:
        self.chance, self.disk = random.Random(seed), disk
        self.campaign = Campaign(folder, disk / "store" if disk else None)
        self.store, self.mark = self.campaign.store, f"{folder}"
        self.cells = {cell.key: cell for cell in fault_runner.plan().cells}
        self.done: list[str] = []
        self.flipped: set[str] = set()

    # -------------------------------------------------------------------------------- the course of a trial

    def run(self) -> tuple[bytes, dict[str, str]]:
        """Disturb one to three runs, finish undisturbed, and return the records and the hash of every file."""
        kinds = self.chance.sample(ANYWHERE + (ON_A_DISK * 2 if self.disk else ()), 3)
        for kind in kinds[: self.chance.choice([1, 2, 2, 3])]:
            self.done.append(kind)
            getattr(self, kind)()
        records = self.campaign.finish()
        self._no_process_is_left()
        self.check()
        return records, hashes(self.store)

    def check(self) -> None:
        """Check that no two processes computed a cell at once, and what else should not have happened."""
        turns = self.campaign.turns()
        if not ROUGH & set(self.done):
            assert all(len(one) == 1 for one in turns.values()), turns
        aside = {path.name.rpartition("-")[0] for path in (self.store.root / "corrupt").glob("*")}
        assert self.flipped <= aside  # a changed byte is found by its hash, and kept for inspection
        assert "damage" in self.done or not aside
        assert not list(self.store.root.glob("claims/*"))

    def _start(self, **environment: str) -> subprocess.Popen:
        return self.campaign.start(FAULT_TRIAL=self.mark, **environment)

    def _end(self, *runners: subprocess.Popen, codes: tuple[int, ...] = (0, 1)) -> str:
        """Wait for the ends of runners, check how they ended, and return what they said."""
        said = ""
        for runner in runners:
            errors = runner.communicate(timeout=2 * PATIENCE)[1]
            assert runner.returncode in codes, f"{self.done}: exit code {runner.returncode}: {errors}"
            if runner.returncode != -signal.SIGKILL:  # then its fork server may complain that nobody talks to it
                assert "Traceback" not in errors, f"{self.done}: {errors}"
            said += errors
        return said

    def _sometime(self, runner: subprocess.Popen) -> None:
        """Wait for a random moment of a run: while it starts, or after some steps."""
        if self.chance.random() < 0.3:
            time.sleep(self.chance.uniform(0, 2.5))
        else:
            self.campaign.wait_for_steps(runner, self.chance.randint(1, 200))

    def _no_process_is_left(self) -> None:
        """Check that everything that this trial started ends, soon after the last runner at the latest."""
        deadline = time.monotonic() + PATIENCE
        while left := [process for process in psutil.process_iter() if self._is_ours(process)]:
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            time.sleep(0.1)

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.environ().get("FAULT_TRIAL") == self.mark and process.status() != psutil.STATUS_ZOMBIE
        return False

    # -------------------------------------------------------------------------------- the faults

    def runner(self) -> None:
        """Kill the runner."""
        runner = self._start()
        self._sometime(runner)
        runner.kill()
        self._end(runner, codes=(-signal.SIGKILL, 0, 1))

    def worker(self) -> None:
        """Kill some of the processes of cells."""
        runner = self._start()
        for _ in range(self.chance.randint(1, 4)):
            self.campaign.wait_for_steps(runner, self.chance.randint(1, 60))
            self.campaign.kill_newest_worker()
        self._end(runner)

    def server(self) -> None:
        """Kill the fork server: all cells end with it, the runner goes on with another one."""
        runner = self._start()
        self._sometime(runner)
        with suppress(psutil.Error):
            for process in psutil.Process(runner.pid).children():
                if "forkserver" in " ".join(process.cmdline()):
                    process.kill()
        self._end(runner)

    def two(self) -> None:
        """Have two runners share the work; half of the time one is killed, and the other one does it all."""
        both = [self._start()]
        time.sleep(self.chance.choice([0, self.chance.uniform(0, 1.5)]))
        both.append(self._start())
        if self.chance.random() < 0.5:
            victim = self.chance.choice(both)
            self._sometime(victim)
            victim.kill()
        self._end(*both, codes=(-signal.SIGKILL, 0))

    def clock(self) -> None:
        """Have two machines share the work; the clock that stamps their heartbeats jumps for and back."""
        both = [self._start(FAULT_MACHINE=name) for name in ("first", "second")]
        while any(runner.poll() is None for runner in both):
            time.sleep(self.chance.uniform(0.05, 0.5))
            jump = self.chance.choice([-5, -1, 1, 5]) * HOURS
            for claim in self.store.root.glob("claims/*"):
                with suppress(OSError):
                    os.utime(claim, (time.time() + jump,) * 2)
        self._end(*both, codes=(0,))

    def storm(self) -> None:
        """Press Ctrl-C once or several times, which reaches the runner and all that it started."""
        runner = self._start()
        self._sometime(runner)
        for _ in range(self.chance.randint(1, 5)):
            with suppress(ProcessLookupError):
                os.killpg(runner.pid, signal.SIGINT)
            time.sleep(self.chance.choice([0, self.chance.uniform(0, 0.5)]))
        self._end(runner, codes=(0, 130, -signal.SIGINT))

    def full(self) -> None:
        """Fill the disk at a random moment until the runner has ended."""
        assert self.disk is not None
        runner = self._start()
        self._sometime(runner)
        ballast = self.disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            while runner.poll() is None:
                with suppress(OSError):
                    while True:
                        file.write(bytes(4096))
                time.sleep(0.02)
        self._end(runner, codes=(0, 1, 2))
        ballast.unlink()

    def readonly(self) -> None:
        """Start a run on a store that can only be read."""
        self._no_process_is_left()  # else it is busy
        subprocess.run(["mount", "-o", "remount,ro", str(self.disk)], check=True)
        runner = self._start()
        said = self._end(runner, codes=(0, 1, 2))
        subprocess.run(["mount", "-o", "remount,rw", str(self.disk)], check=True)
        if runner.returncode == 2:
            assert re.search(r"^ddbench: the results folder .* cannot be written: Read-only file system", said, re.M)
            assert len([line for line in said.splitlines() if line.startswith("ddbench: ")]) == 1

    def damage(self) -> None:
        """Spoil finished cells: between two runs by any damage, else by one that the next look at them finds."""
        runner = self._start()
        self._sometime(runner)
        if self.chance.random() < 0.5:
            for _ in range(self.chance.randint(1, 3)):
                self._spoil(self.chance.choice(["cut", "remove", "garble"]))
                self.campaign.wait_for_steps(runner, self.chance.randint(1, 30))
        else:
            runner.kill()
        self._end(runner, codes=(-signal.SIGKILL, 0, 1))
        self._no_process_is_left()
        for _ in range(self.chance.randint(1, 3)):
            self._spoil(self.chance.choice(["cut", "remove", "garble", "flip"]))

    def _spoil(self, how: str) -> None:
        """Damage a file of a finished cell."""
        found = sorted(path for key in self.cells for path in self.store.cell(key).glob("*") if path.name != "log.txt")
        if not found:
            return
        path = self.chance.choice(found)
        key = path.parent.name
        try:
            content = bytearray(path.read_bytes())
            if how == "flip" and len(content):
                if path.name != "result.json" and not self._need_again(key):
                    return  # no cell would ever read it
                content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            elif how == "garble":
                path = path.with_name("result.json")
                content = bytearray(self.chance.randbytes(50))
            else:
                del content[self.chance.randrange(max(1, len(content))) :]
            if how == "remove":
                path.unlink()
            else:
                path.write_bytes(content)
        except FileNotFoundError:  # a runner has set it aside meanwhile
            return

    def _need_again(self, key: str) -> bool:
        """Have cells computed again that read this one, which is when its files are hashed; are there any?"""
        users = [cell.key for cell in self.cells.values() if key in cell.inputs.values()]
        for user in users:
            self.store.discard(user)
        if users:
            self.flipped.add(key)
        return bool(users)


def hashes(store) -> dict[str, str]:
    """Return the sha256 of every file of every finished cell. Left out: result.json, which says when and how long."""
    found = {}
    for path in sorted(store.root.glob("cells/*/*/result.json")):
        for name, entry in json.loads(path.read_text())["files"].items():
            found[f"{path.parent.name}/{name}"] = entry["sha256"]
    return found
