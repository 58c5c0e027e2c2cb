"""GLaD: Generalizing Dataset Distillation via Deep Generative Prior.

Cazenavette, Wang, Torralba, Efros, Zhu, CVPR 2023 (arXiv 2305.01649). Any matching method learns the latents of a
pretrained class-conditional generator in place of pixels: its images transfer better to networks they were not made
with. `Latents` is the parametrisation; here it stands under gradient, distribution and trajectory matching.

    (W, F) of random noise  ->  decoded images  ->  loss of DC, DM or MTT  ->  back through the generator

The generator: the authors' StyleGAN-XL is a file of the user, turned once into tensors by `ddbench convert-generator`
and named as `generator: FILE`; it is looked for in the folder `generators` of the data. Everywhere else a small one is
trained on the dataset's training images (`generator: trained`), or only drawn (`random`, the paper's own control).
The authors' layers and rates belong to their generator. For others `layer` is the same relative depth, and `calibrate`
scales the rates so that a step moves the images as one of pixels would.

Follows the released code (GeorgeCazenavette/glad at fe62863) in this: GLaD-DC updates the images once per network,
so the network is never trained, at every IPC; styles without feature maps take the rate of the feature maps; images
are never clamped. Differs in this: ImageNet is normalised with its own means (the code takes those of SVHN); the result
is the last iterate (the code reports the best of every 100 iterations on the test set); GLaD-MTT differentiates the
whole student, where the code drops how later weights depend on earlier images, `sweep: identity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Strict

from bench.api import DatasetInfo, Need, Params, Preset, TaskSpec, param
from bench.data.imagenet import SUBSETS
from methods import dc, dm, generator, mtt
from methods.latents import Latents
from methods.parametrise import Parametrised

if TYPE_CHECKING:
    from bench.api import Task
    from bench.unroll import Mode
    from methods.parametrise import Parametrisation

CODE = "GeorgeCazenavette/glad at fe62863"
README = CODE + ", readme"


class LatentParams(Params):
    """What is learned in place of pixels. For parameters of a method with `lr_img`, `momentum` and `init`."""

    space: Literal["wp", "p"] = param("wp", "wp: latents of a generator; p: pixels, without one", source=CODE)
    generator: str = param(
        "trained", "trained: on the dataset; random: not trained; else a converted checkpoint in the folder generators"
    )
    generator_epochs: int = param(30, "training of the small generator", unit="epochs", ge=1)
    generator_classes: Annotated[tuple[int, ...], Strict(False)] | None = param(
        None, "the generator's class for each class of the dataset; None: the same, or those of the ImageNet subset"
    )
    layer: int | float = param(
        0.64, "feature maps are learned after this many layers; a fraction is of all but the last; -1: styles alone"
    )
    first: Literal["random", "mean", "real"] = param(
        "random", "first styles: of random noise; the mean of the class (IPC 1); of encoded real images", source=CODE
    )
    rand_f: bool = param(False, "first feature maps are noise of the same mean and deviation", source=CODE)
    lr_w: float = param(1e-3, "learning rate of the styles", source=CODE, ge=0)
    learn_g: bool = param(False, "learn the weights of the generator too", source=CODE)
    lr_g: float = param(1e-4, "learning rate of the generator's weights", source=CODE, ge=0)
    calibrate: bool = param(False, "scale the rates of latents: a first step moves images as one of pixels would")
    decode_batch: int = param(
        10, "images in the generator at once; equal results up to rounding", unit="images", source=CODE, ge=1
    )
    keep_latents: bool = param(True, "store latents, and a learned generator, with the set")


class Glad(Parametrised):
    """What the three have in common: a mixin, to stand before a `Parametrised` method."""

    augment = "dsa"
    citation = "Cazenavette et al.: Generalizing Dataset Distillation via Deep Generative Prior, CVPR 2023"
    published_layer: ClassVar[int]
    """Of StyleGAN-XL for ImageNet at 128 pixels and one image per class."""

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the readme's setting, which needs its generator; elsewhere the defaults, without a source."""
        if dataset.family in SUBSETS and ipc == 1:
            return Preset({"layer": cls.published_layer, "generator": "imagenet128.safetensors"}, README)
        return Preset({}, None)

    @classmethod
    def needs(cls, params: Any, spec: TaskSpec) -> Mapping[str, Need]:
        """Ask for the generator; all IPC, seeds and methods share it."""
        needs = super().needs(params, spec)
        if params.space == "p":
            return needs
        return {**needs, "generator": generator.need(params.generator, params.generator_epochs)}

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any]:
        """Return the paper's evaluation: 1000 epochs, half of them warm-up, and the running average of the weights."""
        return {"base": "glad"}

    def parametrise(self, task: Task) -> Parametrisation:
        """Return latents, or pixels."""
        if self.params.space == "p":
            return super().parametrise(task)
        return Latents(task, task.artifact("generator"), self.params)


