# SPDX-License-Identifier: Apache-2.0
"""Makes `old_site.tar.xz`: the studies of a site that labelled, trained and published before its network was replaced.

It was run once, with the code of 27 November 2026 (commit 0bbc40a), so that the files are those of that time; a run of
later code gives a folder of its own time:

    python -m tests.e2e.old_site.make NEW_FOLDER

The server of that time made everything in it over HTTP: labels of synthetic pictures with up to three structures, two
published versions, and weights that raised the mean and were refused. The archive is small because most tensors of the
three checkpoints are equal.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.live_server import LiveServer
from kprism_model.checkpoint import Checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.partial import AnnotatedCase, StoreBuilder
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training.finetune import FinetunePlan, Finetuner
from tests.e2e.site import get, train

ARCHIVE = Path(__file__).parent / "old_site.tar.xz"

STRUCTURES = ("cyst", "stone", "vessel")
"""What the site labels: its first version knows the first, its second version the first two, no version the third."""

LABELLED, UNLABELLED = "abcdef", "gh"
"""Image ids."""

CONFIG = KPrismConfig.tiny(num_classes=2, base_channels=2, encoder_heads=2, experts=1, ffn_width=8)
"""The network of that time."""

SIDE = 64
"""Rows and columns of a picture."""

GENTLE = ({"max_minutes": 0.05, "learning_rate": 1e-3}, {"max_minutes": 0.6, "learning_rate": 1e-3})
RUTHLESS = {"max_minutes": 0.5, "learning_rate": 3e-3, "mix": False}
"""Options of the trainings that are meant to be published, and of one that is meant to be refused."""

ATTEMPTS = 3
"""Trainings of one kind, whose outcome depends on how many steps the machine makes in the time."""


GREYS = (110, 190, 40, 240)
"""Grey values of the background and of the three structures."""


def picture(rng: np.random.Generator, greys: Sequence[int] = GREYS) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A grey image (row, column) and its label: 1 a block, 2 a disc, 3 a line."""
    drawn = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(drawn)
    x, y = (int(value) for value in rng.integers(6, 16, 2))
    draw.rectangle((x, y, x + 16, y + 18), fill=1)
    x, y = int(rng.integers(44, 54)), int(rng.integers(12, 26))
    draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=2)
    y = int(rng.integers(48, 58))
    draw.line((4, y, SIDE - 5, y - 4), fill=3, width=3)
    label = np.array(drawn)
    grey = np.array(greys)[label] + rng.normal(0, 6, label.shape)
    return np.clip(grey, 0, 255).astype(np.uint8), label


def teach(config: KPrismConfig, path: Path, *, minutes: float) -> None:
    """Save weights that could be shipped: taught two other classes on pictures with other grey values."""
    torch.manual_seed(0)
    registry = ClassRegistry(["liver", "spleen"])
    random = Checkpoint(KPrism(config).eval(), registry, {}, "random", path)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        builder = StoreBuilder(Path(folder) / "slices", config.native_size)
        for number in range(24):
            grey, label = picture(rng, rng.permutation(GREYS).tolist())
            images = grey[None].astype(np.float32) / 255
            builder.add(AnnotatedCase(f"{number}", f"{number}", images, label[None], {"liver": 1, "spleen": 2}))
        plan = FinetunePlan(minutes=minutes, batch_size=8, learning_rate=3e-3)
        tuner = Finetuner(random, builder.store(), plan, Path(folder) / "run")
        for _ in tuner.steps():
            pass
        save_checkpoint(path, tuner.averaged(), registry, metadata={}, dtype="float16")


def submit(server: LiveServer, image: str, label: NDArray[np.uint8], structures: int) -> None:
    """Submit a label of the first `structures` of `STRUCTURES`, as 3D Slicer does."""
    file = io.BytesIO()
    Image.fromarray(np.where(label <= structures, label, 0).astype(np.uint8)).save(file, "PNG")
    names = [{"name": name, "idx": number} for number, name in enumerate(STRUCTURES[:structures], 1)]
    answer = requests.put(
        f"{server.url}/datastore/label",
        params={"image": image, "tag": "final"},
        data={"params": json.dumps({"label_info": names, "client_id": "anna"})},
        files={"label": (f"{image}.png", file.getvalue())},
        timeout=60,
    )
    if answer.status_code != 200:
        raise RuntimeError(f"the label of {image!r} was refused: {answer.text}")


def trained(server: LiveServer, options: dict[str, Any]) -> int:
    """Train; how many versions the site has published by then."""
    train(server, options=options)
    status = get(server, "/kprism/api/status")
    print(status["training"]["sentence"], flush=True)
    return len(status["versions"]) - 1


def work(server: LiveServer, studies: Path, labels: dict[str, NDArray[np.uint8]]) -> None:
    """Label and train until two versions are published and the weights of a third training are refused and kept."""
    for structures, options in enumerate(GENTLE, 1):
        for image in LABELLED:
            submit(server, image, labels[image], structures)
        if not any(trained(server, options) == structures for _ in range(ATTEMPTS)):
            raise RuntimeError(f"{ATTEMPTS} trainings did not lead to version {structures}")
    for image in LABELLED:
        submit(server, image, labels[image], 3)
    for _ in range(ATTEMPTS):
        if trained(server, RUTHLESS) > 2:
            raise RuntimeError("the training that was to be refused was published")
        if (studies / ".kprism" / "training" / "unpublished.json").exists():
            return
    raise RuntimeError("no training raised the mean and was refused")


def main(folder: Path) -> None:
    """Make the studies in `folder`, which must not exist, and the archive of them."""
    studies = folder / "studies"
    studies.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels: dict[str, NDArray[np.uint8]] = {}
    for image in LABELLED + UNLABELLED:
        grey, labels[image] = picture(rng)
        Image.fromarray(grey).save(studies / f"{image}.png")
    teach(CONFIG, folder / "shipped", minutes=1.0)
    with LiveServer(studies, conf={"model_path": str(folder / "shipped.safetensors"), "train_after": "0"}) as server:
        work(server, studies, labels)
    pack(studies)


def pack(studies: Path) -> None:
    """Write the archive; pages of reports are left out, for they hold many pictures."""

    def chosen(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "/reports/" in member.name else member

    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        archive.add(studies, "studies", filter=chosen)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
