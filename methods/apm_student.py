"""The step of APM's students in a compiled function, for runs that are long enough (see `bench.compiled`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench import compiled
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor, nn

Tensors = dict[str, "Tensor"]


class StudentGradients:
    """Gradients of the mean loss between a student's logits and its targets; true where they are compiled.

    size: images of a full batch; a shorter one is filled up with images that do not count, so that one shape is
    compiled. work: multiply-adds of all students. A network with BatchNorm sees its batch and stays plain.
    """

    def __init__(
        self, student: nn.Module, loss: Literal["l1", "soft_ce"], *, size: int, work: float, device: torch.device
    ) -> None:
        self.student, self.loss, self.size = student, loss, size
        wanted: compiled.Wanted = "never" if list(student.buffers()) else "auto"
        self.compiled = compiled.function(self._gradients, "student step", work=work, device=device, wanted=wanted)

    def __bool__(self) -> bool:
        return bool(self.compiled)

    @property
    def choice(self) -> str:
        """Say whether the step is compiled, or why not."""
        return self.compiled.choice

    def set(self, images: Tensor, targets: Tensor) -> None:
        """Set the gradients of the student's parameters for a batch [n, c, h, w] and what it is to predict."""
        share = images.new_full((len(images),), 1 / len(images))
        missing = self.size - len(images)
        filled = [F.pad(rows, [0, 0] * (rows.dim() - 1) + [0, missing]) for rows in (images, targets, share)]
        weights = {name: weight.detach() for name, weight in self.student.named_parameters()}
        found = self.compiled(weights, *filled)
        for name, weight in self.student.named_parameters():
            weight.grad = found[name]

    def _gradients(self, weights: Tensors, images: Tensor, targets: Tensor, share: Tensor) -> Tensors:
        from bench.train import losses

        def loss(weights: Tensors) -> Tensor:
            logits = torch.func.functional_call(self.student, weights, (images,))
            return (losses.of_each(self.loss, logits, targets) * share).sum()

        return torch.func.grad(loss)(weights)
