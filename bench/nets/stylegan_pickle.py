"""Reading a StyleGAN-XL checkpoint: a pickle in, the plain tensors of `bench.nets.stylegan.StyleGANXL` out.

The authors' checkpoints are pickles whose networks carry their own source code, which the authors' loader runs. Here
nothing of the file is run and nothing is imported by a name that it gives: tensors, arrays and plain containers are
made, every other object becomes an inert `Record` of its state. What is read is the layout of the released code (class,
attribute and buffer names); a file that differs from it anywhere is refused rather than guessed at.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import UserError

NETWORK = "G_ema"


class Record:
    """An object of the file that is nothing but its state."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        """Take the arguments of a function or class of the file, which is not called."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take the items of a kind of dict; they are not kept."""

    def append(self, item: Any) -> None:
        """Take an item of a kind of list; it is not kept."""


def _storage(data: bytes) -> Any:
    """Read a stored tensor; the pickle within is read by torch's own reader of weights, which runs nothing either."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class Persistent(dict):
    """What a network of the authors is stored as: the class's name, its source, its state."""


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Persistent,
    ("dnnlib.util", "EasyDict"): dict,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np._core.multiarray._reconstruct for core in ("core", "_core")},  # type: ignore[attr-defined]
    **{(f"numpy.{core}.multiarray", "scalar"): np._core.multiarray.scalar for core in ("core", "_core")},  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class Reader(pickle.Unpickler):
    """An unpickler that makes tensors, arrays and plain containers, and inert records of all else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of the file."""
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        return Record


def convert(path: Path) -> dict[str, Tensor]:
    """Return the averaged generator of a checkpoint as the tensors of a prior.

    Raises `UserError` if the file is not a checkpoint of StyleGAN-XL with classes, in the layout of its released code.
    """
    from bench.nets.prior import CONFIG, WEIGHTS, encode, from_tensors

    where = str(path)
    try:
        with path.open("rb") as file:
            content = Reader(file).load()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=where) from error
    except Exception as error:
        raise UserError(f"not a pickle that can be read: {type(error).__name__}: {error}", where=where) from error
    try:
        arguments, weights = _generator(_state(content[NETWORK]))
        tensors = {WEIGHTS + name: tensor.float().contiguous().clone() for name, tensor in weights.items()}
        tensors[CONFIG] = encode({"kind": "stylegan_xl", "arguments": arguments})
        from_tensors(tensors)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, UserError) as error:
        raise UserError(
            f"not the layout of StyleGAN-XL's released code: {type(error).__name__}: {error}",
            where=where,
            hint="only its class-conditional generators can be converted",
        ) from error
    return tensors


def _state(stored: Any) -> dict[str, Any]:
    """Return the attributes of a network or layer, with its parameters, buffers and parts by their names."""
    state = stored["state"] if isinstance(stored, Persistent) else stored.state
    return {**state, **state["_parameters"], **state["_buffers"], **state["_modules"]}


def _generator(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the arguments of `StyleGANXL`, and its weights."""
    mapping, synthesis = _state(state["mapping"]), _state(state["synthesis"])
    classes, names = int(state["c_dim"]), list(synthesis["layer_names"])
    embedding = _state(mapping["embed"])["weight"]
    if not 0 < classes <= len(embedding) or int(synthesis["num_ws"]) != len(names) + 1:
        raise ValueError(f"{classes} classes, {len(names)} layers")
    weights = {"embedding": embedding[:classes]}
    arguments: dict[str, Any] = {
        "shape": [int(state["img_channels"]), int(state["img_resolution"]), int(state["img_resolution"])],
        "classes": classes,
        "z_dim": int(state["z_dim"]),
        "scale": float(synthesis["output_scale"]),
        "embedding": list(weights["embedding"].shape),
        "projection": _linear(mapping["embed_proj"], "lrelu", "projection", weights),
        "mapping": [
            _linear(mapping[f"fc{k}"], "lrelu", f"mapping.{k}", weights) for k in range(int(mapping["num_layers"]))
        ],
        "input": _input(_state(synthesis["input"]), weights),
        "layers": [_layer(_state(synthesis[name]), f"layers.{k}", weights) for k, name in enumerate(names)],
    }
    return arguments, weights


def _linear(stored: Any, activation: str, name: str, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `Scaled`; add its weights under `name`."""
    state = _state(stored)
    if state["activation"] != activation:
        raise ValueError(f"{name}: activation {state['activation']!r}, not {activation!r}")
    weights |= {f"{name}.weight": state["weight"], f"{name}.bias": state["bias"]}
    after, before = state["weight"].shape
    gains = {"gain": float(state["weight_gain"]), "bias_gain": float(state["bias_gain"])}
    return {"before": before, "after": after, **gains}


def _style(stored: Any, name: str, weights: dict[str, Tensor]) -> int:
    """Add the weights of a style's linear layer, whose gains are fixed; return the length of the style."""
    sizes = _linear(stored, "linear", name, weights)
    if not (math.isclose(sizes["gain"], sizes["before"] ** -0.5, rel_tol=1e-6) and sizes["bias_gain"] == 1):
        raise ValueError(f"{name}: gains {sizes['gain']}, {sizes['bias_gain']}")
    return sizes["before"]


def _input(state: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `FourierInput`; add its weights."""
    w_dim = _style(state["affine"], "input.motion", weights)
    names = {"weight": "weight", "frequencies": "freqs", "phases": "phases", "transform": "transform"}
    weights |= {f"input.{ours}": state[theirs] for ours, theirs in names.items()}
    width, height = (int(side) for side in state["size"])
    return {
        "w_dim": w_dim,
        "channels": int(state["channels"]),
        "size": [height, width],
        "rate": float(state["sampling_rate"]),
        "bandwidth": float(state["bandwidth"]),
    }


def _layer(state: dict[str, Any], name: str, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `FilteredConv`; add its weights."""
    w_dim = _style(state["affine"], f"{name}.style", weights)
    named = {"weight": "weight", "bias": "bias", "magnitude": "magnitude_ema"}
    filters = {which: state[which] for which in ("up_filter", "down_filter")}
    weights |= {f"{name}.{ours}": state[theirs] for ours, theirs in named.items()}
    weights |= {f"{name}.{which}": taps for which, taps in filters.items() if taps is not None}
    after, before, side, _ = state["weight"].shape
    return {
        "w_dim": w_dim,
        "before": before,
        "after": after,
        "side": side,
        "up": int(state["up_factor"]),
        "down": int(state["down_factor"]),
        "padding": [int(amount) for amount in state["padding"]],
        "clamp": None if state["conv_clamp"] is None else float(state["conv_clamp"]),
        "colours": bool(state["is_torgb"]),
        **{which: None if taps is None else list(taps.shape) for which, taps in filters.items()},
    }
