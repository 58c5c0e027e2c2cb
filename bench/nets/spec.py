"""Names of networks and what they mean, without torch.

A network is written `<arch>[-<norm>][-<option>...]`, for example `convnet`, `resnet18-bn` or `convnet-in-w32-d2`.
`parse` reads such a name or a mapping of `NetSpec` fields, `resolve` fills in what the architecture and the image
size decide, `check` refuses what cannot be built, and `label` writes the short name again. What is known of each
architecture is an `Architecture`; the built-in ones are in `bench.nets.catalogue`, plug-ins name theirs through the
entry-point group `ddbench.networks`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import ValidationError

from bench.api import NetSpec
from bench.errors import UserError, nearest
from bench.registry import Registry

Shape = tuple[int, int, int]
"""Channels, height, width of an image."""

Norm = Literal["none", "in", "bn", "ln", "gn"]
NORMS: tuple[Norm, ...] = ("none", "in", "bn", "ln", "gn")
GROUPS = 4
"""Groups of the norm `gn`."""

NETWORKS = Registry(
    "network",
    {
        name: f"bench.nets.catalogue:{name.upper()}"
        for name in (
            "convnet",
            "convnet_gap",
            "frepo_conv",
            "mlp",
            "lenet",
            "alexcifar",
            "alexnet",
            "vgg11",
            "vgg13",
            "vgg16",
            "vgg19",
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet18_ap",
            "resnet18_imagenet",
        )
    },
    "ddbench.networks",
)


@dataclass(frozen=True)
class Architecture:
    """What is known of an architecture before it is built.

    build: `module:function`; the function gets (resolved NetSpec, shape, classes) and returns a module with
        `features`, `head` and `feature_size`.
    norms: the norms it can have, the default first.
    width: default base width, None where the widths are fixed. Every width is a multiple of `width_step`.
    depth: default depth for an image shape, None where the depth is fixed.
    deepest: greatest depth for an image shape and a pooling.
    pooling: default pooling, None where it is fixed; `activations` says whether the activation may be chosen.
    smallest: smallest image side in pixels.
    init: initialisation of the paper.
    """

    title: str
    citation: str
    build: str
    norms: tuple[Norm, ...] = NORMS
    width: int | None = None
    width_step: int = 1
    depth: Callable[[Shape], int] | None = None
    deepest: Callable[[Shape, str], int] | None = None
    pooling: Literal["avg", "max", "none"] | None = None
    activations: bool = False
    smallest: int = 4
    init: Literal["torch", "lecun", "xavier"] = "torch"


def inner_size(shape: Shape) -> tuple[int, int]:
    """Return height and width of the first map: grey 28-pixel images are padded to 32, as in the field's code."""
    channels, height, width = shape
    return (32, 32) if (channels, height, width) == (1, 28, 28) else (height, width)


def names() -> list[str]:
    """Return the names of all architectures."""
    return NETWORKS.names()


def architecture(name: str) -> Architecture:
    """Return what is known of an architecture. Raises `UserError` if the name is unknown."""
    found = NETWORKS.get(name)
    if not isinstance(found, Architecture):
        raise UserError(
            f"network {name!r} is a {type(found).__name__}", hint="register a bench.nets.spec.Architecture object"
        )
    return found


def describe(name: str) -> dict[str, Any]:
    """Return title, citation, norms and default sizes of an architecture, for `ddbench list` and `describe`."""
    known = architecture(name)
    return {
        "name": name,
        "title": known.title,
        "citation": known.citation,
        "norms": list(known.norms),
        "norm": known.norms[0],
        "width": known.width,
        "depth": known.depth((3, 32, 32)) if known.depth else None,
        "pooling": known.pooling,
        "init": known.init,
        "smallest": known.smallest,
    }


# ---------------------------------------------------------------------------------------------- text <-> spec

_TOKENS: dict[str, tuple[str, str]] = {
    **{norm: ("norm", norm) for norm in NORMS},
    **{name: ("activation", name) for name in ("relu", "leakyrelu", "sigmoid", "swish")},
    **{name: ("init", name) for name in ("torch", "lecun", "xavier")},
    "avgpool": ("pooling", "avg"),
    "maxpool": ("pooling", "max"),
    "nopool": ("pooling", "none"),
}


def parse(network: str | Mapping[str, Any] | NetSpec) -> NetSpec:
    """Return the spec of a short name, or of a mapping of `NetSpec` fields.

    The initialisation is that of the architecture's paper where nothing else is said; other open fields stay None.
    Raises `UserError` for unknown names, options or values.
    """
    if isinstance(network, NetSpec):
        return network
    return _named(network) if isinstance(network, str) else _made(dict(network))


@cache
def _named(name: str) -> NetSpec:
    return _made(_fields(name))


