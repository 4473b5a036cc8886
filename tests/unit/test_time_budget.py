# SPDX-License-Identifier: Apache-2.0
"""What training steps take from the time budget."""

from __future__ import annotations

import pytest

from kprism_model.training.time_budget import TimeBudget


def counted(budget: TimeBudget, seconds: float) -> float:
    """How much of a step is added to the budget."""
    before = budget.seconds
    budget.add_step(seconds)
    return budget.seconds - before


def test_a_pause_does_not_count_and_a_slow_step_does() -> None:
    budget = TimeBudget(minutes=1.0)
    assert counted(budget, 30.0) == 30.0  # the first one: nothing is known yet
    for _ in range(9):
        assert counted(budget, 2.0) == 2.0
    assert counted(budget, 15.0) == 15.0  # slow, but no pause
    assert counted(budget, 600.0) == pytest.approx(2.0)
    assert counted(budget, 2.5) == 2.5
    assert budget.share == pytest.approx((30 + 9 * 2 + 15 + 2 + 2.5) / 60)


def test_steps_that_are_always_long_count() -> None:
    budget = TimeBudget(minutes=1.0)
    assert [counted(budget, seconds) for seconds in (90.0, 120.0, 100.0, 300.0)] == [90.0, 120.0, 100.0, 300.0]


def test_no_minutes_are_spent_from_the_start() -> None:
    assert TimeBudget(minutes=0).share == 1


def test_a_budget_of_steps_does_not_depend_on_how_long_they_take() -> None:
    budget = TimeBudget(minutes=0.0, steps=4)
    shares = []
    for seconds in (0.1, 500.0, 3.0, 0.0):
        budget.add_step(seconds)
        budget.taken += 1
        shares.append(budget.share)
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert TimeBudget(minutes=1.0, steps=0).share == 1


def test_minutes_do_not_end_with_steps() -> None:
    budget = TimeBudget(minutes=1.0)
    budget.taken = 10_000
    assert budget.share == 0
