"""What the fork server imports, so that no cell pays for it: everything that ddbench's own cells use.

A part that does not import is left to the cells that need it, which then say so themselves. Left to them are plug-ins,
and scikit-learn, which few use: every loaded page makes every fork, and every end of a cell, slower.
"""

import gc
import importlib
import warnings
from contextlib import suppress

from bench.data.lookup import PLUGINS
from bench.nets.spec import NETWORKS
from bench.registry import ARTIFACTS, DECODERS, EVALUATORS, METHODS

MODULES = (
    "bench.run.worker",  # and with it torch
    "torch._dynamo",  # else imported by the first torch.optim optimiser of every cell
    "torch.profiler._cupti_monitor",  # by its first step
    "numpy.ctypeslib",  # by the first array of numpy that becomes a tensor
    "PIL.Image",
    "bench.task",
    "bench.loop",
    "bench.data.sources",
    "bench.unroll",
    "bench.unroll_compiled",
    "bench.nets.convnet",
    "bench.nets.classic",
    "bench.nets.resnet",
)

gc.disable()  # collections between imports find next to nothing, and take a third of the time
with warnings.catch_warnings(action="ignore"):  # the runner has told what there is to tell
    for module in MODULES:
        with suppress(Exception):
            importlib.import_module(module)
    for registry in (METHODS, EVALUATORS, ARTIFACTS, DECODERS, NETWORKS):
        for name in registry.builtin:
            with suppress(Exception):
                registry.get(name)
    with suppress(Exception):
        PLUGINS.names()  # looks through all installed packages, which every cell would do again

gc.freeze()  # a collection in a cell would otherwise write to, and so copy, every page of what was imported
gc.enable()
