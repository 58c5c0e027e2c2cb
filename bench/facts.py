"""The plain values everybody exchanges: parameters, facts about datasets and networks, distilled sets, records.

Frozen models without behaviour, importable without torch: plans, keys, files and reports are made of them. What acts
on them is in `bench.api`, which also hands out all of these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor

# ---------------------------------------------------------------------------------------------- parameters


class Params(BaseModel):
    """Parameters of a method, evaluator, artifact or recipe: frozen, strict, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def param(default: Any, doc: str, *, unit: str = "", source: str = "", **limits: Any) -> Any:
    """Declare one field of a `Params` model: its default, meaning, unit and where the value comes from.

    `limits` are pydantic's (`ge`, `gt`, `le`, ...). `ddbench describe` prints all of it.
    """
    return Field(default, description=doc, json_schema_extra={"unit": unit, "source": source}, **limits)


@dataclass(frozen=True)
class Preset:
    """Hyper-parameters for one dataset and IPC. `source` is None where the paper does not give them."""

    params: Mapping[str, Any]
    source: str | None


# ---------------------------------------------------------------------------------------------- plain facts


class DatasetInfo(BaseModel):
    """What is known of a dataset before it is opened. Images are NCHW; constants are for pixels in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    source: str = Field(description="where the data comes from: address or citation")
    licence: str
    classes: int
    shape: tuple[int, int, int] = Field(description="channels, height, width")
    train_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    constants_source: str = Field(description="who uses these normalisation constants")
    flip: bool = Field(description="whether a mirrored image keeps its class (false for digits)")
    content: str | None = Field(description="sha256 over the decoded arrays, or None for the user's own data")
    family: str = Field(description="name whose paper presets apply: `cifar10` also for a part of CIFAR-10")
    complete: bool = Field(True, description="False for a part of a published dataset: never put beside its numbers")


class NetSpec(BaseModel):
    """A network: architecture, normalisation, sizes. None means the field's default for the image size.

    The short form in suites is `<arch>` or `<arch>-<norm>`, for example `convnet-bn`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str = "convnet"
    norm: Literal["none", "in", "bn", "ln", "gn"] | None = None
    width: int | None = Field(None, ge=1)
    depth: int | None = Field(None, ge=1)
    activation: Literal["relu", "leakyrelu", "sigmoid", "swish"] = "relu"
    pooling: Literal["avg", "max", "none"] | None = None
    init: Literal["torch", "lecun", "xavier"] = Field("torch", description="initialisation, see bench.nets.initialise")


class TaskSpec(BaseModel):
    """What identifies a task while planning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: DatasetInfo
    ipc: int | None = Field(description="images per class; None where no budget applies")
    network: NetSpec = Field(description="network to distil with")
    preprocessing: str = Field("meanstd", description="meanstd | zca-kornia | zca-kip | none")
    augment: str = Field("none", description="explicit strategy, e.g. none, dsa:color_crop_cutout_scale_rotate")
    seed: int = 0


@dataclass(frozen=True)
class Need:
    """An artifact that must exist first: its registered name, its parameters, and where its task differs.

    Two needs with equal content are one cell, shared by all who ask for it. `task` replaces fields of the
    asking task (an artifact that does not depend on the IPC says `{"ipc": None}`).
    """

    artifact: str
    params: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------- distilled sets

LabelKind = Literal["hard", "probabilities", "logits", "centred"]
"""hard: class index; probabilities: rows sum to 1; logits: teacher outputs; centred: one-hot minus 1/K, or learned."""


class Header(BaseModel):
    """The self-description of a distilled set, stored as one JSON string in its safetensors file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, description="version of this layout")
    dataset: str
    classes: int
    class_names: tuple[str, ...] = ()
    shape: tuple[int, int, int]
    preprocessing: str = Field(description="space the images live in; the transform is in the file or known by id")
    ipc: int | None
    seed: int
    method: str
    method_version: int
    params: dict[str, Any]
    network: dict[str, Any] = Field(description="network it was distilled with")
    augment: str
    label_kind: LabelKind = "hard"
    learned_rate: float | None = Field(None, description="learning rate learned with the images (MTT, TESLA)")
    decoder: dict[str, Any] = Field(default={"name": "pixels"}, description="stored tensors -> images")
    native_recipe: dict[str, Any] | None = Field(None, description="how the paper trains on this set")
    outlier_weight: float | None = Field(None, description="lambda of the outlier-exposure loss (TrustDD)")
    floats: dict[str, int] = Field(default={}, description="budget: stored, decoded, raw (IPC real images), latent")
    provenance: dict[str, Any] = {}


@dataclass(repr=False)
class DistilledSet:
    """The result of a method.

    images: float32 [n, ...] in the space of `header.preprocessing`, or what `header.decoder` turns into images;
        None for a selection too large to copy, which `indices` then describes.
    labels: int64 [n] (hard) or float32 [n, K].
    indices: int64 [n], for sets chosen from the training images: which ones were exposed.
    steps: ordered use of the set (DD): int64 [T, m] image indices of each step; `rates`: float32 [T].
    outliers: float32 [m, c, h, w] with the uniform label (TrustDD).
    extra: further tensors the decoder or the preprocessing needs (latents, whitening matrix).
    """

    header: Header
    images: Tensor | None
    labels: Tensor
    indices: Tensor | None = None
    steps: Tensor | None = None
    rates: Tensor | None = None
    outliers: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        h, shape = self.header, "x".join(str(side) for side in self.header.shape)
        images = f"{len(self.labels)} images {shape} in {h.preprocessing}, {h.label_kind} labels"
        return f"DistilledSet({h.method} on {h.dataset}, seed {h.seed}: {images})"

    def _repr_png_(self) -> bytes | None:
        """Return the picture that notebooks show."""
        from bench import interactive

        return interactive.show(self)._repr_png_()


# ---------------------------------------------------------------------------------------------- results


class Record(BaseModel):
    """One measured number with everything that identifies it: a line of `records.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    preset: str
    dataset: str
    method: str
    label: str = Field(description="the method as the suite calls it (a method may stand in a suite twice)")
    settings: Literal["paper", "modified"] = Field(description="paper: hyper-parameters exactly as published")
    ipc: int | None
    seed: int
    evaluator: str
    metric: str
    value: float
    unit: str
    network: str | None = Field(None, description="evaluation network")
    distil_network: str | None = None
    recipe: str | None = None
    selection: str | None = None
    replicate: int | None = Field(None, description="which of the networks trained on this set")
    step: int | None = None
    tags: dict[str, str | int | float] = {}
    cell: str = Field(description="key of the cell that measured it")
