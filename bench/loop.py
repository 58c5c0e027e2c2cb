"""The loop around a method: clock, log, checkpoints, resume, snapshots and the guard against NaN.

A method only knows how to start, to step and to export; that is why every method can be stopped at any moment and
goes on bit for bit, is timed the same way, and never hands out an image that is not a number.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bench.distilled
from bench.api import DistilledSet, Method
from bench.errors import Diverged
from bench.profile import Profile
from bench.registry import METHODS
from bench.run import provenance
from bench.run.atomic import atomic_write
from bench.run.job import Report, Stopped
from bench.task import LiveTask

LOG_LINES = 200
"""About how many lines the log of a distillation has, whatever its length."""

CHECKPOINT = "checkpoint.pt"


@dataclass
class Course:
    """A finished distillation: the set, the log, the seconds at each snapshot, and the profile's summary."""

    distilled: DistilledSet
    log: list[dict[str, float]] = field(default_factory=list)
    snapshots: dict[int, float] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)


def distil(
    method: Method,
    task: LiveTask,
    *,
    folder: Path | None = None,
    snapshots: Iterable[int] = (),
    report: Report | None = None,
    checkpoint_seconds: float | None = None,
) -> Course:
    """Run a method to its end and return what came out.

    folder: where checkpoints and snapshots (`set@<step>.safetensors`) go; an unfinished distillation found there is
    continued. snapshots: outer steps after which the set is kept. report: called with (step, steps).
    checkpoint_seconds: time between checkpoints; default $DDBENCH_CHECKPOINT_SECONDS or 30.
    Raises `Diverged` where a logged number or the result is NaN or infinite. `Stopped` passes through after a last
    checkpoint.
    """
    wanted = set(snapshots)
    if wanted and folder is None:
        raise ValueError("snapshots need a folder")
    if checkpoint_seconds is None:
        checkpoint_seconds = float(os.environ.get("DDBENCH_CHECKPOINT_SECONDS", "30"))
    profile, steps = task.profile, method.steps
    interval = max(1, steps // LOG_LINES)
    course, done = Course(None), 0  # type: ignore[arg-type]
    _ = task.data  # opened before the clock runs
    checkpoint = folder / CHECKPOINT if folder else None
    saved = _load(checkpoint) if checkpoint else None
    if saved:
        profile.load_state_dict(saved["profile"])
    with profile:
        method.start(task)
        if saved:
            method.load_state_dict(saved["method"])
            task.load_rng_state(saved["rng"])
            done, course.log, course.snapshots = saved["step"], saved["log"], saved["snapshots"]
        last_save = profile.seconds
        try:
            while done < steps:
                with profile.step():
                    scalars = method.step()
                done += 1
                with profile.untimed():
                    if done % interval == 0 or done in (1, steps):
                        course.log.append({"step": done, "seconds": profile.seconds, **_numbers(scalars, done)})
                    if done in wanted:
                        assert folder is not None
                        bench.distilled.save(folder / f"set@{done}.safetensors", _checked(method.export(), done))
                        course.snapshots[done] = profile.seconds
                    if checkpoint and done < steps and profile.seconds - last_save >= checkpoint_seconds:
                        _save(checkpoint, method, task, profile, done, course)
                        last_save = profile.seconds
                    if report:
                        report(done, steps)
        except Stopped:
            if checkpoint and done:
                _save(checkpoint, method, task, profile, done, course)
            raise
        course.distilled = _checked(method.export(), done)
    course.profile = profile.summary()
    return course


def run(
    config: Mapping[str, Any],
    task: LiveTask,
    work: Path,
    out: Path,
    report: Report | None = None,
) -> dict[str, Any]:
    """Run the distillation of one cell; write set, snapshots and log to `out`; return the cell's results.

    work: folder that survives a crash (checkpoints, snapshots until the end).
    """
    kind = METHODS.get(config["method"])
    method = kind(kind.Params.model_validate_json(json.dumps(config["params"])))
    work.mkdir(parents=True, exist_ok=True)
    course = distil(method, task, folder=work, snapshots=config["snapshots"], report=report)
    origin = {
        **course.distilled.header.provenance,
        **provenance.environment(),
        **provenance.of_device(str(task.device)),
        "data": config["task"]["data"],
    }
    header = course.distilled.header.model_copy(update={"provenance": origin})
    bench.distilled.save(out / "set.safetensors", replace(course.distilled, header=header))
    for step in course.snapshots:
        shutil.copyfile(work / f"set@{step}.safetensors", out / f"set@{step}.safetensors")
    (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in course.log))
    found = {"profile": course.profile, "snapshots": course.snapshots, "steps": method.steps}
    choices = dict(method.choices())
    return {**found, "choices": choices} if choices else found


def _numbers(scalars: Mapping[str, float | Tensor], step: int) -> dict[str, float]:
    """Read the logged scalars. Raises `Diverged` for the first that is not finite."""
    numbers = {name: float(value) for name, value in scalars.items()}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} is {value} after outer step {step}")
    return numbers


def _checked(distilled: DistilledSet, step: int) -> DistilledSet:
    for name in ("images", "labels", "rates", "outliers"):
        tensor = getattr(distilled, name)
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise Diverged(f"the distilled {name} are not finite after outer step {step}")
    return distilled


def _save(file: Path, method: Method, task: LiveTask, profile: Profile, step: int, course: Course) -> None:
    state = {
        "step": step,
        "method": method.state_dict(),
        "rng": task.rng_state(),
        "profile": profile.state_dict(),
        "log": course.log,
        "snapshots": course.snapshots,
    }
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_write(file) as stream:
        stream.write(content.getbuffer())
        stream.write(hashlib.sha256(content.getbuffer()).digest())


def _load(file: Path) -> dict[str, Any] | None:
    """Return the checkpoint, or None where there is none, or a damaged one (the distillation then starts anew).

    Its last 32 bytes are the sha256 of the others: torch does not notice a changed number.
    """
    try:
        content = file.read_bytes()
        if hashlib.sha256(memoryview(content)[:-32]).digest() != content[-32:]:
            return None
        return torch.load(io.BytesIO(content[:-32]), weights_only=True, map_location="cpu")
    except Exception:
        return None
