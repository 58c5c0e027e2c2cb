"""Forgetting: the images that training learns and loses again most often.

Toneva et al., "An empirical study of example forgetting during deep neural network learning", ICLR 2019. The paper
counts an image that was never learned as forgotten infinitely often; DeepCore counts it as never forgotten. Hardest
images first is a poor choice at small IPC (below about a tenth of the data random is often better): that is the
method, not a defect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.api import param
from bench.lazy import torch
from methods.coreset import TrainedCoreset

if TYPE_CHECKING:
    from torch import Tensor


class Forgetting(TrainedCoreset):
    """IPC images of every class with the most forgetting events."""

    title = "Forgetting"
    citation = "Toneva et al., An empirical study of example forgetting, ICLR 2019"

    class Params(TrainedCoreset.Params):
        """Parameters of forgetting."""

        never_learned: Literal["infinite", "zero"] = param(
            "infinite", "events of an image that was never classified correctly: as in the paper, or as in DeepCore"
        )

    def choose(self, candidates: Tensor, count: int) -> Tensor:
        """Return the candidates with the largest counts."""
        events = self.dynamics["forgetting"].to(candidates.device)[candidates].clone()
        if self.params.never_learned == "infinite":
            events[~self.dynamics["learned"].to(candidates.device)[candidates]] = torch.iinfo(torch.int64).max
        return candidates[torch.argsort(events, descending=True, stable=True)[:count]]
