"""K-center: images such that no image of the class is far from all of them.

Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018. The greedy
rule of Gonzalez (1985) adds the image farthest from those chosen; its radius is at most twice the best possible. The
first centre is the image nearest the class mean: published IPC-1 values equal those of herding. The rule seeks
outliers, so published values differ a lot with features and first centre.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.api import param
from bench.lazy import torch
from methods.coreset import TrainedCoreset

if TYPE_CHECKING:
    from torch import Tensor


class KCenter(TrainedCoreset):
    """IPC images of every class that cover the class in feature space."""

    title = "K-Center"
    citation = "Sener and Savarese, Active learning for CNNs: a core-set approach, ICLR 2018"

    class Params(TrainedCoreset.Params):
        """Parameters of k-center."""

        first: Literal["mean", "random"] = param(
            "mean", "first centre: the image nearest the class mean, or a random one (DeepCore)"
        )

    def choose(self, candidates: Tensor, count: int) -> Tensor:
        """Return the candidates in greedy order."""
        features = self.features(candidates)
        first = int(torch.argmin(features.square().sum(1))) if self.params.first == "mean" else 0
        return candidates[cover(features, count, first)]


def cover(features: Tensor, count: int, first: int) -> Tensor:
    """Return `count` rows of centred `features` [m, d], each the farthest from those before: int64 [count].

    Keeps the squared distance to the nearest centre; one matrix-vector product for each image.
    """
    squares = features.square().sum(1)
    nearest = torch.full_like(squares, torch.inf)
    chosen = [torch.tensor(first, device=features.device)]
    while len(chosen) < count:
        centre = chosen[-1]
        distance = squares + squares[centre] - 2 * (features @ features[centre])
        nearest = torch.minimum(nearest, distance.clamp(min=0))
        nearest[centre] = -1  # also a copy of another image is taken once only
        chosen.append(torch.argmax(nearest))
    return torch.stack(chosen)
