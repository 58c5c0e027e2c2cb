"""torch, imported at its first use.

Plans, validation and lists read the parameters of methods, networks and evaluators and never compute. Importing
torch costs a second there for nothing, so modules that such commands import take it from here:

    from bench.lazy import F, torch
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
else:

    class _Lazy:
        """A module that is imported when one of its names is first asked for."""

        def __init__(self, name: str) -> None:
            self.__dict__["_name"] = name

        def __getattr__(self, attribute: str) -> Any:
            value = getattr(importlib.import_module(self._name), attribute)
            self.__dict__[attribute] = value
            return value

    torch = _Lazy("torch")
    F = _Lazy("torch.nn.functional")


def load() -> None:
    """Import both now, with every name they have: torch.compile cannot follow the import at a first use."""
    for lazy in (torch, F):
        if name := vars(lazy).get("_name"):
            vars(lazy).update(vars(importlib.import_module(name)) | vars(lazy))


__all__ = ["F", "load", "torch"]
