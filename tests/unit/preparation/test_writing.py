# SPDX-License-Identifier: Apache-2.0
"""A second run goes on, nothing is half-written, and other folders are left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kprism_model.preparation.catalogue import catalogue
from tests.unit.preparation.downloads import colour_noise, disc, picture, prepare


@pytest.fixture
def download(tmp_path: Path) -> Path:
    for kind in ("benign", "malignant"):
        for number in range(1, 6):
            path = tmp_path / "download" / kind / f"{kind} ({number}).png"
            picture(path, colour_noise(number + 10 * (kind == "malignant")))
            picture(path.with_name(f"{path.stem}_mask.png"), 255 * disc())
    return tmp_path / "download"


def written(out: Path) -> dict[str, tuple[int, int]]:
    """What tells whether each label was written again."""
    files = [(path.name, path.stat()) for path in (out / "labels").iterdir()]
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in files}


def test_a_second_run_writes_nothing_again(download: Path, tmp_path: Path) -> None:
    first = prepare("busi_us", download, tmp_path / "out")
    before = written(tmp_path / "out")
    picture_before = (tmp_path / "out" / "overview.png").stat().st_mtime_ns
    assert prepare("busi_us", download, tmp_path / "out").content == first.content
    assert written(tmp_path / "out") == before
    assert (tmp_path / "out" / "overview.png").stat().st_mtime_ns == picture_before


@pytest.mark.parametrize("change", ["changed", "removed", "label deleted", "record cut off"])
def test_a_second_run_writes_what_changed(download: Path, tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    prepare("busi_us", download, out)
    before = written(out)
    mask = download / "benign" / "benign (2)_mask.png"
    records = out / "preparation.jsonl"
    lines = records.read_text().splitlines()
    position = next(place for place, line in enumerate(lines) if json.loads(line).get("name") == "benign_002")
    if change == "changed":
        picture(mask, 255 * disc(radius=3))
    elif change == "removed":
        mask.unlink()
        mask.with_name("benign (2).png").unlink()
    elif change == "label deleted":
        (out / "labels" / "benign_002.png").unlink()
    else:
        kept = [*lines[:position], *lines[position + 1 :]]
        records.write_text("\n".join([*kept, lines[position][:40]]))
    made = prepare("busi_us", download, out)
    after = written(out)
    assert {name for name in before if after.get(name) != before[name]} == {"benign_002.png"}
    assert ("benign_002.png" in after) == (change != "removed")
    assert ("benign_002" in made.printed) is False
    if change == "changed":
        assert (made.label("benign_002") == disc(radius=3)).all()


def test_parts_of_a_killed_run_are_removed(download: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("busi_us", download, out)
    (out / "images" / ".0123.part.png").write_bytes(b"half")
    prepare("busi_us", download, out)
    assert not list(out.rglob(".*"))


def test_the_download_stays_as_it_was(download: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in download.rglob("*.png")}
    prepare("busi_us", download, tmp_path / "out")
    assert {path: path.read_bytes() for path in download.rglob("*.png")} == before


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"letter.txt": "dear"}, "holds other files, expected an empty folder"),
        ({"preparation.jsonl": "", "dataset.json": '{"name": "acdc_mr"}'}, "holds the data set 'acdc_mr' already"),
    ],
)
def test_other_folders_are_left_alone(download: Path, tmp_path: Path, files: dict[str, str], sentence: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, content in files.items():
        (out / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        prepare("busi_us", download, out)
    assert {path.name for path in out.iterdir()} == set(files)


def test_patients_stay_on_one_list_and_names_are_those_of_the_classes(download: Path, tmp_path: Path) -> None:
    made = prepare("busi_us", download, tmp_path / "out", "--seed", "3")
    lists = [{case.patient for case in made.dataset.cases(split)} for split in ("training", "validation", "test")]
    assert [len(patients) for patients in lists] == [7, 1, 2]
    assert not (lists[0] & lists[1] or lists[0] & lists[2] or lists[1] & lists[2])
    assert "drawn (seed 3)" in made.content["splits"]


def test_options_of_other_downloads_are_refused(download: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="busi_us has no option --channel"):
        prepare("busi_us", download, tmp_path / "out", "--channel", "flair")


def test_every_entry_has_a_layout_and_says_where_it_is_from() -> None:
    for entry in catalogue().values():
        assert entry.licence and entry.url and entry.citation, entry.name
        assert entry.published_split in ("", "official", "shuffled", "all for test"), entry.name
