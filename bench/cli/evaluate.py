"""`ddbench evaluate`: distilled sets in files through any evaluator, with tables and a report as after a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli import options
from bench.cli.run import Executor, write_report
from bench.errors import UserError

NAME = "evaluate"


def command(
    files: Annotated[
        list[Path],
        typer.Argument(help="Sets of ddbench, or what an official repository released.", show_default=False),
    ],
    evaluators: Annotated[
        str | None, typer.Option("--evaluators", help="Names with commas; default: accuracy, or those of --suite.")
    ] = None,
    suite_file: Annotated[
        Path | None, typer.Option("--suite", help="Suite whose evaluation and evaluators are used.")
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Preset of that suite.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Default: the one the file names.")] = None,
    preprocessing: Annotated[
        str | None, typer.Option("--preprocessing", help="Default: that of the file; foreign files may not tell.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="How networks are trained: a name or {base: ..., ...}; default: the set's own."),
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", help="Default: the one that goes with the recipe.")
    ] = None,
    replicates: Annotated[
        int | None, typer.Option("--replicates", min=1, help="Networks per set; default: 5, or as in --suite.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the evaluation.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Results folder; default: runs/evaluate-<name of the first file>.")
    ] = None,
    device: options.Device = "auto",
    jobs: options.Jobs = None,
    executor: Annotated[
        Executor, typer.Option("--executor", help="local: a fresh process per cell; inline: this process.")
    ] = Executor.local,
) -> None:
    """Evaluate distilled sets that lie in files: accuracy, or any evaluators, in tables and a report."""
    import bench.run
    import bench.suite
    from bench.cli import screen
    from bench.suite import sets

    base = bench.suite.load(suite_file, preset) if suite_file else None
    if preset and not base:
        raise UserError("--preset is that of a suite", hint="add --suite FILE")
    folder = out or Path("runs") / f"evaluate-{files[0].stem}"
    suite = sets.around(
        [own(file, dataset, preprocessing, folder) for file in files],
        "evaluate" if base is None else f"evaluate-{base.name}",
        evaluators=evaluators.split(",") if evaluators else None,
        dataset=dataset,
        preprocessing=preprocessing,
        recipe=as_recipe(recipe),
        network=network,
        replicates=replicates,
        seed=seed,
        base=base,
    )
    plan = bench.suite.plan(suite)
    tell(suite)
    summary = bench.run.run_plan(plan, bench.run.Store(folder), jobs=jobs, device=device, executor=executor.value)
    write_report(folder, None)
    screen.print_summary(summary, folder, "*.md")
    raise typer.Exit(summary.exit_code)


def own(file: Path, dataset: str | None, preprocessing: str | None, folder: Path) -> Path:
    """Return a file of ddbench for a file: itself, or, for one of another project, the set made of it in `folder`.

    The same file and choices give the same bytes, so that what is cached for it stays valid.
    """
    import bench.imports
    from bench.distilled import save

    if bench.imports.is_own(file):
        return file
    try:
        found = bench.imports.load(file, dataset=dataset, preprocessing=preprocessing)
    except UserError as error:
        hint = "; ".join(part for part in (error.hint, "`ddbench import` has all options and writes a set") if part)
        raise UserError(error.what, where=error.where, hint=hint) from error
    target = folder / "sets" / f"{file.stem}.safetensors"
    save(target, found)
    print(f"{file}: imported as {target}")
    return target


def as_recipe(text: str | None) -> Any:
    """Return the recipe of an option: its name, or the mapping it writes."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    from bench.suite import yaml

    return yaml.parse(text, "--recipe").plain()


def tell(suite: Any) -> None:
    """Print what every set is and how it is evaluated, so that nobody takes the numbers for others."""
    from bench.distilled import read_header
    from bench.nets.spec import label
    from bench.train.recipe import label as recipe_label
    from bench.train.recipe import resolve

    for variant in suite.variants:
        made, info = read_header(variant.params.file), variant.task.dataset
        ipc = "uneven" if made.ipc is None else made.ipc
        print(
            f"{variant.label}: {variant.params.file}\n"
            f"  made by {made.method}, seed {made.seed}, {made.dataset}, images per class {ipc}, {made.preprocessing}, "
            f"{made.label_kind} labels\n"
            f"  evaluated with the recipe {recipe_label(resolve(variant.recipe))}"
            f"{_origin(suite, variant, made)} on {label(variant.network, info.shape)}"
        )


def _origin(suite: Any, variant: Any, made: Any) -> str:
    """Return whose recipe it is."""
    from bench.suite.resolve import NATIVE

    given = suite.spec.evaluation.recipes.get(variant.label, suite.spec.evaluation.recipe)
    if given != NATIVE:
        return ""
    return " (the set's own)" if made.native_recipe is not None else " (the set has none of its own)"
