"""Cells: the units of work, and how one combination of the grid becomes a few of them.

One idea: a cell is its configuration. `Cells` keeps what has been planned by key, so a configuration that comes out
twice is one cell, and asking for an artifact is the same as planning it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import bench.data
from bench.api import Artifact, EvalSpec, Evaluator, Method, NetSpec, Params, TaskSpec, Training
from bench.data import views
from bench.errors import UserError
from bench.nets import spec as nets
from bench.registry import ARTIFACTS, METHODS
from bench.suite import weights
from bench.suite.keys import key, network_fields, recipe_fields, task_config, training_fields
from bench.suite.problems import Problems, call, validate
from bench.suite.resolve import Chosen, Variant, plugin, resolved

MAX_NEEDS = 10
"""Longest chain of artifacts that need artifacts."""

Kind = Literal["prepare", "distil", "evaluate"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One unit of work.

    config: all that the result depends on; key: its hash. inputs: name -> key of the cells it builds on. coords:
    where it stands in the suite; also: further places that came out equal, such as a second label with the same
    parameters. timed: must run alone on its device. weight: rough cost for scheduling, in arbitrary units.
    skip: why it is left out; only in `Plan.skipped`.
    """

    key: str
    kind: Kind
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    label: str
    coords: Mapping[str, Any]
    timed: bool = False
    weight: float = 1.0
    also: tuple[Mapping[str, Any], ...] = ()
    skip: str | None = None


