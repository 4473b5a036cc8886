# SPDX-License-Identifier: Apache-2.0
"""Exported graphs answer as the network does, at any size, in onnxruntime alone."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kprism_model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.cli.main import main
from kprism_model.export.check import PROMPT_COMBINATIONS, OnnxKPrism, decoder_inputs
from kprism_model.export.command import TOLERANCE, export, graphs, write_graph
from kprism_model.intensity import scale_intensity
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import Prompts, click_discs
from kprism_model.predictor import Click, Predictor

PARITY = 1e-4
EXAMPLE_PARITY = 2e-3  # of probabilities; the example resizes pictures with numpy, which rounds in another way
CLASSES = ("liver", "spleen", "left kidney", "right kidney")


def _checkpoint(folder: Path, dtype: str = "float16", **changes: Any) -> Path:
    """A network of the tiny preset with random weights, stored in half precision as shipped ones are.

    Norms get a bias, as trained ones have: without it, an empty prompt map is nothing but rounding in PyTorch too.
    """
    torch.manual_seed(0)
    model = KPrism(KPrismConfig.tiny(**changes)).eval()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    path = folder / "tiny.safetensors"
    save_checkpoint(path, model, ClassRegistry(CLASSES), metadata={}, dtype=dtype)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, OnnxKPrism, Path]:
    folder = tmp_path_factory.mktemp("export")
    path = _checkpoint(folder)
    assert main(["export", str(path), str(folder / "onnx")]) == 0
    checkpoint = load_checkpoint(path)
    return checkpoint, OnnxKPrism(folder / "onnx", checkpoint.model.config), folder / "onnx"


def _prompts(side: KPrism | OnnxKPrism, kind: str, size: tuple[int, int], images: int, rows: int) -> Prompts:
    """`rows` questions of one kind about `images` images; the same for the same arguments."""
    random = torch.Generator().manual_seed(rows)
    index = torch.randint(0, images, (rows,), generator=random)
    knowledge: dict[str, Any] = {}
    if "class" in kind:
        knowledge["class_index"] = torch.arange(rows) % side.config.num_classes
    if "references" in kind:
        sets = rows if rows % 2 else 1  # a set for each row, or one for all
        pictures = torch.rand(sets, 1 + rows % 3, 3, 64, 96, generator=random)
        knowledge["references"] = side.encode_references(pictures, (pictures[:, :, :1] > 0.6).float())
    if "clicks" in kind:
        points = torch.rand(rows, 1 + rows, 2, generator=random) * torch.tensor(size) - 0.5
        labels = torch.randint(-1, 2, (rows, 1 + rows), generator=random)
        labels[:, 0] = 1
        previous = torch.rand(rows, 1, *size, generator=random)
        dense = torch.cat([click_discs(points, labels, size), previous], dim=1)
        knowledge.update(points=points, point_labels=labels, dense=dense)
    return Prompts(size, index, **knowledge)


def _both(
    model: KPrism, onnx: OnnxKPrism, kind: str, images: Tensor, rows: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    size = (images.shape[2], images.shape[3])
    with torch.inference_mode():
        decoded = model.decode(model.encode_image(images), _prompts(model, kind, size, len(images), rows))
        answer = onnx.decode(onnx.encode_image(images), _prompts(onnx, kind, size, len(images), rows))
    return (decoded.logits[-1], decoded.presence), answer


@pytest.mark.parametrize("kind", PROMPT_COMBINATIONS)
@pytest.mark.parametrize(("size", "images", "rows"), [((64, 64), 1, 1), ((32, 96), 2, 5), ((160, 96), 3, 2)])
def test_the_graphs_answer_as_the_network(
    exported: tuple[Checkpoint, OnnxKPrism, Path], kind: str, size: tuple[int, int], images: int, rows: int
) -> None:
    expected, found = _both(exported[0].model, exported[1], kind, torch.rand(images, 3, *size), rows)
    assert found[0].shape == (rows, 1, size[0] // 4, size[1] // 4)
    torch.testing.assert_close(found[0], expected[0], atol=PARITY, rtol=0)
    torch.testing.assert_close(found[1], expected[1], atol=PARITY, rtol=0)


def test_rows_of_every_kind_in_one_call_equal_single_calls(exported: tuple[Checkpoint, OnnxKPrism, Path]) -> None:
    """Absent knowledge may be padding instead of an axis of length 0."""
    model, onnx, size = exported[0].model, exported[1], (64, 96)
    index = torch.arange(len(PROMPT_COMBINATIONS)) % 2
    clicked = torch.tensor(["clicks" in kind for kind in PROMPT_COMBINATIONS])
    with torch.inference_mode():
        features = model.encode_image(torch.rand(2, 3, *size))
        whole = _prompts(model, "references+clicks", size, 2, 1)
        assert whole.points is not None and whole.point_labels is not None and whole.dense is not None
        inputs = decoder_inputs(features, whole, model.config) | {
            "image_index": index,
            "class_index": torch.tensor([2 if "class" in kind else -1 for kind in PROMPT_COMBINATIONS]),
            "reference_index": torch.tensor([0 if "references" in kind else -1 for kind in PROMPT_COMBINATIONS]),
            "points": whole.points.expand(len(PROMPT_COMBINATIONS), -1, -1),
            "point_labels": torch.where(clicked[:, None], whole.point_labels, -1),
            "dense": torch.where(clicked[:, None, None, None], whole.dense, 0.0),
        }
        logits, presence = onnx.decoder.run(None, {name: value.numpy() for name, value in inputs.items()})
        for row, kind in enumerate(PROMPT_COMBINATIONS):
            known = {
                "class_index": torch.tensor([2]) if "class" in kind else None,
                "references": whole.references if "references" in kind else None,
            }
            clicks = {} if clicked[row] else {"points": None, "point_labels": None, "dense": None}
            alone = model.decode(features, replace(whole, image_index=index[row : row + 1], **known, **clicks))
            np.testing.assert_allclose(logits[row], alone.logits[-1][0], atol=PARITY, rtol=0)
            np.testing.assert_allclose(presence[row], alone.presence[0], atol=PARITY, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"stem_stride": 1, "layers": 6, "experts": 3, "mask_encoder": "shared"},
        {"stem_stride": 4, "width": 64, "heads": 8, "summaries": 4, "queries_per_class": 1, "reduced_size": 4},
        {"encoder": "efficientnet_lite0", "mask_encoder": "shared", "kinds": ("CT",)},
    ],
)
def test_other_networks_are_exported(tmp_path: Path, changes: dict[str, Any]) -> None:
    checkpoint = load_checkpoint(_checkpoint(tmp_path, **changes))
    assert export(checkpoint, tmp_path / "onnx")["greatest_difference_from_torch"] <= PARITY


def test_the_description_says_what_the_files_are(exported: tuple[Checkpoint, OnnxKPrism, Path]) -> None:
    checkpoint, onnx, folder = exported
    content = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert content["classes"] == list(CLASSES)
    assert content["weights_version"] == checkpoint.weights_version
    assert content["preprocessing"] == {
        "native_size": 64,
        "size_multiple": 32,
        "percentiles": [0.5, 99.5],
        "ct_window": [-500.0, 500.0],
    }
    assert content["opset"] == 18
    assert 0 < content["greatest_difference_from_torch"] <= PARITY
    assert sorted(path.name for path in folder.iterdir()) == sorted([*content["files"], "model.json"])
    for name, file in content["files"].items():
        assert file["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    inputs = content["files"]["decoder.onnx"]["inputs"]
    assert list(inputs) == [given.name for given in onnx.decoder.get_inputs()]
    assert inputs["points"] == {"dtype": "float32", "shape": ["rows", "clicks", 2]}
    assert inputs["class_index"] == {"dtype": "int64", "shape": ["rows"]}


def test_weights_in_half_precision_are_stored_so(exported: tuple[Checkpoint, OnnxKPrism, Path], tmp_path: Path) -> None:
    name = "image_encoder.onnx"
    model = load_checkpoint(_checkpoint(tmp_path, "float32")).model
    full = write_graph(graphs(model)[name], tmp_path / name)
    matrices = sum(weight.numel() for weight in exported[0].model.image_encoder.parameters() if weight.ndim > 1)
    saved = full["bytes"] - (exported[2] / name).stat().st_size
    assert 1.8 * matrices < saved < 2 * matrices  # two bytes of four each, less the casts


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    assert main(["export", "anything", str(tmp_path / "onnx")]) == 2
    assert "needs the package onnxruntime" in capsys.readouterr().err
    assert not (tmp_path / "onnx").exists()


def test_serving_does_not_import_the_packages_of_the_export() -> None:
    code = "import sys, kprism_model.cli.main; print([name for name in sys.modules if name.startswith('onnx')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_graphs_that_differ_are_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exported: tuple[Checkpoint, OnnxKPrism, Path]
) -> None:
    checkpoint = exported[0]
    other = load_checkpoint(_checkpoint(tmp_path))
    with torch.no_grad():
        other.model.decoder.heads[2].last.bias.add_(2 * TOLERANCE)
    monkeypatch.setattr("kprism_model.export.command.graphs", lambda model: graphs(other.model))
    (tmp_path / "onnx").mkdir()
    with pytest.raises(ValueError, match=r"differ from the network by 0\.002"):
        export(checkpoint, tmp_path / "onnx")
    assert list((tmp_path / "onnx").iterdir()) == []


def test_padding_that_is_attended_is_refused(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(_checkpoint(tmp_path, attend_padding=True))
    with pytest.raises(ValueError, match="attend_padding"):
        export(checkpoint, tmp_path / "onnx")


def _example(repository: Path) -> str:
    """The Python code of docs/onnx.md."""
    page = (repository / "docs" / "onnx.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    return str(code)


def _picture(path: Path) -> np.ndarray[Any, Any]:
    return scale_intensity(np.asarray(Image.open(path).convert("L")))


def test_the_example_of_the_documentation_answers_as_the_predictor(repository: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(repository / "apps" / "kprism" / "model" / "kprism_small")
    samples = repository / "sample-datastore"
    export(checkpoint, tmp_path / "onnx")  # refuses graphs that differ
    (tmp_path / "sample-datastore").symlink_to(samples)
    (tmp_path / "example.py").write_text(_example(repository), encoding="utf-8")
    command = [sys.executable, "-I", "example.py"]  # isolated: without this repository on the path
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    found = np.load(tmp_path / "answers.npz")

    predictor = Predictor(checkpoint.model, checkpoint.registry)
    predictor.set_image(_picture(samples / "mni152_axial72.png"))
    label = np.asarray(Image.open(samples / "labels" / "final" / "mni152_axial60.png")) == 2
    references = predictor.embed_references([_picture(samples / "mni152_axial60.png")], [label])
    names = checkpoint.registry.names
    classes = predictor.predict_classes(names)[0]
    in_context = predictor.predict(references=references)
    click = Click(120, 60, True)
    expected = {
        "semantic": [classes[name] for name in names],
        "in_context": [in_context],
        "clicked": [predictor.predict(clicks=[click, Click(110, 98, False)])],
        "corrected": [predictor.predict(clicks=[click], references=references, previous_mask=in_context.probability)],
    }
    for kind, predictions in expected.items():
        probability = 1 / (1 + np.exp(-found[kind]))
        for row, prediction in enumerate(predictions):
            np.testing.assert_allclose(probability[row], prediction.probability, atol=EXAMPLE_PARITY, rtol=0)
    assert printed.splitlines() == [f"{n}: present with probability {classes[n].presence:.2f}" for n in names]
