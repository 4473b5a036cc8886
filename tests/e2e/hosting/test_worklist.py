# SPDX-License-Identifier: Apache-2.0
"""A work list on a real server: what it lists, hands out, counts and opens, of a folder and of a DICOMweb store."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests

import tests.unit.dicom_files as dicom_files
from benchmarks.live_server import LiveServer, free_port
from lib.dicom.web import DicomWeb
from tests.e2e.browser import program
from tests.e2e.viewer.site import wait
from tools.orthanc import Orthanc

NAMES = ("a", "b", "c 1", "d")


def get(server: LiveServer, path: str, **params: str) -> requests.Response:
    return requests.get(f"{server.url}{path}", params=params, timeout=60)


def next_case(server: LiveServer) -> str | None:
    """The case that is handed out next."""
    answer = requests.post(f"{server.url}/activelearning/first", json={}, timeout=60)
    return answer.json().get("id")


def submit(server: LiveServer, image: str, label: bytes, name: str = "label.nii") -> requests.Response:
    """As 3D Slicer submits a label."""
    return requests.put(
        f"{server.url}/datastore/label",
        params={"image": image, "tag": "final"},
        data={"params": json.dumps({"label_info": [{"name": "liver", "idx": 1}]})},
        files={"label": (name, label)},
        timeout=120,
    )


def refused(answer: requests.Response, image: str, source: str) -> bool:
    """Whether an answer says that an image is not on the list."""
    sentence = f"{image!r} is not on the work list of this server ({source})"
    return answer.status_code == 403 and sentence in answer.json()["detail"]


def totals(server: LiveServer) -> tuple[int, int]:
    """(cases, labelled ones) as both viewers show them."""
    said = get(server, "/info/").json()["datastore"]
    cases = get(server, "/kprism/api/status").json()["cases"]
    assert (said["total"], said["completed"]) == (cases["all"], cases["labelled"])
    return cases["all"], cases["labelled"]


def indexed(server: LiveServer) -> set[str]:
    """The images in MONAI Label's own listing."""
    return set(get(server, "/datastore/", output="all").json()["objects"])


@pytest.fixture(scope="module")
def labels() -> dict[str, bytes]:
    """A label for each image of the folder."""
    mask = np.zeros((24, 20, 6), np.uint8)
    mask[5:12, 4:10, 2:4] = 1
    return {name: bytes(nibabel.Nifti1Image(mask, np.eye(4)).to_bytes()) for name in NAMES}


def test_a_folder_with_a_list(tmp_path: Path, labels: dict[str, bytes]) -> None:
    studies, worklist = tmp_path / "studies", tmp_path / "this week.txt"
    studies.mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        voxels = rng.normal(100, 20, (24, 20, 6)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), studies / f"{name}.nii.gz")
    worklist.write_text("b\nc 1\nnot there\n")
    conf = {"worklist": str(worklist), "train_after": "0"}
    with LiveServer(studies, conf=conf) as server:
        assert totals(server) == (2, 0) and next_case(server) == "b"
        status = get(server, "/kprism/api/status").json()
        assert status["worklist"] == str(worklist) and status["worklist_missing"] == ["not there"]
        click = {"liver": [[8, 7, 3]], "result_extension": ".nii"}
        for answer in (
            server.infer("interactive", "a", click),
            get(server, "/datastore/image", image="a"),
            get(server, "/datastore/image/info", image="a"),
            get(server, "/kprism/api/case/a"),
            submit(server, "a", labels["a"]),
        ):
            assert refused(answer, "a", str(worklist)), answer.text
        assert server.infer("interactive", "c 1", click).status_code == 200
        assert submit(server, "b", labels["b"]).status_code == 200
        assert totals(server) == (2, 1) and next_case(server) == "c 1"
        batch = requests.post(
            f"{server.url}/batch/infer/semantic",
            params={"images": "unlabeled", "run_sync": "true"},
            json={"device": "cpu", "multi_gpu": False},
            timeout=120,
        )
        assert batch.status_code == 200, batch.text
        assert {path.name.split(".")[0] for path in (studies / "labels" / "original").glob("*")} == {"c 1"}
        worklist.write_text("a\nd\n")
        assert totals(server) == (2, 0) and next_case(server) == "a"
        assert server.infer("interactive", "a", click).status_code == 200
        assert refused(server.infer("interactive", "b", click), "b", str(worklist))
        assert indexed(server) == {"a", "d"} and get(server, "/datastore/", output="train").json() == []
        assert get(server, "/datastore/dataset").status_code == 404
        worklist.write_text("a\nb\nd\n")
        assert totals(server) == (3, 1)  # the label of b was kept
        assert indexed(server) == {"a", "b", "d"}
        [pair] = get(server, "/datastore/", output="train").json()
        assert Path(pair["image"]).name.split(".")[0] == Path(pair["label"]).name.split(".")[0] == "b"
        archive = zipfile.ZipFile(io.BytesIO(get(server, "/datastore/dataset").content))
        assert {name.split("/")[-1].split(".")[0] for name in archive.namelist()} == {"b", "metadata"}
        assert set(json.loads(archive.read("metadata.json"))["objects"]) == {"a", "b", "d"}


