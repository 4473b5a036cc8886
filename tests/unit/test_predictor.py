# SPDX-License-Identifier: Apache-2.0
"""Answers in image pixels, on a small network with random weights: geometry, batching, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kprism_model.classes import ClassRegistry
from kprism_model.network import decoder
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Click, Prediction, Predictor, merge_classes
from kprism_model.queries import Query, build_prompts

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny()), ClassRegistry(NAMES))


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).random(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", [(64, 64), (37, 101), (300, 51, 3), (1, 9)])
def test_answers_have_the_shape_of_the_image(predictor: Predictor, shape: tuple[int, ...]) -> None:
    predictor.set_image(picture(*shape))
    answer = predictor.predict(clicks=[Click(0, 3, True)])
    assert answer.mask.shape == answer.probability.shape == shape[:2]
    assert answer.mask.dtype == bool and answer.probability.dtype == np.float32
    assert 0 <= answer.presence <= 1
    assert np.array_equal(answer.mask, answer.probability >= 0.5)


def test_the_same_request_gives_the_same_bits_and_encodes_nothing_again(predictor: Predictor) -> None:
    predictor.set_image(picture(80, 50))
    clicks = [Click(10, 20, True), Click(60.5, 3.25, False)]
    first, second = predictor.predict(clicks=clicks), predictor.predict(clicks=clicks)
    assert np.array_equal(first.probability, second.probability)
    assert predictor.encoder_passes == 1


def test_removing_the_last_click_gives_the_former_answer(predictor: Predictor) -> None:
    predictor.set_image(picture(80, 50))
    clicks = [Click(10, 20, True), Click(60, 3, False)]
    before = predictor.predict(clicks=clicks[:1])
    predictor.predict(clicks=clicks)
    assert np.array_equal(predictor.predict(clicks=clicks[:1]).probability, before.probability)


def test_many_classes_and_images_equal_one_by_one(predictor: Predictor) -> None:
    embeddings = predictor.embed([picture(64, 64), picture(40, 90), picture(64, 64, 3)])
    together = predictor.predict_classes(NAMES, embeddings=embeddings, batch=3)
    for embedding, answers in zip(embeddings, together, strict=True):
        for name in NAMES:
            alone = predictor.predict(class_name=name, embedding=embedding)
            assert np.abs(alone.probability - answers[name].probability).max() < 1e-5
            assert abs(alone.presence - answers[name].presence) < 1e-5


def test_new_classes_leave_old_answers_alone(predictor: Predictor) -> None:
    embedding = predictor.set_image(picture(64, 40))
    before = predictor.predict_classes(NAMES)[0]
    predictor.model.add_classes(1)
    grown = Predictor(predictor.model, predictor.registry.add(["e"]))
    after = grown.predict_classes(NAMES, embeddings=[embedding])[0]
    assert all(np.array_equal(before[name].probability, after[name].probability) for name in NAMES)
    assert grown.predict(class_name="e", embedding=embedding).mask.shape == (64, 40)


def test_absent_structures_stop_early_and_the_others_do_not_notice(predictor: Predictor) -> None:
    embeddings = predictor.embed([picture(64, 64), picture(64, 64, 3)])
    whole = predictor.predict_classes(NAMES, embeddings=embeddings)
    every = sorted(answer.presence for answers in whole for answer in answers.values())
    threshold = (every[3] + every[4]) / 2
    early = predictor.predict_classes(NAMES, embeddings=embeddings, minimum_presence=threshold)
    for before, after in zip(whole, early, strict=True):
        for name in NAMES:
            assert abs(before[name].presence - after[name].presence) < 1e-6
            if before[name].presence >= threshold:
                assert np.abs(before[name].probability - after[name].probability).max() < 1e-5
            else:
                assert not after[name].mask.any()
    nothing = predictor.predict_classes(NAMES, embeddings=embeddings, minimum_presence=1.0)
    assert not any(answer.mask.any() for answers in nothing for answer in answers.values())


def test_references_of_any_size_serve_an_image_of_any_size(predictor: Predictor) -> None:
    masks = [np.zeros((30, 70), bool), np.ones((100, 64), bool)]
    masks[0][5:20, 10:40] = True
    references = predictor.embed_references([picture(30, 70), picture(100, 64, 3)], masks)
    predictor.set_image(picture(51, 33))
    alone = predictor.predict(references=references)
    corrected = predictor.predict(references=references, clicks=[Click(3, 3, True)], previous_mask=alone.probability)
    assert alone.mask.shape == corrected.mask.shape == (51, 33)
    assert not np.array_equal(alone.probability, corrected.probability)


def test_scribbles_and_previous_masks_are_heard(predictor: Predictor) -> None:
    predictor.set_image(picture(64, 64))
    scribbles = np.zeros((64, 64), np.int8)
    scribbles[10:30, 20] = 1
    drawn = predictor.predict(scribbles=scribbles)
    scribbles[50, 5:40] = -1
    with_background = predictor.predict(scribbles=scribbles)
    with_previous = predictor.predict(scribbles=scribbles, previous_mask=np.ones((64, 64), bool))
    assert not np.array_equal(drawn.probability, with_background.probability)
    assert not np.array_equal(with_background.probability, with_previous.probability)


def test_views_with_negative_strides_are_images_too(predictor: Predictor) -> None:
    image, mask = picture(64, 40), np.zeros((64, 40), np.float32)
    mask[10:20, 10:20] = 1
    predictor.set_image(np.ascontiguousarray(image[::-1, ::-1]))
    plain = predictor.predict(clicks=[Click(3, 3, True)], previous_mask=np.ascontiguousarray(mask[::-1]))
    predictor.set_image(image[::-1, ::-1])
    assert np.array_equal(predictor.predict(clicks=[Click(3, 3, True)], previous_mask=mask[::-1]).mask, plain.mask)


def test_a_reference_thinner_than_a_canvas_pixel_is_not_lost(predictor: Predictor) -> None:
    thin, nothing = np.zeros((640, 640), bool), np.zeros((640, 640), bool)
    thin[:, 300] = True
    nothing[0, 0] = True
    line, dot = (predictor.embed_references([picture(640, 640)], [mask]) for mask in (thin, nothing))
    assert (line.summaries[2] - dot.summaries[2]).abs().max() > 1e-3


@pytest.mark.parametrize("row", [-1.0, 64.0, math.nan, math.inf])
def test_a_click_outside_is_refused(predictor: Predictor, row: float) -> None:
    predictor.set_image(picture(64, 32))
    with pytest.raises(ValueError, match=f"row {row}, column 5.* outside the image of 64 x 32"):
        predictor.predict(clicks=[Click(row, 5, True)])


def test_refusals_name_what_was_wrong(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="no image is set"):
        predictor.predict(class_name="a")
    predictor.set_image(picture(64, 32))
    references = predictor.embed_references([picture(64, 64)], [np.ones((64, 64), bool)])
    with pytest.raises(ValueError, match="the query has no prompt"):
        predictor.predict(previous_mask=np.ones((64, 32)))
    with pytest.raises(ValueError, match="'z'"):
        predictor.predict(class_name="z")
    with pytest.raises(ValueError, match=r"'a'.* not both"):
        predictor.predict(class_name="a", references=references)
    with pytest.raises(ValueError, match="257 clicks"):
        predictor.predict(clicks=[Click(1, 1, True)] * 257)
    with pytest.raises(ValueError, match=r"\(32, 64\), but the image has shape \(64, 32\)"):
        predictor.predict(class_name="a", previous_mask=np.ones((32, 64)))
    with pytest.raises(ValueError, match=r"hold -1, 0 and 1, got values \[0, 7\]"):
        predictor.predict(scribbles=np.diag([7] * 32).repeat(2, axis=0))
    with pytest.raises(ValueError, match="reference 2 is empty"):
        predictor.embed_references([picture(8, 8)] * 2, [np.ones((8, 8), bool), np.zeros((8, 8), bool)])


def test_merging_takes_the_most_probable_present_structure() -> None:
    def prediction(values: list[float], presence: float = 1.0) -> Prediction:
        probability = np.array([values], np.float32)
        return Prediction(probability >= 0.5, probability, presence)

    predictions = {
        "a": prediction([0.9, 0.6, 0.2, 0.5]),
        "b": prediction([0.8, 0.7, 0.4, 0.5]),
        "c": prediction([1.0, 1.0, 1.0, 1.0], presence=0.1),
    }
    assert merge_classes(predictions, ["a", "b", "c"]).tolist() == [[1, 2, 0, 1]]
    assert merge_classes(predictions, ["unused", "b"]).tolist() == [[2, 2, 0, 2]]


def test_objects_without_a_plausible_pixel_stop_at_stride_8_and_the_others_do_not_notice(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = predictor.embed([picture(64, 64), picture(64, 64, 3)])
    features, prompts = build_prompts(
        [Query(embedding, name) for embedding in embeddings for name in NAMES], predictor.registry, predictor.device
    )
    with torch.inference_mode():
        highest = predictor.model.decode(features, prompts).logits[1].flatten(1).amax(1)
    limit = float(highest.sort().values[len(highest) // 2 - 1 : len(highest) // 2 + 1].mean())
    full = predictor.predict_classes(NAMES, embeddings=embeddings, minimum_presence=1e-6)
    monkeypatch.setattr(decoder, "IMPLAUSIBLE_LOGIT", limit)
    early = predictor.predict_classes(NAMES, embeddings=embeddings, minimum_presence=1e-6)
    asked = predictor.predict_classes(NAMES, embeddings=embeddings, minimum_presence=0.0)  # nothing may stop
    stopped = (highest <= limit).tolist()
    assert 0 < sum(stopped) < len(stopped)
    for row, stops in enumerate(stopped):
        image, name = divmod(row, len(NAMES))
        whole, part = full[image][NAMES[name]], early[image][NAMES[name]]
        assert part.presence == pytest.approx(whole.presence, abs=1e-6)
        np.testing.assert_allclose(part.probability, 0 if stops else whole.probability, atol=1e-5)
        np.testing.assert_allclose(asked[image][NAMES[name]].probability, whole.probability, atol=1e-5)
