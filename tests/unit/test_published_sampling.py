# SPDX-License-Identifier: Apache-2.0
"""What the published training draws: shares of sets, slices, classes, modes and references."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.published.training.recipe import PublishedRecipe
from kprism_model.published.training.sampling import Place, PublishedSampler, sampling_weights
from kprism_model.training.schedule import MODES
from tests.unit.published_runs import RECIPE, SIZE, slice_set

SETS = (
    slice_set("amos_mr", 3, 7, ("spleen", "liver", "aorta")),
    slice_set("busi_us", 6, 1, ("breast lesion",)),
    slice_set("amos_ct", 4, 5, ("liver", "spleen")),
)
WEIGHTS = {"amos_mr": 0.3, "busi_us": 0.2, "amos_ct": 0.05}


def sampler(
    recipe: PublishedRecipe = RECIPE,
    *,
    seed: int = 3,
    sets: tuple[SliceSet, ...] = SETS,
    weights: dict[str, float] | None = None,
) -> PublishedSampler:
    return PublishedSampler(SliceStore(Path("memory"), "training", SIZE, sets), recipe, weights or WEIGHTS, seed=seed)


def only(mode: str) -> PublishedRecipe:
    return replace(RECIPE, mode_shares=tuple(float(other == mode) for other in MODES))  # type: ignore[arg-type]


def drawn(mode: str, count: int) -> list[Place]:
    source = sampler(only(mode))
    return [source.place(step, number) for step in range(count // 8) for number in range(8)]


def fits(counts: list[int], shares: list[float]) -> bool:
    """Whether counts come from these shares, by a chi-square test."""
    total = sum(counts)
    return bool(chisquare(counts, [total * share for share in shares]).pvalue > 0.001)


def test_a_set_has_the_share_of_its_weight_times_its_slices() -> None:
    sizes = {"amos_mr": 21, "busi_us": 6, "amos_ct": 20}
    total = sum(WEIGHTS[name] * count for name, count in sizes.items())
    shares = {name: WEIGHTS[name] * count / total for name, count in sizes.items()}
    assert sampler().shares() == pytest.approx(shares)
    assert sampler().slices == 47
    found = Counter(place.set_number for place in drawn("semantic", 4000))
    assert fits([found[number] for number in range(3)], list(shares.values()))
    wrong = [share + change for share, change in zip(shares.values(), (0.05, -0.05, 0), strict=True)]
    assert not fits([found[number] for number in range(3)], wrong)


def test_slices_without_a_class_are_never_drawn_and_not_counted() -> None:
    empty = slice_set("amos_mr", 3, 7, ("spleen", "liver"))
    pixels = empty.pixels.copy()
    pixels[::2] = 0
    source = sampler(only("semantic"), sets=(replace(empty, pixels=pixels),))
    assert source.slices == 10
    rows = {source.place(step, 0).row for step in range(300)}
    assert rows == set(range(1, 21, 2))


def test_slices_and_their_classes_have_equal_chances() -> None:
    places = [place for place in drawn("interactive", 6000) if place.set_number == 0]
    rows = Counter(place.row for place in places)
    assert fits([rows[row] for row in range(21)], [1 / 21] * 21)
    deep = [place.column for place in places if place.row % 7 >= 2]  # these slices show all three
    assert fits([deep.count(column) for column in range(3)], [1 / 3] * 3)
    assert {place.column for place in places if place.row % 7 == 0} == {0}
    assert {place.column for place in places if place.row % 7 == 1} == {0, 1}


def test_modes_have_their_shares_and_a_step_has_one() -> None:
    source = sampler()
    modes = Counter(source.mode(step) for step in range(3000))
    assert fits([modes[mode] for mode in MODES], [0.3, 0.4, 0.3])
    for step in range(20):
        references = [source.place(step, number).reference is not None for number in range(4)]
        assert references == [source.mode(step) == "in_context"] * 4


@pytest.mark.parametrize("mode", ["semantic", "interactive"])
def test_other_modes_have_no_reference(mode: str) -> None:
    assert all(place.reference is None for place in drawn(mode, 80))


def test_a_reference_is_of_another_patient_and_shows_the_class() -> None:
    for place in drawn("in_context", 2000):
        images = SETS[place.set_number]
        assert place.reference is not None
        row, draw = place.reference
        assert images.case[row] != images.case[place.row]
        assert images.pixels[row, place.column] > 0 and images.pixels[place.row, place.column] > 0
        assert draw != place.draw


def test_the_eyes_of_one_person_are_no_references_for_each_other() -> None:
    pairs = replace(slice_set("busi_us", 6, 1, ("breast lesion",)), patients=("a", "b", "a", "c", "b", "b"))
    source = sampler(only("in_context"), sets=(pairs,), weights={"busi_us": 1.0})
    found: dict[int, set[int]] = {}
    for step in range(300):
        place = source.place(step, 0)
        assert place.reference is not None
        found.setdefault(place.row, set()).add(place.reference[0])
    assert found == {0: {1, 3, 4, 5}, 1: {0, 2, 3}, 2: {1, 3, 4, 5}, 3: {0, 1, 2, 4, 5}, 4: {0, 2, 3}, 5: {0, 2, 3}}


def test_a_class_of_a_single_patient_is_not_drawn_in_context() -> None:
    images = slice_set("amos_mr", 3, 7, ("spleen", "liver"))
    pixels = images.pixels.copy()
    pixels[7:, 1] = 0  # only the first patient shows a liver
    source = sampler(only("in_context"), sets=(replace(images, pixels=pixels),), weights={"amos_mr": 1.0})
    assert {source.place(step, 0).column for step in range(200)} == {0}
    pixels[7:] = 0
    with pytest.raises(ValueError, match="no class that two patients show"):
        sampler(only("in_context"), sets=(replace(images, pixels=pixels),), weights={"amos_mr": 1.0})
    assert sampler(only("semantic"), sets=(replace(images, pixels=pixels),), weights={"amos_mr": 1.0}).slices == 7


def test_a_reference_lies_as_deep_as_the_image() -> None:
    """Cases of 21 slices, the second one thrice as far apart: slice 10 of one is as deep as slice 30 of the other."""
    images = slice_set("amos_mr", 2, 21, ("spleen",))
    number = images.number.copy()
    number[21:] *= 3
    source = sampler(only("in_context"), sets=(replace(images, number=number),), weights={"amos_mr": 1.0})
    found: dict[int, set[int]] = {}
    for step in range(1500):
        place = source.place(step, 0)
        assert place.reference is not None
        found.setdefault(place.row, set()).add(place.reference[0])
    assert found[10] == {31}  # only that one is at most two slices away
    assert found[21 + 10] == {8, 9, 10, 11, 12}
    assert found[0] == {21} and found[21] == {0, 1, 2}


def test_where_none_is_as_deep_any_slice_with_the_class_is_a_reference() -> None:
    images = slice_set("amos_mr", 2, 21, ("spleen", "liver"))
    pixels = images.pixels.copy()
    pixels[:, 1] = 0
    pixels[[2, 21 + 15, 21 + 18], 1] = 30
    source = sampler(only("in_context"), sets=(replace(images, pixels=pixels),), weights={"amos_mr": 1.0})
    places = [place for step in range(800) if (place := source.place(step, 0)).column == 1]
    assert {place.reference[0] for place in places if place.row == 2 and place.reference} == {36, 39}
    assert {place.reference[0] for place in places if place.row > 21 and place.reference} == {2}


def test_a_place_depends_on_seed_and_step_alone() -> None:
    first, second, other = sampler(), sampler(), sampler(seed=4)
    places = [first.place(step, number) for step in (7, 0, 3) for number in (3, 0)]
    assert places == [second.place(step, number) for step in (7, 0, 3) for number in (3, 0)]
    assert places != [other.place(step, number) for step in (7, 0, 3) for number in (3, 0)]
    assert len({first.place(step, number).draw.noise_seed for step in range(30) for number in range(4)}) == 120


@pytest.mark.parametrize(("processes", "parts"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 4)])
def test_the_images_of_a_step_do_not_depend_on_who_makes_them(processes: int, parts: int) -> None:
    """Pixel by pixel after augmentation, in each mode."""
    source, device = sampler(), torch.device("cpu")
    steps = [next(step for step in range(100) if source.mode(step) == mode) for mode in MODES]
    for step in steps:
        whole = source.batch(step, range(4)).augmented(device)
        images = 4 // processes // parts
        made = [source.batch(step, range(first, first + images)).augmented(device) for first in range(0, 4, images)]
        for name in ("images", "masks"):
            own = torch.cat([getattr(part, name)[:images] for part in made])
            references = torch.cat([getattr(part, name)[images:] for part in made])
            assert torch.equal(torch.cat([own, references]), getattr(whole, name))
        assert torch.equal(torch.cat([part.class_index for part in made]), whole.class_index)


def test_a_batch_holds_what_its_places_say() -> None:
    source = sampler(only("in_context"))
    raw = source.batch(5, range(4))
    assert raw.images.shape == (8, 3, SIZE, SIZE) and raw.masks.shape == (8, 1, SIZE, SIZE)
    for number in range(4):
        place = source.place(5, number)
        assert place.reference is not None
        images = SETS[place.set_number]
        value = list(images.classes)[place.column]
        for position, row in ((number, place.row), (4 + number, place.reference[0])):
            assert np.array_equal(raw.images[position, 1].numpy(), images.images[row, :, :, 0])
            assert np.array_equal(raw.masks[position, 0].numpy(), images.labels[row] == value)
        assert source.registry.names[int(raw.class_index[number])] == images.classes[value]


def test_sets_share_the_row_of_a_structure_that_both_show() -> None:
    source = sampler(only("semantic"))
    assert source.registry.names == ("spleen", "liver", "aorta", "breast lesion")
    places = [source.place(step, 0) for step in range(300)]
    rows = [int(source.batch(step, [0]).class_index[0]) for step in range(300)]
    names = {
        (place.set_number, place.column): source.registry.names[row] for place, row in zip(places, rows, strict=True)
    }
    assert names[2, 0] == names[0, 1] == "liver" and names[2, 1] == names[0, 0] == "spleen"


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("acdc_mr", {}, r"data set acdc_mr is only measured \(external\): leave it out.*--weight acdc_mr=W"),
        ("brats_mr", {}, r"data set brats_mr is only measured \(unseen\)"),
        ("own_ct", {}, "data set own_ct is not a set of the published experiment"),
        ("amos_mr", {"amos_ct": 1.0}, "--weight names amos_ct, but the data sets are amos_mr"),
        ("amos_mr", {"amos_mr": 0.0}, "--weight amos_mr=0.0: expected a number above 0"),
        ("amos_mr", {"amos_mr": float("nan")}, "--weight amos_mr=nan: expected a number above 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(name: str, given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampling_weights([name], given)


def test_weights_are_the_published_ones_or_those_given() -> None:
    given = {"own_ct": 0.7, "amos_ct": 0.5}
    names = ["amos_mr", "busi_us", "amos_ct", "own_ct"]
    assert sampling_weights(names, given) == {"amos_mr": 0.3, "busi_us": 0.2, "amos_ct": 0.5, "own_ct": 0.7}


def test_slices_of_another_size_and_slices_without_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="holds slices of 64 pixels, the training needs 96"):
        sampler(replace(RECIPE, size=96))
    images = slice_set("amos_mr", 2, 2, ("a",))
    with pytest.raises(ValueError, match="no slice in memory shows a class"):
        sampler(sets=(replace(images, pixels=0 * images.pixels),), weights={"amos_mr": 1.0})
