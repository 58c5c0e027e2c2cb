"""`ddbench new`: a method or an evaluator of one's own that works, with its test and a suite, to be changed."""

from __future__ import annotations

import enum
import keyword
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import UserError
from bench.registry import EVALUATORS, METHODS

NAME = "new"


class What(enum.StrEnum):
    """Kinds of templates."""

    method = "method"
    evaluator = "evaluator"


def command(
    what: Annotated[What, typer.Argument(help="What to begin.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Its name, that of a Python module.", show_default=False)],
    folder: Annotated[Path, typer.Option("--dir", help="Where to write it.")] = Path(),
) -> None:
    """Write NAME.py, a method or evaluator that works, its test test_NAME.py, and the suite NAME.yaml."""
    check_name(name)
    title = "".join(word.capitalize() for word in name.split("_"))
    facts = {"name": name, "title": title, "words": name.replace("_", " ").strip()}
    templates = {
        f"{name}.py": f"{what}.py.j2",
        f"test_{name}.py": f"test_{what}.py.j2",
        f"{name}.yaml": f"{what}.yaml.j2",
    }
    texts = {file: render(template, facts) for file, template in templates.items()}
    for file in texts:
        if (folder / file).exists():
            raise UserError("there is such a file already", where=str(folder / file), hint="choose another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", where=str(folder)) from error
    print(f"{what} {title} in {folder / name}.py. Next, in {folder.resolve()}:")
    print(f"  pytest test_{name}.py\n  ddbench run {name}.yaml")


def check_name(name: str) -> None:
    """Raise `UserError` for a name that no module of one's own can have."""
    if not name.isidentifier() or keyword.iskeyword(name) or not name.strip("_"):
        raise UserError(
            f"{name!r} cannot be the name of a Python module", hint="letters, digits and _, as in my_method"
        )
    if name in sys.stdlib_module_names or name in ("bench", "methods", "evaluators", "suites", "results", "torch"):
        raise UserError(f"a module {name!r} exists already", hint="choose another name")
    for registry in (METHODS, EVALUATORS):
        if name in registry.targets:
            raise UserError(f"there is a {registry.kind} {name!r} already", hint="choose another name")


def render(template: str, facts: dict[str, str]) -> str:
    """Return a template filled in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("bench", "templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(template).render(facts)