class Cells:
    """The cells planned so far, every cell after its inputs. data: dataset -> fingerprint."""

    def __init__(self, data: dict[str, str], threads: int, replicates: int, found: Problems) -> None:
        self.by_key: dict[str, Cell] = {}
        self._artifacts: dict[str, type[Artifact]] = {}
        self._dumped: dict[int, tuple[Params, dict[str, Any]]] = {}
        self.data, self.threads, self.replicates, self.found = data, threads, replicates, found

    def add_variant(self, variant: Variant, seed: int, chosen: Sequence[Chosen]) -> None:
        """Plan the distillation of a variant with one seed and all its evaluations."""
        task = variant.task.model_copy(update={"seed": seed})
        spec = EvalSpec(task, variant.name, variant.steps, variant.network, variant.recipe, self.replicates)
        requests: list[tuple[Chosen, list[Training], dict[str, Variant]]] = []
        snapshots: set[int] = set()
        for evaluator in chosen:
            trainings = self.found.attempt(evaluator.path, _trainings, evaluator, spec)
            steps = self.found.attempt(evaluator.path, _snapshots, evaluator, spec, trainings or [])
            others = self.found.attempt(evaluator.path, _others, evaluator, spec, variant)
            if trainings is not None and steps is not None and others is not None:
                requests.append((evaluator, trainings, others))
                snapshots |= steps
        served = _served(training for _, trainings, _ in requests for training in trainings)
        coords = coordinates(variant, seed)
        timed = any(evaluator.kind.timed for evaluator in chosen)
        distilled = self.found.attempt(variant.path, self._distil, variant, task, coords, timed, sorted(snapshots))
        if distilled is not None:
            for evaluator, trainings, others in requests:
                sets = self.found.attempt(evaluator.path, self._sets, others, coords)
                if sets is not None:
                    sets[""] = distilled
                    self.found.attempt(
                        evaluator.path, self._evaluate, evaluator, spec, coords, sets, trainings, served, others
                    )

    def _sets(self, others: Mapping[str, Variant], coords: Mapping[str, Any]) -> dict[str, str]:
        """Plan the further distillations of an evaluator; return name -> key."""
        return {
            name: self._distil(
                other, other.task, {**coords, **coordinates(other, other.task.seed)}, timed=False, snapshots=[]
            )
            for name, other in others.items()
        }

    def _distil(
        self, variant: Variant, task: TaskSpec, coords: dict[str, Any], timed: bool, snapshots: list[int]
    ) -> str:
        config = {
            "kind": "distil",
            "method": variant.name,
            "version": variant.kind.version,
            "params": self._params(variant.params),
            "task": self._task(task),
            "inputs": self._needs(f"method {variant.name!r}", variant.kind, variant.params, task, task),
            "timed": timed,
            "snapshots": snapshots,
            "threads": self.threads,
        }
        return self._add(f"distil {place(coords)}", config, coords, weights.distillation(variant), timed)

    def _evaluate(
        self,
        evaluator: Chosen,
        spec: EvalSpec,
        coords: dict[str, Any],
        sets: Mapping[str, str],
        trainings: list[Training],
        served: Mapping[Any, Training],
        others: Mapping[str, Variant],
    ) -> str:
        """Plan an evaluation.

        sets: keys of the distillations by name, the one under evaluation under "". served: what is trained for all
        evaluators that ask alike. others: what the further distillations are.
        """
        task = self._task(spec.task)
        inputs, requests = {f"set {name}" if name else "distilled": key for name, key in sets.items()}, []
        for index, training in enumerate(trainings):
            name = f"trained{index}"
            trained = training_fields(served[_alike(training)])
            network = resolved(training.network, spec.task.dataset.shape)
            own, places = spec.task, coords
            if alone := _baseline(training, others):  # then nothing of the set under evaluation matters
                own, places = alone.task, coordinates(alone, alone.task.seed)
            inputs[name] = self._networks(trained, network, own, self._task(own), places, _trained_on(training, sets))
            requests.append({**training_fields(training), "input": name})
        who = f"evaluator {evaluator.name!r}"
        needs = self._needs(who, evaluator.kind, evaluator.params, spec, spec.task)
        if taken := needs.keys() & inputs.keys():
            raise UserError(f"{who} calls an artifact {min(taken)!r}, the name of another input")
        config = {
            "kind": "evaluate",
            "evaluator": evaluator.name,
            "version": evaluator.kind.version,
            "params": self._params(evaluator.params),
            "task": task,
            "method": spec.method,
            "method_steps": spec.method_steps,
            "eval": {
                "network": network_fields(spec.network),
                "recipe": recipe_fields(spec.recipe),
                "replicates": spec.replicates,
            },
            "trainings": requests,
            "inputs": {**inputs, **needs},
            "threads": self.threads,
        }
        label = network_label(spec.network, spec.task.dataset.shape)
        coords = {**coords, "evaluator": evaluator.name, "network": label}
        return self._add(f"{evaluator.name} of {place(coords)}", config, coords, weights.EVALUATION)

    def _networks(
        self,
        fields: dict[str, Any],
        network: NetSpec,
        spec: TaskSpec,
        task: dict[str, Any],
        coords: dict[str, Any],
        sets: Mapping[str, str],
    ) -> str:
        """Plan networks trained on a distilled set, or the union of several: a cell of the artifact `networks`."""
        kind = self._artifact_kind("networks")
        config = {
            "kind": "prepare",
            "artifact": "networks",
            "version": kind.version,
            "params": {
                **{name: value for name, value in fields.items() if name != "sets"},
                "network": network_fields(network),
            },
            "task": task,
            "inputs": sets,
            "threads": self.threads,
        }
        name = network_label(network, spec.dataset.shape)
        step = "" if fields["snapshot"] is None else f" after step {fields['snapshot']}"
        step += f", {', '.join(fields['sets'])}" if "sets" in fields else ""
        coords = {**coords, "artifact": "networks", "network": name}
        return self._add(f"train {name} on {place(coords)}{step}", config, coords, weights.training(config, spec))

    def _needs(
        self,
        who: str,
        kind: type[Method] | type[Artifact] | type[Evaluator],
        params: Params,
        spec: TaskSpec | EvalSpec,
        task: TaskSpec,
        left: int = MAX_NEEDS,
    ) -> dict[str, str]:
        """Plan what a method, artifact or evaluator must have first; return name -> key.

        spec: what its `needs` is asked with. task: what the tasks of the artifacts are made from.
        """
        needs = call(who, kind.needs, params, spec)
        if needs and not left:
            raise UserError(f"{who} needs artifacts that need artifacts without end")
        return {
            name: self._artifact(who, need.artifact, need.params, need.task, task, left) for name, need in needs.items()
        }

    def _artifact(
        self, who: str, name: str, given: Mapping[str, Any], changes: Mapping[str, Any], spec: TaskSpec, left: int
    ) -> str:
        kind = self._artifact_kind(name)
        params, faults = validate(kind.Params, dict(given))
        if params is None:
            raise UserError(f"{who} asks for artifact {name!r} with wrong parameters: {faults[0].what}")
        task = call(who, TaskSpec.model_validate, {**dict(spec), **changes})
        task = task.model_copy(update={"network": resolved(task.network, task.dataset.shape)})
        config = {
            "kind": "prepare",
            "artifact": name,
            "version": kind.version,
            "params": params.model_dump(mode="json"),
            "task": self._task(task),
            "inputs": self._needs(f"artifact {name!r}", kind, params, task, task, left - 1),
            "threads": self.threads,
        }
        coords = {
            "dataset": task.dataset.name,
            "ipc": task.ipc,
            "seed": task.seed,
            "distil_network": network_label(task.network, task.dataset.shape),
            "artifact": name,
        }
        return self._add(f"prepare {name} {place(coords)}", config, coords, weights.artifact(params, task))

    def _artifact_kind(self, name: str) -> type[Artifact]:
        if name not in self._artifacts:
            self._artifacts[name] = plugin(ARTIFACTS, name, Artifact)  # type: ignore[type-abstract]
        return self._artifacts[name]

    def _params(self, params: Params) -> dict[str, Any]:
        """Return parameters as plain JSON values: one dict for all seeds, never to be changed."""
        if id(params) not in self._dumped:  # the parameters are kept beside it, so that no others get their id
            self._dumped[id(params)] = params, params.model_dump(mode="json")
        return self._dumped[id(params)][1]

    def _task(self, spec: TaskSpec) -> dict[str, Any]:
        """Return the configuration of a task. Raises `MissingData` for a dataset only an artifact asks for."""
        name = spec.dataset.name
        if name not in self.data:
            if self.data.get(views.base(name)) == "":  # data that is not here, planned for its mistakes only
                return task_config(spec, "")
            bench.data.require(name)
            self.data[name] = bench.data.fingerprint(name)
        return task_config(spec, self.data[name])

    def _add(
        self, label: str, config: Mapping[str, Any], coords: Mapping[str, Any], weight: float, timed: bool = False
    ) -> str:
        name = key(config)
        known = self.by_key.get(name)
        if known is None:
            inputs = config["inputs"]
            self.by_key[name] = Cell(name, config["kind"], config, inputs, label, coords, timed, weight)
        elif coords not in (known.coords, *known.also):
            self.by_key[name] = replace(known, also=(*known.also, coords))
        return name


