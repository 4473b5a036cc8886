# SPDX-License-Identifier: Apache-2.0
"""What is unusual or wrong in a store: each is worked with or answered with a sentence, and nothing is lost."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import requests
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless, generate_uid

from tests.e2e.site import wait
from tests.e2e.store.orthanc_site import Site
from tests.e2e.store.planes import Mask, assert_same, expected_planes, planes_of
from tests.unit import dicom_files, htj2k_files

SHAPE = (36, 28, 5)
FLAT = SHAPE[:2]
CLICKS = {"liver": [[8, 6, 0]]}


def sentence(answer: requests.Response, status: int) -> str:
    """The sentence of a refusal."""
    assert answer.status_code == status, answer.text
    text = str(answer.json()["detail"])
    assert len(text) > 30 and "Traceback" not in text
    return text


def case(site: Site, image: str) -> dict[str, Any]:
    """What OHIF's mode asks when a case is opened."""
    answer = site.get(f"/kprism/api/case/{image}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def label_of(site: Site, image: str) -> tuple[Mask, np.ndarray]:
    """(an answer, a label map of one structure) of an image."""
    mask = site.infer("interactive", image, CLICKS)
    labels = (mask.voxels > 0).astype(np.uint8)
    labels = labels.reshape(*labels.shape[:2], -1)
    assert labels.any()
    return mask, labels


def test_a_server_whose_store_is_off_says_so(site: Site) -> None:
    told = site.without_store
    for what in ("infer", "viewer", "case"):
        assert "does not answer" in sentence(told[what], 503), what
    assert told["info"].status_code == 200 and told["info"].json()["models"]
    assert told["next"].status_code == 200 and told["next"].json() == {}
    assert told["status"].status_code == 200 and told["status"].json()["cases"]["all"] == 0
    image = site.put(dicom_files.volume("CT", SHAPE, "after the start"))
    wait(lambda: site.get("/datastore/").json()["total"] > 0, site.server)
    assert site.server.infer("interactive", image, CLICKS).status_code == 200


def test_a_store_that_ends_in_the_middle_loses_nothing(site: Site) -> None:
    known = site.put(dicom_files.volume("CT", SHAPE, "known"))
    unknown = site.put(dicom_files.volume("MR", SHAPE, "unknown"))
    mask, labels = label_of(site, known)
    total = site.get("/datastore/").json()["total"]
    site.orthanc.stop()
    try:
        refused = site.submit(known, mask.file(labels), ["liver"])
        assert "does not answer; nothing was changed" in sentence(refused, 503)
        assert "does not answer" in sentence(site.server.infer("interactive", unknown, CLICKS), 503)
        assert "does not answer" in sentence(site.get("/kprism/dicom-web/studies"), 503)
        again = site.infer("interactive", known, CLICKS)  # the local copy
        np.testing.assert_array_equal(again.voxels, mask.voxels)
        assert site.get("/datastore/").json()["total"] == total
        assert site.submission(known) is None
        assert list((site.state / "intake" / "pending").iterdir()) == []
    finally:
        site.orthanc.start()
    assert site.server.infer("interactive", unknown, CLICKS).status_code == 200
    assert site.submit(known, mask.file(labels), ["liver"]).status_code == 200
    assert len(site.segmentations(known)) == 1
    assert site.submission(known) is not None


def without_spacing() -> list[Dataset]:
    instances = dicom_files.volume("CT", SHAPE, "no spacing")
    for instance in instances:
        del instance.PixelSpacing
    return instances


def with_a_gap() -> list[Dataset]:
    instances = dicom_files.volume("CT", SHAPE, "gap")
    return instances[:2] + instances[3:]


def turned_over() -> list[Dataset]:
    instances = dicom_files.volume("MR", SHAPE, "orientations")
    instances[1].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    return instances


def several_times() -> list[Dataset]:
    instances = dicom_files.volume("MR", SHAPE, "phases")
    instances[1].ImagePositionPatient = instances[0].ImagePositionPatient
    return instances


ODD: dict[str, tuple[Callable[[], list[Dataset]], str]] = {
    "no pixel spacing": (without_spacing, "have no pixel spacing"),
    "missing slices": (with_a_gap, "Slices seem to be missing: after slice 2"),
    "an image in another plane": (turned_over, "1 image is set aside, not segmented: it lies in another plane"),
    "one place twice": (several_times, "1 image is set aside, not segmented: it shows a place in the patient that"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_series_are_worked_with_and_the_user_is_told(kind: str, site: Site) -> None:
    make, warning = ODD[kind]
    instances = make()
    image = site.put(instances)
    assert any(warning in told for told in case(site, image)["warnings"])
    mask, labels = label_of(site, image)
    assert site.submit(image, mask.file(labels), ["liver"]).status_code == 200
    [stored] = site.segmentations(image)
    frames = case(site, image)["frames"]
    expected = {
        ("liver", instance, frame): labels[:, :, row].T > 0
        for row, (instance, frame) in enumerate(frames)
        if labels[:, :, row].any()
    }
    assert_same(planes_of(stored), expected)


def with_localizer() -> list[Dataset]:
    instances = dicom_files.volume("CT", SHAPE, "sizes")
    other = dicom_files.volume("CT", (20, 20, 1), "sizes")[0]
    other.SeriesInstanceUID, other.StudyInstanceUID = instances[0].SeriesInstanceUID, instances[0].StudyInstanceUID
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return [other, *instances]


def with_unplaced() -> list[Dataset]:
    instances = dicom_files.volume("CT", SHAPE, "unplaced")
    del instances[3].ImagePositionPatient
    return [instances[3], *instances[:3], instances[4]]


def sent_twice() -> list[Dataset]:
    instances = dicom_files.volume("CT", SHAPE, "twice")
    again = copy.deepcopy(instances[2])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    again.InstanceNumber = 99
    return [again, *instances]


SET_ASIDE: dict[str, tuple[Callable[[], list[Dataset]], str]] = {
    "a localizer": (with_localizer, "it has 20 x 20 grey pixels; the others have 36 x 28 grey pixels"),
    "no position": (with_unplaced, "it has no position in the patient"),
    "sent twice": (sent_twice, "it shows a place in the patient that another image shows already"),
}


@pytest.mark.parametrize("kind", SET_ASIDE)
def test_an_odd_image_is_set_aside_and_the_segmentation_of_the_rest_has_positions(kind: str, site: Site) -> None:
    make, reason = SET_ASIDE[kind]
    odd, *rest = make()
    image = site.put([odd, *rest])
    opened = case(site, image)
    assert {instance for instance, _ in opened["frames"]} == {str(item.SOPInstanceUID) for item in rest}
    assert f"1 image is set aside, not segmented: {reason}." in opened["warnings"]
    mask, labels = label_of(site, image)
    assert site.submit(image, mask.file(labels), ["liver"]).status_code == 200
    [stored] = site.segmentations(image)
    rows = {row: ("liver", *frame) for row, frame in enumerate(opened["frames"]) if labels[:, :, row].any()}
    assert_same(planes_of(stored), {key: labels[:, :, row].T > 0 for row, key in rows.items()})
    assert stored.FrameOfReferenceUID == rest[0].FrameOfReferenceUID
    positions = {str(item.SOPInstanceUID): item.ImagePositionPatient for item in rest}
    for group in stored.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        expected = positions[str(source.ReferencedSOPInstanceUID)]
        np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient, expected, atol=1e-3)


def test_a_series_of_which_nothing_can_be_used_is_never_the_next_case(site: Site) -> None:
    instances = dicom_files.volume("CT", SHAPE, "half an image")
    for instance in instances:
        instance.PixelData = instance.PixelData[:100]
    image = site.put(instances)
    wait(lambda: site.get("/datastore/image/info", image=image).status_code == 200, site.server)
    for answer in (site.server.infer("interactive", image, CLICKS), site.get("/datastore/image", image=image)):
        assert "bytes of pixels, its header says 2016" in answer.text
    wait(lambda: image in str(site.get("/kprism/api/status").json()["not_served"]), site.server)
    for _ in range(6):
        offered = requests.post(f"{site.server.url}/activelearning/first", json={}, timeout=60)
        assert offered.status_code == 200, offered.text
        assert offered.json().get("id") != image
    status = site.get("/kprism/api/status").json()
    assert image not in {entry["id"] for entry in status["cases"]["waiting"]}


def smooth(instances: list[Dataset]) -> list[Dataset]:
    """Pixels that lossy compression changes little."""
    for instance in instances:
        frames = int(instance.get("NumberOfFrames") or 1)
        rows, columns = np.mgrid[: instance.Rows, : instance.Columns]
        planes = np.stack([(rows * 4 + columns * 3 + 9 * frame).astype(np.uint8) for frame in range(frames)])
        data = planes.tobytes()
        instance.PixelData = data + b"\0" * (len(data) % 2)
    return instances


def rle(instances: list[Dataset]) -> list[Dataset]:
    for instance in instances:
        instance.compress(RLELossless)
    return instances


def unsigned(instances: list[Dataset]) -> list[Dataset]:
    for instance in instances:
        instance.PixelRepresentation = 0
    return instances


COMPRESSED: dict[str, tuple[Callable[[str], list[Dataset]], Callable[[list[Dataset]], list[Dataset]], int]] = {
    "RLE": (lambda name: dicom_files.volume("CT", SHAPE, name), rle, 0),
    "JPEG 2000": (
        lambda name: unsigned(dicom_files.volume("CT", SHAPE, name)),
        lambda plain: dicom_files.compress(plain, JPEG2000Lossless, dicom_files.jpeg_2000),
        0,
    ),
    "JPEG-LS": (
        lambda name: smooth(dicom_files.picture("US", shape=FLAT, name=name)),
        lambda plain: dicom_files.compress(plain, JPEGLSLossless, dicom_files.jpeg_ls),
        0,
    ),
    "JPEG-LS, a volume": (
        lambda name: unsigned(dicom_files.volume("CT", SHAPE, name)),
        lambda plain: dicom_files.compress(plain, JPEGLSLossless, dicom_files.jpeg_ls),
        0,
    ),
    "HTJ2K": (
        lambda name: htj2k_files.images("uint16", name),
        lambda plain: htj2k_files.compressed(plain, "uint16"),
        0,
    ),
    "JPEG, multi-frame": (
        lambda name: smooth(dicom_files.cine(shape=FLAT, name=name)),
        lambda plain: dicom_files.compress(plain, JPEGBaseline8Bit, dicom_files.jpeg),
        3,
    ),
}


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_images_are_the_images(kind: str, site: Site) -> None:
    make, pack, tolerance = COMPRESSED[kind]
    plain, packed = site.put(make(f"{kind}, plain")), site.put(pack(make(f"{kind}, packed")))
    images = [site.get("/datastore/image", image=image) for image in (plain, packed)]
    expected, found = (Mask.of_nifti(answer.content).voxels for answer in images)
    assert np.abs(found.astype(int) - expected).max() <= tolerance
    mask, labels = label_of(site, packed)
    assert site.submit(packed, mask.file(labels), ["liver"]).status_code == 200
    [stored] = site.segmentations(packed)
    assert sum(plane.sum() for plane in planes_of(stored).values()) == labels.sum()


def test_the_phase_that_is_clicked_is_segmented_and_labelled(site: Site) -> None:
    instances = dicom_files.phases(SHAPE, "TriggerTime", [0.0, 31.5, 63.0], "cine")
    image, count = site.put(instances), SHAPE[2]
    opened = case(site, image)
    assert (opened["grid"], opened["volumes"]) == ([*SHAPE[:2], 3 * count], 3)
    assert "shows 5 places 3 times" in opened["warnings"][0]
    times = {str(instance.SOPInstanceUID): float(instance.TriggerTime) for instance in instances}
    assert [times[instance] for instance, _ in opened["frames"]] == [0.0] * count + [31.5] * count + [63.0] * count
    mask = site.infer("interactive", image, {"liver": [[8, 6, count + 2]], "scope": "whole volume"})
    labels = (mask.voxels > 0).astype(np.uint8)
    assert set(np.flatnonzero(labels.any(axis=(0, 1)))) <= set(range(count, 2 * count))
    assert labels[8, 6, count + 2]
    assert site.submit(image, mask.file(labels), ["liver"]).status_code == 200
    [stored] = site.segmentations(image)
    [referenced] = stored.ReferencedSeriesSequence
    assert {times[item.ReferencedSOPInstanceUID] for item in referenced.ReferencedInstanceSequence} == {31.5}


def test_slices_closer_together_than_pixels_are_cut_as_they_were_acquired(site: Site) -> None:
    instances = dicom_files.volume("CT", SHAPE, "thin slices")
    along = np.array(instances[0].ImageOrientationPatient, float)
    for number, instance in enumerate(instances):
        instance.PixelSpacing, instance.SliceThickness = [0.98, 0.98], "0.625"
        instance.ImagePositionPatient = [f"{x:.6g}" for x in np.cross(along[:3], along[3:]) * 0.625 * number]
    mask = site.infer("interactive", site.put(instances), {"liver": [[8, 6, 3]]})
    assert set(np.flatnonzero(mask.voxels.any(axis=(0, 1)))) == {3}


def test_a_series_that_grows_is_fetched_again(site: Site) -> None:
    """Somebody looks at it while the scanner is still sending; the label so far is put on the longer grid."""
    instances = dicom_files.volume("CT", SHAPE, "growing")
    image = site.put(instances[:3])
    mask, labels = label_of(site, image)
    assert labels.shape[2] == 3
    assert site.submit(image, mask.file(labels), ["liver"]).status_code == 200
    [stored] = site.segmentations(image)
    site.put(instances[3:])
    wait(lambda: len(case(site, image)["frames"]) == 5, site.server)
    wait(lambda: site.get("/datastore/label", label=image, tag="final").status_code == 200, site.server)
    found, names = site.label(image)
    assert found.voxels.shape == SHAPE
    assert_same(expected_planes(found, names, instances), planes_of(stored))


def in_mode(site: Site, image: str, labels: np.ndarray, **header: Any) -> requests.Response:
    """A submission as OHIF's mode makes it."""
    planes = [int(k) for k in np.flatnonzero(labels.any(axis=(0, 1)))]
    text = json.dumps({"names": {"liver": 1}, "planes": planes, **header}).encode()
    body = np.ascontiguousarray(labels[:, :, planes].transpose(2, 1, 0)).tobytes()
    message = gzip.compress(len(text).to_bytes(4, "little") + text + body)
    return requests.put(f"{site.server.url}/kprism/api/case/{image}/label", data=message, timeout=120)


def at_once(*requests_: Callable[[], requests.Response]) -> list[requests.Response]:
    """The answers of requests that start together."""
    barrier, answers = Barrier(len(requests_)), [requests.Response()] * len(requests_)

    def run(number: int) -> None:
        barrier.wait()
        answers[number] = requests_[number]()

    threads = [Thread(target=run, args=(number,)) for number in range(len(requests_))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_two_users_of_the_mode_cannot_overwrite_each_other_unawares(site: Site) -> None:
    instances = dicom_files.volume("CT", SHAPE, "two users")
    image = site.put(instances)
    _, labels = label_of(site, image)
    other = np.roll(labels, 3, axis=0)
    answers = at_once(*(lambda drawn=drawn: in_mode(site, image, drawn, based_on=None) for drawn in (labels, other)))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    late = next(number for number, answer in enumerate(answers) if answer.status_code == 409)
    assert "somebody else has submitted a label" in sentence(answers[late], 409)
    assert len(site.segmentations(image)) == 1
    again = in_mode(site, image, (labels, other)[late], based_on=None, replace=True)
    assert again.status_code == 200, again.text
    stored = [planes_of(segmentation) for segmentation in site.segmentations(image)]
    mask = site.infer("interactive", image, CLICKS)
    for drawn, planes in zip([(labels, other)[1 - late], (labels, other)[late]], stored, strict=True):
        mask.voxels = drawn
        assert_same(planes, expected_planes(mask, {"liver": 1}, instances))  # the first one is still in the store
    assert case(site, image)["label"]["version"] == again.json()["version"]


def test_two_users_of_slicer_both_keep_their_label_and_one_counts(site: Site) -> None:
    image = site.put(dicom_files.volume("MR", SHAPE, "two slicers"))
    mask, labels = label_of(site, image)
    users = {"anna": labels, "ben": np.roll(labels, 3, axis=0)}
    answers = at_once(
        *(
            lambda who=who, drawn=drawn: site.submit(image, mask.file(drawn), ["liver"], who)
            for who, drawn in users.items()
        )
    )
    assert [answer.status_code for answer in answers] == [200, 200]
    stored = site.segmentations(image)
    assert len(stored) == 2
    current = site.label_series(image)
    assert current in {segmentation.SeriesInstanceUID for segmentation in stored}
    found, _ = site.label(image)
    np.testing.assert_array_equal(found.voxels > 0, users[site.submission(image)["by"]] > 0)


def test_what_is_the_stores_is_not_changed_over_http(site: Site) -> None:
    image = site.put(dicom_files.volume("CT", SHAPE, "kept"))
    mask, labels = label_of(site, image)
    assert site.submit(image, mask.file(labels), ["liver"]).status_code == 200
    address = f"{site.server.url}/datastore"
    removed = requests.delete(f"{address}/label", params={"id": image, "tag": "final"}, timeout=60)
    assert "delete it there" in sentence(removed, 403)
    removed = requests.delete(f"{address}/image", params={"id": image}, timeout=60)
    assert "delete it there" in sentence(removed, 403)
    added = requests.put(
        f"{address}/image", params={"image": "new"}, files={"file": ("a.nrrd", mask.file(labels))}, timeout=60
    )
    assert "./kprism import" in sentence(added, 403)
    assert site.submission(image) is not None and len(site.segmentations(image)) == 1
