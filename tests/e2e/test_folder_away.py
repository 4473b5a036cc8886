# SPDX-License-Identifier: Apache-2.0
"""The folder of studies goes away while the server runs, and comes back: nothing is written to its place meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests

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
