# SPDX-License-Identifier: Apache-2.0
"""Labels as the store holds them: read with pydicom and highdicom, every voxel compared with what /infer answered."""

from __future__ import annotations

import io
from collections.abc import Callable

import highdicom
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from lib.dicom.segments import cielab
from tests.e2e.store.orthanc_site import Site
from tests.e2e.store.planes import Mask, assert_same, expected_planes, places, planes_of
from tests.unit import dicom_files

SHAPE = (36, 28, 5)
FLAT = SHAPE[:2]
KINDS: dict[str, Callable[[str], list[Dataset]]] = {
    "CT": lambda name: dicom_files.volume("CT", SHAPE, name),
    "MR": lambda name: dicom_files.volume("MR", SHAPE, name),
    "MR, multi-frame": lambda name: dicom_files.enhanced(SHAPE, name),
    "US": lambda name: dicom_files.picture("US", shape=FLAT, name=name),
    "US, multi-frame": lambda name: dicom_files.cine(shape=FLAT, name=name),
    "CR": lambda name: dicom_files.picture("CR", shape=FLAT, name=name),
    "CR, several": lambda name: dicom_files.several_pictures("CR", shape=FLAT, name=name),
    "ES": lambda name: dicom_files.picture("ES", colour=True, shape=FLAT, name=name),
}
NAMES = ("zyst mit ümläut 腫瘍 печень", "liver")


def two_structures(site: Site, image: str, slices: int) -> tuple[Mask, np.ndarray]:
    """(an answer, both answers in one label map of 1 and 2) for clicks on two structures."""
    last = slices - 1
    first = site.infer("interactive", image, {NAMES[0]: [[5, 4, 0], [20, 9, last]]})
    second = site.infer("interactive", image, {NAMES[1]: [[30, 20, 0]], NAMES[0]: [[5, 4, 0]]})
    values = site.server.info()["models"]["interactive"]["labels"]
    labels = (first.voxels > 0).astype(np.uint8)
    labels[second.voxels == values["liver"]] = 2
    assert {1, 2} <= set(np.unique(labels))
    return first, labels


@pytest.mark.parametrize("kind", KINDS)
def test_a_submitted_label_is_a_segmentation_of_the_store(kind: str, site: Site) -> None:
    instances = KINDS[kind](f"out {kind}")
    image = site.put(instances)
    slices = len(places(instances))
    mask, labels = two_structures(site, image, slices)
    answer = site.submit(image, mask.file(labels), NAMES)
    assert answer.status_code == 200, answer.text
    [stored] = site.segmentations(image)

    mask.voxels = labels
    assert_same(planes_of(stored), expected_planes(mask, {NAMES[0]: 1, NAMES[1]: 2}, instances))
    assert [str(item.SegmentLabel) for item in stored.SegmentSequence] == list(NAMES)
    assert [int(item.SegmentNumber) for item in stored.SegmentSequence] == [1, 2]
    colours = {entry["name"]: entry["colour"] for entry in site.get("/kprism/api/status").json()["structures"]}
    for item in stored.SegmentSequence:
        assert list(item.RecommendedDisplayCIELabValue) == cielab(tuple(colours[item.SegmentLabel]))
    assert_refers(stored, instances)
    if instances[0].get("FrameOfReferenceUID"):
        assert_geometry(stored, instances)
    assert_highdicom_agrees(stored, labels, mask, instances)


def assert_refers(stored: Dataset, instances: list[Dataset]) -> None:
    """The patient, the study and every image are those of the series."""
    image = instances[0]
    for name in ("PatientID", "PatientName", "StudyInstanceUID"):
        assert stored[name].value == image[name].value
    [series] = stored.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == image.SeriesInstanceUID
    referred = {str(item.ReferencedSOPInstanceUID) for item in series.ReferencedInstanceSequence}
    assert {instance for _, instance, _ in planes_of(stored)} <= referred
    assert referred <= {str(instance.SOPInstanceUID) for instance in instances}
    assert (stored.Rows, stored.Columns) == (image.Rows, image.Columns)


def assert_geometry(stored: Dataset, instances: list[Dataset]) -> None:
    """Frames lie where their images lie, turned and spaced alike."""
    image = instances[0]
    shared = image.get("SharedFunctionalGroupsSequence")
    turn = shared[0].PlaneOrientationSequence[0] if shared else image
    measures = shared[0].PixelMeasuresSequence[0] if shared else image
    groups = stored.SharedFunctionalGroupsSequence[0]
    np.testing.assert_allclose(
        groups.PlaneOrientationSequence[0].ImageOrientationPatient, turn.ImageOrientationPatient, atol=1e-6
    )
    np.testing.assert_allclose(groups.PixelMeasuresSequence[0].PixelSpacing, measures.PixelSpacing, rtol=1e-6)
    assert stored.FrameOfReferenceUID == image.FrameOfReferenceUID
    where = {(instance, frame): position for instance, frame, position in places(instances)}
    for group in stored.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        key = (str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 1))
        np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient, where[key], atol=1e-3)


