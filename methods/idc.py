"""IDC: Dataset Condensation via Efficient Synthetic-Data Parameterization (Kim et al., ICML 2022; arXiv 2205.14959).

Every stored image holds a grid of smaller ones, which are enlarged to make factor^2 images for the same number of
stored pixels (`MultiFormation`). They are learned by gradient matching as in DC with three changes: an un-normalised
distance between gradients of convolutions only, networks trained on real images, and strong augmentation of both.

    for each outer iteration (a `step`):
        draw a fresh network; bring the pixels back to [0, 1]
        `inner_loop` times: class by class, one SGD step of the images on the distance of the class gradients
                            SGD of the network on n_data real images, augmented and mixed by CutMix

Follows the released code (snu-mllab/Efficient-Dataset-Condensation at ceac95a). All classes are evaluated at once,
with the same result: a class's gradient depends on its own images only, and momentum moves them on as a known
geometric sum while the other classes have their steps (`coast`). Measured on one CPU thread for ten classes at width
32: 0.5 of the time of a loop over classes with 1 image of 8x8 per class, 0.7 with 10, 0.9 with 1 image of 32x32.

Departures: the training images to start from are drawn with the seed (`choose: first` takes the first ones, as the
code does, in the order of this benchmark's data). Not here: the decoders `multi` and `bound`, ResNetAP-10, and for
100 classes of ImageNet the pool of pretrained networks and the phases of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from bench.api import DatasetInfo, Params, Preset, TaskSpec, param
from bench.augment import cutmix, get
from bench.data import Batch
from bench.lazy import F, torch
from methods.matching import Classes, batch_norms, match_features, match_gradients, siamese
from methods.parametrise import MultiFormation, Parametrised

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import Task
    from bench.augment import Draw

CODE = "snu-mllab/Efficient-Dataset-Condensation at ceac95a"
LARGE = 64
"""Longest side of the datasets whose settings are those of the small ones; larger images have ImageNet's."""


def eta(flag: float, info: DatasetInfo, ipc: int) -> float:
    """Return the step of the pixels: the code's flag, for ten images per class, by IPC and by pixels per image."""
    side = max(info.shape[1:])
    base = 224 if side > LARGE else 28 if info.family == "mnist" else 32
    return flag * ipc / 10 * (side / base) ** 2


class IDCParams(Params):
    """Hyper-parameters of IDC."""

    iterations: int = param(
        2000, "outer iterations, each with a fresh network: niter * 100 / inner_loop of the code", source=CODE, ge=0
    )
    inner_loop: int = param(100, "updates of images and network per outer iteration", source=CODE, ge=1)
    factor: int = param(2, "an image is a grid of factor x factor images; 1: plain images", source=CODE, ge=1)
    init: Literal["mix", "random", "noise"] = param(
        "mix", "first images: a training image in every cell, whole training images, or grey noise", source=CODE
    )
    choose: Literal["drawn", "first"] = param(
        "drawn", "training images to start from: drawn, or the first of each class as the code does"
    )
    lr_img: float = param(
        5e-3, "step of the pixels in [0, 1]: eta, not the code's flag, see the preset", source=CODE, ge=0
    )
    momentum: float = param(0.5, "momentum of the pixels, kept over all networks", source=CODE, ge=0, lt=1)
    match: Literal["grad", "feat"] = param("grad", "match gradients, or mean features of the last block", source=CODE)
    metric: Literal["mse", "l1", "l1_mean", "cos"] = param(
        "mse",
        "squared or absolute differences, summed; l1_mean: rows averaged; cos: one minus cosine of rows, as in DC",
        source=CODE,
    )
    bias: bool = param(False, "match also parameters of one dimension", source=CODE)
    fc: bool = param(False, "match also parameters of two dimensions: the classifier", source=CODE)
    batch_real: int = param(64, "real images per class and update", unit="images", source=CODE, ge=1)
    batch_syn_max: int = param(
        128, "most synthetic images per class and update; of more, these are drawn", unit="images", source=CODE, ge=1
    )
    n_data: int = param(
        2000, "real images to train the network on after every update; 0: never", unit="images", source=CODE, ge=0
    )
    early: int = param(0, "training of a fresh network before its first update", unit="epochs", source=CODE, ge=0)
    batch_train: int = param(64, "batch of the network's training", unit="images", source=CODE, ge=1)
    lr_net: float = param(0.01, "learning rate of the network", source=CODE, ge=0)
    momentum_net: float = param(0.9, "momentum of the network", source=CODE, ge=0, lt=1)
    weight_decay_net: float = param(5e-4, "weight decay of the network", source=CODE, ge=0)
    cutmix: float = param(
        0.5, "probability of CutMix in the network's training, which then has no cutout", source=CODE, ge=0, le=1
    )
    classes: Classes = param(
        "auto", "gradients class by class, of all classes in one pass, or the faster; equal up to rounding"
    )
    chunk: int | None = param(None, "images in one joint pass; None: by image size and device", unit="images", ge=1)

    @model_validator(mode="after")
    def _possible(self) -> IDCParams:
        if self.match == "feat" and self.metric != "mse":
            raise ValueError("match: feat compares features by metric: mse")
        if self.bias and self.metric == "cos":
            raise ValueError("the cosine of rows leaves out parameters of one dimension: bias needs another metric")
        return self


