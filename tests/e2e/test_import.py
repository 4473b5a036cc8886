# SPDX-License-Identifier: Apache-2.0
"""`./kprism import`: images of every kind as DICOM in a folder, where the voxels were, and sentences for the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from benchmarks.live_server import free_port
from benchmarks.places import ROOT
from lib.dicom.seg_reader import read_seg
from lib.dicom.series import describe_series, read_headers, read_voxels
from lib.folder_store import FolderStore
from tools.import_folder import main

Run = Callable[..., tuple[int, str]]


def launch(*arguments: str | Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command as a user calls it."""
    return subprocess.run(
        [ROOT / "kprism", "import", *arguments], cwd=folder, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, which spares its imports: (status, what it wrote as errors)."""

    def command(*arguments: str | Path, folder: Path = ROOT) -> tuple[int, str]:
        monkeypatch.chdir(folder)
        try:
            status = main([*map(str, arguments)])
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        return status, capsys.readouterr().err

    return command


def imported(folder: Path) -> tuple[list[Dataset], dict[str, Path]]:
    """(images, files by SOP instance) of a converted image."""
    headers = read_headers(folder.glob("*.dcm"))
    images = {path: header for path, header in headers.items() if header.Modality != "SEG"}
    return list(images.values()), {str(header.SOPInstanceUID): path for path, header in images.items()}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample studies as DICOM."""
    folder = tmp_path_factory.mktemp("samples") / "dicom"
    done = launch(ROOT / "sample-datastore", "--to", folder)
    assert done.returncode == 0, done.stderr
    assert "Imported 11 of 11 images" in done.stdout
    return folder


@pytest.mark.parametrize("name", ["pyradiomics_lung1", "pyradiomics_brain2", "pyradiomics_breast1", "mni152_t1"])
def test_volumes_keep_every_voxel_in_its_place(name: str, samples: Path) -> None:
    image = nibabel.load(ROOT / "sample-datastore" / f"{name}.nii.gz")
    headers, files = imported(samples / name)
    series = describe_series(headers)
    back = read_voxels(series, files)
    array = np.asarray(image.dataobj)
    change = np.linalg.inv(series.affine) @ image.affine
    picked = np.random.default_rng(0).integers(0, array.shape, (2000, 3))
    places = np.c_[picked, np.ones(len(picked))] @ change.T
    np.testing.assert_allclose(places, np.rint(places), atol=0.02)
    i, j, k = np.rint(places[:, :3]).astype(int).T
    np.testing.assert_allclose(back[i, j, k], array[tuple(picked.T)], atol=np.ptp(array) / 65535)
    assert back.size == array.size


def test_modalities_and_labels_come_along(samples: Path) -> None:
    modalities = {folder.name: imported(folder)[0][0].Modality for folder in samples.iterdir()}
    assert modalities["pyradiomics_lung2"] == "CT"
    assert modalities["pyradiomics_brain1"] == "MR"
    assert modalities["mni152_axial60"] == "OT"
    folder = samples / "pyradiomics_lung1"
    [path] = [path for path, header in read_headers(folder.glob("*.dcm")).items() if header.Modality == "SEG"]
    series = describe_series(imported(folder)[0])
    label = read_seg(dcmread(path), series)
    expected = nibabel.load(ROOT / "sample-datastore" / "labels" / "final" / "pyradiomics_lung1.nii.gz")
    voxels = np.argwhere(np.asarray(expected.dataobj) > 0)
    places = np.c_[voxels, np.ones(len(voxels))] @ (np.linalg.inv(series.affine) @ expected.affine).T
    i, j, k = np.rint(places[:, :3]).astype(int).T
    assert label.names == {"lung tumour": 1}
    assert (label.labels[i, j, k] == 1).all()
    assert int(label.labels.sum()) == len(voxels)


@pytest.mark.parametrize(
    ("dataset", "modality"), [("busi_us", "US"), ("kvasir_polyp", "ES"), ("montgomery_xray", "CR")]
)
def test_pictures_become_what_their_dataset_says(
    run: Run, dataset: str, modality: str, data: Path, tmp_path: Path
) -> None:
    entries = json.loads((data / dataset / "dataset.json").read_text())["test"][:2]
    (tmp_path / "images").mkdir()
    shutil.copy(data / dataset / "dataset.json", tmp_path)
    for entry in entries:
        shutil.copy(data / dataset / entry["image"], tmp_path / "images")
    status, errors = run(tmp_path / "images", "--to", tmp_path / "dicom")
    assert status == 0, errors
    for entry in entries:
        source = Path(entry["image"])
        headers, files = imported(tmp_path / "dicom" / source.name.split(".")[0])
        assert headers[0].Modality == modality
        pixels = np.asarray(Image.open(data / dataset / source))
        back = read_voxels(describe_series(headers), files)[:, :, 0]
        np.testing.assert_array_equal(back, pixels.swapaxes(0, 1))


def test_what_cannot_be_imported_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no picture")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "fine.png")
    done = launch("images", "--to", "dicom", folder=tmp_path)
    assert done.returncode == 1
    assert "left out: broken.png is not a readable .png file" in done.stderr
    assert "Imported 1 of 2 images into dicom." in done.stdout
    assert len(list((tmp_path / "dicom" / "fine").iterdir())) == 1


def test_what_of_a_label_is_left_out_is_said(run: Run, tmp_path: Path) -> None:
    studies, affine = tmp_path / "studies", np.diag([-1.0, -1.0, 2.0, 1.0])
    final = studies / "labels" / "final"
    final.mkdir(parents=True)
    for name in "abcd":
        voxels = np.random.default_rng(0).integers(0, 900, (12, 10, 4)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, affine), studies / f"{name}.nii.gz")
    organ, lesion = np.zeros((12, 10, 4), np.uint8), np.zeros((12, 10, 4), np.uint8)
    organ[2:8, 2:8], lesion[3:5, 3:5, 1:3] = 1, 1
    directions = np.vstack([[np.nan] * 3, affine[:3, :3]])
    segments = {"Segment0_Name": "organ", "Segment1_Name": "lesion", "Segment0_Layer": "0", "Segment1_Layer": "1"}
    place = {"space": "right-anterior-superior", "space directions": directions, "space origin": affine[:3, 3]}
    nrrd.write(str(final / "a.seg.nrrd"), np.stack([organ, lesion]), {**place, **segments})
    nibabel.save(nibabel.Nifti1Image(organ + lesion, affine), final / "b.nii.gz")
    nibabel.save(nibabel.Nifti1Image(organ.astype(np.int16) * 1001, affine), final / "c.nii.gz")
    nibabel.save(nibabel.Nifti1Image((organ + lesion).astype(np.int16) * 1001, affine), final / "d.nii.gz")
    (studies / "labels.json").write_text(json.dumps({"labels": {"1": "organ", "1001": "organ"}}))
    FolderStore(str(studies), extensions=("*.nii.gz", "*.nrrd"))  # as a server that has served it
    status, errors = run(studies, "--to", tmp_path / "dicom")
    assert status == 1
    assert "the label of a.nii.gz: 'organ' and 'lesion' overlap in 8 of the 144 voxels of 'organ'" in errors
    assert "the label of b.nii.gz: nothing names the value 2; expected a name in labels.json" in errors
    assert "the label of d.nii.gz: nothing names the value 2002; expected a name in labels.json" in errors
    assert sorted(path.name for path in (tmp_path / "dicom").iterdir()) == ["a", "c"]
    for name, wanted in (("a", {"organ": organ - lesion, "lesion": lesion}), ("c", {"organ": organ})):
        series = describe_series(imported(tmp_path / "dicom" / name)[0])
        headers = read_headers((tmp_path / "dicom" / name).glob("*.dcm"))
        [path] = [path for path, header in headers.items() if header.Modality == "SEG"]
        label = read_seg(dcmread(path), series)
        assert set(label.names) == set(wanted)
        turned = np.rint(np.linalg.inv(series.affine) @ affine).astype(int)  # grid of the file -> that of the series
        for structure, mask in wanted.items():
            i, j, k, _ = turned @ np.c_[np.argwhere(mask), np.ones(mask.sum(), int)].T
            assert (label.labels[i, j, k] == label.names[structure]).all()
            assert int((label.labels == label.names[structure]).sum()) == int(mask.sum())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "there is no file or folder 'nowhere'"),
        (["."], "has no images; expected files of type"),
        ([".", "--modality", "PT"], "invalid choice: 'PT'"),
    ],
)
def test_wrong_arguments_end_with_a_sentence(run: Run, arguments: list[str], sentence: str, tmp_path: Path) -> None:
    status, errors = run(*arguments, folder=tmp_path)
    assert status in (1, 2)
    assert sentence in errors


