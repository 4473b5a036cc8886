# SPDX-License-Identifier: Apache-2.0
"""Phases, echoes and b-values in one DICOM series: volumes of their own, and the one that is clicked is segmented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from main import KPrismApp
from pydicom.dataset import Dataset

from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.volumes.predictor import PropagationRules
from kprism_model.volumes.slice_map import SliceMap
from lib.dicom.seg_reader import read_seg
from lib.dicom.seg_writer import write_seg
from lib.dicom.series import Series, describe_series
from lib.dicom.volumes import save_volume
from lib.errors import RequestError
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import read_image
from lib.infers.request import Source
from tests.unit import dicom_files

PHASES, PLACES = 4, 3
SHAPE = (48, 40, PLACES)

ATTRIBUTES: dict[str, list[Any]] = {
    "TemporalPositionIdentifier": [1, 2, 3, 4],
    "TriggerTime": [0.0, 31.5, 63.0, 94.5],
    "EchoTime": [1.2, 2.4, 3.6, 4.8],
    "DiffusionBValue": [0.0, 50.0, 400.0, 1000.0],
    "AcquisitionNumber": [5, 6, 7, 8],
    "InstanceNumber": [1, 2, 3, 4],
}


def cine(attribute: str) -> list[Dataset]:
    """A series in which only `attribute` says which phase an image is of."""
    return dicom_files.phases(SHAPE, attribute, ATTRIBUTES[attribute])


def identity(phase: int, place: int, attribute: str) -> str:
    return dicom_files.phase_uid("phases", attribute, phase, place)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_images_at_one_place_are_told_apart(attribute: str) -> None:
    series = describe_series(cine(attribute))
    whole = describe_series(dicom_files.volume("MR", SHAPE, "phases"))
    assert (series.volumes, series.grid) == (PHASES, (*SHAPE[:2], PHASES * PLACES))
    np.testing.assert_allclose(series.affine, whole.affine, atol=1e-4)
    order = [frame.instance for frame in series.frames]
    places = sorted(range(PLACES), key=lambda place: order.index(identity(0, place, attribute)))
    assert order == [identity(phase, place, attribute) for phase in range(PHASES) for place in places]
    [warning] = series.warnings
    assert warning.startswith("The series shows 3 places 4 times (phases, echoes or b-values)")


@pytest.mark.parametrize("attribute", ["TriggerTime", "EchoTime", "AcquisitionNumber"])
def test_a_phase_that_misses_an_image_is_set_aside_and_said(attribute: str) -> None:
    instances = cine(attribute)
    missing, instances = instances[0], instances[1:]
    series = describe_series(instances)
    assert (series.volumes, series.grid[2]) == (PHASES - 1, (PHASES - 1) * PLACES)
    kept = {frame.instance for frame in series.frames}
    left_out = [image for image in instances if image.SOPInstanceUID not in kept]
    assert [image[attribute].value for image in left_out] == [missing[attribute].value] * (PLACES - 1)
    assert {entry.instance for entry in series.aside} == {str(image.SOPInstanceUID) for image in left_out}
    assert any(warning.startswith(f"{PLACES - 1} images are set aside") for warning in series.warnings)
    grouped = [series.frames[start : start + PLACES] for start in range(0, len(series.frames), PLACES)]
    values = {str(image.SOPInstanceUID): image[attribute].value for image in instances}
    assert all(len({values[frame.instance] for frame in volume}) == 1 for volume in grouped)


def test_images_of_a_single_place_are_a_film() -> None:
    instances = [image for image in cine("TriggerTime") if image.SliceLocation == "0"]
    series = describe_series(instances)
    assert (series.volumes, series.grid[2]) == (1, PHASES)


def test_several_directions_at_each_b_value_are_ordered_by_both() -> None:
    instances = cine("InstanceNumber")
    for image in instances:
        image.DiffusionBValue = 1000.0 if int(image.InstanceNumber) > 2 else 0.0
    series = describe_series(instances)
    assert series.volumes == PHASES
    values = {str(image.SOPInstanceUID): float(image.DiffusionBValue) for image in instances}
    assert [values[frame.instance] for frame in series.frames] == [0.0] * 6 + [1000.0] * 6


def test_a_multi_frame_image_is_split_by_its_functional_groups() -> None:
    [image] = dicom_files.enhanced(SHAPE)
    groups = list(image.PerFrameFunctionalGroupsSequence)
    frames = []
    for phase in reversed(range(PHASES)):
        for group in groups:
            content = Dataset()
            content.TemporalPositionIndex = phase + 1
            frame = Dataset()
            frame.PlanePositionSequence, frame.FrameContentSequence = group.PlanePositionSequence, [content]
            frames.append(frame)
    image.PerFrameFunctionalGroupsSequence, image.NumberOfFrames = frames, len(frames)
    series = describe_series([image])
    assert series.volumes == PHASES
    assert [(frame.number - 1) // PLACES for frame in series.frames] == [3] * 3 + [2] * 3 + [1] * 3 + [0] * 3


def noisy(series: Series, path: Path) -> MedicalImage:
    """The series' local volume with other values in every phase, as the server reads it."""
    scale = np.repeat([1, 10, 100, 7], PLACES)
    array = np.random.default_rng(0).integers(0, 200, series.grid).astype(np.int16) * scale
    save_volume(array.astype(np.int16), series.affine, path, series.volumes)
    return read_image(path, "cine")


