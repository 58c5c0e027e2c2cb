"""`ddbench describe`: what a name means, where it comes from, and its parameters."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli import options
from bench.errors import UserError, nearest
from bench.registry import EVALUATORS, METHODS

if TYPE_CHECKING:
    from bench.api import DatasetInfo, Params

NAME = "describe"


def command(
    name: Annotated[str, typer.Argument(help="A method, evaluator, dataset or network.", show_default=False)],
    as_json: options.AsJson = False,
) -> None:
    """Describe a method, evaluator, dataset or network: citation, parameters with defaults and units, presets."""
    facts, parameters, presets = _find(name)
    if as_json:
        print(json.dumps({**facts, "parameters": parameters, "presets": presets}, indent=1, default=str))
        return
    from bench.cli import screen

    screen.print_facts(facts)
    screen.print_rows("parameters", parameters)
    screen.print_rows("presets (only what differs from the defaults)", presets)


def _find(name: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    import bench.data
    from bench.nets import spec

    if name in METHODS.names():
        method = METHODS.get(name)
        return _facts(method), _parameters(method.Params), _presets(method)
    if name in EVALUATORS.names():
        evaluator = EVALUATORS.get(name)
        return _facts(evaluator), _parameters(evaluator.Params), []
    if name in bench.data.names():
        return bench.data.describe(name), [], []
    if name in spec.names():
        return spec.describe(name), [], []
    known = [*METHODS.names(), *EVALUATORS.names(), *bench.data.names(), *spec.names()]
    raise UserError(f"nothing is called {name!r}", hint=nearest(name, known))


def _facts(thing: Any) -> dict[str, Any]:
    return {
        "title": thing.title,
        "citation": thing.citation,
        "what": inspect.cleandoc(inspect.getdoc(thing) or ""),
        "version": thing.version,
    }


def _parameters(params: type[Params]) -> list[dict[str, Any]]:
    rows = []
    for field, info in params.model_fields.items():
        extra: dict[str, Any] = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        rows.append(
            {
                "name": field,
                "default": info.get_default(call_default_factory=True),
                "unit": extra.get("unit", ""),
                "meaning": info.description or "",
                "source": extra.get("source", ""),
            }
        )
    return rows


def _presets(method: Any) -> list[dict[str, Any]]:
    import bench.data

    rows = []
    for name in bench.data.names():
        info: DatasetInfo = bench.data.info(name)
        if not info.complete:
            continue
        for ipc in (1, 10, 50):
            preset = method.preset(info, ipc)
            if preset.source is not None:
                values = ", ".join(f"{key}={value}" for key, value in preset.params.items())
                rows.append({"dataset": name, "ipc": ipc, "values": values or "defaults", "source": preset.source})
    return rows
