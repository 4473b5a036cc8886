# SPDX-License-Identifier: Apache-2.0
"""`semantic` asks only for what can be in the kind of image that the weights see, unless the user names it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from main import KPrismApp

from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.image_kind import NONE
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import read_image
from tests.unit.test_app_models import ask, make_app

IMAGE = "mni152_axial72"
CLASSES = ("polyp", "lungs", "ventricles")
KINDS = ("endoscopy, colon", "MRI, brain")
POSSIBLE = {"polyp": "endoscopy, colon", "lungs": "endoscopy, colon", "ventricles": "MRI, brain"}


@pytest.fixture(scope="module")
def image(repository: Path) -> MedicalImage:
    path = repository / "sample-datastore" / f"{IMAGE}.png"
    return read_image(path, path.name, 1 << 30)


def app_that_sees(kind: str, image: MedicalImage, tmp_path: Path, repository: Path) -> KPrismApp:
    """An app on a slice of a brain, whose weights find every class in it and take it for an image of this kind."""
    torch.manual_seed(0)
    network = KPrism(KPrismConfig.tiny(num_classes=len(CLASSES), kinds=KINDS)).eval()
    head = network.kind_head
    assert head is not None
    with torch.no_grad():
        [embedding] = Predictor(network, ClassRegistry(CLASSES)).embed([image.scaled[0]])
        head.projection.weight.zero_()
        head.projection.bias.copy_(head.pooled(embedding.features)[0, : len(head.projection.bias)])
        head.centres.fill_(100.0)
        if kind in KINDS:
            head.centres[KINDS.index(kind)] = head.projection.bias
        head.none.fill_(-20.0)
        for row, name in enumerate(CLASSES):
            head.possible[row] = torch.tensor([POSSIBLE[name] == known for known in (*KINDS, NONE)])
        torch.nn.init.constant_(network.decoder.presence[2].bias, 20.0)
    save_checkpoint(tmp_path / "weights", network, ClassRegistry(CLASSES), metadata={})
    studies = tmp_path / "studies"
    shutil.copytree(repository / "sample-datastore", studies, ignore=shutil.ignore_patterns("pyradiomics*", "*.nii.gz"))
    return make_app(studies, tmp_path / "weights.safetensors")


def test_a_foreign_image_is_asked_for_nothing_and_told_why(
    image: MedicalImage, tmp_path: Path, repository: Path
) -> None:
    app = app_that_sees(NONE, image, tmp_path, repository)
    mask, told = ask(app, "semantic", IMAGE)
    assert not mask.any()
    assert told["image_kind"] == NONE and told["not_asked"] == list(CLASSES) and told["label_names"] == {}
    assert told["message"] == (
        "This image is unlike those that the weights were trained on, so these structures were not looked for: "
        "polyp, lungs, ventricles. Clicks and references still work, and a structure that the request names is always "
        "looked for."
    )


def test_only_what_can_be_there_is_asked_for(image: MedicalImage, tmp_path: Path, repository: Path) -> None:
    app = app_that_sees("MRI, brain", image, tmp_path, repository)
    _, told = ask(app, "semantic", IMAGE)
    assert told["image_kind"] == "MRI, brain" and told["not_asked"] == ["polyp", "lungs"]
    assert told["message"] == (
        'This image was taken for "MRI, brain". These structures cannot be in such an image and were not looked for: '
        "polyp, lungs. A structure that the request names is always looked for."
    )
    assert set(told["label_names"]) | set(told["absent"]) == {"ventricles"}
    assert told["decoder_passes"] == 1
    _, again = ask(app, "semantic", IMAGE)
    assert again["encoder_passes"] == again["decoder_passes"] == 0 and again["message"] == told["message"]


def test_what_the_user_names_is_asked_for_everywhere(image: MedicalImage, tmp_path: Path, repository: Path) -> None:
    app = app_that_sees(NONE, image, tmp_path, repository)
    _, told = ask(app, "semantic", IMAGE, structures="lungs")
    assert set(told["label_names"]) == {"lungs"} and told["decoder_passes"] == 1
    assert "not_asked" not in told
