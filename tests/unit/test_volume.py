# SPDX-License-Identifier: Apache-2.0
"""Requests about volumes, on a small network with random weights: geometry, statelessness, reuse, refusals."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Semaphore

import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff

from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor, merge_classes
from kprism_model.store import ByteStore
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.predictor import (
    PropagationRules,
    StructurePrompts,
    Volume,
    VolumePrediction,
    VolumePredictor,
    VoxelClick,
)
from kprism_model.volumes.slice_features import SliceFeatures, SliceQuery
from kprism_model.window import Window

NAMES = ("a", "b", "c", "d")
SHAPE = (20, 26, 9)  # x, y, z
SPACING = (1.0, 1.2, 3.0)
AFFINE = np.diag([*SPACING, 1.0])
ALL_48 = [
    np.array(list(zip(axes, flips, strict=True)), dtype=float)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
FOLLOW_ALL = PropagationRules(presence=0)
"""Random weights are sure of nothing; with these rules they follow all the same."""


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny(native_size=32)), ClassRegistry(NAMES))


def body() -> np.ndarray:
    """A bright ellipsoid in noise."""
    x, y, z = np.meshgrid(*(np.arange(side) for side in SHAPE), indexing="ij")
    inside = ((x - 9) / 6) ** 2 + ((y - 14) / 7) ** 2 + ((z - 4) / 3) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 5, SHAPE)
    return (100 * inside + 50 + noise).astype(np.float32)


def ready(predictor: Predictor, **options: object) -> VolumePredictor:
    volume = VolumePredictor(predictor, rules=FOLLOW_ALL, **options)
    volume.set_volume(body(), AFFINE)
    return volume


def inside(*voxels: tuple[int, int, int]) -> StructurePrompts:
    return StructurePrompts([VoxelClick(voxel, True) for voxel in voxels])


def same(one: VolumePrediction, other: VolumePrediction) -> bool:
    return one.masks.keys() == other.masks.keys() and all(
        np.array_equal(one.masks[name].mask, other.masks[name].mask)
        and one.masks[name].confidence == other.masks[name].confidence
        for name in one.masks
    )


def test_all_48_storage_orders_give_one_answer_that_holds_the_click(predictor: Predictor) -> None:
    made = [((9, 14, 4), True), ((1, 2, 4), False), ((11, 12, 6), True)]
    index = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    store = ByteStore(64 << 20)
    expected = None
    for change in ALL_48:
        stored, moved = apply_orientation(body(), change), apply_orientation(index, change)
        volume = VolumePredictor(predictor, store=store, version="1", rules=FOLLOW_ALL)
        volume.set_volume(stored, AFFINE @ inv_ornt_aff(change, SHAPE))
        assert volume.volume.orientation.spacing == pytest.approx((3.0, 1.2, 1.0))
        clicks = [VoxelClick(tuple(np.argwhere(moved == index[voxel])[0].tolist()), sign) for voxel, sign in made]
        answer = volume.segment({"lump": StructurePrompts(clicks)})
        mask = answer.masks["lump"].mask
        assert mask.shape == stored.shape
        assert [bool(mask[click.voxel]) for click in clicks] == [sign for _, sign in made]
        canonical = np.zeros(SHAPE, bool)
        canonical.reshape(-1)[moved[mask]] = True
        if expected is None:
            expected = canonical
            assert answer.encoded_slices == SHAPE[2]
        else:  # the slices are the same to the bit, so that nothing is computed again
            assert answer.encoded_slices == answer.decoded_rows == 0
            np.testing.assert_array_equal(canonical, expected)
    assert expected is not None and expected[:, :, 5].any()


def test_taking_back_clicks_gives_the_former_masks_in_any_order_of_requests(predictor: Predictor) -> None:
    clicks = [
        VoxelClick((9, 14, 4), True),
        VoxelClick((12, 14, 4), True),
        VoxelClick((9, 13, 7), True),
        VoxelClick((5, 8, 2), False),
        VoxelClick((8, 12, 4), False),
    ]
    requests = [{"lump": StructurePrompts(clicks[:count])} for count in range(1, len(clicks) + 1)]
    fresh = [ready(predictor).segment(request) for request in requests]
    assert not any(same(one, other) for one, other in itertools.combinations(fresh, 2))
    for order in ([4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 3, 2], [2, 0, 4, 1, 3]):
        volume = ready(predictor)
        for number in order:
            assert same(volume.segment(requests[number]), fresh[number])


def test_a_store_that_forgets_everything_changes_no_answer(predictor: Predictor) -> None:
    request = {"lump": inside((9, 14, 4), (9, 13, 7)), "other": inside((3, 5, 2))}
    forgetful = ready(predictor, store=ByteStore(0), version="1")
    assert same(forgetful.segment(request), ready(predictor).segment(request))


def test_a_request_computes_only_what_is_new(predictor: Predictor) -> None:
    volume = ready(predictor)
    first = volume.segment({"lump": inside((9, 14, 2), (9, 14, 6))})
    assert first.encoded_slices == SHAPE[2]
    again = volume.segment({"lump": inside((9, 14, 2), (9, 14, 6))})
    assert (again.encoded_slices, again.decoded_rows) == (0, 0)
    # Slice 8 is refined; slice 7, now between it and slice 6, is predicted again.
    corrected = volume.segment({"lump": inside((9, 14, 2), (9, 14, 6), (9, 14, 8))})
    assert (corrected.encoded_slices, corrected.decoded_rows) == (0, 2)
    before, after = first.masks["lump"].mask, corrected.masks["lump"].mask
    np.testing.assert_array_equal(before[:, :, :7], after[:, :, :7])


def test_a_correction_starts_from_the_mask_that_was_shown(predictor: Predictor) -> None:
    volume = ready(predictor)
    shown = volume.segment({"lump": inside((9, 14, 4))}).masks["lump"].on(6)
    corrected = volume.segment({"lump": inside((9, 14, 4), (9, 14, 6))}).masks["lump"].on(6)
    alone = volume.segment({"lump": StructurePrompts([VoxelClick((9, 14, 6), True)])}, extent="slice").masks["lump"]
    mask = np.zeros(SHAPE, bool)
    mask[:, :, 6] = volume.volume.orientation.to_volume(np.broadcast_to(shown, (SHAPE[2], *shown.shape)))[:, :, 6]
    started = volume.segment(
        {"lump": StructurePrompts([VoxelClick((9, 14, 6), True)], previous_mask=mask)}, extent="slice"
    )
    assert not np.array_equal(corrected, alone.on(6))
    assert np.abs(corrected.astype(int) - started.masks["lump"].on(6).astype(int)).mean() < 0.2


def test_a_given_mask_reaches_the_network_as_a_mask_and_later_ones_as_probabilities(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    correct = SliceFeatures.correct

    def recording(features: SliceFeatures, query: SliceQuery, before: Patch | None) -> Patch:
        seen.append(None if before is None else before.crop(Window.whole(features.size)))
        return correct(features, query, before)

    monkeypatch.setattr(SliceFeatures, "correct", recording)
    before = np.zeros(SHAPE, bool)
    before[6:12, 10:18, 4] = True
    clicks = [VoxelClick((9, 14, 4), True), VoxelClick((2, 2, 4), False)]
    ready(predictor).segment({"lump": StructurePrompts(clicks, previous_mask=before)}, extent="slice")
    assert [mask.dtype for mask in seen] == [bool, np.float32] and seen[0].sum() == 48


def test_a_range_is_a_part_of_the_whole_and_the_rest_stays(predictor: Predictor) -> None:
    volume = ready(predictor)
    before = np.zeros(SHAPE, bool)
    before[2:5, 2:5, :4] = True
    prompts = StructurePrompts([VoxelClick((9, 14, 4), True)], previous_mask=before)
    whole = volume.segment({"lump": prompts}).masks["lump"]
    part = volume.segment({"lump": prompts}, extent=(3, 6)).masks["lump"]
    only = volume.segment({"lump": prompts}, extent="slice").masks["lump"]
    assert whole.changed == tuple(range(9)) and part.changed == (3, 4, 5, 6) and only.changed == (4,)
    for mask in (part, only):
        for number in range(9):
            expected = whole.on(number) if number in mask.changed else before.transpose(2, 1, 0)[:, ::-1, ::-1][number]
            np.testing.assert_array_equal(mask.on(number), expected)


def test_given_slices_stay_and_an_emptied_slice_ends_the_structure(predictor: Predictor) -> None:
    volume = ready(predictor)
    given = np.zeros(SHAPE, bool)
    given[6:12, 10:18, 3] = True
    end = VoxelClick((9, 14, 5), False)
    answer = volume.segment({"lump": StructurePrompts(initial_mask=given)}).masks["lump"]
    np.testing.assert_array_equal(answer.mask[:, :, 3], given[:, :, 3])
    assert answer.prompted == (3,) and answer.mask[:, :, 2].any() and answer.mask[:, :, 6].any()
    # Before the click slice 5 shows a mask, which the click corrects; a slice without a mask is emptied for good.
    only_end = volume.segment({"lump": StructurePrompts([end])}).masks["lump"]
    assert not only_end.mask.any() and only_end.prompted == (5,)


def test_a_structure_ends_where_the_network_does_not_find_it(predictor: Predictor) -> None:
    volume = VolumePredictor(predictor, rules=PropagationRules(presence=1.0))
    volume.set_volume(body(), AFFINE)
    answer = volume.segment({"lump": inside((9, 14, 2), (9, 14, 4))}).masks["lump"]
    assert set(answer.confidence) == {2, 3, 4}  # but not between two slices that show it
    assert answer.changed == tuple(range(SHAPE[2]))
    assert not answer.mask[:, :, :2].any() and not answer.mask[:, :, 5:].any()


def test_drawn_pixels_are_as_drawn_whatever_the_network_finds(predictor: Predictor) -> None:
    scribbles = np.zeros(SHAPE, np.int8)
    scribbles[6:12, 14, 4], scribbles[8:14, 16, 4] = 1, -1
    mask = ready(predictor).segment({"lump": StructurePrompts(scribbles=scribbles)}, extent="slice").masks["lump"].mask
    assert mask[scribbles == 1].all() and not mask[scribbles == -1].any()
    click = VoxelClick((9, 16, 4), True)
    prompts = StructurePrompts([click], scribbles=scribbles)
    assert ready(predictor).segment({"lump": prompts}, extent="slice").masks["lump"].mask[click.voxel]


class Queue:
    """A lock that counts who has come to it."""

    def __init__(self) -> None:
        self.lock, self.arrived = Lock(), Semaphore(0)

    def __enter__(self) -> None:
        self.arrived.release()
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def test_two_requests_for_a_slice_at_once_encode_it_once(predictor: Predictor) -> None:
    queue, store = Queue(), ByteStore(1 << 28)
    volumes = [ready(predictor, store=store, version="v", lock=queue) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        with queue.lock:  # both find the slice missing, and wait for the device
            answers = [pool.submit(volume.segment, {"a": inside((9, 14, 4))}, extent="slice") for volume in volumes]
            assert all(queue.arrived.acquire(timeout=60) for _ in volumes)
        assert same(*(answer.result() for answer in answers))
    assert sum(volume.encoded_slices for volume in volumes) == 1


def test_scribbles_on_a_slice_are_followed(predictor: Predictor) -> None:
    scribbles = np.zeros(SHAPE, np.int8)
    scribbles[6:12, 14, 4], scribbles[2, 3:9, 4] = 1, -1
    answer = ready(predictor).segment({"lump": StructurePrompts(scribbles=scribbles)}).masks["lump"]
    assert answer.prompted == (4,) and answer.mask[:, :, 4].any() and answer.mask[:, :, 3].any()


def test_every_structure_is_what_it_is_alone_except_where_they_overlap(predictor: Predictor) -> None:
    volume = ready(predictor)
    requests = {"one": inside((9, 14, 4)), "two": inside((10, 13, 4), (11, 12, 6))}
    both = volume.segment(requests).masks
    assert not (both["one"].mask & both["two"].mask).any()
    for name, prompts in requests.items():
        alone = volume.segment({name: prompts}).masks[name].mask
        assert not (both[name].mask & ~alone).any()
        other = both["two" if name == "one" else "one"].mask
        np.testing.assert_array_equal(both[name].mask | other, alone | other)
    labels = volume.segment(requests).index_map(["two", "unused", "one"])
    assert np.array_equal(labels == 1, both["two"].mask) and np.array_equal(labels == 3, both["one"].mask)


def test_classes_of_all_slices_are_found_in_one_pass_over_the_encoder(predictor: Predictor) -> None:
    volume = ready(predictor)
    labels = volume.predict_classes(NAMES, minimum_presence=0.3)
    assert volume.encoded_slices == SHAPE[2] and volume.decoded_rows == SHAPE[2] * len(NAMES)
    slices = volume.volume.orientation.to_slices(labels)
    for number, embedding in enumerate(volume.embed(range(SHAPE[2]))):
        found = predictor.predict_classes(NAMES, embeddings=[embedding], minimum_presence=0.3)[0]
        merged = merge_classes(found, NAMES, presence_threshold=0.3)
        assert (merged != slices[number]).mean() < 0.001
    part = volume.volume.orientation.to_slices(volume.predict_classes(NAMES, minimum_presence=0.3, slices=(2, 5)))
    np.testing.assert_array_equal(part[2:6], slices[2:6])
    assert not part[:2].any() and not part[6:].any()


def test_references_segment_whole_volumes(predictor: Predictor) -> None:
    volume = ready(predictor)
    picture, mask = volume.volume.images[4], np.zeros((26, 20), bool)
    mask[8:16, 6:14] = True
    shown = predictor.embed_references([picture], [mask])
    labels = volume.predict_references({"lump": shown}, minimum_presence=0.0)
    [embedding] = volume.embed([4])
    alone = predictor.predict(references=shown, embedding=embedding).mask
    assert (volume.volume.orientation.to_slices(labels)[4] != alone).mean() < 0.001
    assert not volume.predict_references({"lump": shown}, minimum_presence=1.0).any()


def test_classes_and_references_are_segmented_together(predictor: Predictor) -> None:
    volume = ready(predictor)
    mask = np.zeros((26, 20), bool)
    mask[8:16, 6:14] = True
    shown = predictor.embed_references([volume.volume.images[4]], [mask])
    names = ["a", "lump"]
    labels = volume.predict_classes(names, references={"lump": shown}, minimum_presence=0.0)
    slices = volume.volume.orientation.to_slices(labels)
    for number, embedding in enumerate(volume.embed(range(SHAPE[2]))):
        found = {
            "a": predictor.predict(class_name="a", embedding=embedding),
            "lump": predictor.predict(references=shown, embedding=embedding),
        }
        assert (merge_classes(found, names, presence_threshold=0.0) != slices[number]).mean() < 0.001
    assert {*np.unique(labels)} >= {1, 2}


def test_cleaning_keeps_the_clicked_part(predictor: Predictor) -> None:
    volume = ready(predictor)
    request = {"lump": inside((9, 14, 4))}
    raw = volume.segment(request).masks["lump"].mask
    clean = volume.segment(request, largest=["lump"]).masks["lump"].mask
    assert clean[9, 14, 4] and not (clean & ~raw).any()
    filled = volume.segment(request, fill=["lump"]).masks["lump"].mask
    assert not (raw & ~filled).any()


def test_a_shared_store_serves_two_predictors_but_not_two_versions(predictor: Predictor) -> None:
    store, request = ByteStore(64 << 20), {"lump": inside((9, 14, 4))}
    first = ready(predictor, store=store, version="1").segment(request)
    second = ready(predictor, store=store, version="1").segment(request)
    other = ready(predictor, store=store, version="2").segment(request)
    assert same(first, second) and same(first, other)
    assert (first.encoded_slices, second.encoded_slices, other.encoded_slices) == (SHAPE[2], 0, SHAPE[2])
    with pytest.raises(ValueError, match="needs the version of the weights"):
        VolumePredictor(predictor, store=store)


def test_the_lock_is_free_between_passes_and_a_request_can_be_stopped(predictor: Predictor) -> None:
    lock = Lock()
    counted: list[int] = []

    def progress(slices: int) -> None:
        assert not lock.locked()
        counted.append(slices)
        if sum(counted) > 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        ready(predictor, lock=lock).segment({"lump": inside((9, 14, 4))}, progress=progress)
    assert not lock.locked() and sum(counted) == 4


@pytest.mark.parametrize("shape", [(20, 26, 1), (1, 20, 26), (20, 1, 26)])
def test_volumes_of_one_slice(predictor: Predictor, shape: tuple[int, int, int]) -> None:
    volume = VolumePredictor(predictor, rules=FOLLOW_ALL)
    volume.set_volume(np.random.default_rng(0).random(shape, dtype=np.float32), np.eye(4))
    voxel = tuple(side // 2 for side in shape)
    answer = volume.segment({"lump": inside(voxel)}).masks["lump"]
    assert len(volume.volume) == 1 and sorted(volume.volume.size) == [20, 26]
    assert answer.mask.shape == shape and answer.mask[voxel]


def test_colour_volumes(predictor: Predictor) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (20, 26, 9, 3), dtype=np.uint8)
    volume = Volume.of(colours, AFFINE)
    np.testing.assert_array_equal(volume.images, colours.transpose(2, 1, 0, 3)[:, ::-1, ::-1] / np.float32(255))
    stored = np.zeros((20, 26, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for channel, name in enumerate("RGB"):
        stored[name] = colours[..., channel]
    np.testing.assert_array_equal(Volume.of(stored, AFFINE).images, volume.images)
    predictor_of_colours = VolumePredictor(predictor, rules=FOLLOW_ALL)
    predictor_of_colours.use_volume(volume)
    assert predictor_of_colours.segment({"lump": inside((9, 14, 4))}).masks["lump"].mask[9, 14, 4]


def test_bad_volumes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fourth axis of 8: a time series"):
        Volume.of(np.zeros((4, 5, 6, 8)), np.eye(4))
    with pytest.raises(ValueError, match=r"three axes, got shape \(4, 5\)"):
        Volume.of(np.zeros((4, 5)), np.eye(4))
    with pytest.raises(ValueError, match="spacing along k is 0 mm"):
        Volume.of(np.zeros((4, 5, 6)), np.diag([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="spacing along j is nan mm"):
        Volume.of(np.zeros((4, 5, 6)), np.diag([1.0, np.nan, 1.0, 1.0]))
    with pytest.raises(ValueError, match="the plane is 'oblique'"):
        Volume.of(np.zeros((4, 5, 6)), np.eye(4), plane="oblique")


def test_bad_requests_are_refused(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="no volume is set"):
        VolumePredictor(predictor).segment({"lump": inside((0, 0, 0))})
    volume = ready(predictor)
    with pytest.raises(ValueError, match=r"'lump' is at \(9, 14, 9\), outside the volume of shape \(20, 26, 9\)"):
        volume.segment({"lump": inside((9, 14, 9))})
    with pytest.raises(ValueError, match="'lump' has no prompts"):
        volume.segment({"lump": StructurePrompts()})
    with pytest.raises(ValueError, match="clicked both as 'one' and as 'two'"):
        volume.segment({"one": inside((9, 14, 4)), "two": inside((9, 14, 4))})
    with pytest.raises(ValueError, match=r"slices are \(3, 9\); expected .* within 0 to 8"):
        volume.segment({"lump": inside((9, 14, 4))}, extent=(3, 9))
    with pytest.raises(
        ValueError, match=r"previous_mask of 'lump' has shape \(9, 26, 20\), but the volume has shape \(20, 26, 9\)"
    ):
        volume.segment({"lump": StructurePrompts([VoxelClick((1, 1, 1), True)], previous_mask=np.ones((9, 26, 20)))})
    with pytest.raises(ValueError, match="'kidney' is in `largest` or `fill` but is not segmented"):
        volume.segment({"lump": inside((9, 14, 4))}, largest=["kidney"])
    with pytest.raises(ValueError, match="'lump' has 257 clicks on slice 4"):
        volume.segment({"lump": inside(*[(9, 14, 4)] * 257)})
