# SPDX-License-Identifier: Apache-2.0
"""Headers drawn at random: a sentence that refuses the file, or masks on the grid and at the place of the image."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import MAX_ORIGIN, read_image, read_mask
from lib.imaging.writing import ResultFormat, write_mask
from tests.interop.other_readers import by_simpleitk

drawn = settings(
    max_examples=200,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

ODD = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, 3e38, float("nan"), float("inf"), -float("inf")])
NUMBER = st.one_of(st.floats(-300, 300, width=32), ODD)
LENGTH = st.one_of(st.sampled_from([1.0, 0.5, 2.5]), st.floats(0.125, 10, width=32), ODD)
CODE = st.sampled_from([0, 1, 2, 4, -1, 7, 32000])
SIDES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@st.composite
def nifti_files(draw: Any) -> bytes:
    """A NIfTI-1 file with a header as it stands, which no library would write like this, and as many voxels."""
    header = nibabel.Nifti1Header()
    sides = draw(SIDES)
    dtype = np.dtype(draw(st.sampled_from(["u1", "i2", "u2", "f4", "f8", "i4"])))
    header.set_data_shape(sides)
    header.set_data_dtype(dtype)
    header["pixdim"] = [draw(st.sampled_from([1.0, -1.0, 0.0])), *(draw(LENGTH) for _ in range(7))]
    header["qform_code"], header["sform_code"] = draw(CODE), draw(CODE)
    for name in ("quatern_b", "quatern_c", "quatern_d"):
        header[name] = draw(st.one_of(st.floats(-1, 1, width=32), st.just(0.0), ODD))
    for name in ("qoffset_x", "qoffset_y", "qoffset_z"):
        header[name] = draw(NUMBER)
    near = draw(st.booleans())
    for axis, row in enumerate(("srow_x", "srow_y", "srow_z")):
        plain = np.insert(np.eye(3)[axis] * 1.5, 3, 7.0)
        header[row] = plain if near else [draw(NUMBER) for _ in range(4)]
    header["scl_slope"], header["scl_inter"] = draw(st.one_of(st.just(1.0), NUMBER)), draw(NUMBER)
    header["xyzt_units"] = draw(st.sampled_from([0, 1, 2, 3, 10, 11, 7, 255]))
    header["dim_info"] = draw(st.integers(0, 255))
    header["cal_max"], header["intent_code"] = draw(NUMBER), draw(st.sampled_from([0, 1002, 1007, 9999]))
    header["magic"], header["vox_offset"] = b"n+1", draw(st.sampled_from([352, 368, 0, 100]))
    body = np.arange(np.prod(sides), dtype=np.int64).astype(dtype).tobytes()
    return bytes(header.binaryblock) + bytes(20) + body


@st.composite
def nrrd_files(draw: Any) -> bytes:
    """An NRRD file with fields that may contradict each other."""
    sides = draw(SIDES)
    kind, dtype = draw(st.sampled_from([("uint8", "u1"), ("short", "<i2"), ("float", "<f4"), ("double", "<f8")]))
    axes = draw(st.sampled_from([len(sides)] * 5 + [1, 3]))
    lines = [f"type: {kind}", f"dimension: {axes}", "sizes: " + " ".join(map(str, sides)), "endian: little"]
    spaces = ["left-posterior-superior", "RAS", "las", "scanner-xyz", "3D-left-handed", "right-posterior-inferior"]
    spaces += ["RAST", "left-posterior-superior-time", "left-right-superior", "foo", "", "LLS"]
    if draw(st.booleans()):
        lines.append(f"space: {draw(st.sampled_from(spaces))}")
    elif draw(st.booleans()):
        lines.append(f"space dimension: {draw(st.integers(1, 4))}")
    width = draw(st.sampled_from([3, 3, 3, 2, 4]))

    def vector() -> str:
        is_none = draw(st.integers(0, 9)) == 0
        return "none" if is_none else "(" + ",".join(f"{draw(NUMBER):g}" for _ in range(width)) + ")"

    if draw(st.booleans()):
        rows = np.eye(max(width, len(sides)))[: len(sides), :width] * 2
        plain = " ".join("(" + ",".join(f"{number:g}" for number in row) + ")" for row in rows)
        lines.append("space directions: " + (plain if draw(st.booleans()) else " ".join(vector() for _ in sides)))
    if draw(st.booleans()):
        lines.append(f"space origin: {vector()}")
    if draw(st.booleans()):
        lines.append("spacings: " + " ".join(f"{draw(LENGTH):g}" for _ in sides))
    if draw(st.booleans()):
        lines.append("kinds: " + " ".join(draw(st.sampled_from(["domain", "space", "list", "vector"])) for _ in sides))
    lines.append("encoding: raw")
    body = np.arange(np.prod(sides)).astype(dtype).tobytes()
    return ("NRRD0004\n" + "\n".join(lines) + "\n\n").encode() + body


@st.composite
def mha_files(draw: Any) -> bytes:
    """A MetaImage whose fields may be missing, too many or none."""
    sides = draw(SIDES)
    count = draw(st.sampled_from([len(sides)] * 6 + [2, 0, -1]))
    kind, dtype = draw(st.sampled_from([("MET_UCHAR", "u1"), ("MET_SHORT", "<i2"), ("MET_FLOAT", "<f4"), ("X", "u1")]))

    def numbers(how_many: int, each: Any = NUMBER) -> str:
        return " ".join(f"{draw(each):g}" for _ in range(how_many))

    fields = {"ObjectType": "Image", "NDims": count, "DimSize": " ".join(map(str, sides)), "ElementType": kind}
    identity = " ".join(f"{number:g}" for number in np.eye(len(sides)).ravel())
    choices = {
        "TransformMatrix": identity if draw(st.booleans()) else numbers(len(sides) ** 2),
        "Offset": numbers(len(sides)),
        "Position": numbers(3),
        "ElementSpacing": numbers(len(sides), LENGTH),
        "BinaryDataByteOrderMSB": draw(st.sampled_from(["True", "False", ""])),
        "HeaderSize": draw(st.sampled_from(["0", "-1", "x", "7"])),
        "ElementNumberOfChannels": draw(st.sampled_from(["1", "3", "0", "-2"])),
        "AnatomicalOrientation": draw(st.sampled_from(["RAI", "LPS", "???"])),
        "Comment": draw(st.text(max_size=5)),
    }
    fields |= {key: value for key, value in choices.items() if draw(st.integers(0, 2)) == 0}
    fields["ElementDataFile"] = draw(st.sampled_from(["LOCAL"] * 6 + ["LIST", "/etc/passwd", "", "x.raw", "image.mha"]))
    head = "".join(f"{key} = {value}\n" for key, value in fields.items()).encode(errors="replace")
    return head + np.arange(np.prod(sides)).astype(dtype).tobytes()


@drawn
@given(nifti_files())
def test_nifti(content: bytes) -> None:
    check(content, ".nii")


@drawn
@given(nrrd_files())
def test_nrrd(content: bytes) -> None:
    check(content, ".nrrd")


@drawn
@given(mha_files())
def test_metaimage(content: bytes) -> None:
    check(content, ".mha")


def check(content: bytes, suffix: str) -> None:
    """The file is refused by a sentence, as an image and as a label, or masks of it are where it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image{suffix}"
        path.write_bytes(content)
        assert refusal(read_mask, path, "the label")[1].startswith("the label ")
        image, sentence = refusal(read_image, path, "the image")
        assert sentence.startswith("the image ")
        if image is None:
            return
        assert np.isfinite(np.asarray(image.scaled)).all()
        for extension in (".nii.gz", ".nrrd", ".mha"):
            check_mask(image, path, extension)


