"""Names -> things: every combination of dataset, method and images per class, with all its choices made.

The order of precedence is written here and nowhere else: what the entry of a method says, then what the grid says,
then what the method itself wants for the dataset. Nothing here depends on the seed; that is left to the plan.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeVar

import bench.augment
import bench.data
from bench.api import DatasetInfo, Evaluator, Method, NetSpec, Params, TaskSpec
from bench.errors import UserError, nearest
from bench.nets import spec as nets
from bench.registry import EVALUATORS, METHODS, Registry
from bench.suite.problems import Problems, call, validate
from bench.suite.spec import MethodEntry, SuiteSpec, Where
from bench.suite.yaml import KeyPath
from bench.train import recipe as recipes

Kind = TypeVar("Kind")

NATIVE = "native"
"""Base of the recipe that each method's paper evaluates with."""


@dataclass(frozen=True)
class Variant:
    """One method on one dataset at one IPC, complete but for the seed (0 in `task`).

    network, recipe: the suite's defaults of evaluation, the recipe as plain JSON values. path: the method's entry.
    """

    task: TaskSpec
    name: str
    label: str
    kind: type[Method]
    params: Params
    settings: Literal["paper", "modified"]
    steps: int
    network: NetSpec
    recipe: Mapping[str, Any]
    path: KeyPath
    baseline: bool = False
    """Made for comparison by another method: networks trained on it depend on nothing of the set under evaluation."""


@dataclass(frozen=True)
class Chosen:
    """An evaluator of the suite with checked parameters."""

    name: str
    kind: type[Evaluator]
    params: Params
    where: Where
    path: KeyPath


@dataclass(frozen=True)
class Row:
    """A method entry of the grid with its class, the parameters the suite gives it, and where each was given."""

    path: KeyPath
    entry: MethodEntry
    kind: type[Method]
    given: Mapping[str, Any]
    origin: Mapping[str, KeyPath]

    def place(self, keys: KeyPath) -> KeyPath:
        """Return where a parameter was given; the entry itself for one that comes from elsewhere."""
        name = str(keys[0]) if keys else ""
        return (*self.origin[name], *keys[1:]) if name in self.origin else self.path

    def coordinates(self, dataset: str, ipc: int | None) -> dict[str, Any]:
        """Return what `where` and `skip` clauses choose by, without the seed."""
        return {"dataset": dataset, "method": self.entry.name, "label": label(self.entry), "ipc": ipc}


@dataclass(frozen=True)
class Left:
    """Coordinates that the suite leaves out for all seeds, with the reason it gives."""

    coordinates: Mapping[str, Any]
    reason: str


def label(entry: MethodEntry) -> str:
    """Return the name of a row in tables."""
    return entry.label or entry.name


def skip_reason(spec: SuiteSpec, coordinates: Mapping[str, Any]) -> str | None:
    """Return why the suite leaves these coordinates out, or None. Clauses on coordinates not given do not count."""
    for clause in spec.skip:
        if clause.matches(coordinates):
            return clause.reason
    return None


def plugin(registry: Registry, name: str, base: type[Kind]) -> type[Kind]:
    """Return a registered class. Raises `UserError` if it is unknown, does not import or is not of its kind."""
    found = call(f"{registry.kind} {name!r}", registry.get, name)
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise UserError(
            f"{name!r} is not a {registry.kind}", hint=f"it must be a subclass of bench.api.{base.__name__}"
        )
    return found


def rows(spec: SuiteSpec, found: Problems) -> list[Row]:
    """Return the methods of the grid, without those that are unknown."""
    result = []
    for index, entry in enumerate(spec.grid.methods):
        path: KeyPath = ("grid", "methods", index)
        kind = found.attempt((*path, "name"), plugin, METHODS, entry.name, Method)
        layers = [((*path, "params"), entry.params)]
        for name in dict.fromkeys((entry.name, label(entry))):
            layers.append((("methods", name), spec.methods.get(name, {})))
        given = {key: value for _, params in layers for key, value in params.items()}
        origin = {key: (*place, key) for place, params in layers for key in params}
        if kind is not None:
            result.append(Row(path, entry, kind, given, origin))
    return result


