"""From an exception or an exit code to a cell state and one readable line."""

from __future__ import annotations

import signal

from bench.errors import Diverged, UserError

_MEMORY_MARKS = ("can't allocate memory", "out of memory", "not enough memory")


def classify(error: BaseException) -> tuple[str, str]:
    """Return (state, reason) of an exception raised inside a cell."""
    if isinstance(error, UserError):
        return "failed", one_line(str(error))
    if isinstance(error, Diverged):
        return "diverged", one_line(str(error) or "a value became NaN or infinite")
    if _is_memory(error):
        return "oom", one_line(f"out of memory: {error}" if str(error) else "out of memory")
    text = one_line(str(error))
    return "failed", one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def of_exit(code: int | None) -> tuple[str, str]:
    """Return (state, reason) of a process that ended without a word. code: negative for the number of a signal."""
    if code is None or code >= 0:
        return "failed", f"the process of the cell ended with exit code {code} and no result"
    name = f"signal {-code}"
    if -code == signal.SIGKILL:
        return "killed", f"killed ({name}): out of memory?"
    description = signal.strsignal(-code)
    return "killed", f"killed ({name}: {description})" if description else f"killed ({name})"


def one_line(text: str, limit: int = 300) -> str:
    """Return the first line that says something, shortened to `limit` characters."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _is_memory(error: BaseException) -> bool:
    """Torch raises its own class on a GPU and a plain `RuntimeError` on a CPU; the class needs no import to be seen."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error).lower() for mark in _MEMORY_MARKS)
