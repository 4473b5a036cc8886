# SPDX-License-Identifier: Apache-2.0
"""`.seg.nrrd` files as labels: names by value, reordered, cropped, in layers, in all orientations; exact voxels."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from PIL import Image

from lib.datastore import GuardedDatastore
from lib.errors import RequestError
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.nrrd_files import segment_names
from lib.imaging.reading import read_mask
from lib.learning.submitted_label import LabelReader, SubmittedLabel
from tests.unit.seg_nrrd_files import Rows, write_seg_nrrd

SHAPE = (14, 12, 9)
AFFINE = np.array([[-0.8, 0, 0, 30], [0, -0.672, 0.7, 20], [0, 0.196, 2.4, -40], [0, 0, 0, 1.0]])
ROWS: Rows = [("ball", 1, 0), ("cube", 2, 0), ("other", 4, 0)]


def blocks() -> NDArray[np.uint8]:
    """Three blocks of the values 1, 2 and 4, away from the borders."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:6, 2:5, 2:4], labels[7:9, 3:8, 4:6], labels[10, 6, 6] = 1, 2, 4
    return labels


@pytest.fixture
def reader(tmp_path: Path) -> LabelReader:
    """Of a folder with one image, `a`."""
    save_image(tmp_path)
    return opened(tmp_path)


def save_image(folder: Path, orientation: str | None = None) -> nibabel.Nifti1Image:
    folder = folder / "studies"
    folder.mkdir(exist_ok=True)
    voxels = np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.float32)
    image = nibabel.Nifti1Image(voxels, AFFINE)
    if orientation is not None:
        image = turned(image, orientation)
    nibabel.save(image, folder / "a.nii.gz")
    return image


def turned(image: nibabel.Nifti1Image, orientation: str) -> nibabel.Nifti1Image:
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(orientation))))


def opened(folder: Path) -> LabelReader:
    return LabelReader(GuardedDatastore(str(folder / "studies"), extensions=["*.nii.gz"]), LabelRegistry())


def check(label: SubmittedLabel, expected: dict[str, NDArray[np.bool_]]) -> None:
    assert set(label.structures) == set(expected)
    for name, mask in expected.items():
        np.testing.assert_array_equal(label.labels == label.structures[name], mask)


def masks(labels: NDArray[np.uint8], rows: Rows = ROWS) -> dict[str, NDArray[np.bool_]]:
    return {name: labels == value for name, value, _ in rows}


@pytest.mark.parametrize("rows", [*permutations(ROWS)])
def test_values_are_named_whatever_the_order_of_the_segments(reader: LabelReader, tmp_path: Path, rows: Rows) -> None:
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", blocks(), AFFINE, rows)
    check(reader.read("a", file, {}), masks(blocks()))
    assert sorted(segment_names(file).values()) == ["ball", "cube", "other"]


@pytest.mark.parametrize(
    "names", [("肝臓", "腫瘍 (左)", "печень"), ("Knöchel", "a, b", 'the "left"'), ("x" * 215, "y", "z")]
)
def test_names_in_any_script(reader: LabelReader, tmp_path: Path, names: tuple[str, str, str]) -> None:
    rows = [(name, value, 0) for name, (_, value, _) in zip(names, ROWS, strict=True)]
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", blocks(), AFFINE, rows)
    check(reader.read("a", file, {}), masks(blocks(), rows))
    assert list(segment_names(file).values()) == list(names)


@pytest.mark.parametrize("orientation", ["".join(p) for p in product("LR", "AP", "IS")] + ["SPL", "AIR", "PSL", "ILA"])
@pytest.mark.parametrize("margin", [0, 1, 2])
def test_a_cropped_file_is_put_back_on_the_grid(tmp_path: Path, orientation: str, margin: int) -> None:
    """The image in any orientation, the segments as Slicer stores them, in the one in which it has read the image."""
    image = save_image(tmp_path, orientation)
    labels = blocks()
    places = np.argwhere(labels)
    low, high = places.min(0) - margin, places.max(0) + 1 + margin
    crop = labels[tuple(slice(one, other) for one, other in zip(low, high, strict=True))]
    offset = tuple(int(side) for side in low)
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", crop, AFFINE, ROWS, offset=offset)  # type: ignore[arg-type]
    expected = turned(nibabel.Nifti1Image(labels, AFFINE), orientation)
    np.testing.assert_allclose(expected.affine, image.affine)
    check(opened(tmp_path).read("a", file, {}), masks(np.asarray(expected.dataobj)))


