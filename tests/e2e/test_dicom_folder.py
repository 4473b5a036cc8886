# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM files is served as it lies: every series, voxel by voxel, with labels beside it as DICOM SEG."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from benchmarks.live_server import LiveServer
from tests.e2e import dicom_folders as made
from tests.e2e.store.planes import planes_of

PATIENCE = 120.0  # seconds; a few suffice, this is for a busy machine

INVERTED = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
UNSIGNED = {"PixelRepresentation": 0, "RescaleIntercept": "-1024", "RescaleSlope": "1"}
SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg2000": JPEG2000Lossless,
    "jpegls": JPEGLSLossless,
    "deflated": made.DEFLATED,
}


def stored(name: str) -> np.ndarray:
    """The voxels as they are stored in the series of a syntax: some encoders take numbers that are not negative."""
    return made.body() + (1024 if name == "jpegls" else 0)


@dataclass
class Folder:
    """The folder, the server on it, and the images of each series by its patient."""

    path: Path
    images: dict[str, list[Any]] = field(default_factory=dict)
    server: LiveServer | None = None

    def put(self, name: str, how: Callable[[list[Any]], object], voxels: np.ndarray | None = None, **more: Any) -> None:
        """Make a series of the patient `name` and write it."""
        self.images[name] = made.series(name, voxels, **more)
        how(self.images[name])

    def id(self, name: str) -> str:
        return str(self.images[name][0].SeriesInstanceUID)

    def get(self, address: str, **params: Any) -> requests.Response:
        assert self.server is not None
        return requests.get(f"{self.server.url}{address}", params=params, timeout=120)

    def status(self) -> dict[str, Any]:
        return dict(self.get("/kprism/api/status").json())

    def served(self) -> set[str]:
        return set(self.get("/datastore/", output="all").json()["objects"]) | {
            case["id"] for case in self.status()["cases"]["waiting"]
        }

    def volume(self, name: str) -> nibabel.Nifti1Image:
        """The image as 3D Slicer downloads it."""
        answer = self.get("/datastore/image", image=self.id(name))
        assert answer.status_code == 200, answer.text
        return nibabel.Nifti1Image.from_bytes(answer.content)

    def submit(self, name: str, label: np.ndarray) -> requests.Response:
        """Submit a label of the ball as 3D Slicer does."""
        assert self.server is not None
        content = gzip.compress(nibabel.Nifti1Image(label, self.volume(name).affine).to_bytes())
        return requests.put(
            f"{self.server.url}/datastore/label",
            params={"image": self.id(name), "tag": "final"},
            data={"params": json.dumps({"label_info": [{"name": "ball", "idx": 1}], "client_id": "anna"})},
            files={"label": ("label.nii.gz", content)},
            timeout=120,
        )

    def wait(self, condition: Callable[[], Any]) -> Any:
        """The first true value of a condition."""
        assert self.server is not None
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < deadline, self.server.log()[-6000:]
            time.sleep(0.2)
        return value


def fill(folder: Folder) -> None:
    """All kinds of files that a folder of a hospital holds."""
    path = folder.path
    folder.put("nested", lambda images: made.write(images, path / "P 1" / "ST ö" / "SE(3)", made.hashed))
    for name, syntax in SYNTAXES.items():
        shifted = {"voxels": stored(name), **UNSIGNED} if name == "jpegls" else {}
        folder.put(
            name,
            lambda images, syntax=syntax: made.write(
                made.compressed(images, syntax), path / "mixed", made.numbered_by(images)
            ),
            **shifted,
        )
    folder.put(
        "inverted",
        lambda images: made.write(made.compressed(images, RLELossless), path / "inverted"),
        (-1 - made.body()).astype(np.int16),
        **INVERTED,
    )
    folder.put("unsaid", lambda images: made.write_without_syntax(images, path / "unsaid"))
    folder.put("reported", lambda images: made.write([*images, made.state_in(images)], path / "reported"))
    folder.put("bare", lambda images: made.write_bare(images, path))
    folder.put("disc", lambda images: made.write_disc(images, path / "disc"))
    folder.put("twice", lambda images: [made.write(images, path / place) for place in ("twice", "copy of twice")])
    folder.put("labelled", lambda images: made.write(images, path / "labelled"))
    seg = made.segmentation(folder.images["labelled"], {"ball": made.ball()})
    made.write([seg], path / "labelled" / "SEG", lambda number: "seg0001")
    made.write([made.report(folder.images["nested"])], path / "P 1", lambda number: "SR")
    nibabel.save(nibabel.Nifti1Image(made.body(), np.diag([-1, -1, 2.5, 1])), path / "volume.nii.gz")
    first = next((path / "twice").iterdir()).read_bytes()
    (path / "cut.dcm").write_bytes(first[:-700])
    (path / "half a header").write_bytes(first[:600])
    (path / "header alone").write_bytes(first[: -2 * made.SHAPE[0] * made.SHAPE[1] - 12])
    (path / "text.dcm").write_text("a note that has the wrong name")
    (path / "autorun.exe").write_bytes(b"MZ" + bytes(300))
    (path / "notes.txt").write_text("for nobody")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """The server on the folder, with the shipped weights."""
    made_here = Folder(tmp_path_factory.mktemp("dicom") / "my [2024] studies")
    made_here.path.mkdir()
    fill(made_here)
    with LiveServer(made_here.path, conf={"train_after": "0"}) as server:
        made_here.server = server
        made_here.wait(lambda: made_here.status()["cases"]["all"] == len(made_here.images) + 1)
        yield made_here


