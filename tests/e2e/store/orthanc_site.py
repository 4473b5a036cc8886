# SPDX-License-Identifier: Apache-2.0
"""A server on a DICOMweb store: the store as other tools see it, and what the tests ask of both."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset

from benchmarks.live_server import LiveServer
from tests.e2e.store.planes import Mask
from tools.orthanc import Orthanc


@dataclass
class Site:
    """The store, the server on it, the server's folder `state`, and what it said while the store was off."""

    orthanc: Orthanc
    server: LiveServer
    state: Path
    without_store: dict[str, requests.Response] = field(default_factory=dict)

    def put(self, instances: Iterable[Dataset]) -> str:
        """Store instances as another tool does (STOW-RS); their series."""
        instances = list(instances)
        DICOMwebClient(self.orthanc.url).store_instances(instances)
        return str(instances[0].SeriesInstanceUID)

    def segmentations(self, image: str) -> list[Dataset]:
        """The SEGs in the store that refer to a series, as they are stored, the last one last."""
        found = []
        for identifier in self._rest("/tools/find", {"Level": "Instance", "Query": {"Modality": "SEG"}}):
            address = f"{self._address}/instances/{identifier}"
            segmentation = dcmread(io.BytesIO(requests.get(f"{address}/file", timeout=60).content))
            if any(item.SeriesInstanceUID == image for item in segmentation.get("ReferencedSeriesSequence") or []):
                received = requests.get(f"{address}/metadata/ReceptionDate", timeout=60).text
                found.append((received, str(segmentation.get("ContentTime", "")), segmentation))
        return [segmentation for *_, segmentation in sorted(found, key=lambda entry: entry[:2])]

    def delete(self, series: str) -> None:
        """Remove a series from the store, as its administrator does."""
        [identifier] = self._rest("/tools/find", {"Level": "Series", "Query": {"SeriesInstanceUID": series}})
        requests.delete(f"{self._address}/series/{identifier}", timeout=60).raise_for_status()

    def infer(self, model: str, image: str, params: dict[str, Any]) -> Mask:
        """The answer as OHIF gets it: a raw NRRD file."""
        sent = {**params, "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
        answer = self.server.infer(model, image, sent)
        assert answer.status_code == 200, answer.text
        return Mask.read(answer.content)

    def submit(self, image: str, content: bytes, names: Iterable[str], by: str = "anna") -> requests.Response:
        """As 3D Slicer submits a label."""
        params = {"label_info": [{"name": name, "idx": 2 * n} for n, name in enumerate(names, 1)], "client_id": by}
        return requests.put(
            f"{self.server.url}/datastore/label",
            params={"image": image, "tag": "final"},
            data={"params": json.dumps(params)},
            files={"label": ("label.nrrd", content)},
            timeout=120,
        )

    def get(self, address: str, **params: Any) -> requests.Response:
        """GET from the server."""
        return requests.get(f"{self.server.url}{address}", params=params, timeout=120)

    def submission(self, image: str) -> dict[str, Any] | None:
        """The submission of an image, read from the state folder without a request to the server."""
        path = self.state / "intake" / "cases" / f"{image}.json"
        try:
            return dict(json.loads(path.read_text()))
        except FileNotFoundError:
            return None

    def label_series(self, image: str) -> str | None:
        """The series of the SEG that is an image's label, by the index of the server's local copies."""
        index = json.loads(next((self.state.parent / "cache").glob("*/datastore_v2.json")).read_text())
        label = index["objects"].get(image, {"labels": {}})["labels"].get("final")
        return label["info"].get("SeriesInstanceUID") if label else None

    def label(self, image: str) -> tuple[Mask, dict[str, int]]:
        """(label map, name -> value) of the submitted label, as 3D Slicer downloads it."""
        answer = self.get("/datastore/label", label=image, tag="final")
        assert answer.status_code == 200, answer.text
        names = self.get("/datastore/label/info", label=image, tag="final").json()["label_names"]
        return Mask.of_nifti(answer.content), names

    @property
    def _address(self) -> str:
        return self.orthanc.url.removesuffix("/dicom-web")

    def _rest(self, address: str, body: dict[str, Any]) -> Any:
        answer = requests.post(f"{self._address}{address}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()
