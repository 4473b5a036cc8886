# SPDX-License-Identifier: Apache-2.0
"""Masks in all modes of pictures, damaged pictures, counting, and pictures that are equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kprism_model.preparation.findings import Findings, FoundCase
from kprism_model.preparation.images import Grid, StoredImage
from kprism_model.preparation.labels import MaskPictures, label_counts, mask_values, read_rgb
from kprism_model.preparation.pictures import add_file, join_equal_pictures
from tests.unit.preparation.downloads import colour_noise, disc, picture

GRID = Grid((24, 32))


def stored(path: Path, mode: str, white: int) -> None:
    """Write a disc in a mode of Pillow, `white` on black."""
    mask: NDArray[np.uint8] = white * disc()
    if mode.startswith("I"):
        Image.fromarray(mask.astype(np.uint16) * (257 if white == 255 else 1)).save(path)
    elif mode == "palette":  # number 3 is black and number 7 is white
        made = Image.fromarray(np.where(mask, 7, 3).astype(np.uint8)).convert("P")
        made.putpalette([white * (number == 7) for number in range(8) for _ in range(3)])
        made.save(path)
    else:
        Image.fromarray(mask).convert(mode).save(path)


@pytest.mark.parametrize(
    ("mode", "white"),
    [("1", 255), *((mode, white) for mode in ("L", "LA", "RGB", "RGBA", "P", "palette", "I;16") for white in (1, 255))],
)
def test_masks_of_all_modes(tmp_path: Path, mode: str, white: int) -> None:
    path = tmp_path / "mask.png"
    stored(path, mode, white)
    assert (MaskPictures((path,), 3).read(GRID) == 3 * disc()).all()
    assert (mask_values(path, GRID) == read_rgb(path, GRID).max(axis=-1)).all()


@pytest.mark.parametrize("kept", [20, 300, 700])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_pictures_are_named(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"a{suffix}"
    picture(path, colour_noise(1))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"a\\{suffix} cannot be read as a picture"):
        read_rgb(path, GRID)
    with pytest.raises(ValueError, match=f"a\\{suffix} is damaged or cut off"):
        StoredImage(path).write(tmp_path / "copy")


def test_a_png_with_a_broken_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture(path, np.zeros((400, 400, 3), np.uint8) + colour_noise(0, (400, 400)))
    content = bytearray(path.read_bytes())
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    content[second : second + 4] = b"\x00\x01\x02\x03"
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"a\.png"):
        StoredImage(path).write(tmp_path / "copy")


@pytest.mark.parametrize("shape", [(0,), (5, 7), (3000, 2000), (130, 256, 129)])
def test_voxels_are_counted_in_parts(shape: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).integers(0, 5, shape).astype(np.uint8)
    counts = label_counts(labels)
    assert counts.shape == (256,)
    assert counts.tolist() == [int((labels == index).sum()) for index in range(256)]


@pytest.mark.parametrize("order", ["abc", "acb", "bca"])
def test_files_of_one_name(tmp_path: Path, order: str) -> None:
    for name, content in zip(order, (b"1", b"1", b"2"), strict=True):
        (tmp_path / name).write_bytes(content)
    files: dict[str, Path] = {}
    findings, unclear = Findings(), set[str]()
    for name in "abc":
        add_file(files, "case", tmp_path / name, findings, unclear)
    add_file(files, "other", tmp_path / "a", findings, unclear)
    assert files == {"case": tmp_path / "a", "other": tmp_path / "a"}
    assert unclear == {"case"}
    same = [name for name in "bc" if (tmp_path / name).read_bytes() == (tmp_path / "a").read_bytes()]
    assert findings.remarks.get("doubled", []) == [
        f"{tmp_path / name} is a copy of {tmp_path / 'a'}, which is used" for name in same
    ]
    assert len(findings.remarks["faulty"]) == 2 - len(same)


def found(folder: Path, pixels: dict[str, NDArray[np.uint8]], patients: dict[str, str] | None = None) -> Findings:
    findings = Findings()
    mask = folder / "mask.png"
    for name, values in pixels.items():
        picture(folder / f"{name}.png", values, compress_level=1 + len(findings.cases) % 2)
        picture(mask, disc(values.shape[:2]))
        patient = (patients or {}).get(name, name)
        findings.cases.append(
            FoundCase(name, patient, None, StoredImage(folder / f"{name}.png"), MaskPictures((mask,), 1))
        )
    return findings


def test_chains_of_equal_pictures_are_one_patient(tmp_path: Path) -> None:
    a, b, c = (colour_noise(seed) for seed in range(3))
    one_off = c.copy()
    one_off[0, 0, 0] ^= 1
    pixels = {"1": a, "2": b, "3": a, "4": b, "5": c, "6": one_off, "7": a.reshape(32, 24, 3)}
    findings = found(tmp_path, pixels, {"3": "p", "4": "p"})
    join_equal_pictures(findings)
    patients = {case.name: case.patient for case in findings.cases}
    assert len({patients[name] for name in "1234"}) == 1
    assert len(set(patients.values())) == 4
    assert findings.remarks == {
        "doubled": [
            "1 and 3 are the same picture; they count as one patient",
            "2 and 4 are the same picture; they count as one patient",
        ]
    }


def test_large_pictures_are_compared_by_their_files(tmp_path: Path) -> None:
    large = np.zeros((1500, 1500), np.uint8)
    other = large.copy()
    other[700, 700] = 9
    findings = found(tmp_path, {"1": large, "2": other, "3": large})
    join_equal_pictures(findings)
    assert [case.patient for case in findings.cases] == ["1", "2", "1"]


def test_a_picture_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    findings = found(tmp_path, {"1": colour_noise(1), "2": colour_noise(1), "3": colour_noise(1)})
    path = tmp_path / "2.png"
    path.write_bytes(path.read_bytes()[:400])
    join_equal_pictures(findings)
    assert [case.patient for case in findings.cases] == ["1", "2", "1"]
