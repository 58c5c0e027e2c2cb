"""The rules of planning: what a plug-in says of itself is complete, right, and read without torch.

Plans, `--help` and `list` must answer at once, and torch takes a second to import. So each thing is asked everything
the planner asks, in a process of its own in which torch cannot be imported; several share one process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bench.testing.rules import ensure

if TYPE_CHECKING:
    from bench.api import DatasetInfo

Thing = tuple[str, str, Mapping[str, Any] | None]
"""Kind (method, evaluator, network or dataset), name, and parameters as in a suite."""

DATASETS = ("debug", "digits")
BUDGETS = (1, 2, 10, 50)
_passed: set[str] = set()


def check_planning(*things: Thing) -> None:
    """Check that things are planned without torch; raise `AssertionError` for the first that is not.

    things: tuples of kind (`method`, `evaluator`, `network` or `dataset`), name and parameters. What has passed once
    in this process is not asked again, so that a test of many plug-ins may begin with all of them in one call.
    """
    texts = {json.dumps([kind, name, dict(params or {})]): name for kind, name, params in things}
    new = [text for text in texts if text not in _passed]
    if not new:
        return
    question = json.dumps({"path": sys.path, "things": [json.loads(text) for text in new]})
    program = "import sys, json; q = json.load(sys.stdin); sys.path[:] = q['path']; "
    program += "from bench.testing.planning import _answer; _answer(q['things'])"
    done = subprocess.run([sys.executable, "-c", program], input=question, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"planning ended the process: {done.stderr.strip()[-2000:]}")
    problems = json.loads(done.stdout.splitlines()[-1])
    for text, problem in zip(new, problems, strict=True):
        if problem:
            raise AssertionError(f"{json.loads(text)[0]} {texts[text]!r} {problem}")
        _passed.add(text)


def _answer(things: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Print a list of problems, empty text for none; the main function of the process without torch."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it now fails
    print(json.dumps([_problem(*thing) for thing in things]))


def _problem(kind: str, name: str, params: dict[str, Any]) -> str:
    ask: Callable[[str, dict[str, Any]], None] = {
        "method": _method, "evaluator": _evaluator, "network": _network, "dataset": _dataset,
    }[kind]  # fmt: skip
    try:
        ask(name, params)
    except AssertionError as error:
        return str(error)
    except BaseException as error:
        return _told(error)
    return ""


def _told(error: BaseException) -> str:
    """Return an error as text: an import of torch anywhere in its chain, or what it says and where it was raised."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for one in chain:
        if isinstance(one, ImportError) and (one.name or "").partition(".")[0] == "torch":
            return (
                f"imports torch while it is planned ({_place(one)})\n  rule: modules that plans read take torch from "
                "bench.lazy (`from bench.lazy import F, torch`) or import it inside start, step and evaluate"
            )
    return f"fails while it is planned: {type(error).__name__}: {error} ({_place(chain[-1])})"


