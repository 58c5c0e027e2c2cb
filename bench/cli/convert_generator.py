"""`ddbench convert-generator`: a StyleGAN-XL checkpoint, once, to a generator that GLaD can use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.errors import UserError

NAME = "convert-generator"


def command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of StyleGAN-XL (.pkl).", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: generators/<name>.safetensors in the data folder.")
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Read the pickle: you know where it comes from.")] = False,
) -> None:
    """Turn a StyleGAN-XL checkpoint into tensors: the generator of GLaD. Methods take it as `generator: <file>`."""
    if not trust:
        raise UserError(
            "a checkpoint of StyleGAN-XL is a pickle, which can be made to run any code when it is read; ddbench runs "
            "nothing of it and makes only tensors and plain values, but do not open what a stranger gave you",
            where=str(checkpoint),
            hint="add --trust if you know where the file comes from",
        )
    from bench.nets import prior_file
    from bench.nets.prior import from_tensors
    from bench.nets.stylegan_pickle import convert

    tensors = convert(checkpoint)
    target = out or prior_file.place(f"{checkpoint.stem}.safetensors")
    prior_file.save(target, tensors)
    prior = from_tensors(tensors)
    size = "x".join(str(side) for side in prior.shape)
    print(f"{target}: {size} images of {prior.classes} classes, {len(prior.layers)} layers")
