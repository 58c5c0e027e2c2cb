"""The built-ins made small: parameters with which each of them takes about a second on the debug data."""

from __future__ import annotations

from typing import Any

MATCHING = {"iterations": 2, "outer_loop": 1, "inner_loop": 1, "batch_real": 4, "batch_train": 16}
DM = {"iterations": 3, "batch_real": 4}
TRAJECTORIES = {
    "iterations": 3, "syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "experts": 2, "train_epochs": 2,
    "train_batch": 100, "lr_img": 1.0,
}  # fmt: skip
FREPO = {"iterations": 4, "batch": 24, "pool": 2, "max_age": 1, "width": 4, "depth": 2}
KIP = {"iterations": 4, "batch": 40}
IDC = {"iterations": 2, "inner_loop": 1, "batch_real": 4, "n_data": 20, "batch_train": 20}
CORESET = {"epochs": 2}
GENERATOR = {"generator": "random"}
TRUST = {"batch_outliers": 4}

METHODS: dict[str, dict[str, Any]] = {
    "random": {},
    "random_soft": {"train_epochs": 1},
    "herding": CORESET,
    "kcenter": CORESET,
    "forgetting": CORESET,
    "whole": {},
    "dc": MATCHING,
    "dsa": MATCHING,
    "dm": DM,
    "dd": {"iterations": 4, "epochs": 1, "real_batch": 50},
    "dd_momentum": {"iterations": 4, "steps": 4, "per_class": 1, "real_per_class": 4},
    "mtt": TRAJECTORIES,
    "tesla": TRAJECTORIES,
    "apm": {"iterations": 5, "student_epochs": 3, "students": 2, "teachers": 2, "train_epochs": 2},
    "kip": KIP,
    "label_solve": {},
    "frepo": FREPO,
    "trustdd_oe": {**MATCHING, **TRUST, "source": "digits"},
    "trustdd_poe": {**MATCHING, **TRUST},
    "trustdd_poe_dm": {**DM, **TRUST},
    "trustdd_poe_mtt": TRAJECTORIES,
    "glad_dc": {**MATCHING, **GENERATOR},
    "glad_dm": {**DM, **GENERATOR},
    "glad_mtt": {**TRAJECTORIES, **GENERATOR},
    "idc": IDC,
    "idc_i": IDC,
    "rdd": MATCHING,
    "rdd_glad": {**MATCHING, **GENERATOR},
    "rdd_dm": {**DM, "train_epochs": 1, "batch_train": 20},
    "rdd_idc": IDC,
    "rdd_mtt": TRAJECTORIES,
    "isa": FREPO,
    "isa_kip": KIP,
}

EVALUATORS: dict[str, dict[str, Any]] = {
    "accuracy": {},
    "cross_arch": {"params": {"networks": ["mlp-w4", "lenet"], "replicates": 1}},
    "cost": {"params": {"looks": [0.5]}, "method": "dm", "method_params": DM},
    "krr": {},
    "ood": {"params": {"sets": ["gaussian", "digits"], "scores": ["msp", "energy", "mahalanobis"]}},
    "continual": {"params": {"steps": 2}, "signed": ["forgetting"]},
    "membership": {"params": {"images": 40, "rates": [0.1]}},
    "lira": {"params": {"runs": 4, "audit": 20, "rates": [0.1]}},
    "subgroup": {"params": {"clusters": 3, "starts": 1, "epochs": 1, "smallest": 5}},
    "corruption": {},
    "ddranking": {
        "params": {"rates": [0.01], "full": {"epochs": 1}, "labels": "hard"},
        "signed": ["hlr", "ior", "lrs", "ars"],
        "units": ["rate"],
    },
}
