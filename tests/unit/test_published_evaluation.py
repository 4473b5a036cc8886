# SPDX-License-Identifier: Apache-2.0
"""The command `evaluate --protocol published` on small data sets: references, figures, report, resuming, bad input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kprism_model.checkpoint import load_checkpoint
from kprism_model.cli.main import main
from kprism_model.data.datasets import read_dataset
from kprism_model.data.structures import StructureMap
from kprism_model.predictor import Predictor
from kprism_model.published.evaluation.evaluate import measure_set
from kprism_model.published.evaluation.fixed_references import draw_references
from kprism_model.published.evaluation.pairs import Pair, pair_blocks
from kprism_model.published.evaluation.protocol import PublishedProtocol
from kprism_model.published.evaluation.table import NOT_AVAILABLE
from tests.tiny_network import SIDE, copy_weights, drawn
from tests.unit.dataset_files import write_dataset


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    checkpoint = load_checkpoint(weights)
    return Predictor(checkpoint.model, checkpoint.registry)


def volume(seed: int, slices: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A NIfTI image (i, j, k) and its label with 1 liver, 2 spleen in the middle slices, none in the first."""
    pairs = [drawn(np.random.default_rng([seed, number])) for number in range(slices)]
    labels = np.stack([label.T for _, label in pairs], axis=2)
    labels[..., 0] = 0
    images = np.stack([(255 * image.T).astype(np.uint8) for image, _ in pairs], axis=2)
    return images, labels


def write_splits(folder: Path, images: Sequence[np.ndarray], labels: Sequence[np.ndarray], **options: Any) -> Path:
    """A data set whose first two cases are for training, the others for the test; `training` changes the number."""
    training = options.pop("training", 2)
    write_dataset(folder, labels, images=images, **options)
    content = json.loads((folder / "dataset.json").read_text())
    content["test"] = content["training"][training:]
    content["training"] = content["training"][:training]
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def write_volumes(folder: Path, count: int = 4, slices: int = 3, **options: Any) -> Path:
    images, labels = zip(*(volume(number, slices) for number in range(count)), strict=True)
    affine = np.diag([-1.0, -1.0, 5.0, 1.0])
    options = {"classes": ["liver", "spleen"], "modality": "MRI", "affine": affine} | options
    return write_splits(folder, images, labels, **options)


def write_pictures(folder: Path, count: int = 5, size: int = SIDE, **options: Any) -> Path:
    images, labels = zip(*(drawn(np.random.default_rng(number)) for number in range(count)), strict=True)
    grey = [(255 * image[:size]).astype(np.uint8) for image in images]
    options = {"classes": ["liver", "spleen"]} | options
    return write_splits(folder, grey, [label[:size] for label in labels], **options)


def measured(predictor: Predictor, folder: Path, **settings: Any) -> Any:
    dataset = read_dataset(folder)
    structures = StructureMap.unchanged(dataset.classes)
    return measure_set(predictor, dataset, structures, PublishedProtocol(**settings), progress=False)


@pytest.mark.parametrize("size", [SIDE, 40])
def test_counts_are_those_of_the_network_s_masks(predictor: Predictor, tmp_path: Path, size: int) -> None:
    """Semantic masks and clicks, computed from the pictures in another way."""
    folder = write_pictures(tmp_path / "shapes", size=size)
    result = measured(predictor, folder, modes=("semantic", "interactive"))
    counts = result.counts
    dataset = read_dataset(folder)
    assert counts.cases == ("case_2", "case_3", "case_4") and not counts.volumes
    for row, pair in enumerate(counts.modes["semantic"].pair.tolist()):
        case = dataset.cases("test")[counts.case[pair]]
        label = np.array(Image.open(case.label)) == counts.structure[pair] + 1
        image = np.array(Image.open(case.image)).astype(np.float32)
        low, high = np.percentile(image, (0.5, 99.5))
        scaled = ((image - low) / (high - low)).clip(0, 1)
        mask = predictor.predict(
            class_name=counts.structures[counts.structure[pair]], embedding=predictor.set_image(scaled)
        )
        found = mask.probability > 0.5  # these pictures are as wide as the canvas, so nothing is resized
        assert counts.true[pair] == label.sum()
        assert counts.modes["semantic"].overlap[row, 0] == (found & label).sum()
        assert counts.modes["semantic"].predicted[row, 0] == found.sum()
    assert counts.modes["interactive"].predicted[:, 0].tolist() == [-1] * len(counts.true)
    assert (counts.modes["interactive"].predicted[:, 1:] >= 0).all()  # the last mask of a series stays to the end
    assert result.figure("interactive", "dice_5").value > 60  # the network was taught to follow clicks


