# SPDX-License-Identifier: Apache-2.0
"""Series that arrive from Orthanc while they are used: headers first, the planes that are needed, then all."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from monailabel.datastore.dicom import DICOMwebClientX

from lib.dicom.datastore import FINAL, DicomStore
from lib.dicom.pixel_type import TooWideError
from lib.dicom.series_volume import SeriesVolume
from lib.dicom.volume_budget import VolumeBudget
from lib.dicom.web import DicomWeb, StoreDownError, StoreError
from lib.imaging.reading import read_image
from tests.e2e.site import wait
from tests.e2e.store import foreign
from tests.e2e.store.orthanc_site import Site
from tests.e2e.store.planes import Mask, places
from tests.unit import dicom_files

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

SHAPE = (36, 28, 30)


def opened(site: Site, folder: Path, **options: Any) -> DicomStore:
    return DicomStore(DICOMwebClientX(site.orthanc.url), folder, **options)


class Asked:
    """What a store asks for, by instance, while it may go on: `after` answers come at once, the others wait."""

    def __init__(self, store: DicomStore, monkeypatch: pytest.MonkeyPatch, after: int = 1 << 30) -> None:
        self.instances: list[str] = []
        self.go_on = threading.Event()
        fetch = store.web.instance_file

        def asked(study: str, series: str, instance: str) -> bytes:
            self.instances.append(instance)
            if len(self.instances) > after:
                self.go_on.wait(30)
            return fetch(study, series, instance)

        monkeypatch.setattr(store.web, "instance_file", asked)


def test_a_series_is_opened_by_its_headers_alone(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instances = dicom_files.volume("CT", SHAPE, "opened")
    image = site.put(instances)
    store = opened(site, tmp_path)
    asked = Asked(store, monkeypatch, after=0)
    series = store.open_series(image)
    assert series.grid == SHAPE and asked.instances == []
    volume = store.volume(image)
    assert volume.path == tmp_path / f"{image}.nii" and volume.progress == (0, 30)
    assert store.opened_image(image) == str(volume.path) and store.local_volume(volume.path) is volume
    assert store.local_volume(tmp_path / "other.nii") is None
    asked.go_on.set()
    path = store.get_image_uri(image)
    found = read_image(Path(path), "the volume").array
    places_of = {str(instance.SOPInstanceUID): instance for instance in instances}
    for k, frame in enumerate(series.frames):
        np.testing.assert_array_equal(found[:, :, k], places_of[frame.instance].pixel_array.T)
    assert sorted(asked.instances) == sorted(places_of)
    again = DicomStore(DICOMwebClientX("http://127.0.0.1:9/dicom-web"), tmp_path)
    known: SeriesVolume = again.volume(image)
    assert known.is_complete and known.digest == volume.digest


def test_a_segmentation_is_adopted_without_pixels(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = dicom_files.volume("CT", SHAPE, "adopted")
    mask = np.zeros(SHAPE[1::-1], bool)
    mask[3:9, 4:20] = True
    image = site.put(images)
    site.put([foreign.by_ohif(images, {"cyst": {places(images)[1][:2]: mask}})])
    store = opened(site, tmp_path)
    asked = Asked(store, monkeypatch)
    assert image in store.sync(force=True) and store.get_label_uri(image, FINAL)
    assert asked.instances == [] and not list(tmp_path.glob("*.nii"))
    again = opened(site, tmp_path)
    again.refresh()  # MONAI Label looks for files; the volume is not there yet
    assert image in again.get_labeled_images() and again.get_label_uri(image, FINAL)
    [pair] = [pair for pair in again.datalist() if image in pair["image"]]
    assert Path(pair["image"]).is_file() and Path(pair["label"]).is_file()


def test_a_store_that_ends_half_way(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = site.put(dicom_files.volume("CT", SHAPE, "half way"))
    store = opened(site, tmp_path)
    asked = Asked(store, monkeypatch, after=7)
    volume = store.volume(image)
    volume.begin()
    wait(lambda: volume.progress[0] == 7, site.server)
    site.orthanc.stop()
    try:
        asked.go_on.set()
        with pytest.raises(StoreDownError, match="does not answer; nothing was changed"):
            store.get_image_uri(image)
        arrived = volume.progress[0]
        assert 7 <= arrived < 30 and not volume.path.exists()
        assert store.volume(image) is volume  # it is known, and goes on when the store is back
    finally:
        site.orthanc.start()
    asked.instances.clear()
    assert Path(store.get_image_uri(image)).is_file()
    assert len(set(asked.instances)) <= 30 - arrived + 4


def test_an_image_that_is_gone_is_named(site: Site, tmp_path: Path) -> None:
    instances = dicom_files.volume("CT", SHAPE, "gone")
    image = site.put(instances)
    store = opened(site, tmp_path)
    series = store.open_series(image)
    last = series.frames[-1].instance
    address = site.orthanc.url.removesuffix("/dicom-web")
    found = requests.post(
        f"{address}/tools/find", json={"Level": "Instance", "Query": {"SOPInstanceUID": last}}, timeout=60
    )
    [identifier] = found.json()
    requests.delete(f"{address}/instances/{identifier}", timeout=60).raise_for_status()
    volume = store._series_cache.volume(image)
    volume.wait(range(29))
    with pytest.raises(StoreError, match=f"has no image {last}"):
        volume.complete()
    store._entries(refresh=True)
    assert store.open_series(image).grid == (36, 28, 29)
    assert Path(store.get_image_uri(image)).is_file()


def test_headers_come_from_the_images_if_the_store_sends_too_few(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = site.put(dicom_files.volume("CT", SHAPE, "few"))
    whole = opened(site, tmp_path / "whole")
    expected = whole.open_series(image)
    store = opened(site, tmp_path / "few")
    complete = store.web.header_items

    def few(study: str, series: str) -> list[dict[str, Any]]:
        return [{tag: item[tag] for tag in ("0020000E", "00080018")} for item in complete(study, series)]

    monkeypatch.setattr(store.web, "header_items", few)
    series = store.open_series(image)
    assert series.frames == expected.frames and series.grid == expected.grid
    np.testing.assert_allclose(series.affine, expected.affine)
    assert store.volume(image).digest == whole.volume(image).digest
    store.get_image_uri(image)
    whole.get_image_uri(image)


def test_values_that_need_32_bits_are_said_and_read_at_the_next_opening(site: Site, tmp_path: Path) -> None:
    instances = dicom_files.volume("CT", SHAPE, "wide")
    for instance in instances:
        instance.PixelRepresentation, instance.RescaleIntercept = 0, "-1024"
    values = np.full(SHAPE[1::-1], 65000, np.uint16)
    instances[3].PixelData = values.tobytes()
    image = site.put(instances)
    store = opened(site, tmp_path)
    with pytest.raises(TooWideError, match=r"holds the value 63976, which does not fit .* open the series again"):
        store.get_image_uri(image)
    found = read_image(Path(store.get_image_uri(image)), "the volume").array
    assert found.dtype == np.int32 and found.max() == 63976
    assert opened(site, tmp_path).volume(image).is_complete
    assert image in store.list_images()


def test_the_budget_removes_the_volumes_that_were_not_used_for_longest(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [site.put(dicom_files.volume("CT", SHAPE, f"budget {number}")) for number in range(3)]
    store = opened(site, tmp_path, volume_bytes=0)
    paths = [Path(store.get_image_uri(image)) for image in images]
    assert all(path.is_file() for path in paths)  # used a moment ago
    held = store.volume(images[1]).image("the second")
    monkeypatch.setattr("lib.dicom.volume_budget.KEPT_SECONDS", -1.0)
    VolumeBudget(tmp_path, 0, store._series_cache._is_used).sweep()
    assert [path.is_file() for path in paths] == [False, True, False]
    assert store.series(images[0]).grid == SHAPE and held.array.any()
    monkeypatch.setattr("lib.dicom.volume_budget.KEPT_SECONDS", 600.0)
    store.refresh()
    assert Path(store.get_image_uri(images[0])).is_file()  # it arrives again


def test_the_mode_sees_how_a_case_arrives(site: Site) -> None:
    image = site.put(dicom_files.volume("CT", SHAPE, "progress"))
    opened_case = site.get(f"/kprism/api/case/{image}", k=4)
    assert opened_case.status_code == 200 and opened_case.json()["grid"] == list(SHAPE)
    address = f"/kprism/api/case/{image}/arrival"
    wait(lambda: site.get(address).json() == {"arrived": 30, "total": 30, "failed": 0}, site.server)
    assert site.get("/kprism/api/case/1.2.3.4/arrival").status_code == 404
    content = site.get("/datastore/image", image=image).content
    assert Mask.of_nifti(content).voxels.shape == SHAPE


def test_an_instance_is_the_file_that_the_store_has(site: Site) -> None:
    [instance] = dicom_files.picture("ES", colour=True, name="file")
    series = site.put([instance])
    web = DicomWeb.at(site.orthanc.url)
    content = web.instance_file(str(instance.StudyInstanceUID), series, str(instance.SOPInstanceUID))
    assert content[128:132] == b"DICM" and bytes(instance.PixelData) in content
    with pytest.raises(StoreError, match=r"has no image 1\.2\.3"):
        web.instance_file(str(instance.StudyInstanceUID), series, "1.2.3")
