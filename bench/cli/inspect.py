"""`ddbench inspect`: in which space a distilled set lives, which networks and labels fit it, with the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli import options
from bench.errors import UserError

if TYPE_CHECKING:
    from bench.inspection import Findings, Fit

NAME = "inspect"
SHOWN = 6
"""Networks listed."""


def command(
    file: Annotated[Path, typer.Argument(help="A set of ddbench, or of another project.", show_default=False)],
    dataset: Annotated[str | None, typer.Option("--dataset", help="Default: the one the file names.")] = None,
    which: Annotated[int | None, typer.Option("--which", help="Set of a file with several, from 0.")] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="Labels that do not lie beside the images.")] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps of each network.")] = 100,
    replicates: Annotated[int, typer.Option("--replicates", min=2, help="Networks of each architecture.")] = 3,
    test: Annotated[int, typer.Option("--test", min=10, help="Test images.")] = 500,
    quick: Annotated[bool, typer.Option("--quick", help="Two architectures instead of up to nine.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Find out what a set was made for: preprocessing, network, kind of labels; by its values and short trainings."""
    import json

    import bench.data
    import bench.distilled
    import bench.imports
    from bench import inspection
    from bench.cli import screen

    known: dict[str, Any] = {}
    if bench.imports.is_own(file):
        found = bench.distilled.load(file)
        header = found.header
        if dataset not in (None, header.dataset):
            raise UserError(f"a set of {header.dataset}, not of {dataset}", where=str(file))
        data = bench.data.load(header.dataset)
        plain = found.images is not None and header.decoder["name"] == "pixels"
        prepared = None if plain else bench.data.prepare(data, header.preprocessing)
        images, target = bench.distilled.decode(found, prepared), found.labels
        known = {
            "method": header.method,
            "dataset": header.dataset,
            "preprocessing": header.preprocessing,
            "label_kind": header.label_kind,
        }
    else:
        foreign = bench.imports.read(file, which=which, labels=labels)
        if dataset is None:
            raise UserError(f"{foreign.format.title}: of which dataset?", where=str(file), hint="say --dataset NAME")
        data = bench.data.load(dataset)
        images = foreign.images if foreign.images.is_floating_point() else foreign.images.float() / 255
        target = foreign.labels if foreign.hard is None else foreign.hard
        known = {"format": foreign.format.title, "dataset": dataset, "pixels": foreign.pixels}
    _check(images, target, data.info, file)
    effort = inspection.Effort(steps, replicates, test=test)
    if quick:
        effort = replace(effort, norms=inspection.TELLING, depths=(0,))
    with screen.console.status("training") as status:
        findings = inspection.inspect(
            images,
            target,
            data,
            label_kind=known.get("label_kind"),
            effort=effort,
            seed=seed,
            report=lambda text: status.update(text),
        )
    facts = {**known, "images": "x".join(map(str, images.shape)), **_verdicts(findings, file, known)}
    if as_json:
        print(json.dumps({**facts, **_as_values(findings)}, indent=1))
        return
    screen.print_facts({name: value for name, value in known.items() if name != "pixels"} | {"images": facts["images"]})
    screen.print_rows("values: this file, and real images in each space", _values(findings))
    screen.print_rows("preprocessing: accuracy in percent on real images in each space", _rows(findings.spaces))
    screen.print_rows("networks, in the space that fits best", _rows(findings.networks[:SHOWN]))
    if len(findings.labels) > 1:
        screen.print_rows("labels, on the network that fits best", _rows(findings.labels))
    print()
    screen.print_facts({name: facts[name] for name in ("fits", "network", "labels")})
    print(facts["next"])


def _check(images: Any, labels: Any, info: Any, file: Path) -> None:
    """Raise `UserError` where the set cannot be of this dataset."""
    if tuple(images.shape[1:]) != tuple(info.shape):
        found, wanted = ("x".join(map(str, shape)) for shape in (images.shape[1:], info.shape))
        raise UserError(f"images {found}, those of {info.name} are {wanted}", where=str(file), hint="another dataset?")
    classes = int(labels.max()) + 1 if labels.dim() == 1 else labels.shape[1]
    if classes > info.classes or (labels.dim() == 2 and classes != info.classes):
        raise UserError(f"labels of {classes} classes, {info.name} has {info.classes}", where=str(file))


def _verdicts(findings: Findings, file: Path, known: dict[str, Any]) -> dict[str, str]:
    """Return the conclusions as text."""
    spaces, kinds = findings.verdict("spaces"), findings.verdict("labels")
    best, others = findings.spaces[0], [fit for fit in findings.spaces if not fit.fits]
    said = {"fits": f"{_listed(spaces)} ({findings.reasons['spaces']})"}
    if len(spaces) == 1 and others:
        second = max(others, key=lambda fit: fit.accuracy)
        said["fits"] += (
            f": accuracy {best.accuracy:.1%}, next {second.name} {second.accuracy:.1%}; distance of the values "
            f"{best.distance:.2f}, next {min(fit.distance or 0 for fit in others):.2f}"
        )
    said |= {"network": _listed(findings.verdict("networks")), "labels": _listed(kinds)}
    if stored := known.get("preprocessing"):
        holds = "as its header says" if stored in spaces else f"but its header says {stored}: is it what it claims?"
        return said | {"next": f"{' or '.join(spaces)}, {holds}"}
    if len(spaces) != 1:
        return said | {"next": "ask who made it, or import it as each of them and compare by `ddbench evaluate`"}
    kind = "" if kinds == ["hard"] else f" --label-kind {kinds[0]}"
    pixels = " --no-pixels" if known.get("pixels") and spaces[0] != "none" else ""
    order = f"ddbench import {file} --dataset {known['dataset']} --preprocessing {spaces[0]}{pixels}{kind}"
    return said | {"next": f"{order} -o {file.stem}.safetensors"}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"not decided between {', '.join(names)}"


def _values(findings: Findings) -> list[dict[str, str]]:
    looks = [("this file", findings.own, None)] + [(fit.name, fit.look, fit.distance) for fit in findings.spaces]
    return [
        {
            "values": name,
            "from": f"{look.low:.2f}",
            "to": f"{look.high:.2f}",
            "mean": " ".join(f"{value:.3f}" for value in look.mean.tolist()),
            "deviation": " ".join(f"{value:.3f}" for value in look.std.tolist()),
            "neighbours alike": f"{look.neighbours:.2f}",
            "distance": "" if distance is None else f"{distance:.2f}",
        }
        for name, look, distance in looks
        if look is not None
    ]


def _rows(fits: Sequence[Fit]) -> list[dict[str, str]]:
    return [
        {
            "interpretation": fit.name,
            "accuracy": f"{100 * fit.accuracy:.1f}",
            "behind": f"{100 * fit.behind:.1f} ± {100 * fit.error:.1f}",
            "fits": "yes" if fit.fits else "",
        }
        for fit in sorted(fits, key=lambda fit: -fit.accuracy)
    ]


def _as_values(findings: Findings) -> dict[str, Any]:
    """Return all numbers as plain JSON values."""
    return {
        factor: [
            {"name": fit.name, "accuracy": fit.accuracy, "behind": fit.behind, "error": fit.error, "fits": fit.fits}
            | ({} if fit.distance is None else {"distance": fit.distance})
            for fit in getattr(findings, factor)
        ]
        for factor in ("spaces", "networks", "labels")
    }
