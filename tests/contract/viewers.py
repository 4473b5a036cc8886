# SPDX-License-Identifier: Apache-2.0
"""Requests and answers as the viewers make and read them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import requests

from benchmarks.live_server import LiveServer


def post_as_ohif(server: LiveServer, model: str, image: str, params: dict[str, Any]) -> requests.Response:
    """The request of OHIF's panel: one form field `params`, and what it always adds."""
    always = {
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    }
    return requests.post(
        f"{server.url}/infer/{model}",
        params={"image": image, "output": "image"},
        files={"params": (None, json.dumps({**params, **always}))},
        timeout=120,
    )


def read_as_ohif(content: bytes, image: Path) -> np.ndarray:
    """The mask (i, j, k); checks that header and bytes are what OHIF and others expect."""
    grid = nibabel.load(image).shape
    header, _, body = content.partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    assert fields["type"] == "uint8"
    assert fields["encoding"] == "raw"
    assert fields["sizes"].split() == [str(side) for side in grid]
    assert len(body) == np.prod(grid)
    parsed = nrrd.read_header(io.BytesIO(header + b"\n\n"))
    lps = np.diag([-1, -1, 1, 1]) @ nibabel.load(image).affine
    np.testing.assert_allclose(parsed["space directions"], lps[:3, :3].T, atol=1e-4)
    np.testing.assert_allclose(parsed["space origin"], lps[:3, 3], atol=1e-3)
    return np.frombuffer(body, np.uint8).reshape(grid, order="F")


def voxel_in(studies: Path, image: str, world: np.ndarray) -> list[int]:
    """The voxel of an image at a place given in millimetres (RAS+)."""
    inverse = np.linalg.inv(nibabel.load(studies / f"{image}.nii.gz").affine)
    return [round(float(index)) for index in (inverse @ [*world, 1])[:3]]
