"""FRePo: Dataset Distillation using Neural Feature Regression, with a pool of models.

Zhou, Nezhadarya, Ba, NeurIPS 2022 (arXiv 2206.00719). The inner problem is kernel ridge regression on the features of
a finite network that is itself trained on the distilled set, one step at a time. A pool of such networks at staggered
ages, each replaced when too old, keeps them diverse.

    loss = mean_i 1/2 ||f_i - y_i||^2 - mean_i min(top1(y_s) - top2(y_s), 1/K),   f = F_t F_s^T A^-1 Y_s

What ports to PyTorch lost points on is kept as in the authors' JAX code: LeCun initialisation, BatchNorm with
momentum 0.1 in Flax's sense, LAMB with one trust ratio per tensor and no decay, labels scaled by sqrt(10/K).

The networks of the pool are the method's own (`arch`, `norm`, `width`, `depth`), whatever network the suite names;
their norm layers serve the distillation only. `recipe: native` evaluates as the authors do, with the same network
without norm.

Where this differs: the whole state, the pool included, is in checkpoints; kernel and regression weights are float64
(the authors' float32 solve gave users NaN at 5,000 images); each real batch is drawn without replacement from all data
instead of from a shuffle buffer; running variances are unbiased as always in torch; no block ZCA, so images above 64
pixels stay unwhitened; the result is the last iterate, not the best on the test set.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from bench import compiled
from bench.api import DatasetInfo, DistilledSet, Method, NetSpec, Params, Preset, TaskSpec, param
from bench.distilled import make_set
from bench.errors import Diverged
from bench.lazy import torch
from bench.nets.spec import resolve
from methods.krr import RIDGE, centred, solve
from methods.matching import images_per_pass, in_passes
from methods.parametrise import Pixels

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.api import Task

CODE = "yongchao97/FRePo, README and script/distill.py"
EVALUATION = "yongchao97/FRePo, script/eval.py"
FLIPPED = {"cifar10", "imagenette", "imagenette2", "imagewoof", "imagewoof2", "cub200"}
"""Families whose distilled images are mirrored at every IPC; CIFAR-100 and Tiny-ImageNet at IPC 1 only."""
PUBLISHED = {
    "mnist": (1, 10, 50),
    "fashion_mnist": (1, 10, 50),
    "cifar10": (1, 10, 50),
    "cifar100": (1, 10, 50),
    "tiny_imagenet": (1, 10),
}
STEPS = {10: 1000, 100: 2000, 200: 20000, 400: 5000, 500: 5000, 1000: 10000, 2000: 40000, 5000: 40000}
"""Final evaluation steps by the number of distilled images (script/eval.py)."""


class FRePo(Method):
    """Learn images and labels by kernel ridge regression on the features of a pool of networks."""

    class Params(Params):
        """Hyper-parameters of FRePo."""

        iterations: int = param(500_000, "outer iterations", source=CODE, ge=1)
        pool: int = param(10, "networks in the pool", source=CODE, ge=1)
        max_age: int = param(100, "online updates after which a network is replaced", source=CODE, ge=0)
        batch: int = param(1024, "real images per iteration, classes mixed", source=CODE, ge=1)
        lr: float = param(3e-4, "LAMB rate of images and labels, cosine to a tenth", source=CODE, gt=0)
        lr_net: float = param(3e-4, "Adam rate of the online updates", source=CODE, gt=0)
        online_batch: int = param(1000, "most distilled images in an online update", source=CODE, ge=1)
        ridge: float = param(RIDGE, "ridge relative to the mean diagonal", source=CODE, gt=0)
        flip: bool = param(False, "also regress on the mirrored distilled images", source=CODE)
        learn_labels: bool = param(True, "whether labels are optimised too", source=CODE)
        zca: bool = param(False, "whitened space (FRePo's ZCA)", source=CODE)
        arch: str = param("frepo_conv", "network architecture, its norm layers only while distilling", source=CODE)
        norm: str = param("bn", "normalisation while distilling; evaluation has none", source=CODE)
        width: int | None = param(None, "width of the first block; None: 128", source=CODE, ge=1)
        depth: int | None = param(None, "blocks; None: by image size", source=CODE, ge=1)
        chunk: int | None = param(None, "distilled images in one graph; None: all; bounds memory", source="ours", ge=1)

    title = "FRePo: neural feature regression with a pool of models"
    citation = "Zhou, Nezhadarya, Ba, Dataset Distillation using Neural Feature Regression, NeurIPS 2022"
    lengths: ClassVar[Mapping[int, int]] = STEPS

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the README's settings: flips where they help, whitening for colour images that are not too large."""
        family, (channels, height, width) = dataset.family, dataset.shape
        few = family in ("cifar100", "tiny_imagenet") and ipc == 1
        values = {"zca": channels == 3 and max(height, width) <= 64, "flip": family in FLIPPED or few}
        return Preset(values, CODE if ipc in PUBLISHED.get(family, ()) else None)

    @classmethod
    def preprocessing(cls, params: Any, dataset: DatasetInfo) -> str:
        """Return FRePo's whitening where the parameters ask for it."""
        return "zca-frepo" if params.zca else "meanstd"

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any] | None:
        """Return the authors' final evaluation, for sizes they give."""
        images = (spec.ipc or 0) * spec.dataset.classes
        return {"base": "frepo", "steps": cls.lengths[images]} if images in cls.lengths else {"base": "frepo"}

    @classmethod
    def native_network(cls, params: Any, spec: TaskSpec) -> NetSpec:
        """Return the network of the pool without its norm layers, as the authors evaluate."""
        return cls.network_of(params).model_copy(update={"norm": "none"})

    @staticmethod
    def network_of(params: Any) -> NetSpec:
        """Return the network of the pool."""
        return NetSpec(arch=params.arch, norm=params.norm, width=params.width, depth=params.depth, init="lecun")

    @property
    def steps(self) -> int:
        """Return the number of outer iterations."""
        return self.params.iterations

    # -------------------------------------------------------------------------------- start

    embed: compiled.Compiled | None = None

    def start(self, task: Task) -> None:
        """Draw images, set labels, fill the pool."""
        p, classes = self.params, task.spec.dataset.classes
        self.task, self.count = task, 0
        pixels = Pixels(task, init="real", rate=p.lr, momentum=0.0)
        self.images = pixels.pixels
        labels = centred(pixels.labels, classes, self.images.dtype) / (classes / 10) ** 0.5
        self.labels = labels.requires_grad_(p.learn_labels)
        self.learned = [tensor for tensor in (self.images, self.labels) if tensor.requires_grad]
        self.lamb = Lamb(self.learned)
        self.networks = [task.network(self.network_of(p)) for _ in range(p.pool)]
        self.optimisers = [self._fresh(network) for network in self.networks]
        self.ages = [p.max_age // p.pool * i for i in range(p.pool)]
        self.embed = self._embedding()

    def _embedding(self) -> compiled.Compiled:
        """Return the features [n, q] of images as a function of a network's weights, compiled if the run is long."""
        from bench import nets
        from bench.nets.layers import Features

        task, p = self.task, self.params
        network = task.network(self.network_of(p)).eval()
        features = Features(network)

        def embed(state: dict[str, Tensor], images: Tensor) -> Tensor:
            return torch.func.functional_call(features, state, (images,))

        passes = p.batch + 3 * len(self.images) * (1 + p.flip)  # forward; forward and backward
        work = self.steps * passes * nets.multiply_adds(network, task.spec.dataset.shape)
        wanted: compiled.Wanted = "auto" if p.chunk is None else "never"
        return compiled.function(embed, "features", work=work, device=task.device, wanted=wanted)

    def choices(self) -> Mapping[str, Any]:
        """Return what was chosen for speed."""
        return {"features": self.embed.choice} if self.embed is not None else {}

    def _fresh(self, network: nn.Module) -> torch.optim.Adam:
        from bench.nets import initialise

        initialise(network, self.task.rng("network"), "lecun")
        return torch.optim.Adam(network.parameters(), lr=self.params.lr_net)

    # -------------------------------------------------------------------------------- one outer iteration

    def step(self) -> dict[str, float | Tensor]:
        """Do one outer iteration: a step of images and labels on one network, then a step of that network on them."""
        p, task = self.params, self.task
        rng = task.rng("pool")
        who = int(torch.randint(p.pool, (), generator=rng, device=rng.device))
        network = self.networks[who].eval()
        with task.phase("data"):
            batch = task.data.train.sample_mixed(p.batch, task.rng("real"))
            targets = centred(batch.labels, task.spec.dataset.classes, self.images.dtype)
        with task.phase("set"):
            with torch.no_grad():
                size = images_per_pass(None, batch.images) if self.embed else None
                real = in_passes(partial(self._embed, network), batch.images, size, bool(self.embed))
            loss = self._regression(network, real, targets)
            gradients = torch.autograd.grad(loss + label_margin(self.labels), self.learned)
            self.lamb.step(gradients, p.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * self.count / p.iterations))))
            self.count += 1
        with task.phase("network"):
            self._online(who)
        return {"loss": loss.detach()}

    def _regression(self, network: nn.Module, real: Tensor, targets: Tensor) -> Tensor:
        """Return the regression loss of real features [b, q] and their labels [b, K], 0-d."""
        images, labels = self.images, self.labels
        if self.params.flip:
            images, labels = torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
        features = self._features(network, images).double()
        try:
            weights = solve(features @ features.T, labels.double(), self.params.ridge)
        except torch.linalg.LinAlgError as error:
            raise Diverged(f"the kernel matrix is not positive definite at outer step {self.count + 1}") from error
        return self._loss(real @ (features.T @ weights).to(real.dtype), targets, real)

    def _features(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return the features of distilled images [n, q]; with `chunk`, blocks are computed again for their derivative.

        In evaluation mode an image's features do not depend on those beside it, so blocks are exact.
        """
        if self.params.chunk is None:
            return self._embed(network, images)
        from torch.utils.checkpoint import checkpoint

        def recomputed(block: Tensor) -> Tensor:
            return checkpoint(network.features, block, use_reentrant=False, preserve_rng_state=False)

        return torch.cat([recomputed(block) for block in images.split(self.params.chunk)])

    def _embed(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return the features of images [n, q], differentiable by the images."""
        if not self.embed:
            return network.features(images)  # type: ignore[operator]
        return self.embed({f"network.{name}": value for name, value in network.state_dict().items()}, images)

    def _loss(self, predicted: Tensor, targets: Tensor, real: Tensor) -> Tensor:
        """Return the loss of predictions [b, K] made from real features [b, q], 0-d."""
        return (predicted - targets).square().sum(1).mean() / 2

    def _online(self, who: int) -> None:
        """Train network `who` one step on the distilled set, or replace it when it is too old."""
        p, network = self.params, self.networks[who]
        if self.ages[who] > p.max_age:
            self.optimisers[who], self.ages[who] = self._fresh(network), 0
            return
        images, labels = self.images.detach(), self.labels.detach()
        if len(images) >= p.online_batch:
            rng = self.task.rng("online")
            index = torch.randperm(len(images), generator=rng, device=rng.device)[: p.online_batch]
            images, labels = images[index], labels[index]
        network.train()
        optimiser = self.optimisers[who]
        optimiser.zero_grad()
        ((network(images) - labels).square().sum(1).mean() / 2).backward()
        optimiser.step()
        self.ages[who] += 1

    # -------------------------------------------------------------------------------- result and state

    def export(self) -> DistilledSet:
        """Return images and learned labels."""
        network = resolve(self.network_of(self.params), self.task.spec.dataset.shape)
        header = {"label_kind": "centred", "network": network.model_dump(mode="json")}
        return make_set(self.task, self, images=self.images.clone(), labels=self.labels.clone(), header=header)

    def state_dict(self) -> dict[str, Any]:
        """Return images, labels, LAMB's moments and the whole pool."""
        return {
            "learned": [tensor.detach().clone() for tensor in self.learned],
            "lamb": self.lamb.state_dict(),
            "networks": [copy.deepcopy(network.state_dict()) for network in self.networks],
            "optimisers": [copy.deepcopy(optimiser.state_dict()) for optimiser in self.optimisers],
            "ages": list(self.ages),
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        with torch.no_grad():
            for tensor, value in zip(self.learned, state["learned"], strict=True):
                tensor.copy_(value)
        self.lamb.load_state_dict(state["lamb"])
        for network, value in zip(self.networks, state["networks"], strict=True):
            network.load_state_dict(value)
        for optimiser, value in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(value)
        self.ages, self.count = list(state["ages"]), state["count"]


def label_margin(labels: Tensor) -> Tensor:
    """Return minus the mean gap between the two largest labels of a row, each at most 1/K, 0-d."""
    largest = labels.topk(2, dim=1).values
    return -(largest[:, 0] - largest[:, 1]).clamp(max=1 / labels.shape[1]).mean()


class Lamb:
    """LAMB (You et al. 2020) without weight decay, one trust ratio per tensor: a step has length rate * ||tensor||."""

    def __init__(self, tensors: list[Tensor], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6) -> None:
        self.tensors, self.betas, self.eps, self.count = tensors, betas, eps, 0
        self.first = [torch.zeros_like(tensor) for tensor in tensors]
        self.second = [torch.zeros_like(tensor) for tensor in tensors]

    def step(self, gradients: tuple[Tensor, ...], rate: float) -> None:
        """Move every tensor by its gradient."""
        self.count += 1
        beta1, beta2 = self.betas
        with torch.no_grad():
            for tensor, gradient, m, v in zip(self.tensors, gradients, self.first, self.second, strict=True):
                m.lerp_(gradient, 1 - beta1)
                v.lerp_(gradient.square(), 1 - beta2)
                direction = m / (1 - beta1**self.count) / ((v / (1 - beta2**self.count)).sqrt() + self.eps)
                size, length = tensor.norm(), direction.norm()
                trust = torch.where((size > 0) & (length > 0), size / length, 1.0)
                tensor -= rate * trust * direction

    def state_dict(self) -> dict[str, Any]:
        """Return the moments."""
        return {
            "count": self.count,
            "first": [m.clone() for m in self.first],
            "second": [v.clone() for v in self.second],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.count = state["count"]
        for own, value in zip([*self.first, *self.second], [*state["first"], *state["second"]], strict=True):
            own.copy_(value)
