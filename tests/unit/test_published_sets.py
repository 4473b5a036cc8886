# SPDX-License-Identifier: Apache-2.0
"""The table of the published experiment, and the structures that it makes of a data set's classes."""

from __future__ import annotations

import numpy as np
import pytest

from kprism_model.data.structures import StructureMap
from kprism_model.published.sets import published_sets

CLASSES = {1: "neuroretinal rim", 2: "optic cup", 5: "vessel"}


def test_the_table_has_twelve_trained_sets_and_kits_in_two_editions() -> None:
    roles = [one.role for one in published_sets().values()]
    assert roles.count("trained") == 12 + 1
    assert (roles.count("external"), roles.count("unseen")) == (4, 2)


def test_classes_are_joined_and_others_become_background() -> None:
    papila = published_sets()["papila_fundus"].structure_map(CLASSES)
    assert papila.classes == {1: "optic disc"}
    labels = np.array([[0, 1], [2, 5]], np.uint8)
    assert papila.apply(labels).tolist() == [[0, 1], [1, 0]]


def test_a_set_without_structures_stays_as_it_is() -> None:
    acdc = published_sets()["acdc_mr"].structure_map({3: "left ventricle"})
    assert acdc.classes == {3: "left ventricle"}
    assert acdc.apply(np.array([0, 3, 255], np.uint8)).tolist() == [0, 3, 255]


@pytest.mark.parametrize(
    ("structures", "sentence"),
    [
        ({"lens": ["lens"]}, "structure 'lens': there is no class 'lens', only .*optic cup"),
        ({"disc": ["optic cup"], "cup": ["optic cup"]}, "structure 'cup': class 'optic cup' belongs to another"),
        ({"disc": ["Optic Cup", "optic cup"]}, "structure 'disc': class 'optic cup' belongs to another"),
    ],
)
def test_wrong_structures_are_named(structures: dict[str, list[str]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        StructureMap.of(CLASSES, structures)
