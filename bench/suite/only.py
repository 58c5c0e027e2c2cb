"""`--only`: a part of a plan, as `method=dm|dsa,ipc=10`.

Clauses are joined by commas and must all hold; alternatives are joined by bars. What the chosen cells build on
stays in the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import UserError, nearest

KEYS = ("dataset", "method", "label", "ipc", "seed", "evaluator", "network", "kind")
_EXAMPLE = "for example method=dm|dsa,ipc=10"


@dataclass(frozen=True)
class Selection:
    """A parsed expression: key -> accepted values, as text in lower case. `none` is the IPC of the whole dataset."""

    text: str
    clauses: Mapping[str, frozenset[str]]

    def matches(self, coords: Mapping[str, Any], *, lenient: bool = False) -> bool:
        """Tell whether all clauses hold; `lenient`: also where the coordinates lack a key."""
        for key, accepted in self.clauses.items():
            if key not in coords:
                if not lenient:
                    return False
            elif as_text(coords[key]) not in accepted:
                return False
        return True


def as_text(value: Any) -> str:
    """Return a coordinate as expressions write it."""
    return str(value).lower()


def parse(text: str) -> Selection:
    """Parse an expression. Raises `UserError` for a broken one or an unknown key."""
    clauses: dict[str, frozenset[str]] = {}
    for clause in text.split(","):
        key, equals, values = (part.strip() for part in clause.partition("="))
        accepted = frozenset(value.strip().lower() for value in values.split("|"))
        if not (key and equals) or "" in accepted:
            raise UserError(f"{clause.strip()!r} is not of the form key=value", where="--only", hint=_EXAMPLE)
        if key not in KEYS:
            raise UserError(f"unknown key {key!r}", where="--only", hint=nearest(key, KEYS))
        if key in clauses:
            raise UserError(f"the key {key!r} stands twice", where="--only", hint=f"use bars, {_EXAMPLE}")
        clauses[key] = accepted
    return Selection(text, clauses)
