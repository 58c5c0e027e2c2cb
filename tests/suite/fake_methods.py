"""Tiny methods, evaluators and an artifact for the tests of suites: they promise everything and compute nothing."""

from __future__ import annotations

from bench import api
from bench.api import Artifact, Evaluator, Method, Need, NetSpec, Preset, Training, param


class Fake(Method):
    class Params(api.Params):
        iterations: int = param(100, "steps", ge=0)
        rate: float = param(0.1, "rate", gt=0)
        sizes: tuple[int, ...] = param((1, 2), "some sizes")

    title = "fake"
    citation = "nobody"
    augment = "dsa"

    @classmethod
    def preset(cls, dataset, ipc):
        return Preset({"rate": 0.5, "sizes": (3,)} if ipc == 10 else {}, "a paper" if ipc in (1, 10) else None)

    @classmethod
    def native_recipe(cls, params, spec):
        return {"base": "dc", "epochs": 7}

    @property
    def steps(self):
        return self.params.iterations

    def start(self, task):
        raise AssertionError("only planned here")

    def export(self):
        raise AssertionError("only planned here")


class Chosen(Fake):
    """Needs an artifact that does not depend on the IPC."""

    augment = "none"

    @classmethod
    def needs(cls, params, spec):
        return {"features": Need("features", {"epochs": 3}, {"ipc": None, "augment": "none"})}


class Abroad(Fake):
    """Needs an artifact of a dataset of its own."""

    @classmethod
    def needs(cls, params, spec):
        import bench.data

        return {"features": Need("features", {}, {"ipc": None, "dataset": bench.data.info("cifar10")})}


class Everything(Fake):
    """Does not depend on the IPC."""

    budget_free = True


class Broken(Fake):
    @classmethod
    def needs(cls, params, spec):
        return {"features": 1 / 0}


class Features(Artifact):
    class Params(api.Params):
        epochs: int = param(1, "epochs")

    title = "features"

    def build(self, task):
        raise AssertionError("only planned here")


class Endless(Features):
    @classmethod
    def needs(cls, params, spec):
        return {"more": Need("endless")}


class NeedsEndless(Fake):
    @classmethod
    def needs(cls, params, spec):
        return {"more": Need("endless")}


class Networks(Artifact):
    Params = api.Params
    title = "networks"

    def build(self, task):
        raise AssertionError("only planned here")


class Score(Evaluator):
    class Params(api.Params):
        top: int = param(1, "k")

    title = "score"

    @classmethod
    def trainings(cls, params, spec):
        return [Training(spec.network, spec.recipe, spec.replicates)]

    def evaluate(self, task):
        raise AssertionError("only planned here")


class Pair(Score):
    """Asks for the same networks as `Score`, and for others."""

    class Params(api.Params):
        other: str = param("mlp", "a network")

    @classmethod
    def trainings(cls, params, spec):
        return [
            Training(spec.network, spec.recipe, spec.replicates),
            Training(NetSpec(arch=params.other), spec.recipe, spec.replicates),
        ]


class Few(Score):
    """Asks for one network less than `Score`, with weights."""

    @classmethod
    def trainings(cls, params, spec):
        return [Training(spec.network, spec.recipe, spec.replicates - 1, weights=True)]


class Keeper(Score):
    """Asks for the networks of `Score` with their weights."""

    @classmethod
    def trainings(cls, params, spec):
        return [Training(spec.network, spec.recipe, spec.replicates, weights=True)]


class Steps(Score):
    """Distils two parts of the classes, and trains on the set under evaluation, on a part, and on both parts."""

    @classmethod
    def distillations(cls, params, spec):
        name = f"{spec.task.dataset.name}@classes(steps=2, step={{}})"
        return {f"step{k}": {"dataset": name.format(k), "ipc": 7} for k in range(2)}

    @classmethod
    def trainings(cls, params, spec):
        sets = [(), ("step0",), ("step0", "step1")]
        return [Training(spec.network, spec.recipe, spec.replicates, sets=names) for names in sets]


class Against(Score):
    """Trains on the set under evaluation, and on the same baseline for all methods."""

    class Params(api.Params):
        rate: float = param(2.0, "parameter of the baseline")

    @classmethod
    def distillations(cls, params, spec):
        common = {"method": "chosen", "network": NetSpec(width=4), "augment": "none"}
        return {"plain": {**common, "params": {"rate": params.rate}}, "fixed": {**common, "ipc": None, "seed": 7}}

    @classmethod
    def trainings(cls, params, spec):
        sets = [(), ("plain",), ("fixed",)]
        return [Training(spec.network, spec.recipe, spec.replicates, sets=names, rates=(0.1, 0.2)) for names in sets]


class Stray(Score):
    """Trains on a set that nobody distils."""

    @classmethod
    def trainings(cls, params, spec):
        return [Training(spec.network, spec.recipe, 1, sets=("nowhere",))]


class Clock(Score):
    timed = True

    @classmethod
    def trainings(cls, params, spec):
        return [Training(spec.network, spec.recipe, 1, snapshot=min(2, spec.method_steps))]

    @classmethod
    def snapshots(cls, params, spec):
        return [1] if spec.method_steps else []


class Grouped(Score):
    """Needs the artifact that `Chosen` needs, of the dataset alone, under a name of its choice."""

    class Params(api.Params):
        called: str = param("groups", "name of the input")

    @classmethod
    def needs(cls, params, spec):
        return {params.called: Need("features", {"epochs": 3}, {"ipc": None, "augment": "none", "seed": 0})}


class Late(Score):
    @classmethod
    def snapshots(cls, params, spec):
        return [spec.method_steps + 1]
