# SPDX-License-Identifier: Apache-2.0
"""The matrix of files and readers: what we read, where a click lands and where our mask lies, against other programs.

python -m tests.interop.matrix          prints, for each group, how many combinations there are and how many fail
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import nrrd
import numpy as np
import SimpleITK

from benchmarks.places import ROOT

sys.path.insert(0, str(ROOT / "apps" / "kprism"))

from kprism_model.volumes.slice_map import SliceMap
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import read_image, read_mask
from lib.imaging.writing import ResultFormat, write_mask
from tests.interop import small_files
from tests.interop.other_readers import Read, by_nibabel, by_simpleitk, readers_of
from tests.interop.small_files import AFFINE, DTYPES, ORIENTATIONS, SHAPE

MARK = 111
"""The value of the voxel that is clicked on and marked."""

ANSWERS = (".nii.gz", ".nrrd", ".mha")
"""The formats of our masks."""

CLOSE = 2e-3
"""Millimetres by which positions may differ: NIfTI stores affines in 32 bits."""


class Combination(NamedTuple):
    """A kind of file; `check` gets an empty folder and raises if anything is not as the other programs have it."""

    name: str
    check: Callable[[Path], None]


def orientation_cells() -> Iterator[Combination]:
    """Every orientation and data type of every format; with and without a slope for NIfTI."""
    for (row, orientation), dtype in product(enumerate(ORIENTATIONS), DTYPES):
        for suffix, scale in (
            *((".nii.gz", scale) for scale in ((1.0, 0.0), (0.5, -10.0))),
            (".nrrd", (1.0, 0.0)),
            (".mha", (1.0, 0.0)),
            *([(".mhd", (1.0, 0.0))] if dtype == "int16" else []),  # which differs from .mha by a file alone
        ):
            name = f"{suffix} {dtype} orientation {row} scale {scale}"
            yield Combination(name, _orientation_check(suffix, dtype, orientation, scale, row))


def _orientation_check(
    suffix: str, dtype: str, orientation: np.ndarray, scale: tuple[float, float], row: int
) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        path = folder / f"image{suffix}"
        array, affine = small_files.stored(dtype, orientation)
        if suffix == ".nii.gz":
            path = folder / "image.nii"
            small_files.save_nifti(path, array, affine, *scale)
        elif suffix == ".nrrd":
            small_files.save_nrrd(path, array, affine)
        else:
            small_files.save_metaimage(path, array, affine, compress=bool(row % 2))
        image = read_image(path, "the image")
        assert image.array.dtype == dtype
        np.testing.assert_allclose(image.affine, affine, atol=1e-4)
        check_against(image, path, folder, scale)

    return check


def check_against(image: MedicalImage, path: Path, folder: Path, scale: tuple[float, float] = (1.0, 0.0)) -> None:
    """Values, click and masks of an image against all other readers of its file; `scale` makes values of `MARK`."""
    value = MARK * scale[0] + scale[1]
    [voxel] = np.argwhere(np.asarray(image.values) == value)
    place = image.locate(tuple(voxel.tolist()))
    assert np.asarray(image.to_slices(image.values))[place] == value, "the click lands on another voxel"
    theirs = {name: reader(path) for name, reader in readers_of(path).items()}
    for name, other in theirs.items():
        np.testing.assert_array_equal(image.values, other.array, err_msg=f"voxels of {name}")
    labels = np.zeros(image.grid, np.uint8)
    labels[tuple(voxel)] = 1
    for extension in ANSWERS if path.suffix == ".nii" else (".nrrd", ".mha"):
        mask = written(image, labels, extension, folder)
        for name, reader in readers_of(mask).items():
            other = reader(mask)
            np.testing.assert_array_equal(other.array, labels, err_msg=f"{extension} as {name} reads it")
            away = np.linalg.norm(other.point_of(1) - theirs.get(name, theirs["SimpleITK"]).point_of(value))
            assert away < CLOSE, f"{extension}: {name} reads the mask {away:.4f} mm beside the image"
        own = read_mask(mask, "the mask")
        np.testing.assert_array_equal(image.on_grid(own, "the mask"), labels)


def written(image: MedicalImage, labels: np.ndarray, extension: str, folder: Path) -> Path:
    """Our mask as a file that keeps until the folder is removed."""
    file = write_mask(
        SliceMap.of(labels, image.orientation), image, ResultFormat.parse({"result_extension": extension}, image)
    )
    return file.rename(folder / f"mask{extension}")


def form_cells() -> Iterator[Combination]:
    """NIfTI headers with two places, in every unit: labels that others write on them, and what they read of ours."""
    for kind, qform, sform, unit in small_files.nifti_headers():
        if (qform, sform) != (0, 0) or kind == "same":
            yield Combination(f"sform {kind} codes {qform} {sform} {unit}", _form_check(kind, qform, sform, unit))


def _form_check(kind: str, qform: int, sform: int, unit: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        path = folder / "image.nii.gz"
        nibabel.save(small_files.with_forms(kind, qform, sform, unit, small_files.voxels()), path)
        check_foreign_labels(path, folder)

    return check


def check_foreign_labels(path: Path, folder: Path) -> None:
    """Labels that nibabel and ITK write of an image lie on it, voxel by voxel, and ours lie on it for both."""
    image = read_image(path, "the image")
    labels = (np.random.default_rng(1).random(image.grid) < 0.5).astype(np.uint8)
    labels[np.asarray(image.values) == MARK] = 1
    for name, label in foreign_labels(path, labels, folder):
        np.testing.assert_array_equal(image.on_grid(read_mask(label, "the label"), "the label"), labels, err_msg=name)
    only = (np.asarray(image.values) == MARK).astype(np.uint8)
    readers = {name: reader for name, reader in READERS.items() if is_readable(path, reader)}
    theirs = {name: reader(path) for name, reader in readers.items()}
    for extension in ANSWERS:
        mask = written(image, only, extension, folder)
        for name in readers if "nii" in extension else readers.keys() - {"nibabel"}:
            other = readers[name](mask)
            np.testing.assert_array_equal(other.array, only)
            away = np.linalg.norm(other.point_of(1) - theirs[name].point_of(MARK))
            voxel = np.linalg.norm(theirs[name].affine[:3, :3], axis=0).max()
            assert away < CLOSE * max(1.0, voxel), f"{extension}: {name} reads the mask {away} mm beside the image"


READERS: dict[str, Callable[[Path], Read]] = {"SimpleITK": by_simpleitk, "nibabel": by_nibabel}
"""Those of NIfTI."""


def is_readable(path: Path, reader: Callable[[Path], Read]) -> bool:
    """Whether a program can read an image: ITK refuses sheared ones."""
    try:
        reader(path)
    except RuntimeError:
        return False
    return True


def foreign_labels(path: Path, labels: np.ndarray, folder: Path) -> Iterator[tuple[str, Path]]:
    """Labels of an image, as tools write them that read it with nibabel or with ITK."""
    image: Any = nibabel.load(path)
    on_file = labels.reshape(image.shape)
    yield "nibabel, affine", _saved(nibabel.Nifti1Image(on_file, image.affine), folder / "affine.nii.gz")
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    yield "nibabel, header", _saved(nibabel.Nifti1Image(on_file, None, header), folder / "header.nii.gz")
    if is_readable(path, by_simpleitk):
        source = SimpleITK.ReadImage(str(path))
        mask = SimpleITK.GetImageFromArray(
            np.ascontiguousarray(
                np.squeeze(labels[..., None], -1).T if source.GetDimension() == 3 else labels[..., 0].T
            )
        )
        mask.CopyInformation(source)
        for extension in ANSWERS:
            SimpleITK.WriteImage(mask, str(folder / f"itk{extension}"))
            yield f"ITK, {extension}", folder / f"itk{extension}"
        if source.GetDimension() == 2:  # 3D Slicer has volumes only
            volume = SimpleITK.JoinSeries(mask)
            SimpleITK.WriteImage(volume, str(folder / "volume.nii.gz"))
            yield "ITK, one slice", folder / "volume.nii.gz"


def _saved(image: nibabel.Nifti1Image, path: Path) -> Path:
    nibabel.save(image, path)
    return path


def shape_cells() -> Iterator[Combination]:
    """NIfTI files of two axes and of four, with places across their plane."""
    affines = {"plain": np.diag([-1.0, -1.0, 1.0, 1.0]), "with an origin": AFFINE.copy()}
    affines["along z"] = AFFINE.copy()
    affines["along z"][2, 3] = -250
    affines["first axis reversed"] = AFFINE @ np.diag([-1.0, 1, 1, 1])
    for name, shape in (
        ("2-D", SHAPE[:2]),
        ("4-D", (*SHAPE, 1)),
        ("5-D", (*SHAPE, 1, 1)),
        ("one slice", (*SHAPE[:2], 1)),
    ):
        for (place, affine), codes in product(affines.items(), ((1, 1), (0, 2), (1, 0), (2, 2), (0, 0))):
            yield Combination(f"{name} {place} codes {codes}", _shape_check(shape, affine, codes))


def _shape_check(shape: tuple[int, ...], affine: np.ndarray, codes: tuple[int, int]) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        array = np.arange(1, np.prod(shape) + 1, dtype=np.int16)
        array[0], array[-1] = MARK, 1
        array[1:-1][array[1:-1] == MARK] = 2
        image = nibabel.Nifti1Image(np.roll(array, 17).reshape(shape), affine)
        image.set_qform(affine, codes[0])
        image.set_sform(affine, codes[1])
        path = folder / "image.nii.gz"
        nibabel.save(image, path)
        check_foreign_labels(path, folder)

    return check


WORDS = {"L": "left", "R": "right", "P": "posterior", "A": "anterior", "S": "superior", "I": "inferior"}
ITK_SPACES = ("LPS", "LAS", "RAS")


def space_cells() -> Iterator[Combination]:
    """NRRD spaces by their words and letters, in several cases; and spaces that do not name the patient's axes."""
    for letters in map("".join, product("LR", "PA", "SI")):
        words = "-".join(WORDS[letter] for letter in letters)
        signs = np.array([1 if letter in "RAS" else -1 for letter in letters], float)
        is_known = letters in ITK_SPACES
        for space in (words, letters, words.title(), letters.lower(), words.upper()):
            yield Combination(f"space {space}", _space_check({"space": space}, signs, is_known))
        time = {"space": f"{words}-time"}
        yield Combination(f"space {words}-time", _space_check(time, signs, False))
    for space in ("scanner-xyz", "Scanner-XYZ", "3D-right-handed", "3D-left-handed"):
        yield Combination(f"space {space}", _space_check({"space": space}, np.array([-1.0, -1, 1]), True))
    yield Combination("space dimension alone", _space_check({"space dimension": 3}, np.array([-1.0, -1, 1]), True))


