"""Differentiation through an inner training loop: the engine of DD, MTT and TESLA.

The inner loop is SGD on synthetic batches,

    v_{t+1} = momentum * v_t + g_t,   w_{t+1} = w_t - rate_t * v_{t+1},   g_t = grad_w loss(w_t, batch_t),

and the outer loss is a function of w_T alone. Its derivatives by the batches' leaves and by the rates come from one
backward sweep. With lam = dL/dw_{t+1} and nu = dL/dv_{t+1},

    nu <- nu - rate_t lam,  dL/drate_t = -<lam, v_{t+1}>,  dL/dbatch_t = d<nu, g_t>/dbatch_t,
    lam <- lam + d<nu, g_t>/dw_t,  nu <- momentum * nu.

Four ways to go through it, all called `mode`:

- `stored`: keep the graph of the whole loop and let autograd do it. The plain reference; memory grows with T.
- `recompute`: keep only w_t and rebuild one step's graph at a time. The same gradient with constant graph memory. Where
  the graphs of all steps together are small (`KEPT`), they are kept after all: the same numbers in 3/4 of the time.
- `identity`: as `recompute` with lam held fixed, which drops the dependence of w_t on earlier batches. This is
  TESLA's gradient (Cui et al., ICML 2023); it equals the exact one only for T = 1.
- `window`: exact through the last `window` steps, the earlier ones count as constants (truncation).

The sweep differentiates one step's gradient in reverse mode. Forward mode over it (a jvp of the gradient) gives the
same numbers, but took 1.1 to 1.8 times as long on a CPU (ConvNet of width 32, 10 and 100 images of 8 and 28 pixels).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from bench.nets import call

if TYPE_CHECKING:
    from bench.unroll_compiled import CompiledStep

KEPT = 2**28
"""Bytes up to which the graphs of the steps are kept from the forward loop for the sweep."""

Mode = Literal["stored", "recompute", "identity", "window"]
Batch = tuple[Tensor, ...]


@dataclass
class Sweep:
    """What one differentiated loop gives.

    loss: 0-d, detached. leaves: dL/dleaf in the order given (zeros where a leaf was not used). rates: float [T].
    weights: w_T, float [P], detached. graphs: what became of the graphs of the steps, `kept`, `rebuilt` or `stored`.
    """

    loss: Tensor
    leaves: list[Tensor]
    rates: Tensor
    weights: Tensor
    graphs: Literal["kept", "rebuilt", "stored"]


class Flat:
    """A network as a pure function of its parameters, one vector [P] in the order of `named_parameters`.

    Running statistics of BatchNorm are those of the network when this was made, and no call changes them. In train
    mode they have no influence: such a network normalises by the batch it sees.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        self.shapes = {name: weight.shape for name, weight in network.named_parameters()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]

    def vector(self) -> Tensor:
        """Return a copy of the network's parameters, float [P]."""
        return torch.cat([weight.detach().reshape(-1) for weight in self.network.parameters()])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of `vector` [P] with the parameters' names and shapes."""
        parts = vector.split(self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def __call__(self, vector: Tensor, images: Tensor) -> Tensor:
        """Return the outputs [n, K] of the network with weights `vector` [P]."""
        return call(self.network, self.unflatten(vector), self.buffers, images)[0]


def differentiate(
    step_loss: Callable[..., Tensor],
    outer_loss: Callable[[Tensor], Tensor],
    weights: Tensor,
    batches: Sequence[Callable[[], Batch]],
    rates: Tensor,
    leaves: Sequence[Tensor],
    *,
    momentum: float = 0.0,
    mode: Mode = "recompute",
    window: int | None = None,
    fast: CompiledStep | None = None,
) -> Sweep:
    """Run the inner loop and return the outer loss with its derivatives.

    step_loss(w, *batch): inner loss at weights w [P], 0-d. outer_loss(w_T): 0-d. weights: w_0, float [P].
    batches: T functions that build their batch from the leaves, with a graph; they are called up to twice and must
    return the same each time (draw augmentation parameters before, not inside). rates: float [T]. leaves: tensors that
    require a gradient. fast: the same `step_loss` in compiled functions, used where it is compiled. Raises
    `ValueError` for `window` without a size or another mode with one.
    """
    if (mode == "window") != (window is not None):
        raise ValueError("mode 'window' needs a window size, the other modes take none")
    rates = rates.detach()
    if mode == "stored":
        return _stored(step_loss, outer_loss, weights, batches, rates, leaves, momentum)
    first = 0 if window is None else max(0, len(batches) - window)
    step: Step = fast or PlainStep(step_loss, mode != "identity", len(batches) - first)
    path, velocities = _forward(step, weights.detach(), batches, rates, momentum, first)
    graphs: Literal["kept", "rebuilt"] = "kept" if isinstance(step, PlainStep) and step.graphs else "rebuilt"
    final = path[-1].detach().requires_grad_()
    loss = outer_loss(final)
    (lam,) = torch.autograd.grad(loss, final)
    nu = torch.zeros_like(lam)
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    rate_gradients = torch.zeros_like(rates)
    for t in reversed(range(first, len(batches))):
        nu = nu - rates[t] * lam
        gradient, by_weights, by_leaves = step.adjoint(path[t - first], nu, batches[t], leaves)
        rate_gradients[t] = -(lam @ (momentum * velocities[t - first] + gradient))
        for total, part in zip(gradients, by_leaves, strict=True):
            if part is not None:
                total += part
        if by_weights is not None:
            lam = lam + by_weights
        nu = momentum * nu
    return Sweep(loss.detach(), gradients, rate_gradients, path[-1].detach(), graphs)


class Step(Protocol):
    """What the sweep asks of one step at weights [P]; `batch` makes its inputs."""

    def gradient(self, weights: Tensor, batch: Callable[[], Batch], again: bool) -> Tensor:
        """Return the gradient g [P] of the loss by the weights. again: the adjoint of this step will be asked for."""

    def adjoint(
        self, weights: Tensor, nu: Tensor, batch: Callable[[], Batch], leaves: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None, Sequence[Tensor | None]]:
        """Return g, and the derivatives of <nu, g> by the weights (None: not asked for) and by the leaves."""


@dataclass
class PlainStep:
    """Any loss, differentiated twice by autograd. exact: also by the weights. steps: adjoints that will be asked for.

    The graph of a gradient is kept for the adjoint where those of all steps together are small; adjoints are asked for
    in the reverse order of the gradients.
    """

    loss: Callable[..., Tensor]
    exact: bool = True
    steps: int = 0
    graphs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    too_large: bool = False

    def gradient(self, weights: Tensor, batch: Callable[[], Batch], again: bool) -> Tensor:
        """Return the gradient g [P] of the loss by the weights."""
        if not again or self.too_large:
            with torch.no_grad():
                inputs = batch()
            point = weights.detach().requires_grad_()
            return torch.autograd.grad(self.loss(point, *inputs), point)[0]
        self.graphs.append(self._graph(weights, batch))
        gradient = self.graphs[-1][1]
        if len(self.graphs) == 1 and self.steps * graph_bytes(gradient) > KEPT:
            self.too_large = True
            self.graphs.clear()
        return gradient.detach()

    def adjoint(
        self, weights: Tensor, nu: Tensor, batch: Callable[[], Batch], leaves: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None, Sequence[Tensor | None]]:
        """Return g, and the derivatives of <nu, g> by the weights (None: not asked for) and by the leaves."""
        point, gradient = self.graphs.pop() if self.graphs else self._graph(weights, batch)
        targets = [point, *leaves] if self.exact else leaves
        found = torch.autograd.grad(gradient, targets, nu, allow_unused=True)
        return gradient.detach(), *((found[0], found[1:]) if self.exact else (None, found))

    def _graph(self, weights: Tensor, batch: Callable[[], Batch]) -> tuple[Tensor, Tensor]:
        """Return the weights as a leaf, and the gradient there with its graph."""
        point = weights.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.loss(point, *batch()), point, create_graph=True)
        return point, gradient


