# SPDX-License-Identifier: Apache-2.0
"""TotalSegmentator: a mask for each structure, a table with a byte order mark, masks that overlap or are absent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kprism_model.preparation.catalogue import catalogue
from tests.unit.preparation.downloads import blocks, noise, prepare, volume

NAMES = ("liver", "kidney_right", "esophagus", "vertebrae_L5", "rib_left_1", "portal_vein_and_splenic_vein")
CLASSES = ("right kidney", "liver", "oesophagus", "vertebra L5", "portal vein and splenic vein", "left rib 1")
ORDER = ("kidney_right", "liver", "esophagus", "vertebrae_L5", "portal_vein_and_splenic_vein", "rib_left_1")
"""Of version 2: the values of the prepared labels are the places in it."""


def masks(number: int) -> NDArray[np.uint8]:
    return blocks(number, (1, 2, 3, 4, 5, 6))


def add_case(root: Path, number: int, names: Sequence[str] = NAMES) -> Path:
    folder = root / f"s{number:04d}"
    volume(folder / "ct.nii.gz", noise(number))
    for name in names:
        value = ORDER.index(name) + 1 if name in ORDER else 99
        volume(folder / "segmentations" / f"{name}.nii.gz", (masks(number) == value).astype(np.uint8))
    return folder


def write_table(path: Path, lists: dict[int, str], columns: str = "") -> None:
    rows = [f"s{number:04d};60;m;A;ct abdomen-pelvis;{split}" + columns for number, split in lists.items()]
    path.write_text("\ufeffimage_id;age;gender;institute;study_type;split\n" + "\n".join(rows) + "\n", encoding="utf-8")


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "TotalSegmentator"
    lists = {0: "train", 1: "train", 3: "train", 7: "val", 20: "test"}
    for number in lists:
        add_case(root, number)
    write_table(root / "meta.csv", lists, ";siemens;;120")
    return root


@pytest.mark.parametrize("above", [0, 1])
def test_masks_become_one_label_in_the_order_of_version_2(download: Path, tmp_path: Path, above: int) -> None:
    made = prepare("totalsegmentator_ct", [download, tmp_path][above], tmp_path.parent / f"{tmp_path.name}_out")
    assert made.status == 0 and not made.content["prepared"]["remarks"]
    assert made.dataset.classes == dict(enumerate(CLASSES, start=1))
    assert made.dataset.modality == "CT"
    assert made.names("training") == {"s0000", "s0001", "s0003"}
    assert made.names("validation") == {"s0007"} and made.names("test") == {"s0020"}
    for number in (0, 7, 20):
        assert (made.label(f"s{number:04d}") == masks(number)).all()
        assert (made.image(f"s{number:04d}") == noise(number)).all()


def test_overlaps_are_counted_and_the_later_mask_counts(download: Path, tmp_path: Path) -> None:
    liver = download / "s0001" / "segmentations" / "liver.nii.gz"
    both = np.isin(masks(1), (1, 2, 6)).astype(np.uint8)
    volume(liver, both)
    expected = masks(1).copy()
    expected[expected == 1] = 2
    over, under = int((masks(1) == 1).sum()), int((masks(1) == 6).sum())
    pairs = sorted([(over, "liver over kidney_right"), (under, "rib_left_1 over liver")], reverse=True)
    sentence = "s0001: voxels in two masks: " + ", ".join(f"{text} {count}" for count, text in pairs)
    for _ in range(2):  # the second run reads nothing, but tells it again
        made = prepare("totalsegmentator_ct", download, tmp_path / "out")
        assert made.remarks("note") == [sentence]
        assert (made.label("s0001") == expected).all()


def test_an_absent_mask_is_not_an_empty_one(download: Path, tmp_path: Path) -> None:
    (download / "s0000" / "segmentations" / "liver.nii.gz").unlink()
    volume(download / "s0001" / "segmentations" / "liver.nii.gz", np.zeros((9, 8, 4), np.uint8))
    made = prepare("totalsegmentator_ct", download, tmp_path / "out")
    assert made.remarks("missing") == ["s0000: no mask of liver; left out, because that does not say that it is empty"]
    assert made.names("training") == {"s0001", "s0003"}
    assert (made.label("s0001") == np.where(masks(1) == 2, 0, masks(1))).all()


def test_a_structure_of_few_images_is_no_class(download: Path, tmp_path: Path) -> None:
    volume(download / "s0003" / "segmentations" / "face.nii.gz", np.ones((9, 8, 4), np.uint8))
    made = prepare("totalsegmentator_ct", download, tmp_path / "out")
    assert made.remarks("ignored") == ["face: only 1 of 5 images have a file of it; it is no class"]
    assert tuple(made.dataset.classes.values()) == CLASSES
    assert (made.label("s0003") == masks(3)).all()


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("heart_ventricle_left", "liver", "heart_atrium_left"), ("liver", "left atrium", "left ventricle")),
        (("vertebrae_L6", "spleen"), ("spleen", "vertebra L6")),
        (("new_organ_left", "aorta"), ("aorta", "new organ left")),
    ],
)
def test_structures_of_other_versions(tmp_path: Path, names: Sequence[str], classes: Sequence[str]) -> None:
    root = tmp_path / "download"
    for number in range(3):
        add_case(root, number, names)
    write_table(root / "meta.csv", {0: "train", 1: "train", 2: "test"})
    made = prepare("totalsegmentator_ct", root, tmp_path / "out")
    assert tuple(made.dataset.classes.values()) == tuple(classes)
    assert made.names("test") == {"s0002"}


def test_what_is_missing_or_known_to_be_faulty_is_named(download: Path, tmp_path: Path) -> None:
    (add_case(download, 21) / "ct.nii.gz").unlink()
    add_case(download, 22, ())
    add_case(download, 864)
    table = download / "meta.csv"
    table.write_text(table.read_text(encoding="utf-8") + "s0999;60;m;A;ct;train\n", encoding="utf-8")
    made = prepare("totalsegmentator_ct", download, tmp_path / "out")
    assert made.remarks("missing")[0] == "the folder s0999, which is in meta.csv"
    assert made.remarks("missing")[1].endswith("s0021/ct.nii.gz")
    assert [Path(path).parent.name for path in made.remarks("unlabelled")] == ["s0022"]
    assert "s0864 is not in meta.csv; it counts as training" in made.remarks("note")
    assert any(sentence.startswith("s0864 is known: the image is damaged") for sentence in made.remarks("note"))
    assert "s0864" in made.names("training")


def test_a_mask_of_two_values_is_faulty(download: Path, tmp_path: Path) -> None:
    volume(download / "s0001" / "segmentations" / "liver.nii.gz", masks(1))
    made = prepare("totalsegmentator_ct", download, tmp_path / "out")
    assert made.status == 1
    assert (
        "liver.nii.gz holds the values [1, 2, 3, 4, 5], expected 0 and one positive value" in made.remarks("faulty")[0]
    )


def test_another_folder_is_refused(tmp_path: Path) -> None:
    volume(tmp_path / "download" / "imagesTr" / "s0000.nii.gz", noise(1))
    with pytest.raises(ValueError, match=r"is not this download: expected folders such as s0000 with ct.nii.gz"):
        prepare("totalsegmentator_ct", tmp_path / "download", tmp_path / "out")


def test_the_table_has_all_structures_of_the_versions() -> None:
    values = catalogue()["totalsegmentator_ct"].values
    assert len(values) == 117 + 7 + 1 and len(set(values.values())) == len(values)
    assert list(values)[50] == "heart" and list(values)[116] == "costal_cartilages"  # 51 and 117 in version 2
    assert not [name for name in values.values() if "_" in name or name != name.strip()]
