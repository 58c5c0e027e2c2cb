"""ddbench: the benchmark and evaluation harness for dataset distillation.

`bench` is what everything stands on: contracts (`bench.api`), data, networks, trainer, the loop around a
method, the suite runner and the reports. It finds methods and evaluators by name through `bench.registry`.

From Python (`bench.interactive`, loaded at first use; importing `bench` itself imports nothing else):

    import bench
    task = bench.load_task("digits", ipc=1)
    s = bench.distil("dm", task, iterations=100)
    bench.evaluate(s, ["accuracy", "ood"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bench.interactive import as_dataset, distil, evaluate, load, load_task, save, show

__all__ = ["__version__", "as_dataset", "distil", "evaluate", "load", "load_task", "save", "show"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from bench import interactive

        return getattr(interactive, name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
