# SPDX-License-Identifier: Apache-2.0
"""The clicks of the published evaluation on masks made by hand, and series of clicks with answers that are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import ndimage

from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Prediction, Predictor
from kprism_model.published.evaluation.clicks import (
    CLICK_LIMIT,
    CLICK_RULES,
    ClickRule,
    Counts,
    Refinement,
    published_click,
    refine,
)
from kprism_model.published.evaluation.pairs import as_canvas, nearest
from kprism_model.queries import ImageEmbedding, Query

SIDE = 32
NOTHING = np.zeros((SIDE, SIDE), bool)


def box(rows: slice, columns: slice) -> np.ndarray:
    mask = NOTHING.copy()
    mask[rows, columns] = True
    return mask


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        (NOTHING, box(slice(2, 7), slice(10, 15)), (4, 12, True)),  # the first click: the middle
        (NOTHING, box(slice(2, 8), slice(2, 8)), (4, 4, True)),  # 4.5 is rounded to the even pixel of the canvas
        (NOTHING, box(slice(3, 9), slice(3, 9)), (6, 6, True)),  # and so is 5.5
        (box(slice(0, 5), slice(0, 7)), NOTHING, (2, 3, False)),  # only spurious pixels; the border is an edge
        (~NOTHING, NOTHING, (16, 16, False)),  # everything is spurious: 15.5
        (box(slice(0, 5), slice(0, 5)), box(slice(20, 25), slice(20, 25)), (2, 2, False)),  # as large: negative
        (box(slice(0, 5), slice(0, 5)), box(slice(20, 25), slice(19, 26)), (22, 22, True)),  # missed is larger
        (box(slice(4, 9), slice(4, 9)), box(slice(4, 9), slice(4, 18)), (6, 13, True)),  # what is right does not count
    ],
)
def test_clicks_go_to_the_middle_of_the_larger_error(
    prediction: np.ndarray, target: np.ndarray, expected: tuple[float, float, bool]
) -> None:
    assert published_click(prediction, target, rng()) == expected


def test_pixels_that_share_only_a_corner_are_two_errors() -> None:
    target = box(slice(0, 6), slice(0, 6)) | box(slice(6, 13), slice(6, 13))
    assert published_click(NOTHING, target, rng()) == (9, 9, True)
    together = target | box(slice(5, 7), slice(5, 7))  # now they share edges
    assert published_click(NOTHING, together, rng()) != (9, 9, True)


def test_equal_masks_get_no_click() -> None:
    for mask in (NOTHING, ~NOTHING, box(slice(3, 9), slice(1, 2))):
        assert all(rule(mask, mask, rng()) is None for rule in CLICK_RULES.values())


def test_a_click_beside_a_ring_s_hole_is_drawn_from_the_inner_part() -> None:
    ring = box(slice(4, 25), slice(4, 25)) & ~box(slice(9, 20), slice(9, 20))
    depth = ndimage.distance_transform_edt(ring)
    clicks = {published_click(NOTHING, ring, np.random.default_rng(seed)) for seed in range(20)}
    assert len(clicks) > 5
    for click in clicks:
        assert click is not None and click[2] and depth[int(click[0]), int(click[1])] > depth.max() / 3
    assert published_click(NOTHING, ring, rng()) == published_click(NOTHING, ring, rng())


def test_the_rule_is_the_one_described_on_random_masks() -> None:
    """Everything on the whole canvas, without crops."""
    draw = np.random.default_rng(3)
    for _ in range(60):
        smooth = [ndimage.gaussian_filter(draw.normal(size=(SIDE, SIDE)), 2) for _ in range(2)]
        prediction, target = smooth[0] > 0.03, smooth[1] > 0.03
        errors = []
        for mask in (target & ~prediction, prediction & ~target):
            labels, count = ndimage.label(mask)
            sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
            errors.append((labels == 1 + sizes.argmax(), sizes.max()) if count else (mask, 0))
        positive = errors[0][1] > errors[1][1]
        region = errors[0 if positive else 1][0]
        depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
        inner = depth > depth.max() / 3
        row, column = np.round(ndimage.center_of_mass(inner)).astype(int)
        click = published_click(prediction, target, rng())
        assert click is not None and click[2] == positive
        if region[row, column]:
            assert click[:2] == (row, column)
        else:
            assert inner[int(click[0]), int(click[1])]


@pytest.fixture(scope="module")
def embedding() -> ImageEmbedding:
    torch.manual_seed(0)
    predictor = Predictor(KPrism(KPrismConfig.tiny(num_classes=1)), ClassRegistry(["box"]))
    one = predictor.embed([np.zeros((SIDE, SIDE), np.float32)])[0]
    return ImageEmbedding(one.features, as_canvas(one.geometry))


TARGET = np.zeros((64, 64), bool)
TARGET[20:40, 20:40] = True


def columns(count: int) -> np.ndarray:
    """An answer that has the first columns of the target: 20 of 400 pixels each."""
    mask = TARGET.copy()
    mask[:, 20 + count :] = False
    return mask.astype(np.float32)


def counted(probability: np.ndarray) -> Counts:
    mask = probability > 0.5
    return int((mask & TARGET).sum()), int(mask.sum())


def series(embedding: ImageEmbedding, first: np.ndarray | None, rule: ClickRule = published_click) -> Refinement:
    return Refinement(Query(embedding), TARGET, first, counted, int(TARGET.sum()), rule, rng())


def answers(steps: Sequence[int], sizes: list[int]):  # type: ignore[no-untyped-def]
    """A network that finds so many columns after 1, 2, ... clicks; `sizes` gets the number of queries of each pass."""

    def predict(queries: Sequence[Query]) -> list[Prediction]:
        sizes.append(len(queries))
        found = [columns(steps[min(len(query.clicks), len(steps)) - 1]) for query in queries]
        return [Prediction(one > 0.5, one, 1.0) for one in found]

    return predict


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_series_end_when_nothing_can_change(embedding: ImageEmbedding, batch: int) -> None:
    slow, fast, first = series(embedding, None), series(embedding, None), series(embedding, columns(19))
    right = series(embedding, columns(20))
    refine(answers([1, 2, 3, 4, 5, 6, 19, 20], []), [slow, first, right], batch)
    refine(answers([19], []), [fast], batch)
    assert slow.counts == [None, *((20 * n, 20 * n) for n in (1, 2, 3, 4, 5, 6, 19))]  # 19 columns: Dice 0.974
    assert fast.counts == [None] + [(380, 380)] * 5  # Dice(5) is wanted
    assert first.counts[0] == (380, 380) and len(first.counts) == 6
    assert right.counts == [(400, 400)]  # nothing to click on


def test_series_that_never_arrive_end_after_twenty_clicks(embedding: ImageEmbedding) -> None:
    for rule in CLICK_RULES.values():
        one = series(embedding, None, rule)
        refine(answers([18], []), [one], 4)  # Dice 0.947
        assert len(one.counts) == 1 + CLICK_LIMIT and len(one.query.clicks) == CLICK_LIMIT


def test_passes_stay_full_and_the_next_click_corrects_the_canvas(embedding: ImageEmbedding) -> None:
    sizes: list[int] = []
    all_series = [series(embedding, None) for _ in range(5)]
    refine(answers([19], sizes), all_series, 4)
    assert sizes[0] == 4 and sum(sizes) == 25
    [query] = {id(one.query): one.query for one in all_series[:1]}.values()
    assert query.previous_mask is not None and np.array_equal(query.previous_mask, columns(19))
    click = query.clicks[-1]
    assert (click.row, click.column, click.positive) == (30, 39, True)  # the missed column


@pytest.mark.parametrize(
    ("old", "new"), [((48, 40), (64, 53)), ((300, 211), (64, 45)), ((7, 64), (7, 64)), ((5, 3), (64, 38))]
)
def test_labels_are_resized_as_torch_resizes_to_the_nearest(old: tuple[int, int], new: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 4, old).astype(np.uint8)
    expected = torch.nn.functional.interpolate(torch.from_numpy(labels)[None, None].float(), new, mode="nearest")
    assert np.array_equal(nearest(labels, new), expected[0, 0].numpy())