SETTINGS: dict[str, dict[str, Any]] = {
    "cifar10": {"metric": "mse", "lr_img": 5e-3, "n_data": 2000},
    "cifar100": {"metric": "mse", "lr_img": 5e-3, "n_data": 2000},
    "svhn": {"metric": "mse", "lr_img": 5e-3, "n_data": 500},
    "mnist": {"metric": "l1", "lr_img": 1e-4, "n_data": 500},
    "fashion_mnist": {"metric": "l1", "lr_img": 1e-4, "n_data": 500},
    "imagenet": {"metric": "l1", "lr_img": 3e-3, "n_data": 500, "iterations": 500, "early": 10, "cutmix": 1.0},
}
"""Settings by family; `lr_img` is the code's flag here. `imagenet` is for ten classes at 224 pixels."""

PUBLISHED = {name: (10, 20) if name == "cifar100" else (1, 10, 50) for name in SETTINGS if name != "imagenet"}
"""IPC for which the readme has results. Those of ImageNet need its ResNetAP-10, which this benchmark has not."""


class IDC(Parametrised):
    """Gradient matching of multi-formed images. `IDCI` is this class with plain ones."""

    Params = IDCParams
    version = 1
    title = "IDC: information-intensive dataset condensation"
    citation = (
        "Kim et al.: Dataset Condensation via Efficient Synthetic-Data Parameterization, ICML 2022, arXiv 2205.14959"
    )
    augment = "idc-match"
    factors: ClassVar[tuple[int, int]] = (2, 3)  # for small and for large images

    set: MultiFormation

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the setting of the released code; no source where it has none, which is by analogy.

        Other small images get SVHN's. MNIST in a grid has no CutMix.
        """
        large = max(dataset.shape[1:]) > LARGE
        settings = SETTINGS["imagenet"] if large else SETTINGS.get(dataset.family, SETTINGS["svhn"])
        factor = cls.factors[large]
        values = {**settings, "factor": factor, "lr_img": eta(settings["lr_img"], dataset, ipc)}
        if dataset.family == "mnist" and factor > 1:
            values["cutmix"] = 0.0
        known = ipc in PUBLISHED.get(dataset.family, ())
        return Preset(values, f"arXiv 2205.14959; {CODE}, misc/reproduce.py" if known else None)

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any] | None:
        """Return the paper's evaluation, on the decoded images: 1000 epochs in batches of 64 with CutMix.

        Images of ImageNet have fewer epochs the more of them there are, and in the paper other augmentations (a random
        window, colour jitter, lighting), for which those of small images stand here.
        """
        info, decoded = spec.dataset, (spec.ipc or 1) * params.factor**2
        if max(info.shape[1:]) > LARGE:
            limits = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
            epochs = next((epochs for most, epochs in limits if decoded <= most), 300)
            return {"base": "idc", "epochs": epochs, "cutmix": 1.0}
        if info.family == "mnist" and params.factor > 1:
            return {"base": "idc", "cutmix": 0.0}
        if info.family == "svhn" and decoded == 1:
            return {"base": "idc", "cutmix": 0.0, "augment": "idc:color_crop_cutout_scale_rotate"}
        return {"base": "idc"}

    @property
    def steps(self) -> int:
        """Return the number of outer iterations; they count from 1 here."""
        return self.params.iterations

    def parametrise(self, task: Task) -> MultiFormation:
        """Return the grids of images."""
        p = self.params
        return MultiFormation(task, factor=p.factor, init=p.init, choose=p.choose, rate=p.lr_img, momentum=p.momentum)

    def start(self, task: Task) -> None:
        """Create the images, the decks of real ones, and the network that every outer iteration draws anew."""
        p, train = self.params, task.data.train
        self.task = task
        self.set = self.parametrise(task)
        self.present = torch.tensor(train.present, device=task.device)
        self.class_decks = [Deck(train.class_index(c), p.batch_real, whole=True) for c in train.present]
        self.deck = Deck(torch.arange(train.size, device=task.device), p.batch_train, whole=False)
        self.model = task.network()
        kinds = {4} | ({1} if p.bias else set()) | ({2} if p.fc else set())
        self.compared = [name for name, weight in self.model.named_parameters() if weight.dim() in kinds]
        # with BatchNorm every class is normalised by itself, in train mode, which no joint pass can do
        self.classes: Classes = "per_class" if batch_norms(self.model) else p.classes
        self.augment_network = get(without_cutout(task.spec.augment)) if p.cutmix else task.augment

    def step(self) -> dict[str, float | Tensor]:
        """Do one outer iteration: a fresh network, `inner_loop` updates. The loss is their mean, per class."""
        task, p = self.task, self.params
        with task.phase("network"):
            task.initialise(self.model, task.rng("network"))
            self.model_optimiser = torch.optim.SGD(
                self.model.parameters(), lr=p.lr_net, momentum=p.momentum_net, weight_decay=p.weight_decay_net
            )
        self.real_images = self.synthetic_images = self.network_steps = 0
        self.train_network(p.early * task.data.train.size)
        self.set.clamp()
        losses = []
        for _ in range(p.inner_loop):
            losses.append(self.update_images())
            self.train_network(p.n_data)
        return {
            "loss": torch.stack(losses).mean(),
            "real_images": self.real_images,
            "synthetic_images": self.synthetic_images,
            "network_steps": self.network_steps,
        }

    # ------------------------------------------------------------------------------------ images

    def update_images(self) -> Tensor:
        """Step the images of every class in turn on its distance; return the mean distance, 0-d."""
        task = self.task
        with task.phase("data"):
            real, draw = self.draw_real()
        turn = torch.arange(len(self.present), device=task.device)
        with task.phase("set"):
            coast(self.set, turn)
            images, counts = self.draw_synthetic()
            images = task.augment.apply(images, draw, counts=counts)
            labels = self.present.repeat_interleave(counts[0])
            losses, derivative = self.match(real, Batch(images, labels, counts))
            self.set.update(images, derivative)
            coast(self.set, turn.flip(0))
        self.real_images += len(real.labels)
        self.synthetic_images += len(labels)
        return losses.mean()

    def draw_real(self) -> tuple[Batch, Draw]:
        """Deal a batch of every class and augment it; the draw gives synthetic images the very same parameters."""
        train, rng = self.task.data.train, self.task.rng("real")
        parts = [deck.deal(rng) for deck in self.class_decks]
        index = torch.cat(parts)
        return siamese(self.task, Batch(train.images(index), train.labels[index], tuple(len(part) for part in parts)))

    def draw_synthetic(self) -> tuple[Tensor, tuple[int, ...]]:
        """Return the decoded images, of each class at most `batch_syn_max`, and their numbers."""
        images, counts, most = self.set.images(), self.set.counts, self.params.batch_syn_max
        if counts[0] <= most:
            return images, counts
        rng = self.task.rng("synthetic")
        picks = [torch.randperm(counts[0], generator=rng, device=rng.device)[:most] for _ in counts]
        index = torch.stack(picks).to(images.device)
        index = index + counts[0] * torch.arange(len(counts), device=images.device)[:, None]
        return images[index.flatten()], (most,) * len(counts)

    def match(self, real: Batch, synthetic: Batch) -> tuple[Tensor, Tensor]:
        """Return the distance of every class and the derivative of their sum by the synthetic images."""
        p = self.params
        self.model.train()
        if p.match == "feat":
            return match_features(self.model, real, synthetic, classes=self.classes, chunk=p.chunk)
        distance = "ours" if p.metric == "cos" else p.metric
        return match_gradients(
            self.model,
            real,
            synthetic,
            distance=distance,
            parameters=self.compared,
            classes=self.classes,
            chunk=p.chunk,
        )

    # ------------------------------------------------------------------------------------ networks

    def train_network(self, count: int) -> None:
        """Train the network on real images, batch after batch, until it has seen at least `count`."""
        task, rng, seen = self.task, self.task.rng("order"), 0
        with task.phase("network"):
            self.model.train()
            while seen < count:
                index = self.deck.deal(rng)
                images = self.augment_network(task.data.train.images(index), task.rng("augment network"))
                self.model_optimiser.zero_grad()
                self.network_loss(images, task.data.train.labels[index]).backward()
                self.model_optimiser.step()
                seen += len(index)
                self.network_steps += 1

    def network_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss the network is trained with on a batch of augmented real images, 0-d.

        Whoever wants other networks overrides this, or `train_network` for other batches.
        """
        images, target = self.mix(images, labels)
        return F.cross_entropy(self.model(images), target)

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch after CutMix, with a probability for every class in place of each label."""
        target = F.one_hot(labels, self.task.spec.dataset.classes).to(images.dtype)
        if not self.params.cutmix:
            return images, target
        cut = cutmix.draw((1, *images.shape), self.params.cutmix, [self.task.rng("cutmix")])
        images, target = cutmix.mix(images[None], target[None], cut)
        return images[0], target[0]

    # ------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return what is learned, and what is left of the decks; the network does not outlive a step."""
        decks = [deck.rest.clone() for deck in (self.deck, *self.class_decks)]
        return {**super().state_dict(), "decks": decks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, after `start`."""
        super().load_state_dict(state)
        for deck, rest in zip((self.deck, *self.class_decks), state["decks"], strict=True):
            deck.rest = rest.to(deck.index)


class IDCI(IDC):
    """IDC with plain images: only its optimisation."""

    title = "IDC-I: IDC with plain images"
    augment = "idc:color_crop_cutout"
    factors = (1, 1)


def without_cutout(strategy: str) -> str:
    """Return an explicit augmentation without its cutout, which CutMix replaces."""
    family, colon, listed = strategy.partition(":")
    kept = [name for name in listed.split("_") if name != "cutout"]
    return f"{family}:{'_'.join(kept)}" if colon and kept else "none" if colon else strategy


class Deck:
    """Numbers dealt in random order, `size` at a time, none twice before all had their turn.

    whole: leave what does not make up a whole batch (at most all numbers) to the next shuffle, else deal it.
    """

    def __init__(self, index: Tensor, size: int, *, whole: bool) -> None:
        self.index, self.size = index, size
        self.least = min(size, len(index)) if whole else 1
        self.rest = index[:0]

    def deal(self, rng: torch.Generator) -> Tensor:
        """Return the next batch, int64."""
        if len(self.rest) < self.least:
            self.rest = self.index[torch.randperm(len(self.index), generator=rng, device=rng.device).to(self.index)]
        batch, self.rest = self.rest[: self.size], self.rest[self.size :]
        return batch


def coast(images: MultiFormation, turns: Tensor) -> None:
    """Do `turns` [C] steps of each class without a gradient: its images drift by momentum alone.

    k such steps move an image by rate * (mu + ... + mu^k) of its velocity, which fades to mu^k of itself. With c of
    them before the c-th of C classes has its step and C - 1 - c after it, one optimiser steps class by class.
    """
    group, state = images.optimiser.param_groups[0], images.optimiser.state[images.pixels]
    velocity, mu = state.get("momentum_buffer"), group["momentum"]
    if velocity is None:  # no step yet, or no momentum
        return
    fade = torch.pow(mu, turns.to(velocity.dtype))
    drift = mu * (1 - fade) / (1 - mu)
    with torch.no_grad():
        by_class = velocity.unflatten(0, (len(turns), -1))
        pixels = images.pixels.unflatten(0, (len(turns), -1))
        shape = (-1, *(1,) * (by_class.dim() - 1))
        pixels -= group["lr"] * drift.view(shape) * by_class
        by_class *= fade.view(shape)
