# SPDX-License-Identifier: Apache-2.0
"""Queries of any kinds together are answered as each is alone; a volume's own slices serve as references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Click, Predictor, Query, predict_batch
from kprism_model.queries import batches, build_prompts, join_references

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny()), ClassRegistry(NAMES))


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).random(shape, dtype=np.float32)


def disc() -> np.ndarray:
    rows, columns = np.mgrid[:64, :64]
    return (rows - 30) ** 2 + (columns - 25) ** 2 < 100


def questions(predictor: Predictor) -> list[Query]:
    """Every kind of knowledge, on images of two sizes."""
    square, wide = predictor.embed([picture(64, 64), picture(40, 90)])
    shown = predictor.embed_reference(square, picture(64, 64), disc())
    strokes = np.zeros((64, 64), np.int8)
    strokes[20:30, 20], strokes[50, 10:40] = 1, -1
    clicks = (Click(30, 25, True), Click(5, 60, False))
    return [
        Query(square, "a"),
        Query(wide, "b", clicks=clicks[:1]),
        Query(square, references=shown),
        Query(square, references=shown, clicks=clicks, previous_mask=disc()),
        Query(square, clicks=clicks[:1], scribbles=strokes),
        Query(square, "c", previous_mask=disc()),
        Query(square, clicks=clicks, previous_mask=0.5 * disc()),
        Query(square, scribbles=strokes, previous_mask=disc()),
    ]


def test_kinds_may_be_mixed_and_padding_changes_nothing(predictor: Predictor) -> None:
    asked = questions(predictor)
    for query, answer in zip(asked, predict_batch(predictor, asked), strict=True):
        alone = predictor.predict(
            class_name=query.class_name,
            clicks=query.clicks,
            scribbles=query.scribbles,
            previous_mask=query.previous_mask,
            references=query.references,
            embedding=query.embedding,
        )
        assert np.abs(alone.probability - answer.probability).max() < 1e-5
        assert abs(alone.presence - answer.presence) < 1e-5


def test_rows_of_one_kind_share_a_pass(predictor: Predictor) -> None:
    asked = questions(predictor)
    assert [0, 5] in list(batches(asked, 8))  # classes; a previous mask is no other kind
    assert [4, 6, 7] in list(batches(asked, 8))
    assert [6] not in list(batches(asked, 8)) and [7] in list(batches(asked, 2))
    features, prompts = build_prompts([asked[row] for row in (4, 6, 7)], predictor.registry, predictor.device)
    assert len(features.stride16) == 1 and prompts.image_index.tolist() == [0, 0, 0]
    assert prompts.points is not None and prompts.dense is not None
    assert prompts.points.shape == (3, 9, 2)  # a click and eight points of the strokes; the others are padded
    assert prompts.dense[:, 2].amax((1, 2)).tolist() == [0.0, 0.5, 1.0]


def test_a_reference_from_known_features_is_the_one_that_is_encoded_anew(predictor: Predictor) -> None:
    [embedding] = predictor.embed([picture(64, 64)])
    passes = predictor.encoder_passes
    known = predictor.embed_reference(embedding, picture(64, 64), disc())
    assert predictor.encoder_passes == passes
    anew = predictor.embed_references([picture(64, 64)], [disc()])
    assert (known.keys - anew.keys).abs().max() < 1e-5 and (known.values - anew.values).abs().max() < 1e-5
    with pytest.raises(ValueError, match="mask of the reference is empty"):
        predictor.embed_reference(embedding, picture(64, 64), np.zeros((64, 64), bool))


def test_a_reference_given_twice_is_read_as_once(predictor: Predictor) -> None:
    [embedding] = predictor.embed([picture(64, 64)])
    shown = predictor.embed_reference(embedding, picture(64, 64), disc())
    twice = join_references([shown, shown])
    assert twice.keys.shape[1] == 2 and twice.summaries[0].shape[1] == 2
    one, two = predict_batch(predictor, [Query(embedding, references=part) for part in (shown, twice)])
    assert np.abs(one.probability - two.probability).mean() < 0.05


def test_absent_objects_have_empty_masks(predictor: Predictor) -> None:
    asked = questions(predictor)[:3]
    assert not any(answer.mask.any() for answer in predict_batch(predictor, asked, minimum_presence=1.0))


def test_the_outline_of_a_mask_is_uncertain_and_probabilities_are_taken_as_they_are(predictor: Predictor) -> None:
    square = predictor.embed([picture(64, 64)])[0]
    click = (Click(30, 25, True),)
    whole = np.ones((64, 64), bool)
    empty = ~whole
    masks = [disc(), disc().astype(np.float32), whole, empty]
    queries = [Query(square, clicks=click, previous_mask=mask) for mask in masks]
    _, prompts = build_prompts(queries, predictor.registry, predictor.device)
    assert prompts.dense is not None
    blurred, given, all_inside, all_outside = prompts.dense[:, 2].numpy()
    assert set(np.unique(given)) == {0.0, 1.0} and all_inside.min() == 1.0 and all_outside.max() == 0.0
    assert (blurred[disc()] > 0.4).all() and (blurred[~disc()] < 0.6).all()
    rows = blurred[30, 25:]  # from the centre outwards; the outline is at 10
    assert rows[0] > 0.99 and 0.5 < rows[9] < 0.8 and 0.2 < rows[10] < 0.5 and rows[16] < 0.01
