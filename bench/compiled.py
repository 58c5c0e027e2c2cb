"""Compiling hot functions: the one place that decides whether to, and that falls back where it fails.

torch.compile makes the field's networks faster on a CPU (convolutions in channels-last layout, normalisation,
activation and pooling in one pass over memory), and costs 10 to 60 seconds for every function and shape. So a
function is compiled where its run is long, by an estimate that depends on nothing but the configuration: the same
cell is computed the same way in every run and after every restart. Compiled and plain results differ by rounding.

    embed = compiled.function(network.features, "features", work=steps * images * multiply_adds, device=task.device)
    embed(images)       # compiled or plain
    embed.choice        # "compiled", or "plain: ..." with the reason; goes into the result

The environment variable DDBENCH_COMPILE overrides the choice: 1 compiles everything, 0 nothing.
"""

from __future__ import annotations

import functools
import os
import shutil
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from bench import lazy
from bench.errors import UserError
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import device

ENVIRONMENT = "DDBENCH_COMPILE"
Wanted = Literal["auto", "always", "never"]
WORTH = 3e12
"""Multiply-adds of one function in the whole run from which on compiling pays: minutes of one core."""


class Compiled:
    """A function that runs compiled or plain; `choice` says which, and why if plain. Calls take positional tensors."""

    def __init__(self, plain: Callable[..., Any], name: str, reason: str | None, options: dict[str, Any]) -> None:
        self.plain, self.name = plain, name
        self.choice = "compiled" if reason is None else f"plain: {reason}"
        if reason is None:
            lazy.load()
        self._fast = None if reason else torch.compile(_own(plain), fullgraph=True, dynamic=False, **options)

    def __bool__(self) -> bool:
        return self._fast is not None

    def __call__(self, *arguments: Any) -> Any:
        """Call the function; a compiler that fails is not asked again. Errors of the function itself pass through."""
        if self._fast is None:
            return self.plain(*arguments)
        try:
            return self._fast(*arguments)
        except _failures() as error:
            self._fast = None
            self.choice = f"plain: the compiler failed ({type(error).__name__})"
            return self.plain(*arguments)


def _own(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a code object of its own.

    The compiler keeps what it made by code object, and at most eight of one: all that is made in one place of the
    source would share them.
    """

    def call(*arguments: Any) -> Any:
        return plain(*arguments)

    return types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)


def function(
    plain: Callable[..., Any], name: str, *, work: float, device: device, wanted: Wanted = "auto", **options: Any
) -> Compiled:
    """Return `plain`, to be compiled at its first call if that is worth it.

    work: multiply-adds that the whole run spends in it. wanted: what the configuration says. options: of
    torch.compile. Every shape of its arguments is compiled anew: give it few.
    """
    return Compiled(plain, name, reason_against(work, device, wanted), options)


def reason_against(work: float, device: device, wanted: Wanted = "auto") -> str | None:
    """Return why not to compile `work` multiply-adds, or None to compile. Raises `UserError` for a bad setting."""
    setting = os.environ.get(ENVIRONMENT) or "auto"
    if setting not in ("0", "1", "auto"):
        raise UserError(f"{setting!r} is no setting", where=f"${ENVIRONMENT}", hint="0, 1 or auto")
    if setting == "0":
        return f"{ENVIRONMENT}=0"
    if setting == "auto" and wanted == "never":
        return "the configuration says so"
    if wanted == "always":
        setting = "1"
    if setting == "auto" and device.type != "cpu":
        return "no gain measured on this kind of device"
    if setting == "auto" and work < WORTH:
        return f"a short run ({work:.0e} multiply-adds)"
    if device.type == "cpu" and not has_compiler():
        return "no C++ compiler found"
    return None


@functools.cache
def has_compiler() -> bool:
    """Say whether there is the C++ compiler that compiling for a CPU calls."""
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++"))


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors of the compiler, as apart from those of the function it compiles."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError

    return TorchDynamoException, CppCompileError
