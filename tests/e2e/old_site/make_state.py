# SPDX-License-Identifier: Apache-2.0
"""Makes `old_state.tar.xz`: the studies and the state folder of a site, written before the app's modules were renamed.

It was run once, with the code of commit 7a0dfca, whose module names it imports; later code cannot run it:

    git worktree add /tmp/before 7a0dfca && cd /tmp/before
    PYTHONPATH=.:apps/kprism python OTHER/tests/e2e/old_site/make_state.py OTHER/tests/e2e/old_site/old_state.tar.xz

The state holds four submissions, one version that a training published, weights that were not published, encoded
references, scores, the log of the training, a label that was refused, and a submission that a kill interrupted. The
network is tiny and its random weights are rounded, so that the archive is small.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from lib.configs.app_config import AppConfig
from lib.datastore import GuardedDatastore
from lib.loop import Loop

CONFIG = KPrismConfig.tiny(num_classes=2, base_channels=2, encoder_heads=2, experts=1, ffn_width=8)
SIDE = 64  # rows and columns of a picture
LABELLED = "abcd"
PENDING, REFUSED, UNLABELLED = "e", "f", "g"
ATTEMPTS = 5


@torch.no_grad()
def rounded(model: KPrism) -> KPrism:
    """The network with weights that are multiples of 1/16."""
    for parameter in model.parameters():
        parameter.copy_((parameter * 16).round() / 16)
    return model


def save_shipped(path: Path) -> None:
    """Random weights."""
    torch.manual_seed(0)
    save_checkpoint(path, rounded(KPrism(CONFIG).eval()), ClassRegistry(["liver", "spleen"]), metadata={})


def draw(folder: Path) -> Path:
    """Seven grey pictures of a bright block in `folder`/studies, and their labels in `folder`/labels."""
    rng = np.random.default_rng(0)
    for name in ("studies", "labels"):
        (folder / name).mkdir()
    for name in (*LABELLED, PENDING, REFUSED, UNLABELLED):
        label = np.zeros((SIDE, SIDE), np.uint8)
        row, column = rng.integers(16, 40, 2)
        label[row - 10 : row + 10, column - 8 : column + 8] = 1
        grey = (100 + 80 * label + rng.normal(0, 3, label.shape)).astype(np.uint8)
        Image.fromarray(grey).save(folder / "studies" / f"{name}.png")
        Image.fromarray(label).save(folder / "labels" / f"{name}.png")
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(folder / "labels" / f"{REFUSED}.png")
    return folder / "studies"


def train(loop: Loop, datastore: GuardedDatastore) -> None:
    """Train until a version is published; its weights are rounded when they are written."""
    publish = loop.versions.publish
    loop.versions.publish = lambda model, *rest, **named: publish(rounded(model), *rest, **named)
    for _ in range(ATTEMPTS):
        stats = loop.trainer({"max_minutes": 0.05, "batch_size": 2}, datastore)
        print(stats["message"])
        if stats["published"]:
            return
    raise RuntimeError(f"{ATTEMPTS} trainings did not lead to a version")


def work(loop: Loop, datastore: GuardedDatastore, labels: Path) -> None:
    """Fill the state folder."""
    info = {"label_names": {"tumour": 1}}
    for name in LABELLED:
        loop.intake.note_answer(name, loop.engine.network().version)
        loop.intake.submit(name, labels / f"{name}.png", dict(info), by="anna")
    train(loop, datastore)
    served = loop.versions.load()
    loop.trainer._unpublished.keep(served.checkpoint.model, served.checkpoint.registry, served.checkpoint)
    datastore.save_label(REFUSED, str(labels / f"{REFUSED}.png"), "final", dict(info))
    loop.intake.reconcile()
    loop.intake._keep(PENDING, labels / f"{PENDING}.png", info, "anna")  # a kill follows


def encode(loop: Loop) -> None:
    """References and scores of the version that serves, as the server's threads make them."""
    network = loop.engine.network()
    loop.bank.update(network.predictor, network.version, loop.ledger.submissions())
    while loop.board.step():
        pass
    loop.board.save()


def main(archive: Path) -> None:
    """Make the site in a temporary folder and pack it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        studies = draw(folder)
        save_shipped(folder / "shipped")
        config = AppConfig.parse(
            {"model_path": str(folder / "shipped.safetensors"), "device": "cpu"}, folder, str(studies)
        )
        datastore = GuardedDatastore(str(studies), extensions=["*.png"], auto_reload=False)
        work(Loop(config, datastore), datastore, folder / "labels")
        encode(Loop(config, datastore))
        with tarfile.open(archive, "w:xz", preset=9) as packed:
            for name in ("studies", "shipped.safetensors", "shipped.json"):
                packed.add(folder / name, name, filter=lambda member: None if "/reports/" in member.name else member)
            print(json.dumps(packed.getnames(), indent=1), archive.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
