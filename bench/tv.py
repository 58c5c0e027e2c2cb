"""torchvision, imported so that it works beside any torch.

The torchvision wheel of the package index is built for CUDA. Beside a CPU-only torch its compiled operators cannot
be loaded, and `import torchvision` then fails, because it attaches functions to the operators `nms` and `qnms` that
nobody declared. ddbench needs datasets, transforms and model definitions, none of which use them, so it declares the
two operators itself, and only then. Everything in ddbench takes torchvision from here.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.errors import UserError

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []  # a torch.library.Library takes its operators with it when it is collected


@cache
def torchvision() -> ModuleType:
    """Import and return torchvision. Raises `UserError` where it is missing or does not fit this torch."""
    if "torchvision" not in sys.modules and not _operators_load():
        _declare()
    try:
        module = importlib.import_module("torchvision")
        importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"torchvision cannot be imported: {error}",
            hint="install the torchvision that belongs to this torch: pip install -c constraints.txt torchvision",
        ) from error
    return module


def state() -> str:
    """Return one line on torchvision: its version, and whether its compiled operators work."""
    try:
        torchvision()
        number = version("torchvision")
    except (UserError, PackageNotFoundError) as error:
        return f"not usable: {error}"
    if _declared:
        return f"{number}, compiled operators do not fit this torch (not needed; declared so that the import works)"
    return f"{number}, compiled operators loaded"


def _operators_load() -> bool:
    """Return whether torchvision's compiled operators load into this torch (True where there is none to load)."""
    import torch

    package = importlib.util.find_spec("torchvision")
    folders = package.submodule_search_locations if package else None
    libraries = [
        file for folder in folders or () for file in Path(folder).glob("_C.*") if file.suffix in (".so", ".pyd")
    ]
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(libraries) or package is None


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in OPERATORS:
        library.define(schema)
    _declared.append(library)
