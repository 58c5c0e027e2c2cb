"""The evaluation trainer: many networks at once on one small set, and the recipes that say how.

`recipe` and `schedule` are plain values and plain arithmetic (no torch); `trainer` does the work; `networks` keeps
what it trained as an artifact, so that every metric can be recomputed without training again.
"""

from bench.train.trainer import Handle, predict, train

__all__ = ["Handle", "predict", "train"]