@dataclass
class Store:
    """A store with three studies, and patient -> (study, series)."""

    orthanc: Orthanc
    places: dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    program("Orthanc", "orthanc", package="orthanc orthanc-dicomweb")
    with Orthanc(tmp_path_factory.mktemp("store") / "orthanc", free_port()) as orthanc:
        web, places = DicomWeb.at(orthanc.url), {}
        for patient, modality, date in (("old", "CT", "20201231"), ("new", "CT", "20240615"), ("mr", "MR", "20240616")):
            images = dicom_files.volume(modality, (24, 20, 4), patient)
            for image in images:
                image.StudyDate, image.StudyDescription = date, f"of the {patient}"
            web.store(images)
            places[patient] = (str(images[0].StudyInstanceUID), str(images[0].SeriesInstanceUID))
        yield Store(orthanc, places)


def shown(server: LiveServer, **params: str) -> list[str]:
    """The studies that a viewer lists."""
    answer = get(server, "/kprism/dicom-web/studies", **params)
    assert answer.status_code == 200, answer.text
    return sorted(item["0020000D"]["Value"][0] for item in answer.json())


def serving(store: Store, folder: Path, worklist: str) -> LiveServer:
    conf = {"worklist": worklist, "train_after": "0", "state": str(folder / "state")}
    environment = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache")}
    return LiveServer(store.orthanc.url, conf=conf, environment=environment)


def assert_served(server: LiveServer, store: Store, patients: set[str], source: str) -> None:
    """Exactly these patients are listed, handed out and opened, in both ways to the store."""
    served = {patient: store.places[patient] for patient in patients}
    status = get(server, "/kprism/api/status").json()["cases"]
    assert status["all"] == len(served)
    assert {entry["id"] for entry in status["waiting"]} == {series for _, series in served.values()}
    assert next_case(server) == min(series for _, series in served.values())
    assert indexed(server) <= {series for _, series in served.values()}
    assert shown(server) == sorted(study for study, _ in served.values())
    assert len(shown(server, limit="1", offset=str(len(served) - 1))) == 1
    for limit in ("many", "-1", "1.5"):
        assert f"limit is '{limit}'" in get(server, "/kprism/dicom-web/studies", limit=limit).json()["detail"]
    assert shown(server, limit="5", offset=str(len(served))) == []
    for patient, (study, series) in store.places.items():
        case = get(server, f"/kprism/api/case/{series}")
        metadata = get(server, f"/kprism/dicom-web/studies/{study}/series/{series}/metadata")
        click = server.infer("interactive", series, {"liver": [[8, 7, 2]], "result_extension": ".nrrd"})
        if patient in patients:
            assert (case.status_code, metadata.status_code, click.status_code) == (200, 200, 200)
        else:
            assert refused(case, series, source) and refused(click, series, source)
            assert metadata.status_code == 403 and study in metadata.json()["detail"]
            for start in ("studies//", "/studies/", "studies/./", "studies%2F", "studies/%2F"):
                answer = requests.get(
                    f"{server.url}/kprism/dicom-web/{start}{study}/series/{series}/metadata", timeout=60
                )
                assert answer.status_code in (400, 403, 404), start
                assert not answer.json() or "detail" in answer.json()


def test_a_store_with_a_query(store: Store, tmp_path: Path) -> None:
    query = "StudyDate=20240101-&ModalitiesInStudy=CT"
    with serving(store, tmp_path, query) as server:
        assert_served(server, store, {"new"}, query)
        late = dicom_files.volume("CT", (24, 20, 4), "late")
        for image in late:
            image.StudyDate = "20250101"
        DicomWeb.at(store.orthanc.url).store(late)
        store.places["late"] = (str(late[0].StudyInstanceUID), str(late[0].SeriesInstanceUID))
        wait(lambda: get(server, "/kprism/api/status").json()["cases"]["all"] == 2, "study that was stored later")
        assert_served(server, store, {"new", "late"}, query)


@pytest.mark.parametrize(
    "query",
    [
        {"PatientName": "*ld", "PatientID": "ol*"},
        {"StudyDescription": "of the old", "StudyDate": "20200101-20201231"},
        {"StudyDescription": "*THE*OL?"},
    ],
    ids=str,
)
def test_a_query_with_wildcards_and_spaces(query: dict[str, str], store: Store) -> None:
    assert DicomWeb.at(store.orthanc.url).studies(query) == {store.places["old"][0]}


def test_a_store_with_a_list_of_studies(store: Store, tmp_path: Path) -> None:
    worklist = tmp_path / "list.txt"
    worklist.write_text("\n".join((store.places["old"][0], "1.2.3")))
    with serving(store, tmp_path, str(worklist)) as server:
        assert_served(server, store, {"old"}, str(worklist))
        assert get(server, "/kprism/api/status").json()["worklist_missing"] == ["1.2.3"]
        worklist.write_text(f"{store.places['mr'][0]} # by its study\n{store.places['new'][1]} # by its series\n")
        assert_served(server, store, {"mr", "new"}, str(worklist))
        unknown: Any = get(server, "/kprism/api/case/1.2.3.4")
        assert unknown.status_code == 404
