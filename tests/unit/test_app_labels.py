# SPDX-License-Identifier: Apache-2.0
"""Labels travel by name: how saved labels name their values, and which numbers names get."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kprism_model.classes import clean_name, name_key
from lib.errors import RequestError
from lib.imaging.file_labels import FileLabels
from lib.imaging.hand_names import HandNames
from lib.imaging.label_names import check_both, listed_names, one_value_each, structures, value_names
from lib.imaging.label_registry import LabelRegistry

UMLAUT = "Knöchelödem"


def listed(*entries: tuple[str, Any], key: str = "id") -> dict[str, Any]:
    """A `label_info` of names with their numbers."""
    return {"label_info": [{"name": name, key: number} for name, number in entries]}


SLICER = listed(("liver", 2), ("spleen", 3), key="idx")
BRATS = (("necrosis", 1), ("oedema", 2), ("enhancing", 4))


def test_numbers_are_stable_and_start_at_one() -> None:
    book = LabelRegistry(["polyp", "lungs"])
    assert book.indices() == {"polyp": 1, "lungs": 2}
    book.add(["Lungs ", "background", "zebra", "", "\x00"])
    assert book.indices() == {"polyp": 1, "lungs": 2, "zebra": 3}
    assert book.numbers(["cyst", "LUNGS", "stone"]) == {"cyst": 4, "LUNGS": 2, "stone": 5}
    assert "cyst" not in book.indices()
    assert book.canonical("ZEBRA") == "zebra"
    assert book.name(2) == "lungs"
    with pytest.raises(RequestError, match="5"):
        book.name(5)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (UMLAUT, unicodedata.normalize("NFD", UMLAUT)),
        (unicodedata.normalize("NFD", UMLAUT), UMLAUT.upper()),
        ("肝臓", " 肝臓\u3000"),
        ("rib 1, left", "RIB\t1,\x00left"),
        ('the "left" one', 'the  "LEFT"\r\none'),
        ("Å" * 215, "a\u030a" * 215),
    ],
)
def test_one_structure_however_its_name_is_written(first: str, other: str) -> None:
    book = LabelRegistry([first])
    assert book.canonical(other) == book.canonical(first) == " ".join(unicodedata.normalize("NFC", first).split())
    book.add([other])
    assert len(book.indices()) == 1


@pytest.mark.parametrize("name", ["肝臓", "腫瘍 (左)", "печень", UMLAUT, "x" * 215, 'a, "b"; c', "नाड़ी"])
def test_names_are_kept_as_they_are(name: str) -> None:
    assert LabelRegistry().canonical(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    ("info", "present", "expected"),
    [
        # numbers are the values
        (listed(("c", 3), ("b", 2), ("a", 1)), [1, 2, 3], {3: "c", 2: "b", 1: "a"}),
        (listed(("c", 3), ("b", 2), ("a", 1), key="idx"), [1, 2, 3], {3: "c", 2: "b", 1: "a"}),
        (listed(("c", 3), ("b", 2), ("a", 1), key="labelID"), [3], {3: "c", 2: "b", 1: "a"}),
        (listed(*BRATS), [1, 2, 4], {number: name for name, number in BRATS}),
        (listed(*BRATS, key="idx"), [1, 2, 4], {number: name for name, number in BRATS}),
        (listed(*BRATS, key="idx"), [1, 2], {number: name for name, number in BRATS}),  # both readings agree
        (listed(("cortex", 1001), ("white", 1002)), [1001, 1002], {1001: "cortex", 1002: "white"}),
        (listed(("b", "2"), ("a", "1")), [1, 2], {2: "b", 1: "a"}),
        (listed(("b", 2.0), ("a", 1.0)), [1, 2], {2: "b", 1: "a"}),
        ({"label_info": [{"id": 2, "idx": 2, "label": "b"}, {"id": 1, "label": "a"}]}, [1, 2], {2: "b", 1: "a"}),
        (listed(("background", 0), ("liver", 1)), [1], {1: "liver"}),
        (listed(("background", 1), ("liver", 2)), [1, 2], {1: "background", 2: "liver"}),
        (listed(("lesion", 1), ("liver", 2), ("lesion", 3)), [1, 2, 3], {1: "lesion", 2: "liver", 3: "lesion"}),
        # 3D Slicer's idx counts segments that it does not save
        (SLICER, [1, 2], {1: "liver", 2: "spleen"}),
        (SLICER, [1], {1: "liver", 2: "spleen"}),
        (listed(("a", 1), ("b", 3), ("c", 4), key="idx"), [1, 2, 3], {1: "a", 2: "b", 3: "c"}),
        (listed(("a", 1), ("b", 2), ("c", 5), key="idx"), [1, 2, 3], {1: "a", 2: "b", 3: "c"}),
        (listed(("a", 1), ("b", 2), ("c", 5), key="idx"), [1, 2, 5], {1: "a", 2: "b", 5: "c"}),
        (listed(("cyst", 3), key="idx"), [1], {1: "cyst"}),
        (listed(("cyst", 3), key="idx"), [3], {3: "cyst"}),
        # no numbers: the order
        ({"label_info": [{"name": "liver"}, {"name": "spleen"}]}, [3, 7], {3: "liver", 7: "spleen"}),
        ({"label_info": [{"name": "liver"}, {"name": "spleen"}]}, [2], {1: "liver", 2: "spleen"}),
        ({"label_info": [{"name": "background"}, {"name": "liver"}]}, [1], {1: "liver"}),
        ({"label_info": [{"name": "liver", "color": [1, 2, 3], "idx": None}]}, [6], {6: "liver"}),
        # name -> value
        ({"label_names": {"background": 0, "liver": 4, "odd": "x"}}, [4], {4: "liver"}),
        ({"label_names": {"lesion": [1, 3], "liver": 2}}, [1, 2, 3], {1: "lesion", 3: "lesion", 2: "liver"}),
        ({"model": "semantic", "params": {"label_names": {"polyp": 3}}}, [3], {3: "polyp"}),
        ({"ts": 1}, [1], {1: "by hand"}),
    ],
)
def test_values_of_a_saved_label(info: dict[str, Any], present: list[int], expected: dict[int, str]) -> None:
    assert value_names(info, {1: "by hand"}, present) == expected


@pytest.mark.parametrize(
    ("info", "present", "sentence"),
    [
        (SLICER, [1, 2, 3], r"2 structures \(liver, spleen\) with the idx \[2, 3\].*\[1, 2, 3\]"),
        (SLICER, [3, 7], r"the idx \[2, 3\], but the file holds \[3, 7\]"),
        (SLICER, [2], r"counted as values and in their order, they name different structures"),  # the first is empty
        (listed(("a", 2), ("b", 3), ("c", 4), key="idx"), [2, 3], "name different structures"),
        (listed(("a", 2), ("b", 3)), [1, 2], r"with the id \[2, 3\], but the file holds \[1, 2\]"),
        (listed(("b", 3), ("a", 2), key="idx"), [1, 2], r"with the idx \[3, 2\], but the file holds \[1, 2\]"),
        (listed(("a", 1), ("b", 1)), [1], "label_info gives the value 1 two names, 'a' and 'b'"),
        (listed(("a", 1), ("b", 1), key="idx"), [1, 2], "label_info gives the value 1 two names"),
        ({"label_info": [{"name": "a", "id": 1, "idx": 2}]}, [1], "'a' the id 1 and the idx 2; expected one number"),
        ({"label_info": [{"name": "a", "id": 1}, {"name": "b"}]}, [1, 2], "gives 'b' no id, but 'a' has one"),
        (listed(("a", "one")), [1], "gives segment 'a' the id 'one'; expected a number from 1"),
        (listed(("a", 0)), [1], "the id 0"),
        (listed(("a", -1)), [1], "the id -1"),
        (listed(("a", 1.5)), [1], "the id 1.5"),
        (listed(("a", True)), [1], "the id True"),
        ({"label_info": "nonsense"}, [1], "label_info is 'nonsense'; expected a list"),
        ({"label_info": [{"id": 1}]}, [1], r"label_info is \[\{'id': 1\}\]; expected a list"),
        ({"label_info": [{"name": "liver"}, {"name": "spleen"}]}, [1, 2, 3], r"2 structures \(liver, spleen\)"),
        ({"label_names": {"a": 1, "b": 1}}, [1], "label_names gives the value 1 two names, 'a' and 'b'"),
    ],
)
def test_contradictions_are_refused(info: dict[str, Any], present: list[int], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        value_names(info, {1: "by hand"}, present)


def test_label_info_may_name_a_part_of_a_labelmap_that_is_no_label() -> None:
    info = listed(("foreground_scribbles", 3), ("cyst", 7))
    assert value_names(info, {}, [1, 2, 3], partial=True) == {3: "foreground_scribbles", 7: "cyst"}
    with pytest.raises(RequestError, match=r"with the id \[3, 7\], but the file holds \[1, 2\]"):
        value_names(info, {}, [1, 2], partial=True)


def test_label_names_and_label_info_must_agree() -> None:
    info = {"label_names": {"a": 1, "b": 2}, **listed(("B", 2), ("A", 1))}
    check_both(info, [1, 2], FileLabels())
    with pytest.raises(RequestError, match="label_names calls the value 1 'a', label_info calls it 'b'"):
        check_both({**info, **listed(("b", 1), ("a", 2))}, [1, 2], FileLabels())


def test_values_above_255_keep_their_names() -> None:
    file = FileLabels(values=(3, 1001, 2035))  # read as 1, 2, 3
    info = listed(("insula", 2035), ("cortex", 1001), ("ventricle", 3))
    assert value_names(info, {}, [1, 2, 3], file) == {1: "ventricle", 2: "cortex", 3: "insula"}
    assert value_names({}, {1001: "by hand", 1: "other"}, [2], file) == {2: "by hand"}


def test_names_in_the_file_count_and_those_beside_it_must_agree() -> None:
    file = FileLabels(names={4: "other", 1: "ball"})
    assert value_names({}, {1: "by hand"}, [1, 4], file) == {4: "other", 1: "ball"}
    assert value_names(listed(("Ball", 1), ("OTHER", 4)), {}, [1, 4], file) == {4: "other", 1: "ball"}
    for wrong in (listed(("other", 1), ("ball", 4)), {"label_names": {"other": 1, "ball": 4}}):
        with pytest.raises(RequestError, match=r"the file itself names the value 1 'ball'.*'other'; expected the same"):
            value_names(wrong, {}, [1, 4], file)


def test_one_value_for_each_structure() -> None:
    names = {1: "lesion", 2: "background", 3: "Lesion ", 5: "liver", 7: "lesion"}
    assert structures(names) == {"lesion": (1, 3, 7), "liver": (5,)}
    assert structures(names, LabelRegistry(["LESION"]).canonical) == {"LESION": (1, 3, 7), "liver": (5,)}
    table, values = one_value_each(names)
    assert values == {"lesion": 1, "liver": 5}
    assert table[[0, 1, 2, 3, 4, 5, 7]].tolist() == [0, 1, 0, 1, 4, 5, 1]
    assert table.dtype == np.uint8


def test_names_without_values() -> None:
    assert listed_names(SLICER) == ["liver", "spleen"]
    assert listed_names({"params": {"label_names": {"background": 0, "polyp": 3}}}) == ["polyp"]
    assert listed_names({"label_info": [{"name": "a"}, 7, {"id": 3}, {"name": "a"}]}) == ["a"]
    assert listed_names({"label_info": 7, "label_names": []}) == []


def read(folder: Path, text: str) -> HandNames:
    (folder / "labels.json").write_text(text, encoding="utf-8")
    return HandNames.read(folder)


def test_labels_json(tmp_path: Path) -> None:
    assert HandNames.read(tmp_path).of("case") == {}
    content = {"labels": {"0": "background", "1": "liver", "2": "spleen"}, "cases": {"brain*": {"tumour": 1}}}
    names = read(tmp_path, "\ufeff" + json.dumps(content))
    assert names.of("case") == {1: "liver", 2: "spleen"}
    assert names.of("brain7") == {1: "tumour"}


@pytest.mark.parametrize(
    "labels",
    [
        '{"1": "lesion", "2": "liver", "3": "lesion"}',
        '{"lesion": 1, "liver": 2, "lesion": 3}',  # a JSON reader would drop the first
        '{"lesion": [1, 3], "liver": 2}',
        '{"lesion": "1", "liver": "2", "Lesion": "3"}',
    ],
)
def test_two_values_of_one_structure(tmp_path: Path, labels: str) -> None:
    names = read(tmp_path, f'{{"labels": {labels}}}').of("case")
    assert structures(names) == {"lesion": (1, 3), "liver": (2,)}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object"),
        ('{"labels": ["a"]}', "expected"),
        ('{"labels": {"one": "liver"}}', "'one': 'liver'"),
        ('{"labels": {"1": null}}', "'1': None"),
        ('{"labels": {"²": "liver"}}', "'²': 'liver'"),
        ('{"labels": {"liver": true}}', "'liver': True"),
        ('{"labels": {"liver": -1}}', "'liver': -1"),
        ('{"labels": {"1": "liver", "1": "spleen"}}', "gives the value 1 two names, 'liver' and 'spleen'"),
        ('{"labels": {"liver": 1, "spleen": 1}}', "gives the value 1 two names"),
        ('{"labels": {"1": "a"}, "labels": {"2": "b"}}', "holds 'labels' twice"),
        ('{"cases": {"x*": {"1": "a"}, "x*": {"2": "b"}}}', r"holds 'x\*' twice"),
        ('{"cases": ["a"]}', "must be an object"),
    ],
)
def test_bad_labels_json(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=r"labels\.json.*" + sentence):
        read(tmp_path, text).of("case")


SEGMENTS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8)
"""Of each segment in 3D Slicer, whether it is saved and whether it is empty."""


@given(SEGMENTS)
def test_a_submission_of_slicer_is_read_right_or_refused(segments: list[tuple[bool, bool]]) -> None:
    """`idx` counts all segments, the values are 1, 2, ... of those that are saved, also of the empty ones."""
    saved = [number for number, (is_saved, _) in enumerate(segments, 1) if is_saved]
    drawn = {value for value, number in enumerate(saved, 1) if not segments[number - 1][1]}
    info = listed(*((f"segment {number}", number) for number in saved), key="idx")
    expected = {value: f"segment {number}" for value, number in enumerate(saved, 1) if value in drawn}
    try:
        names = value_names(info, {}, drawn)
    except RequestError:
        assert len(drawn) < len(saved) < len(segments)  # never without an empty segment and one that is not saved
        return
    assert {value: name for value, name in names.items() if value in drawn} == expected


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8, unique=True), st.data())
def test_ids_that_are_the_values_are_read_right_in_any_order(values: list[int], data: st.DataObject) -> None:
    drawn = data.draw(st.sets(st.sampled_from(values)))
    for key in ("id", "labelID"):
        names = value_names(listed(*((f"segment {value}", value) for value in values), key=key), {}, drawn)
        assert names == {value: f"segment {value}" for value in values}
    every = value_names(listed(*((f"segment {value}", value) for value in values), key="idx"), {}, values)
    assert every == {value: f"segment {value}" for value in values}


@given(st.text(max_size=60))
def test_a_name_is_cleaned_once_and_compared_as_it_is_shown(name: str) -> None:
    assert clean_name(clean_name(name)) == clean_name(name)
    assert name_key(clean_name(name)) == name_key(name) == name_key(name_key(name))
    clean_name(name).encode()