def test_probabilities_are_resized_to_the_slice_s_own_size() -> None:
    own = torch.zeros(4, 4, dtype=torch.bool)
    own[:, :2] = True
    pair = Pair("case", 0, 1, None, np.zeros((2, 2), bool), own, 8)  # type: ignore[arg-type]
    # a row of 0, 1 becomes 0, 0.25, 0.75, 1: the right half
    assert pair.count(np.array([[0, 1], [0, 1]], np.float32)) == (0, 8)
    assert pair.count(np.array([[1, 0], [1, 0]], np.float32)) == (8, 8)
    assert pair.count(np.full((2, 2), 0.5, np.float32)) == (0, 0)  # 0.5 is not above 0.5
    assert pair.count(np.full((4, 4), 0.51, np.float32)) == (8, 16)


def test_only_structures_that_a_slice_shows_are_pairs(predictor: Predictor, tmp_path: Path) -> None:
    dataset = read_dataset(write_volumes(tmp_path / "volumes", slices=40))
    blocks = list(
        pair_blocks(predictor, dataset, StructureMap.unchanged(dataset.classes), dataset.cases("test"), batch=4)
    )
    places = [(pair.case, pair.number, pair.index) for _, pairs in blocks for pair in pairs]
    labels = {f"case_{number}": volume(number, 40)[1] for number in (2, 3)}
    expected = {
        (case, number, index)
        for case, label in labels.items()
        for number in range(40)
        for index in (1, 2)
        if (label[..., number] == index).any()
    }
    assert len(places) == len(set(places)) and set(places) == expected
    assert [done for done, _ in blocks] == [0, 1, 2] and {number for _, number, _ in places} == set(range(1, 40))


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (1, 1), (2, 0)])
def test_a_reference_is_the_middle_slice_of_a_training_case(
    predictor: Predictor, tmp_path: Path, count: int, seed: int
) -> None:
    dataset = read_dataset(write_volumes(tmp_path / "volumes", count=6, slices=6, training=4))
    settings = PublishedProtocol(references=count, seed=seed)
    found = draw_references(predictor, dataset, StructureMap.unchanged(dataset.classes), settings)
    order = np.random.default_rng([seed, 0]).permutation(4)[:count]
    assert found.notes == [f"volumes: references from {', '.join(f'case_{number}' for number in order)}"]
    assert found.patients == {f"case_{number}" for number in order}
    for index, references in found.draws[0].items():
        pictures, masks = [], []
        for number in order:
            images, labels = volume(int(number), 6)
            shown = np.flatnonzero((labels == index).any((0, 1)))
            place = shown[len(shown) // 2]
            low, high = np.percentile(images.astype(np.float32), (0.5, 99.5))
            pictures.append(((images[..., place].T.astype(np.float32) - low) / (high - low)).clip(0, 1))
            masks.append((labels == index)[..., place].T)
        expected = predictor.embed_references(pictures, masks)
        assert torch.allclose(references.keys, expected.keys, atol=1e-5)
        assert torch.allclose(references.values, expected.values, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"training": 0}, {"training": 0, "patients": ["a", "a", "b", "b", "c", "c"]}, {"training": 2, "scored": True}],
)
def test_references_from_the_measured_list_are_never_scored(
    predictor: Predictor, tmp_path: Path, options: dict[str, Any]
) -> None:
    scored = options.pop("scored", False)
    folder = write_pictures(tmp_path / "shapes", count=6, **options)
    patients = {case.name: case.patient for case in read_dataset(folder).cases("test")}
    settings = {"reference_list": "scored"} if scored else {}
    result = measured(predictor, folder, modes=("semantic", "in_context"), draws=2, **settings)
    assert any("the references are test cases and are not scored" in note for note in result.notes)
    out = set(patients) - set(result.counts.cases)
    assert out and not {patients[name] for name in out} & {patients[name] for name in result.counts.cases}
    named = next(note for note in result.notes if "references from" in note)
    assert any(name in named for name in out)
    pairs = {mode: one.pair.tolist() for mode, one in result.counts.modes.items()}
    assert pairs["semantic"] == pairs["in_context"] == list(range(len(result.counts.true)))
    assert result.figure("in_context", "dice").spread is not None


