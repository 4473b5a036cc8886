# SPDX-License-Identifier: Apache-2.0
"""Answers in windows: what is asked, what is written, and that nothing depends on what was asked before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kprism_model.checkpoint import load_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.metrics import dice
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.orientation import SliceOrientation
from kprism_model.predictor import Click, ImageEmbedding, Prediction, Predictor
from kprism_model.queries import Query
from kprism_model.store import ByteStore
from kprism_model.volumes.predictor import StructurePrompts, Volume, VolumePredictor, VoxelClick
from kprism_model.window import Window
from kprism_model.windowed import crop_query, paste_prediction, predict_batch_in_windows, predict_in_windows

SIZE = (160, 120)
NATIVE = 64


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny(native_size=NATIVE)), ClassRegistry(["a", "b", "c", "d"]))


def picture() -> np.ndarray:
    return np.random.default_rng(0).random(SIZE, dtype=np.float32)


def disc(row: int, column: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def prediction(mask: np.ndarray) -> Prediction:
    return Prediction(mask, np.where(mask, 0.9, 0.2).astype(np.float32), 1.0)


def seeing(mask: np.ndarray, asked: list[Window], embedding: ImageEmbedding) -> tuple[Callable, Callable]:
    """A network that finds `mask` in any window of the image, and a list of the windows that it was asked about."""

    def embed(_: int, window: Window) -> ImageEmbedding:
        asked.append(window)
        return embedding

    def answer(queries: Sequence[Query]) -> list[Prediction]:
        return [prediction(window.crop(mask)) for _, window in zip(queries, asked[-len(queries) :], strict=True)]

    return embed, answer


def test_a_window_is_widened_until_the_structure_fits(predictor: Predictor) -> None:
    embedding, asked = predictor.embed([picture()])[0], list[Window]()
    grown = disc(60, 60, 24)
    query = Query(embedding, clicks=(Click(60, 60, True),), previous_mask=disc(60, 60, 5).astype(np.float32))
    [answer] = predict_in_windows([query], [SIZE], NATIVE, *seeing(grown, asked, embedding), paste_prediction)
    assert len(asked) > 1 and not asked[-1].is_whole
    assert [window.longest for window in asked] == sorted({window.longest for window in asked})
    assert np.array_equal(answer.mask, grown)
    everything, asked = np.ones(SIZE, bool), []
    [answer] = predict_in_windows([query], [SIZE], NATIVE, *seeing(everything, asked, embedding), paste_prediction)
    assert asked[-1].is_whole and answer.mask.all()
    assert [window.longest for window in asked] == sorted({window.longest for window in asked})


def test_a_structure_at_the_border_of_the_image_needs_no_wider_window(predictor: Predictor) -> None:
    embedding, asked = predictor.embed([picture()])[0], list[Window]()
    corner = disc(0, 119, 12)
    query = Query(embedding, clicks=(Click(2, 117, True),), previous_mask=disc(0, 119, 9).astype(np.float32))
    [answer] = predict_in_windows([query], [SIZE], NATIVE, *seeing(corner, asked, embedding), paste_prediction)
    assert len(asked) == 1 and not asked[0].is_whole
    assert np.array_equal(answer.mask, corner)


def test_only_the_connected_part_at_the_newest_click_is_written() -> None:
    window = Window(20, 10, 100, 100, SIZE)
    before, apart, outside = disc(60, 60, 10), disc(90, 90, 5), disc(140, 60, 4)
    previous = np.where(before | outside, 0.8, 0.1).astype(np.float32)
    grown = disc(60, 64, 12)
    clicks = (Click(60, 60, True), Click(60, 74, True))
    query = Query(None, clicks=clicks, previous_mask=previous)  # type: ignore[arg-type]  # no image is looked at here
    answer = paste_prediction(query, window, prediction(window.crop(grown | apart)))
    added = grown & ~before
    assert (answer.mask[added]).all()
    assert not answer.mask[apart].any() and np.allclose(answer.probability[apart], 0.1)
    assert answer.mask[outside].all() and np.allclose(answer.probability[outside], 0.8)
    assert np.array_equal(answer.mask, answer.probability >= 0.5)
    there = Query(None, clicks=(*clicks, Click(90, 90, True)), previous_mask=previous)  # type: ignore[arg-type]
    both = paste_prediction(there, window, prediction(window.crop(grown | apart)))
    assert both.mask[apart].all() and both.mask[60, 74]  # the older click is not obeyed by the previous mask either


def test_a_click_on_what_is_in_the_mask_already_changes_the_structure_around_it() -> None:
    window = Window(20, 10, 100, 100, SIZE)
    before, grown, apart = disc(60, 60, 10), disc(60, 60, 20), disc(100, 90, 6)
    for prompts in ({"clicks": (Click(60, 60, True),)}, {"scribbles": disc(60, 60, 3).astype(np.int8)}):
        query = Query(None, previous_mask=before.astype(np.float32), **prompts)  # type: ignore[arg-type]
        answer = paste_prediction(query, window, prediction(window.crop(grown | apart)))
        assert np.array_equal(answer.mask, grown)


def test_a_change_at_a_stroke_is_written_and_others_are_not() -> None:
    window = Window(20, 10, 100, 100, SIZE)
    spurious, kept = disc(40, 40, 8), disc(90, 80, 10)
    strokes = np.zeros(SIZE, np.int8)
    strokes[40, 36:44] = -1
    query = Query(None, scribbles=strokes, previous_mask=(spurious | kept).astype(np.float32))  # type: ignore[arg-type]
    answer = paste_prediction(query, window, prediction(np.zeros((100, 100), bool)))
    assert np.array_equal(answer.mask, kept)


def test_a_whole_image_is_answered_as_it_is() -> None:
    query = Query(None, clicks=(Click(60, 60, True),), previous_mask=disc(60, 60, 10))  # type: ignore[arg-type]
    answer = prediction(disc(100, 100, 10))
    assert paste_prediction(query, Window.whole(SIZE), answer) is answer


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_is_written_is_the_previous_mask_or_the_answer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    previous = rng.random(SIZE, dtype=np.float32)
    window = Window(16, 24, 64, 80, SIZE)
    found = rng.random((64, 80), dtype=np.float32)
    click = Click(float(rng.integers(16, 80)), float(rng.integers(24, 104)), bool(rng.integers(2)))
    query = Query(None, clicks=(click,), previous_mask=previous)  # type: ignore[arg-type]
    answer = paste_prediction(query, window, Prediction(found >= 0.5, found, 1.0))
    pasted = window.paste(found, previous)
    assert np.all((answer.probability == previous) | (answer.probability == pasted))
    assert answer.mask[int(click.row), int(click.column)] == (pasted[int(click.row), int(click.column)] >= 0.5)


def test_a_question_in_a_window_is_the_question_about_the_crop(predictor: Predictor) -> None:
    image, mask = picture(), disc(60, 60, 10)
    shown = predictor.embed_references([image], [mask])
    strokes = np.zeros(SIZE, np.int8)
    strokes[55:65, 60], strokes[80, 50:60] = 1, -1
    clicks = (Click(61, 62, True), Click(75, 58, False))
    window = Window(40, 30, 64, 64, SIZE)
    crop = predictor.embed([window.crop(image)])[0]
    for known in ({"class_name": "b"}, {"references": shown}, {}):
        query = Query(predictor.embed([image])[0], clicks=clicks, scribbles=strokes, previous_mask=mask, **known)
        asked = crop_query(query, window, crop)
        assert (asked.class_name, asked.references) == (query.class_name, query.references)
        expected = predictor.predict(
            **known,
            clicks=[Click(21, 32, True), Click(35, 28, False)],
            scribbles=strokes[40:104, 30:94],
            previous_mask=mask[40:104, 30:94],
            embedding=crop,
        )
        assert np.array_equal(predictor.predict_queries([asked])[0].probability, expected.probability)


def test_many_pictures_are_answered_as_each_is_alone(predictor: Predictor) -> None:
    images = [picture(), picture()[:90, :90].copy()]
    embeddings = predictor.embed(images)
    by_id = {id(embedding): image for embedding, image in zip(embeddings, images, strict=True)}
    clicks = (Click(40, 40, True), Click(50, 44, False))
    queries = [
        Query(embedding, clicks=clicks, previous_mask=disc(42, 42, 6)[: image.shape[0], : image.shape[1]])
        for embedding, image in zip(embeddings, images, strict=True)
    ]
    passes, store = predictor.encoder_passes, ByteStore(64 << 20)
    together = predict_batch_in_windows(predictor, by_id, store, queries)
    encoded = predictor.encoder_passes - passes
    assert encoded >= 2
    for query, answer in zip(queries, together, strict=True):
        [alone] = predict_batch_in_windows(predictor, by_id, store, [query])
        assert np.array_equal(alone.mask, answer.mask)
    assert predictor.encoder_passes - passes == encoded  # the windows were kept


def volume_of(predictor: Predictor, store: ByteStore) -> VolumePredictor:
    volume = VolumePredictor(predictor, store=store, version="1")
    orientation = SliceOrientation.of(np.eye(4), (SIZE[1], SIZE[0], 2), None)
    first = orientation.to_slices(np.zeros((SIZE[1], SIZE[0], 2))).shape
    images = np.random.default_rng(1).random(first, dtype=np.float32)
    volume.use_volume(Volume.of_slices(images, orientation, "random"))
    return volume


def test_a_second_click_on_a_slice_uses_the_window_of_the_first_and_undo_is_exact(predictor: Predictor) -> None:
    before = np.zeros((SIZE[1], SIZE[0], 2), bool)
    before[50:60, 70:82, 1] = True
    clicks = [VoxelClick((61, 75, 1), True), VoxelClick((54, 70, 1), False), VoxelClick((52, 83, 1), True)]
    requests = [{"lump": StructurePrompts(clicks[:count], previous_mask=before)} for count in (1, 2, 3)]

    def ask(volume: VolumePredictor, number: int) -> tuple[np.ndarray, int, int]:
        answer = volume.segment(requests[number], extent="slice")
        return answer.masks["lump"].mask, answer.encoded_slices, answer.decoded_rows

    fresh = [ask(volume_of(predictor, ByteStore(0)), number)[0] for number in range(3)]
    volume = volume_of(predictor, ByteStore(64 << 20))
    mask, encoded, _ = ask(volume, 0)
    assert encoded >= 1 and np.array_equal(mask, fresh[0])
    for number in (2, 1, 0, 2, 0):
        assert np.array_equal(ask(volume, number)[0], fresh[number])
    assert ask(volume, 1)[1:] == (0, 0)
    far = np.array(before)
    far[:, :, 0] = before[:, :, 1]  # the other slice has windows of its own
    other = {"lump": StructurePrompts([VoxelClick((61, 75, 0), True)], previous_mask=far)}
    assert volume.segment(other, extent="slice").encoded_slices >= 1


def test_a_second_correction_of_a_small_structure_encodes_nothing(repository: Path) -> None:
    checkpoint = load_checkpoint(repository / "apps" / "kprism" / "model" / "kprism_small.safetensors")
    volume = VolumePredictor(Predictor(checkpoint.model, checkpoint.registry))
    columns, rows = np.mgrid[:400, :380]
    true = (columns - 150) ** 2 + (rows - 120) ** 2 <= 20**2
    noise = np.random.default_rng(0).normal(0, 10, true.shape)
    volume.set_volume((60 + 60 * true + noise).astype(np.float32)[:, :, None], np.eye(4))
    clicks = [((150, 120), True), ((164, 120), True), ((138, 126), True), ((150, 106), True)]
    answers = [
        volume.segment(
            {"disc": StructurePrompts([VoxelClick((*place, 0), positive) for place, positive in clicks[:count]])},
            extent="slice",
        )
        for count in (1, 2, 3, 4, 3)
    ]
    assert [answer.encoded_slices for answer in answers] == [1, 1, 0, 0, 0]  # the image, its window, nothing more
    assert [answer.decoded_rows for answer in answers] == [1, 1, 1, 1, 0]
    assert np.array_equal(answers[4].masks["disc"].mask, answers[2].masks["disc"].mask)
    assert dice(answers[3].masks["disc"].mask[:, :, 0], true) > 0.95
