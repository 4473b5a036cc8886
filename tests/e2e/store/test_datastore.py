# SPDX-License-Identifier: Apache-2.0
"""The datastore in this process, on the same store: what it keeps over restarts, and many threads at once."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.datastore.local import DataModel
from pydicom.dataset import Dataset

from lib.dicom.datastore import FINAL, DicomStore
from lib.dicom.volumes import save_volume
from lib.errors import ForbiddenError, NotFoundError
from lib.imaging.reading import read_image, read_mask
from tests.e2e.store import foreign
from tests.e2e.store.orthanc_site import Site
from tests.e2e.store.planes import places
from tests.unit import dicom_files

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

SHAPE = (36, 28, 5)


class Listening:
    """What a datastore tells of labels: (image, whether it has one now)."""

    def __init__(self, store: DicomStore) -> None:
        self.heard: list[tuple[str, bool]] = []
        store.on_label = lambda image, label: self.heard.append((image, True))
        store.on_removed = lambda image: self.heard.append((image, False))


def opened(site: Site, folder: Path, *, auto_sync: bool = True) -> DicomStore:
    return DicomStore(DICOMwebClientX(site.orthanc.url), folder, auto_sync=auto_sync)


def labelled(site: Site, name: str) -> tuple[str, str]:
    """(series, SEG series) of a new case with a label."""
    images = dicom_files.volume("CT", SHAPE, name)
    mask = np.zeros(SHAPE[1::-1], bool)
    mask[3:9, 4:20] = True
    image = site.put(images)
    return image, site.put([foreign.by_ohif(images, {"cyst": {places(images)[1][:2]: mask}})])


def test_changes_while_the_server_was_off_are_told_after_the_start(site: Site, tmp_path: Path) -> None:
    image, first = labelled(site, "off")
    before = opened(site, tmp_path)
    assert image in before.sync(force=True)
    site.delete(first)
    new, second = labelled(site, "off, new")
    store = opened(site, tmp_path)
    assert image not in store.get_labeled_images()  # asked during the start, before anybody listens
    listening = Listening(store)
    store.sync(force=True)
    assert {(image, False), (new, True)} <= set(listening.heard)
    assert store.get_label_uri(image, FINAL) == ""
    listening.heard.clear()
    store.sync(force=True)
    assert listening.heard == []
    site.delete(second)
    store.sync(force=True)
    assert listening.heard == [(new, False)]


def test_a_process_beside_the_server_leaves_its_index_alone(site: Site, tmp_path: Path) -> None:
    image, series = labelled(site, "beside")
    opened(site, tmp_path).sync(force=True)
    index = (tmp_path / "datastore_v2.json").read_bytes()
    site.delete(series)
    beside = opened(site, tmp_path, auto_sync=False)
    assert beside.sync(force=True) == []
    assert image in [Path(entry["image"]).name.removesuffix(".nii") for entry in beside.datalist()]
    assert (tmp_path / "datastore_v2.json").read_bytes() == index


def as_earlier_version(store: DicomStore, image: str, instances: list[Dataset], info: dict[str, Any]) -> None:
    """Make the copy of a series that of an earlier version: its instances, and a compressed volume."""
    folder, path = Path(store._datastore_path), Path(store.get_image_uri(image))
    volume = nibabel.load(path)
    shutil.rmtree(folder / image)
    (folder / image).mkdir()
    dicom_files.save(instances, folder / image)
    nibabel.save(nibabel.Nifti1Image(np.asarray(volume.dataobj)[..., ::-1], volume.affine), folder / f"{image}.nii.gz")
    path.unlink()
    known = {key: value for key, value in store._datastore.objects[image].image.info.items() if key != "layout"}
    store._datastore.objects[image].image = DataModel(info={**known, **info, "name": f"{image}.nii.gz"}, ext=".nii.gz")
    store._update_datastore_file()


def with_label(store: DicomStore, image: str, folder: Path) -> np.ndarray:
    label = np.zeros(store.series(image).grid, np.uint8)
    label[2:9, 2:9, 1] = 1
    save_volume(label, store.series(image).affine, folder / "label.nii.gz")
    store.save_label(image, str(folder / "label.nii.gz"), FINAL, {"label_info": [{"name": "cyst"}]})
    return label


def test_copies_of_an_earlier_version_are_written_anew(site: Site, tmp_path: Path) -> None:
    instances = dicom_files.phases(SHAPE, "EchoTime", [1.5, 3.0], "earlier")
    image = site.put(instances)
    store = opened(site, tmp_path)
    expected = nibabel.load(store.get_image_uri(image)).get_fdata()
    label = with_label(store, image, tmp_path)
    as_earlier_version(store, image, instances, {})  # in another order, unmarked
    again = opened(site, tmp_path)
    found = read_image(Path(again.get_image_uri(image)), "the copy")
    np.testing.assert_array_equal(found.array, expected)
    assert (found.volumes, found.slice_axis) == (2, 2)
    again.sync(force=True)
    np.testing.assert_array_equal(read_mask(Path(again.get_label_uri(image, FINAL)), "the label").array, label)


def test_copies_of_the_version_before_need_no_store(site: Site, tmp_path: Path) -> None:
    instances = dicom_files.volume("CT", SHAPE, "the version before")
    image = site.put(instances)
    store = opened(site, tmp_path)
    expected = nibabel.load(store.get_image_uri(image)).get_fdata()
    label = with_label(store, image, tmp_path)
    as_earlier_version(store, image, instances, {"layout": 2})
    off = DicomStore(DICOMwebClientX("http://127.0.0.1:9/dicom-web"), tmp_path)
    assert image in off.list_images()
    np.testing.assert_array_equal(nibabel.load(off.get_image_uri(image)).get_fdata(), expected)
    np.testing.assert_array_equal(read_mask(Path(off.get_label_uri(image, FINAL)), "the label").array, label)
    assert not (tmp_path / f"{image}.nii.gz").exists() and not list((tmp_path / image).glob("*.dcm"))
    assert off.get_image_info(image)["name"] == f"{image}.nii"


def test_many_threads_at_once(site: Site, tmp_path: Path) -> None:
    """Fetching, looking, saving and listing at the same time neither fail nor wait for each other for ever."""
    store = opened(site, tmp_path)
    Listening(store)
    images = [site.put(dicom_files.volume("MR", SHAPE, f"thread {number}")) for number in range(4)]
    label = np.zeros(SHAPE, np.uint8)
    label[2:9, 2:9, 1:3] = 1

    def work(number: int) -> None:
        image = images[number % 4]
        path = tmp_path / f"{number}.nii.gz"
        save_volume(label, store.series(image).affine, path)
        store.get_image_uri(image)
        store.save_label(image, str(path), ("original", FINAL)[number % 2], {"label_info": [{"name": "cyst"}]})
        store.status()
        store.sync(force=True)
        store.get_unlabeled_images()
        store.update_image_info(image, {"seen": number})
        store.json()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, number) for number in range(16)]:
            done.result(timeout=120)
    assert set(images[1::2]) <= set(store.get_labeled_images())
    for image in images[1::2]:
        assert len(site.segmentations(image)) == 4
    again = opened(site, tmp_path)
    assert all(again.get_label_uri(image, FINAL) for image in images[1::2])


def test_what_is_no_image_is_not_found(site: Site, tmp_path: Path) -> None:
    store = opened(site, tmp_path)
    _, segmentation = labelled(site, "no image")
    for image in ("1.2.3.4", segmentation):
        with pytest.raises(NotFoundError, match=rf"'{image}' is not in this datastore"):
            store.get_image_uri(image)
    with pytest.raises(ForbiddenError, match="is kept by http"):
        store.remove_image("1.2.3.4")
