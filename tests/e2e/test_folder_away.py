# SPDX-License-Identifier: Apache-2.0
"""The folder of studies goes away while the server runs, and comes back: nothing is written to its place meanwhile."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests

import tests.unit.dicom_files as dicom_files
from lib.dicom.open_store import check_folder
from tests.e2e.site import PLACE, Site, as_file, get, submit, wait


def nothing(studies: Path) -> None:
    """As when a folder was moved."""


def mount_point(studies: Path) -> None:
    """As when a share is not mounted."""
    studies.mkdir()


def dangling(studies: Path) -> None:
    """As when the target of a link is gone."""
    studies.symlink_to(studies.with_name("nowhere"))


@pytest.mark.parametrize("instead", [nothing, mount_point, dangling])
def test_a_folder_that_is_away_for_a_while(tmp_path: Path, instead: Callable[[Path], None]) -> None:
    site = Site(tmp_path)
    away = tmp_path / "away"
    new = as_file(np.random.default_rng(1).normal(100, 5, (8, 8, 3)).astype(np.float32))
    with site.serve() as server:
        assert get(server, "/datastore/")["total"] == 6
        site.studies.rename(away)
        instead(site.studies)
        time.sleep(1)  # the server looks at the folder by itself
        for answer in (
            requests.put(f"{server.url}/datastore/image?image=new", files={"file": ("n.nii", new)}, timeout=60),
            requests.post(f"{server.url}/activelearning/first", json={}, timeout=60),
            requests.get(f"{server.url}/kprism/api/status", timeout=60),
        ):
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 503:
                assert f"the folder of studies {site.studies} is not there" in answer.json()["detail"]
        stored = requests.put(f"{server.url}/datastore/image?image=new", files={"file": ("n.nii", new)}, timeout=60)
        assert stored.status_code == 503
        assert submit(server, "a", site.labels["a"]).status_code in (404, 503)
        left = sorted(path.name for path in site.studies.rglob("*")) if site.studies.is_dir() else []
        assert not {"new.nii", "a.nii", "datastore_v2.json"} & set(left)
        if site.studies.is_symlink():
            site.studies.unlink()
        elif site.studies.is_dir():
            site.studies.rename(tmp_path / "unmounted")
        away.rename(site.studies)
        wait(lambda: submit(server, "a", site.labels["a"]).status_code == 200, server)
        wait(lambda: get(server, "/datastore/")["total"] == 6, server)
        assert json.loads((site.studies / "datastore_v2.json").read_text())["objects"].keys() == set("abcdef")
    stored = nibabel.load(site.studies / "labels" / "final" / "a.nii")
    assert np.array_equal(stored.get_fdata(), nibabel.Nifti1Image.from_bytes(site.labels["a"]).get_fdata())
    assert np.allclose(stored.affine, PLACE)


@pytest.mark.parametrize("names", [("a.nii.gz",), ("b.PNG", "sub/c.nii"), ()])
def test_a_folder_that_cannot_be_written_to_is_told(
    tmp_path: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"image")
    check_folder(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # the tests may run as root
    with pytest.raises(ValueError, match=f"the folder of studies {tmp_path} cannot be written to"):
        check_folder(tmp_path)
    (tmp_path / "DICOM").mkdir()
    for number, image in enumerate(dicom_files.volume("CT", (8, 8, 2), "one")):
        image.save_as(tmp_path / "DICOM" / str(number), write_like_original=False)
    if any("/" not in name for name in names):
        with pytest.raises(ValueError, match="images other than DICOM"):
            check_folder(tmp_path)
    else:
        check_folder(tmp_path)
