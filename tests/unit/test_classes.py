# SPDX-License-Identifier: Apache-2.0
"""The class registry: names to rows, and rows that never move."""

from __future__ import annotations

import pytest

from kprism_model.classes import ClassRegistry


def test_rows_follow_the_order_of_the_names() -> None:
    registry = ClassRegistry(["liver", "left ventricle", "polyp"])
    assert len(registry) == 3
    assert [registry.index(name) for name in registry.names] == [0, 1, 2]
    assert registry.names == ("liver", "left ventricle", "polyp")


@pytest.mark.parametrize("spelling", ["left ventricle", "Left Ventricle", "  LEFT   ventricle ", "left\tventricle"])
def test_case_and_white_space_do_not_matter(spelling: str) -> None:
    registry = ClassRegistry(["liver", "Left  ventricle"])
    assert registry.index(spelling) == 1
    assert spelling in registry
    assert registry.names[1] == "Left ventricle"


def test_words_are_not_joined() -> None:
    assert "leftventricle" not in ClassRegistry(["left ventricle"])


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    registry = ClassRegistry(["liver", "spleen"])
    with pytest.raises(ValueError, match="unknown class 'kidney'; known classes: liver, spleen"):
        registry.index("kidney")
    assert "kidney" not in registry
    assert 3 not in registry


def test_adding_keeps_every_row_and_the_original() -> None:
    registry = ClassRegistry(["liver", "spleen"])
    larger = registry.add(["kidney", "aorta"])
    assert [larger.index(name) for name in ("liver", "spleen", "kidney", "aorta")] == [0, 1, 2, 3]
    assert registry.to_list() == ["liver", "spleen"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["liver", "Liver "], "class 'Liver ' is listed twice; the first entry is 'liver'"),
        (["liver", ""], "non-empty string, got ''"),
        (["liver", 3], "non-empty string, got 3"),
        ("liver", "the single string 'liver'"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassRegistry(names)
    with pytest.raises(ValueError, match=message):
        ClassRegistry().add(names)


def test_a_registry_survives_its_list() -> None:
    registry = ClassRegistry(["liver", "left ventricle"])
    assert ClassRegistry(registry.to_list()) == registry
    assert hash(ClassRegistry(registry.to_list())) == hash(registry)
    assert registry != ClassRegistry(["left ventricle", "liver"])
    assert repr(registry) == "ClassRegistry(['liver', 'left ventricle'])"
