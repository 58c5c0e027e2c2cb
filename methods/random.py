"""Random selection: the reference below which no distillation should fall.

The images of a class are the first IPC of one random order, so the sets of a seed are nested over IPC, which takes
the chance out of comparisons between IPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.coreset import Coreset

if TYPE_CHECKING:
    from torch import Tensor


class Random(Coreset):
    """IPC images of every class, uniformly and without replacement."""

    title = "Random"
    citation = "uniform selection without replacement"

    def choose(self, candidates: Tensor, count: int) -> Tensor:
        """Return the first candidates: their order is random already."""
        return candidates[:count]
