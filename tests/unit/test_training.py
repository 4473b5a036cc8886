# SPDX-License-Identifier: Apache-2.0
"""Training: rounds of annotation, learning at all, resuming, the schedule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kprism_model.augment import Augmentation
from kprism_model.config import KPrismConfig
from kprism_model.network import KPrism
from kprism_model.rounds import RoundSettings, practise
from kprism_model.sampling import MODES, Mode, Sampler
from kprism_model.slices import SliceStore
from kprism_model.training import MovingAverage, Trainer, TrainingPlan
from tests.unit.dataset_files import rectangle, write_dataset

SIZE = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    """Bright rectangles at four places."""
    folder = tmp_path_factory.mktemp("data")
    places = [(5, 5), (5, 30), (30, 5), (30, 30)]
    labels = [rectangle((SIZE, SIZE), slice(r, r + 24), slice(c, c + 24)) for r, c in places]
    dataset = write_dataset(folder / "boxes", labels, classes=["box"])
    return SliceStore.build([dataset], folder / "store", size=SIZE, progress=False)


@pytest.fixture
def sampler(store: SliceStore) -> Sampler:
    return Sampler(store, seed=0, augmentation=Augmentation.none())


def _config() -> KPrismConfig:
    return KPrismConfig.tiny(num_classes=1)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_gives_gradients_to_what_its_mode_uses(sampler: Sampler, mode: Mode) -> None:
    model = KPrism(_config()).train()
    batch = sampler.batch(mode, 2, step=0, size=SIZE)
    loss, scores = practise(model, batch, np.random.default_rng(0), RoundSettings(scribble_fraction=0.0))
    loss.backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert 0 <= scores["first"] <= 1 and 0 <= scores["last"] <= 1
    assert "decoder.clicks.content.0.weight" in touched  # later rounds bring clicks in every mode
    assert ("decoder.class_content" in touched) == (mode == "semantic")
    assert ("summarizer.project.0.weight" in touched) == (mode == "in_context")
    assert ("decoder.presence.0.weight" in touched) == (mode != "interactive")


def test_scribbles_are_a_first_prompt_too(sampler: Sampler) -> None:
    model = KPrism(_config()).train()
    batch = sampler.batch("interactive", 2, step=0, size=SIZE, composite_fraction=0.0)
    loss, _ = practise(model, batch, np.random.default_rng(0), RoundSettings(scribble_fraction=1.0))
    assert loss.isfinite()


@pytest.mark.parametrize("scribble_fraction", [0.0, 1.0])
def test_an_object_that_is_lost_at_the_training_size_breaks_nothing(sampler: Sampler, scribble_fraction: float) -> None:
    batch = sampler.batch("interactive", 2, step=0, size=SIZE)
    batch.masks[0] = 0
    settings = RoundSettings(scribble_fraction=scribble_fraction)
    loss, _ = practise(KPrism(_config()).train(), batch, np.random.default_rng(0), settings)
    loss.backward()
    assert loss.isfinite()


def test_training_learns_the_boxes(sampler: Sampler, tmp_path: Path) -> None:
    plan = TrainingPlan(minutes=1e9, batch_size=4, sizes=((0.0, SIZE),), learning_rate=3e-3, warmup_steps=1)
    trainer = Trainer(_config(), sampler, plan, tmp_path)
    _take(trainer, 40)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])


def test_a_killed_run_goes_on_as_if_nothing_had_happened(sampler: Sampler, tmp_path: Path) -> None:
    plan = TrainingPlan(minutes=1e9, batch_size=2, sizes=((0.0, SIZE),))
    whole = Trainer(_config(), sampler, plan, tmp_path / "whole")
    _take(whole, 4)
    first = Trainer(_config(), sampler, plan, tmp_path / "parts")
    _take(first, 2)
    first.save()
    second = Trainer(_config(), sampler, replace(plan), tmp_path / "parts")
    assert second.step == 2
    _take(second, 2)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    for name, value in whole.average.state.items():
        torch.testing.assert_close(second.average.state[name], value, atol=1e-5, rtol=1e-4)


def test_a_state_of_another_size_is_refused(sampler: Sampler, tmp_path: Path) -> None:
    plan = TrainingPlan(minutes=1e9, batch_size=2, sizes=((0.0, SIZE),))
    Trainer(_config(), sampler, plan, tmp_path).save()
    with pytest.raises(ValueError, match="another run: its config"):
        Trainer(KPrismConfig.tiny(num_classes=2), sampler, plan, tmp_path)


def test_a_budget_of_time_is_kept(sampler: Sampler, tmp_path: Path) -> None:
    plan = TrainingPlan(minutes=0.02, batch_size=2, sizes=((0.0, 32), (0.5, 64)))
    trainer = Trainer(_config(), sampler, plan, tmp_path)
    model = trainer.run(progress=False)
    assert trainer.share >= 1 and not model.training
    sizes = [json.loads(line)["size"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sizes[0] == 32 and sizes == sorted(sizes)
    assert Trainer(_config(), sampler, plan, tmp_path).seconds == pytest.approx(trainer.seconds)


def test_schedule() -> None:
    plan = TrainingPlan(learning_rate=1.0, warmup_steps=10, final_rate=0.1, sizes=((0.0, 128), (0.5, 192)))
    assert plan.rate_at(0, 0.0) == pytest.approx(0.1)
    assert plan.rate_at(100, 0.0) == pytest.approx(1.0)
    assert plan.rate_at(100, 1.0) == pytest.approx(0.1)
    assert [plan.size_at(share) for share in (0.0, 0.49, 0.5, 1.0)] == [128, 128, 192, 192]


def test_the_moving_average_ends_near_a_model_that_stands_still() -> None:
    model = torch.nn.Linear(2, 2)
    average = MovingAverage(model, decay=0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    for step in range(100):
        average.update(model, step)
    torch.testing.assert_close(average.state["weight"], model.weight.detach(), atol=1e-3, rtol=0)


def _take(trainer: Trainer, steps: int) -> None:
    for _ in zip(range(steps), trainer._steps(), strict=False):
        pass
