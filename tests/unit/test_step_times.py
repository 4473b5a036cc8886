# SPDX-License-Identifier: Apache-2.0
"""What counts of the time of steps."""

from __future__ import annotations

import pytest

from kprism_model.training.step_times import StepTimes


def test_a_pause_does_not_count_and_a_slow_step_does() -> None:
    times = StepTimes()
    assert times.counted(30.0) == 30.0  # the first one: nothing is known yet
    for _ in range(9):
        assert times.counted(2.0) == 2.0
    assert times.counted(15.0) == 15.0  # slow, but no pause
    assert times.counted(600.0) == pytest.approx(2.0)
    assert times.counted(2.5) == 2.5


def test_steps_that_are_always_long_count() -> None:
    times = StepTimes()
    assert [times.counted(seconds) for seconds in (90.0, 120.0, 100.0, 300.0)] == [90.0, 120.0, 100.0, 300.0]
