"""Herding: images whose mean feature follows the mean feature of the class.

Welling, "Herding dynamical weights to learn", ICML 2009; on features of a network as in Rebuffi et al., "iCaRL", CVPR
2017. With mu the class mean and R the sum of the features chosen so far, the k-th image is

    argmin_i || k mu - R - f_i ||

The error of the chosen mean falls like 1/k where random selection falls like 1/sqrt(k). DeepCore's herding.py takes
the argmax of this distance instead, which chooses outliers; numbers made with it are another method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.lazy import torch
from methods.coreset import TrainedCoreset

if TYPE_CHECKING:
    from torch import Tensor


class Herding(TrainedCoreset):
    """IPC images of every class that together keep close to the class mean."""

    title = "Herding"
    citation = "Welling, Herding dynamical weights to learn, ICML 2009"

    def choose(self, candidates: Tensor, count: int) -> Tensor:
        """Return the candidates in herding order."""
        return candidates[herd(self.features(candidates), count)]


def herd(features: Tensor, count: int) -> Tensor:
    """Return the first `count` rows of centred `features` [m, d] in herding order: int64 [count].

    With mu = 0 the distance is || R + f_i ||^2 = || R ||^2 + 2 f_i R + || f_i ||^2, where the first term does not
    matter: one matrix-vector product for each image.
    """
    squares = features.square().sum(1)
    total = torch.zeros_like(features[0])
    free = torch.zeros_like(squares)  # becomes infinite where an image is taken
    chosen = []
    for _ in range(count):
        best = torch.argmin(squares + 2 * (features @ total) + free)
        total += features[best]
        free[best] = torch.inf
        chosen.append(best)
    return torch.stack(chosen)
