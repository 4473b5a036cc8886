# SPDX-License-Identifier: Apache-2.0
"""How long a clinician waits: requests as OHIF sends them, to a running server, from outside over HTTP.

    python -m benchmarks.latency [--size 512] [--volume 256 256 100] [--huge 512 512 1000] [--rounds 5] [--clicks 10]
    python -m benchmarks.latency --size 128 --volume 64 64 12 --huge 64 64 50 --rounds 2 --clicks 4 --side 32  # a try
    PYTHONPATH=apps/kprism python -m benchmarks.latency --site

Starts `./kprism serve` on a temporary folder with a picture and a volume, each in as many copies as there are rounds
(first clicks must not find anything computed), asks, and prints a table. A huge volume shows what the default memory
budget makes of it. With `--site` a site's version answers the structure, with a copy of the shipped weights. Then MONAI
Label's server with its DeepEdit network, random weights, answers clicks on the same volume (see `deepedit_app`). One
server runs at a time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.enlarged_samples import PICTURE, SAMPLES, enlarged
from benchmarks.live_server import LiveServer
from benchmarks.places import SHIPPED_WEIGHTS
from benchmarks.waiting import Asked, Table, median, peak_memory
from kprism_model.checkpoint import load_checkpoint

REFERENCE = "pyradiomics_lung1"
CENTRE = (0.700, 0.707)
"""The tumour in picture and volume, as a share of its columns and rows."""
MIDDLE = 0.68
"""The tumour's middle slice, as a share of the slices."""

LABEL = "lung tumour"
OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}
"""What OHIF adds to every request."""


def write_studies(folder: Path, arguments: argparse.Namespace) -> Path:
    """Pictures and volumes that differ in one value, and a labelled case as a reference; returns the folder."""
    (folder / "labels" / "final").mkdir(parents=True)
    with Image.open(SAMPLES / f"{PICTURE}.png") as picture:
        pixels = np.array(picture.resize((arguments.size, arguments.size), Image.Resampling.BICUBIC))
    voxels, affine = enlarged(tuple(arguments.volume))
    for number in range(arguments.rounds):
        pixels[0, 0] = voxels[0, 0, 0] = number
        Image.fromarray(pixels).save(folder / f"picture{number}.png")
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"volume{number}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(*enlarged(tuple(arguments.huge))), folder / "huge0.nii")
    shutil.copy(SAMPLES / f"{REFERENCE}.nii.gz", folder)
    shutil.copy(SAMPLES / "labels" / "final" / f"{REFERENCE}.nii.gz", folder / "labels" / "final")
    (folder / "labels.json").write_text(f'{{"labels": {{"1": "{LABEL}"}}}}')
    return folder


def publish_site_version(studies: Path) -> None:
    """A version that answers `LABEL` in all modes with a copy of the shipped weights."""
    from lib.learning.versions import Versions
    from lib.routes import MODES

    shipped = load_checkpoint(SHIPPED_WEIGHTS)
    versions = Versions(studies / ".kprism" / "versions", SHIPPED_WEIGHTS)
    routes = {mode: {LABEL: None} for mode in MODES}
    versions.publish(shipped.model, shipped.registry, metadata={}, routes=routes)


def click_lists(clicks: int, shape: tuple[int, int], k: int) -> Iterator[dict[str, Any]]:
    """What OHIF sends after 1, 2, ... clicks: two in the tumour, then one beside it, and so on."""
    rng = np.random.default_rng(0)
    inside: list[list[int]] = []
    outside: list[list[int]] = []
    for number in range(clicks):
        angle, negative = rng.uniform(0, 2 * np.pi), number % 3 == 2
        distance = rng.uniform(0.11, 0.14) if negative else rng.uniform(0, 0.04)
        place = np.array(CENTRE) + distance * np.array([np.cos(angle), np.sin(angle)])
        i, j = (int(index) for index in place * shape)
        (outside if negative else inside).append([i, j, k])
        yield {"background": list(outside), LABEL: list(inside)}


def copies(server: LiveServer, image: str) -> int:
    """How many copies of a picture or volume there are."""
    return sum(1 for _ in Path(server.studies).glob(f"{image}*"))


def measure_clicks(server: LiveServer, table: Table, what: str, image: str, lists: list[dict[str, Any]]) -> Asked:
    """First click, next clicks, and each of them taken back again, on images that nobody has asked about.

    Returns the next clicks.
    """
    first, following, undone = Asked(), Asked(), Asked()
    rounds = copies(server, image)
    for number in tqdm(range(rounds), desc=f"clicks on a {image}", leave=False):
        name = f"{image}{number}"
        first.ask(server, "interactive", name, {**lists[0], **OHIF})
        for params in lists[1:]:
            following.ask(server, "interactive", name, {**params, **OHIF})
        for params in lists[-2::-1]:
            undone.ask(server, "interactive", name, {**params, **OHIF})
    table.times(f"first click, {what}", first)
    table.times(f"next click, {what}", following)
    table.times(f"a click taken back, {what}", undone)
    _, answer = Asked().full(server, "interactive", f"{image}0", {**lists[-1], **OHIF})
    table.row(f"files read, slices encoded for it again, {what}", f"{answer['files_read']}, {answer['encoder_passes']}")
    return following


