"""`ddbench import`: a distilled set of another project becomes a file of ddbench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.errors import UserError

NAME = "import"


def command(
    file: Annotated[
        Path, typer.Argument(help="What an official repository wrote, a file or folder.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The set to write (.safetensors).", show_default=False)],
    dataset: Annotated[str | None, typer.Option("--dataset", help="What it was distilled from.")] = None,
    preprocessing: Annotated[
        str | None, typer.Option("--preprocessing", help="Space of the images: none, meanstd, zca-kornia, ...")
    ] = None,
    zca: Annotated[
        bool | None, typer.Option("--zca/--no-zca", help="With the whitening of that code, or without.")
    ] = None,
    pixels: Annotated[bool | None, typer.Option("--pixels/--no-pixels", help="Values are pixels in [0, 1].")] = None,
    formation: Annotated[int | None, typer.Option("--formation", help="IDC's factor: images on a side of one.")] = None,
    which: Annotated[int | None, typer.Option("--which", help="Set of a file with several, from 0.")] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="Labels that do not lie beside the images.")] = None,
    label_kind: Annotated[
        str | None, typer.Option("--label-kind", help="hard, probabilities, logits or centred.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Learning rate learned with the images.")] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="Who made it, e.g. dsa; its recipe becomes native.")
    ] = None,
    constants: Annotated[
        str | None, typer.Option("--constants", help="Its mean/deviation, e.g. 0.49,0.48,0.45/0.25,0.24,0.26.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of SRe2L's stored labels; default 42.")] = None,
) -> None:
    """Write a distilled set of another project as a self-describing set of ddbench; nothing in the file is run."""
    import bench.imports
    from bench.distilled import save

    if bench.imports.is_own(file):
        raise UserError("a set of ddbench already", where=str(file), hint="use it as it is")
    foreign = bench.imports.read(file, which=which, labels=labels, seed=bench.imports.SEED if seed is None else seed)
    stored = "x".join(map(str, foreign.images.shape))
    kind = "classes" if foreign.labels.dim() == 1 else f"{foreign.labels.shape[1]} values each"
    print(f"{file}: {foreign.format.title}, images {stored}, labels: {kind}")
    if dataset is None:
        raise UserError("of which dataset?", where=str(file), hint="say --dataset NAME; `ddbench list datasets`")
    made = bench.imports.make(
        foreign,
        dataset,
        preprocessing=preprocessing,
        zca=zca,
        pixels=pixels,
        formation=formation,
        method=method,
        rate=rate,
        label_kind=label_kind,
        constants=_constants(constants),
    )
    save(out, made)
    header = made.header
    for note in header.provenance["imported"]["notes"]:
        print(f"  {note}")
    recipe = (header.native_recipe or {}).get("base", "none known")
    print(
        f"{out}: {header.dataset}, {header.preprocessing}, {len(made.labels)} {header.label_kind} labels, "
        f"{'uneven' if header.ipc is None else header.ipc} images per class, method {header.method}, recipe {recipe}"
    )


def _constants(text: str | None) -> tuple[tuple[float, ...], ...] | None:
    if text is None:
        return None
    try:
        mean, std = (tuple(float(value) for value in part.split(",")) for part in text.split("/"))
    except ValueError as error:
        raise UserError(
            f"{text!r} is not mean and deviation", hint="--constants 0.49,0.48,0.45/0.25,0.24,0.26"
        ) from error
    return mean, std