def evaluators(spec: SuiteSpec, found: Problems) -> tuple[Chosen, ...]:
    """Return the evaluators of the suite with their parameters."""
    result = []
    for index, entry in enumerate(spec.evaluators):
        path: KeyPath = ("evaluators", index)
        kind = found.attempt((*path, "name"), plugin, EVALUATORS, entry.name, Evaluator)
        if kind is None:
            continue
        params, faults = validate(kind.Params, entry.params)
        found.add_faults(faults, kind.Params, partial(_join, (*path, "params")))
        if params is not None:
            result.append(Chosen(entry.name, kind, params, entry.where, path))
    return tuple(result)


def variants(
    spec: SuiteSpec, infos: Mapping[str, DatasetInfo], rows: Sequence[Row], found: Problems
) -> tuple[list[Variant], list[Left]]:
    """Return all combinations of the grid that are right, and those that `skip` clauses leave out for all seeds."""
    kept, left = [], []
    for dataset, info in infos.items():
        for row in rows:
            for ipc in budgets(spec, row.kind):
                coords = row.coordinates(dataset, ipc)
                if (reason := skip_reason(spec, coords)) is not None:
                    left.append(Left(coords, reason))
                elif (variant := _variant(spec, row, info, ipc, found)) is not None:
                    kept.append(variant)
    return kept, left


def budgets(spec: SuiteSpec, kind: type[Method]) -> Iterable[int | None]:
    """Return the images per class to distil; None alone for a method to which they mean nothing."""
    return (None,) if kind.budget_free else spec.grid.ipc


def _variant(spec: SuiteSpec, row: Row, info: DatasetInfo, ipc: int | None, found: Problems) -> Variant | None:
    """Return a variant with all its choices made, or None where something is wrong, which is noted."""
    kind, who = row.kind, f"method {row.entry.name!r}"
    if ipc is not None:
        found.attempt(("grid", "ipc", spec.grid.ipc.index(ipc)), _check_budget, info, ipc)
    params, published = _params(row, info, ipc, found)
    if params is None:
        return None
    network, own_network = _choose(
        (spec, row, "network", found),
        own=lambda: call(who, kind.network, params, info) or "convnet",
        finish=lambda given: resolved(nets.parse(given), info.shape),
    )
    preprocessing, own_preprocessing = _choose(
        (spec, row, "preprocessing", found),
        own=lambda: call(who, kind.preprocessing, params, info),
        finish=_preprocessing,
    )
    augment, own_augment = _choose(
        (spec, row, "augment", found),
        own=lambda: kind.augment,
        finish=lambda given: bench.augment.resolve(given, info),
    )
    steps = found.attempt(row.path, call, who, lambda: int(kind(params).steps))
    if network is None or preprocessing is None or augment is None or steps is None:
        return None
    task = TaskSpec(dataset=info, ipc=ipc, network=network, preprocessing=preprocessing, augment=augment)
    eval_network, recipe = _evaluation(spec, row, params, task, found)
    if eval_network is None or recipe is None:
        return None
    as_published = published and info.complete and own_network and own_preprocessing and own_augment
    settings: Literal["paper", "modified"] = "paper" if as_published else "modified"
    name = row.entry.name
    return Variant(task, name, label(row.entry), kind, params, settings, steps, eval_network, recipe, row.path)


def _choose(
    what: tuple[SuiteSpec, Row, str, Problems], *, own: Callable[[], Any], finish: Callable[[Any], Any]
) -> tuple[Any, bool]:
    """Return the entry's, the grid's or the method's own choice, and whether it is equal to the method's own."""
    spec, row, key, found = what
    for path, choices in (((*row.path, key), row.entry), (("grid", key), spec.grid)):
        if (given := getattr(choices, key)) is not None:
            chosen = found.attempt(path, finish, given)
            return chosen, chosen == _or_none(lambda: finish(own()))
    return found.attempt(row.path, lambda: finish(own())), True


