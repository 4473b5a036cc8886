# SPDX-License-Identifier: Apache-2.0
"""Training: simulated interaction, learning at all, resuming, the schedules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from kprism_model.data.augment import Augmentation
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.interaction.corrupted_masks import corrupted_masks
from kprism_model.interaction.propagated_masks import moved_mask
from kprism_model.interaction.simulated_user import simulate_scribbles
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import Prompts
from kprism_model.training.loop import fit
from kprism_model.training.optimization import MovingAverage
from kprism_model.training.plan import Precision, TrainingPlan, autocast_type
from kprism_model.training.schedule import MODES, StepSettings
from kprism_model.training.step_log import NOT_SCORES
from kprism_model.training.trainer import Trainer
from kprism_model.training.training_step import training_step
from tests.unit.dataset_files import rectangle, store_of_boxes

SIZE = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    """Bright rectangles at four places."""
    return store_of_boxes(tmp_path_factory.mktemp("data"), SIZE)


@pytest.fixture
def sampler(store: SliceStore) -> Sampler:
    return Sampler(
        store, seed=0, mixture=Mixture(absent=0.0, synthetic=0.0, regions=0.0), augmentation=Augmentation.none()
    )


def _config() -> KPrismConfig:
    return KPrismConfig.tiny(num_classes=1)


ONLY = {
    "semantic": (1.0, 0.0, 0.0),
    "in_context": (0.0, 1.0, 0.0),
    "interactive": (0.0, 0.0, 1.0),
}


CLICKS_ONLY: dict[str, Any] = {
    "scribble_probability": 0.0,
    "propagation_probability": 0.0,
    "corrupted_mask_probability": 0.0,
}


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_gives_gradients_to_what_its_mode_uses(sampler: Sampler, mode: str) -> None:
    model = KPrism(_config()).train()
    batch = sampler.batch(4, step=0, size=SIZE)
    settings = StepSettings(weights=ONLY[mode], correction_probability=1.0, **CLICKS_ONLY)
    loss, scores = training_step(model, batch, np.random.default_rng(0), settings)
    loss.backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert 0 <= scores[mode] <= 1
    assert ("interactive_last" in scores) == (mode == "interactive")
    assert "decoder.clicks.content.0.weight" in touched  # corrections bring clicks in every mode
    assert ("decoder.class_content" in touched) == (mode == "semantic")
    assert ("summarizer.project.0.weight" in touched) == (mode == "in_context")
    assert ("decoder.presence.0.weight" in touched) == (mode != "interactive")


def test_modes_add_up_on_the_same_features(sampler: Sampler) -> None:
    model = KPrism(_config()).train()
    batch = sampler.batch(4, step=0, size=SIZE)
    settings = StepSettings(correction_probability=0.0, clicks_without_gradient=0, **CLICKS_ONLY)
    alone = []
    for weights in ONLY.values():
        loss, _ = training_step(model, batch, np.random.default_rng(0), replace(settings, weights=weights))
        alone.append(float(loss.detach()))
    together, scores = training_step(model, batch, np.random.default_rng(0), settings)
    assert set(scores) == {*MODES, "interactive_last"}
    assert sum(alone) == pytest.approx(float(together.detach()), rel=0.02)  # clicks are drawn anew


def test_presence_is_learned_from_what_images_lack(sampler: Sampler) -> None:
    model = KPrism(_config()).train()
    batch = sampler.batch(4, step=0, size=SIZE)
    assert (batch.absent_classes == -1).all()  # there is one class, and all images show it
    only = StepSettings(weights=ONLY["semantic"], correction_probability=0.0)
    before, _ = training_step(model, batch, np.random.default_rng(0), only)
    batch.absent_classes[:, 0] = 0
    after, _ = training_step(model, batch, np.random.default_rng(0), only)
    expected = F.softplus(
        model(batch.images, Prompts((SIZE, SIZE), torch.arange(4), class_index=torch.zeros(4).long())).presence
    )
    assert float((after - before).detach()) == pytest.approx(float(expected.mean().detach()), rel=0.02)


def test_scribbles_are_a_first_prompt_too(sampler: Sampler) -> None:
    model = KPrism(_config()).train()
    settings = StepSettings(weights=ONLY["interactive"], **{**CLICKS_ONLY, "scribble_probability": 1.0})
    loss, scores = training_step(model, sampler.batch(4, step=0, size=SIZE), np.random.default_rng(0), settings)
    assert loss.isfinite() and 0 <= scores["interactive"] <= 1


def test_a_mask_of_the_slice_before_is_a_first_prompt_too(sampler: Sampler) -> None:
    model = KPrism(_config()).train()
    settings = StepSettings(weights=ONLY["interactive"], propagation_probability=1.0)
    loss, scores = training_step(model, sampler.batch(4, step=0, size=SIZE), np.random.default_rng(0), settings)
    loss.backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"summarizer.project.0.weight", "dense_encoder.downs.0.0.weight"} <= touched
    assert 0 <= scores["interactive"] <= 1


def test_the_slice_before_shows_about_the_same_mask() -> None:
    mask = rectangle((SIZE, SIZE), slice(20, 40), slice(24, 40)) > 0
    overlaps = []
    for seed in range(50):
        moved = moved_mask(mask, np.random.default_rng(seed))
        overlaps.append(2 * (moved & mask).sum() / (moved.sum() + mask.sum()))
    assert min(overlaps) > 0.5 and np.mean(overlaps) < 0.95
    single = np.zeros((SIZE, SIZE), bool)
    single[0, 0] = True
    assert all(moved_mask(single, np.random.default_rng(seed)).any() for seed in range(20))


def test_a_wrong_mask_is_a_first_prompt_too(sampler: Sampler) -> None:
    model = KPrism(_config()).train()
    settings = StepSettings(weights=ONLY["interactive"], propagation_probability=0.0, corrupted_mask_probability=1.0)
    loss, scores = training_step(model, sampler.batch(4, step=0, size=SIZE), np.random.default_rng(0), settings)
    loss.backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"decoder.clicks.content.0.weight", "dense_encoder.downs.0.0.weight"} <= touched
    assert 0 <= scores["interactive"] <= 1


def test_wrong_masks_are_of_all_kinds_and_the_networks_own_among_them() -> None:
    mask = torch.from_numpy(rectangle((SIZE, SIZE), slice(20, 40), slice(24, 40)) > 0)[None, None].float()
    answer = torch.from_numpy(rectangle((SIZE, SIZE), slice(2, 9), slice(3, 11)) > 0)[None, None].float()
    found = [corrupted_masks(mask, 0.9 * answer, np.random.default_rng(seed)) for seed in range(60)]
    own = sum(torch.equal(wrong, answer) for wrong in found)
    overlaps = [float(2 * (wrong * mask).sum() / (wrong.sum() + mask.sum())) for wrong in found]
    assert 15 <= own <= 45  # half of them
    assert min(overlaps) == 0.0 and max(overlaps) > 0.8  # from something else altogether to nearly right
    assert all(set(wrong.unique().tolist()) <= {0.0, 1.0} and wrong.shape == mask.shape for wrong in found)
    without = [corrupted_masks(mask, torch.zeros_like(mask), np.random.default_rng(seed)) for seed in range(20)]
    assert not any(torch.equal(wrong, answer) for wrong in without)  # an empty answer is no mask to correct
    assert torch.equal(corrupted_masks(mask, answer, np.random.default_rng(7)), found[7])


def test_negative_scribbles_lie_outside_of_the_object() -> None:
    mask = rectangle((SIZE, SIZE), slice(20, 40), slice(20, 40)) > 0
    drawn = [simulate_scribbles(mask, np.random.default_rng(seed)) for seed in range(20)]
    assert 3 < sum((scribble == -1).any() for scribble in drawn) < 17
    for scribble in drawn:
        assert mask[scribble == 1].all() and (scribble == 1).any() and not mask[scribble == -1].any()


def test_images_without_anything_to_ask_for_break_nothing(sampler: Sampler) -> None:
    batch = sampler.batch(4, step=0, size=SIZE)
    batch.class_index[:], batch.references[:], batch.objects[:] = -1, -1, 0
    loss, scores = training_step(KPrism(_config()).train(), batch, np.random.default_rng(0), StepSettings())
    loss.backward()
    assert loss == 0 and scores == {}


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
    kernels = [value for value in second.model.state_dict().values() if value.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    _take(second, 2)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    for name, value in whole.average.state.items():
        torch.testing.assert_close(second.average.state[name], value, atol=1e-5, rtol=1e-4)


def test_the_log_of_a_resumed_run_holds_each_step_once(sampler: Sampler, tmp_path: Path) -> None:
    plan = TrainingPlan(minutes=1e9, batch_size=2, sizes=((0.0, 32),))
    first = Trainer(_config(), sampler, plan, tmp_path)
    _take(first, 2)
    first.save()
    _take(first, 2)  # lost: the run is killed before it saves again
    second = Trainer(_config(), sampler, plan, tmp_path)
    _take(second, 2)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3]


def test_two_small_batches_make_the_step_of_their_mean(sampler: Sampler, tmp_path: Path) -> None:
    plan = TrainingPlan(minutes=1e9, batch_size=2, accumulate=2, sizes=((0.0, SIZE),))
    trainer = Trainer(_config(), sampler, plan, tmp_path)
    numbers: list[int] = []
    draw = trainer._draw
    trainer._draw = lambda number, size: numbers.append(number) or draw(number, size)  # type: ignore[method-assign,func-returns-value]
    _take(trainer, 3)
    assert trainer.step == 3 and numbers[:6] == [0, 1, 2, 3, 4, 5]


def test_two_processes_keep_the_same_weights(store: SliceStore, tmp_path: Path) -> None:
    script = tmp_path / "both.py"
    script.write_text(_TWO_PROCESSES.format(store=str(store.path), out=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."})
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["images"] != other["images"]  # each saw its own
    for name in (name for name in one["weights"] if "running" not in name and "num_batches" not in name):
        assert torch.equal(one["weights"][name], other["weights"][name])
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 2


_TWO_PROCESSES = """
from pathlib import Path
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from kprism_model.network.config import KPrismConfig
from kprism_model.training.distributed import Workers
from kprism_model.data.sampling import Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.training.plan import TrainingPlan
from kprism_model.training.trainer import Trainer