def coordinates(variant: Variant, seed: int) -> dict[str, Any]:
    """Return where a variant with a seed stands in the suite."""
    return {
        "dataset": variant.task.dataset.name,
        "method": variant.name,
        "label": variant.label,
        "settings": variant.settings,
        "ipc": variant.task.ipc,
        "seed": seed,
        "distil_network": network_label(variant.task.network, variant.task.dataset.shape),
    }


def place(coords: Mapping[str, Any]) -> str:
    """Return coordinates as text, e.g. `dm, digits, ipc 10, seed 0`."""
    ipc = None if coords["ipc"] is None else f"ipc {coords['ipc']}"
    parts = (coords.get("label"), coords["dataset"], ipc, f"seed {coords['seed']}")
    return ", ".join(part for part in parts if part is not None)


@cache
def network_label(network: NetSpec, shape: tuple[int, int, int]) -> str:
    """Return the short name of a network."""
    return nets.label(network, shape)


def _alike(training: Training) -> Any:
    """Return what requests have in common that one training can serve: all but the number of networks and weights."""
    network, recipe = network_fields(training.network), recipe_fields(training.recipe)
    same = id(network), id(recipe)  # equal ones are one dict
    return *same, training.snapshot, tuple(training.sets), tuple(training.rates)


def _served(trainings: Iterable[Training]) -> dict[Any, Training]:
    """Return the trainings that serve all requests: as many networks as any of those alike wants, and their weights.

    A network depends on its own generator alone, so the first of many are those of a smaller request.
    """
    served: dict[Any, Training] = {}
    for training in trainings:
        most = served.setdefault(_alike(training), training)
        if training.replicates > most.replicates or training.weights > most.weights:
            most = replace(
                most,
                replicates=max(most.replicates, training.replicates),
                weights=most.weights or training.weights,
            )
            served[_alike(training)] = most
    return served


