"""Kernel ridge regression from a small support to real data: the inner problem of KIP and FRePo.

The ridge is relative to the mean of the kernel's diagonal, so that predictions do not change when the kernel is
multiplied by a constant. Labels are centred one-hot vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

RIDGE = 1e-6
"""Of KIP and FRePo alike, relative to the mean diagonal."""


def centred(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Return one-hot vectors minus 1/K, [n, K]."""
    return F.one_hot(labels, classes).to(dtype) - 1 / classes


def solve(k_ss: Tensor, y_s: Tensor, ridge: float = RIDGE) -> Tensor:
    """Return W = A^-1 Y_s with A = K_ss + ridge * tr(K_ss)/n * I, [n, K], differentiable in both, once.

    The derivative is that of the solution, dW = A^-1 (dY_s - dA W), by the factor that is there; through the steps of
    the factorisation autograd takes several products of n x n matrices for the same numbers.

    Raises `torch.linalg.LinAlgError` where the matrix is not positive definite (NaN images, or too small a ridge).
    """
    n = len(k_ss)
    eye = torch.eye(n, dtype=k_ss.dtype, device=k_ss.device)
    regularised = k_ss + ridge * k_ss.diagonal().mean() * eye
    factor = torch.linalg.cholesky(regularised.detach())
    found = torch.cholesky_solve(y_s.detach(), factor)
    return found + torch.cholesky_solve(y_s - regularised @ found, factor)  # by value a correction of rounding
