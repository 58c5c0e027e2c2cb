"""What one trained network says of images, in float64: its features, and its logits from them.

One pass per network and set of images; scores are made of what it returns. The logits are computed anew by the linear
head: networks trained on a few images are confident beyond the precision of float32, and saturated scores would tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import UserError
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.train import Handle


@dataclass(frozen=True)
class Seen:
    """What a network says of images: features [n, d] and logits [n, K], float64.

    perturbed: logits [n, K] of the images after ODIN's step, where that was asked for.
    """

    features: Tensor
    logits: Tensor
    perturbed: Tensor | None = None


@dataclass(frozen=True)
class Head:
    """The last layer: logits = features weight' + bias. weight [K, d], bias [K], float64."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the logits [n, K] of features [n, d]."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Network:
    """One trained network in evaluation mode."""

    module: nn.Module
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    head: Head

    @classmethod
    def of(cls, handle: Handle, e: int) -> Network:
        """Return network e of several. Raises `UserError` for one whose head is not one linear layer."""
        module = handle.module.eval()
        if not isinstance(module.head, torch.nn.Linear):
            raise UserError(f"the head of {handle.spec.arch} is no linear layer", hint="evaluate another network")
        params, buffers = handle.network(e)
        return cls(module, params, buffers, Head(exact(params["head.weight"]), exact(params["head.bias"])))

    def features(self, images: Tensor) -> Tensor:
        """Return the features [n, d] of preprocessed images, in the precision of the network."""
        from bench.nets import call

        return call(self.module, self.params, self.buffers, images, features=True)[0]

    def look(self, images: Iterable[Tensor]) -> Seen:
        """Return what it says of preprocessed images, given in batches float32 [b, c, h, w]."""
        with torch.no_grad():
            features = torch.cat([exact(self.features(batch)) for batch in images])
        return Seen(features, self.head(features))

    def stepped(self, pixels: Tensor, forward: Callable[[Tensor], Tensor], temperature: float, step: float) -> Tensor:
        """Return preprocessed images made more like what they are taken for (ODIN; Liang, Li and Srikant, ICLR 2018).

        forward(pixels - step * sign(gradient of the cross entropy of z / T with the predicted class)), where forward
        is the preprocessing. For standardised pixels that is the published step, divided by the deviation.
        """
        with torch.enable_grad():
            pixels = pixels.detach().requires_grad_()
            logits = self.head(exact(self.features(forward(pixels))))
            loss = F.cross_entropy(logits / temperature, logits.argmax(1), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, pixels)
        return forward(pixels.detach() - step * gradient.sign())


def exact(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