def measure_whole(server: LiveServer, table: Table, what: str, image: str) -> None:
    """Automatic segmentation: of images that nobody has asked about, and once more."""
    rounds = copies(server, image)
    for model, params in (("semantic", {}), ("in_context", {"structures": LABEL})):
        for state in ("", ", slices already encoded"):
            asked = Asked()
            for number in tqdm(range(rounds), desc=f"{model} on a {image}", leave=False):
                asked.ask(server, model, f"{image}{number}", {**params, **OHIF, "presence": 0.5 + 0.001 * bool(state)})
            table.times(f"{model}, {what}{state}", asked)


def measure_propagation(server: LiveServer, table: Table, what: str, clicks: dict[str, Any]) -> None:
    """From clicks on one slice to the whole structure, and again after one click more."""
    for state, extra in (("", {}), (", one click more", {"background": [[1, 1, clicks[LABEL][0][2]]]})):
        rates, asked = [], Asked()
        for number in range(copies(server, "volume")):
            params = {**clicks, **extra, "scope": "whole volume", **OHIF}
            seconds, answer = asked.full(server, "interactive", f"volume{number}", params)
            rates.append(answer["slices_followed"] / seconds)
        table.times(f"whole structure from one slice, {what}{state}", asked)
        table.row(f"slices a second of that{state}", f"{median(rates):.1f}")


def measure_others(server: LiveServer, table: Table, what: str) -> None:
    """How long /info/ takes while a volume is being segmented."""
    waiting = threading.Thread(
        target=server.infer, args=("semantic", "volume0", {"presence": 0.123, **OHIF}), name="segmentation"
    )
    asked = Asked()
    waiting.start()
    while waiting.is_alive():
        started = time.perf_counter()
        server.info()
        asked.seconds.append(time.perf_counter() - started)
        time.sleep(0.02)
    table.times(f"/info/ while {what} is segmented", asked)


def measure_kprism(studies: Path, table: Table, arguments: argparse.Namespace) -> Asked:
    """All figures of K-Prism; returns those of a next click on the volume."""
    size, shape = arguments.size, tuple(arguments.volume)
    picture, volume = f"{size} x {size}", " x ".join(map(str, shape))
    k = int(MIDDLE * shape[2])
    with LiveServer(studies) as server:
        table.row("start until /info/ answers", f"{server.start_seconds:.1f} s")
        table.row("memory (RSS) then", f"{server.memory() / 2**20:.0f} MiB")
        measure_clicks(server, table, picture, "picture", list(click_lists(arguments.clicks, (size, size), 0)))
        measure_whole(server, table, picture, "picture")
        clicks = list(click_lists(arguments.clicks, shape[:2], k))
        next_clicks = measure_clicks(server, table, volume, "volume", clicks)
        measure_propagation(server, table, volume, clicks[1])
        measure_whole(server, table, volume, "volume")
        measure_others(server, table, volume)
        table.row("memory (RSS) after all this", f"{server.memory() / 2**20:.0f} MiB")
        table.row("the most memory so far", f"{peak_memory(server.process.pid) / 2**20:.0f} MiB")
        huge = tuple(arguments.huge)
        clicks = list(click_lists(3, huge[:2], int(MIDDLE * huge[2])))
        measure_clicks(server, table, " x ".join(map(str, huge)), "huge", clicks)
        table.row("the most memory it ever had", f"{peak_memory(server.process.pid) / 2**20:.0f} MiB")
    return next_clicks


def measure_deepedit(studies: Path, folder: Path, arguments: argparse.Namespace) -> Asked:
    """Clicks on the volume, answered by MONAI Label's server with its DeepEdit."""
    app = Path(shutil.copytree(Path(__file__).with_name("deepedit_app"), folder / "deepedit_app"))
    k = int(MIDDLE * arguments.volume[2])
    asked = Asked()
    with LiveServer(studies, app=app, conf={"side": str(arguments.side)}) as server:
        for params in click_lists(arguments.rounds + 1, tuple(arguments.volume[:2]), k):
            asked.ask(
                server, "deepedit", "volume0", {"spleen": params[LABEL], "background": params["background"], **OHIF}
            )
    asked.seconds.pop(0)  # loads the network
    return asked


def main() -> None:
    """Run the measurement and print a table in Markdown."""
    parser = argparse.ArgumentParser(description="Waiting times of the server's users, over HTTP.")
    parser.add_argument("--size", type=int, default=512, help="width and height of the picture in pixels")
    parser.add_argument("--volume", type=int, nargs=3, default=(256, 256, 100), help="voxels of the volume")
    parser.add_argument("--huge", type=int, nargs=3, default=(512, 512, 1000), help="voxels of the huge volume")
    parser.add_argument("--rounds", type=int, default=5, help="how many pictures and volumes, and clicks of DeepEdit")
    parser.add_argument("--clicks", type=int, default=10, help="length of the longest list of clicks, at least 2")
    parser.add_argument("--side", type=int, default=128, help="voxels of DeepEdit's cube along a side")
    parser.add_argument("--site", action="store_true", help="the structure is answered by a site's version")
    arguments = parser.parse_args()
    table = Table()
    table.row("processors, threads", f"{os.cpu_count()}, {os.environ.get('OMP_NUM_THREADS', 'all')}")
    with tempfile.TemporaryDirectory() as name:
        studies = write_studies(Path(name) / "studies", arguments)
        if arguments.site:
            publish_site_version(studies)
        ours = measure_kprism(studies, table, arguments)
        theirs = measure_deepedit(studies, Path(name), arguments)
    table.times(f"click of DeepEdit, {arguments.side}^3", theirs)
    table.row("DeepEdit's click / next click on the same volume", f"{theirs.median() / ours.median():.0f}")
    table.print()


if __name__ == "__main__":
    main()
