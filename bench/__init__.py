"""ddbench: the benchmark and evaluation harness for dataset distillation.

`bench` is what everything stands on: contracts (`bench.api`), data, networks, trainer, the loop around a
method, the suite runner and the reports. It finds methods and evaluators by name through `bench.registry`.
"""

__version__ = "0.1.0"