def assert_highdicom_agrees(stored: Dataset, labels: np.ndarray, mask: Mask, instances: list[Dataset]) -> None:
    """A reader that is none of ours finds the same voxels."""
    stream = io.BytesIO()
    stored.save_as(stream, write_like_original=False)
    segmentation = highdicom.seg.segread(io.BytesIO(stream.getvalue()))
    sources = [place[:2] for place in places(instances)]
    if len(instances) == 1 and len(sources) > 1:
        frames = [frame for _, frame in sources]
        found = segmentation.get_pixels_by_source_frame(
            instances[0].SOPInstanceUID, frames, combine_segments=True, ignore_spatial_locations=True
        )
    else:
        found = segmentation.get_pixels_by_source_instance(
            [instance for instance, _ in sources], combine_segments=True, ignore_spatial_locations=True
        )
    expected = expected_planes(Mask(labels, mask.directions, mask.origin), {"1": 1, "2": 2}, instances)
    for plane, (instance, frame) in zip(found, sources, strict=True):
        for value in ("1", "2"):
            blank = np.zeros(plane.shape, bool)
            np.testing.assert_array_equal(plane == int(value), expected.get((value, instance, frame), blank))


def test_an_answer_can_be_had_as_a_segmentation(site: Site) -> None:
    instances = dicom_files.volume("CT", SHAPE, "answer")
    image = site.put(instances)
    params = {"liver": [[5, 4, 2]], "spleen": [[30, 20, 3]]}
    mask = site.infer("interactive", image, params)
    answer = site.server.infer("interactive", image, params, output="dicom_seg")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    segmentation = dcmread(io.BytesIO(answer.content))
    values = site.server.info()["models"]["interactive"]["labels"]
    expected = expected_planes(mask, {name: values[name] for name in params}, instances)
    assert {name for name, *_ in expected} == set(params)
    assert_same(planes_of(segmentation), expected)
    assert [item.SegmentAlgorithmType for item in segmentation.SegmentSequence] == ["SEMIAUTOMATIC"] * 2
    renamed = {**params, "label_info": [{"name": "first"}, {"name": "second"}]}
    answer = site.server.infer("interactive", image, renamed, output="dicom_seg")
    names = [item.SegmentLabel for item in dcmread(io.BytesIO(answer.content)).SegmentSequence]
    assert names == ["first", "second"]
    assert site.segmentations(image) == []  # asking stores nothing


def test_an_answer_as_a_segmentation_needs_an_image_of_the_store(site: Site) -> None:
    nameless = site.server.infer("interactive", "", {}, output="dicom_seg")
    assert nameless.status_code == 400
    assert "needs a DICOM series of the datastore" in nameless.json()["detail"]


SETS: list[tuple[str | list[str], str, str]] = [
    ("ISO_IR 100", "Müller^Jörg", "Küche 1"),
    ("ISO_IR 144", "Иванов^Пётр", "Номер 1"),
    ("ISO_IR 192", "Ünal^山田", "患者 1"),
    ("GB18030", "王^小东", "病人 1"),
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", "plain 1"),
    ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ", "plain 2"),
    (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう", "plain 3"),
    (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동", "plain 4"),
]


@pytest.mark.parametrize(("declared", "patient", "identifier"), SETS, ids=[str(entry[0]) for entry in SETS])
def test_names_of_every_script_are_those_of_the_images(
    declared: str | list[str], patient: str, identifier: str, site: Site
) -> None:
    """Whatever set the images declare, and whatever the structures are called; also what does not fit into a label."""
    instances = dicom_files.volume("CT", SHAPE, f"out {declared}")
    for instance in instances:
        instance.SpecificCharacterSet, instance.PatientName, instance.PatientID = declared, patient, identifier
    image = site.put(instances)
    names = ("肝臓", "Leber äöü", "печень " * 12 + "край")
    mask = site.infer("interactive", image, {"liver": [[8, 6, 0]]})
    labels = np.random.default_rng(0).integers(0, 4, mask.voxels.shape).astype(np.uint8)
    answer = site.submit(image, mask.file(labels), names)
    assert answer.status_code == 200, answer.text
    [stored] = site.segmentations(image)
    assert stored.SpecificCharacterSet == "ISO_IR 192"
    assert (str(stored.PatientName), stored.PatientID) == (patient, identifier)
    assert [str(item.SegmentLabel) for item in stored.SegmentSequence[:2]] == list(names[:2])
    assert stored.SegmentSequence[2].SegmentDescription == names[2]
    found, values = site.label(image)
    assert list(values) == list(names)
    np.testing.assert_array_equal(found.voxels, labels)
    assert site.get("/datastore/image/info", image=image).json()["PatientID"] == identifier
    assert set(names) <= set(site.server.info()["labels"])
    assert_geometry(stored, instances)  # Orthanc loses numbers of images in ISO_IR 13
