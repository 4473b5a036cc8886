# SPDX-License-Identifier: Apache-2.0
"""The digest of a submitted label, which sites have in their files, and the numbers of its structures."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from lib.datastore import GuardedDatastore
from lib.imaging.label_registry import LabelRegistry
from lib.learning.submitted_label import LabelReader, SubmittedLabel
from tests.unit import dicom_files

LABELS = (np.arange(5 * 4 * 3) % 7).astype(np.uint8).reshape(5, 4, 3)
DIGEST = "a8d831ca86a21a3ed9c1c82af09495ab0049ce7aef37cd03dcd62e2fd6d2ba4e"


@pytest.mark.parametrize("labels", [LABELS, np.asfortranarray(LABELS), np.repeat(LABELS, 2, axis=2)[..., ::2]])
def test_the_digest_never_changes(labels: NDArray[np.uint8]) -> None:
    image = dicom_files.image_of(np.zeros((5, 4, 3), np.int16))
    assert SubmittedLabel(image, labels, {"liver": 1, "Blob mit Ümläut": 2}).digest() == DIGEST


@pytest.mark.parametrize("values", [(1, 2), (2, 1), (7, 200)])
def test_structures_are_numbered_in_the_order_of_their_names(values: tuple[int, int], tmp_path: Path) -> None:
    def save(array: NDArray[np.generic], name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
        return path

    save(np.arange(60, dtype=np.int16).reshape(5, 4, 3), "studies/a.nii.gz")
    labels = np.zeros((5, 4, 3), np.uint8)
    labels[1, :, 1:], labels[2:, 3, 0] = values
    datastore = GuardedDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz"])
    names = {"label_names": {"liver": values[0], "spleen": values[1]}}
    read = LabelReader(datastore, LabelRegistry()).read("a", save(labels, "label.nii.gz"), names)
    assert read.structures == {"liver": 1, "spleen": 2}
    np.testing.assert_array_equal(read.labels == 1, labels == values[0])
    np.testing.assert_array_equal(read.labels == 2, labels == values[1])
