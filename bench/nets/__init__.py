"""Networks: every architecture of the field, for any image size, with `features` and `head`.

`spec` holds names and sizes (no torch); this package builds, initialises and stacks. Networks are made on the meta
device and draw their weights from generators that are handed in.
"""

from bench.nets.construct import build, call, initialise, multiply_adds, parameter_count, stack
from bench.nets.spec import Architecture, check, describe, label, names, parse, resolve

__all__ = [
    "Architecture",
    "build",
    "call",
    "check",
    "describe",
    "initialise",
    "label",
    "multiply_adds",
    "names",
    "parameter_count",
    "parse",
    "resolve",
    "stack",
]
