# SPDX-License-Identifier: Apache-2.0
"""Time of a click, start-up time and memory of a server, measured from outside over HTTP.

    python -m benchmarks.click_latency [--clicks 20] [--rounds 5] [--size 512]

Starts `./kprism serve` on a temporary folder with one picture and sends OHIF's request for clicks (model type
deepedit): the list of clicks grows by one each time, as it does when someone corrects a mask. The first click also
pays for loading the weights and encoding the picture and is reported alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.live_server import ROOT, LiveServer

SOURCE = ROOT / "sample-datastore" / "lung2_axial17.png"
CENTRE = (0.700, 0.711)
"""The mass in the picture, as a share of its width and height."""

IMAGE_ID = "picture"
OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}


def write_picture(folder: Path, size: int) -> Path:
    """Enlarge the CT slice to `size` x `size` pixels; returns the folder."""
    folder.mkdir()
    with Image.open(SOURCE) as picture:
        picture.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{IMAGE_ID}.png")
    return folder


def click_requests(label: str, clicks: int, size: int) -> Iterator[dict[str, Any]]:
    """OHIF's parameters after 1, 2, ... clicks: two in the mass, then one beside it, and so on."""
    rng = np.random.default_rng(0)
    centre = np.array(CENTRE) * size
    inside: list[list[int]] = []
    outside: list[list[int]] = []
    for number in range(clicks):
        angle = rng.uniform(0, 2 * np.pi)
        negative = number % 3 == 2
        distance = size * (rng.uniform(0.11, 0.14) if negative else rng.uniform(0, 0.04))
        column, row = np.rint(centre + distance * np.array([np.cos(angle), np.sin(angle)])).astype(int).tolist()
        (outside if negative else inside).append([column, row, 0])
        yield {"background": list(outside), label: list(inside), **OHIF}


def timed_click(server: LiveServer, params: dict[str, Any]) -> float:
    """Milliseconds from sending the request to having the mask."""
    started = time.perf_counter()
    server.infer("interactive", IMAGE_ID, params).raise_for_status()
    return 1000 * (time.perf_counter() - started)


def measure(server: LiveServer, clicks: int, rounds: int, size: int) -> list[tuple[str, str]]:
    """Rows (what, value) of the table."""
    label = next(iter(server.info()["models"]["interactive"]["labels"]))
    at_start = server.memory()
    requests = list(click_requests(label, clicks, size))
    first = timed_click(server, requests[0])
    times = np.array([timed_click(server, params) for _ in range(rounds) for params in requests])
    p50, p95 = np.percentile(times, [50, 95])
    return [
        ("processors", str(os.cpu_count())),
        ("start-up until /info/ answers", f"{server.start_seconds:.1f} s"),
        ("first click (loads weights, encodes)", f"{first:.0f} ms"),
        (f"click p50, {size} x {size}, n = {len(times)}", f"{p50:.0f} ms"),
        (f"click p95, {size} x {size}, n = {len(times)}", f"{p95:.0f} ms"),
        ("memory (RSS) after start", f"{at_start / 2**20:.0f} MiB"),
        ("memory (RSS) after the clicks", f"{server.memory() / 2**20:.0f} MiB"),
    ]


def main() -> None:
    """Run the measurement and print a table in Markdown."""
    parser = argparse.ArgumentParser(description="Time of a click over HTTP, start-up time and memory of the server.")
    parser.add_argument("--clicks", type=int, default=20, help="length of the longest list of clicks")
    parser.add_argument("--rounds", type=int, default=5, help="how often the list grows from one click to the longest")
    parser.add_argument("--size", type=int, default=512, help="width and height of the picture in pixels")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        studies = write_picture(Path(folder) / "studies", arguments.size)
        with LiveServer(studies) as server:
            rows = measure(server, arguments.clicks, arguments.rounds, arguments.size)
    print("| | |\n|---|---|")
    for what, value in rows:
        print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
