"""Short forms of cells, each in a process of its own, that tell what the whole ones would take.

A distillation starts, does outer steps for some seconds and exports what it has. Networks are trained for one unit
(an epoch, or a few steps), for several and for one again: the first has what only the first has (memory pools,
compilation), the other two give the seconds of a unit. Other artifacts are trained for fewer epochs in the same way;
of several experts or teachers one is trained, and judged by the progress it tells. Evaluations are done whole, on those
short trainings. What comes out has the form of the real results, so the next cells can be tried on it.

Assumed: later steps take as long as the first ones. Where a method's schedule says otherwise (stages, a pool that
fills, loops that grow) the truth is different.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import save_file

import bench.distilled
from bench.profile import MIB, host_peak_mib
from bench.registry import ARTIFACTS, EVALUATORS, METHODS
from bench.run.job import Work
from bench.task import LiveTask

MANY = ("experts", "teachers")
"""Parameters that say how many independent things an artifact consists of, and of how many a method may choose."""
LONGER = 10
"""So many times the seconds of a trial are given to one expert or teacher: methods can only be tried on a whole one."""
UNIT_STEPS = 10
"""Steps that are trained at least, where a recipe counts steps."""


class _Enough(BaseException):
    """The time of a calibration is over."""


def nothing(work: Work) -> dict[str, Any]:
    """Do nothing: what is left are the seconds of a process."""
    return {}


def distil(work: Work) -> dict[str, Any]:
    """Do the first outer steps of a method."""
    config, budget = work.config["cell"], work.config["budget"]
    kind = METHODS.get(config["method"])
    params = {name: 1 if _is_many(name, value) else value for name, value in config["params"].items()}
    method = kind(kind.Params.model_validate_json(json.dumps(params)))
    task = LiveTask.from_config(config, work.inputs, work.device)
    _ = task.data
    with task.profile as profile:
        method.start(task)
        at = [profile.seconds]
        while len(at) <= method.steps and (len(at) == 1 or at[-1] - at[0] < budget):
            with profile.step():
                method.step()
            at.append(profile.seconds)
            work.report(len(at) - 1, method.steps)
        distilled = method.export()
        spent = profile.seconds
    for name in ("set", *(f"set@{step}" for step in config["snapshots"])):
        bench.distilled.save(work.draft / f"{name}.safetensors", distilled)
    done = len(at) - 1
    (work.draft / "log.jsonl").write_text(json.dumps({"step": done, "seconds": spent}) + "\n")
    left = method.steps - done
    later = (at[-1] - at[1]) / (done - 1) if done > 1 else at[-1] - at[0]
    summary = profile.summary()
    return {
        "profile": {**summary, "seconds_per_step": summary["seconds_per_step"] or max(later, 1e-9)},
        "snapshots": dict.fromkeys(config["snapshots"], spent),
        "steps": method.steps,
        **_found(work, spent, spent + left * later, f"{done} of {method.steps} steps", single=done == 1 < method.steps),
    }


def prepare(work: Work) -> dict[str, Any]:
    """Build an artifact, shorter than asked for."""
    config, budget = work.config["cell"], work.config["budget"]
    kind, params = ARTIFACTS.get(config["artifact"]), dict(config["params"])
    begin, told = time.monotonic(), []

    def report(step: int = 0, steps: int = 0, text: str = "") -> None:
        if steps:
            told.append((step, steps, time.monotonic() - begin))
        work.report(step, steps, text)
        if time.monotonic() - begin > LONGER * budget:
            raise _Enough

    def build(changed: Mapping[str, Any], watched: bool = False) -> float:
        task = LiveTask.from_config(
            config, work.inputs, work.device, folder=work.folder, report=report if watched else work.report
        )
        _ = task.data
        start = time.monotonic()
        made = kind(kind.Params.model_validate_json(json.dumps({**params, **changed})))
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in made.build(task).items()}
        save_file(tensors, work.draft / "tensors.safetensors")
        return time.monotonic() - start

    total, shorter = _units(config)
    if total:
        return _by_units(work, build, total, shorter)
    several = {name: value for name, value in params.items() if _is_many(name, value)}
    whole = True
    try:
        spent = build(dict.fromkeys(several, 1), watched=True)
    except _Enough:
        spent, whole = time.monotonic() - begin, False
    factor = next(iter(several.values()), 1)
    if len(told) < 2:
        return _found(work, spent, spent * factor, f"1 of {factor}" if several else "whole", whole, single=factor > 1)
    (first, _, early), (last, steps, late) = told[0], told[-1]
    rate = (late - early) / max(1, last - first)
    seconds = early + rate * (steps * factor - first)
    return _found(work, spent, seconds, f"{last} of {steps * factor} parts", whole)


def evaluate(work: Work) -> dict[str, Any]:
    """Evaluate short trainings."""
    config = work.config["cell"]
    kind = EVALUATORS.get(config["evaluator"])
    begin = time.monotonic()
    evaluator = kind(kind.Params.model_validate_json(json.dumps(config["params"])))
    evaluator.evaluate(LiveTask.from_config(config, work.inputs, work.device))
    spent = time.monotonic() - begin
    return _found(work, spent, spent, "whole")


def _is_many(name: str, value: Any) -> bool:
    """Return whether a parameter is a number of independent things, of which one is enough for a trial."""
    return name in MANY and isinstance(value, int)


def _units(config: Mapping[str, Any]) -> tuple[int, Callable[[int], dict[str, Any]]]:
    """Return how many units an artifact is trained for, and the parameters for fewer; 0 where that cannot be said."""
    params = config["params"]
    if config["artifact"] == "networks":
        recipe = params["recipe"]
        if recipe.get("steps"):
            whole = -(-recipe["steps"] // UNIT_STEPS)
            return whole, lambda units: {
                "recipe": {**recipe, "warmup": 0, "steps": min(units * UNIT_STEPS, recipe["steps"])}
            }
        longer = recipe.get("epochs_augmented") if recipe.get("augment") != "none" else None
        epochs = longer or recipe.get("epochs") or 0
        return epochs, lambda units: {"recipe": {**recipe, "warmup": 0, "epochs": units, "epochs_augmented": None}}
    if any(_is_many(name, value) for name, value in params.items()) or not isinstance(params.get("epochs"), int):
        return 0, lambda units: {}
    return params["epochs"], lambda units: {"epochs": units}


def _by_units(
    work: Work, build: Callable[[Mapping[str, Any]], float], total: int, shorter: Callable[[int], dict[str, Any]]
) -> dict[str, Any]:
    """Judge by builds of one, several and one unit."""
    budget, cold = work.config["budget"], build(shorter(1))
    if total == 1 or cold > budget:  # one sample: all units are taken to be as slow as the first
        return _found(work, cold, cold * total, f"1 of {total} units", single=total > 1)
    several = min(total, 1 + max(1, int(budget / 2 / max(cold, 1e-3))))
    many, one = build(shorter(several)), build(shorter(1))
    slope = max(0.0, many - one) / (several - 1)
    return _found(work, cold + many + one, cold + slope * (total - 1), f"{several} of {total} units")


def _found(
    work: Work, spent: float, seconds: float, sample: str, whole: bool = True, *, single: bool = False
) -> dict[str, Any]:
    """Return what a trial says.

    seconds: of the whole computation. sample: what was done. single: that was one part of many, so nothing tells what
    the first has of its own. whole: others can build on what came out.
    """
    memory = {"host_MiB": host_peak_mib(), "device_MiB": None, "device_room_MiB": None}
    if work.device.startswith("cuda"):
        room = torch.cuda.get_device_properties(work.device).total_memory / MIB
        memory |= {"device_MiB": torch.cuda.max_memory_reserved(work.device) / MIB, "device_room_MiB": room}
    return {
        "calibration": {
            "spent": spent,
            "seconds": seconds,
            "sample": sample,
            "single": single,
            "whole": whole,
            **memory,
        }
    }
