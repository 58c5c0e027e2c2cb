"""KIP: Kernel Inducing Points.

Nguyen, Chen, Lee, ICLR 2021 (arXiv 2011.00050); Nguyen, Novak, Xiao, Lee, NeurIPS 2021 (arXiv 2107.13034). The
network is replaced by the kernel of an infinitely wide one, so that training on the support is kernel ridge
regression and has a closed form. Images, and labels if wished, follow the gradient of its error on real data:

    A = K_ss + ridge * tr(K_ss)/n * I,   f = K_ts A^-1 Y_s,   loss = 1/2 mean((f - Y_t)^2)

Everything is float64. The gradient passes through K_ts, K_ss and the trace in the ridge. No network is used, whatever
network the suite names. Augmentation of the support (`augment` of the suite, off by default) is this benchmark's
option; the papers augment the target batch only, with strengths they do not state. The notebook standardises by the
deviation of the pixels; here the dataset's constants count, which for CIFAR-10 are those of the field (0.20, not 0.25).
`corruption` is that of the first paper: a fixed share of the support's values, drawn once, stays noise for ever.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from bench.api import DatasetInfo, DistilledSet, Method, NetSpec, Params, Preset, TaskSpec, param
from bench.distilled import make_set
from bench.errors import Diverged
from bench.lazy import torch
from methods.kernels import KERNELS, architecture, kernel
from methods.krr import RIDGE, centred, solve
from methods.parametrise import Pixels

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import Task

NOTEBOOK = "google-research/kip, KIP.ipynb"


class KIP(Method):
    """Move the support images (and labels) down the gradient of the kernel regression's error."""

    class Params(Params):
        """Hyper-parameters of KIP."""

        iterations: int = param(300, "gradient steps", source=NOTEBOOK, ge=1)
        kernel: str = param("fc1", KERNELS, source=NOTEBOOK)
        kind: Literal["ntk", "nngp"] = param("ntk", "which kernel of the infinitely wide network", source=NOTEBOOK)
        batch: int = param(5000, "real images per step, the same number of each class", source=NOTEBOOK, ge=1)
        lr: float = param(0.04, "Adam rate of images and labels", source=NOTEBOOK, gt=0)
        ridge: float = param(RIDGE, "ridge relative to the mean diagonal", source=NOTEBOOK, gt=0)
        labels: Literal["fixed", "learned"] = param("fixed", "whether labels are optimised too", source=NOTEBOOK)
        init: Literal["real", "noise"] = param("real", "first images", source=NOTEBOOK)
        corruption: float = param(
            0.0, "share of values that stay at their first noise", source="KIP, ICLR 2021", ge=0, lt=1
        )
        zca: bool = param(False, "KIP's whitening (per image, then ZCA), colour images only", source="dataset.ipynb")
        chunk: int = param(1000, "target images per block; bounds memory, changes nothing", source="ours", ge=1)

    title = "KIP: kernel inducing points"
    citation = "Nguyen et al., Dataset Distillation with Infinitely Wide Convolutional Networks, NeurIPS 2021"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the notebook's setting, published for CIFAR-10 with 100 images and the FC kernel."""
        published = dataset.family == "cifar10" and ipc == 10
        return Preset({}, NOTEBOOK if published else None)

    @classmethod
    def preprocessing(cls, params: Any, dataset: DatasetInfo) -> str:
        """Return KIP's whitening where the parameters ask for it."""
        return "zca-kip" if params.zca else "meanstd"

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any]:
        """Return the finite network's training: half the squared error on the centred labels."""
        return {"base": "kip"}

    @classmethod
    def native_network(cls, params: Any, spec: TaskSpec) -> NetSpec:
        """Return the notebook's finite network, without the convolution it puts before the three blocks."""
        return NetSpec(arch="convnet", norm="none", width=1024, init="lecun")

    @property
    def steps(self) -> int:
        """Return the number of gradient steps."""
        return self.params.iterations

    def start(self, task: Task) -> None:
        """Draw the support and set its labels; one Adam serves both."""
        p, classes = self.params, task.spec.dataset.classes
        architecture(p.kernel)
        self.task = task
        pixels = Pixels(task, init=p.init, rate=p.lr, momentum=0.0)
        self.images = pixels.pixels.detach().double().requires_grad_()
        self.frozen = self._corrupt() if p.corruption else None
        self.labels = centred(pixels.labels, classes, torch.float64).requires_grad_(p.labels == "learned")
        self.learned = [tensor for tensor in (self.images, self.labels) if tensor.requires_grad]
        self.optimiser = torch.optim.Adam(self.learned, lr=p.lr)
        self.kernel = kernel(p.kernel, p.kind)

    def _corrupt(self) -> Tensor:
        """Replace a share of all values by standard normal noise; return where, bool [n, c, h, w]."""
        rng = self.task.rng("corruption")
        frozen = torch.rand(self.images.shape, generator=rng, device=rng.device) < self.params.corruption
        noise = torch.randn(self.images.shape, generator=rng, device=rng.device, dtype=self.images.dtype)
        with torch.no_grad():
            self.images[frozen] = noise[frozen]
        return frozen

    def step(self) -> dict[str, float | Tensor]:
        """Do one gradient step on a fresh target batch."""
        task, classes = self.task, self.task.spec.dataset.classes
        with task.phase("data"):
            batch = task.data.train.sample_classes(
                max(1, self.params.batch // len(task.data.train.present)), task.rng("targets")
            )
            targets = centred(batch.labels, classes, torch.float64)
        with task.phase("set"):
            loss = self._gradient(batch.images.double(), targets)
            self.optimiser.step()
        return {"loss": loss}

    def _gradient(self, x_t: Tensor, y_t: Tensor) -> Tensor:
        """Set the gradients of what is learned; return the loss. Memory holds one block of targets at a time.

        The loss is a sum over targets once W = A^-1 Y_s is known, so blocks collect the derivative by W, which is
        then carried back through the solve.
        """
        self.optimiser.zero_grad()
        images = self.task.augment(self.images, self.task.rng("augment"))
        seen = images.detach().requires_grad_()
        try:
            weights = solve(self.kernel(seen, seen), self.labels, self.params.ridge)
        except torch.linalg.LinAlgError as error:
            raise Diverged("the kernel matrix of the support is not positive definite") from error
        held = weights.detach().requires_grad_()
        total = self._collect(x_t, y_t, seen, held)
        weights.backward(held.grad)
        images.backward(seen.grad)
        if self.frozen is not None and self.images.grad is not None:
            self.images.grad[self.frozen] = 0  # Adam leaves what never has a gradient where it is
        return total

    def _collect(self, x_t: Tensor, y_t: Tensor, seen: Tensor, weights: Tensor) -> Tensor:
        """Add the derivatives of the loss by support and weights to their gradients, in blocks; return the loss."""
        total = torch.zeros((), dtype=x_t.dtype, device=x_t.device)
        for x, y in zip(x_t.split(self.params.chunk), y_t.split(self.params.chunk), strict=True):
            loss = (self.kernel(x, seen) @ weights - y).square().sum() / (2 * y_t.numel())
            loss.backward()
            total += loss.detach()
        return total

    def export(self) -> DistilledSet:
        """Return images and centred labels."""
        return make_set(
            self.task,
            self,
            images=self.images.float(),
            labels=self.labels.float(),
            header={"label_kind": "centred"},
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what is learned and the optimiser's moments."""
        return {
            "learned": [tensor.detach().clone() for tensor in self.learned],
            "optimiser": copy.deepcopy(self.optimiser.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        with torch.no_grad():
            for tensor, value in zip(self.learned, state["learned"], strict=True):
                tensor.copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