def _place(error: BaseException) -> str:
    """Return the file and line where an error came from, leaving out the machinery of imports."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<") and "importlib" not in file and not file.endswith("lazy.py"):
            place = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


# ---------------------------------------------------------------------------------------------- what is asked


def _common(thing: Any) -> None:
    """Ask what every class says of itself."""
    from bench.api import Params

    for name in ("title", "citation"):
        text = getattr(thing, name, None)
        ensure(isinstance(text, str) and (bool(text) or name == "citation"), f"has no {name}", f"{name} is a text")
    version = getattr(thing, "version", None)
    ensure(type(version) is int and version >= 1, f"has version {version!r}", "version is a whole number from 1")
    params: Any = getattr(thing, "Params", None)
    ensure(
        isinstance(params, type) and issubclass(params, Params),
        f"has Params {params!r}",
        "Params is a subclass of bench.api.Params",
    )
    for name, field in params.model_fields.items():
        ensure(
            bool(field.description),
            f"does not say what its parameter {name!r} means",
            "fields of Params are made with bench.api.param(default, meaning)",
        )


def _validated(kind: Any, given: Mapping[str, Any], what: str) -> Any:
    from bench.suite.problems import validate

    params, faults = validate(kind.Params, dict(given))
    text = "; ".join(f"{'.'.join(map(str, fault.path))}: {fault.what}" for fault in faults)
    ensure(params is not None, f"refuses {what}: {text}", "Params accepts them")
    return params


def _artifacts(needs: Mapping[str, Any]) -> None:
    from bench.api import Artifact, Need
    from bench.registry import ARTIFACTS
    from bench.suite.resolve import plugin

    for name, need in needs.items():
        ensure(isinstance(need, Need), f"needs {need!r} under {name!r}", "needs returns bench.api.Need objects by name")
        kind = plugin(ARTIFACTS, need.artifact, Artifact)  # type: ignore[type-abstract]
        _validated(kind, need.params, f"what it asks of the artifact {need.artifact!r}")


def _everywhere(ask: Callable[[DatasetInfo, int], None]) -> None:
    """Ask for every dataset and budget. A `UserError` is a refusal of that one; all of them may not be refused."""
    import bench.data
    from bench.errors import UserError

    refused = []
    places = [(bench.data.info(dataset), ipc) for dataset in DATASETS for ipc in BUDGETS]
    for info, ipc in places:
        try:
            ask(info, ipc)
        except UserError as error:
            refused.append(error)
    if len(refused) == len(places):
        raise refused[0]


def _method(name: str, given: dict[str, Any]) -> None:
    import bench.augment
    import bench.data
    from bench.api import Method, Preset, TaskSpec
    from bench.nets import spec as nets
    from bench.registry import METHODS
    from bench.suite.resolve import plugin
    from bench.train import recipe

    kind: Any = plugin(METHODS, name, Method)
    _common(kind)

    def ask(info: DatasetInfo, ipc: int) -> None:
        preset = kind.preset(info, ipc)
        ensure(isinstance(preset, Preset), f"has the preset {preset!r}", "preset returns a bench.api.Preset")
        params = _validated(kind, {**preset.params, **given}, f"its preset for {info.name} at IPC {ipc}")
        params = kind.settle(params, info, None if kind.budget_free else ipc)
        steps = kind(params).steps
        ensure(type(steps) is int and steps >= 0, f"has {steps!r} steps", "steps is a whole number from 0")
        space, known = kind.preprocessing(params, info), bench.data.PREPROCESSINGS
        ensure(space in known, f"wants the preprocessing {space!r}", f"it is one of {', '.join(known)}")
        network = nets.resolve(kind.network(params, info) or nets.parse("convnet"), info.shape)
        augment = bench.augment.resolve(kind.augment, info)
        budget = None if kind.budget_free else ipc
        spec = TaskSpec(dataset=info, ipc=budget, network=network, preprocessing=space, augment=augment)
        _artifacts(kind.needs(params, spec))
        if (own := kind.native_recipe(params, spec)) is not None:
            recipe.resolve(own)
        if (evaluated := kind.native_network(params, spec)) is not None:
            nets.resolve(evaluated, info.shape)

    _everywhere(ask)


def _evaluator(name: str, given: dict[str, Any]) -> None:
    import bench.data
    from bench.api import EvalSpec, Evaluator, TaskSpec, Training
    from bench.nets import spec as nets
    from bench.registry import EVALUATORS
    from bench.suite.resolve import plugin
    from bench.train import recipe

    kind: Any = plugin(EVALUATORS, name, Evaluator)
    _common(kind)
    params = _validated(kind, given, "the given parameters")
    review = recipe.resolve("review").model_dump(mode="json")

    def ask(info: DatasetInfo, ipc: int) -> None:
        network = nets.resolve(nets.parse("convnet"), info.shape)
        task = TaskSpec(dataset=info, ipc=ipc, network=network)
        for steps in (0, 100):
            spec = EvalSpec(task, "dm", steps, network, review)
            sets = kind.distillations(params, spec)
            for changes in sets.values():
                bench.data.info(changes.get("dataset", info.name))
            for training in kind.trainings(params, spec):
                ensure(isinstance(training, Training), f"asks for {training!r}", "trainings returns Training objects")
                ensure(set(training.sets) <= set(sets), f"trains on {training.sets}", "sets are named by distillations")
                recipe.resolve(dict(training.recipe))
                nets.resolve(training.network, info.shape)
            wrong = [step for step in kind.snapshots(params, spec) if not 0 <= step <= steps]
            ensure(not wrong, f"wants the sets after steps {wrong} of {steps}", "snapshots are steps that come")
            _artifacts(kind.needs(params, spec))

    _everywhere(ask)


def _network(name: str, given: dict[str, Any]) -> None:
    from bench.nets import spec as nets

    known = nets.architecture(name)
    ensure(bool(known.title), "has no title", "title says what it is")
    nets.describe(name)
    for shape in ((1, 28, 28), (3, 32, 32), (3, 64, 64)):
        for norm in known.norms:
            resolved = nets.resolve(nets.parse({"arch": name, "norm": norm}), shape)
            text = nets.label(resolved, shape)
            ensure(
                nets.resolve(nets.parse(text), shape) == resolved,
                f"is {resolved} by the short name {text!r}, and something else when that is read again",
                "depth is a function of the shape, and names have no '-' that an option follows",
            )


def _dataset(name: str, given: dict[str, Any]) -> None:
    import bench.data

    info = bench.data.info(name)
    for fact in ("title", "source", "licence", "constants_source"):
        ensure(bool(getattr(info, fact)), f"does not say its {fact}", "a DatasetInfo says where the data come from")
    bench.data.locate(name)
