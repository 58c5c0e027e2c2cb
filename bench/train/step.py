"""One training step of all networks: losses and gradients on one batch each, plain or compiled.

Plain, it is what any textbook does: forward, loss, `torch.autograd.grad`. Compiled, loss and gradients of one network
are one graph: convolutions on channels-last maps, and everything between them (normalisation, activation, pooling,
the casts of bf16) in few passes over memory. A batch is cut into pieces whose maps stay in the cache, and their
gradients are added up; only batch norm needs the batch as a whole.

Which of the two is decided by the work of one network's whole training, never by a clock and not by how many networks
there are, so that the same configuration always gives the same network (see `bench.compiled`). The results differ by
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from bench import compiled
from bench.lazy import F, torch
from bench.train import losses

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.api import NetSpec
    from bench.train.recipe import Recipe
    from bench.train.trainer import Handle

    Tensors = dict[str, Tensor]
    Found = tuple[Tensor, Tensors, Tensors]

WITH_BACKWARD = 3
"""A step in forward passes: one forward, and two products of the same size for the gradients of maps and weights."""
PIECE = 10 * 2**17
"""Values of the first feature map of a piece, for each thread: 10 images of 32x32 in the default network."""


class Step:
    """Loss and gradients of all networks of a handle.

    loss: see `losses.compute`. outlier_weight: of the outlier exposure. work: multiply-adds of one network's training.
    """

    def __init__(
        self, handle: Handle, recipe: Recipe, loss: str, outlier_weight: float, device: torch.device, work: float
    ) -> None:
        self.handle, self.loss, self.outlier_weight = handle, loss, outlier_weight
        self.precision = _precision(recipe.precision, device)
        self.whole = handle.stack == "vmap" or device.type != "cpu" or bool(handle.buffers)
        self.size = 0  # images in a compiled piece; known with the first batch, which is the largest
        self.reason = compiled.reason_against(work, device, recipe.compile)
        if self.reason is None:
            self.gradients = _gradients(handle, loss, bool(outlier_weight), recipe.precision, device)

    @property
    def choice(self) -> str:
        """Say how the steps are done: `compiled`, or `plain: ` and why."""
        return f"plain: {self.reason}" if self.reason is not None else self.gradients.choice

    def __call__(self, images: Tensor, target: Tensor) -> Tensor:
        """Set the gradients of the stacked parameters and update the buffers; return the losses, [E].

        images: [E, n, c, h, w], of which those beyond the targets are outliers.
        """
        handle = self.handle
        params = {k: v.detach() for k, v in handle.params.items()}
        run = self._compiled if self.reason is None and self.gradients else self._plain
        found, gradients, handle.buffers = run(params, handle.buffers, images, target)
        for name, parameter in handle.params.items():
            parameter.grad = gradients[name]
        return found

    # ------------------------------------------------------------------------------------------ plain

    def _plain(self, params: Tensors, buffers: Tensors, images: Tensor, target: Tensor) -> Found:
        if self.handle.stack == "vmap":
            return self._differentiate(torch.vmap(self._loss), params, buffers, images, target)
        return _stacked(
            self._differentiate(self._loss, _of(params, e), _of(buffers, e), images[e], target[e])
            for e in range(self.handle.size)
        )

    def _differentiate(self, loss: Callable[..., Any], params: Tensors, *rest: Any) -> Found:
        """Return losses, gradients and buffers. The weights are leaves of their own, so that nothing is added up."""
        params = {k: v.detach().requires_grad_() for k, v in params.items()}
        with self.precision():
            found, buffers = loss(params, *rest)
        gradients = torch.autograd.grad(found.sum(), list(params.values()))
        return found.detach(), dict(zip(params, gradients, strict=True)), buffers

    def _loss(self, params: Tensors, buffers: Tensors, images: Tensor, target: Tensor) -> tuple[Tensor, Tensors]:
        """Return the loss of one network: on the first images its labels, on further ones outlier exposure."""
        logits, buffers = _logits(self.handle.module, params, buffers, images)
        loss = losses.compute(self.loss, logits[: len(target)], target)
        if len(images) > len(target):
            loss = loss + self.outlier_weight * losses.outlier_exposure(logits[len(target) :])
        return loss, buffers

    # ------------------------------------------------------------------------------------------ compiled

    def _compiled(self, params: Tensors, buffers: Tensors, images: Tensor, target: Tensor) -> Found:
        """As `_plain`, by compiled pieces of equal size; the last one is filled up with images that count nothing."""
        size, inside = images.shape[1], target.shape[1]
        self.size = self.size or piece_size(self.handle.spec, images.shape[3:], size)
        missing = 0 if self.whole else -size % self.size
        weight = images.new_full((size + missing,), 1 / inside)
        weight[inside:] = 0
        outside = torch.zeros_like(weight)
        outside[inside:size] = self.outlier_weight / max(1, size - inside)
        images, target = _filled(images, missing), _filled(target, size - inside + missing)
        if self.handle.stack == "vmap":
            return self.gradients(params, buffers, images, target, weight, outside)
        return _stacked(
            self._added_up(_of(params, e), _of(buffers, e), images[e], target[e], weight, outside)
            for e in range(self.handle.size)
        )

    def _added_up(self, params: Tensors, buffers: Tensors, *rest: Tensor) -> Found:
        """Return the sums of losses and gradients over the pieces of the batch of one network."""
        cut = len(rest[0]) if self.whole else self.size
        total, sums = rest[0].new_zeros(()), {k: torch.zeros_like(v) for k, v in params.items()}
        for piece in zip(*(each.split(cut) for each in rest), strict=True):
            loss, gradients, buffers = self.gradients(params, buffers, *piece)
            total = total + loss
            for name, gradient in gradients.items():
                sums[name].add_(gradient)
        return total, sums, buffers


_known: dict[tuple[Any, ...], compiled.Compiled] = {}
"""What was compiled in this process: networks trained in turn (at several rates) share it."""


def _gradients(handle: Handle, loss: str, exposed: bool, precision: str, device: torch.device) -> compiled.Compiled:
    """Return the function that is compiled: loss, gradients and buffers of one network on a piece, or of all stacked.

    Its arguments are params, buffers, images, target, and for each image the weight of its loss and of its exposure.
    """
    module, stacked, cast = handle.module, handle.stack == "vmap", _precision(precision, device)
    shapes = tuple((name, tuple(value.shape[1:])) for name, value in {**handle.params, **handle.buffers}.items())
    key = (handle.spec, shapes, stacked, loss, exposed, precision, device)
    if key in _known:
        return _known[key]

    def alone(
        params: Tensors, buffers: Tensors, images: Tensor, target: Tensor, weight: Tensor, outside: Tensor
    ) -> Found:
        def total(params: Tensors) -> tuple[Tensor, Tensors]:
            logits, new = _logits(module, params, buffers, images)
            found = (weight * losses.of_each(loss, logits, target)).sum()
            if exposed:
                found = found + (outside * losses.exposure_of_each(logits)).sum()
            return found, new

        if not stacked:
            params, images = {k: _channels_last(v) for k, v in params.items()}, _channels_last(images)
        with cast():
            gradients, (found, new) = torch.func.grad_and_value(total, has_aux=True)(params)
        return found, gradients, new

    def together(*arguments: Any) -> Found:
        return torch.vmap(alone, in_dims=(0, 0, 0, 0, None, None))(*arguments)

    _known[key] = compiled.Compiled(together if stacked else alone, "evaluation step", None, {})
    return _known[key]


def piece_size(spec: NetSpec, side: Sequence[int], images: int) -> int:
    """Return the size of the pieces that cut a batch evenly and whose maps lie in the caches of the cores."""
    most = max(1, PIECE * torch.get_num_threads() // ((spec.width or 64) * side[0] * side[1]))
    pieces = -(-images // most)
    return -(-images // pieces)


def _logits(module: nn.Module, params: Tensors, buffers: Tensors, images: Tensor) -> tuple[Tensor, Tensors]:
    """Return logits in the precision of the images, and the new buffers."""
    from bench.nets import call

    logits, buffers = call(module, params, buffers, images)
    return logits.to(images.dtype), buffers


def _of(tensors: Tensors, e: int) -> Tensors:
    return {name: tensor[e] for name, tensor in tensors.items()}


def _stacked(found: Iterable[Found]) -> Found:
    """Return what was found for one network after the other as stacked tensors."""
    values, *rest = zip(*found, strict=True)
    gradients, buffers = ({k: torch.stack([one[k] for one in each]) for k in each[0]} for each in rest)
    return torch.stack(values), gradients, buffers


def _filled(batches: Tensor, missing: int) -> Tensor:
    """Return batches [E, n, ...] with so many zeros at the end of each."""
    return F.pad(batches, [0, 0] * (batches.dim() - 2) + [0, missing]) if missing else batches


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _precision(name: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    if name == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)