def refusal(read: Callable[..., MedicalImage], path: Path, name: str) -> tuple[MedicalImage | None, str]:
    """The image, or None and the sentence that refuses it; whatever else is raised is a fault."""
    try:
        return read(path, name), f"{name} is read"
    except RequestError as error:
        return None, str(error)


def check_mask(image: MedicalImage, path: Path, extension: str) -> None:
    labels = np.random.default_rng(2).integers(0, 3, image.grid, np.uint8)
    form = ResultFormat.parse({"result_extension": extension}, image)
    mask = write_mask(SliceMap.of(labels, image.orientation), image, form)
    try:
        own = read_mask(mask, "the mask")
        np.testing.assert_array_equal(image.on_grid(own, "the mask"), labels)
        assert own.grid == image.grid
        if image.placed:
            check_places(image, path, mask)
    finally:
        mask.unlink()


def check_places(image: MedicalImage, path: Path, mask: Path) -> None:
    """Whoever can read the image finds the mask at its place; ITK can read no NIfTI file that is sheared."""
    if path.suffix == ".nii" and mask.name.endswith(".nii.gz"):
        np.testing.assert_array_equal(nibabel.load(mask).affine, nibabel.load(path).affine)
    directions = image.affine[:3, :3] / image.spacing
    is_sheared = np.abs(directions.T @ directions - np.eye(3)).max() > 1e-5
    try:
        theirs = by_simpleitk(path)
    except RuntimeError:
        return
    is_absurd = not (np.isfinite(theirs.affine).all() and np.abs(theirs.affine).max() < MAX_ORIGIN)
    if not (is_absurd or is_repaired(path) or (is_sheared and mask.name.endswith(".nii.gz") and path.suffix != ".nii")):
        np.testing.assert_allclose(by_simpleitk(mask).affine, theirs.affine, rtol=1e-4, atol=1e-3)


def is_repaired(path: Path) -> bool:
    """Whether a NIfTI header has numbers that no place can have; each reader puts others in their stead."""
    if path.suffix != ".nii":
        return False
    header = nibabel.Nifti1Header(path.read_bytes()[:348], check=False)
    names = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")
    numbers = np.concatenate([np.ravel(header[name]) for name in names])
    return not (
        np.isfinite(numbers).all() and (header["pixdim"][1:4] > 0).all() and np.isfinite(header["pixdim"]).all()
    )