@pytest.mark.parametrize("seed", range(4))
def test_a_cropped_file_lies_where_simpleitk_sees_it(tmp_path: Path, reader: LabelReader, seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, np.array(SHAPE) // 2)
    crop = rng.integers(0, 3, tuple(rng.integers(1, np.array(SHAPE) - low + 1))).astype(np.uint8)
    crop[0, 0, 0] = 1
    offset = tuple(int(side) for side in low)
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", crop, AFFINE, ROWS[:2], offset=offset)  # type: ignore[arg-type]
    image = SimpleITK.ReadImage(str(tmp_path / "studies" / "a.nii.gz"))
    seen = SimpleITK.Resample(
        SimpleITK.ReadImage(str(file)), image, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor
    )
    expected = SimpleITK.GetArrayFromImage(seen).transpose(2, 1, 0)
    assert np.count_nonzero(expected) == np.count_nonzero(crop)
    read = reader.read("a", file, {})
    check(read, {name: expected == value for name, value, _ in ROWS[:2] if (expected == value).any()})


def test_a_file_may_be_larger_than_the_image_where_it_is_empty(reader: LabelReader, tmp_path: Path) -> None:
    larger = np.pad(blocks(), ((2, 1), (0, 3), (1, 1)))
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", larger, AFFINE, ROWS, offset=(-2, 0, -1))
    check(reader.read("a", file, {}), masks(blocks()))
    larger[0, 0, 0] = 1
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", larger, AFFINE, ROWS, offset=(-2, 0, -1))
    with pytest.raises(RequestError, match=r"holds labelled voxels outside of image 'a' of 14 x 12 x 9 voxels"):
        reader.read("a", file, {})


@pytest.mark.parametrize("shift", [0.5, 0.2, 2e5])
def test_a_file_between_the_voxels_is_refused(reader: LabelReader, tmp_path: Path, shift: float) -> None:
    affine = AFFINE.copy()
    affine[:3, 3] += AFFINE[:3, 0] * shift
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", blocks(), affine, ROWS)
    with pytest.raises(RequestError, match="lies elsewhere than image 'a'"):
        reader.read("a", file, {})


def test_other_voxel_sizes_are_refused(reader: LabelReader, tmp_path: Path) -> None:
    finer = AFFINE @ np.diag([0.5, 0.5, 1, 1])
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", blocks()[2:12], finer, ROWS)
    with pytest.raises(RequestError, match="lies elsewhere than image 'a'"):
        reader.read("a", file, {})


@pytest.mark.parametrize("count", [2, 3, 4])
def test_layers_are_read_and_the_smaller_segment_wins(reader: LabelReader, tmp_path: Path, count: int) -> None:
    layers = np.zeros((count, *SHAPE), np.uint8)
    layers[0, 2:10, 2:10, 2:7] = 1  # the organ
    layers[0, 12, 0, 0] = 5  # another segment of the same layer
    layers[1, 4:7, 4:7, 3:5] = 1  # the lesion in it
    rows = [("lesion", 1, 1), ("organ", 1, 0), ("stone", 5, 0)]
    expected = {"lesion": layers[1] == 1, "organ": (layers[0] == 1) & (layers[1] == 0), "stone": layers[0] == 5}
    if count > 2:  # a segment apart from the others, and for four layers one that is empty
        layers[2, 11:13, 10, 8] = 7
        rows.append(("apart", 7, 2))
        expected["apart"] = layers[2] == 7
    if count > 3:
        rows.append(("empty", 1, 3))
    label = reader.read("a", write_seg_nrrd(tmp_path / "label.seg.nrrd", layers, AFFINE, rows), {})
    check(label, expected)
    assert label.warnings == (
        "'organ' and 'lesion' overlap in 18 of the 320 voxels of 'organ'; a label holds one structure for each voxel, "
        "there 'lesion', the smaller one",
    )


def test_old_files_have_a_layer_for_each_segment(reader: LabelReader, tmp_path: Path) -> None:
    layers = np.stack([blocks() == value for value in (1, 2, 4)]).astype(np.uint8)
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", layers, AFFINE, ROWS, old=True)
    label = reader.read("a", file, {})
    check(label, masks(blocks()))
    assert label.warnings == ()


def test_segments_of_one_name_are_one_structure(reader: LabelReader, tmp_path: Path) -> None:
    rows = [("lesion", 1, 0), ("organ", 2, 0), ("Lesion ", 4, 0)]
    label = reader.read("a", write_seg_nrrd(tmp_path / "label.seg.nrrd", blocks(), AFFINE, rows), {})
    check(label, {"lesion": np.isin(blocks(), (1, 4)), "organ": blocks() == 2})


def test_values_above_255_and_a_crop(reader: LabelReader, tmp_path: Path) -> None:
    labels = np.where(blocks() > 0, blocks().astype(np.int16) + 1000, 0).astype(np.int16)
    rows = [("other", 1004, 0), ("ball", 1001, 0), ("cube", 1002, 0)]
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", labels[2:, 1:, 1:], AFFINE, rows, offset=(2, 1, 1))
    check(reader.read("a", file, {}), masks(blocks()))


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        ({"label_info": [{"name": "ball", "id": 1}, {"name": "cube", "id": 2}, {"name": "other", "id": 4}]}, ""),
        ({"label_info": [{"name": "Ball"}, {"name": "cube"}, {"name": "OTHER"}]}, ""),
        ({"label_names": {"cube": 2, "ball": 1}}, ""),
        ({"label_info": [{"name": "cube", "id": 1}, {"name": "ball", "id": 2}]}, "the value 1 'ball'.*'cube'"),
        ({"label_info": [{"name": "other"}, {"name": "ball"}, {"name": "cube"}]}, "the value 1 'ball'.*'other'"),
        ({"label_names": {"liver": 4}}, "the value 4 'other'.*'liver'"),
    ],
)
def test_names_beside_the_file_must_agree(
    reader: LabelReader, tmp_path: Path, info: dict[str, Any], sentence: str
) -> None:
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", blocks(), AFFINE, ROWS)
    if not sentence:
        check(reader.read("a", file, info), masks(blocks()))
    else:
        with pytest.raises(RequestError, match=f"the label of image 'a': the file itself names {sentence}"):
            reader.read("a", file, info)


