"""Progress, budgets, learning-rate factors and the moving average."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.train.recipe import BudgetConfig, ScheduleConfig
from flowgrain.train.schedule import Ema, Progress, finished, learning_rate_factor, milestones_reached, spent


def test_counters_go_on_over_epochs():
    progress = Progress().after_update(slices=7, roots=3, seconds=0.5).next_epoch().after_update(5, 2, 0.25)
    assert progress == Progress(epoch=1, window=1, updates=2, slices=12, roots=5, seconds=0.75)


@given(amount=st.floats(1, 500), steps=st.lists(st.integers(1, 40), min_size=1, max_size=200))
def test_every_milestone_is_reached_exactly_once(amount, steps):
    budget = BudgetConfig(amount=amount, unit="slices", checkpoints=(0.5, 1.0, 1.5))
    progress, reached = Progress(), []
    for slices in steps:
        before, progress = progress, progress.after_update(slices, 1, 0.1)
        reached += milestones_reached(before, progress, budget)
    assert reached == [m for m in budget.checkpoints if spent(progress, budget) >= m]
    assert finished(progress, budget) == (reached == [0.5, 1.0, 1.5])


def test_warmup_is_linear_and_reaches_one():
    config, budget = ScheduleConfig(kind="constant", warmup=4), BudgetConfig(amount=100)
    factors = [learning_rate_factor(config, Progress(updates=n), budget) for n in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("kind", "middle"), [("linear", 0.55), ("cosine", 0.55), ("constant", 1.0)])
def test_decay_runs_over_the_whole_budget(kind, middle):
    config = ScheduleConfig(kind=kind, final=0.0 if kind == "constant" else 0.1)
    budget = BudgetConfig(amount=100, checkpoints=(1.0, 1.5))
    ends = [learning_rate_factor(config, Progress(updates=n), budget) for n in (0, 75, 150)]
    assert ends == pytest.approx([1.0, middle, 1.0 if kind == "constant" else 0.1])


def test_cosine_is_a_cosine():
    factor = learning_rate_factor(ScheduleConfig(kind="cosine"), Progress(updates=30), BudgetConfig(amount=100))
    assert factor == pytest.approx(0.5 * (1 + math.cos(math.pi * 30 / 150)))


def test_ema_is_the_weighted_sum_of_its_past():
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    ema = Ema([("p", parameter)], decay=0.9)
    for step in range(1, 6):
        parameter.data.fill_(float(step))
        ema.update()
    expected = sum(0.1 * 0.9 ** (5 - step) * step for step in range(1, 6))
    torch.testing.assert_close(ema.values["p"], torch.full((3,), expected, dtype=torch.float64))
    with ema.swapped():
        assert torch.equal(parameter.detach(), ema.values["p"])
    assert torch.equal(parameter.detach(), torch.full((3,), 5.0, dtype=torch.float64))
