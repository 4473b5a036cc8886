# SPDX-License-Identifier: Apache-2.0
"""The groups of `benchmarks.clinical_size` about one large CT: in OHIF, in 3D Slicer, in memory, and its label.

Each takes the shape of the CT (i, j, k) and an empty folder, and yields its figures as they are measured.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray

from benchmarks.enlarged_samples import COLUMN, Click, Column, Shape, clinical_ct, write_ct
from benchmarks.live_server import LiveServer, free_port
from benchmarks.mode_client import TIMEOUT, ModeClient
from benchmarks.places import ROOT
from benchmarks.waiting import Asked, Figure, MemoryWatch, anonymous_memory, median
from tools.orthanc import Orthanc

SPACING = (0.7, 0.7, 1.0)
"""Of the CT in mm, along (i, j, k)."""

THIN = (0.7, 0.72, 0.6)
"""Of the same with slices thinner than the pixels and no two spacings equal."""

STRUCTURE = "column"
NEXT_CLICKS = 8

SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
"""What 3D Slicer adds to every request."""

SUBMITTED = {
    "large column": COLUMN,
    "middle column": Column((0.3, 0.5), 30 / 512, 250 / 400),
    "small column": Column((0.65, 0.5), 10 / 512, 100 / 400),
}
"""The structures of the label that is submitted."""


@contextmanager
def store_with_ct(shape: Shape, folder: Path) -> Iterator[tuple[Orthanc, str]]:
    """A DICOMweb store with a CT, imported as users do, while in the context; the store and the series."""
    (folder / "files").mkdir()
    write_ct(folder / "files" / "ct.nii.gz", clinical_ct(shape), SPACING)
    with Orthanc(folder / "orthanc", free_port()) as orthanc:
        command = [str(ROOT / "kprism"), "import", str(folder / "files"), "--to", orthanc.url]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        [series] = requests.get(f"{orthanc.url}/series", timeout=60).json()
        yield orthanc, str(series["0020000E"]["Value"][0])


def fresh_server(orthanc: Orthanc, folder: Path, **conf: str) -> LiveServer:
    """A server on a store that has fetched nothing yet; `folder` must not exist."""
    folder.mkdir()
    environment = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache")}
    return LiveServer(orthanc.url, conf={"state": str(folder / "state"), **conf}, environment=environment)


def ohif(shape: Shape, folder: Path) -> Iterator[Figure]:
    """Waiting times in the K-Prism mode."""
    plane = shape[1], shape[0]
    clicks = COLUMN.clicks(1 + NEXT_CLICKS, shape)
    with store_with_ct(shape, folder) as (orthanc, series):
        with fresh_server(orthanc, folder / "opened") as server:
            user = ModeClient(server, series, plane)
            started = time.perf_counter()
            user.open()
            yield Figure("opening the case", time.perf_counter() - started)
            while not user.has_arrived():
                time.sleep(0.1)
            yield Figure("the whole series arrived", time.perf_counter() - started)
        with fresh_server(orthanc, folder / "clicked") as server:
            user = ModeClient(server, series, plane)
            started = time.perf_counter()
            user.open()
            answer = user.click(STRUCTURE, clicks[:1])
            yield Figure("first click, opening the case included", time.perf_counter() - started)
            while not user.has_arrived():  # a clinician looks before clicking again
                time.sleep(0.1)
            seconds = []
            for number in range(2, len(clicks) + 1):
                answer = user.click(STRUCTURE, clicks[:number])
                seconds.append(answer.seconds)
            yield Figure(f"next click, median of {NEXT_CLICKS}", median(seconds))
            yield from _followed(user, answer.planes)
            yield from _whole_series(user)


def _followed(user: ModeClient, drawn: dict[int, NDArray[np.uint8]]) -> Iterator[Figure]:
    """Follow the structure through all slices; `drawn` is the mask that the clicks led to."""
    masks = {k: (mask > 0).astype(np.uint8) for k, mask in drawn.items()}
    params = user.follow_params(STRUCTURE)
    answer = user.infer("interactive", params, masks)
    followed = [k for k, mask in answer.planes.items() if k not in masks and mask.any()]
    yield Figure("structure followed through all slices", answer.seconds)
    yield Figure("slices followed", len(followed), "slices")
    yield Figure("structure followed: first slices shown", answer.first)
    for mask in masks.values():
        mask[0, 0] = 1  # so that nothing is known of it
    idle = None if answer.first is None else user.cancel("interactive", params, masks)
    yield Figure("structure followed: until the server is idle after a cancel", idle)


def _whole_series(user: ModeClient) -> Iterator[Figure]:
    """Segment the whole series without prompts."""
    answer = user.infer("semantic", {})
    yield Figure("semantic", answer.seconds)
    yield Figure("semantic: first slices shown", answer.first)
    idle = None if answer.first is None else user.cancel("semantic", {"presence": 0.501})
    yield Figure("semantic: until the server is idle after a cancel", idle)


def slicer_params(clicks: Sequence[Click]) -> dict[str, Any]:
    """Clicks as 3D Slicer sends them."""
    inside, outside = ([list(click.voxel) for click in clicks if click.inside is on] for on in (True, False))
    return {STRUCTURE: inside, "background": outside, "label": STRUCTURE, **SLICER}


def slicer(shape: Shape, folder: Path) -> Iterator[Figure]:
    """Waiting times in 3D Slicer, on a folder of files."""
    voxels = clinical_ct(shape)
    write_ct(folder / "ct.nii.gz", voxels, SPACING)
    write_ct(folder / "thin.nii.gz", voxels, THIN)
    del voxels
    clicks = COLUMN.clicks(1 + NEXT_CLICKS, shape)
    with LiveServer(folder, timeout=TIMEOUT) as server:
        for image, suffix in (("ct", ""), ("thin", ", thin slices")):
            first, following = Asked(), Asked()
            _, answer = first.full(server, "interactive", image, slicer_params(clicks[:1]))
            yield Figure(f"first click{suffix}", first.median())
            for number in range(2, len(clicks) + 1):
                following.full(server, "interactive", image, slicer_params(clicks[:number]))
            yield Figure(f"next click, median of {NEXT_CLICKS}{suffix}", following.median())
            _, content = server.infer_all("interactive", image, slicer_params(clicks))
            yield Figure(f"slices that the answer changed (i, j, k){suffix}", text=_filled(content, shape))
            yield Figure(f"plane that the server cut{suffix}", text=str(answer["plane"]))
        for time_ in ("first", "second"):
            asked = Asked()
            asked.full(server, "semantic", "ct", dict(SLICER))
            yield Figure(f"semantic, {time_} time", asked.median())


def _filled(content: bytes, shape: Shape) -> str:
    """How many planes across each axis of a raw NRRD file are not empty."""
    mask = np.frombuffer(content.partition(b"\n\n")[2], np.uint8).reshape(shape, order="F")
    axes = ((1, 2), (0, 2), (0, 1))
    return ", ".join(str(int(mask.any(axis=others).sum())) for others in axes)


def memory(shape: Shape, folder: Path) -> Iterator[Figure]:
    """The most anonymous memory of a server with default settings, see `MemoryWatch`."""
    voxels = clinical_ct(shape)
    names = ["ct0", "ct1", "ct2"]
    for number, name in enumerate(names):
        voxels[0, 0, 0] = number
        write_ct(folder / f"{name}.nii.gz", voxels, SPACING)
    del voxels
    with LiveServer(folder, timeout=TIMEOUT) as server:
        yield Figure("memory after the start", anonymous_memory(server.process.pid) / 2**20, "MiB")
        with MemoryWatch(server.process.pid) as watch:
            _work(server, names[0], shape)
        yield Figure("the most memory, one case", watch.peak / 2**20, "MiB")
        yield Figure("memory after that", anonymous_memory(server.process.pid) / 2**20, "MiB")
    with LiveServer(folder, timeout=TIMEOUT) as server:
        with MemoryWatch(server.process.pid) as watch, ThreadPoolExecutor(len(names)) as users:
            for work in [users.submit(_work, server, name, shape) for name in names]:
                work.result()
        yield Figure("the most memory, three cases by three users at once", watch.peak / 2**20, "MiB")


def _work(server: LiveServer, image: str, shape: Shape) -> None:
    """What a user does on a case: clicks, 50 slices followed from there, and the whole volume without prompts."""
    clicks = COLUMN.clicks(5, shape)
    for number in range(1, len(clicks) + 1):
        server.infer_all("interactive", image, slicer_params(clicks[:number]))
    around = {"scope": "slices around", "slices_around": 25}
    server.infer_all("interactive", image, {**slicer_params(clicks), **around})
    server.infer_all("semantic", image, dict(SLICER))


def seg(shape: Shape, folder: Path) -> Iterator[Figure]:
    """A label of three structures as DICOM SEG: submitted, and read by a server that has fetched nothing yet."""
    plane = shape[1], shape[0]
    planes = {k: np.zeros(plane, np.uint8) for k in range(shape[2])}
    for value, column in enumerate(SUBMITTED.values(), 1):
        disc = column.disc(shape[:2]).T
        for k in range(round(column.depth * shape[2])):
            planes[k][disc] = value
    with store_with_ct(shape, folder) as (orthanc, series):
        with fresh_server(orthanc, folder / "submitted", train_after="0") as server:
            user = ModeClient(server, series, plane)
            user.open()
            started = time.perf_counter()
            user.submit({name: value for value, name in enumerate(SUBMITTED, 1)}, planes)
            yield Figure("submitting a label of three structures", time.perf_counter() - started)
        with fresh_server(orthanc, folder / "read", train_after="0") as server:
            yield Figure("start of a fresh server until /info/ answers", server.start_seconds)
            user = ModeClient(server, series, plane)
            started = time.perf_counter()
            user.open()
            yield Figure("opening the labelled case", time.perf_counter() - started)
            _, read = user.label()
            yield Figure("opening the labelled case and reading its label", time.perf_counter() - started)
            same = all(np.array_equal(read.get(k, 0 * mask), mask) for k, mask in planes.items())
            yield Figure("the label is as it was submitted", text="yes" if same else "no")