def test_names_beside_layers_must_agree(reader: LabelReader, tmp_path: Path) -> None:
    layers = np.stack([blocks() == 1, blocks() == 2]).astype(np.uint8)
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", layers, AFFINE, [("ball", 1, 0), ("cube", 1, 1)])
    check(
        reader.read("a", file, {"label_info": [{"name": "cube", "id": 2}, {"name": "BALL", "id": 1}]}),
        masks(blocks(), ROWS[:2]),
    )
    with pytest.raises(RequestError, match="the file names the segment 'ball'"):
        reader.read("a", file, {"label_info": [{"name": "cube"}, {"name": "liver"}]})


@pytest.mark.parametrize(
    ("rows", "layers", "sentence"),
    [
        ([("ball", 1, 0), ("cube", 2, 0)], False, "nothing names the value 4"),
        ([("ball", 1, 0), ("cube", 1, 0), ("other", 2, 0)], False, "names the value 1 both 'ball' and 'cube'"),
        ([("ball", 1, 0), ("cube", 2, 1)], False, "lists segments of layer 1, but has one layer"),
        ([("ball", 1, 0), ("cube", 1, 2)], True, "lists 'cube' in layer 2, but has 2 layers from 0"),
        ([("ball", 1, 0), ("cube", 2, 1)], True, "holds the value 1 in layer 1, which is of no segment"),
        ([("ball", 1, 0), ("cube", 1, 0)], True, "lists 'ball' and 'cube' with the same value"),
    ],
)
def test_headers_that_do_not_fit_are_refused(
    reader: LabelReader, tmp_path: Path, rows: Rows, layers: bool, sentence: str
) -> None:
    voxels = np.stack([blocks() == 1, blocks() == 2]).astype(np.uint8) if layers else blocks()
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", voxels, AFFINE, rows)
    with pytest.raises(RequestError, match=f"the label of image 'a'.*{sentence}"):
        reader.read("a", file, {})


@pytest.mark.parametrize("key", ["Segmentation_ReferenceImageExtentOffset", "Segment0_LabelValue", "Segment0_Layer"])
def test_a_header_without_numbers_is_refused(reader: LabelReader, tmp_path: Path, key: str) -> None:
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", blocks(), AFFINE, ROWS)
    lines = file.read_bytes().split(b"\n")
    at = next(row for row, line in enumerate(lines) if line.startswith(key.encode()))
    file.write_bytes(b"\n".join([*lines[:at], f"{key}:=nonsense".encode(), *lines[at + 1 :]]))
    with pytest.raises(RequestError, match=f"says {key} is 'nonsense'"):
        reader.read("a", file, {})


def test_a_file_without_a_place_says_where_it_is_cropped(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (12, 14), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "studies" / "a.png")
    reader = LabelReader(GuardedDatastore(str(tmp_path / "studies"), extensions=["*.png"]), LabelRegistry())
    labels = blocks()[:, :, 4:5] + blocks()[:, :, 2:3]
    file = write_seg_nrrd(
        tmp_path / "label.seg.nrrd", labels[3:10, 2:9], np.eye(4), ROWS[:2], offset=(3, 2, 0), placed=False
    )
    check(reader.read("a", file, {}), {"ball": labels == 1, "cube": labels == 2})


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_values_of_other_types(tmp_path: Path, dtype: str) -> None:
    for voxels, rows in (
        (blocks(), ROWS),
        (np.stack([blocks() == 1, blocks() == 2]), [("ball", 1, 0), ("cube", 1, 1)]),
    ):
        mask = read_mask(write_seg_nrrd(tmp_path / "l.seg.nrrd", voxels.astype(dtype), AFFINE, rows), "l")
        assert mask.array.dtype == np.uint8
        np.testing.assert_array_equal(mask.array, blocks() if voxels.ndim == 3 else np.where(blocks() < 4, blocks(), 0))
