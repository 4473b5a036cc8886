# SPDX-License-Identifier: Apache-2.0
"""A PACS without DICOMweb, played by a second Orthanc: what `docs/pacs.md` says, done as it stands there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

import tests.unit.dicom_files as dicom_files
from benchmarks.live_server import LiveServer, free_port
from benchmarks.places import ROOT
from lib.dicom.web import as_bytes
from tests.e2e.browser import program
from tests.e2e.store.planes import Mask
from tests.e2e.viewer.site import wait
from tools.orthanc import Orthanc

PAGE = (ROOT / "docs" / "pacs.md").read_text()
CONFIGURATION: dict[str, Any] = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.S)[0])
BODIES = [json.loads(body) for body in re.findall(r"-d '(\{.*?\})'$", PAGE, re.M)]
"""What the page's `curl` sends: the query, the retrieval, and the way back."""


class Configured(Orthanc):
    """Orthanc with a configuration of its own, on free ports."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        super().__init__(folder, free_port())
        self._settings = settings

    def configuration(self) -> dict[str, object]:
        """The settings, with the folder and ports of the test."""
        own = super().configuration()
        places = {key: own[key] for key in ("StorageDirectory", "IndexDirectory", "Plugins", "HttpPort")}
        return {**self._settings, **places}

    def ask(self, path: str, body: Any) -> Any:
        """POST to Orthanc's own interface."""
        answer = requests.post(f"http://127.0.0.1:{self.port}{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()


@pytest.fixture(scope="module")
def orthancs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Configured, Configured]]:
    """(the PACS, the Orthanc of the page)."""
    program("Orthanc", "orthanc", package="orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("pacs")
    far, near = free_port(), free_port()
    title, _, _ = CONFIGURATION["DicomModalities"]["pacs"]
    near_settings = {
        **CONFIGURATION,
        "DicomPort": near,
        "DicomModalities": {"pacs": [title, "127.0.0.1", far]},
    }
    far_settings = {
        "Name": "PACS",
        "DicomServerEnabled": True,
        "DicomAet": title,
        "DicomPort": far,
        "DicomModalities": {"workstation": [CONFIGURATION["DicomAet"], "127.0.0.1", near]},
        "DicomWeb": {
            "Enable": True,
            "Root": "/dicom-web/",
        },  # Orthanc's start is waited for there; nothing else asks it
    }
    with Configured(folder / "far", far_settings) as pacs, Configured(folder / "near", near_settings) as own:
        yield pacs, own


def test_a_study_of_the_pacs_is_served(orthancs: tuple[Configured, Configured], tmp_path: Path) -> None:
    pacs, own = orthancs
    query, retrieval, back = BODIES
    images = {}
    for patient, modality, date in (("4711", "CT", "20240615"), ("4711", "MR", "20240615"), ("4712", "CT", "20240615")):
        images[patient, modality] = dicom_files.volume(modality, (24, 20, 5), f"{patient}{modality}")
        for image in images[patient, modality]:
            image.PatientID, image.StudyDate = patient, date
            requests.post(
                f"http://127.0.0.1:{pacs.port}/instances", data=as_bytes(image), timeout=60
            ).raise_for_status()
    conf = {"state": str(tmp_path / "state"), "train_after": "0"}
    environment = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache")}
    with LiveServer(own.url, conf=conf, environment=environment) as server:
        assert server.info()["datastore"]["total"] == 0
        found = own.ask("/modalities/pacs/query", query)
        own.ask(f"/queries/{found['ID']}/retrieve", retrieval)
        wait(lambda: server.info()["datastore"]["total"] == 1, "study from the PACS")
        [case] = requests.get(f"{server.url}/kprism/api/status", timeout=60).json()["cases"]["waiting"]
        wanted = images["4711", "CT"]
        assert case == {
            "id": str(wanted[0].SeriesInstanceUID),
            "title": "4711",
            "study": str(wanted[0].StudyInstanceUID),
        }
        volume = requests.get(f"{server.url}/datastore/image", params={"image": case["id"]}, timeout=60)
        voxels = Mask.of_nifti(volume.content).voxels
        order = requests.get(f"{server.url}/kprism/api/case/{case['id']}", timeout=60).json()["frames"]
        planes = {str(image.SOPInstanceUID): image.pixel_array.T for image in wanted}
        np.testing.assert_array_equal(voxels, np.stack([planes[instance] for instance, _ in order], axis=-1))
        answer = server.infer("interactive", case["id"], {"liver": [[8, 7, 2]], "result_extension": ".nrrd"})
        mask = Mask.read(answer.content)
        mask.voxels[:] = 0
        mask.voxels[4:9, 5:11, 1:4] = 1
        sent = requests.put(
            f"{server.url}/datastore/label",
            params={"image": case["id"], "tag": "final"},
            data={"params": json.dumps({"label_info": [{"name": "liver", "idx": 1}]})},
            files={"label": ("label.nrrd", mask.file(mask.voxels))},
            timeout=120,
        )
        assert sent.status_code == 200, sent.text
    [stored] = own.ask("/tools/find", {"Level": "Series", "Query": {"Modality": "SEG", "PatientID": "4711"}})
    own.ask("/modalities/pacs/store", {**back, "Resources": [stored]})
    [there] = pacs.ask("/tools/find", {"Level": "Series", "Query": {"Modality": "SEG"}, "Expand": True})
    assert there["MainDicomTags"]["Modality"] == "SEG"
