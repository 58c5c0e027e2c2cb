"""DC: Dataset Condensation with Gradient Matching (Zhao, Mopuri, Bilen; ICLR 2021; arXiv 2006.05929).

Learns images whose training gradient points where that of real images points, class by class and output unit by
output unit, along the path of a network that is itself trained on the images learned so far.

    for each outer iteration (a `step`):
        draw a fresh network
        T times: one SGD step of the images on the summed distance of the class gradients
                 some epochs of SGD of the network on the images (not after the last of the T)

Follows the released code (VICO-UoE/DatasetCondensation at 53f63a6) where it is more precise than the paper: K+1 outer
iterations, one image step for the sum over classes (the paper steps class by class; equal, since no class sees another
one), epochs rather than steps of the network. Departs from it for networks with BatchNorm, see `statistics`.
The released evaluation replaces a network with BatchNorm by the same one without; here the suite names the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bench.api import DatasetInfo, Params, Preset, TaskSpec, param
from bench.data import Batch
from bench.lazy import F, torch
from methods.matching import (
    Classes,
    Distance,
    batch_norms,
    compared,
    freeze_statistics,
    match_gradients,
    sample_real,
)
from methods.matching_compiled import CompiledGradients
from methods.parametrise import Parametrised

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import Task
    from bench.augment import Draw

CODE = "VICO-UoE/DatasetCondensation at 53f63a6"
FAMILIES = ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100")
STATISTICS_PER_CLASS = 16  # real images per class behind the BatchNorm statistics, as in the paper and the code

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""IPC -> image updates per network, epochs of the network between them (released code)."""


def loops(ipc: int) -> tuple[int, int]:
    """Return (outer_loop, inner_loop) for a number of images per class.

    The released code knows the six sizes of `LOOPS` only. For others this benchmark takes those of the nearest one,
    the smaller of two equally near.
    """
    return LOOPS[min(LOOPS, key=lambda known: (abs(known - ipc), known))]


class DCParams(Params):
    """Hyper-parameters of gradient matching."""

    iterations: int = param(1000, "K: the last outer iteration; they count from 0, so K+1 are done", source=CODE, ge=0)
    outer_loop: int | None = param(None, "T: image updates per network; None: by IPC, see the preset", ge=1)
    inner_loop: int | None = param(
        None, "training of the network between image updates; None: by IPC, see the preset", unit="epochs", ge=0
    )
    lr_img: float = param(0.1, "learning rate of the images; the code advises 0.01 for the MLP", source=CODE, ge=0)
    momentum: float = param(0.5, "momentum of the images, kept over all networks", source=CODE, ge=0, lt=1)
    lr_net: float = param(0.01, "learning rate of the network (plain SGD)", source=CODE, ge=0)
    batch_real: int = param(256, "real images per class and image update", unit="images", source=CODE, ge=1)
    batch_train: int = param(256, "batch of the network's training", unit="images", source=CODE, ge=1)
    init: Literal["noise", "real"] = param("noise", "first images: standard normal, or training images", source=CODE)
    distance: Distance = param(
        "ours", "ours: cosine of each output unit, summed; mse, cos: of all gradients as one vector", source=CODE
    )
    statistics: Literal["batch", "running"] = param(
        "batch",
        "BatchNorm while matching: statistics of 16 real images per class, as the paper says, or the running average "
        "after one step towards them (one tenth), as the released code computes",
    )
    classes: Classes = param(
        "auto", "gradients class by class, of all classes in one pass, or the faster; equal up to rounding"
    )
    chunk: int | None = param(None, "images in one joint pass; None: by image size and device", unit="images", ge=1)


