"""The errors a user may meet. Everything else that reaches the command line is a defect of ddbench."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: what is wrong, where, and what would be right.

    `where` names the place (`suites/x.yaml:12: grid.ipc`), `hint` the remedy. The command line prints the three
    as one message and ends with exit code 2.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.hint)


class MissingData(UserError):
    """A dataset is not on this machine; the hint says how to get it."""


class Diverged(Exception):
    """A loss or an image became NaN or infinite; the cell is shown as `diverged`."""


def _rebuild(kind: type[UserError], what: str, where: str | None, hint: str | None) -> UserError:
    return kind(what, where=where, hint=hint)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as `did you mean 'dsa'?`, or the list of known names where none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