@pytest.mark.parametrize(
    "name", ["nested", *SYNTAXES, "bare", "disc", "twice", "labelled", "inverted", "unsaid", "reported"]
)
def test_every_series_is_served_voxel_by_voxel(folder: Folder, name: str) -> None:
    volume = folder.volume(name)
    np.testing.assert_array_equal(np.asarray(volume.dataobj), made.body())
    place = np.diag([-1, -1, made.SPACING[2], 1]) @ np.eye(4)
    place[:3, 3] = 30, 20, 5
    np.testing.assert_allclose(volume.affine, place, atol=1e-5)


@pytest.mark.parametrize("name", ["nested", "jpeg2000", "disc"])
def test_a_click_finds_the_ball(folder: Folder, name: str) -> None:
    assert folder.server is not None
    options = {"ball": [list(made.CENTRE)], "scope": "this slice", "result_extension": ".nii.gz"}
    answer = folder.server.infer("interactive", folder.id(name), options)
    assert answer.status_code == 200, answer.text
    mask = np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj) > 0
    k = made.CENTRE[2]
    found, true = mask[:, :, k], made.ball()[:, :, k]
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.9
    assert not np.delete(mask, k, axis=2).any()


def test_series_are_named_by_patient_study_and_series(folder: Folder) -> None:
    info = folder.get("/datastore/image/info", image=folder.id("nested")).json()
    assert info["title"] == "Test nested · 20240102 · Thorax · CT · axial nested"
    expected = {"PatientID": "nested", "PatientName": "Test nested", "StudyDescription": "Thorax", "Modality": "CT"}
    assert expected.items() <= info.items()
    waiting = {case["id"]: case["title"] for case in folder.status()["cases"]["waiting"]}
    assert waiting[folder.id("rle")] == "Test rle · 20240102 · Thorax · CT · axial rle"


def test_the_next_cases_are_those_without_a_label(folder: Folder) -> None:
    assert folder.server is not None
    folder.wait(lambda: folder.server.info()["datastore"]["completed"] >= 1)
    drawn = set()
    for _ in range(2 * len(folder.images)):
        answer = requests.post(f"{folder.server.url}/activelearning/random", json={}, timeout=60).json()
        drawn.add(answer["id"])
        assert Path(answer["path"]).is_file()
    assert folder.id("labelled") not in drawn
    assert {folder.id("nested"), folder.id("bare"), "volume"} <= drawn


def test_a_segmentation_in_the_folder_is_the_label(folder: Folder) -> None:
    answer = folder.wait(
        lambda: (found := folder.get("/datastore/label", label=folder.id("labelled"), tag="final")).ok and found
    )
    label = np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)
    np.testing.assert_array_equal(label, made.ball())
    info = folder.get("/datastore/label/info", label=folder.id("labelled"), tag="final").json()
    assert info["label_names"] == {"ball": 1}