def test_no_case_is_both_training_reference_and_scored(predictor: Predictor, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "shapes", count=4, training=2, patients=["a", "b", "b", "c"])
    result = measured(predictor, folder, modes=("in_context",))
    assert "shapes: references from case_0" in result.notes and result.counts.cases == ("case_2", "case_3")


def test_too_few_cases_and_structures_are_named(predictor: Predictor, tmp_path: Path) -> None:
    alone = write_pictures(tmp_path / "alone", count=1, training=0)
    result = measured(predictor, alone)
    assert any("alone: 1 labelled test cases are too few to take out 1" in note for note in result.notes)
    assert {figure.mode for figure in result.figures} == {"semantic", "interactive", "semantic+interactive"}
    empty = write_pictures(tmp_path / "empty", count=2, training=2)
    result = measured(predictor, empty, modes=("semantic",))
    assert result.figures == [] and "empty: the test list has no labelled case to measure" in result.notes
    images, labels = zip(*(volume(number) for number in range(3)), strict=True)
    rare = write_splits(
        tmp_path / "rare", images, [labels[0] * (labels[0] == 1), *labels[1:]], classes=["liver", "spleen"], training=1
    )
    result = measured(predictor, rare, modes=("in_context",))
    assert any(
        "no in-context figures of spleen: only 0 of 1 references, as no other case of the training" in note
        for note in result.notes
    )
    assert list(result.figure("in_context", "dice").by_structure) == ["liver"]


def test_a_structure_that_vanishes_on_the_canvas_is_never_reached(predictor: Predictor, tmp_path: Path) -> None:
    label = np.zeros((SIDE, 4 * SIDE), np.uint8)
    label[2, 2] = 1  # between the pixels of the canvas, which is a quarter as large
    folder = write_splits(tmp_path / "specks", [label * 100] * 3, [label] * 3, classes=["liver"])
    result = measured(predictor, folder, modes=("interactive",))
    assert "specks: 1 structures in slices are too small for the canvas and get no first click: Dice 0, NoC 20" in (
        result.notes
    )
    assert result.figure("interactive", "dice_5").value == 0 and result.figure("interactive", "noc90").value == 20