class DC(Parametrised):
    """Gradient matching. `DSA` is this class with a siamese augmentation and real first images."""

    Params = DCParams
    version = 1
    title = "DC: gradient matching"
    citation = "Zhao, Mopuri, Bilen: Dataset Condensation with Gradient Matching, ICLR 2021, arXiv 2006.05929"
    published: ClassVar[str] = "arXiv 2006.05929; " + CODE + ", main.py and get_loops"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the one setting the paper uses for all datasets, with the loops of this IPC.

        No source for sets the paper does not have: Tiny-ImageNet, CIFAR-100 with 50 images, others by analogy.
        """
        outer, inner = loops(ipc)
        sizes = (1, 10) if dataset.family == "cifar100" else (1, 10, 50)
        known = dataset.family in FAMILIES and ipc in sizes
        return Preset({"outer_loop": outer, "inner_loop": inner}, cls.published if known else None)

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any] | None:
        """Return the paper's evaluation: 300 epochs without augmentation (MNIST: 1000 with one of its own)."""
        return {"base": "dc"}

    def start(self, task: Task) -> None:
        """Create the images and the network that every outer iteration draws anew."""
        p = self.params
        self.task = task
        self.set = self.parametrise(task)
        outer, inner = loops(task.spec.ipc or 1)
        self.outer_loop = outer if p.outer_loop is None else p.outer_loop
        self.inner_loop = inner if p.inner_loop is None else p.inner_loop
        self.model = task.network()
        self.model_optimiser = torch.optim.SGD(self.model.parameters(), lr=p.lr_net)  # no momentum: no state
        self.normalised_by_batch = bool(batch_norms(self.model))
        self.fast = self.gradients()

    def gradients(self) -> CompiledGradients | None:
        """Return the matching of gradients in compiled functions; None where the parameters say how to go about it."""
        from bench import nets

        task, p = self.task, self.params
        if self.normalised_by_batch or p.classes == "joint":
            return None
        images = 3 * p.batch_real * len(self.set.counts) + 6 * len(self.set.labels)  # in forward passes of one image
        work = self.steps * self.outer_loop * images * nets.multiply_adds(self.model, task.spec.dataset.shape)
        names = compared(self.model, p.distance)
        return CompiledGradients(self.model, names, p.distance, work=work, device=task.device)

    def choices(self) -> Mapping[str, Any]:
        """Return what was chosen for speed."""
        return {"gradients": self.fast.choice if self.fast else "plain: BatchNorm, or all classes in one pass"}

    def step(self) -> dict[str, float | Tensor]:
        """Do one outer iteration: a fresh network, T image updates. The loss is their mean, per class."""
        with self.task.phase("network"):
            self.task.initialise(self.model, self.task.rng("network"))
        self.real_images = self.network_steps = 0
        losses = []
        for update in range(self.outer_loop):
            losses.append(self.update_images())
            if update < self.outer_loop - 1:
                self.update_network()
        return {
            "loss": torch.stack(losses).mean() / len(self.set.counts),
            "real_images": self.real_images,
            "synthetic_images": self.outer_loop * len(self.set.labels),
            "network_steps": self.network_steps,
        }

    def update_images(self) -> Tensor:
        """Match the gradients of all classes once, step the images; return the summed distance, 0-d."""
        task, p = self.task, self.params
        if self.normalised_by_batch:
            with task.phase("data"):
                images = task.data.train.sample_classes(STATISTICS_PER_CLASS, task.rng("statistics")).images
            with task.phase("set"):
                freeze_statistics(self.model, images, p.statistics)
            self.real_images += len(images)
        with task.phase("data"):
            real, draw = self.draw_real()
        self.real_images += len(real.labels)
        with task.phase("set"):
            images = task.augment.apply(self.set.images(), draw)
            copied = images.detach().clone()  # the update changes pixels in place
            self.matched = real, Batch(copied, self.set.labels, self.set.counts)
            losses, derivative = match_gradients(
                self.model,
                *self.matched,
                distance=p.distance,
                classes=p.classes,
                chunk=p.chunk,
                fast=self.fast,
            )
            self.set.update(images, derivative)
        return losses.sum()

    def draw_real(self) -> tuple[Batch, Draw]:
        """Return the augmented real images to match, and the augmentation of each class."""
        return sample_real(self.task, self.params.batch_real)

    def update_network(self) -> None:
        """Train the network for `inner_loop` epochs on the images as they are now, each batch augmented by itself."""
        task = self.task
        with task.phase("network"):
            self.model.train()
            images, labels = self.set.images().detach(), self.set.labels
            rng = task.rng("order")
            for _ in range(self.inner_loop):
                order = torch.randperm(len(labels), generator=rng, device=rng.device).to(task.device)
                for index in order.split(self.params.batch_train):
                    batch = task.augment(images[index], task.rng("augment network"))
                    self.model_optimiser.zero_grad()
                    F.cross_entropy(self.model(batch), labels[index]).backward()
                    self.model_optimiser.step()
                    self.network_steps += 1
