"""Suite file -> `Suite`: read, lay the preset over it, check everything, and report all mistakes together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import UserError, nearest
from bench.suite import check, problems, resolve, yaml
from bench.suite.problems import Problems
from bench.suite.resolve import Chosen, Left, Variant
from bench.suite.spec import SHAPES, SuiteSpec

NO_PRESET = "default"
"""Name of the preset of a suite that defines none."""


@dataclass(frozen=True)
class Suite:
    """A checked suite with one preset laid over it.

    presets: names of all its presets. tree: the merged file with places. variants: what is distilled, but for the
    seed. evaluators: what is measured.
    """

    path: Path
    preset: str
    presets: tuple[str, ...]
    spec: SuiteSpec
    tree: yaml.Node
    variants: tuple[Variant, ...]
    evaluators: tuple[Chosen, ...]
    left: tuple[Left, ...] = ()

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def title(self) -> str:
        """The title that stands over tables."""
        return self.spec.title or self.name

    def where(self, keys: yaml.KeyPath) -> str:
        """Return `file:line: key.path` of a value, for errors."""
        return _where(self.path, self.tree, keys)

    def resolved(self) -> dict[str, Any]:
        """Return the suite with its preset as plain JSON values."""
        return {
            "name": self.name,
            "preset": self.preset,
            "presets": list(self.presets),
            **self.spec.model_dump(mode="json"),
        }


def load(path: Path | str, preset: str | None = None) -> Suite:
    """Read and check a suite file with one of its presets (default: the one it names).

    Raises `UserError`, or `SuiteErrors` holding several; each names file, line and key.
    """
    path = Path(path)
    if not path.exists():
        beside = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"there is no suite file {path}", hint=nearest(path.name, beside) if beside else None)
    return _check(*_lay(yaml.read(path), preset, path), path)


def from_values(values: Mapping[str, Any], name: str, preset: str = NO_PRESET) -> Suite:
    """Return the checked suite of plain values that stand in no file. Raises as `load`; errors say `name` and key.

    preset: what the tables say the numbers are, for values that were taken from a preset.
    """
    return _check(yaml.of(values), preset, (), Path(name))


def _check(tree: yaml.Node, preset: str, presets: tuple[str, ...], path: Path) -> Suite:
    """Return the suite of a tree. Raises all its mistakes together."""
    found = Problems(lambda keys: _where(path, tree, keys))
    tree, spec = _check_shape(tree, path, found)
    if spec is None:
        found.raise_all()
    assert spec is not None  # otherwise there were errors
    whole = len(found) == 0
    infos = check.datasets(spec, found)
    rows = resolve.rows(spec, found)
    evaluators = resolve.evaluators(spec, found)
    check.references(spec, infos, rows, found)
    check.recipes(spec, found)
    if whole:  # a list from which a wrong value was taken may be empty now
        check.lists(spec, found)
    variants, left = resolve.variants(spec, infos, rows, found) if check.reasonable(spec, found) else ([], [])
    found.raise_all()
    return Suite(path, preset, presets, spec, tree, tuple(variants), evaluators, tuple(left))


def _where(path: Path, tree: yaml.Node, keys: yaml.KeyPath) -> str:
    found, place = tree.find(keys)
    start = f"{path}:{place.line}" if place.line else str(path)
    return f"{start}: {yaml.dotted(found)}" if found else start


def _lay(tree: yaml.Node, preset: str | None, path: Path) -> tuple[yaml.Node, str, tuple[str, ...]]:
    """Return the file with a preset laid over it, the preset's name, and the names of all."""
    if not isinstance(tree.content, dict):
        raise UserError("a suite must be a mapping with title, grid and evaluators", where=_where(path, tree, ()))
    presets = tree.content.get("presets", yaml.Node({}, tree.place))
    if not isinstance(presets.content, dict):
        raise UserError("must be a mapping from names to presets", where=_where(path, tree, ("presets",)))
    for name, node in presets.content.items():
        if not isinstance(node.content, dict):
            where = _where(path, tree, ("presets", name))
            raise UserError("a preset must be a mapping of what it changes", where=where)
    names = tuple(presets.content)
    default = tree.content["default_preset"].content if "default_preset" in tree.content else None
    if default is not None and default not in names:
        where = _where(path, tree, ("default_preset",))
        raise UserError(
            f"there is no preset {default!r}", where=where, hint=nearest(str(default), names) if names else None
        )
    if preset is not None and preset not in names:
        where = _where(path, tree, ("presets",))
        raise UserError(f"there is no preset {preset!r}", where=where, hint=nearest(preset, names) if names else None)
    chosen = preset or default
    base = tree.without({("presets",), ("default_preset",)})
    if chosen is None:
        return base, NO_PRESET, names
    return yaml.merge(base, presets.content[chosen]), chosen, names


def _check_shape(tree: yaml.Node, path: Path, found: Problems) -> tuple[yaml.Node, SuiteSpec | None]:
    """Validate the shape; where parts are wrong, note them and return the rest, so that it can be checked too."""
    spec, faults = problems.validate(SuiteSpec, tree.plain())
    if spec is not None:
        return tree, spec
    wrong: dict[yaml.KeyPath, list[problems.Fault]] = {}
    for fault in faults:
        wrong.setdefault(tree.find(fault.path)[0], []).append(fault)
    for keys, group in wrong.items():
        deeper = any(len(other) > len(keys) and other[: len(keys)] == keys for other in wrong)
        if deeper and group[0].missing is None:
            continue  # the other branches of a union whose right branch says more
        group = [fault for fault in group if not _misspelt(fault, faults)]
        if group:
            hint = _nearest_key(keys, group[0].unknown)
            found.add(keys, " or ".join(dict.fromkeys(fault.what for fault in group)), hint)
    pruned = tree.without({_removable(keys, group[0]) for keys, group in wrong.items()})
    return pruned, problems.validate(SuiteSpec, pruned.plain())[0]


def _misspelt(missing: problems.Fault, faults: list[problems.Fault]) -> bool:
    """Tell whether a missing key is there under a name that is nearly right, which is an error by itself."""
    unknown = [fault.unknown for fault in faults if fault.unknown is not None and fault.path[:-1] == missing.path]
    return missing.missing is not None and bool(difflib.get_close_matches(missing.missing, unknown, n=1))


def _nearest_key(keys: yaml.KeyPath, unknown: str | None) -> str | None:
    shape = SHAPES.get(".".join(str(key) for key in keys[:-1] if isinstance(key, str)))
    if unknown is None or shape is None:
        return None
    return nearest(unknown, [*shape.model_fields, *(("presets", "default_preset") if len(keys) == 1 else ())])


def _removable(keys: yaml.KeyPath, fault: problems.Fault) -> yaml.KeyPath:
    """Return what to leave out so that the rest can be checked: the value, or the list element around it."""
    if fault.missing is None:
        return keys
    indices = [i for i, key in enumerate(keys) if isinstance(key, int)]
    return keys[: indices[-1] + 1] if indices else keys
