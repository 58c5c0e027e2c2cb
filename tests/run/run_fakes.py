"""Plans of tiny cells: the fields the runner reads of a plan, and kinds that need no data and no method."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.run.job import Work

HERE = "run_fakes"


def cell(
    function: str, *, inputs: dict[str, Any] | None = None, timed: bool = False, weight: float = 1.0, **params: Any
):
    """Return a cell computed by a function of this module; its key is the hash of what it says."""
    keys = {name: other.key for name, other in (inputs or {}).items()}
    config = {"kind": f"{HERE}:{function}", "params": params, "inputs": keys, "threads": 1}
    key = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:20]
    coords = {
        "dataset": "d",
        "method": "m",
        "label": "m",
        "settings": "modified",
        "ipc": 1,
        "seed": 0,
        "evaluator": "e",
    }
    label = " ".join([function, *(str(value) for value in params.values())])
    return SimpleNamespace(
        key=key, kind=config["kind"], config=config, inputs=keys, label=label, coords=coords, also=(), skip=None,
        timed=timed, weight=weight,
    )  # fmt: skip


def plan(*cells: Any, seconds: float | None = None) -> Any:
    """Return a plan of these cells."""
    limits = SimpleNamespace(seconds=seconds)
    suite = SimpleNamespace(
        name="fake",
        preset="tiny",
        spec=SimpleNamespace(limits=limits),
        resolved=lambda: {"name": "fake", "preset": "tiny"},
    )
    return SimpleNamespace(cells=list(cells), skipped=[], suite=suite)


def measure(value: float, metric: str = "accuracy") -> dict[str, Any]:
    """Return one measure as the worker stores it."""
    return {"metric": metric, "value": value, "unit": "fraction", "network": None, "tags": {}}


# ------------------------------------------------------------------------------------ kinds


def number(work: Work) -> dict[str, Any]:
    """Measure a number given in the parameters, plus those of its inputs."""
    total = work.config["params"]["value"]
    for folder in work.inputs.values():
        total += json.loads((folder / "result.json").read_text())["measures"][0]["value"]
    (work.draft / "data.bin").write_bytes(bytes([int(total) % 256]) * 1000)
    return {"measures": [measure(total)]}


def drawn(work: Work) -> dict[str, Any]:
    """Measure something that depends on the arithmetic of this process: a trained linear map."""
    import torch
    from safetensors.torch import save_file

    rng = torch.Generator().manual_seed(work.config["params"]["seed"])
    x = torch.randn(64, 32, generator=rng)
    w = torch.zeros(32, 8, requires_grad=True)
    for _ in range(5):
        loss = ((x @ w - x[:, :8].exp()) ** 2).mean()
        loss.backward()
        with torch.no_grad():
            w -= 0.1 * w.grad
        w.grad = None
    save_file({"w": w.detach()}, work.draft / "tensors.safetensors")
    return {"measures": [measure(loss.item(), "loss")], "threads": torch.get_num_threads()}


def stepwise(work: Work) -> dict[str, Any]:
    """Walk `steps` steps of a chaotic map with a checkpoint every `block`, noting each step in a journal outside.

    `seconds`: duration of a step.
    """
    from bench.run.atomic import write_json
    from bench.run.job import Stopped

    params = work.config["params"]
    checkpoint = work.folder / "checkpoint.json"
    step, value = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, params["start"])
    journal = Path(os.environ["FAKE_JOURNAL"]) / params["name"] if "FAKE_JOURNAL" in os.environ else None
    try:
        while step < params["steps"]:
            time.sleep(params["seconds"])
            step, value = step + 1, 3.9 * value * (1 - value)
            if journal:
                with journal.open("a") as file:
                    file.write(f"{os.getpid()} {step}\n")
            work.report(step, params["steps"])
            if step % params["block"] == 0:
                write_json(checkpoint, [step, value])
    except Stopped:
        write_json(checkpoint, [step, value])
        raise
    with (work.draft / "set.bin").open("wb") as file:  # slowly, so that a kill can find it half written
        for index in range(10):
            file.write(hashlib.sha256(f"{value} {index}".encode()).digest() * 100)
            file.flush()
            time.sleep(params["seconds"] / 10)
    return {"measures": [measure(value)]}


def raises(work: Work) -> dict[str, Any]:
    print("about to fail")
    raise ValueError("the answer is not 42\nand more")


def not_a_number(work: Work) -> dict[str, Any]:
    from bench.api import Measure
    from bench.run.worker import plain

    return {"measures": [plain(Measure("accuracy", float("nan")))]}


def allocates(work: Work) -> dict[str, Any]:
    import torch

    return {"size": torch.empty(10**15).numel()}


def kills_itself(work: Work) -> dict[str, Any]:
    os.kill(os.getpid(), getattr(signal, work.config["params"]["signal"]))
    time.sleep(10)
    return {}


def vanishes(work: Work) -> dict[str, Any]:
    os._exit(3)


def sleeps(work: Work) -> dict[str, Any]:
    """Sleep; reports now and then where `polite`."""
    end = time.monotonic() + work.config["params"]["seconds"]
    while time.monotonic() < end:
        time.sleep(0.02)
        if work.config["params"].get("polite", True):
            work.report(1, 2, "sleeping")
    return {"measures": [measure(1.0)]}


def when(work: Work) -> dict[str, Any]:
    """Measure when it ran, in seconds of the machine's monotonic clock."""
    begin = time.monotonic()
    time.sleep(work.config["params"]["seconds"])
    return {"measures": [measure(begin, "begin"), measure(time.monotonic(), "end")]}


def talks(work: Work) -> dict[str, Any]:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    os.system("echo from a program")
    return {}


def tells_pid(work: Work) -> dict[str, Any]:
    path = Path(work.config["params"]["path"])
    path.with_suffix(".tmp").write_text(str(os.getpid()))
    path.with_suffix(".tmp").rename(path)
    time.sleep(600)
    return {}


def counted(work: Work) -> dict[str, Any]:
    """Add a line to a file outside of the store, and take a moment."""
    with Path(work.config["params"]["path"]).open("a") as file:
        file.write("computed\n")
    time.sleep(0.1)
    return {"measures": [measure(1.0)]}


def deaf(work: Work) -> dict[str, Any]:
    """Sleep without ever reporting."""
    (Path(os.environ["FAKE_JOURNAL"]) / "deaf").write_text(f"{os.getpid()} 1\n")
    end = time.monotonic() + work.config["params"]["seconds"]
    while time.monotonic() < end:  # a signal ends a single sleep early
        time.sleep(1)
    return {}


def threads(work: Work) -> dict[str, Any]:
    """Measure the threads of torch and of the libraries below NumPy and SciPy."""
    import torch

    return {
        "measures": [measure(torch.get_num_threads(), "torch"), measure(int(os.environ["OMP_NUM_THREADS"]), "numpy")]
    }


def kills_its_follower(work: Work) -> dict[str, Any]:
    """Kill the process that started the fork server: the worker of a cluster that follows this cell."""
    import psutil

    psutil.Process().parent().parent().kill()
    time.sleep(60)
    return {}


def visible_gpus(work: Work) -> dict[str, Any]:
    """Measure the number of the GPU that a cluster leaves visible, and who follows this cell."""
    import psutil

    follower = psutil.Process().parent().parent().pid
    return {"measures": [measure(int(os.environ["CUDA_VISIBLE_DEVICES"]), "gpu"), measure(follower, "follower")]}
