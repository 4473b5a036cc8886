# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: partial labels, new classes, folds, corrected slices, memory, kills and resumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.annotated_sampling import AnnotatedSampler
from kprism_model.data.augment import Augmentation
from kprism_model.data.partial import AnnotatedCase, StoreBuilder, training_slices
from kprism_model.data.slices import SliceStore
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import Prompts
from kprism_model.predictor import Predictor
from kprism_model.store import is_out_of_memory
from kprism_model.training.finetune import FinetunePlan, Finetuner
from kprism_model.training.run_state import EndState
from kprism_model.training.weights import average_weights, class_from_references

KNOWN = ("liver", "spleen")


def case(name: str, structures: dict[str, int], *, seed: int = 0, slices: int = 1) -> AnnotatedCase:
    """A bright disc (value 1) and a grey square (value 2) on noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :64]
    row, column = rng.integers(18, 28, 2)
    labels = np.where((rows - row) ** 2 + (columns - column) ** 2 < 100, 1, 0).astype(np.uint8)
    labels[44:58, 40:58] = 2
    image = labels * np.float32(0.4) + rng.random(labels.shape, np.float32) * np.float32(0.1)
    return AnnotatedCase(name, name, np.repeat(image[None], slices, 0), np.repeat(labels[None], slices, 0), structures)


@pytest.fixture
def published(tmp_path: Path) -> Checkpoint:
    torch.manual_seed(0)
    model = KPrism(KPrismConfig.tiny(num_classes=len(KNOWN))).eval()
    return Checkpoint(model, ClassRegistry(KNOWN), {}, "0123456789ab", tmp_path / "published.safetensors")


def store_of(folder: Path, *cases: AnnotatedCase) -> SliceStore:
    builder = StoreBuilder(folder / "slices", 64)
    for one in cases:
        builder.add(one)
    return builder.store()


def finetuner(published: Checkpoint, folder: Path, store: SliceStore | None = None, **changes: Any) -> Finetuner:
    store = store or store_of(folder, *(case(f"c{seed}", {"tumour": 1}, seed=seed) for seed in range(3)))
    plan = FinetunePlan(**{"minutes": 1e9, "batch_size": 4, "learning_rate": 3e-3, **changes})
    return Finetuner(published, store, plan, folder / "run")


def take(tuner: Finetuner, count: int) -> list[dict[str, float]]:
    steps = tuner.steps()
    records = [next(steps) for _ in range(count)]
    steps.close()
    return records


def test_cases_stand_together_only_with_cases_of_the_same_annotation(tmp_path: Path) -> None:
    store = store_of(
        tmp_path,
        case("a", {"tumour": 1}),
        case("b", {"tumour": 1, "cyst": 2}, seed=1),
        case("c", {"tumour": 1}, seed=2),
    )
    assert [tuple(part.classes.values()) for part in store.sets] == [("tumour",), ("cyst", "tumour")]
    assert store.sets[0].case_names == ("a", "c")
    assert set(np.unique(store.sets[0].labels)) == {0, 1}  # what is not annotated is not there
    first = store.sets[1]
    assert first.classes == {1: "cyst", 2: "tumour"}
    expected = case("b", {"tumour": 1, "cyst": 2}, seed=1)
    assert np.array_equal(first.labels[0] == 2, expected.mask("tumour")[0])
    assert np.array_equal(first.labels[0] == 1, expected.mask("cyst")[0])
    assert first.pixels.tolist() == [[14 * 18, int(expected.mask("tumour").sum())]]
    assert np.abs(first.images[0, :, :, 0] / 255 - expected.images[0]).max() < 0.005


def test_slices_with_and_without_structures_are_chosen_alike() -> None:
    labels = np.zeros((40, 8, 8), np.uint8)
    labels[10:20] = 1
    volume = AnnotatedCase("v", "v", np.zeros(labels.shape, np.float32), labels, {"liver": 1})
    chosen = training_slices(volume, 64)
    assert set(range(10, 20)) <= set(chosen) and len(chosen) == 20
    assert len(training_slices(volume, 6)) == 6


def test_a_case_with_too_little_to_see_is_refused_by_name(tmp_path: Path) -> None:
    speck = case("speck", {"tumour": 1})
    labels = np.zeros_like(speck.labels)
    labels[0, 3, 3:6] = 1
    builder = StoreBuilder(tmp_path, 64)
    with pytest.raises(ValueError, match="case speck: tumour cover fewer than 20 pixels"):
        builder.add(AnnotatedCase("speck", "speck", speck.images, labels, {"tumour": 1}))
    with pytest.raises(ValueError, match="no case was added"):
        builder.store()


def test_impossible_cases_are_refused() -> None:
    with pytest.raises(ValueError, match=r"case x: images of shape \(1, 4, 4\) and labels of shape \(1, 4, 5\)"):
        AnnotatedCase("x", "x", np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 5), np.uint8), {"a": 1})
    with pytest.raises(ValueError, match="values from 1 to 255"):
        AnnotatedCase("x", "x", np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4), np.uint8), {"a": 0})


def test_it_learns_the_structure_of_two_cases_in_all_modes(published: Checkpoint, tmp_path: Path) -> None:
    store = store_of(tmp_path, case("a", {"tumour": 1}), case("b", {"tumour": 1}, seed=1))
    tuner = finetuner(published, tmp_path, store, batch_size=2)
    records = take(tuner, 36)
    assert {"semantic", "in_context", "interactive"} <= {key for record in records for key in record}
    early, late = (np.nanmean([record["loss"] for record in part]) for part in (records[:6], records[-6:]))
    assert late < 0.8 * early
    assert tuner.registry.names == (*KNOWN, "tumour")


def test_the_published_network_is_not_touched(published: Checkpoint, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in published.model.state_dict().items()}
    tuner = finetuner(published, tmp_path)
    take(tuner, 2)
    assert all(torch.equal(before[name], value) for name, value in published.model.state_dict().items())
    statistics = [name for name in before if "running" in name]
    state = tuner.model.state_dict()
    assert statistics and all(torch.equal(before[name], state[name]) for name in statistics)


def test_all_weights_but_the_kinds_of_images_are_trained(published: Checkpoint, tmp_path: Path) -> None:
    tuner = finetuner(published, tmp_path, interactive=1.0, in_context=1.0)
    before = {name: value.clone() for name, value in tuner.model.named_parameters()}
    take(tuner, 6)
    same = {name for name, value in tuner.model.named_parameters() if torch.equal(value, before[name])}
    assert all(name.startswith("kind_head.") or name.endswith(".padding") for name in same), (
        same
    )  # padding has no gradient


def test_patients_of_a_fold_are_never_seen(published: Checkpoint, tmp_path: Path) -> None:
    cases = [case(f"c{seed}", {"tumour": 1}, seed=seed) for seed in range(4)]
    store = store_of(tmp_path, *cases)
    sampler = AnnotatedSampler(store, ClassRegistry(["tumour"]), seed=0, without=["c1", "c3"])
    drawn = {row for part in sampler._parts for row in part.rows}
    assert drawn == {0, 2}
    with pytest.raises(ValueError, match="no slice in"):
        AnnotatedSampler(store, ClassRegistry(["tumour"]), seed=0, without=["c0", "c1", "c2", "c3"])


def test_corrected_slices_are_drawn_more_often(tmp_path: Path) -> None:
    store = store_of(tmp_path, case("a", {"tumour": 1}, slices=4), case("b", {"tumour": 1}, seed=1, slices=4))
    plain, weighted = (
        AnnotatedSampler(store, ClassRegistry(["tumour"]), seed=0, weights=weights) for weights in ({}, {"a": {2: 3.0}})
    )
    assert np.allclose(plain._parts[0].chances, 1 / 8)
    assert np.allclose(weighted._parts[0].chances, [0.1, 0.1, 0.3, *[0.1] * 5])


def test_recorded_clicks_move_with_the_image(tmp_path: Path) -> None:
    one = case("c0", {"tumour": 1})
    rows, columns = np.nonzero(one.mask("tumour")[0])
    inside = ((rows.mean() + 0.5) / 64, (columns.mean() + 0.5) / 64, True)
    clicks = {"c0": {"tumour": {0: [inside, (0.75, 0.75, False)]}}}
    store, registry = store_of(tmp_path, one), ClassRegistry(["tumour"])
    still = AnnotatedSampler(store, registry, seed=0, clicks=clicks, augmentation=Augmentation.none())
    places = [still.batch(1, step=step, size=64) for step in range(4)]
    expected = torch.tensor([[rows.mean(), columns.mean()], [47.5, 47.5]], dtype=torch.float32)
    assert any(torch.allclose(batch.points[0, :2], expected, atol=0.6) for batch in places)  # some are windows
    moving = AnnotatedSampler(store, registry, seed=0, clicks=clicks)
    kept = 0
    for step in range(12):
        batch = moving.batch(2, step=step, size=64)
        for points, labels, mask in zip(batch.points, batch.point_labels, batch.masks, strict=True):
            assert labels[2:].tolist() == [-1, -1] and labels[0] in (1, -1) and labels[1] in (0, -1)
            if labels[0] == 1:
                row, column = points[0].round().long().tolist()
                assert mask[0, row, column] == 1
                kept += 1
    assert kept > 12


def test_recorded_clicks_are_replayed(published: Checkpoint, tmp_path: Path) -> None:
    cases = [case(f"c{seed}", {"tumour": 1}, seed=seed) for seed in range(2)]
    clicks = {one.name: {"tumour": {0: [(0.35, 0.35, True)]}} for one in cases}
    losses = []
    for recorded in (None, clicks):
        plan = FinetunePlan(minutes=1e9, batch_size=2, interactive=1.0, in_context=0.0)
        folder = tmp_path / str(recorded is None)
        tuner = Finetuner(published, store_of(folder, *cases), plan, folder / "run", clicks=recorded)
        losses.append(take(tuner, 1)[0]["loss"])
    assert losses[1] > losses[0]  # the loss of one task more


def test_a_batch_has_every_annotated_structure_and_references_of_other_patients(tmp_path: Path) -> None:
    cases = [case(f"c{seed}", {"tumour": 1, "cyst": 2}, seed=seed) for seed in range(3)]
    registry = ClassRegistry(["tumour", "cyst"])
    sampler = AnnotatedSampler(store_of(tmp_path, *cases), registry, seed=0, augmentation=Augmentation.none())
    batches = [sampler.batch(6, step=step, size=64) for step in range(8)]
    for batch in batches:
        assert batch.structure_masks.shape == (6, 2, 64, 64)
        focus = batch.structure_classes.tolist().index(int(batch.class_index[0]))
        assert torch.equal(batch.masks[:, 0], batch.structure_masks[:, focus])
        for image, [reference] in enumerate(batch.references.tolist()):
            assert reference == -1 or not torch.equal(batch.images[image], batch.images[reference])
    assert {int(batch.class_index[0]) for batch in batches} == {0, 1}
    pairs = [sampler.batch(2, step=step, size=64).references.flatten().tolist() for step in range(20)]
    assert pairs == [[1, 0]] * 20  # each is the reference of the other
    again = sampler.batch(6, step=3, size=64)
    assert torch.equal(again.images, batches[3].images) and torch.equal(again.masks, batches[3].masks)


def test_mixing_runs_from_the_old_weights_to_the_new_ones(published: Checkpoint, tmp_path: Path) -> None:
    tuner = finetuner(published, tmp_path)
    take(tuner, 2)
    networks = [(tuner.averaged(), tuner.registry), (published.model, published.registry)]
    half, registry = average_weights(networks, [0.5, 0.5])
    images = torch.rand(1, 3, 64, 64)
    prompts = Prompts((64, 64), torch.tensor([0, 0]), class_index=torch.tensor([0, 1]))
    with torch.no_grad():
        new, old, middle = (model(images, prompts).logits[-1] for model in (networks[0][0], published.model, half))
        whole = average_weights(networks, [1.0, 0.0])[0](images, prompts).logits[-1]
    assert torch.allclose(whole, new, atol=1e-5)
    assert not torch.allclose(middle, old, atol=1e-3) and not torch.allclose(middle, new, atol=1e-3)
    assert registry.names == tuner.registry.names
    assert torch.equal(half.decoder.class_content[2], networks[0][0].decoder.class_content[2])  # the new class


def test_a_new_class_starts_where_its_references_are(published: Checkpoint, tmp_path: Path) -> None:
    cases = [case(f"c{seed}", {"tumour": 1}, seed=seed) for seed in range(3)]
    store = store_of(tmp_path, *cases)
    predictor = Predictor(published.model, published.registry)
    references = predictor.embed_references([c.images[0] for c in cases], [c.mask("tumour")[0] for c in cases])
    content, position = class_from_references(published.model, references)
    assert content.shape == position.shape == published.model.decoder.class_content.shape[1:]
    tuner = Finetuner(published, store, FinetunePlan(), tmp_path / "run", class_references={"tumour": references})
    assert torch.allclose(tuner.model.decoder.class_content[2], content)
    assert torch.allclose(tuner.averaged().decoder.class_position[2], position)
    plain = Finetuner(published, store, FinetunePlan(), tmp_path / "plain")
    assert torch.allclose(plain.model.decoder.class_content[2], published.model.decoder.class_content.mean(0))
    decoder = published.model.decoder
    tokens = [decoder.reference_content[:3] + decoder.summary_to_content(s[0, :, :3]) for s in references.summaries]
    mean = torch.stack([token.mean(0) for token in tokens]).mean(0)  # of scales and references: three of the object
    assert torch.allclose(content, torch.stack([mean[:2].mean(0), mean[2]]), atol=1e-6)  # two queries share them out


def test_the_batch_shrinks_when_memory_runs_out(
    published: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = Finetuner._batch_loss

    def training_step(self: Finetuner, batch: Any, part: int) -> Any:
        sizes.append(len(batch.images))
        if len(batch.images) > 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return real(self, batch, part)

    monkeypatch.setattr(Finetuner, "_batch_loss", training_step)
    tuner = finetuner(published, tmp_path, batch_size=16)
    assert len(take(tuner, 1)) == 1
    assert sizes == [16, 8, *[4] * 4]
    assert (tuner.plan.batch_size, tuner.plan.accumulate) == (4, 4)


def test_other_errors_are_not_taken_for_lack_of_memory(
    published: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("the weights are on two devices")

    monkeypatch.setattr(Finetuner, "_batch_loss", fail)
    with pytest.raises(RuntimeError, match="two devices"):
        take(finetuner(published, tmp_path), 1)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))


def test_it_goes_on_where_it_was_killed(published: Checkpoint, tmp_path: Path) -> None:
    whole = finetuner(published, tmp_path / "whole")
    take(whole, 3)
    first = finetuner(published, tmp_path / "halves")
    take(first, 1)
    first.save()
    second = finetuner(published, tmp_path / "halves")
    assert second.step == 1
    take(second, 2)
    for name, value in whole.model.state_dict().items():
        assert torch.allclose(second.model.state_dict()[name], value, atol=1e-5), name


def test_the_next_training_goes_on_as_if_the_last_one_had_not_ended(published: Checkpoint, tmp_path: Path) -> None:
    whole = finetuner(published, tmp_path / "whole")
    take(whole, 4)
    first = finetuner(published, tmp_path / "first")
    take(first, 2)
    first.save()
    end = EndState.read(tmp_path / "first" / "run")
    start = replace(published, model=first.averaged(), registry=first.registry)
    store = store_of(tmp_path / "second", *(case(f"c{seed}", {"tumour": 1}, seed=seed) for seed in range(3)))
    plan = FinetunePlan(minutes=1e9, batch_size=4, learning_rate=3e-3)
    second = Finetuner(start, store, plan, tmp_path / "second" / "run", continued=end)
    assert second.step == 2 and second.share == 0
    take(second, 2)
    for name, value in whole.model.state_dict().items():
        assert torch.allclose(second.model.state_dict()[name], value, atol=1e-5), name
    for name, value in whole.average.state.items():
        assert torch.allclose(second.average.state[name], value, atol=1e-5), name


def test_a_new_structure_joins_a_training_that_goes_on(published: Checkpoint, tmp_path: Path) -> None:
    first = finetuner(published, tmp_path / "first")
    take(first, 2)
    first.save()
    end = EndState.read(tmp_path / "first" / "run")
    start = replace(published, model=first.averaged(), registry=first.registry)
    store = store_of(tmp_path, *(case(f"c{seed}", {"tumour": 1, "cyst": 2}, seed=seed) for seed in range(3)))
    plan = FinetunePlan(minutes=1e9, batch_size=4)
    second = Finetuner(start, store, plan, tmp_path / "run", continued=end)
    assert second.registry.names == (*KNOWN, "tumour", "cyst")
    content = first.model.decoder.class_content
    assert torch.equal(second.model.decoder.class_content[:3], content)
    assert torch.allclose(second.model.decoder.class_content[3], start.model.decoder.class_content.mean(0))
    take(second, 2)
    assert not torch.equal(second.model.decoder.class_content[:3], content)
    with pytest.raises(ValueError, match="the last training ended with the classes"):
        Finetuner(published, store_of(tmp_path / "other", case("c0", {"cyst": 1})), plan, tmp_path / "x", continued=end)
    with pytest.raises(ValueError, match="holds no whole state of a training"):
        EndState.read(tmp_path / "nothing")


def test_a_run_on_other_cases_is_not_resumed(published: Checkpoint, tmp_path: Path) -> None:
    store = store_of(tmp_path, *(case(f"c{seed}", {"tumour": 1}, seed=seed) for seed in range(2)))
    plan = FinetunePlan(minutes=1e9, batch_size=2)
    first = Finetuner(published, store, plan, tmp_path / "run", identity={"cases": ["c0", "c1"]})
    take(first, 1)
    first.save()
    with pytest.raises(ValueError, match=r"belongs to another run: its cases is \['c0', 'c1'\]"):
        Finetuner(published, store, plan, tmp_path / "run", identity={"cases": ["c0"]})


def test_a_budget_of_steps_goes_on_after_an_interruption(published: Checkpoint, tmp_path: Path) -> None:
    store = store_of(tmp_path, *(case(f"c{seed}", {"tumour": 1}, seed=seed) for seed in range(3)))
    tuner = finetuner(published, tmp_path, store, minutes=0.0, steps=6)
    take(tuner, 4)
    tuner.save()
    resumed = finetuner(published, tmp_path, store, minutes=0.0, steps=6)
    assert resumed.share == 4 / 6
    assert [record["step"] for record in resumed.steps()] == [4, 5] and resumed.share == 1
    going_on = Finetuner(
        published,
        store,
        FinetunePlan(minutes=0.0, steps=3, batch_size=4),
        tmp_path / "next",
        continued=EndState.read(tmp_path / "run"),
    )
    assert going_on.share == 0 and [record["step"] for record in going_on.steps()] == [6, 7, 8]
