# SPDX-License-Identifier: Apache-2.0
"""BKAI: coloured masks in JPEG, doubled folders, zip files inside, pictures without masks, foreign colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kprism_model.preparation.colour_masks import ColourMask
from kprism_model.preparation.images import Grid
from tests.unit.preparation.downloads import colour_noise, picture, prepare

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def mask(left: tuple[int, int, int], right: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Two rectangles on black, with edges on the blocks of JPEG: (48, 64, 3)."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[16:32, :16] = left
    pixels[16:48, 32:48] = right
    return pixels


LABEL = np.zeros((48, 64), np.uint8)
LABEL[16:32, :16], LABEL[16:48, 32:48] = 1, 2


@pytest.fixture(params=["doubled", "single"])
def download(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    root = tmp_path / "bkai-igh-neopolyp"
    images, masks, test = (
        root / name / (name if request.param == "doubled" else "") for name in ("train", "train_gt", "test")
    )
    for number in range(10):
        colours = (RED, GREEN) if number < 8 else (GREEN, GREEN)
        picture(images / f"{number:032x}.jpeg", colour_noise(number, (48, 64)), quality=95)
        picture(masks / f"{number:032x}.jpeg", mask(*colours), quality=90)
    for number in (200, 201):
        picture(test / f"{number:032x}.jpeg", colour_noise(number, (48, 64)))
    (root / "sample_submission.csv").write_text("Id,Expected\n")
    return root


def test_nearest_colours_and_pictures_without_masks(download: Path, tmp_path: Path) -> None:
    made = prepare("bkai_endoscopy", download, tmp_path / "out")
    assert made.status == 0
    assert made.dataset.classes == {1: "neoplastic polyp", 2: "non-neoplastic polyp"}
    assert [len(made.names(split)) for split in ("training", "validation", "test")] == [7, 1, 2]
    assert (made.label(f"{3:032x}") == LABEL).all()
    assert (made.label(f"{9:032x}") == np.where(LABEL, 2, 0)).all()
    assert [Path(path).stem for path in made.remarks("unlabelled")] == [f"{200:032x}", f"{201:032x}"]
    assert not made.remarks("ignored")


def test_the_published_lists(download: Path, tmp_path: Path) -> None:
    made = prepare("bkai_endoscopy", download, tmp_path / "out", "--splits", "published")
    assert [len(made.names(split)) for split in ("training", "validation", "test")] == [8, 0, 2]


@pytest.mark.parametrize(
    ("left", "right", "sentence"),
    [
        (BLUE, GREEN, "are red and blue swapped?"),
        (BLUE, BLUE, "are red and blue swapped?"),
        (RED, YELLOW, "expected black or one of (255, 0, 0), (0, 255, 0) (red, green, blue)"),
        ((255, 255, 255), GREEN, "expected black or one of"),
    ],
)
def test_foreign_colours_are_faulty(
    download: Path, tmp_path: Path, left: tuple[int, int, int], right: tuple[int, int, int], sentence: str
) -> None:
    path = next(download.rglob(f"train_gt/**/{4:032x}.jpeg"))
    picture(path, mask(left, right), quality=90)
    made = prepare("bkai_endoscopy", download, tmp_path / "out")
    assert made.status == 1
    (faulty,) = made.remarks("faulty")
    assert sentence in faulty and f"{4:032x}.jpeg has the colour (" in faulty and "around row" in faulty
    assert ("swapped" in faulty) == ("swapped" in sentence)


@pytest.mark.parametrize("packed", [["train_gt.zip"], ["train.zip", "train_gt.zip", "test.zip"], []])
def test_packed_or_other_downloads_are_refused(tmp_path: Path, packed: list[str]) -> None:
    folder = tmp_path / "download"
    folder.mkdir()
    if len(packed) == 1:
        picture(folder / "train" / "0.jpeg", colour_noise(1))
    for name in packed:
        (folder / name).write_bytes(b"PK")
    lacking = "train_gt" if len(packed) == 1 else "train and train_gt"
    advice = f"; unpack {', '.join(sorted(packed))} first" if packed else ""
    with pytest.raises(ValueError, match=f"has no pictures in {lacking}: expected .* train and train_gt{advice}\n"):
        prepare("bkai_endoscopy", folder, tmp_path / "out")


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_only_pixels_near_edges_depend_on_jpeg(tmp_path: Path, quality: int) -> None:
    rows, columns = np.ogrid[:200, :300]
    label = np.zeros((200, 300), np.uint8)
    label[(rows - 90) ** 2 + (columns - 100) ** 2 < 60**2] = 1
    label[(rows - 110) ** 2 + (columns - 190) ** 2 < 50**2] = 2
    pixels = np.array([(0, 0, 0), RED, GREEN], np.uint8)[label]
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=quality)
    read = ColourMask(tmp_path / "a.jpg", {RED: 1, GREEN: 2}).read(Grid((200, 300)))
    row, column = np.nonzero(read != label)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(label, 4, mode="edge"), (9, 9))
    assert all(len(np.unique(windows[at])) > 1 for at in zip(row, column, strict=True))
    assert len(row) < 600


def test_a_large_mask_is_read_in_parts(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 3, (1500, 1000)).astype(np.uint8)
    Image.fromarray(np.array([(0, 0, 0), RED, GREEN], np.uint8)[label]).save(tmp_path / "a.png")
    assert (ColourMask(tmp_path / "a.png", {RED: 1, GREEN: 2}).read(Grid((1500, 1000))) == label).all()
