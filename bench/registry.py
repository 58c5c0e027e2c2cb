"""Names to things, found late.

A registry maps a name to `"module:attribute"` and imports nothing before the thing is asked for, so that `--help`
and `list` stay fast and a broken plug-in harms nobody else. Names come from three places, in this order: the
built-in table below, entry points of installed plug-ins, and the literal form `module:attribute` in a suite.

    METHODS.get("dm")               -> methods.dm.DM
    METHODS.get("my_package:Mine")  -> my_package.Mine
"""

from __future__ import annotations

import importlib
import warnings
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

from bench.errors import UserError, nearest


class Registry:
    """One kind of named thing. `group` is the entry-point group plug-ins use."""

    def __init__(self, kind: str, builtin: dict[str, str], group: str | None = None) -> None:
        self.kind, self.builtin, self.group = kind, builtin, group

    @cached_property
    def targets(self) -> dict[str, str]:
        """All names with their `module:attribute`; a built-in name cannot be replaced by a plug-in."""
        found = {e.name: e.value for e in entry_points(group=self.group)} if self.group else {}
        for name in sorted(found.keys() & self.builtin.keys()):
            warnings.warn(f"plug-in {self.kind} {name!r} is ignored: the name is built in", stacklevel=2)
        return {**found, **self.builtin}

    def names(self) -> list[str]:
        """Return all names, built-in ones first, in their order in the table."""
        return [*self.builtin, *sorted(self.targets.keys() - self.builtin.keys())]

    def origin(self, name: str) -> str:
        """Return the `module:attribute` behind `name`. Raises `UserError` with the nearest name."""
        if name in self.targets:
            return self.targets[name]
        if all(name.partition(":")):
            return name
        raise UserError(f"unknown {self.kind} {name!r}", hint=nearest(name, self.targets))

    def get(self, name: str) -> Any:
        """Import and return the thing called `name`. Raises `UserError` if it is unknown or does not import.

        A module is code of others: whatever its import raises is told as a fault of that plug-in, not of ddbench.
        """
        module, _, attribute = self.origin(name).partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except UserError:
            raise
        except Exception as error:
            what, hint = f"{type(error).__name__}: {error}", "a defect of that module"
            if isinstance(error, ImportError | AttributeError):
                what, hint = str(error), "is the package installed and the attribute spelled right?"
            raise UserError(
                f"{self.kind} {name!r} cannot be loaded from {module}:{attribute}: {what}", hint=hint
            ) from error


METHODS = Registry(
    "method",
    {
        "random": "methods.random:Random",
        "random_soft": "methods.random_soft:RandomSoft",
        "herding": "methods.herding:Herding",
        "kcenter": "methods.kcenter:KCenter",
        "forgetting": "methods.forgetting:Forgetting",
        "whole": "methods.whole:Whole",
        "given": "methods.given:Given",
        "dc": "methods.dc:DC",
        "dsa": "methods.dsa:DSA",
        "dm": "methods.dm:DM",
        "dd": "methods.dd:DD",
        "dd_momentum": "methods.dd:DDMomentum",
        "mtt": "methods.mtt:MTT",
        "tesla": "methods.tesla:TESLA",
        "apm": "methods.apm:APM",
        "kip": "methods.kip:KIP",
        "label_solve": "methods.label_solve:LabelSolve",
        "frepo": "methods.frepo:FRePo",
        "trustdd_oe": "methods.trustdd:TrustDDOE",
        "trustdd_poe": "methods.trustdd:TrustDDPOE",
        "trustdd_poe_dm": "methods.trustdd_more:TrustDDPOEDM",
        "trustdd_poe_mtt": "methods.trustdd_more:TrustDDPOEMTT",
        "glad_dc": "methods.glad:GladDC",
        "glad_dm": "methods.glad:GladDM",
        "glad_mtt": "methods.glad:GladMTT",
        "idc": "methods.idc:IDC",
        "idc_i": "methods.idc:IDCI",
        "rdd": "methods.rdd:RDD",
        "rdd_glad": "methods.rdd:RDDGlad",
        "rdd_dm": "methods.rdd_dm:RDDDM",
        "rdd_idc": "methods.rdd_idc:RDDIDC",
        "rdd_mtt": "methods.rdd_mtt:RDDMTT",
        "isa": "methods.isa:ISA",
        "isa_kip": "methods.isa:ISAKIP",
    },
    "ddbench.methods",
)
EVALUATORS = Registry(
    "evaluator",
    {
        "accuracy": "evaluators.accuracy:Accuracy",
        "cross_arch": "evaluators.cross_arch:CrossArch",
        "cost": "evaluators.cost:Cost",
        "krr": "evaluators.krr:KernelRegression",
        "ood": "evaluators.ood:OOD",
        "continual": "evaluators.continual:Continual",
        "membership": "evaluators.membership:Membership",
        "lira": "evaluators.membership:LiRA",
        "subgroup": "evaluators.subgroup:Subgroup",
        "corruption": "evaluators.corruption:Corruption",
        "ddranking": "evaluators.ddranking:DDRanking",
    },
    "ddbench.evaluators",
)
ARTIFACTS = Registry(
    "artifact",
    {
        "networks": "bench.train.networks:Networks",
        "outside": "bench.data.outside:Outside",
        "dynamics": "methods.dynamics:Dynamics",
        "experts": "methods.experts:Experts",
        "robust_experts": "methods.rdd_mtt:RobustExperts",
        "exposed_experts": "methods.trustdd_more:ExposedExperts",
        "generator": "methods.generator:Generator",
        "generator_file": "methods.generator:GeneratorFile",
        "teachers": "methods.teachers:Teachers",
        "apm_slice": "methods.apm_slice:APMSlice",
        "groups": "evaluators.groups:Groups",
    },
    "ddbench.artifacts",
)
DECODERS = Registry(
    "decoder",
    {
        "pixels": "bench.distilled:pixels",
        "multi_formation": "methods.parametrise:decode_multi_formation",
    },
    "ddbench.decoders",
)