def command(weights: Path, out: Path, *folders: Path, extra: Sequence[str] = ()) -> int:
    words = ["evaluate", "--protocol", "published", "--checkpoint", str(weights), "--out", str(out), "--data"]
    return main([*words, *map(str, folders), *extra])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An external set of volumes with a class that the network lacks, one of pictures, and a set of neither group."""
    root = tmp_path_factory.mktemp("sets")
    images, labels = zip(*(volume(number, 4) for number in range(4)), strict=True)
    for label in labels:
        label[:8, :8, 2] = 3
    volumes = write_splits(root / "acdc_mr", images, labels, classes=["liver", "spleen", "ventricle"])
    breasts = write_pictures(root / "bus_us", training=0, classes=["benign lesion", "malignant lesion"])
    return [volumes, breasts, write_pictures(root / "shapes")]


@pytest.fixture(scope="module")
def report(weights: Path, folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("report")
    assert command(weights, out, *folders, extra=["--draws", "2"]) == 0
    return out, json.loads((out / "published.json").read_text())


def rows_of(markdown: str, heading: str) -> dict[str, list[str]]:
    """The rows of the table below a heading, by their first cell."""
    table = markdown.split(f"## {heading}")[1].split("\n\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


def test_json_and_markdown_agree(report: tuple[Path, dict[str, Any]]) -> None:
    out, content = report
    markdown = (out / "published.md").read_text()
    rows = rows_of(markdown, "This checkpoint beside the published figures")
    head = rows["data set"]
    assert head[:4] == ["semantic", "published", "in-context", "published"]
    by_name = {one["name"]: one for one in content["datasets"]}
    assert [one["role"] for one in content["datasets"]] == ["external", "external", "other"]
    columns = {"semantic": ("semantic", "dice"), "in-context": ("in_context", "dice")}
    columns |= {"Dice(1)": ("interactive", "dice_1"), "NoC90 after semantic": ("semantic+interactive", "noc90")}
    for name, one in by_name.items():
        figures = {(figure["mode"], figure["metric"]): figure for figure in one["figures"]}
        for title, place in columns.items():
            cell = rows[name][head.index(title)]
            if place in figures:
                assert cell.startswith(f"{figures[place]['value']:.2f}")
            else:
                assert cell == "" and name == "bus_us"  # breast lesion is not a class of the network: never a 0
    assert "(2 of 3 structures)" in rows["acdc_mr"][0] and by_name["acdc_mr"]["unknown_structures"] == ["ventricle"]
    assert "bus_us: no semantic figures of breast lesion: not a class of the checkpoint" in content["notes"]
    assert rows["acdc_mr"][3].startswith("83.68 ± 2.38<sup>") and rows["shapes"][1] == NOT_AVAILABLE
    mean = next(one for one in content["means"] if (one["sets"], one["metric"]) == ("external", "dice_1"))
    values = [
        figure["value"]
        for name in ("acdc_mr", "bus_us")
        for figure in by_name[name]["figures"]
        if (figure["mode"], figure["metric"]) == ("interactive", "dice_1")
    ]
    assert mean["value"] == pytest.approx(np.mean(values)) and mean["of"] == ["acdc_mr", "bus_us"]
    shown = rows["**mean of the 4 external sets**"]
    assert shown[head.index("Dice(1)")] == f"{mean['value']:.2f} (2 of 4 sets)"
    assert shown[0].endswith("(1 of 4 sets, 1 in part)") and shown[1].startswith("83.45<sup>")
    assert rows["**mean of the 12 trained sets**"][:2] == ["", shown[1].replace("83.45", "86.21")]


def test_other_readings_are_in_the_report(report: tuple[Path, dict[str, Any]]) -> None:
    out, content = report
    markdown = (out / "published.md").read_text()
    table = [line for line in markdown.split("read otherwise")[1].split("\n## ")[0].splitlines() if line[:2] == "| "]
    acdc = next(line for line in table if line.startswith("| acdc_mr | semantic,"))
    figure = next(one for one in content["datasets"][0]["figures"] if one["mode"] == "semantic")
    readings = ("value", "mean_of_structures", "by_volume", "by_volume_mean_of_structures")
    assert acdc.split(" | ")[3:7] == [f"{figure[name]:.2f}" for name in readings]
    assert "Where the protocol leaves a choice" in markdown and len(content["readings"]) == 8
    assert "| SegNext | 2.50<sup>" in markdown and "second hand, as reported by" in markdown


def test_the_figure_is_a_picture_that_fits_a_page(report: tuple[Path, dict[str, Any]]) -> None:
    with Image.open(report[0] / "published.png") as picture:
        assert picture.format == "PNG" and 1200 <= picture.width <= 1600
        pixels = np.array(picture.convert("RGB"))
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # this checkpoint and K-Prism
        assert (pixels == colour).all(axis=2).any()


def test_a_finished_set_is_not_measured_again(
    weights: Path, folders: list[Path], report: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: Any
) -> None:
    out, content = report
    hidden = [(path, path.read_bytes()) for folder in folders for path in (folder / "images").iterdir()]
    try:
        for path, _ in hidden:
            path.write_bytes(b"")
        assert command(weights, out, *folders, extra=["--draws", "2", "--batch", "3"]) == 0
        assert json.loads((out / "published.json").read_text()) == content
        for changed in (["--draws", "2", "--seed", "1"], ["--draws", "1"], ["--draws", "2", "--clicks", "ours"]):
            assert command(weights, out, *folders, extra=changed) == 2
            assert str(hidden[0][0].parent) in capsys.readouterr().err
    finally:
        for path, image in hidden:
            path.write_bytes(image)


def test_a_killed_run_measures_only_the_rest(
    weights: Path, folders: list[Path], report: tuple[Path, dict[str, Any]]
) -> None:
    out, content = report
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "finished").iterdir()}
    broken = out / "finished" / "shapes.npz"
    broken.write_bytes(broken.read_bytes()[:100])
    assert command(weights, out, *folders, extra=["--draws", "2", "--batch", "5"]) == 0
    again = json.loads((out / "published.json").read_text())
    assert again["datasets"][:2] == content["datasets"][:2]
    after = {path.name: path.stat().st_mtime_ns for path in (out / "finished").iterdir()}
    assert {name for name in kept if kept[name] != after[name]} == {"shapes.npz"}
    for one, other in zip(again["datasets"][2]["figures"], content["datasets"][2]["figures"], strict=True):
        assert one["value"] == pytest.approx(other["value"], abs=0.5)  # another batch: the last bits may differ


def test_a_quick_look_takes_whole_cases_and_says_so(weights: Path, folders: list[Path], tmp_path: Path) -> None:
    words = ["--max-slices", "4", "--modes", "semantic"]
    assert command(weights, tmp_path / "one", folders[0], extra=words) == 0
    markdown = (tmp_path / "one" / "published.md").read_text()
    assert "- acdc_mr: 1 of 2 cases, 4 of 8 slices" in markdown and "A sample of the lists" in markdown


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--references", "0"], "references must be at least 1, got 0"),
        (["--draws", "-1"], "draws must be at least 1, got -1"),
        (["--max-slices", "0"], "max_slices must be at least 1, got 0"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--figures", "/nowhere.toml"], "/nowhere.toml cannot be read"),
    ],
)
def test_bad_settings_are_named(
    weights: Path, folders: list[Path], tmp_path: Path, capsys: Any, extra: list[str], sentence: str
) -> None:
    assert command(weights, tmp_path / "out", folders[2], extra=extra) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/report"])
def test_a_place_that_cannot_be_written_is_told_before_the_measurement(
    weights: Path, folders: list[Path], tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        "kprism_model.published.evaluation.evaluate.measure_set", lambda *_, **__: pytest.fail("measured")
    )
    assert command(weights, tmp_path / place, *folders) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_bad_data_are_named(weights: Path, folders: list[Path], tmp_path: Path, capsys: Any) -> None:
    lacking = write_pictures(tmp_path / "lits_ct")
    for given, sentence in (
        ([lacking], "data set lits_ct: structure 'liver tumour': there is no class 'liver tumour', only"),
        ([folders[2], folders[2]], "data sets must have different names; listed twice: shapes"),
        ([tmp_path / "nowhere"], "nowhere/dataset.json does not exist"),
    ):
        assert command(weights, tmp_path / "out", *given) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()