def test_a_store_that_is_down_is_said(run: Run, tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "fine.png")
    status, errors = run("fine.png", "--to", f"http://127.0.0.1:{free_port()}/dicom-web", folder=tmp_path)
    assert status == 1
    assert "does not answer" in errors


@pytest.mark.parametrize("case", ["types", "letter case", "folders"])
def test_files_of_one_name_do_not_replace_each_other(tmp_path: Path, run: Run, case: str) -> None:
    """As in folders of patients, each with a file of the same name."""
    names = {
        "types": ["in/scan.nii.gz", "in/scan.nrrd", "in/scan.png"],
        "letter case": ["in/scan.nii.gz", "in/Scan.nii.gz", "in/SCAN.nii.gz"],
        "folders": ["one/scan.nii.gz", "two/scan.nii.gz", "three/scan.nii.gz"],
    }[case]
    for seed, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        voxels = np.random.default_rng(seed).integers(0, 255, (6, 5, 4)).astype(np.uint8)
        if name.endswith("gz"):
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
        elif name.endswith("nrrd"):
            nrrd.write(str(path), voxels)
        else:
            Image.fromarray(voxels[:, :, 0]).save(path)
    folders = sorted({tmp_path / name.split("/")[0] for name in names})
    assert run(*folders, "--to", tmp_path / "out") == (0, "")
    series: dict[str, list[str]] = {}
    for file in (tmp_path / "out").rglob("*.dcm"):
        series.setdefault(str(dcmread(file).SeriesInstanceUID), []).append(file.parent.name)
    slices = sorted(len(found) for found in series.values())
    assert slices == ([1, 4, 4] if case == "types" else [4, 4, 4])
    assert all(len(set(found)) == 1 for found in series.values())
    assert len({found[0].casefold() for found in series.values()}) == len(names)
    before = set((tmp_path / "out").rglob("*.dcm"))
    assert run(*folders, "--to", tmp_path / "out") == (0, "")
    assert set((tmp_path / "out").rglob("*.dcm")) == before