def test_each_volume_is_an_image_scaled_by_itself(tmp_path: Path) -> None:
    series = describe_series(cine("TriggerTime"))
    image = noisy(series, tmp_path / "cine.nii.gz")
    assert image.volumes == PHASES
    for phase in range(PHASES):
        alone, part = image.part(phase * PLACES + 1), image.part(phase * PLACES + 2)
        assert (part.grid, part.first, part.volumes) == (SHAPE, phase * PLACES, 1)
        np.testing.assert_array_equal(alone.scaled, part.scaled)
        assert np.asarray(part.scaled).max() == 1.0
        labels = np.random.default_rng(1).integers(0, 2, SHAPE).astype(np.uint8)
        whole_labels = part.on_whole(SliceMap.of(labels, part.orientation)).volume()
        np.testing.assert_array_equal(part.of_whole(whole_labels), labels)
        assert whole_labels.sum() == labels.sum()
        for k in range(PLACES):
            assert part.index_of(part.slice_at(part.first + k)) == part.first + k
            own, whole = part.locate((0, 0, k))[0], image.locate((0, 0, part.first + k))[0]
            np.testing.assert_array_equal(part.scaled[own], image.scaled[whole])
    assert len({image.part(k).volume.digest for k in range(image.grid[2])}) == PHASES
    with pytest.raises(RequestError, match="holds 4 volumes"):
        image.in_plane("coronal" if image.orientation.plane != "coronal" else "axial")


def test_a_label_of_one_phase_refers_to_its_images_alone() -> None:
    instances = cine("DiffusionBValue")
    series = describe_series(instances)
    labels = np.zeros(series.grid, np.uint8)
    labels[4:9, 5:12, PLACES : 2 * PLACES] = 1
    segmentation = write_seg(labels, {"liver": 1}, series, "one phase")
    [referenced] = segmentation.ReferencedSeriesSequence
    images = {str(item.ReferencedSOPInstanceUID) for item in referenced.ReferencedInstanceSequence}
    assert images <= {frame.instance for frame in series.frames[PLACES : 2 * PLACES]}
    assert "PlanePositionSequence" in segmentation.PerFrameFunctionalGroupsSequence[0]
    np.testing.assert_array_equal(read_seg(segmentation, series).labels, labels)
    labels[4:9, 5:12, 0] = 1
    np.testing.assert_array_equal(read_seg(write_seg(labels, {"liver": 1}, series, "two"), series).labels, labels)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KPrismApp:
    # Random weights are sure of nothing; with these rules they follow all the same.
    monkeypatch.setattr("kprism_model.volumes.predictor.PropagationRules", lambda: PropagationRules(presence=0))
    torch.manual_seed(0)
    network = KPrism(KPrismConfig.tiny(num_classes=1)).eval()
    save_checkpoint(tmp_path / "random", network, ClassRegistry(["thing"]), metadata={})
    (tmp_path / "studies").mkdir()
    noisy(describe_series(cine("TriggerTime")), tmp_path / "studies" / "cine.nii.gz")
    return KPrismApp(str(tmp_path), str(tmp_path / "studies"), {"model_path": str(tmp_path / "random.safetensors")})