def graph_bytes(result: Tensor) -> int:
    """Return the size of the tensors that the graph of `result` keeps for its derivatives."""
    storages: dict[int, int] = {}
    nodes, found = [result.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in found:
            continue
        found.add(node)
        for name in _saved(type(node)):
            tensor = getattr(node, name)
            if isinstance(tensor, Tensor):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        nodes += [before for before, _ in node.next_functions]
    return sum(storages.values())


@functools.cache
def _saved(node: type) -> list[str]:
    return [name for name in dir(node) if name.startswith("_saved_")]


def _forward(
    step: Step, weights: Tensor, batches: Sequence[Callable[[], Batch]], rates: Tensor, momentum: float, first: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return w_t for t = first..T and v_t for t = first..T-1; without momentum all v_t are one shared zero vector."""
    path, velocity = [weights], torch.zeros_like(weights)
    velocities: list[Tensor] = []
    for t, (rate, batch) in enumerate(zip(rates, batches, strict=True)):
        if t <= first:  # nothing before the first step that is differentiated is kept
            path, velocities = path[-1:], []
        velocities.append(velocity)
        moved = momentum * velocity + step.gradient(path[-1], batch, again=t >= first)
        velocity = moved if momentum else velocity
        path.append(path[-1] - rate * moved)
    return path, velocities


def _stored(
    step_loss: Callable[..., Tensor],
    outer_loss: Callable[[Tensor], Tensor],
    weights: Tensor,
    batches: Sequence[Callable[[], Batch]],
    rates: Tensor,
    leaves: Sequence[Tensor],
    momentum: float,
) -> Sweep:
    rates = rates.clone().requires_grad_()
    point, velocity = weights.detach().requires_grad_(), torch.zeros_like(weights)
    for t, batch in enumerate(batches):
        (gradient,) = torch.autograd.grad(step_loss(point, *batch()), point, create_graph=True)
        velocity = momentum * velocity + gradient
        point = point - rates[t] * velocity
    loss = outer_loss(point)
    by_rates, *by_leaves = torch.autograd.grad(loss, [rates, *leaves], allow_unused=True)
    gradients = [torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, by_leaves, strict=True)]
    return Sweep(loss.detach(), gradients, by_rates.detach(), point.detach(), "stored")
