# SPDX-License-Identifier: Apache-2.0
"""Training steps as on a GPU: all rows in every task, nothing is fetched; the figures of the CPU have not changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kprism_model.data.augment import Augmentation
from kprism_model.data.batch import Batch
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.interaction.simulated_user import BatchedUser, RowwiseUser, simulated_user
from kprism_model.network import decoder
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training import training_step as training_step_module
from kprism_model.training.plan import TrainingPlan
from kprism_model.training.schedule import MODES, StepSettings
from kprism_model.training.step_log import PendingRecords
from kprism_model.training.trainer import Trainer
from kprism_model.training.training_step import training_step
from tests.unit.dataset_files import store_of_boxes
from tests.unit.unsynchronised import Unsynchronised

SIZE = 64

SCHEDULES: dict[str, dict[str, Any]] = {
    "default": {},
    "scribble": {"scribble_probability": 1.0, "propagation_probability": 0.0, "corrupted_mask_probability": 0.0},
    "propagated": {"propagation_probability": 1.0},
    "corrupted": {"propagation_probability": 0.0, "corrupted_mask_probability": 1.0},
    "clicked": {
        "correction_probability": 1.0,
        "propagation_probability": 0.0,
        "corrupted_mask_probability": 0.0,
        "scribble_probability": 0.0,
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    """Bright rectangles at four places."""
    return store_of_boxes(tmp_path_factory.mktemp("data"), SIZE)


@pytest.fixture
def batch(store: SliceStore) -> Batch:
    """Four images of boxes, the first of which is said to lack some."""
    mixture = Mixture(absent=0.0, synthetic=0.0, regions=0.0, window=0.0)
    sampler = Sampler(store, seed=0, mixture=mixture, augmentation=Augmentation.none())
    drawn = sampler.batch(4, step=0, size=SIZE)
    drawn.absent_classes[0, 0] = 0
    return drawn


@pytest.fixture
def model() -> KPrism:
    torch.manual_seed(0)
    return KPrism(KPrismConfig.tiny(num_classes=1)).train()


def batched(seed: int = 0) -> BatchedUser:
    return BatchedUser(np.random.default_rng(seed), torch.device("cpu"))


def gradients(model: KPrism, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_the_user_is_chosen_by_device() -> None:
    assert isinstance(simulated_user(np.random.default_rng(0), torch.device("cpu")), RowwiseUser)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("default", (20.2220631, 0.0177238, 0.0345008, 0.0365221, 0.0419250)),
        ("scribble", (20.2449455, 0.0177238, 0.0345008, 0.0478443, 0.0348262)),
        ("propagated", (20.2220631, 0.0177238, 0.0345008, 0.0365221, 0.0419250)),
        ("corrupted", (20.2312088, 0.0177238, 0.0345008, 0.0109156, 0.0356400)),
        ("clicked", (20.2311096, 0.0177238, 0.0345008, 0.0388147, 0.0529825)),
    ],
)
def test_the_cpu_does_as_it_did(model: KPrism, batch: Batch, schedule: str, expected: tuple[float, ...]) -> None:
    """Figures of before there was a batched user, with propagated masks without clicks; a pixel at 0.5 is rounding."""
    loss, scores = training_step(model, batch, np.random.default_rng(3), StepSettings(**SCHEDULES[schedule]))
    assert float(loss.detach()) == pytest.approx(expected[0], rel=1e-4)
    found = [float(scores[name]) for name in (*MODES, "interactive_last")]
    assert found == pytest.approx(expected[1:], abs=2e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_step_waits_for_the_device(
    model: KPrism, batch: Batch, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_may_contain_padding", lambda padded: True)  # as on a GPU
    user, settings = batched(), StepSettings(**SCHEDULES[schedule])
    with Unsynchronised():
        loss, scores = training_step(
            model, batch, np.random.default_rng(3), StepSettings(**SCHEDULES[schedule]), user=user
        )
        loss.backward()
    assert loss.isfinite() and set(scores) == {*MODES, "interactive_last"}
    assert all(0 <= float(score) <= 1 for score in scores.values())
    expected, _ = training_step(model, batch, np.random.default_rng(3), settings)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.05)  # other clicks of the same kind


def test_rows_without_weight_count_as_if_they_were_not_there(model: KPrism, batch: Batch) -> None:
    batch.class_index[1], batch.references[2], batch.absent_classes[3] = -1, -1, -1
    settings = StepSettings(weights=(1.0, 1.0, 0.0), correction_probability=0.0)
    found = []
    for user in (RowwiseUser(np.random.default_rng(0)), batched()):
        loss, scores = training_step(model, batch, np.random.default_rng(0), settings, user=user)
        found.append((loss.detach(), gradients(model, loss), scores))
    (loss, before, scores), (other_loss, after, other_scores) = found
    torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=1e-6)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        if not name.startswith("dense_encoder."):  # of an empty map, whose variance is 0: rounding is all there is
            torch.testing.assert_close(after[name], gradient, rtol=1e-3, atol=1e-4)
    for name in ("semantic", "in_context"):
        assert float(other_scores[name]) == pytest.approx(float(scores[name]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_images_without_anything_to_ask_for_give_a_gradient_of_zero(model: KPrism, batch: Batch, schedule: str) -> None:
    batch.class_index[:], batch.references[:], batch.absent_classes[:] = -1, -1, -1
    batch.objects[:], batch.masks[:] = 0, 0
    settings = StepSettings(**SCHEDULES[schedule])
    loss, scores = training_step(model, batch, np.random.default_rng(0), settings, user=batched())
    assert loss == 0 and all(score.isnan() for score in scores.values())
    assert all((gradient == 0).all() for gradient in gradients(model, loss).values())


def test_a_seed_decides_what_the_batched_user_does(model: KPrism, batch: Batch) -> None:
    settings = StepSettings(weights=(0.0, 0.0, 1.0), propagation_probability=0.0, corrupted_mask_probability=1.0)
    losses = [
        float(training_step(model, batch, np.random.default_rng(0), settings, user=batched(seed))[0].detach())
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_whole_step_waits_for_nothing_and_logs_late(
    store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_may_contain_padding", lambda padded: True)
    monkeypatch.setattr(training_step_module, "simulated_user", BatchedUser)
    plan = TrainingPlan(minutes=1e9, batch_size=4, sizes=((0.0, SIZE),), precision="float32")
    trainer = Trainer(KPrismConfig.tiny(num_classes=1), Sampler(store, seed=0), plan, tmp_path)
    trainer._pending = PendingRecords(3)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    step = trainer._train_step

    def unsynchronised(batches: Any) -> Any:
        with Unsynchronised():
            return step(batches)

    monkeypatch.setattr(trainer, "_train_step", unsynchronised)
    records = trainer._train()
    first = next(records)
    assert first["step"] == 0 and trainer.step == 3 and type(first["loss"]) is float
    assert [next(records)["step"] for _ in range(2)] == [1, 2] and trainer.step == 3 and trainer.seconds > 0
    changed = [name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("decoder.layers") for name in changed)
