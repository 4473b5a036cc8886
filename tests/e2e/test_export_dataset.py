# SPDX-License-Identifier: Apache-2.0
"""`./kprism export-dataset` as a user calls it: beside a running server, and stopped at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from benchmarks.places import ROOT
from tests.e2e.site import NEW, PLACE, Site, block, get, submit
from tests.tiny_network import WEIGHTS
from tests.unit.export_sites import tree

PATIENCE = 120.0


def command(studies: Path, out: Path, *more: str) -> list[str]:
    words = ["--studies", str(studies), "--format", "nnunet", "--out", str(out), "--conf", "model_path", str(WEIGHTS)]
    return [str(ROOT / "kprism"), "export-dataset", *words, *more]


def test_labels_of_a_running_server_are_exported_and_it_goes_on(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.serve() as server:
        for name in "abc":
            assert submit(server, name, site.labels[name]).ok
        before = {name: stamp for name, stamp in tree(site.studies).items() if not name.startswith(".")}
        done = subprocess.run(
            command(site.studies, tmp_path / "out"), capture_output=True, text=True, timeout=600, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert before == {name: stamp for name, stamp in tree(site.studies).items() if not name.startswith(".")}
        assert submit(server, "d", site.labels["d"]).ok
        assert get(server, "/datastore/")["completed"] == 4
    folder = tmp_path / "out" / "Dataset501_KPrism"
    assert "Wrote" in done.stdout and "nnUNetv2_plan_and_preprocess -d 501" in done.stdout
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, NEW: 1}
    found = json.loads((folder / "provenance.json").read_text())["cases"]
    assert [(case["image"], case["way"]) for case in found] == [(name, "submitted to the server") for name in "abc"]
    for number, name in enumerate("abc", 1):
        label = nibabel.load(folder / "labelsTr" / f"case_{number:04}.nii.gz")
        np.testing.assert_array_equal(
            np.asarray(label.dataobj), np.asarray(nibabel.Nifti1Image.from_bytes(site.labels[name]).dataobj)
        )
        np.testing.assert_array_equal(label.affine, PLACE)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies that take a while: volumes of noise, with labels put there by hand."""
    studies = tmp_path_factory.mktemp("many") / "studies"
    final = studies / "labels" / "final"
    final.mkdir(parents=True)
    rng = np.random.default_rng(0)
    label = np.repeat(block(30, 30), 60, axis=2)
    for number in range(12):
        noise = rng.normal(100, 5, label.shape).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(noise, PLACE), studies / f"{number}.nii")
        nibabel.save(nibabel.Nifti1Image(label, PLACE), final / f"{number}.nii")
    (studies / "labels.json").write_text(json.dumps({"labels": {"1": "cyst"}}))
    return studies


def begun(process: subprocess.Popen[str], out: Path, *known: Path) -> Path:
    """The folder in which an export is made, other than the `known` ones, once its first image is written."""
    deadline = time.monotonic() + PATIENCE
    while not (found := {image.parent for image in out.glob(".kprism-export-*/image_*")}.difference(known)):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.01)
    [folder] = found
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_is_stopped_leaves_nothing(number: signal.Signals, many: Path, tmp_path: Path) -> None:
    before, out = tree(many), tmp_path / "deep" / "out"
    with subprocess.Popen(
        command(many, out),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a test run in the background ignores SIGINT
    ) as process:
        begun(process, out)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "kprism: interrupted; nothing was written" in errors and "Traceback" not in errors
    assert not (tmp_path / "deep").exists()
    assert tree(many) == before


def test_what_a_kill_leaves_is_removed_by_the_next(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command(many, out), stderr=subprocess.PIPE, text=True) as process:
        left = begun(process, out)
        process.kill()
    assert list(out.iterdir()) == [left]
    os.utime(left, (time.time() - 3600,) * 2)
    with subprocess.Popen(command(many, out, "--name", "Other"), stderr=subprocess.PIPE, text=True) as process:
        alive = begun(process, out, left)
        assert not left.exists()
        os.utime(alive, (time.time() - 3600,) * 2)
        done = subprocess.run(command(many, out, "--id", "7"), capture_output=True, text=True, timeout=600)
        _, errors = process.communicate(timeout=600)
    assert (done.returncode, process.returncode) == (0, 0), (done.stderr, errors)
    assert sorted(path.name for path in out.iterdir()) == ["Dataset007_KPrism", "Dataset501_Other"]
    assert len(list((out / "Dataset501_Other" / "labelsTr").iterdir())) == 12
