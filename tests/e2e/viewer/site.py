# SPDX-License-Identifier: Apache-2.0
"""A DICOMweb store with real studies and the server on it, as `./kprism viewer` starts it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import highdicom
import numpy as np
import requests
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from benchmarks.live_server import free_port
from benchmarks.places import ROOT
from lib.dicom.web import DicomWeb
from tools.import_folder import import_all
from tools.orthanc import Orthanc

PATIENCE = 180.0  # seconds; everything takes a few, this is for a busy machine
SAMPLES = ("brain1", "brain2", "breast1", "lung1", "lung2")
"""Sample volumes; those that end with 1, but the breast, bring a label along."""

Found = TypeVar("Found")


def wait(condition: Callable[[], Found], what: str) -> Found:
    """The first true value of a condition."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} within {PATIENCE:.0f} s"
        time.sleep(0.2)
    return found


def copy_volumes(folder: Path) -> Path:
    """Copy the sample volumes and their labels to `folder`, which must not exist."""
    samples = ROOT / "sample-datastore"
    (folder / "labels" / "final").mkdir(parents=True)
    shutil.copy(samples / "datastore_v2.json", folder)
    for name in SAMPLES:
        shutil.copy(samples / f"pyradiomics_{name}.nii.gz", folder)
        label = samples / "labels" / "final" / f"pyradiomics_{name}.nii.gz"
        if label.is_file():
            shutil.copy(label, folder / "labels" / "final")
    return folder


@dataclass
class Site:
    """Where server and store are, and what to ask them. `state` is the folder of the server's own records."""

    url: str
    orthanc: Orthanc
    state: Path

    @property
    def store(self) -> DicomWeb:
        """The store, asked without the server."""
        return DicomWeb.at(self.orthanc.url)

    def get(self, address: str) -> Any:
        """JSON that the server answers with."""
        answer = requests.get(f"{self.url}{address}", timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    def status(self) -> dict[str, Any]:
        """What the server says of itself."""
        return dict(self.get("/kprism/api/status"))

    def series(self, patient: str) -> tuple[str, str]:
        """(study, series) of a patient's images."""
        [entry] = [entry for entry in self.store.search() if entry.patient == patient and entry.holds_images]
        return entry.study, entry.series

    def segmentations(self, patient: str) -> list[str]:
        """The SEG series of a patient."""
        return [entry.series for entry in self.store.search(Modality="SEG") if entry.patient == patient]

    def frames(self, series: str) -> list[str]:
        """The SOP instances of a case's slices, in the server's order."""
        return [instance for instance, _ in self.get(f"/kprism/api/case/{series}")["frames"]]

    def stored_masks(self, patient: str, segmentation: str) -> dict[str, NDArray[np.bool_]]:
        """The masks (slice, row, column) of a SEG by name, as highdicom reads them and not as the server does."""
        study, series = self.series(patient)
        [instance] = self.store.fetch(study, segmentation)
        found = highdicom.seg.Segmentation.from_dataset(instance)
        pixels = found.get_pixels_by_source_instance(
            self.frames(series), ignore_spatial_locations=True, assert_missing_frames_are_empty=True
        )
        names = {number: name_of(found, number) for number in found.segment_numbers}
        return {name: pixels[..., row] > 0 for row, name in enumerate(names.values())}


def name_of(segmentation: Dataset, number: int) -> str:
    """The name of a segment."""
    return str(segmentation.get_segment_description(number).segment_label)


def fill(store: DicomWeb, volumes: Path, xrays: Sequence[Path], folder: Path) -> None:
    """Import what `./kprism import` would."""
    folder.mkdir()
    for number, path in enumerate(xrays, 1):
        shutil.copy(path, folder / f"xray{number}.png")
    for paths, modality in (([volumes], None), ([folder], "CR")):
        assert list(import_all(paths, modality, store)) == []


@contextmanager
def running(folder: Path, xrays: Sequence[Path]) -> Iterator[Site]:
    """Store and server, from their first answer to their end."""
    with Orthanc(folder / "orthanc", free_port()) as orthanc:
        fill(DicomWeb.at(orthanc.url), copy_volumes(folder / "volumes"), xrays, folder / "xrays")
        with serving(orthanc, folder) as site:
            yield site


@contextmanager
def serving(orthanc: Orthanc, folder: Path, **conf: str) -> Iterator[Site]:
    """A server on a store that runs, from its first answer to its end. `conf` are further `--conf` of the server."""
    port, state = free_port(), folder / "state"
    command = [ROOT / "kprism", "viewer", "--store", orthanc.url, "--port", str(port), "--folder", folder]
    conf = {"state": str(state), "train_after": "0", "train_minutes": "0.05", **conf}
    for key, value in conf.items():
        command += ["--conf", key, value]
    with (folder / "viewer.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield _answering(Site(f"http://127.0.0.1:{port}", orthanc, state), process, folder)
    finally:
        process.terminate()  # a job in the background of a script ignores SIGINT, and so do the processes it starts
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answering(site: Site, process: subprocess.Popen[bytes], folder: Path) -> Site:
    def answers() -> bool:
        logs = [path.read_text(errors="replace")[-3000:] for path in folder.glob("*.log")]
        assert process.poll() is None, "\n".join(logs)
        try:
            return requests.get(f"{site.url}/kprism/api/status", timeout=10).ok
        except requests.RequestException:
            return False

    wait(answers, "answer of the server")
    return site