def _made(fields: dict[str, Any]) -> NetSpec:
    fields.setdefault("arch", "convnet")
    if not isinstance(fields["arch"], str):
        raise UserError(f"arch of a network must be a name, not {fields['arch']!r}", hint="for example convnet")
    fields.setdefault("init", architecture(fields["arch"]).init)
    try:
        return NetSpec.model_validate(fields, strict=True)
    except ValidationError as error:
        raise UserError(_first_problem(error, fields), hint=f"fields of a network: {_field_names()}") from error


def _fields(text: str) -> dict[str, Any]:
    """Split `convnet-bn-w32` into fields. An architecture's own name may contain hyphens."""
    known = [name for name in NETWORKS.targets if text == name or text.startswith(name + "-")]
    arch = max(known, key=len) if known else text.partition("-")[0]
    fields: dict[str, Any] = {"arch": arch}
    value: str | int
    for token in text[len(arch) + 1 :].split("-") if len(text) > len(arch) else []:
        if number := re.fullmatch(r"([wd])(\d+)", token):
            name, value = {"w": "width", "d": "depth"}[number[1]], int(number[2])
        elif token in _TOKENS:
            name, value = _TOKENS[token]
        else:
            raise UserError(
                f"unknown option {token!r} of network {text!r}", hint=f"{nearest(token, _TOKENS)}; sizes: w<n>, d<n>"
            )
        if name in fields:
            raise UserError(f"network {text!r} names its {name} twice", hint="keep one of the two")
        fields[name] = value
    return fields


def _first_problem(error: ValidationError, fields: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"network {fields['arch']!r}: {key} = {fields.get(key)!r}: {first['msg'].lower()}"


def _field_names() -> str:
    return ", ".join(NetSpec.model_fields)


def label(spec: NetSpec, shape: Shape | None = None) -> str:
    """Return the short name: architecture, norm where there is a choice, and what differs from the defaults.

    The default depth of a network depends on the image; without `shape` that of 32 pixels is meant.
    """
    known = architecture(spec.arch)
    depth = known.depth(shape or (3, 32, 32)) if known.depth else None
    parts = [spec.arch]
    if len(known.norms) > 1:
        parts.append(spec.norm or known.norms[0])
    if spec.width not in (None, known.width):
        parts.append(f"w{spec.width}")
    if spec.depth not in (None, depth):
        parts.append(f"d{spec.depth}")
    if spec.activation != "relu":
        parts.append(spec.activation)
    if spec.pooling not in (None, known.pooling):
        parts.append("nopool" if spec.pooling == "none" else f"{spec.pooling}pool")
    if spec.init != known.init:
        parts.append(spec.init)
    return "-".join(parts)


# ---------------------------------------------------------------------------------------------- sizes


@cache
def resolve(spec: NetSpec, shape: Shape) -> NetSpec:
    """Return the spec with every open field filled in for this image shape, and checked.

    Fields an architecture does not have (the depth of a ResNet) stay None. Raises `UserError` as `check` does.
    """
    known = architecture(spec.arch)
    filled = spec.model_copy(
        update={
            "norm": spec.norm or known.norms[0],
            "width": spec.width or known.width,
            "depth": spec.depth or (known.depth(shape) if known.depth else None),
            "pooling": spec.pooling or known.pooling,
        }
    )
    check(filled, shape)
    return filled


def check(spec: NetSpec, shape: Shape) -> None:
    """Raise `UserError` if this network cannot be built for images of this shape."""
    known = architecture(spec.arch)
    norm, width = spec.norm or known.norms[0], spec.width or known.width

    def refuse(what: str, hint: str) -> None:
        raise UserError(f"network {label(spec)}: {what}", hint=hint)

    if norm not in known.norms:
        refuse(f"no norm {norm!r}", f"{spec.arch} has: {', '.join(known.norms)}")
    for name, default in (("width", known.width), ("depth", known.depth), ("pooling", known.pooling)):
        if default is None and getattr(spec, name) is not None:
            refuse(f"{spec.arch} has no choice of {name}", f"leave out {name}")
    if spec.activation != "relu" and not known.activations:
        refuse(f"{spec.arch} has no choice of activation", "leave out activation")
    step = known.width_step * (GROUPS if norm == "gn" else 1)
    if width is not None and width % step:
        refuse(f"width {width} is not a multiple of {step}", f"for example width {step * max(1, round(width / step))}")
    if min(shape[1:]) < known.smallest:
        size = f"{shape[1]}x{shape[2]}"
        refuse(f"images of {size} pixels are too small", f"the smallest side of {spec.arch} is {known.smallest}")
    if known.deepest and known.pooling and spec.depth:
        deepest = known.deepest(shape, spec.pooling or known.pooling)
        if spec.depth > deepest:
            size = f"{shape[1]}x{shape[2]}"
            refuse(f"depth {spec.depth} is too much for {size} pixels", f"the greatest depth is {deepest}")
