# SPDX-License-Identifier: Apache-2.0
"""The loop on a DICOMweb store: a SEG is a reference at once, strategies name unlabelled series, training ends well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import requests
from pydicom.dataset import Dataset

from lib.dicom.series_writer import dicom_series
from tests.e2e.site import wait
from tests.e2e.store import foreign
from tests.e2e.store.orthanc_site import Site
from tests.e2e.store.planes import places
from tests.unit import dicom_files

SHAPE = (64, 64, 3)
NEW = "bright block"


def study(name: str, place: tuple[int, int]) -> tuple[list[Dataset], np.ndarray]:
    """(images, label (column, row, slice)) of a bright block in noise, on two of three slices."""
    column, row = place
    label = np.zeros(SHAPE, np.uint8)
    label[column - 8 : column + 8, row - 10 : row + 10, 1:] = 1
    noise = np.random.default_rng(column).normal(100, 5, SHAPE)
    image = dicom_files.image_of((label * 50 + noise).astype(np.int16))
    return list(dicom_series(image, name, "MR")), label


@pytest.fixture(scope="module")
def series(site: Site) -> list[str]:
    """Four series with blocks; the first has a label that another tool stored, two have labels from a viewer."""
    found = []
    for number, place in enumerate(((20, 30), (40, 25), (30, 40), (35, 35))):
        images, label = study(f"block {number}", place)
        image = site.put(images)
        found.append(image)
        if number == 0:
            order = [(uid, frame) for uid, frame, _ in places(images)]
            planes = {key: label[:, :, row].T > 0 for row, key in enumerate(order) if label[:, :, row].any()}
            site.put([foreign.by_ohif(images, {NEW: planes})])
        elif number < 3:
            mask = site.infer("semantic", image, {})
            answer = site.submit(image, mask.file(label), [NEW])
            assert answer.status_code == 200, answer.text
    wait(lambda: site.submission(found[0]), site.server)
    return found


def test_a_segmentation_is_a_reference_at_once(site: Site, series: list[str]) -> None:
    asked = {"structures": NEW, "references": series[0], "presence": 0}
    answer = site.server.infer("in_context", series[3], asked, output="json")
    assert answer.status_code == 200, answer.text
    [used] = answer.json()["references"][NEW]
    assert used["image"] == series[0]
    assert set(used["slices"]) <= {1, 2}
    assert site.infer("in_context", series[3], asked).voxels.shape == SHAPE
    chosen = site.server.infer("in_context", series[3], {"structures": NEW, "presence": 0}, output="json").json()
    assert {used["image"] for used in chosen["references"][NEW]} <= set(series[:3])
    shown = {entry["id"]: entry["names"] for entry in site.get("/kprism/api/references").json()}
    assert shown[series[0]] == [NEW]
    picture = site.get(f"/kprism/api/case/{series[0]}/thumbnail", structure=NEW)
    assert picture.headers["content-type"] == "image/png"


def test_every_strategy_names_an_unlabelled_series(site: Site, series: list[str]) -> None:
    for strategy in site.server.info()["strategies"]:
        chosen = requests.post(f"{site.server.url}/activelearning/{strategy}", json={}, timeout=120).json()
        assert site.submission(chosen["id"]) is None, strategy
        assert chosen["SeriesInstanceUID"] == chosen["id"]  # OHIF opens the study of it, 3D Slicer the file
        assert chosen["StudyInstanceUID"] and chosen["Modality"] and chosen["PatientID"]
        assert Path(chosen["path"]).is_file()


def test_training_on_the_labels_of_a_store_reaches_its_end(site: Site, series: list[str]) -> None:
    started = requests.post(f"{site.server.url}/train/kprism", json={}, timeout=60)
    assert started.status_code == 200, started.text
    wait(lambda: site.get("/train/").json()["status"] not in ("SUBMITTED", "RUNNING"), site.server)
    task = site.get("/train/").json()
    assert task["status"] == "DONE", "\n".join(task["details"])
    stats = site.server.info()["train_stats"]["kprism"]
    assert stats["found"] >= 3
    assert stats["epoch"] == stats["total_epochs"] > 0
    assert stats["message"]
    assert site.submission(series[0])["structures"] == {NEW: 1}
    assert site.label_series(series[0])  # the training, a process of its own, has left the index alone
