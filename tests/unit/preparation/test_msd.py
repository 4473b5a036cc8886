# SPDX-License-Identifier: Apache-2.0
"""The Decathlon: classes of dataset.json, four axes, traces of macOS, lists that differ, own exports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kprism_model.preparation.decathlon import decathlon_tasks
from tests.unit.preparation.downloads import blocks, colour_noise, disc, noise, picture, prepare, volume


def add_task(
    folder: Path,
    prefix: str,
    labels: Mapping[str, str],
    channels: Sequence[str] = ("MRI",),
    *,
    count: int = 4,
    kind: type[np.generic] = np.uint8,
    **more: Any,
) -> Path:
    """A task with `count` labelled images and one without; several channels are a fourth axis."""
    names = [f"{prefix}_{number:03d}" for number in range(1, count + 1)]
    shape = (9, 8, 4) if len(channels) == 1 else (9, 8, 4, len(channels))
    for number, name in enumerate(names, start=1):
        volume(folder / "imagesTr" / f"{name}.nii.gz", noise(number, shape))
        values = [int(value) for value in labels if value != "0"]
        volume(folder / "labelsTr" / f"{name}.nii.gz", blocks(number, values).astype(kind))
        for part in ("imagesTr", "labelsTr"):
            (folder / part / f"._{name}.nii.gz").write_bytes(b"\x00\x05\x16\x07 trace of macOS")
    volume(folder / "imagesTs" / f"{prefix}_900.nii.gz", noise(900, shape))
    content = {
        "name": folder.name.split("_")[-1],
        "description": "tiny",
        "reference": "somebody",
        "licence": "CC-BY-SA 4.0",
        "relase": "1.0 04/05/2018",
        "tensorImageSize": "4D",
        "modality": {str(number): name for number, name in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": count,
        "numTest": 1,
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [f"./imagesTs/{prefix}_900.nii.gz"],
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "._dataset.json").write_bytes(b"\x00\x05\x16\x07")
    return folder


BRAIN = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
SEQUENCES = ("FLAIR", "T1w", "t1gd", "T2w")


@pytest.mark.parametrize("above", [0, 1])
def test_a_known_task_gets_our_names(tmp_path: Path, above: int) -> None:
    labels = {"0": "background", "1": "Anterior", "2": "Posterior"}
    folder = add_task(tmp_path / "download" / "Task04_Hippocampus", "hippocampus", labels)
    made = prepare("msd", [folder, folder.parent][above], tmp_path / "out")
    assert made.status == 0
    assert made.dataset.classes == {1: "anterior hippocampus", 2: "posterior hippocampus"}
    assert (made.dataset.name, made.dataset.modality, made.dataset.anatomy) == ("hippocampus", "MRI", "hippocampus")
    assert made.content["licence"] == "CC-BY-SA 4.0" and made.content["release"] == "1.0 04/05/2018"
    assert sum(len(made.names(split)) for split in ("training", "validation", "test")) == 4
    for number in (1, 3, 4):
        assert (made.label(f"hippocampus_{number:03d}") == blocks(number, (1, 2))).all()
        assert (made.image(f"hippocampus_{number:03d}") == noise(number)).all()
    assert set(made.content["prepared"]["remarks"]) == {"unlabelled"}
    assert "imagesTs: 1 images, of which nobody has the labels" in made.printed


@pytest.mark.parametrize(("option", "channel"), [(None, 0), ("2", 2), ("t2W", 3), ("FLAIR", 0)])
def test_one_of_four_channels_is_the_image(tmp_path: Path, option: str | None, channel: int) -> None:
    folder = add_task(tmp_path / "Task01_BrainTumour", "BRATS", BRAIN, SEQUENCES, kind=np.float32)
    made = prepare("msd", folder, tmp_path / "out", *([] if option is None else ["--channel", option]))
    assert made.status == 0
    assert made.dataset.classes == {1: "peritumoral oedema", 2: "necrotic tumour core", 3: "enhancing tumour"}
    assert made.dataset.modality == "MRI" and made.content["channel"] == SEQUENCES[channel]
    assert (made.image("BRATS_002") == noise(2, (9, 8, 4, 4))[..., channel]).all()
    assert (made.label("BRATS_002") == blocks(2, (1, 2, 3))).all()
    assert "these are images of BraTS 2016 and 2017" in made.printed


def test_the_liver_task_warns_of_lits_wherever_it_lies(tmp_path: Path) -> None:
    folder = add_task(tmp_path / "livers", "liver", {"0": "background", "1": "liver", "2": "cancer"}, ("CT",))
    made = prepare("msd", folder, tmp_path / "out")
    assert made.dataset.classes == {1: "liver", 2: "liver tumour"} and made.dataset.modality == "CT"
    assert any("these are the images of LiTS" in note for note in made.remarks("note"))


@pytest.mark.parametrize(
    ("prefix", "labels", "channels"),
    [
        ("liver", {"0": "background", "1": "liver", "5": "vessel"}, ("CT",)),
        ("site", {"0": "background", "1": "liver", "2": "cancer"}, ("PET",)),
        ("la", {"0": "background", "7": "left ventricle"}, ("T1w",)),
    ],
)
def test_other_sets_keep_their_names(
    tmp_path: Path, prefix: str, labels: dict[str, str], channels: tuple[str, ...]
) -> None:
    made = prepare("msd", add_task(tmp_path / "My Own Set", prefix, labels, channels, licence=""), tmp_path / "out")
    own = [name for value, name in labels.items() if value != "0"]
    assert made.dataset.classes == dict(enumerate(own, start=1))
    assert made.dataset.name == "my_own_set" and made.content["licence"] == "not stated"
    assert made.dataset.modality == {"T1w": "MRI"}.get(channels[0], channels[0])
    values = [int(value) for value in labels if value != "0"]
    expected = blocks(2, values)
    for index, value in enumerate(values, start=1):
        assert ((made.label(f"{prefix}_002") == index) == (expected == value)).all()


def test_lists_and_folders_that_differ_are_named(tmp_path: Path) -> None:
    folder = add_task(tmp_path / "Task09_Spleen", "spleen", {"0": "background", "1": "spleen"}, ("CT",), count=6)
    (folder / "imagesTr" / "spleen_001.nii.gz").unlink()
    (folder / "labelsTr" / "spleen_002.nii.gz").unlink()
    volume(folder / "imagesTr" / "spleen_077.nii.gz", noise(77))
    volume(folder / "labelsTr" / "spleen_077.nii.gz", blocks(77, (1,)))
    volume(folder / "labelsTr" / "spleen_003.nii", blocks(4, (1,)))
    (folder / "imagesTs" / "spleen_900.nii.gz").unlink()
    made = prepare("msd", folder, tmp_path / "out")
    missing = made.remarks("missing")
    assert missing[0] == "./imagesTr/spleen_001.nii.gz of the training list of dataset.json"
    assert missing[1].startswith("the image of ") and missing[1].endswith("spleen_001.nii.gz")
    assert missing[2].startswith("the label of ") and missing[2].endswith("spleen_002.nii.gz")
    assert missing[3].startswith("the label of ") and missing[3].endswith("spleen_003.nii.gz")
    assert missing[4] == "spleen_900 of the test list of dataset.json"
    assert made.remarks("note") == ["spleen_077 is on no list of dataset.json; it counts as training"]
    assert len(made.remarks("faulty")) == 1 and "spleen_003.nii.gz differs from" in made.remarks("faulty")[0]
    assert made.status == 1
    assert {case.name for cases in made.dataset.splits.values() for case in cases} == {
        *(f"spleen_{number:03d}" for number in (4, 5, 6, 77))
    }


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((9, 8, 4), "has the shape (9, 8, 4), expected 4 channels: FLAIR, T1w, t1gd, T2w"),
        ((9, 8, 4, 3), "has the shape (9, 8, 4, 3), expected 4 channels"),
        ((9, 8), "has the shape (9, 8), expected 4 channels"),
    ],
)
def test_another_number_of_channels_is_faulty(tmp_path: Path, shape: tuple[int, ...], sentence: str) -> None:
    folder = add_task(tmp_path / "Task01_BrainTumour", "BRATS", BRAIN, SEQUENCES)
    volume(folder / "imagesTr" / "BRATS_003.nii.gz", noise(3, shape))
    made = prepare("msd", folder, tmp_path / "out")
    assert made.status == 1
    assert sentence in made.remarks("faulty")[0] and "BRATS_003" in made.remarks("faulty")[0]


@pytest.mark.parametrize("is_picture", [False, True])
def test_a_folder_of_export_dataset_is_read_back(tmp_path: Path, is_picture: bool) -> None:
    folder, ending = tmp_path / "Task500_site", ".png" if is_picture else ".nii.gz"
    entries = []
    for number in range(1, 5):
        image, label = (folder / part / f"site_{number:03d}{ending}" for part in ("imagesTr", "labelsTr"))
        if is_picture:
            picture(image, colour_noise(number))
            picture(label, 2 * disc(radius=number))
        else:
            volume(image, noise(number))
            volume(label, blocks(number, (1, 2)))
        files = {"image": f"./imagesTr/{image.name}", "label": f"./labelsTr/{label.name}"}
        entries.append({**files, "patient": f"patient {number // 3 + 1}"})
    (folder / "imagesTs").mkdir()
    structures = [["liver", "spleen"], ["liver", "spleen"], ["liver", "spleen"], ["liver"]]
    cases = [
        {"case": f"site_{number:03d}", "patient": number // 3 + 1, "structures": told}
        for number, told in enumerate(structures, start=1)
    ]
    (folder / "provenance.json").write_text(json.dumps({"program": "K-Prism", "cases": cases}))
    content = {
        "name": "site",
        "modality": {"0": "endoscopy" if is_picture else "CT"},
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "codes": {"liver": {}},
        "numTraining": 4,
        "training": entries[:2],
        "validation": entries[2:],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    made = prepare("msd", folder, tmp_path / "out")
    assert made.dataset.classes == {1: "liver", 2: "spleen"}
    assert made.names("training") == {"site_001", "site_002"} and made.names("validation") == {"site_003"}
    assert [made.case(f"site_{n:03d}").patient for n in (1, 2, 3)] == ["patient 1", "patient 1", "patient 2"]
    (sentence,) = made.remarks("unlabelled")
    assert sentence == "site_004: its label says nothing about spleen"
    if is_picture:
        assert (made.label("site_002") == 2 * disc(radius=2)).all()
        assert (made.image("site_002") == colour_noise(2)).all()
    else:
        assert (made.label("site_002") == blocks(2, (1, 2))).all() and (made.image("site_002") == noise(2)).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": None}, '"labels" must map names and values, got None'),
        ({"labels": {"0": "background"}}, '"labels" must hold 1 to 254 classes, got 0'),
        ({"labels": {"1": "liver", "2": "Liver"}}, "classes with different names"),
        ({"modality": {}}, 'expected "channel_names" or "modality" as'),
        ({"channel_names": {"0": "CT"}}, "is a folder of nnU-Net, not of the Decathlon; `prepare nnunet` reads it"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    folder = add_task(tmp_path / "Task09_Spleen", "spleen", {"0": "background", "1": "spleen"})
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match="Task09_Spleen") as error:
        prepare("msd", folder, tmp_path / "out")
    assert sentence in str(error.value)
    assert not (tmp_path / "out").exists()


def test_other_folders_and_several_tasks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    with pytest.raises(
        ValueError, match=r"is not of the Decathlon: expected dataset\.json beside imagesTr and labelsTr"
    ):
        prepare("msd", tmp_path / "some", tmp_path / "out")
    for task in ("Task02_Heart", "Task09_Spleen"):
        add_task(tmp_path / "tasks" / task, "la", {"0": "background", "1": "left atrium"}, count=1)
    with pytest.raises(
        ValueError, match="holds several tasks: Task02_Heart, Task09_Spleen; expected the folder of one"
    ):
        prepare("msd", tmp_path / "tasks", tmp_path / "out")
    with pytest.raises(ValueError, match=r"--channel is T2, expected one of 0 \(MRI\)"):
        prepare("msd", tmp_path / "tasks" / "Task02_Heart", tmp_path / "out", "--channel", "T2")


def test_the_table_has_the_ten_tasks() -> None:
    assert [task.folder[:6] for task in decathlon_tasks()] == [f"Task{number:02d}" for number in range(1, 11)]
    assert len({task.prefix for task in decathlon_tasks()}) == 10
