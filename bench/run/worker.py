"""Computes one cell: inputs checked, the function of its kind called, the result published or the failure recorded.

The same code runs in a child process and inline. The fork server imports this module once, and with it everything
heavy that cells need, so that a fresh process per cell costs milliseconds instead of seconds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench import heap
from bench.api import Evaluator, Measure
from bench.errors import Diverged, UserError
from bench.registry import ARTIFACTS, EVALUATORS, Registry
from bench.run import failures, provenance, usage
from bench.run.job import Job, Outcome, Report, Stopped, Work
from bench.run.store import LOG, Damaged, Store, now

KINDS = Registry(
    "kind of cell",
    {
        "prepare": "bench.run.worker:prepare",
        "distil": "bench.run.worker:distil",
        "evaluate": "bench.run.worker:evaluate",
    },
)


# ------------------------------------------------------------------------------------ the kinds of cells


def prepare(work: Work) -> Mapping[str, Any]:
    """Build an artifact and keep its tensors; it may keep checkpoints in the work folder."""
    from bench.task import LiveTask

    artifact = ARTIFACTS.get(work.config["artifact"])
    task = LiveTask.from_config(work.config, work.inputs, work.device, folder=work.folder, report=work.report)
    made = artifact(_params(artifact, work.config))
    tensors = made.build(task)
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, work.draft / "tensors.safetensors")
    choices = dict(made.choices())
    return {"choices": choices} if choices else {}


def distil(work: Work) -> Mapping[str, Any]:
    """Run a method, with checkpoints in the work folder."""
    import bench.loop
    from bench.task import LiveTask

    task = LiveTask.from_config(work.config, work.inputs, work.device)
    return bench.loop.run(work.config, task, work.folder, work.draft, work.report)


def evaluate(work: Work) -> Mapping[str, Any]:
    """Measure. Raises `Diverged` where a measure is not a finite number."""
    from bench.task import LiveTask

    kind = EVALUATORS.get(work.config["evaluator"])
    evaluator: Evaluator = kind(_params(kind, work.config))
    measures = evaluator.evaluate(LiveTask.from_config(work.config, work.inputs, work.device))
    return {"measures": [plain(measure) for measure in measures]}


def plain(measure: Measure) -> dict[str, Any]:
    """Return a measure as JSON values. Raises `Diverged` where its value is not a finite number."""
    value = float(measure.value)
    if not math.isfinite(value):
        raise Diverged(f"{measure.metric} is {value}")
    return {**dataclasses.asdict(measure), "value": value, "tags": dict(measure.tags)}


def _params(kind: Any, config: Mapping[str, Any]) -> Any:
    """Read parameters as JSON, where lists stand for tuples and the strict model still accepts them."""
    return kind.Params.model_validate_json(json.dumps(config["params"]))


# ------------------------------------------------------------------------------------ one try


def execute(job: Job, report: Report) -> Outcome:
    """Compute one cell and publish it in the store; every way this can end is an `Outcome`."""
    begin, started = time.monotonic(), now()
    store = Store(job.root)
    try:
        claim = store.claim(job.key)
        if claim is None:
            return Outcome(job.key, "claimed")
        with claim:
            outcome = _try(job, store, report, started, begin)
            if outcome.state not in ("ok", "damaged", "stopped") and claim.lost():  # suspended for long, and replaced
                outcome = Outcome(job.key, "claimed")
    except OSError as error:  # the store itself: disk full, rights
        outcome = unusable(job, error)
    return dataclasses.replace(outcome, seconds=time.monotonic() - begin)


def unusable(job: Job, error: OSError) -> Outcome:
    """Return the outcome of a cell that has no place for its result."""
    return Outcome(job.key, "failed", failures.one_line(f"the store cannot be used: {error}"))


def _try(job: Job, store: Store, report: Report, started: str, begin: float) -> Outcome:
    try:
        store.look_again(job.key)
        if store.result(job.key):
            return Outcome(job.key, "ok")  # somebody else was faster
    except Damaged:
        store.discard(job.key)
    damaged, inputs = {}, {}
    for name, key in job.inputs.items():
        try:
            inputs[name] = store.verified(key)
        except Damaged as error:
            damaged[key] = str(error)
    if damaged:
        return Outcome(job.key, "damaged", damaged=damaged)
    work = None
    try:
        device = use(job.device, job.config.get("threads", 1))
        work = Work(job.config, inputs, store.work(job.key), store.draft(job.key), device, report)
        resumed = any(path != work.draft and path.name != LOG for path in work.folder.iterdir())
        meter = usage.Meter(device)
        found = KINDS.get(job.kind)(work)
        spent = time.monotonic() - begin
        result = {
            "key": job.key,
            "kind": job.kind,
            "label": job.label,
            "config": job.config,
            "inputs": job.inputs,
            "state": "ok",
            "seconds": spent,
            "usage": {**meter.read(), "resumed": resumed},
            "started": started,
            "finished": now(),
            "provenance": {**job.provenance, **provenance.of_device(device)},
            **found,
        }
        store.publish(work.draft, result)
    except Stopped:
        return Outcome(job.key, "stopped")
    except Exception as error:
        state, reason = failures.classify(error)
        text = traceback.format_exc()
        with suppress(OSError), (store.work(job.key) / LOG).open("a") as log:
            log.write(text)
        if work is not None:
            shutil.rmtree(work.draft, ignore_errors=True)
        store.fail(job.key, state, reason, text)
        return Outcome(job.key, state, reason)
    return Outcome(job.key, "ok")


def use(device: str, threads: int) -> str:
    """Set up this process and return the device it computes on, `auto` resolved. Raises `UserError`.

    The number of threads is the cell's, never the machine's: it changes the order of sums. TF32 is off: its ten
    bits of mantissa would make a result depend on the graphics card.
    """
    torch.set_num_threads(threads)
    heap.keep()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    resolved = resolve_device(device)
    if resolved.startswith("cuda"):
        torch.cuda.set_device(resolved)  # else a context on GPU 0 takes memory too
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with its own buffer
        torch.backends.cudnn.benchmark = False
        torch.set_deterministic_debug_mode("warn")  # like use_deterministic_algorithms, without importing inductor
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return resolved


def resolve_device(device: str) -> str:
    """Return `cpu`, `cuda:<k>` or `mps` for a device as the user names it. Raises `UserError` where it is not here."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if device == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("device 'mps' is not available", hint="use --device cpu")
        return device
    index = int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available():
        raise UserError(f"device {device!r} is not available: no CUDA device is visible", hint="use --device cpu")
    if index >= torch.cuda.device_count():
        raise UserError(
            f"device {device!r} is not available", hint=f"CUDA devices 0 to {torch.cuda.device_count() - 1} are visible"
        )
    return f"cuda:{index}"


def log_file(job: Job) -> Path:
    """Return the log of a running cell."""
    return Store(job.root).work(job.key) / LOG
