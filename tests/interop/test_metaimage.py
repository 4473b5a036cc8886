# SPDX-License-Identifier: Apache-2.0
"""MetaImages: what counts in their headers, where their voxels may lie, and that no other file is ever read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError, TooLargeError
from lib.imaging.mapped import SMALL, mapped_in
from lib.imaging.metaimage import as_one_file
from lib.imaging.reading import files_of, read_image, read_mask
from lib.imaging.writing import ResultFormat, write_mask
from tests.interop import small_files
from tests.interop.other_readers import by_simpleitk
from tests.interop.small_files import AFFINE

PLAIN = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "DimSize": "7 6 5",
    "ElementType": "MET_SHORT",
}


def save(path: Path, fields: dict[str, str | None], body: bytes, data: str = "LOCAL") -> Path:
    """A file with these fields; None leaves one of `PLAIN` out."""
    header = {key: value for key, value in {**PLAIN, **fields}.items() if value is not None}
    lines = [f"{key} = {value}\n" for key, value in {**header, "ElementDataFile": data}.items()]
    path.write_bytes("".join(lines).encode() + body)
    return path


BODY = small_files.voxels("int16").tobytes(order="F")

FIELDS: dict[str, dict[str, str | None]] = {
    "nothing but sizes": {},
    "spacing": {"ElementSpacing": "2 3 4"},
    "size of the voxels": {"ElementSize": "2 3 4"},
    "spacing before size": {"ElementSpacing": "2 3 4", "ElementSize": "9 9 9"},
    "offset": {"Offset": "1 -2 3.5"},
    "position": {"Position": "1 -2 3.5"},
    "origin": {"Origin": "1 -2 3.5"},
    "directions": {"TransformMatrix": "0 1 0 -1 0 0 0 0 1", "ElementSpacing": "2 3 4", "Offset": "7 8 9"},
    "rotation": {"Rotation": "0 1 0 -1 0 0 0 0 1"},
    "orientation": {"Orientation": "0 1 0 -1 0 0 0 0 1"},
    "letters count for nothing": {"AnatomicalOrientation": "LPI", "Offset": "1 2 3"},
    "nor does a centre": {"CenterOfRotation": "9 9 9", "Offset": "1 2 3"},
    "nor does a slope": {"ElementToIntensityFunctionSlope": "2", "ElementToIntensityFunctionOffset": "5"},
    "most significant byte first": {"BinaryDataByteOrderMSB": "True"},
    "by its other name": {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"},
    "no order of bytes": {"BinaryDataByteOrderMSB": None},
    "voxels from the end": {"HeaderSize": "-1"},
    "no type of object": {"ObjectType": None, "BinaryData": None},
}


@pytest.mark.parametrize("name", FIELDS)
def test_headers_mean_what_they_mean_to_itk(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "v.mha", FIELDS[name], BODY)
    theirs, image = by_simpleitk(path), read_image(path, "v")
    np.testing.assert_array_equal(image.values, theirs.array)
    np.testing.assert_allclose(image.affine, theirs.affine)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".MHA", ".Mhd"])
def test_files_of_itk(tmp_path: Path, suffix: str, compress: bool) -> None:
    path = tmp_path / f"v{suffix.lower()}"
    small_files.save_metaimage(path, small_files.voxels("float32"), AFFINE, compress)
    path = path.rename(tmp_path / f"v{suffix}")
    np.testing.assert_array_equal(read_image(path, "v").array, small_files.voxels("float32"))
    assert len(files_of(path)) == (1 if "a" in suffix.lower() else 2)


def test_colours(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (5, 6, 7, 3), np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colours, isVector=True), str(tmp_path / "v.mha"))
    image = read_image(tmp_path / "v.mha", "v")
    assert image.is_colour
    np.testing.assert_array_equal(image.array, colours.transpose(2, 1, 0, 3))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_large_voxels_are_mapped(tmp_path: Path, suffix: str, compress: bool) -> None:
    array = np.zeros((256, 256, SMALL // (256 * 256 * 2) + 3), np.int16)
    array[5, 6, -1] = 7
    small_files.save_metaimage(tmp_path / f"v{suffix}", array, AFFINE, compress)
    image = read_image(tmp_path / f"v{suffix}", "v", allocate=mapped_in(tmp_path / "mapped"))
    assert image.is_mapped
    np.testing.assert_array_equal(image.array, array)
    with pytest.raises(TooLargeError, match="v claims 256 x 256 x 131 voxels"):
        read_image(tmp_path / f"v{suffix}", "v", limit=SMALL)


ELSEWHERE = ("/etc/passwd", "../secret.raw", "sub/v.raw", "sub\\v.raw", ".hidden.raw", "file:///etc/v.raw", "C:\\v.raw")
SEVERAL = ("LIST", "LIST 2D", "v%03d.raw 1 5 1")
OF_ANOTHER_KIND = ("datastore_v2.json", "other.nii", "v.mhd", "..", "")


@pytest.mark.parametrize("name", [*ELSEWHERE, *SEVERAL, *OF_ANOTHER_KIND])
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_other_files_are_never_read(tmp_path: Path, suffix: str, name: str) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for file in ("../secret.raw", "sub/v.raw", "datastore_v2.json", "other.nii", ".hidden.raw"):
        (folder / file).write_bytes(BODY)
    path = save(folder / f"v{suffix}", {}, b"", name)
    with pytest.raises(RequestError, match=r"v has its voxels in '.*'; expected LOCAL, or the name of one file"):
        read_image(path, "v")
    assert files_of(path) == [path]


@pytest.mark.parametrize("name", ["v.raw", "other.zraw", "v.img"])
def test_voxels_that_are_not_beside_the_header(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "v.mhd", {}, b"", name)
    with pytest.raises(RequestError, match=f"v has its voxels in '{name}', which is not beside it"):
        read_image(path, "v")
    (tmp_path / name).write_bytes(BODY)
    np.testing.assert_array_equal(read_image(path, "v").array, small_files.voxels("int16"))


@pytest.mark.parametrize("name", ["\u809d\u81d3", "M\u00fcller", "\u0441\u043a\u0430\u043d 1"])
def test_voxels_in_files_of_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.mhd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ascontiguousarray(small_files.voxels("int16").T)), str(path))
    assert [file.name for file in files_of(path)] == [f"{name}.mhd", f"{name}.raw"]
    np.testing.assert_array_equal(read_image(path, "v").array, small_files.voxels("int16"))
    one = tmp_path / "one.mha"
    one.write_bytes(b"".join(as_one_file(path)))
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(one))).T, read_image(one, "v").array
    )
    path.write_bytes(path.read_bytes().decode().encode("latin-1", "replace"))  # as older programs write
    assert (len(files_of(path)) == 2) == (name == "M\u00fcller")


def test_the_voxels_make_the_digest(tmp_path: Path) -> None:
    path = save(tmp_path / "v.mhd", {}, b"", "v.raw")
    digests = set()
    for body in (BODY, BODY[::-1], BODY[2:] + BODY[:2]):
        (tmp_path / "v.raw").write_bytes(body)
        digests.add(read_image(path, "v").digest)
    assert len(digests) == 3


@pytest.mark.parametrize(("skipped", "before"), [("0", b""), ("5", b"12345"), ("-1", b"123")])
def test_two_files_as_one(tmp_path: Path, skipped: str, before: bytes) -> None:
    (tmp_path / "v.raw").write_bytes(before + BODY)
    path = save(tmp_path / "v.mhd", {"HeaderSize": skipped, "Offset": "1 2 3"}, b"", "v.raw")
    (tmp_path / "one.mha").write_bytes(b"".join(as_one_file(path)))
    one, two = read_image(tmp_path / "one.mha", "one"), read_image(path, "two")
    np.testing.assert_array_equal(one.array, small_files.voxels("int16"))
    np.testing.assert_array_equal(two.array, small_files.voxels("int16"))
    np.testing.assert_array_equal(one.affine, two.affine)


SHORT: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "short": (lambda body: body[:-1], "ends after"),
    "none": (lambda body: b"", "ends after 0"),
}
REFUSED: dict[str, tuple[dict[str, str | None], str]] = {
    "text": ({"BinaryData": "False"}, "voxels as text"),
    "sizes missing": ({"DimSize": None}, "DimSize = ''; expected 3 numbers"),
    "too few sizes": ({"DimSize": "7 6"}, "DimSize = '7 6'; expected 3 numbers"),
    "no axes": ({"NDims": None}, "DimSize = '7 6 5'; expected 0 numbers"),
    "axes in words": ({"NDims": "three"}, "NDims = 'three'; expected a whole number"),
    "empty axis": ({"DimSize": "7 0 5"}, "claims 7 x 0 x 5 voxels"),
    "negative axis": ({"DimSize": "7 -6 5"}, "claims 7 x -6 x 5 voxels"),
    "too large": ({"DimSize": "70000 60000 50000"}, "this server's limit"),
    "unknown type": ({"ElementType": "MET_STRING"}, "values of type 'MET_STRING'"),
    "spacing in words": ({"ElementSpacing": "1 1 one"}, "ElementSpacing = '1 1 one'; expected 3 numbers"),
    "two channels": ({"ElementNumberOfChannels": "2", "DimSize": "7 3 5"}, "has 4 axes"),
    "damaged stream": ({"CompressedData": "True"}, "not a readable .mha file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_headers_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    fields, sentence = REFUSED[name]
    with pytest.raises(RequestError, match=f"^the volume .*{sentence}"):
        read_image(save(tmp_path / "v.mha", fields, BODY), "the volume")


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("skipped", ["0", "-1"])
def test_files_that_end_before_their_voxels(tmp_path: Path, name: str, skipped: str) -> None:
    cut, sentence = SHORT[name]
    if skipped == "-1":
        sentence = "not a readable .mhd file|ends after"
    (tmp_path / "v.raw").write_bytes(cut(BODY))
    with pytest.raises(RequestError, match=f"^the volume .*({sentence})"):
        read_image(save(tmp_path / "v.mhd", {"HeaderSize": skipped}, b"", "v.raw"), "the volume")


NO_HEADERS = (b"\0" * 900, b"no header at all\n", b"a = 1\n" * 20000, b"NDims = 3\nDimSize = 7", b"\n")


@pytest.mark.parametrize("content", NO_HEADERS)
def test_what_is_no_metaimage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.mha").write_bytes(content)
    with pytest.raises(RequestError, match=r"^the volume has no MetaImage header"):
        read_image(tmp_path / "v.mha", "the volume")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_masks_are_written_in_every_type(tmp_path: Path, dtype: str, compress: bool) -> None:
    small_files.save_metaimage(tmp_path / "v.mhd", small_files.voxels(), AFFINE)
    image = read_image(tmp_path / "v.mhd", "v")
    labels = np.random.default_rng(0).integers(0, 4, image.grid, np.uint8)
    form = ResultFormat.parse({"result_dtype": dtype, "result_compress": compress}, image)
    assert form.extension == ".mha"
    mask = write_mask(SliceMap.of(labels, image.orientation), image, form).rename(tmp_path / "mask.mha")
    theirs = by_simpleitk(mask)
    assert theirs.array.dtype == dtype
    np.testing.assert_array_equal(theirs.array, labels)
    np.testing.assert_allclose(theirs.affine, AFFINE, atol=1e-9)
    np.testing.assert_array_equal(image.on_grid(read_mask(mask, "m"), "m"), labels)
