"""DM: Dataset Condensation with Distribution Matching (Zhao, Bilen; WACV 2023; arXiv 2110.04181).

Learns images whose mean embedding equals that of real images, class by class, under many random networks that are
never trained (an MMD with a linear kernel on random features). Real and synthetic images of a class go through the
same random augmentation. No second derivatives and no inner loop: the cheapest of the matching methods.

Long runs embed by compiled code, which changes results by rounding (`bench.compiled`); `precision: bf16` embeds in
bfloat16, at twice the speed on a CPU that has it, where compiled. Networks with BatchNorm are never compiled here.

Networks with BatchNorm embed all classes together, in train mode, so that the statistics are those of all classes
and not of one (separately for real and synthetic images). K+1 iterations, as in the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_serializer

from bench import compiled
from bench.api import DatasetInfo, Params, Preset, TaskSpec, param
from bench.data import Batch
from bench.lazy import torch
from methods.matching import Classes, batch_norms, images_per_pass, match_features, sample_real
from methods.parametrise import Parametrised

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import Task

CODE = "VICO-UoE/DatasetCondensation at 53f63a6"
PUBLISHED = {"cifar10": (1, 10, 50, 100, 200, 500, 1000, 1250), "cifar100": (1, 10, 50, 100, 125)}
"""Images per class for which the authors' readme gives the setting."""


class DMParams(Params):
    """Hyper-parameters of distribution matching."""

    iterations: int = param(20000, "K: the last iteration; they count from 0, so K+1 are done", source=CODE, ge=0)
    lr_img: float = param(
        1.0,
        "learning rate of the images; goes with the sum over features and with 1/IPC of the mean's derivative (0.1 or "
        "0.01 advised for ResNet)",
        source=CODE,
        ge=0,
    )
    momentum: float = param(0.5, "momentum of the images", source=CODE, ge=0, lt=1)
    batch_real: int = param(256, "real images per class and iteration", unit="images", source=CODE, ge=1)
    init: Literal["noise", "real"] = param("real", "first images: standard normal, or training images", source=CODE)
    classes: Classes = param(
        "auto",
        "embed class by class or all classes together; differs only for BatchNorm, where `joint` and `auto` are the "
        "paper's",
    )
    chunk: int | None = param(
        None,
        "images in one pass (without BatchNorm); None: by image size and device",
        unit="images",
        ge=1,
    )
    precision: Literal["fp32", "bf16"] = param("fp32", "bf16: embeddings under autocast, their means in float32")

    @model_serializer(mode="wrap")
    def _as_before(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leave out the precision where it is what it was before there was a choice: keys stay what they were."""
        return {name: value for name, value in handler(self).items() if (name, value) != ("precision", "fp32")}


class DM(Parametrised):
    """Distribution matching."""

    Params = DMParams
    version = 1
    title = "DM: distribution matching"
    citation = "Zhao, Bilen: Dataset Condensation with Distribution Matching, WACV 2023, arXiv 2110.04181"
    augment = "dsa"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the authors' setting; no source where they give none (anything but CIFAR), which is by analogy."""
        many = dataset.family == "cifar10" and ipc >= 100
        known = ipc in PUBLISHED.get(dataset.family, ())
        return Preset({"lr_img": 10.0 if many else 1.0}, f"arXiv 2110.04181; {CODE}, readme" if known else None)

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any] | None:
        """Return the paper's evaluation: that of DSA, 1000 epochs under the same family of augmentations."""
        return {"base": "dm"}

    def start(self, task: Task) -> None:
        """Create the images and the network that every iteration draws anew."""
        self.task = task
        self.set = self.parametrise(task)
        self.model = task.network().requires_grad_(False).train()
        self.embed = self.embedding()

    def embedding(self) -> compiled.Compiled:
        """Return the function that embeds images, to be compiled if the run is long."""
        from bench import nets

        task, p = self.task, self.params
        bf16 = p.precision == "bf16"

        def embed(images: Tensor) -> Tensor:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                return self.model.features(images).to(images.dtype)  # type: ignore[operator]

        passes = p.batch_real * len(self.set.counts) + 3 * len(self.set.labels)  # forward; forward and backward
        work = self.steps * passes * nets.multiply_adds(self.model, task.spec.dataset.shape)
        wanted: compiled.Wanted = "never" if batch_norms(self.model) else "auto"
        return compiled.function(embed, "embedding", work=work, device=task.device, wanted=wanted)

    def choices(self) -> Mapping[str, Any]:
        """Return what was chosen for speed."""
        chosen = {"embedding": self.embed.choice}
        if batch_norms(self.model):  # all classes together
            return chosen
        return chosen | {"images in a pass": images_per_pass(self.params.chunk, self.set.images())}

    def step(self) -> dict[str, float | Tensor]:
        """Do one iteration: a fresh network, one image update. The loss is the mean over classes."""
        task, p = self.task, self.params
        self.draw_network()
        with task.phase("data"):
            real, draw = sample_real(task, p.batch_real)
        with task.phase("set"):
            images = task.augment.apply(self.set.images(), draw)
            synthetic = Batch(images, self.set.labels, self.set.counts)
            losses, derivative = self.match(real, synthetic)
            self.set.update(images, derivative)
        return {
            "loss": losses.mean(),
            "real_images": len(real.labels),
            "synthetic_images": len(self.set.labels),
        }

    def draw_network(self) -> None:
        """Draw the network of this iteration."""
        with self.task.phase("network"):
            self.task.initialise(self.model, self.task.rng("network"))

    def match(self, real: Batch, synthetic: Batch) -> tuple[Tensor, Tensor]:
        """Return the distance of each class and the derivative of their sum by the synthetic images."""
        p = self.params
        return match_features(self.model, real, synthetic, classes=p.classes, chunk=p.chunk, embed=self.embed)