torch.set_num_threads(1)
workers = Workers.join("cpu")
sampler = Sampler(SliceStore.open(Path("{store}")), seed=0)
plan = TrainingPlan(minutes=1e9, batch_size=2, sizes=((0.0, 32),))
trainer = Trainer(KPrismConfig.tiny(num_classes=1), sampler, plan, Path("{out}/run"), workers=workers)
for record, _ in zip(trainer._train(), range(2)):
    trainer._log(record)
torch.save(
    {{"weights": trainer.model.state_dict(), "images": float(trainer._draw(0, 32).images.sum())}},
    f"{out}/{{workers.rank}}.pt",
)
workers.leave()
"""


@pytest.mark.parametrize(("precision", "expected"), [("float32", None), ("bfloat16", torch.bfloat16)])
def test_precision_as_asked(precision: Precision, expected: torch.dtype | None) -> None:
    assert autocast_type(precision, torch.device("cpu")) == expected
    with pytest.raises(ValueError, match="precision must be auto, float32 or bfloat16, got 'half'"):
        autocast_type("half", torch.device("cpu"))  # type: ignore[arg-type]


def test_training_in_bfloat16_gives_finite_float32_weights(sampler: Sampler, tmp_path: Path) -> None:
    plan = TrainingPlan(minutes=1e9, batch_size=2, sizes=((0.0, 32),), precision="bfloat16")
    trainer = Trainer(_config(), sampler, plan, tmp_path)
    _take(trainer, 2)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.model.parameters())


def test_a_state_of_another_size_is_refused(sampler: Sampler, tmp_path: Path) -> None:
    plan = TrainingPlan(minutes=1e9, batch_size=2, sizes=((0.0, SIZE),))
    Trainer(_config(), sampler, plan, tmp_path).save()
    with pytest.raises(ValueError, match="another run: its config"):
        Trainer(KPrismConfig.tiny(num_classes=2), sampler, plan, tmp_path)


def test_a_budget_of_time_is_kept(sampler: Sampler, tmp_path: Path) -> None:
    plan = TrainingPlan(minutes=0.02, batch_size=2, sizes=((0.0, 32), (0.5, 64)))
    trainer = Trainer(_config(), sampler, plan, tmp_path)
    model = trainer.run()
    assert trainer.share >= 1 and not model.training
    sizes = [json.loads(line)["size"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sizes[0] == 32 and sizes == sorted(sizes)
    assert Trainer(_config(), sampler, plan, tmp_path).seconds == pytest.approx(trainer.seconds)


def test_an_ignite_engine_makes_the_same_steps_and_writes_their_curves(sampler: Sampler, tmp_path: Path) -> None:
    """Curves carry on in a resumed run; what is logged does not depend on the engine."""
    plan = TrainingPlan(minutes=1e9, batch_size=2, sizes=((0.0, 32),))
    first = Trainer(_config(), sampler, plan, tmp_path)
    _take(first, 2)
    first.save()
    trainer = Trainer(_config(), sampler, plan, tmp_path)

    def spend_all_at_the_fifth_step(_: float) -> None:
        trainer.budget.seconds = 1e12 * (trainer.step == 5)

    trainer.budget.add_step = spend_all_at_the_fifth_step  # type: ignore[method-assign]
    model = fit(trainer)
    assert trainer.step == 5 and not model.training
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = {f"dice/{name}" for record in records[2:] for name in record if name not in NOT_SCORES}
    assert set(curves.Tags()["scalars"]) == {"loss", "rate", *names}
    losses = [(event.step, event.value) for event in curves.Scalars("loss")]
    assert losses == [(record["step"], pytest.approx(record["loss"], rel=1e-5)) for record in records[2:]]


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
    for _, record in zip(range(steps), trainer._train(), strict=False):
        trainer._log(record)
