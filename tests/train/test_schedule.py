import math

import pytest
import torch

from bench.train.recipe import Recipe
from bench.train.schedule import factor, reset_step, total_steps


def factors(recipe: Recipe, per_epoch: int = 1) -> list[float]:
    return [factor(recipe, step, per_epoch) for step in range(total_steps(recipe, per_epoch))]


@pytest.mark.parametrize(("epochs", "full", "tenth"), [(300, 152, 149), (1000, 502, 499), (1, 2, 0), (2, 3, 0)])
def test_half_reset_counts_of_the_released_code(epochs, full, tenth):
    assert factors(Recipe(epochs=epochs)) == [1.0] * full + [0.1] * tenth
    assert reset_step(Recipe(epochs=epochs), 1) == full


def test_half_reset_counts_whole_epochs():
    assert factors(Recipe(epochs=3), per_epoch=2) == [1.0] * 6 + [0.1] * 2


def test_step_drops_where_apm_drops():
    # APM: E+1 epochs, a tenth from epoch E//2+1 (from 0) on
    for epochs in (5, 6, 1000):
        found = factors(Recipe(epochs=epochs + 1, schedule="step", milestones=(0.5,)))
        assert found.index(0.1) == epochs // 2 + 1
        assert set(found) == {1.0, 0.1}


def test_step_with_several_milestones_and_batches():
    recipe = Recipe(epochs=4, schedule="step", milestones=(0.25, 0.5), gamma=0.5)
    assert factors(recipe, per_epoch=3) == [1.0] * 3 + [0.5] * 3 + [0.25] * 6


def test_cosine_is_that_of_torch():
    recipe = Recipe(steps=10, schedule="cosine", final=0.01)
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10, eta_min=0.01)
    expected = []
    for _ in range(10):
        expected.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    assert factors(recipe) == pytest.approx(expected, abs=1e-12)


def test_warm_up_rises_from_zero_and_then_follows_the_cosine():
    found = factors(Recipe(steps=14, schedule="warmup_cosine", warmup=4, final=0.01))
    assert found[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert found[9] == pytest.approx(0.01 + 0.99 * 0.5)
    assert found[13] == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * 0.9)) / 2)


def test_constant_and_lengths():
    assert factors(Recipe(epochs=2, schedule="constant"), per_epoch=3) == [1.0] * 6
    assert total_steps(Recipe(steps=5, schedule="constant"), per_epoch=3) == 5
    assert reset_step(Recipe(epochs=2, schedule="constant"), 3) is None


def test_half_warmup_has_the_rates_of_glad():
    recipe = Recipe(epochs=1000, lr=1e-3, schedule="half_warmup")
    rates = [1e-3 * factor(recipe, epoch, 1) for epoch in range(1000)]
    known = {0: 1e-10, 10: 2e-5, 250: 5e-4, 500: 1e-3, 501: 1e-3, 750: 5.03e-4, 999: 3.95e-8}
    assert {epoch: rates[epoch] for epoch in known} == {e: pytest.approx(rate, rel=1e-3) for e, rate in known.items()}
    assert max(rates) == rates[500]
    assert rates[:501] == sorted(rates[:501])
    assert rates[501:] == sorted(rates[501:], reverse=True)


def test_half_warmup_is_constant_within_an_epoch():
    recipe = Recipe(epochs=6, schedule="half_warmup")
    assert factors(recipe, per_epoch=3) == [rate for rate in factors(recipe) for _ in range(3)]
    for epochs in (1, 2, 3):
        assert all(0 < rate <= 1 for rate in factors(Recipe(epochs=epochs, schedule="half_warmup")))