def _evaluation(
    spec: SuiteSpec, row: Row, params: Params, task: TaskSpec, found: Problems
) -> tuple[NetSpec | None, dict[str, Any] | None]:
    """Return the network and the recipe of evaluation, None for what is wrong."""
    network: NetSpec | None = task.network
    path, given = _chosen_recipe(spec, row.entry)
    if (wanted := spec.evaluation.network) is not None:
        place: KeyPath = ("evaluation", "network")
        network = found.attempt(place, lambda: resolved(nets.parse(wanted), task.dataset.shape))
    elif _base(given) == NATIVE:
        own = found.attempt(row.path, call, f"method {row.entry.name!r}", row.kind.native_network, params, task)
        if own is not None:
            network = found.attempt(row.path, resolved, own, task.dataset.shape)
    return network, found.attempt(path, _recipe, given, row.kind, params, task)


def _params(row: Row, info: DatasetInfo, ipc: int | None, found: Problems) -> tuple[Params | None, bool]:
    """Return the parameters of a variant, and whether they are the published ones."""
    who = f"method {row.entry.name!r}"
    preset = found.attempt(row.path, call, who, row.kind.preset, info, ipc)
    if preset is None:
        return None, False
    params, faults = validate(row.kind.Params, {**preset.params, **row.given})
    found.add_faults(faults, row.kind.Params, row.place)
    if params is not None:
        params = found.attempt(row.path, call, who, row.kind.settle, params, info, ipc)
    if preset.source is None or params is None:
        return params, False
    return params, params == validate(row.kind.Params, dict(preset.params))[0]


def _check_budget(info: DatasetInfo, ipc: int) -> None:
    largest = info.train_size // info.classes  # no dataset has more in its smallest class
    if ipc > largest:
        raise UserError(
            f"{ipc} images per class are more than {info.name} has", hint=f"its smallest class has at most {largest}"
        )


@cache
def resolved(network: NetSpec, shape: tuple[int, int, int]) -> NetSpec:
    """Return a network with every field filled in for the image shape. Raises `UserError` if it does not fit."""
    return nets.resolve(network, shape)


def _preprocessing(given: str) -> str:
    if given not in bench.data.PREPROCESSINGS:
        raise UserError(f"unknown preprocessing {given!r}", hint=nearest(given, bench.data.PREPROCESSINGS))
    return given


def _chosen_recipe(spec: SuiteSpec, entry: MethodEntry) -> tuple[KeyPath, str | Mapping[str, Any]]:
    """Return the recipe for a row and where the suite gives it: by label, by method name, or for all."""
    for name in (label(entry), entry.name):
        if name in spec.evaluation.recipes:
            return ("evaluation", "recipes", name), spec.evaluation.recipes[name]
    return ("evaluation", "recipe"), spec.evaluation.recipe


def _base(given: str | Mapping[str, Any]) -> Any:
    """Return the name a recipe is or starts from, None where it names none."""
    return given if isinstance(given, str) else given.get("base")


def check_recipe(given: str | Mapping[str, Any]) -> None:
    """Raise `UserError` for a recipe that is wrong whatever the method."""
    changes = {"base": given} if isinstance(given, str) else given
    if not isinstance(changes.get("base", ""), str):
        raise UserError("the base of a recipe must be a name")
    if changes.get("base") != NATIVE:
        _plain_recipe(json.dumps(changes))


def _recipe(given: str | Mapping[str, Any], kind: type[Method], params: Params, task: TaskSpec) -> dict[str, Any]:
    """Return the fields of an evaluation recipe; `native` stands for the method's own, or `review` without one."""
    check_recipe(given)
    changes = {"base": given} if isinstance(given, str) else dict(given)
    if changes.get("base") == NATIVE:
        own = call(f"method {kind.__name__}", kind.native_recipe, params, task)
        base = recipes.resolve(own if own is not None else "review")
        del changes["base"]
        fields = recipes.resolve(changes, base=base).model_dump(mode="json")
    else:
        fields = _plain_recipe(json.dumps(changes))
    bench.augment.resolve(fields["augment"], task.dataset)
    return fields


@cache
def _plain_recipe(given: str) -> dict[str, Any]:
    """Return the fields of a recipe that was given as JSON text."""
    return recipes.resolve(json.loads(given)).model_dump(mode="json")


def _join(path: KeyPath, keys: KeyPath) -> KeyPath:
    return (*path, *keys)


def _or_none(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except UserError:
        return None