def _trained_on(training: Training, sets: Mapping[str, str]) -> dict[str, str]:
    """Return the inputs of networks: the set under evaluation, or those of a union in their order."""
    for name in training.sets:
        if name not in sets:
            raise UserError(f"a training asks for the set {name!r}, which is not among its distillations")
    union = {f"union {index:04d}": sets[name] for index, name in enumerate(training.sets)}
    return union or {"distilled": sets[""]}


def _baseline(training: Training, others: Mapping[str, Variant]) -> Variant | None:
    """Return the one set that networks are trained on if it is a baseline; None for all others."""
    found = [others[name] for name in training.sets if name in others]
    return found[0] if len(found) == 1 and found[0].baseline else None


def _others(evaluator: Chosen, spec: EvalSpec, variant: Variant) -> dict[str, Variant]:
    """Return the further distillations an evaluator asks for."""
    who = f"evaluator {evaluator.name!r}"
    others = {}
    for name, changes in call(who, evaluator.kind.distillations, evaluator.params, spec).items():
        fields = dict(changes)
        method, given = fields.pop("method", None), fields.pop("params", {})
        if "dataset" in fields:
            fields["dataset"] = call(who, bench.data.info, fields["dataset"])
        task = call(who, TaskSpec.model_validate, {**dict(spec.task), **fields})
        task = task.model_copy(update={"network": resolved(task.network, task.dataset.shape)})
        other = replace(variant, task=task)
        others[name] = other if method is None else _made_by(method, given, other, who)
    return others


def _made_by(name: str, given: Mapping[str, Any], variant: Variant, who: str) -> Variant:
    """Return a variant made by another method, with its preset and the parameters an evaluator gives it."""
    kind, task = plugin(METHODS, name, Method), variant.task  # type: ignore[type-abstract]
    preset = {} if task.ipc is None else call(who, kind.preset, task.dataset, task.ipc).params
    params, faults = validate(kind.Params, {**preset, **given})
    if params is None:
        raise UserError(f"{who} gives method {name!r} wrong parameters: {faults[0].what}")
    steps = call(who, lambda: int(kind(params).steps))
    return replace(
        variant, name=name, label=name, kind=kind, params=params, steps=steps, settings="modified", baseline=True
    )


def _trainings(evaluator: Chosen, spec: EvalSpec) -> list[Training]:
    return list(call(f"evaluator {evaluator.name!r}", evaluator.kind.trainings, evaluator.params, spec))


def _snapshots(evaluator: Chosen, spec: EvalSpec, trainings: Sequence[Training]) -> set[int]:
    """Return the outer steps whose sets an evaluator needs. Raises `UserError` for steps that never come."""
    steps = set(call(f"evaluator {evaluator.name!r}", evaluator.kind.snapshots, evaluator.params, spec))
    steps |= {training.snapshot for training in trainings if training.snapshot is not None}
    for step in steps:
        if not 0 <= step <= spec.method_steps:
            raise UserError(f"step {step} never comes: {spec.method!r} has {spec.method_steps} steps")
    return steps
