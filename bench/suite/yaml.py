"""Strict YAML with places: a suite file becomes a tree that remembers the line and column of every key and value.

Stricter than YAML 1.1 as pyyaml reads it: scalars follow the YAML 1.2 core schema (`1e-3` is a number, `no` and
`on` are text), a key may stand once, keys are text, tags and several documents are refused. Size, depth and the
number of values after expanding aliases are limited, so that no file can make the program run out of memory. A
file that cannot be read gives exactly one `UserError`; what the values mean is checked elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UserError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_VALUES = 20_000
MAX_INTEGER = 2**63 - 1

KeyPath = tuple[str | int, ...]
"""A key path: names of mapping keys and indices of list elements."""


@dataclass(frozen=True)
class Place:
    """Where a key or value stands; line and column count from 1, and are 0 for what stands in no file."""

    line: int
    column: int


@dataclass
class Node:
    """A value with its place. content: scalar, dict of text to Node, or list of Node. keys: places of the keys."""

    content: Any
    place: Place
    keys: dict[str, Place] = field(default_factory=dict)

    def plain(self) -> Any:
        """Return the value without places, as dicts, lists and scalars."""
        if isinstance(self.content, dict):
            return {key: node.plain() for key, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.plain() for node in self.content]
        return self.content

    def find(self, path: KeyPath) -> tuple[KeyPath, Place]:
        """Follow `path`, passing over parts that are not there; return the parts found and the place of the last.

        The place is that of the key where the value stands in a mapping. Validators name parts that a file does
        not have, such as a branch of a union: hence the tolerance.
        """
        node, place, found = self, self.place, []
        for part in path:
            if isinstance(node.content, dict) and part in node.content:
                place, node = node.keys[str(part)], node.content[part]
            elif isinstance(node.content, list) and isinstance(part, int) and part < len(node.content):
                node = node.content[part]
                place = node.place
            else:
                continue
            found.append(part)
        return tuple(found), place

    def without(self, paths: Collection[KeyPath]) -> Node:
        """Return this tree without the values at `paths`; places stay."""
        if isinstance(self.content, dict):
            items = {key: _below(node, key, paths) for key, node in self.content.items() if (key,) not in paths}
            return Node(items, self.place, self.keys)
        if isinstance(self.content, list):
            kept = (_below(node, i, paths) for i, node in enumerate(self.content) if (i,) not in paths)
            return Node(list(kept), self.place)
        return self


def _below(node: Node, part: str | int, paths: Collection[KeyPath]) -> Node:
    return node.without({path[1:] for path in paths if len(path) > 1 and path[0] == part})


def merge(base: Node, over: Node) -> Node:
    """Return `base` with `over` laid on it: mappings key by key, all else replaced; places stay with the values."""
    if not (isinstance(base.content, dict) and isinstance(over.content, dict)):
        return over
    content, keys = dict(base.content), {**base.keys, **over.keys}
    for key, node in over.content.items():
        content[key] = merge(content[key], node) if key in content else node
    return Node(content, base.place, keys)


def of(value: Any) -> Node:
    """Return the tree of a plain value that stands in no file."""
    nowhere = Place(0, 0)
    if isinstance(value, Mapping):
        return Node({key: of(item) for key, item in value.items()}, nowhere, dict.fromkeys(value, nowhere))
    return Node([of(item) for item in value] if isinstance(value, list | tuple) else value, nowhere)


def dotted(path: Sequence[str | int]) -> str:
    """Return a key path as text, e.g. `grid.methods[2].params`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read(path: Path) -> Node:
    """Read a YAML file. Raises one `UserError` with file and line if it is not readable, valid or reasonable."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from error
    if len(data) > MAX_BYTES:
        raise UserError(f"the file has {len(data)} bytes", where=f"{path}:1", hint=f"at most {MAX_BYTES} are read")
    return parse(data, str(path))


def parse(data: bytes | str, name: str) -> Node:
    """Parse YAML text; `name` is the file name in errors. Raises one `UserError`."""
    loader = None
    try:
        loader = _Loader(data)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"not valid YAML: {error.problem}", where=f"{name}:{mark.line + 1 if mark else 1}") from error
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"not valid YAML: {reason}", where=f"{name}:{_line_of(error, data)}") from error
    finally:
        if loader is not None:
            loader.dispose()
    if root is None:
        raise UserError("the file is empty", where=f"{name}:1")
    return _Converter(name).convert(root, 0)


def _line_of(error: Exception, data: bytes | str) -> int:
    position = getattr(error, "position", None)
    if not isinstance(position, int):
        return 1
    line_break: Any = b"\n" if isinstance(data, bytes) else "\n"
    return data[:position].count(line_break) + 1


class _Loader(yaml.SafeLoader):
    """pyyaml's safe loader with the scalars of YAML 1.2 and a limit on nesting."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - pyyaml's class table
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
"""YAML 1.2, section 10.3.2: what a plain scalar means."""

