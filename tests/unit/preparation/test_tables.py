# SPDX-License-Identifier: Apache-2.0
"""Tables beside images: .xlsx with texts in cells or apart, .csv with any delimiter, headers that are not first."""

from __future__ import annotations

from pathlib import Path

import pytest

from kprism_model.preparation.tables import read_table
from tests.unit.preparation.downloads import spreadsheet

ROWS = [["Image", " Type", "Diagnosis"], [1, "Benign", "CYST"], [2, "Malignant", None], [], [17, "Benign", "x, y"]]
READ = [
    (2, {"image": "1", "type": "Benign", "diagnosis": "CYST"}),
    (3, {"image": "2", "type": "Malignant"}),
    (5, {"image": "17", "type": "Benign", "diagnosis": "x, y"}),
]


@pytest.mark.parametrize("sheet", ["sheet1", "first"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_first_sheet_is_read(tmp_path: Path, shared: bool, sheet: str) -> None:
    spreadsheet(tmp_path / "a.xlsx", ROWS, shared=shared, sheet=sheet)
    assert read_table(tmp_path / "a.xlsx", ("image", "type")) == READ


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_text_tables_are_read(tmp_path: Path, delimiter: str, encoding: str) -> None:
    lines = ["Image,Type,Größe", "1,Benign,3", ",,", "2,Malignant,4"]
    (tmp_path / "a.csv").write_bytes("\r\n".join(lines).replace(",", delimiter).encode(encoding))
    assert read_table(tmp_path / "a.csv", ("type", "image")) == [
        (2, {"image": "1", "type": "Benign", "größe": "3"}),
        (4, {"image": "2", "type": "Malignant", "größe": "4"}),
    ]


def test_a_title_above_the_header_is_passed_over(tmp_path: Path) -> None:
    spreadsheet(tmp_path / "a.xlsx", [["Data set B"], [], *ROWS])
    assert [number for number, _ in read_table(tmp_path / "a.xlsx", ("image", "type"))] == [4, 5, 7]


@pytest.mark.parametrize("content", ["text", "zip", "columns", "empty"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.xlsx"
    sentence = "cannot be read as an .xlsx table.*save it as .csv"
    if content == "text":
        path.write_text("Image,Type\n1,Benign\n")
    elif content == "zip":
        spreadsheet(path, ROWS, sheet="gone")
        path.write_bytes(path.read_bytes().replace(b"xl/worksheets/gone", b"xl/worksheets/g0ne"))
    else:
        spreadsheet(path, [["Image", "Kind"]] if content == "columns" else [])
        sentence = "has no columns image and type; its first row is " + (
            "'Image, Kind'" if content == "columns" else "''"
        )
    with pytest.raises(ValueError, match=sentence):
        read_table(path, ("image", "type"))
