"""The task: everything a method, an artifact or an evaluator may use, made from the configuration of a cell.

One idea: whatever a computation depends on comes through this object (data, named generators, networks, earlier
results), so that a cell is a pure function of its configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import bench.augment
import bench.data
import bench.distilled
import bench.nets
from bench.api import Distillation, DistilledSet, EvalSpec, NetSpec, TaskSpec, Trained, Training
from bench.errors import UserError
from bench.profile import Profile
from bench.run.job import Report
from bench.train.rates import OF_ALL


def derive_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed for one purpose; different names give unrelated streams."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class LiveTask:
    """The implementation of `bench.api.Task` and, with `evaluation`, of `bench.api.Evaluation`.

    inputs: directories of the finished cells this one builds on, by name. snapshot: outer step of the distilled
    set that `distilled` returns, None for the final one. folder: for checkpoints of an artifact. report: where its
    progress goes.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        device: str | torch.device = "cpu",
        inputs: Mapping[str, Path] | None = None,
        profile: Profile | None = None,
        snapshot: int | None = None,
        evaluation: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        report: Report | None = None,
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.inputs = dict(inputs or {})
        self.profile = profile or Profile(device=self.device)
        self._snapshot = snapshot
        self.folder = folder
        self._evaluation = evaluation
        self._report = report
        self._generators: dict[str, torch.Generator] = {}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], inputs: Mapping[str, Path], device: str = "cpu", **options: Any
    ) -> LiveTask:
        """Make the task of a planned cell. options: further arguments of the class.

        Raises `UserError` if the data changed since the plan was made.
        """
        fields = dict(config["task"])
        name, planned = fields.pop("dataset"), fields.pop("data")
        if (found := bench.data.fingerprint(name)) != planned:
            raise UserError(
                f"dataset {name!r} changed since the plan was made ({planned[:12]} then, {found[:12]} now)",
                hint="run the suite again",
            )
        spec = TaskSpec(dataset=bench.data.info(name), **{**fields, "network": NetSpec(**fields["network"])})
        return cls(
            spec,
            device=device,
            inputs=inputs,
            snapshot=config.get("params", {}).get("snapshot") if config["kind"] == "prepare" else None,
            evaluation=config if config["kind"] == "evaluate" else None,
            **options,
        )

    # -------------------------------------------------------------------------------- what a method uses

    @cached_property
    def data(self) -> bench.data.Prepared:
        """The dataset in the task's preprocessing, on the device."""
        with self.profile.untimed():
            return bench.data.prepare(bench.data.load(self.spec.dataset.name), self.spec.preprocessing, self.device)

    @cached_property
    def augment(self) -> bench.augment.Augment:
        """The augmentation used while distilling."""
        return bench.augment.get(self.spec.augment)

    def rng(self, name: str) -> torch.Generator:
        """Return the generator of one purpose, on the task's device."""
        if name not in self._generators:
            self._generators[name] = torch.Generator(self.device).manual_seed(derive_seed(self.spec.seed, name))
        return self._generators[name]

    def rng_state(self) -> dict[str, Tensor]:
        """Return the states of all generators used so far."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_rng_state(self, states: Mapping[str, Tensor]) -> None:
        """Continue all generators from `states`."""
        for name, state in states.items():
            self.rng(name).set_state(state)

    def network(self, net: NetSpec | None = None) -> torch.nn.Module:
        """Build the network to distil with (or `net`), with weights still to be drawn."""
        info = self.spec.dataset
        return bench.nets.build(net or self.spec.network, info.shape, info.classes, self.device)

    def initialise(self, network: torch.nn.Module, rng: torch.Generator) -> None:
        """Draw fresh weights in place."""
        bench.nets.initialise(network, rng, self.spec.network.init)

    def artifact(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of the artifact asked for under `name`."""
        return load_file(self.inputs[name] / "tensors.safetensors", device=str(self.device))

    def artifact_slice(self, name: str, tensor: str) -> Any:
        """Return one tensor of an artifact that is read as it is indexed."""
        return safe_open(self.inputs[name] / "tensors.safetensors", framework="pt").get_slice(tensor)

    def phase(self, name: Literal["data", "network", "set", "evaluation"]) -> AbstractContextManager[None]:
        """Book the time inside the block on a phase of the cost table."""
        return self.profile.phase(name)

    def report(self, step: int = 0, steps: int = 0, text: str = "") -> None:
        """Tell how far an artifact is."""
        if self._report:
            self._report(step, steps, text)

    # -------------------------------------------------------------------------------- what an evaluator uses

    def distilled(self, name: str | None = None) -> DistilledSet:
        """Return the distilled set under evaluation, or another one by its name, on the task's device."""
        if name is not None:
            return bench.distilled.load(self.inputs[f"set {name}"] / "set.safetensors", device=self.device)
        union = [folder for key, folder in self.inputs.items() if key.startswith("union ")]
        if union:
            sets = [bench.distilled.load(folder / "set.safetensors", device=self.device) for folder in union]
            return bench.distilled.merge(sets, [bench.distilled.decode(one, self._data_of(one)) for one in sets])
        name = "set.safetensors" if self._snapshot is None else f"set@{self._snapshot}.safetensors"
        return bench.distilled.load(self.inputs["distilled"] / name, device=self.device)

    def _data_of(self, distilled: DistilledSet) -> bench.data.Prepared | None:
        """Return the data that a set points at, which may be a view of the task's; None where it has its images."""
        if distilled.images is not None:
            return None
        name = distilled.header.dataset
        if name == self.spec.dataset.name:
            return self.data
        return bench.data.prepare(bench.data.load(name), self.spec.preprocessing, self.device)

    @cached_property
    def eval_spec(self) -> EvalSpec:
        """The suite's evaluation defaults for this cell."""
        config = self._config()
        evaluation = config["eval"]
        return EvalSpec(
            task=self.spec,
            method=config["method"],
            method_steps=config["method_steps"],
            network=NetSpec(**evaluation["network"]),
            recipe=evaluation["recipe"],
            replicates=evaluation["replicates"],
        )

    @cached_property
    def distillation(self) -> Distillation:
        """The measured course of the distillation."""
        folder = self.inputs["distilled"]
        result = json.loads((folder / "result.json").read_text())
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        snapshots = {int(step): seconds for step, seconds in result["snapshots"].items()}
        return Distillation(result["profile"], log, snapshots, folder)

    def trained(self, training: Training) -> Trained:
        """Return the networks of one request. Raises `KeyError` for a request that was not planned."""
        wanted = _fields(training)
        for planned in self._config()["trainings"]:
            if {k: v for k, v in planned.items() if k != "input"} == wanted:
                tensors = load_file(self.inputs[planned["input"]] / "tensors.safetensors", device=str(self.device))
                first = training.replicates  # more were trained where another evaluator asked for more
                tensors = {name: value if name in OF_ALL else value[:first] for name, value in tensors.items()}
                return Trained(
                    training,
                    logits=tensors["logits"],
                    weights=_with_prefix(tensors, "weights/") if training.weights else {},
                    seconds=float(tensors["seconds"]),
                    curves=_with_prefix(tensors, "curve/"),
                )
        raise KeyError(f"no such training was planned: {wanted}")

    def _config(self) -> Mapping[str, Any]:
        if self._evaluation is None:
            raise TypeError("this task does not evaluate anything")
        return self._evaluation


def _fields(training: Training) -> dict[str, Any]:
    """Return the request as the plan stores it (plain JSON values)."""
    fields = {
        "network": training.network.model_dump(),
        "recipe": dict(training.recipe),
        "replicates": training.replicates,
        "snapshot": training.snapshot,
        "weights": training.weights,
    }
    later = {"sets": training.sets, "rates": training.rates}
    return json.loads(json.dumps(fields | {name: value for name, value in later.items() if value}))


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
