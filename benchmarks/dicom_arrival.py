# SPDX-License-Identifier: Apache-2.0
"""How long a DICOM series takes from Orthanc: until its headers are known, until the first planes, until all.

    PYTHONPATH=apps/kprism python -m benchmarks.dicom_arrival [--shape 512 512 400] [--rounds 3] [--threads 1 2 4 8]
    PYTHONPATH=apps/kprism python -m benchmarks.dicom_arrival --shape 64 64 20 --rounds 1 --threads 2  # a try

Starts an Orthanc on a temporary folder with a synthetic CT, opens it with an empty cache for each number of threads,
and prints a table in Markdown; medians of the rounds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from dicomweb_client import DICOMwebClient
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.dataset import Dataset

from benchmarks.live_server import free_port
from benchmarks.waiting import Table
from lib.dicom.datastore import DicomStore
from lib.dicom.fetch_pool import FetchPool
from lib.dicom.plane_queue import range_planes
from lib.dicom.series_writer import dicom_series
from lib.imaging.medical_image import MedicalImage
from tools.orthanc import Orthanc

PRIVATE = 60
"""Private elements of a header: those of scanners have about as many."""


def synthetic_ct(shape: tuple[int, int, int]) -> Iterator[Dataset]:
    """A round body of noise in air, as 12 bits with an intercept, one slice at a time."""
    columns, rows, slices = shape
    noise = np.random.default_rng(0).normal(40, 20, (columns, rows)).astype(np.int16)
    i, j = np.ogrid[:columns, :rows]
    body = (i - columns / 2) ** 2 + (j - rows / 2) ** 2 < (min(columns, rows) * 0.4) ** 2
    array = np.repeat(np.where(body, noise, -1000)[..., None], slices, axis=2).astype(np.int16)
    image = MedicalImage("CT", array, np.diag([-0.8, -0.8, 1.0, 1.0]), 3, ".nii.gz", str(shape))
    for instance in dicom_series(image, "synthetic CT", "CT"):
        values = np.frombuffer(instance.PixelData, np.int16) + 1024
        instance.PixelData = values.astype(np.uint16).tobytes()
        instance.BitsStored, instance.HighBit, instance.PixelRepresentation = 12, 11, 0
        instance.RescaleIntercept = "-1024"
        block = instance.private_block(0x29, "BENCHMARK", create=True)
        for number in range(PRIVATE):
            block.add_new(number, "DS", [f"{number}.5", "2"])
        yield instance


def store(url: str, instances: Iterator[Dataset]) -> str:
    """Store instances a few at a time; their series."""
    client, batch, series = DICOMwebClient(url), list[Dataset](), ""
    for instance in instances:
        series = str(instance.SeriesInstanceUID)
        batch.append(instance)
        if len(batch) == 20:
            client.store_instances(batch)
            batch.clear()
    if batch:
        client.store_instances(batch)
    return series


def measure(url: str, image: str, folder: Path, threads: int) -> tuple[float, float, float]:
    """Seconds until the headers are known, until a plane and those for its range are there, and until all are."""
    datastore = DicomStore(DICOMwebClientX(url), folder)
    datastore._series_cache._pool = FetchPool(threads)
    datastore.list_images()
    start = time.perf_counter()
    volume = datastore.volume(image)
    headers = time.perf_counter() - start
    count = volume.series.grid[2]
    volume.wait([count // 2, *range_planes(count)])
    first = time.perf_counter() - start
    volume.complete()
    return headers, first, time.perf_counter() - start


def main() -> None:
    """Run the measurement and print a table in Markdown."""
    parser = argparse.ArgumentParser(description="How long a DICOM series takes to arrive from Orthanc.")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400), help="columns, rows and slices")
    parser.add_argument("--rounds", type=int, default=3, help="how often each number of threads is measured")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8], help="connections at one time")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # about the synthetic headers
    logging.disable(logging.INFO)
    table = Table()
    with tempfile.TemporaryDirectory() as name, Orthanc(Path(name) / "orthanc", free_port()) as orthanc:
        image = store(orthanc.url, synthetic_ct(tuple(arguments.shape)))
        for threads in arguments.threads:
            folders = [Path(name) / f"{threads}-{number}" for number in range(arguments.rounds)]
            found = [measure(orthanc.url, image, folder, threads) for folder in folders]
            medians = [statistics.median(times) for times in zip(*found, strict=True)]
            what = ("headers", "a plane and those for the range", "all planes")
            for stage, seconds in zip(what, medians, strict=True):
                table.row(f"{stage}, {threads} threads", f"{seconds:.2f} s")
    table.print()


if __name__ == "__main__":
    main()