@pytest.mark.parametrize("name", ["implicit", "rle", "disc"])
def test_a_submitted_label_is_a_segmentation_in_the_folder(folder: Folder, name: str) -> None:
    label = made.ball().astype(np.uint8)
    label[:, :, :4] = 0
    label[2, 1, 0] = 1  # far off, so that no axis can be mirrored
    answer = folder.submit(name, label)
    assert answer.status_code == 200, answer.text
    found = [dcmread(path) for path in (folder.path / "segmentations").iterdir()]
    [seg] = [item for item in found if item.ReferencedSeriesSequence[0].SeriesInstanceUID == folder.id(name)]
    assert seg.PatientID == name
    planes = planes_of(seg)
    for k, image in enumerate(folder.images[name]):
        plane = planes.pop(("ball", str(image.SOPInstanceUID), 1), np.zeros(made.SHAPE[1::-1], bool))
        np.testing.assert_array_equal(plane, label[:, :, k].T)
    assert not planes


def test_an_image_file_beside_the_series_keeps_its_label_file(folder: Folder) -> None:
    assert folder.server is not None
    label = made.ball().astype(np.uint8)
    answer = requests.put(
        f"{folder.server.url}/datastore/label",
        params={"image": "volume", "tag": "final"},
        data={"params": json.dumps({"label_info": [{"name": "ball", "idx": 1}]})},
        files={"label": ("x.nii", nibabel.Nifti1Image(label, np.diag([-1, -1, 2.5, 1])).to_bytes())},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    kept = nibabel.load(folder.path / "labels" / "final" / "volume.nii")
    np.testing.assert_array_equal(np.asarray(kept.dataobj), label)
    pairs = folder.get("/datastore/", output="train").json()
    assert {Path(pair["image"]).name.split(".nii")[0] for pair in pairs} >= {"volume", folder.id("labelled")}


def test_what_is_not_served_is_listed_with_the_reason(folder: Folder) -> None:
    def listed() -> dict[str, str] | None:
        found = {entry["name"]: entry["reason"] for entry in folder.status()["not_served"]}
        return found if "cut.dcm" in found else None

    found = folder.wait(listed)
    assert found["cut.dcm"] == "is truncated: at least 700 bytes are missing at its end"
    assert found["half a header"] == "has no SeriesInstanceUID and no StudyInstanceUID, or ends before them"
    assert found["header alone"] == "holds no pixels, or ends before them (CT Image Storage)"
    assert found["text.dcm"] == "is no DICOM file, though its name is that of one"
    assert found["autorun.exe"] == "is of type .exe, neither DICOM nor an image"
    assert found["1 SR object"] == found["1 PR object"] == "holds no image to segment"
    assert not {"notes.txt", "disc/DICOMDIR"} & found.keys()


def test_a_series_that_is_copied_in_appears_when_it_is_complete(folder: Folder) -> None:
    images = made.series("late", made.body(5))
    folder.images["late"] = images
    made.write(images[:6], folder.path / "late")
    folder.wait(lambda: folder.get("/kprism/api/status").ok)
    time.sleep(1.0)
    made.write(images[6:], folder.path / "late", lambda number: f"rest{number}")
    folder.wait(lambda: folder.id("late") in folder.served())
    np.testing.assert_array_equal(np.asarray(folder.volume("late").dataobj), made.body(5))


def test_a_series_that_is_written_over_is_read_again(folder: Folder) -> None:
    images = made.series("edited", made.body(6))
    folder.images["edited"] = images
    made.write(images, folder.path / "edited")
    folder.wait(lambda: folder.id("edited") in folder.served())
    np.testing.assert_array_equal(np.asarray(folder.volume("edited").dataobj), made.body(6))
    for image, plane in zip(images, np.moveaxis(made.body(7), 2, 0), strict=True):
        image.PixelData = np.ascontiguousarray(plane.T).tobytes()
    made.write(images, folder.path / "edited")
    folder.wait(lambda: (np.asarray(folder.volume("edited").dataobj) == made.body(7)).all())


def test_a_series_and_a_label_that_are_removed_are_gone(folder: Folder) -> None:
    images = made.series("going", made.body(8))
    folder.images["going"] = images
    made.write(images, folder.path / "going")
    seg = made.segmentation(images, {"ball": made.ball()})
    made.write([seg], folder.path / "going seg")
    folder.wait(lambda: folder.get("/datastore/label", label=folder.id("going"), tag="final").ok)
    shutil.rmtree(folder.path / "going seg")
    folder.wait(lambda: not folder.get("/datastore/label", label=folder.id("going"), tag="final").ok)
    shutil.rmtree(folder.path / "going")
    folder.wait(lambda: folder.id("going") not in {case["id"] for case in folder.status()["cases"]["waiting"]})
