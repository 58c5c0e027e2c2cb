"""What the fork server imports besides torch, so that no cell pays for it: everything heavy that cells may use.

A part that does not import is left to the cells that need it, which then say so themselves.
"""

import gc
import importlib
from contextlib import suppress

MODULES = (
    "torch._dynamo",  # else imported by the first torch.optim optimiser of every cell
    "sklearn.datasets",
    "bench.task",
    "bench.loop",
)

for module in MODULES:
    with suppress(Exception):
        importlib.import_module(module)

gc.collect()
gc.freeze()  # a collection in a cell would otherwise write to, and so copy, every page of what was imported
