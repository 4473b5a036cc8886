# SPDX-License-Identifier: Apache-2.0
"""Training of propagation: gradients, what each slice is predicted from, and that a GPU never waits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kprism_model.data.batch import SequenceBatch
from kprism_model.interaction.simulated_user import BatchedUser
from kprism_model.network import decoder
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training import propagation_step as module
from kprism_model.training.propagation_step import EncodedSequences, propagation_step
from tests.unit.unsynchronised import Unsynchronised

SIZE = 64


@pytest.fixture
def model() -> KPrism:
    torch.manual_seed(0)
    return KPrism(KPrismConfig.tiny(num_classes=1)).train()


@pytest.fixture
def batch() -> SequenceBatch:
    """Two sequences of four slices: a square that moves right, and one that is gone in the last two slices."""
    masks = torch.zeros(2, 4, 1, SIZE, SIZE)
    for number in range(4):
        masks[0, number, 0, 20:40, 10 + 3 * number : 30 + 3 * number] = 1
    masks[1, :2, 0, 30:50, 30:50] = 1
    return SequenceBatch((0.2 + 0.6 * masks).expand(-1, -1, 3, -1, -1).clone(), masks)


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_reaches_encoder_decoder_and_presence(model: KPrism, batch: SequenceBatch, seed: int) -> None:
    loss, scores = propagation_step(model, batch, np.random.default_rng(seed))
    loss.backward()
    assert torch.isfinite(loss) and set(scores) == {"propagated", "beyond"}
    for part in (model.image_encoder, model.mask_encoder, model.decoder.presence, model.dense_encoder):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0


def test_known_features_give_the_same_loss(model: KPrism, batch: SequenceBatch) -> None:
    model.eval()
    features = model.encode_image(batch.images.flatten(0, 1))
    losses = [
        float(propagation_step(model, batch, np.random.default_rng(0), features=known)[0].detach())
        for known in (None, features)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_ended_structure_is_looked_for_where_it_was_last(
    model: KPrism, batch: SequenceBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The previous mask of a slice is the network's own, or the last one that was not empty."""
    seen: list[torch.Tensor] = []
    sequences = EncodedSequences(model.eval(), batch)
    monkeypatch.setattr(
        module,
        "mask_probability",
        lambda output, size: torch.zeros(2, 1, *size),  # the structure has always ended
    )
    decode = sequences.decode
    monkeypatch.setattr(
        sequences,
        "decode",
        lambda number, references, previous: seen.append(previous) or decode(number, references, previous),
    )
    sequences.outwards(batch.masks[:, 0], recent=2)
    assert len(seen) == 3 and all(torch.equal(previous, batch.masks[:, 0]) for previous in seen)


@pytest.mark.parametrize("seed", range(6))
def test_no_step_waits_for_the_device(
    model: KPrism, batch: SequenceBatch, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_may_contain_padding", lambda padded: True)  # as on a GPU
    monkeypatch.setattr(module, "simulated_user", lambda rng, device: BatchedUser(rng, device))
    with Unsynchronised():
        loss, _ = propagation_step(model, batch, np.random.default_rng(seed))
        loss.backward()
    assert torch.isfinite(loss)