def _space_check(fields: dict[str, Any], signs: np.ndarray, is_known: bool) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        directions, origin = signs[:, None] * AFFINE[:3, :3], signs * AFFINE[:3, 3]
        if str(fields.get("space")).endswith("-time"):
            directions, origin = np.vstack([directions, np.zeros(3)]), np.append(origin, 0)
        header = {**fields, "space directions": directions.T, "space origin": origin, "kinds": ["domain"] * 3}
        path = folder / "image.nrrd"
        nrrd.write(str(path), small_files.voxels(), header, index_order="F")
        image = read_image(path, "the image")
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-9)
        if is_known:
            other = by_simpleitk(path)
            np.testing.assert_allclose(other.affine, AFFINE, atol=1e-9)
        labels = (np.asarray(image.values) == MARK).astype(np.uint8)
        for extension in ANSWERS:
            mask = by_simpleitk(written(image, labels, extension, folder))
            away = np.linalg.norm(mask.point_of(1) - (AFFINE @ [*np.argwhere(labels)[0], 1])[:3])
            assert away < CLOSE, f"{extension}: {away} mm beside the image"

    return check


GROUPS: dict[str, Callable[[], Iterator[Combination]]] = {
    "orientations, data types, slopes": orientation_cells,
    "two places in a NIfTI header": form_cells,
    "NIfTI of other than three axes": shape_cells,
    "NRRD spaces": space_cells,
}


def failures(combinations: list[Combination]) -> dict[str, str]:
    """Name -> what is wrong, of the combinations that fail."""
    wrong = {}
    with tempfile.TemporaryDirectory() as top:
        for number, combination in enumerate(combinations):
            folder = Path(top) / str(number)
            folder.mkdir()
            try:
                combination.check(folder)
            except Exception as error:  # whatever is wrong, the others are checked
                wrong[combination.name] = "".join(traceback.format_exception_only(error)).strip()
    return wrong


def main() -> None:
    """Print the sizes and the failures."""
    total = bad = 0
    for group, cells in GROUPS.items():
        combinations = list(cells())
        wrong = failures(combinations)
        total, bad = total + len(combinations), bad + len(wrong)
        print(f"{group}: {len(combinations)} combinations, {len(wrong)} fail")
        if "-v" in sys.argv:
            print("\n".join(f"    {name}: {what[:400]}" for name, what in wrong.items()))
    print(f"all: {total} combinations, {bad} fail")


if __name__ == "__main__":
    main()
