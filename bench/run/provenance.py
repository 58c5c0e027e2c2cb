"""Where a number comes from: commit, versions, hardware. No host name, no user name, no paths.

The runner collects what needs no torch once and hands it to every cell; the process that computes adds its device.
"""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import bench

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "safetensors")


@cache
def environment() -> dict[str, Any]:
    """Return what is known without torch: ddbench and its commit, Python, packages, processor, cores."""
    return {
        "ddbench": bench.__version__,
        **commit(Path(bench.__file__).parent),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cpu": processor(),
        "cores": usable_cores(),
    }


def commit(folder: Path) -> dict[str, Any]:
    """Return the git commit of the source and whether it was changed; empty for an installed package."""
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", "api.py"], capture_output=True, timeout=10)
        if tracked.returncode:  # installed inside somebody else's repository
            return {}
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": head.stdout.strip(), "dirty": bool(status.stdout.strip())}


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def of_device(device: str) -> dict[str, Any]:
    """Return the device of a computation: its kind and, for a GPU, its model and the CUDA version.

    Not which of several GPUs it was: the same model is the same hardware, and gives the same files.
    """
    import torch

    facts: dict[str, Any] = {"device": device.partition(":")[0], "threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
