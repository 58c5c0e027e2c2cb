"""A plug-in of ddbench that brings one of each: a method, an evaluator, a dataset and a network.

`pyproject.toml` gives them their names; each file is found late, and only by those who ask for it.
"""
