"""The learning rate of every optimiser step, as plain arithmetic that tests can count.

A recipe speaks of epochs or of steps; here all is steps. `half_reset` is the schedule of DC, DSA, DM and MTT: with E
epochs asked for, E+1 are run, the first E//2+2 at the full rate and the rest at a tenth of it with a new optimiser
(E=300: 152 and 149).
"""

from __future__ import annotations

import math

from bench.train.recipe import Recipe

FIRST = 1e-7
"""What `half_warmup` starts from."""


def total_steps(recipe: Recipe, per_epoch: int) -> int:
    """Return the number of optimiser steps of the whole training; `per_epoch` batches make one epoch."""
    return recipe.steps if recipe.steps is not None else (recipe.passes or 0) * per_epoch


def reset_step(recipe: Recipe, per_epoch: int) -> int | None:
    """Return the step before which the optimiser is made anew (its momentum dropped), None for never."""
    if recipe.schedule != "half_reset" or recipe.epochs is None:
        return None
    return (recipe.epochs // 2 + 2) * per_epoch


def factor(recipe: Recipe, step: int, per_epoch: int) -> float:
    """Return what the base rate is multiplied with at `step` (from 0)."""
    if recipe.schedule == "half_reset":
        drop = reset_step(recipe, per_epoch)
        return 1.0 if drop is None or step < drop else 0.1
    if recipe.schedule == "step":
        # Whole epochs where the length is in epochs: ceil(E/2) is the epoch at which APM drops the rate.
        unit = per_epoch if recipe.epochs is not None else 1
        length = recipe.epochs or recipe.steps or 0
        return recipe.gamma ** sum(step >= math.ceil(m * length) * unit for m in recipe.milestones)
    if recipe.schedule == "half_warmup":
        epoch, half = step // per_epoch, (recipe.epochs or 0) // 2
        if epoch <= half:
            return FIRST + (1 - FIRST) * epoch / max(1, half)
        return (1 + math.cos(math.pi * (epoch - half - 1) / max(1, half))) / 2
    if recipe.schedule in ("cosine", "warmup_cosine"):
        warmup = recipe.warmup if recipe.schedule == "warmup_cosine" else 0
        if step < warmup:
            return step / warmup
        done = (step - warmup) / max(1, total_steps(recipe, per_epoch) - warmup)
        return recipe.final + (1 - recipe.final) * (1 + math.cos(math.pi * done)) / 2
    return 1.0
