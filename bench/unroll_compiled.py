"""One step of an inner loop in compiled functions, for runs that are long enough (see `bench.compiled`).

The sweep of `bench.unroll` needs two things of a step: its gradient, and the derivative of a product with that
gradient. A compiled function cannot be differentiated twice, so each is compiled as a whole, the second one as
gradient of a gradient. A batch is cut into pieces of equal size whose maps stay in the cache, and since the loss is a
mean over images all results are sums over the pieces. So memory holds the graph of one piece and not of one step.

ConvNet of width 128 on 3x32x32, one core, seconds of CPU for gradient and adjoint: 0.146 for 10 images (plain 0.173),
1.48 for 100 (plain 1.69). That is 83 GFLOP/s, the rate of plain convolutions on that machine: no more is to be had in
float32. Compiling takes half a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import compiled

if TYPE_CHECKING:
    from bench.unroll import Batch, Flat

PIECE = 10 * 2**17
"""Values of the first feature map of a piece, for each thread: 10 images in the default network at 32x32."""


class CompiledStep:
    """The mean cross-entropy of a network without BatchNorm on a batch, at weights [P].

    exact: also differentiate by the weights. soft: labels are probabilities, differentiate by them, too. work:
    multiply-adds of all inner steps of the run.
    """

    def __init__(self, flat: Flat, *, exact: bool, soft: bool = False, work: float, device: torch.device) -> None:
        self.flat, self.exact, self.soft = flat, exact, soft
        wanted: compiled.Wanted = "never" if flat.buffers else "auto"
        self._gradient, self._adjoint = (
            compiled.function(function, name, work=work, device=device, wanted=wanted)
            for function, name in ((self._gradient_of_piece, "inner step"), (self._adjoint_of_piece, "adjoint step"))
        )

    def __bool__(self) -> bool:
        return bool(self._gradient) and bool(self._adjoint)

    @property
    def choice(self) -> str:
        """Say whether both functions are compiled, or why not."""
        return next((f.choice for f in (self._gradient, self._adjoint) if not f), "compiled")

    def gradient(self, weights: Tensor, batch: Callable[[], Batch], again: bool) -> Tensor:
        """Return the gradient [P] of the loss by the weights."""
        with torch.no_grad():
            inputs = batch()
        total = torch.zeros_like(weights)
        for piece in self._pieces(*inputs):
            total += self._gradient(weights, *piece)
        return total

    def adjoint(
        self, weights: Tensor, nu: Tensor, batch: Callable[[], Batch], leaves: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None, Sequence[Tensor | None]]:
        """Return the gradient g, and the derivatives of <nu, g> by the weights (if exact) and by the leaves."""
        with torch.enable_grad():
            inputs = batch()
        gradient, by_weights, rows = torch.zeros_like(weights), torch.zeros_like(weights), []
        for piece in self._pieces(*(tensor.detach() for tensor in inputs)):
            part, turn, by_rows = self._adjoint(weights, nu, *piece)
            gradient += part
            if turn is not None:
                by_weights += turn
            rows.append(by_rows)
        by_inputs = [torch.cat(parts)[: len(inputs[0])] for parts in zip(*rows, strict=True)]
        by_leaves = torch.autograd.grad(inputs[: len(by_inputs)], leaves, by_inputs, allow_unused=True)
        return gradient, by_weights if self.exact else None, by_leaves

    def _pieces(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Cut a batch into pieces of one size, each with what an image counts in the mean; the last is filled up."""
        width = next((size[0] for size in self.flat.shapes.values() if len(size) == 4), 64)
        most = max(1, PIECE * torch.get_num_threads() // (width * images[0, 0].numel()))
        size = -(-len(images) // -(-len(images) // most))
        share = images.new_full((len(images),), 1 / len(images))
        missing = -len(images) % size
        filled = (F.pad(rows, [0, 0] * (rows.dim() - 1) + [0, missing]) for rows in (images, labels, share))
        return zip(*(rows.split(size) for rows in filled), strict=True)

    # ------------------------------------------------------------------------------------------ what is compiled

    def _loss(self, weights: Tensor, images: Tensor, labels: Tensor, share: Tensor) -> Tensor:
        views = {name: _channels_last(view) for name, view in self.flat.unflatten(weights).items()}
        logits = torch.func.functional_call(self.flat.network, {**views, **self.flat.buffers}, _channels_last(images))
        return (F.cross_entropy(logits, labels, reduction="none") * share).sum()

    def _gradient_of_piece(self, weights: Tensor, images: Tensor, labels: Tensor, share: Tensor) -> Tensor:
        return torch.func.grad(self._loss)(weights, images, labels, share)

    def _adjoint_of_piece(
        self, weights: Tensor, nu: Tensor, images: Tensor, labels: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        def product(weights: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            gradient = torch.func.grad(self._loss)(weights, images, labels, share)
            return nu @ gradient, gradient

        wanted = (*((0,) if self.exact else ()), 1, *((2,) if self.soft else ()))
        found, gradient = torch.func.grad(product, argnums=wanted, has_aux=True)(weights, images, labels)
        return (gradient, found[0], found[1:]) if self.exact else (gradient, None, found)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
