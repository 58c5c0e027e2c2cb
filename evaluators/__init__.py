"""Evaluators, one file each: from a distilled set, or networks trained on it, to measured numbers."""
