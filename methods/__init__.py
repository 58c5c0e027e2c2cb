"""Distillation methods, one file each; mathematics that several share lives in `matching.py`."""
