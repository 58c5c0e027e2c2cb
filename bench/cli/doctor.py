"""`ddbench doctor`: what this machine has of what ddbench needs."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from bench.cli import options

NAME = "doctor"

PACKAGES = (
    *("torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib"),
    *("fast-pytorch-kmeans", "pydantic", "typer", "rich", "safetensors"),
)


def command(as_json: options.AsJson = False) -> None:
    """Check torch, devices, packages and data; say how to mend what is missing."""
    import json

    import torch

    import bench.data
    import bench.tv
    from bench import __version__
    from bench.cli import screen

    facts = {
        "ddbench": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "devices": ", ".join(_devices()),
        "torch threads": torch.get_num_threads(),
        "torchvision state": bench.tv.state(),
        **{name: _version(name) for name in PACKAGES},
        **{f"data: {name}": _found(name) for name in bench.data.names()},
    }
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        screen.print_facts(facts)


def _devices() -> list[str]:
    import torch

    found = ["cpu"]
    found += [f"cuda:{k} ({torch.cuda.get_device_name(k)})" for k in range(torch.cuda.device_count())]
    return found + (["mps"] if torch.backends.mps.is_available() else [])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing: pip install -c constraints.txt -e ."


def _found(name: str) -> str:
    import bench.data

    where = bench.data.locate(name)
    return str(where) if where else f"not here (ddbench data info {name})"