class GladDCParams(LatentParams, dc.DCParams):
    """Hyper-parameters of GLaD with gradient matching."""

    outer_loop: int | None = param(1, "T: image updates per network", source=CODE, ge=1)
    inner_loop: int | None = param(1, "training of the network between updates", unit="epochs", source=CODE, ge=0)
    lr_img: float = param(1.0, "learning rate of the feature maps, or of pixels", source=CODE, gt=0)


class GladDC(Glad, dc.DC):
    """GLaD with gradient matching, at the initialisation of the networks only."""

    Params = GladDCParams
    title = "GLaD-DC: gradient matching on latents of a generator"
    published_layer = 16


class GladDMParams(LatentParams, dm.DMParams):
    """Hyper-parameters of GLaD with distribution matching."""

    iterations: int = param(1000, "K: the last iteration; they count from 0, so K+1 are done", source=CODE, ge=0)
    layer: int | float = param(
        0.8, "feature maps are learned after this many layers; a fraction is of all but the last; -1: styles alone"
    )
    lr_img: float = param(10.0, "learning rate of the feature maps, or of pixels", source=CODE, gt=0)
    lr_w: float = param(1e-2, "learning rate of the styles", source=CODE, ge=0)
    init: Literal["noise", "real"] = param("noise", "first pixels, with `space: p`", source=CODE)


class GladDM(Glad, dm.DM):
    """GLaD with distribution matching."""

    Params = GladDMParams
    title = "GLaD-DM: distribution matching on latents of a generator"
    published_layer = 20


class GladMTTParams(LatentParams, mtt.TrajectoryParams):
    """Hyper-parameters of GLaD with trajectory matching."""

    iterations: int = param(1000, "outer iterations; one more is run", source=CODE, ge=0)
    syn_steps: int = param(20, "N, steps of the student", unit="steps", source=CODE, ge=1)
    expert_epochs: int = param(3, "M, epochs the expert is ahead", unit="epochs", source=CODE, ge=1)
    max_start_epoch: int = param(5, "start epochs are drawn below this", unit="epochs", source=CODE, ge=1)
    layer: int | float = param(
        0.48, "feature maps are learned after this many layers; a fraction is of all but the last; -1: styles alone"
    )
    lr_img: float = param(1e4, "learning rate of the feature maps, or of pixels", source=CODE, gt=0)
    lr_w: float = param(10.0, "learning rate of the styles", source=CODE, ge=0)
    lr_g: float = param(0.1, "learning rate of the generator's weights", source=CODE, ge=0)
    lr_lr: float = param(1e-6, "rate of the learned rate", source=CODE, ge=0)
    lr_init: float = param(0.01, "the student's rate at the start", source=CODE, gt=0)
    train_epochs: int = param(15, "epochs of each expert", unit="epochs", source=README, ge=1)
    init: Literal["real", "noise"] = param("noise", "first pixels, with `space: p`", source=CODE)
    sweep: Literal["exact", "identity"] = param(
        "exact", "exact: the whole student; identity: later weights do not depend on earlier images, the released code"
    )


class GladMTT(Glad, mtt.MTT):
    """GLaD with trajectory matching."""

    Params = GladMTTParams
    title = "GLaD-MTT: trajectory matching on latents of a generator"
    published_layer = 12

    def _mode(self) -> Mode:
        return "identity" if self.params.sweep == "identity" else "recompute"
