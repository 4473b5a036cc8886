# SPDX-License-Identifier: Apache-2.0
"""BUS, dataset B: types from a table, masks that are not strictly black and white, rows without pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.preparation.downloads import Prepared, colour_noise, disc, picture, prepare, spreadsheet

TYPES = {1: "Benign", 2: "Malignant", 3: "Benign", 4: "malignant ", 5: "Benign"}


def add_pictures(root: Path) -> None:
    for number in TYPES:
        picture(root / "original" / f"{number:06d}.png", colour_noise(number), "L" if number == 2 else None)
        mask = np.where(disc(radius=1 + number), 250, 3).astype(np.uint8)
        picture(root / "GT" / f"{number:06d}.png", mask, "RGB" if number == 3 else None)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "download" / "BUS"
    add_pictures(root)
    spreadsheet(
        root / "DatasetB.xlsx",
        [["Image", "Type", None], *([number, kind, "CYST"] for number, kind in TYPES.items())],
    )
    return root


def check(made: Prepared) -> None:
    assert made.status == 0
    assert made.dataset.classes == {1: "benign lesion", 2: "malignant lesion"}
    for number, kind in TYPES.items():
        index = 1 if kind == "Benign" else 2
        assert (made.label(f"{number:06d}") == index * disc(radius=1 + number)).all()
    assert (made.image("000001") == colour_noise(1)).all()


@pytest.mark.parametrize("place", ["beside", "above"])
def test_types_of_the_spreadsheet(download: Path, tmp_path: Path, place: str) -> None:
    if place == "above":
        (download / "DatasetB.xlsx").rename(download.parent / "DatasetB.xlsx")
    made = prepare("bus_us", download.parent, tmp_path / "out", "--splits", "published")
    check(made)
    assert len(made.names("test")) == 5
    assert not any(made.remarks(kind) for kind in ("missing", "faulty", "ignored"))


@pytest.mark.parametrize("numbers", [("{}", ","), ("{:06d}", ";"), ("{}.0", "\t"), ("{:06d}.png", ",")])
def test_types_of_a_text_table(download: Path, tmp_path: Path, numbers: tuple[str, str]) -> None:
    (download / "DatasetB.xlsx").unlink()
    rows = [("IMAGE", "Type"), *((numbers[0].format(number), kind) for number, kind in TYPES.items())]
    (download / "datasetb.csv").write_text("\n".join(numbers[1].join(row) for row in rows))
    check(prepare("bus_us", download, tmp_path / "out"))


def test_what_does_not_fit_together_is_named(download: Path, tmp_path: Path) -> None:
    rows = [
        ["Image", "Type"],
        [1, "Benign"],
        [2, "Malign"],
        [3, "Benign"],
        [3, "Malignant"],
        [5, "Benign"],
        [9, "Benign"],
    ]
    spreadsheet(download / "DatasetB.xlsx", [*rows, ["sum", None]], shared=False)
    (download / "GT" / "000005.png").unlink()
    (download / "original" / "note.txt").write_text("x")
    made = prepare("bus_us", download, tmp_path / "out")
    assert [case.name for cases in made.dataset.splits.values() for case in cases] == ["000001"]
    faulty = [sentence.rsplit("DatasetB.xlsx, ", 1)[1] for sentence in made.remarks("faulty")]
    assert faulty == [
        "row 3: the type 'Malign' of 000002, expected benign or malignant",
        "row 5: 000003 has another type in a row before",
    ]
    missing = made.remarks("missing")
    assert missing[0].startswith("the picture 000009, which")
    assert [sentence.split(str(download))[0] for sentence in missing[1:]] == ["the type of ", "the mask of "]
    ignored = made.remarks("ignored")
    assert ignored[0].endswith("row 8: 'sum' is not a number") and ignored[1].endswith("note.txt")


@pytest.mark.parametrize("fault", ["no table", "columns", "damaged", "no pictures"])
def test_without_types_nothing_is_prepared(download: Path, tmp_path: Path, fault: str) -> None:
    table = download / "DatasetB.xlsx"
    sentence = {
        "no table": "has no table of the types: expected DatasetB.xlsx or DatasetB.csv",
        "columns": "has no columns image and type; its first row is 'Image, Class'",
        "damaged": "cannot be read as an .xlsx table",
        "no pictures": "is not this download: expected folders original and GT",
    }[fault]
    if fault == "columns":
        spreadsheet(table, [["Image", "Class"], [1, "Benign"]])
    elif fault == "damaged":
        table.write_bytes(table.read_bytes()[:200])
    elif fault == "no table":
        table.unlink()
    else:
        (download / "GT").rename(download / "masks")
    with pytest.raises(ValueError, match=sentence):
        prepare("bus_us", download, tmp_path / "out")
    assert not (tmp_path / "out").exists()
