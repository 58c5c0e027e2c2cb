"""Suites: a YAML file becomes a checked `Suite`, and a suite becomes a `Plan` of cells. Pure, and without torch."""

from bench.suite.cells import Cell
from bench.suite.load import Suite, from_values, load
from bench.suite.plan import Plan, plan
from bench.suite.problems import SuiteErrors

__all__ = ["Cell", "Plan", "Suite", "SuiteErrors", "from_values", "load", "plan"]
