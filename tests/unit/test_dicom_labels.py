# SPDX-License-Identifier: Apache-2.0
"""Labels of a DICOMweb server: whom a broken, slow or missing one concerns, and what they need to be learned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lib.dicom.datastore import FINAL, DicomStore
from lib.dicom.volumes import save_volume
from lib.imaging.label_registry import LabelRegistry
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import SubmissionStore
from tests.unit import dicom_files
from tests.unit.dicom_server import MemoryServer, refusal


class Clinic:
    """A server with the CTs of two patients, and a store of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first, self.second = dicom_files.volume(), dicom_files.volume(name="other")
        self.images = [str(series[0].SeriesInstanceUID) for series in (self.first, self.second)]
        self.server = MemoryServer([*self.first, *self.second])
        self.store = self.opened()

    def opened(self, name: str = "cache") -> DicomStore:
        """A store with a folder of its own."""
        return DicomStore(self.server, self.folder / name)

    def label(self, image: str, value: int = 1) -> Path:
        """A label file."""
        series = self.store.open_series(image)
        labels = np.zeros(series.grid, np.uint8)
        labels[2:6, 2:6, 1:3] = value
        path = self.folder / f"{image}.nii.gz"
        save_volume(labels, series.affine, path)
        return path


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


def test_a_label_is_submitted_although_no_voxel_of_its_image_can_be_fetched(clinic: Clinic) -> None:
    [image, _] = clinic.images
    sent = clinic.label(image)
    clinic.server._http_get = lambda *_, **__: (_ for _ in ()).throw(refusal(404))  # type: ignore[method-assign]
    submissions = SubmissionService(SubmissionStore(clinic.folder / "intake"), clinic.store, LabelRegistry())
    entry = submissions.submit(image, sent, {"label_names": {"liver": 1}})
    assert entry is not None and entry == submissions.store.get(image)
    assert (submissions.store.folder / entry.label).stat().st_size
    assert clinic.store.get_label_info(image, FINAL)["label_names"] == {"liver": 1}
    assert clinic.server.fetched == []
    other = clinic.opened("other")  # takes the label over, as one that somebody else stored
    other.settle()
    adopting = SubmissionService(SubmissionStore(clinic.folder / "other intake"), other, LabelRegistry())
    adopted = adopting.adopt(image)
    assert adopted is not None and adopted.content == entry.content
    assert clinic.server.fetched == []
    assert not [path for path in (clinic.folder / "other").iterdir() if path.name.startswith(f".{image}")]
