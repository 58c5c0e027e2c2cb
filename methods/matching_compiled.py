"""Gradient matching in compiled functions, for runs that are long enough (see `bench.compiled`).

ConvNet of width 128 on 3x32x32, one core, per class: the gradient of 256 real images took 0.91 s of CPU where the
plain one takes 1.03 s (1.94 s without `bench.heap`), the second derivative for 10 synthetic images 0.10 s instead of
0.13 s. The rest is convolutions at the speed of the machine. Compiling takes 15 and 28 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench import compiled
from bench.lazy import F, torch
from methods.matching import chunks, gradient_distance

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.data import Batch
    from methods.matching import Distance

Tensors = dict[str, "Tensor"]


class CompiledGradients:
    """Gradient matching of one network, group by group: the real side and the synthetic side are compiled functions.

    A compiled function cannot be differentiated twice, so the synthetic side is compiled as a whole: gradient,
    distance and their derivative by the images are one graph. Real groups are filled up to one size with images that
    do not count.

    work: multiply-adds of the whole run on both sides, a forward pass being 1 and its gradient 2 more.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], distance: Distance, *, work: float, device: torch.device
    ) -> None:
        self.network, self.names, self.distance = network, list(names), distance
        self.of_real = compiled.function(self._real, "real gradients", work=work, device=device)
        self.of_synthetic = compiled.function(self._synthetic, "synthetic gradients", work=work, device=device)

    @property
    def choice(self) -> str:
        """Say whether both sides are compiled, or why not."""
        return next((f.choice for f in (self.of_real, self.of_synthetic) if not f), "compiled")

    def possible(self, network: nn.Module, real: Batch, synthetic: Batch) -> bool:
        """Say whether to go this way: both sides are compiled, and all synthetic groups have one size."""
        return bool(self.of_real and self.of_synthetic) and len(set(synthetic.counts)) == 1 and network is self.network

    def __call__(self, real: Batch, synthetic: Batch) -> tuple[Tensor, Tensor]:
        """Return the distance of each group and the derivative of their sum by the synthetic images."""
        weights = {name: weight.detach() for name, weight in self.network.named_parameters()}
        matched = {name: weights.pop(name) for name in self.names}
        losses, derivatives, size = [], [], max(real.counts)
        for one_real, one_synthetic in zip(chunks(real, 1), chunks(synthetic, 1), strict=True):
            share = one_real.images.new_full(one_real.counts, 1 / len(one_real.labels))
            images, labels, share = (_fill_up(rows, size) for rows in (*one_real[:2], share))
            target = self.of_real(matched, weights, images, labels, share)
            images, labels = one_synthetic.images.detach(), one_synthetic.labels
            derivative, loss = self.of_synthetic(images, labels, matched, weights, target)
            losses.append(loss)
            derivatives.append(derivative)
        return torch.stack(losses), torch.cat(derivatives)

    def _loss(self, matched: Tensors, others: Tensors, images: Tensor, labels: Tensor, share: Tensor) -> Tensor:
        logits = torch.func.functional_call(self.network, {**others, **matched}, (images,))
        return (F.cross_entropy(logits, labels, reduction="none") * share).sum()

    def _real(self, matched: Tensors, others: Tensors, images: Tensor, labels: Tensor, share: Tensor) -> Tensors:
        """Return the gradient of the loss by the matched parameters."""
        return torch.func.grad(self._loss)(matched, others, images, labels, share)

    def _synthetic(
        self, images: Tensor, labels: Tensor, matched: Tensors, others: Tensors, target: Tensors
    ) -> tuple[Tensor, Tensor]:
        """Return the derivative of the distance by the images, and the distance, 0-d."""
        return torch.func.grad_and_value(self._distance)(images, labels, matched, others, target)

    def _distance(self, images: Tensor, labels: Tensor, matched: Tensors, others: Tensors, target: Tensors) -> Tensor:
        share = torch.full_like(images[:, 0, 0, 0], 1 / len(images))
        gradient = torch.func.grad(self._loss)(matched, others, images, labels, share)
        one, other = ([side[name][None] for name in self.names] for side in (target, gradient))
        return gradient_distance(one, other, self.distance)[0]


def _fill_up(rows: Tensor, size: int) -> Tensor:
    """Return [size, ...]: rows [n, ...] and zeros."""
    missing = size - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
