# SPDX-License-Identifier: Apache-2.0
"""Which labelled images are most like a new one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kprism_model.classes import ClassRegistry
from kprism_model.evaluation.retrieval import Candidates, describe
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.queries import ImageEmbedding


def candidates() -> Candidates:
    """Four directions from a mean of (5, 5); cases a and b are of patient 1."""
    vectors = np.array([[9, 5], [8, 5], [5, 9], [1, 5], [5, 1], [2, 5]], np.float32)
    return Candidates(vectors, ["a", "a", "b", "c", "d", "e"], [1, 1, 1, 2, 3, 4])


def test_the_most_similar_come_first_and_a_case_comes_once() -> None:
    assert candidates().nearest([9, 5], 3) == [0, 2, 4]
    assert candidates().nearest([5, 8], 1) == [2]


def test_the_same_patient_is_left_out() -> None:
    assert set(candidates().nearest([9, 5], 6, patient=1)) == {3, 4, 5}
    assert 3 not in candidates().nearest([1, 5], 6, patient=2)


def test_what_all_candidates_have_in_common_does_not_count() -> None:
    far = Candidates(candidates().vectors + 1000, candidates().cases, candidates().patients)
    assert far.nearest([1009, 1005], 3) == candidates().nearest([9, 5], 3)


def test_fewer_candidates_than_asked_for_and_none() -> None:
    assert len(candidates().nearest([9, 5], 50)) == 5
    assert Candidates(np.zeros((0, 2), np.float32), [], []).nearest([1, 2], 3) == []


def test_bad_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\), 1 and 2"):
        Candidates(np.zeros((2, 2), np.float32), ["a"], [1, 2])
    with pytest.raises(ValueError, match="not finite"):
        Candidates(np.full((1, 2), np.nan, np.float32), ["a"], [1])
    with pytest.raises(ValueError, match=r"\(3,\), but the candidates have shape \(2,\)"):
        candidates().nearest([1, 2, 3], 1)


def test_a_description_ignores_the_padding() -> None:
    torch.manual_seed(0)
    predictor = Predictor(KPrism(KPrismConfig.tiny()), ClassRegistry(["a", "b", "c", "d"]))
    embedding = predictor.embed([np.random.default_rng(0).random((64, 16), np.float32)])[0]
    described = describe(embedding)
    assert described.shape == (64,)
    padded = embedding.features.stride16.clone()
    assert padded.shape[-2:] == (4, 2)
    padded[..., 1:] = 1e6
    changed = ImageEmbedding(embedding.features._replace(stride16=padded), embedding.geometry)
    assert np.array_equal(describe(changed), described)
