# SPDX-License-Identifier: Apache-2.0
"""The store through the server: searches as a viewer types them, and no way to what is not DICOMweb."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import requests
from urllib3 import HTTPConnectionPool

from tests.e2e.store.orthanc_site import Site
from tests.unit import dicom_files


@pytest.fixture(scope="module")
def study(site: Site) -> str:
    """The study of the patient MILLER^ANNA LISA, whose identifier has a space."""
    instances = dicom_files.volume("CT", (12, 10, 3), "searched")
    for instance in instances:
        instance.PatientName, instance.PatientID = "MILLER^ANNA LISA", "ward 7/12"
    site.put(instances)
    return str(instances[0].StudyInstanceUID)


@pytest.mark.parametrize(
    "search",
    [
        {"PatientName": "MILLER^ANNA LISA"},
        {"PatientName": "*MILLER ANNA*"},
        {"PatientName": "*anna lisa*"},
        {"PatientID": "ward 7/12"},
        {"PatientID": "ward*12", "ModalitiesInStudy": "CT"},
    ],
    ids=str,
)
def test_a_search_finds_what_a_viewer_asks_for(search: dict[str, str], site: Site, study: str) -> None:
    answer = site.get("/kprism/dicom-web/studies", **search)
    assert answer.status_code == 200, answer.text
    assert [item["0020000D"]["Value"][0] for item in answer.json()] == [study]


@pytest.mark.parametrize("search", [{"PatientName": "MILLER"}, {"PatientID": "ward+7/12"}], ids=str)
def test_a_search_does_not_find_others(search: dict[str, str], site: Site, study: str) -> None:
    answer = site.get("/kprism/dicom-web/studies", **search)
    assert answer.status_code in (200, 204)
    assert not answer.content or answer.json() == []


OUTSIDE = ("../patients", "%2e%2e/patients", "studies/../../patients", "studies/%2E%2E/%2e%2e/system", "./../system")


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_dicomweb_can_be_reached(method: str, path: str, site: Site) -> None:
    """Orthanc's own interface, beside its DICOMweb, can read, change and delete everything."""
    there = requests.get(f"{site.orthanc.url.removesuffix('/dicom-web')}/system", timeout=60)
    assert there.status_code == 200
    for root in ("/kprism/dicom-web/", "/proxy/dicom/qido/"):
        place = urlsplit(site.server.url)
        with HTTPConnectionPool(place.hostname or "", place.port) as pool:  # it sends a path as it is
            answer = pool.urlopen(method, root + path, body=b"{}" if method == "POST" else None)
        assert answer.status == 400, answer.data
        assert "leads out of the DICOMweb server" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["%3Fx/../patients", "studies%2F..%2F..%2Fsystem", "%252e%252e/system"])
def test_a_path_that_is_encoded_twice_leads_nowhere(path: str, site: Site) -> None:
    place = urlsplit(site.server.url)
    with HTTPConnectionPool(place.hostname or "", place.port) as pool:
        answer = pool.urlopen("GET", f"/kprism/dicom-web/{path}")
    assert answer.status in (400, 404), answer.data
