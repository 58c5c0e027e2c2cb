"""How to make a number again: the suite of a run as a file, and the command that selects one place of it.

`suite.json` holds the suite with its preset laid over it. Written back as a suite file with that preset, it plans the
same cells, whatever has become of the file the run was started with.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UserError
from bench.suite import only
from bench.suite.load import NO_PRESET
from bench.suite.spec import SuiteSpec


def suite_text(out: Path) -> str:
    """Return the suite of a results folder as YAML, with its preset as the default one."""
    saved = json.loads((out / "suite.json").read_text(encoding="utf-8"))
    suite = {name: saved[name] for name in SuiteSpec.model_fields if name in saved}
    if saved["preset"] != NO_PRESET:
        suite |= {"presets": {saved["preset"]: {}}, "default_preset": saved["preset"]}
    head = f"# The suite of a run with the preset {json.dumps(saved['preset'])} laid over it.\n"
    return head + yaml.safe_dump(suite, sort_keys=False, allow_unicode=True, width=120)


def command(file: str, preset: str, place: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the command that computes a place of a suite again, and the keys that it could not be narrowed by.

    place: values of dataset, label and ipc. A name that holds commas or bars cannot stand in `--only`.
    """
    clauses: list[str] = []
    left: list[str] = []
    for key, value in place.items():
        clause = f"{key}={only.as_text(value) if value is None else value}"
        if _selects(clause, key, value):
            clauses.append(clause)
        else:
            left.append(key)
    parts = ["ddbench", "run", file, *(["--preset", preset] if preset != NO_PRESET else [])]
    parts += ["--only", ",".join(clauses)] if clauses else []
    return shlex.join(parts), left


def _selects(clause: str, key: str, value: Any) -> bool:
    """Return whether a clause means this value and no other."""
    try:
        return only.parse(clause).clauses == {key: frozenset({only.as_text(value)})}
    except UserError:
        return False
