# SPDX-License-Identifier: Apache-2.0
"""Labels travel by name: how saved labels name their values, and which numbers names get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lib.errors import RequestError
from lib.imaging.label_registry import HandNames, LabelRegistry, label_values

SLICER = {"label_info": [{"name": "liver", "idx": 2}, {"name": "spleen", "idx": 3}]}


def test_numbers_are_stable_and_start_at_one() -> None:
    book = LabelRegistry(["polyp", "lungs"])
    assert book.indices() == {"polyp": 1, "lungs": 2}
    book.add(["Lungs ", "background", "zebra", ""])
    assert book.indices() == {"polyp": 1, "lungs": 2, "zebra": 3}
    assert book.numbers(["cyst", "LUNGS", "stone"]) == {"cyst": 4, "LUNGS": 2, "stone": 5}
    assert "cyst" not in book.indices()
    assert book.canonical("ZEBRA") == "zebra"
    assert book.name(2) == "lungs"
    with pytest.raises(RequestError, match="5"):
        book.name(5)


@pytest.mark.parametrize(
    ("info", "present", "expected"),
    [
        (SLICER, [1, 2], {"liver": 1, "spleen": 2}),  # idx counts segments that were not saved
        (SLICER, [3, 7], {"liver": 3, "spleen": 7}),  # as many names as values: by order
        (SLICER, [2], {"liver": 1, "spleen": 2}),  # an empty segment was saved too
        (SLICER, [], {"liver": 1, "spleen": 2}),
        ({"label_info": [{"name": "background"}, {"name": "liver"}]}, [1], {"liver": 1}),
        ({"label_names": {"background": 0, "liver": 4, "odd": "x"}}, [4], {"liver": 4}),
        ({"label_info": "nonsense"}, [], {}),
        ({"model": "semantic", "params": {"label_names": {"polyp": 3}}}, [3], {"polyp": 3}),
        ({"ts": 1}, [1], {"by hand": 1}),
    ],
)
def test_values_of_a_saved_label(info: dict[str, Any], present: list[int], expected: dict[str, int]) -> None:
    assert label_values(info, {"by hand": 1}, present) == expected


def test_fewer_names_than_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 structures \(liver, spleen\).*\[1, 2, 3\]"):
        label_values(SLICER, {}, [1, 2, 3])


def test_labels_json(tmp_path: Path) -> None:
    assert HandNames.read(tmp_path).of("case") == {}
    content = {"labels": {"0": "background", "1": "liver", "2": "spleen"}, "cases": {"brain*": {"tumour": 1}}}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    assert HandNames.read(tmp_path).of("case") == {"liver": 1, "spleen": 2}
    assert HandNames.read(tmp_path).of("brain7") == {"tumour": 1}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"labels": ["a"]}', '{"labels": {"one": "liver"}}', '{"labels": {"1": null}}']
)
def test_bad_labels_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(RequestError, match=r"labels\.json"):
        HandNames.read(tmp_path).of("case")
