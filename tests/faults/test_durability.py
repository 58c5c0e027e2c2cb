"""Random disturbances of every kind: afterwards records and artifacts are those of an undisturbed run, bit for bit.

Four trials, or as many as DDBENCH_FAULT_TRIALS says; trial 17 alone:

    DDBENCH_FAULT_TRIALS=18 pytest "tests/faults/test_durability.py::test_trial[17]"
"""

from __future__ import annotations

import os
import random
import subprocess
import time

import fault_driver
import fault_runner
import pytest
from campaign import PATIENCE, Campaign

TRIALS = int(os.environ.get("DDBENCH_FAULT_TRIALS", "0"))
SEEDS = range(TRIALS) if TRIALS else (1, 6, 24, 29)  # one disturbance of each kind


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    campaign = Campaign(tmp_path_factory.mktemp("undisturbed"))
    records = campaign.finish()
    assert {len(turns) for turns in campaign.turns().values()} == {1}
    return records, fault_driver.hashes(campaign.store)


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB, or None where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True).returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_trial(tmp_path, disk, undisturbed, seed):
    trial = fault_driver.Trial(tmp_path, seed, disk if seed % 2 else None)
    found = trial.run()
    print(f"trial {seed}: {' '.join(trial.done)}")
    assert found == undisturbed, trial.done


@pytest.mark.parametrize("locks", [True, False], ids=["one machine", "two machines without common locks"])
@pytest.mark.parametrize("seed", range(max(1, TRIALS // 20)))
def test_two_runners_compute_every_cell_once(tmp_path, undisturbed, seed, locks):
    """Every step of every cell stands in the journal once, done by one process."""
    campaign, chance = Campaign(tmp_path), random.Random(seed)
    both = []
    for machine in ("first", "second"):
        both.append(campaign.start(**({} if locks else {"FAULT_MACHINE": machine})))
        time.sleep(chance.choice([0, chance.uniform(0, 2)]))
    for runner in both:
        errors = runner.communicate(timeout=4 * PATIENCE)[1]
        assert runner.returncode == 0, errors
    assert (campaign.store.root / "records.jsonl").read_bytes() == undisturbed[0]
    steps = list(range(1, fault_runner.STEPS + 1))
    assert {name: [done for _, done in turns] for name, turns in campaign.turns().items()} == {
        cell.config["params"]["name"]: [steps] for cell in fault_runner.plan().cells[:8]
    }
    assert fault_driver.hashes(campaign.store) == undisturbed[1]
