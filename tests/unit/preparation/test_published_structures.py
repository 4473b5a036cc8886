# SPDX-License-Identifier: Apache-2.0
"""What `prepare` calls the classes of a download is what the published experiment asks for."""

from __future__ import annotations

import pytest

from kprism_model.data.anatomy import BODY_PARTS
from kprism_model.preparation.catalogue import catalogue
from kprism_model.published.sets import published_sets


@pytest.mark.parametrize("name", sorted(set(published_sets()) & set(catalogue())))
def test_each_structure_of_a_published_set_is_a_class_of_the_download(name: str) -> None:
    classes = catalogue()[name].classes
    structures = published_sets()[name].structure_map(classes)
    assert structures.classes


def test_anatomies_are_known() -> None:
    assert {entry.anatomy for entry in catalogue().values() if entry.anatomy} <= set(BODY_PARTS)
