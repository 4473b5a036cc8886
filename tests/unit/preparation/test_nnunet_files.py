# SPDX-License-Identifier: Apache-2.0
"""nnU-Net raw folders with every kind of file: NIfTI, NRRD, MetaImage, pictures; what cannot be used is named."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from PIL import Image

from tests.unit.preparation.downloads import blocks, colour_noise, disc, noise, picture, prepare
from tests.unit.preparation.nnunet_folders import LABELS, NAMES, TURNED, add_cases, describe, write

SHEARED = np.array([[0.8, 0, 0, -20], [0, 0.8, 0.7, 10], [0, 0, 2.5, 3], [0, 0, 0, 1]])
"""As of a CT with a tilted gantry."""


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    "affine", [TURNED, np.diag([0.5, 0.5, 2.0, 1.0]), SHEARED], ids=["turned", "straight", "sheared"]
)
def test_volumes_of_other_formats(tmp_path: Path, ending: str, affine: NDArray[np.float64]) -> None:
    folder = tmp_path / "Dataset008_Other"
    kinds = (np.int16, np.float32, np.uint8 if ending == ".nii" else np.int64)  # 64 bits are rare in NIfTI
    for number, kind in enumerate(kinds, start=1):
        image = noise(number).astype(kind)
        write(folder / "imagesTr" / f"x{number}_0000{ending}", image, affine)
        write(folder / "labelsTr" / f"x{number}{ending}", blocks(number, (1, 2)), affine)
    describe(folder, 2, LABELS, file_ending=ending)
    made = prepare("nnunet", folder, tmp_path / "out")
    assert made.status == 0
    for number, kind in enumerate(kinds, start=1):
        assert (made.image(f"x{number}") == noise(number).astype(kind)).all()
        assert (made.label(f"x{number}") == blocks(number, (1, 2))).all()
        for file in (made.case(f"x{number}").image, made.case(f"x{number}").label):
            assert np.allclose(nib.load(file).affine, affine, atol=1e-5)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("is_colour", [True, False])
def test_pictures(tmp_path: Path, ending: str, is_colour: bool) -> None:
    folder = tmp_path / "Dataset009_Polyps"
    for number in range(1, 4):
        image = colour_noise(number) if is_colour else colour_noise(number)[..., 0]
        picture(folder / "imagesTr" / f"p{number}_0000{ending}", image)
        picture(folder / "labelsTr" / f"p{number}{ending}", 2 * disc(radius=number) + disc(centre=(2, 2), radius=1))
    channels = ("R", "G", "B") if is_colour else ("X-ray",)
    describe(folder, 2, {"background": 0, "polyp": 2, "tool": 1}, channels, file_ending=ending, name="Polyps & Tools")
    made = prepare("nnunet", folder, tmp_path / "out")
    assert made.status == 0 and made.dataset.name == "polyps_tools"
    assert made.dataset.modality == ("colour picture" if is_colour else "X-ray")
    assert made.dataset.classes == {1: "tool", 2: "polyp"}
    for number in range(1, 4):
        image = colour_noise(number) if is_colour else colour_noise(number)[..., 0]
        assert (made.image(f"p{number}") == image).all()
        assert (made.label(f"p{number}") == 2 * disc(radius=number) + disc(centre=(2, 2), radius=1)).all()
    assert "channel" not in made.content and not made.remarks("missing")


def test_grey_pictures_of_three_channels_are_three_files(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset017_Grey"
    for number in range(1, 4):
        for channel in range(3) if number < 3 else [0]:
            picture(folder / "imagesTr" / f"p{number}_{channel:04d}.png", colour_noise(number)[..., channel])
        picture(folder / "labelsTr" / f"p{number}.png", disc(radius=number))
    describe(folder, 2, {"background": 0, "polyp": 1}, ("red", "green", "blue"), file_ending=".png")
    made = prepare("nnunet", folder, tmp_path / "out", "--channel", "green")
    assert (made.image("p2") == colour_noise(2)[..., 1]).all() and (made.label("p2") == disc(radius=2)).all()
    assert made.remarks("missing") == ["p3: channel 1 (green)", "p3: channel 2 (blue)"]


def test_a_palette_counts_by_its_numbers_and_colours_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset010_P"
    for number in range(1, 4):
        picture(folder / "imagesTr" / f"p{number}_0000.png", colour_noise(number)[..., 0])
    (folder / "labelsTr").mkdir()
    label = Image.fromarray(disc()).convert("P")
    label.putdata(disc().reshape(-1).tolist())
    label.putpalette([0, 0, 0, 200, 30, 90])
    label.save(folder / "labelsTr" / "p1.png")
    picture(folder / "labelsTr" / "p2.png", np.stack([disc(), 0 * disc(), disc()], axis=-1))
    picture(folder / "labelsTr" / "p3.png", disc(), "RGB")
    describe(folder, 2, {"background": 0, "polyp": 1}, ("X-ray",))
    made = prepare("nnunet", folder, tmp_path / "out")
    assert made.status == 1
    assert (made.label("p1") == disc()).all() and (made.label("p3") == disc()).all()
    (faulty,) = made.remarks("faulty")
    assert "p2.png is a picture in colour, expected label values in grey" in faulty


@pytest.mark.parametrize("shape", [(1, 24, 32), (24, 32, 1)])
def test_pictures_of_version_1_are_volumes_of_one_slice(tmp_path: Path, shape: tuple[int, ...]) -> None:
    folder = tmp_path / "Task120_Roads"
    for number in range(1, 4):
        write(folder / "imagesTr" / f"r{number}_0000.nii.gz", noise(number, shape), np.diag([999.0, 1, 1, 1]))
        write(folder / "labelsTr" / f"r{number}.nii.gz", blocks(number, (1,), shape), np.diag([999.0, 1, 1, 1]))
    describe(folder, 1, {"background": 0, "vessel": 1}, ("rgb_to_0_1",))
    made = prepare("nnunet", folder, tmp_path / "out")
    assert (made.label("r2") == blocks(2, (1,), shape)).all() and (made.image("r2") == noise(2, shape)).all()
    table = [line.split() for line in made.printed.splitlines() if line.startswith(("training", "validation", "test"))]
    assert [row[1] for row in table[:3]] == [row[3] for row in table[:3]]  # as many slices as cases


@pytest.mark.parametrize("fault", ["pages", "nrrd with channels", "nrrd cut off", "shape"])
def test_files_that_cannot_be_used_are_named(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "Dataset014_Faulty"
    add_cases(folder, NAMES)
    sentences = {
        "pages": "bad_0000.tif has 3 pages, expected one picture",
        "nrrd with channels": "bad_0000.nrrd has the shape (9, 8, 4) and 2 channels, expected three axes and one",
        "nrrd cut off": "bad_0000.nrrd cannot be read",
        "shape": "bad.nrrd has the shape (9, 8, 5), but its image (9, 8, 4)",
    }
    image, label = folder / "imagesTr" / "bad_0000.nrrd", folder / "labelsTr" / "bad.nrrd"
    write(label, blocks(1, (1, 2), (9, 8, 5) if fault == "shape" else (9, 8, 4)))
    if fault == "pages":
        pages = [Image.fromarray(disc()) for _ in range(3)]
        pages[0].save(image.with_suffix(".tif"), save_all=True, append_images=pages[1:])
    elif fault == "nrrd with channels":
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 8, 9, 2), np.int16), isVector=True), str(image))
    else:
        write(image, noise(1))
    if fault == "nrrd cut off":
        image.write_bytes(image.read_bytes()[:400])
    describe(folder, 2, LABELS)
    made = prepare("nnunet", folder, tmp_path / "out")
    assert made.status == 1
    (faulty,) = made.remarks("faulty")
    assert sentences[fault] in faulty
    assert not any("bad" in path.name for path in (tmp_path / "out").rglob("*"))


def test_a_missing_simpleitk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Dataset016_Itk"
    write(folder / "imagesTr" / "x_0000.nrrd", noise(1))
    write(folder / "labelsTr" / "x.nrrd", blocks(1, (1, 2)))
    describe(folder, 2, LABELS)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ValueError, match="is read with SimpleITK, which is not installed"):
        prepare("nnunet", folder, tmp_path / "out")
