"""Freed memory stays in the process when told so, and goes back when told so."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
from bench import heap
from bench.profile import MIB, resident_mib
assert heap.keep() if sys.argv[1] == "keep" else heap.give_back()
before = resident_mib()
block = torch.ones(100 * MIB // 4)
del block
held = resident_mib() - before
heap.release()
print(round(held), round(resident_mib() - before))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("mode", ["keep", "give_back"])
def test_freed_blocks_are_kept_or_given_back(mode):
    program = [sys.executable, "-c", PROGRAM, mode]
    held, released = map(int, subprocess.run(program, check=True, capture_output=True, text=True).stdout.split())
    assert (held >= 95) == (mode == "keep")
    assert released <= 10
