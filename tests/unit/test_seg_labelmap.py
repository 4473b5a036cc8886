# SPDX-License-Identifier: Apache-2.0
"""Segmentations that are stored as label maps: one frame a slice, for all kinds of images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from lib.configs.app_config import AppConfig
from lib.dicom.datastore import DicomStore
from lib.dicom.seg_labelmap import STORAGE
from lib.dicom.seg_reader import read_seg
from lib.dicom.seg_writer import write_seg
from lib.dicom.volumes import save_volume
from lib.dicom.web import as_bytes
from tests.unit import dicom_files
from tests.unit.dicom_server import MemoryServer

NAMES = {"liver": 200, "left kidney": 1, "absent": 9, "печень": 7}
KINDS = {**dicom_files.KINDS, "phases": lambda: dicom_files.phases((7, 5, 3), "EchoNumbers", [1, 2])}


@pytest.mark.parametrize("kind", KINDS)
def test_each_frame_holds_all_segments_of_the_image_that_it_refers_to(kind: str) -> None:
    series = dicom_files.series_of(KINDS[kind]())
    labels = np.random.default_rng(0).choice(np.array([0, 1, 7, 200], np.uint8), series.grid)
    if series.grid[2] > 2:
        labels[:, :, 1] = 0
    written = write_seg(labels, NAMES, series, "K-Prism", "K-Prism", seg_type="labelmap")
    stored = dcmread(io.BytesIO(as_bytes(written)))
    assert (stored.SOPClassUID, stored.file_meta.MediaStorageSOPClassUID) == (STORAGE, STORAGE)
    assert (stored.SegmentationType, stored.BitsAllocated, stored.PixelPaddingValue) == ("LABELMAP", 8, 0)
    table = np.zeros(256, np.uint8)
    table[[200, 1, 7]] = [1, 2, 3]
    assert [(item.SegmentNumber, item.SegmentLabel) for item in stored.SegmentSequence] == [
        (1, "liver"),
        (2, "left kidney"),
        (3, "печень"),
    ]
    places, seen, indices = series.index(), set(), set()
    pixels = stored.pixel_array.reshape(-1, stored.Rows, stored.Columns)
    for group, plane in zip(stored.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        k = places[str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 1)]
        np.testing.assert_array_equal(plane.T, table[labels[:, :, k]])
        assert "SegmentIdentificationSequence" not in group
        seen.add(k)
        indices.add(tuple(np.atleast_1d(group.FrameContentSequence[0].DimensionIndexValues).tolist()))
        assert len(stored.DimensionIndexSequence) == len(next(iter(indices)))
    assert seen == set(np.flatnonzero(labels.any(axis=(0, 1))).tolist())
    assert len(indices) == len(seen)
    read = read_seg(stored, series)
    np.testing.assert_array_equal(read.labels, table[labels])
    assert (list(read.names), read.notes) == (["liver", "left kidney", "печень"], ())


@pytest.mark.parametrize("seg_type", ["binary", "labelmap"])
def test_the_store_gets_the_type_that_was_chosen(seg_type: str, tmp_path: Path) -> None:
    images = dicom_files.volume()
    server = MemoryServer(list(images))
    store = DicomStore(server, tmp_path / "store")
    store.seg_type = seg_type
    series = dicom_files.series_of(images)
    labels = np.random.default_rng(0).choice(np.array([0, 1, 7, 200], np.uint8), series.grid)
    save_volume(labels, series.affine, tmp_path / "label.nii.gz")
    store.save_label(series.uid, str(tmp_path / "label.nii.gz"), "final", {"label_names": NAMES})
    assert server.instances[-1].SegmentationType == seg_type.upper()
    again = DicomStore(server, tmp_path / "again")
    again.settle()
    assert list(again.get_label_info(series.uid, "final")["label_names"]) == ["liver", "left kidney", "печень"]


def test_another_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    with pytest.raises(ValueError, match="--conf seg_type fractional: expected binary or labelmap"):
        AppConfig.parse({"seg_type": "fractional", "model_path": str(tmp_path / "weights")}, tmp_path, "")
