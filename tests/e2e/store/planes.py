# SPDX-License-Identifier: Apache-2.0
"""Masks by the images that they lie on: what SEGs, answers and labels are compared as, without the app's own code."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from typing import Any

import nibabel
import nrrd
import numpy as np
from pydicom.dataset import Dataset

Planes = dict[tuple[str, str, int], np.ndarray]
"""(structure, SOP instance, frame) -> mask (row, column)."""


@dataclass
class Mask:
    """A mask (column, row, slice) with the place that its NRRD header gives it (LPS, mm)."""

    voxels: np.ndarray
    directions: np.ndarray
    origin: np.ndarray

    @classmethod
    def read(cls, content: bytes) -> Mask:
        """From an NRRD file."""
        stream = io.BytesIO(content)
        header = nrrd.read_header(stream)
        voxels = nrrd.read_data(header, stream)
        return cls(voxels, np.asarray(header["space directions"]), np.asarray(header["space origin"]))

    @classmethod
    def of_nifti(cls, content: bytes) -> Mask:
        """From a .nii.gz file, or a .nii file."""
        is_compressed = content.startswith(b"\x1f\x8b")
        volume = nibabel.Nifti1Image.from_bytes(gzip.decompress(content) if is_compressed else content)
        place = np.diag([-1, -1, 1, 1]) @ volume.affine
        return cls(np.asarray(volume.dataobj), place[:3, :3].T, place[:3, 3])

    def file(self, voxels: np.ndarray) -> bytes:
        """An NRRD file of other voxels at this place, as 3D Slicer sends it."""
        header = {
            "space": "left-posterior-superior",
            "space directions": self.directions,
            "space origin": self.origin,
        }
        stream = io.BytesIO()
        nrrd.write(stream, np.asfortranarray(voxels), header)
        return stream.getvalue()


def planes_of(segmentation: Dataset) -> Planes:
    """The masks of a SEG by the images that they say they were drawn on."""
    names = {int(item.SegmentNumber): str(item.SegmentLabel) for item in segmentation.SegmentSequence}
    pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    found: Planes = {}
    for mask, group in zip(pixels, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        name = names[int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        key = (name, str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 1))
        assert key not in found
        found[key] = mask > 0
    return found


def places(instances: list[Dataset]) -> list[tuple[str, int, Any]]:
    """(SOP instance, frame, position) of every image, in the order of instances and frames."""
    found = []
    for instance in sorted(instances, key=lambda item: int(item.InstanceNumber)):
        groups = instance.get("PerFrameFunctionalGroupsSequence")
        for frame in range(int(instance.get("NumberOfFrames") or 1)):
            holder = groups[frame].PlanePositionSequence[0] if groups else instance
            found.append((str(instance.SOPInstanceUID), frame + 1, holder.get("ImagePositionPatient")))
    return found


def expected_planes(mask: Mask, values: dict[str, int], instances: list[Dataset]) -> Planes:
    """The same of an answer: which slice is which image follows from its place, without one from its number."""
    found: Planes = {}
    for number, (instance, frame, position) in enumerate(places(instances)):
        row = number
        if position is not None:
            step = np.linalg.solve(mask.directions.T, np.array(position, float) - mask.origin)
            np.testing.assert_allclose(step, [0, 0, round(step[2])], atol=0.01)
            row = round(step[2])
        for name, value in values.items():
            plane = (mask.voxels[:, :, row] == value).T
            if plane.any():
                found[name, instance, frame] = plane
    return found


def assert_same(found: Planes, expected: Planes) -> None:
    assert found.keys() == expected.keys()
    for key, plane in expected.items():
        np.testing.assert_array_equal(found[key], plane, err_msg=str(key))
