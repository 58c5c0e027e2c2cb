"""The conformance kit: what the runner relies on, checked on your own method, evaluator, dataset or network.

    from bench.testing import check_method

    def test_my_method():
        check_method("my_package:MyMethod", {"iterations": 4})

Plain functions for any test runner. What breaks a rule raises `AssertionError`, saying what was found and what the rule
is; the contracts are in `bench.api`. Everything runs on the embedded datasets, through the planner and the loop of a
real run, and all built-ins are held against the same rules. `tiny_task` gives a task for tests of what a method
computes.
"""

from bench.testing.datasets import check_dataset
from bench.testing.evaluators import check_evaluator
from bench.testing.methods import check_method
from bench.testing.networks import check_network
from bench.testing.planning import check_planning
from bench.testing.workbench import tiny_task

__all__ = ["check_dataset", "check_evaluator", "check_method", "check_network", "check_planning", "tiny_task"]