def ask(app: KPrismApp, model: str, **params: Any) -> tuple[list[int], dict[str, Any]]:
    """The images k that are labelled, and the JSON."""
    result = app.infer({"model": model, "image": "cine", "result_extension": ".nii", **params})
    mask: Any = nibabel.load(result["file"])
    labels = np.asarray(mask.dataobj)
    Path(result["file"]).unlink()
    assert labels.shape == (*SHAPE[:2], PHASES * PLACES)
    return [int(k) for k in np.flatnonzero(labels.any(axis=(0, 1)))], result["params"]


def test_the_volume_that_is_clicked_is_segmented(app: KPrismApp, tmp_path: Path) -> None:
    for k in (1, 4, 11):
        first = k // PLACES * PLACES
        assert ask(app, "interactive", thing=[[20, 20, k]])[0] == [k]
        images, answer = ask(app, "interactive", thing=[[20, 20, k]], scope="whole volume")
        assert set(images) <= set(range(first, first + PLACES)) and len(images) > 1
        assert answer["slices"]["thing"]["prompted"] == [k]
        assert set(answer["slices"]["thing"]["followed"]) == set(range(first, first + PLACES)) - {k}
        for shown in (k, None):
            images, _ = ask(app, "semantic", presence=0.0, structures="thing", slice=shown)
            start = 0 if shown is None else first
            assert images and set(images) <= set(range(start, start + PLACES))
        assert ask(app, "semantic", presence=0.0, structures="thing", slices=str(k))[0] == [k]
    drawn = np.zeros((*SHAPE[:2], PHASES * PLACES), np.uint8)
    drawn[10:30, 10:30, 7] = 1
    (tmp_path / "label.bin").write_bytes(drawn.tobytes(order="F"))
    upload = {"label_file": Source(tmp_path / "label.bin", "the drawing"), "label": "thing", "follow_mask": True}
    images, answer = ask(app, "interactive", **upload, scope="whole volume")
    assert answer["slices"]["thing"]["prompted"] == [7] and set(images) <= {6, 7, 8}
    drawn[20, 10:30, 7] = 2
    (tmp_path / "label.bin").write_bytes(drawn.tobytes(order="F"))
    names = [{"name": "thing", "id": 1}, {"name": "foreground_scribbles", "id": 2}]
    upload = {**upload, "label_info": names, "selected_label_name": "thing", "scope": "whole volume"}
    images, answer = ask(app, "scribbles", **upload)
    assert answer["slices"]["thing"]["prompted"] == [7] and 7 in images and set(images) <= {6, 7, 8}


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"thing": [[20, 20, 1]], "background": [[5, 5, 4]]}, "images 1 and 4, which belong to different volumes"),
        ({"thing": [[20, 20, 12]]}, r"\[20, 20, 12\] of label 'thing' lies outside"),
        ({"slice": 12}, "slice is 12; expected the number of an image, from 0 to 11"),
    ],
)
def test_prompts_that_fit_no_volume_are_refused(app: KPrismApp, params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        ask(app, "interactive", **params)


def test_only_the_volumes_with_a_label_are_learned_from(app: KPrismApp, tmp_path: Path) -> None:
    image = app.engine.image(Path(app.studies) / "cine.nii.gz", "cine")
    label = np.zeros(image.grid, np.uint8)
    label[10:30, 10:30, 7] = 1
    save_volume(label, image.affine, tmp_path / "label.nii.gz")
    service = app.learning_loop.submissions
    submission = service.submit("cine", tmp_path / "label.nii.gz", {"label_info": [{"name": "thing"}]})
    case = service.load(submission)
    np.testing.assert_array_equal(case.images, image.part(7).scaled)
    np.testing.assert_array_equal(case.labels, image.part(7).to_slices(label[:, :, 6:9]))
