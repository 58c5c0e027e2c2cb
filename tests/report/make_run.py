"""A made-up results folder with everything a report has to cope with: the numbers mean nothing.

Two datasets, three methods and the full dataset, IPC 1, 10, 50, three seeds of five networks. On cifar10: dc runs out
of memory at IPC 50, one seed of dm at IPC 10 failed, dsa at IPC 1 diverged for all seeds; `mtt` has no data on
cifar10. Cells that build on these are skipped.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

NETWORKS = ("convnet-none", "convnet-in", "convnet-bn", "alexnet-none", "alexnet-in", "resnet18-in", "resnet18-bn")
METHODS = {"random": 0.0, "dc": 0.12, "dsa": 0.15, "dm": 0.14}
IPCS = {1: 0.25, 10: 0.45, 50: 0.55}
EASE = {"mnist": 0.35, "cifar10": 0.0}
FAILED = {
    ("cifar10", "dc", 50): ("oom", "out of memory: can't allocate memory", (0, 1, 2)),
    ("cifar10", "dm", 10): ("failed", "RuntimeError: a made-up <failure>", (1,)),
    ("cifar10", "dsa", 1): ("diverged", "loss is nan", (0, 1, 2)),
}


class Maker:
    """Collects cells, states and records, and writes them as the runner does."""

    def __init__(self, preset: str, settings: str = "modified", recipe: str = "review") -> None:
        self.preset, self.settings, self.recipe = preset, settings, recipe
        self.plan: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self.random = random.Random(0)

    def cell(self, kind: str, coords: dict[str, Any], inputs: dict[str, str], state: str, reason: str = "") -> str:
        """Add one cell and its state; return its key."""
        key = sha256(json.dumps([kind, coords], sort_keys=True).encode()).hexdigest()[:20]
        label = f"{kind} {coords['label']}, {coords['dataset']}, ipc {coords['ipc']}, seed {coords['seed']}"
        own = {"key": key, "kind": kind, "label": label, "coords": coords}
        self.plan.append({**own, "timed": False, "inputs": inputs})
        self.states.append({**own, "state": state, "reason": reason, "seconds": 1.5 if state == "ok" else None})
        return key

    def record(self, coords: dict[str, Any], cell: str, metric: str, value: float, unit: str, **more: Any) -> None:
        """Add one record."""
        fields = {"suite": "made_up", "preset": self.preset, **coords, "metric": metric, "value": value, "unit": unit}
        empty = dict.fromkeys(("network", "recipe", "selection", "replicate", "step"))
        self.records.append({**empty, **fields, "tags": {}, "cell": cell, **more})

    def accuracies(
        self, coords: dict[str, Any], cell: str, mean: float, networks: Sequence[str], count: int = 5
    ) -> None:
        """Add the accuracies of `count` networks of each architecture."""
        for network in networks:
            centre = mean - 0.03 * NETWORKS.index(network) + (0.03 if network == "convnet-in" else 0)
            for replicate in range(count):
                value = round(min(1.0, max(0.0, centre + self.random.gauss(0, 0.01))), 4)
                more = {"network": network, "recipe": self.recipe, "selection": "last", "replicate": replicate}
                self.record(coords, cell, "accuracy", value, "fraction", **more)

    def costs(self, coords: dict[str, Any], cell: str, scale: float, accuracy: float) -> None:
        """Add what the cost evaluator measures, with two looks on the way."""
        parts = {"data": 0.001, "network": 0.004 * scale, "set": 0.01 * scale, "evaluation": 0.0, "other": 0.0005}
        seconds = 200 * sum(parts.values())
        self.record(coords, cell, "seconds", seconds, "s")
        self.record(coords, cell, "steps", 200, "steps")
        self.record(coords, cell, "seconds_per_step", sum(parts.values()), "s")
        for name, value in parts.items():
            self.record(coords, cell, f"seconds_per_step/{name}", value, "s")
        self.record(coords, cell, "peak_host_MiB", 80 + 30 * scale, "MiB")
        tags = {"fraction": 0.9} if scale > 1 else {"fraction": 0.9, "bound": "upper"}
        self.record(coords, cell, "seconds_to_fraction", 0.4 * seconds, "s", tags=tags)
        for step, share in ((20, 0.8), (100, 0.95), (200, 1.0)):
            more = {"network": "convnet-in", "recipe": self.recipe, "selection": "last", "replicate": 0, "step": step}
            self.record(coords, cell, "accuracy", share * accuracy, "fraction", **more)
            self.record(coords, cell, "seconds", seconds * step / 200, "s", step=step)

    def write(self, out: Path) -> Path:
        """Write the folder."""
        out.mkdir(parents=True, exist_ok=True)
        suite = {"name": "made_up", "preset": self.preset, "plan": self.plan}
        (out / "suite.json").write_text(json.dumps(suite))
        for name, rows in (("records", self.records), ("states", self.states)):
            (out / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return out


def make_run(out: Path, preset: str = "laptop", settings: str = "modified", recipe: str = "review") -> Path:
    """Write the made-up run described above; the same arguments give the same files."""
    maker = Maker(preset, settings, recipe)
    for dataset, ease in EASE.items():
        for method, gain in METHODS.items():
            for ipc, level in IPCS.items():
                for seed in range(3):
                    _one(maker, dataset, method, ipc, seed, min(0.97, ease + level + gain / (1 + ipc / 20)))
        _one(maker, dataset, "whole", None, 0, min(0.99, 0.75 + ease))
    for ipc in IPCS:
        coords = {"dataset": "cifar10", "method": "mtt", "label": "mtt", "ipc": ipc, "seed": 0}
        maker.cell("distil", coords, {}, "skipped", "no data")
        maker.plan.pop()  # what a suite leaves out is told of in states.jsonl alone
    return maker.write(out)


def _one(maker: Maker, dataset: str, method: str, ipc: int | None, seed: int, accuracy: float) -> None:
    state, reason, seeds = FAILED.get((dataset, method, ipc), ("ok", "", ()))
    state, reason = (state, reason) if seed in seeds else ("ok", "")
    coords = {"dataset": dataset, "method": method, "label": method, "settings": maker.settings, "ipc": ipc}
    coords |= {"seed": seed, "distil_network": "convnet-in"}
    distilled = maker.cell("distil", coords, {}, state, reason)
    because = "" if state == "ok" else "because its distillation failed"
    follows = "ok" if state == "ok" else "skipped"
    evaluators = ["accuracy"] + (["cost"] if ipc and seed == 0 and method != "random" else [])
    for evaluator in evaluators + (["cross_arch"] if ipc == 10 else []):
        own = {**coords, "evaluator": evaluator, "network": "convnet-in"}
        inputs = {"distilled": distilled}
        if evaluator != "cost":
            trained = {**coords, "artifact": "networks", "network": "convnet-in", "for": evaluator}
            inputs["trained0"] = maker.cell("prepare", trained, {"distilled": distilled}, follows, because)
        cell = maker.cell("evaluate", own, inputs, follows, because)
        if follows != "ok":
            continue
        if evaluator == "cost":
            scale = {"dc": 2.0, "dsa": 2.4, "dm": 0.6}[method] * (ipc or 1) ** 0.5
            maker.costs(own, cell, scale, accuracy)
        else:
            maker.accuracies(own, cell, accuracy, ("convnet-in",) if evaluator == "accuracy" else NETWORKS)


def golden(out: Path) -> dict[str, str]:
    """Return the texts that `golden/` holds: tables of the made-up run in all formats, by file name."""
    import bench.report

    page = bench.report.write(make_run(out), pictures=False).read_text()
    texts = {}
    for name in ("accuracy", "cross_arch_cifar10_10", "cost_cifar10"):
        for ending in ("csv", "md", "tex"):
            texts[f"{name}.{ending}"] = (out / "tables" / f"{name}.{ending}").read_text()
        begin = page.index(f'<section class="table" id="{name}">')
        texts[f"{name}.html"] = page[begin : page.index("</section>", begin)]
    return texts


if __name__ == "__main__":  # renews golden/; read the difference before you commit it
    import tempfile

    for name, text in golden(Path(tempfile.mkdtemp())).items():
        (Path(__file__).parent / "golden" / name).write_text(text)