for _name, (_pattern, _first) in CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)


class _Converter:
    """Turns pyyaml's nodes into ours; counts values, because an alias may stand for many."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0

    def convert(self, node: yaml.Node, depth: int) -> Node:
        """Return the tree below `node`. Raises `UserError` for what a suite may not contain."""
        self.count += 1
        if self.count > MAX_VALUES:
            raise self.error(node, f"more than {MAX_VALUES} values after expanding aliases")
        if depth > MAX_DEPTH:  # only an alias that contains itself gets here: the loader limits all others
            raise self.error(node, "an alias contains itself, or nesting is too deep")
        place = Place(node.start_mark.line + 1, node.start_mark.column + 1)
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self.mapping(node, place, depth)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return Node([self.convert(item, depth + 1) for item in node.value], place)
        if isinstance(node, yaml.ScalarNode) and kind in {"str", *CORE_SCHEMA}:
            return Node(self.scalar(node, kind), place)
        raise self.error(node, f"the tag {node.tag!r} is not allowed here")

    def mapping(self, node: yaml.MappingNode, place: Place, depth: int) -> Node:
        """Return a mapping whose keys are distinct texts."""
        result = Node({}, place)
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.tag.endswith(":str"):
                raise self.error(key_node, "a key must be text; put quotes around it")
            key = self.scalar(key_node, "str")
            key_place = Place(key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if key in result.content:
                raise self.error(key_node, f"the key {key!r} stands twice; first in line {result.keys[key].line}")
            result.content[key] = self.convert(value_node, depth + 1)
            result.keys[key] = key_place
        return result

    def scalar(self, node: yaml.ScalarNode, kind: str) -> Any:
        """Return text, a finite number, a truth value or None."""
        text: str = node.value
        if not re.match(rf"(?:{CORE_SCHEMA[kind][0]})\Z" if kind in CORE_SCHEMA else r"(?s:.*)\Z", text):
            raise self.error(node, f"{_short(text)} is not of type {kind}")
        if kind == "str":
            try:  # JSON writes some characters as two escapes, which pyyaml keeps apart
                return text.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeError:
                raise self.error(node, "the text holds a character that is not valid Unicode") from None
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            value: float = _integer(text)
        else:
            value = math.nan if "n" in text.lower() else float(text)
        if not -MAX_INTEGER <= value <= MAX_INTEGER:  # also catches infinity and nan
            raise self.error(node, f"the number {_short(text)} is too large, infinite or undefined")
        return value

    def error(self, node: yaml.Node, what: str) -> UserError:
        """Return the error for a node of this file."""
        return UserError(what, where=f"{self.name}:{node.start_mark.line + 1}")


def _integer(text: str) -> int | float:
    if len(text) > 24:  # far more digits than the limit; Python refuses to convert thousands of them
        return math.inf
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
