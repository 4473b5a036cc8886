# SPDX-License-Identifier: Apache-2.0
"""The groups of `benchmarks.clinical_size` about large pictures, about many cases, and about growth over time.

Each takes its size and an empty folder, and yields its figures as they are measured.
"""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import requests
from tqdm import tqdm

from benchmarks.clinical_volumes import NEXT_CLICKS, fresh_server, slicer_params
from benchmarks.enlarged_samples import Column, tiny_series, write_many, write_picture, write_small_volumes
from benchmarks.live_server import LiveServer, free_port
from benchmarks.mode_client import TIMEOUT
from benchmarks.waiting import Asked, Figure, anonymous_memory, median
from tools.orthanc import Orthanc

TUMOUR = Column((0.7, 0.707), 0.04)
"""The structure that is clicked in the sample picture."""

BOMB = "could be decompression bomb"
"""In Pillow's warning about pictures of more pixels than it expects, as the log has it."""

REPEATED = 5
"""Requests for a median; each comes after listings of the store are out of date (two seconds)."""

CACHE_MB = 64
"""Of the server whose growth is measured."""

PER_UPLOAD = 500
"""Files in one upload to the store."""


def pictures(size: tuple[int, int], folder: Path) -> Iterator[Figure]:
    """Clicks on a picture (width, height), as clients over HTTP send them."""
    write_picture(folder / "picture.jpg", size)
    clicks = TUMOUR.clicks(1 + NEXT_CLICKS, (*size, 1))
    first, following = Asked(), Asked()
    with LiveServer(folder, timeout=TIMEOUT) as server:
        for number in range(1, len(clicks) + 1):
            params = {**slicer_params(clicks[:number]), "result_extension": ".png"}
            (following if number > 1 else first).ask(server, "interactive", "picture", params)
            if number == 1:
                yield Figure("first click", first.median())
        yield Figure(f"next click, median of {NEXT_CLICKS}", following.median())
        yield Figure("memory then", anonymous_memory(server.process.pid) / 2**20, "MiB")
        yield Figure("warnings about a decompression bomb", text=str(server.log().count(BOMB)))


def many(count: int, folder: Path) -> Iterator[Figure]:
    """Lists of many tiny cases: a folder in which half of them are labelled, and a store of as many series."""
    studies = folder / "studies"
    write_many(studies, count)
    for start in ("first", "second"):
        with LiveServer(studies, timeout=TIMEOUT) as server:
            yield from _listed(server, f", folder, {start} start")
    with Orthanc(folder / "orthanc", free_port()) as orthanc:
        started = time.perf_counter()
        _fill(orthanc, count)
        yield Figure("filling the store (no part of the server)", time.perf_counter() - started)
        with fresh_server(orthanc, folder / "server") as server:
            yield from _listed(server, ", store")


def _listed(server: LiveServer, suffix: str) -> Iterator[Figure]:
    """What a user waits for who has just started the server, and then while it runs."""
    yield Figure(f"start until /info/ answers{suffix}", server.start_seconds)
    requested: dict[str, Callable[[], requests.Response]] = {
        "next case": lambda: requests.post(f"{server.url}/activelearning/random", json={}, timeout=TIMEOUT),
        "status page": lambda: requests.get(f"{server.url}/kprism/api/status", timeout=TIMEOUT),
    }
    for what, ask in requested.items():
        seconds = []
        for _ in range(1 + REPEATED):
            started = time.perf_counter()
            ask().raise_for_status()
            seconds.append(time.perf_counter() - started)
            time.sleep(2.1)
        yield Figure(f"{what}, first time{suffix}", seconds[0])
        yield Figure(f"{what}, median of {REPEATED}{suffix}", median(seconds[1:]))
    yield Figure(f"memory then{suffix}", anonymous_memory(server.process.pid) / 2**20, "MiB")


def _fill(orthanc: Orthanc, count: int) -> None:
    """Store tiny series, some hundreds in each request."""
    address = f"{orthanc.url.removesuffix('/dicom-web')}/instances"
    files = tiny_series(count)
    with tqdm(total=count, desc="filling the store", unit="series", leave=False) as progress:
        while part := list(islice(files, PER_UPLOAD)):
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as packed:
                for number, content in enumerate(part):
                    packed.writestr(f"{number}.dcm", content)
            requests.post(address, data=archive.getvalue(), timeout=TIMEOUT).raise_for_status()
            progress.update(len(part))


def growth(steps: Sequence[int], folder: Path) -> Iterator[Figure]:
    """Memory after a click on each of many small cases; the cache is small, so it is full before the first figure."""
    names = write_small_volumes(folder, max(steps))
    clicks = Column((0.5, 0.5), 0.1).clicks(1, (64, 64, 8))
    reference = None
    with LiveServer(folder, conf={"cache_mb": str(CACHE_MB)}, timeout=TIMEOUT) as server:
        for number, name in enumerate(tqdm(names, desc="cases", unit="case", leave=False), 1):
            Asked().full(server, "interactive", name, slicer_params(clicks))
            if number in steps:
                mebibytes = anonymous_memory(server.process.pid) / 2**20
                reference = reference or mebibytes
                yield Figure(f"memory after {number} cases", mebibytes, "MiB", reference=reference)
