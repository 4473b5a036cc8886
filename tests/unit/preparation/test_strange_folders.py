# SPDX-License-Identifier: Apache-2.0
"""What may lie in a download or in the folder of a data set: links to nowhere, other data sets, strange files."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from kprism_model.cli.main import main
from kprism_model.preparation.overview import OVERVIEW_NAME
from tests.unit.preparation.downloads import Prepared, prepare

SHAPE = (12, 10, 6)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """Five patients of KiTS23."""
    for number in range(5):
        labels = np.zeros(SHAPE, np.uint8)
        labels[2:6, 2:6] = 1
        labels[3, 3, number] = 2
        folder = tmp_path / "download" / "dataset" / f"case_{number:05d}"
        folder.mkdir(parents=True)
        nib.save(nib.Nifti1Image((100 * labels).astype(np.int16), np.eye(4)), folder / "imaging.nii.gz")
        nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / "segmentation.nii.gz")
    return tmp_path / "download"


def image_of(download: Path, number: int) -> Path:
    return download / "dataset" / f"case_{number:05d}" / "imaging.nii.gz"


def label_of(download: Path, number: int) -> Path:
    return image_of(download, number).with_name("segmentation.nii.gz")


def names(made: Prepared) -> list[str]:
    return sorted(case.name for cases in made.dataset.splits.values() for case in cases)


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/file")


@pytest.mark.parametrize("which", [image_of, label_of])
def test_a_link_to_nowhere_leaves_out_its_case_alone(
    download: Path, tmp_path: Path, which: Callable[[Path, int], Path]
) -> None:
    path = which(download, 3)
    link_to_nowhere(path)
    made = prepare("kits23_ct", download, tmp_path / "out")
    assert names(made) == [f"case_{number:05d}" for number in (0, 1, 2, 4)]
    assert f"{path} is a link to /nowhere/file, which is not there" in made.remarks("missing")


def test_a_download_of_nothing_but_links_to_nowhere_says_so(download: Path, tmp_path: Path) -> None:
    for number in range(5):
        link_to_nowhere(image_of(download, number))
        link_to_nowhere(label_of(download, number))
    with pytest.raises(ValueError, match=r"is not KiTS23.*links below it lead to no file \(10\), such as .*case_00000"):
        prepare("kits23_ct", download, tmp_path / "out")


def giant(path: Path) -> None:
    """A header of more voxels than any memory has."""
    header = nib.Nifti1Header()
    header["dim"] = [3, 32000, 32000, 32000, 1, 1, 1, 1]
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.with_suffix("").write_bytes(header.binaryblock + bytes(1000))
    path.unlink()


def colours(path: Path) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, kind), np.eye(4)), path)


def complex_numbers(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.complex64), np.eye(4)), path)


def no_position(path: Path) -> None:
    """A matrix that is not a number."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[254:256] = (1).to_bytes(2, "little")  # sform_code
    content[280:296] = np.full(4, np.nan, "<f4").tobytes()  # srow_x
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize("spoil", [giant, colours, complex_numbers, no_position, lambda path: path.write_bytes(b"")])
def test_a_strange_file_leaves_out_its_case_alone(
    download: Path, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(image_of(download, 1))
    if spoil is giant:
        giant(label_of(download, 1))
    made = prepare("kits23_ct", download, tmp_path / "out")
    assert names(made) == [f"case_{number:05d}" for number in (0, 2, 3, 4)]
    assert made.status == 1
    (fault,) = made.remarks("faulty")
    assert str(image_of(download, 1)).removesuffix(".gz") in fault
    assert (tmp_path / "out" / OVERVIEW_NAME).is_file()


def test_a_folder_without_a_whole_case_is_used_again(download: Path, tmp_path: Path) -> None:
    kept = [label_of(download, number).read_bytes() for number in range(5)]
    for number in range(5):
        label_of(download, number).write_bytes(b"")
    with pytest.raises(ValueError, match="no case is whole"):
        prepare("kits23_ct", download, tmp_path / "out")
    for number in range(5):
        label_of(download, number).write_bytes(kept[number])
    assert len(names(prepare("kits23_ct", download, tmp_path / "out"))) == 5


def test_a_half_prepared_folder_is_not_taken_by_another_download(download: Path, tmp_path: Path) -> None:
    prepare("kits23_ct", download, tmp_path / "out")
    (tmp_path / "out" / "dataset.json").unlink()  # as after a kill
    with pytest.raises(
        ValueError, match="holds the data set 'kits23_ct' already, expected an empty folder for 'kits19"
    ):
        prepare("kits19_ct", download, tmp_path / "out")
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 5


def test_a_data_set_that_is_being_changed_has_no_description(
    download: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prepare("kits23_ct", download, out)
    labels = np.zeros(SHAPE, np.uint8)
    labels[0] = 1
    nib.save(nib.Nifti1Image(labels, np.eye(4)), label_of(download, 4))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as changed:
        changed.setattr("kprism_model.preparation.writing._write_label", killed)
        assert main(["prepare", "kits23_ct", str(download), "--out", str(out)]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert not (out / "dataset.json").exists()
    assert (prepare("kits23_ct", download, out).label("case_00004") == labels).all()


def test_only_one_run_at_a_time_prepares_in_a_folder(download: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another run prepares in this folder"):
        prepare("kits23_ct", download, out)
    os.close(descriptor)
    assert len(names(prepare("kits23_ct", download, out))) == 5


def test_data_sets_inside_of_the_download_are_not_read(download: Path, tmp_path: Path) -> None:
    first = prepare("kits23_ct", download, download / "out")
    inner = download / "out" / "case_00007"  # whatever a prepared folder holds
    inner.mkdir()
    for path in (image_of(download, 0), label_of(download, 0)):
        (inner / path.name).write_bytes(path.read_bytes())
    again = prepare("kits23_ct", download, download / "out")
    assert again.content == first.content
    assert len(names(again)) == 5


def test_a_seed_below_zero_is_named(download: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--seed must be 0 or more, got -1"):
        prepare("kits23_ct", download, tmp_path / "out", "--seed", "-1")


def test_the_first_line_names_the_data_set(download: Path, tmp_path: Path) -> None:
    prepare("kits23_ct", download, tmp_path / "out")
    lines = (tmp_path / "out" / "preparation.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"data set": "kits23_ct"}
    assert len(lines) == 6
