# SPDX-License-Identifier: Apache-2.0
"""Late logging and skipped steps."""

from __future__ import annotations

import pytest
import torch

from kprism_model.training.optimization import step_if_finite
from kprism_model.training.step_log import PendingRecords


def test_records_come_as_numbers_when_enough_are_kept() -> None:
    pending = PendingRecords(3)
    assert pending.add({"step": 0, "loss": torch.tensor(2.5)}) == []
    assert pending.add({"step": 1, "loss": torch.tensor(1.5), "dice": torch.tensor(0.5)}) == []
    known = pending.add({"step": 2, "rate": 0.1})
    assert known == [{"step": 0, "loss": 2.5}, {"step": 1, "loss": 1.5, "dice": 0.5}, {"step": 2, "rate": 0.1}]
    assert all(type(record.get("loss", 0.0)) is float for record in known)
    assert pending.add({"step": 3}) == []
    assert PendingRecords(1).add({"step": 4}) == [{"step": 4}]
    with pytest.raises(ValueError, match="not 0"):
        PendingRecords(0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_step_with_a_broken_gradient_is_skipped(fused: bool, broken: float) -> None:
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.1, fused=fused)

    def step(value: float) -> None:
        for weight in weights:
            weight.grad = torch.full_like(weight, 0.5)
        weights[1].grad[0] = value
        step_if_finite(optimizer, torch.nn.utils.clip_grad_norm_(weights, 1.0))

    step(0.5)
    state = [weight.detach().clone() for weight in weights]
    moments = [value.clone() for held in optimizer.state.values() for value in held.values()]
    assert all((weight < 1).all() for weight in state)
    step(broken)
    assert all(map(torch.equal, weights, state))
    assert all(map(torch.equal, (value for held in optimizer.state.values() for value in held.values()), moments))
    step(0.5)
    assert all((weight < before).all() for weight, before in zip(weights, state, strict=True))
