"""`ddbench list`: the names a suite may use."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import options
from bench.errors import UserError
from bench.registry import EVALUATORS, METHODS

NAME = "list"


class What(enum.StrEnum):
    """Kinds of names."""

    methods = "methods"
    datasets = "datasets"
    networks = "networks"
    evaluators = "evaluators"
    suites = "suites"
    presets = "presets"


def command(
    what: Annotated[What, typer.Argument(help="What to list.", show_default=False)], as_json: options.AsJson = False
) -> None:
    """List methods, datasets, networks, evaluators, shipped suites, or the presets of the suites."""
    rows = LISTS[what]()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from bench.cli import screen

    screen.print_facts(rows)


def _told(names: Iterable[str], title: Callable[[str], str]) -> dict[str, str]:
    """Return the titles by name; what is wrong with a plug-in stands in its line and harms no other."""

    def line(name: str) -> str:
        try:
            return title(name)
        except UserError as error:
            return f"({error})"

    return {name: line(name) for name in names}


def _methods() -> dict[str, str]:
    return _told(METHODS.names(), lambda name: METHODS.get(name).title)


def _evaluators() -> dict[str, str]:
    return _told(EVALUATORS.names(), lambda name: EVALUATORS.get(name).title)


def _datasets() -> dict[str, str]:
    import bench.data

    return {name: bench.data.info(name).title for name in bench.data.names()}


def _networks() -> dict[str, str]:
    from bench.nets import spec

    return _told(spec.names(), lambda name: spec.describe(name)["title"])


def shipped_suites() -> list[Path]:
    """Return the suite files that come with ddbench."""
    import suites

    return sorted(file for folder in suites.__path__ for file in Path(folder).glob("*.yaml"))


def _suites() -> dict[str, str]:
    import bench.suite

    return {str(_short(file)): bench.suite.load(file).title for file in shipped_suites()}


def _presets() -> dict[str, str]:
    import bench.suite

    return {file.stem: ", ".join(bench.suite.load(file).presets) or "none" for file in shipped_suites()}


def _short(file: Path) -> Path:
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


LISTS: dict[What, Callable[[], dict[str, str]]] = {
    What.methods: _methods,
    What.datasets: _datasets,
    What.networks: _networks,
    What.evaluators: _evaluators,
    What.suites: _suites,
    What.presets: _presets,
}
