# SPDX-License-Identifier: Apache-2.0
"""A server on small files of many kinds, with a tiny network: what is checked does not depend on what it has learnt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image

from benchmarks.live_server import LiveServer
from tests.interop import small_files
from tests.interop.other_readers import LPS
from tests.interop.small_files import AFFINE, ORIENTATIONS
from tests.tiny_network import copy_weights

PICTURE = np.random.default_rng(1).integers(0, 256, (40, 56), np.uint8)


def _studies(folder: Path) -> Path:
    """Volumes whose voxel `MARK` lies at one place in the patient, and a picture that lies on its side."""
    folder.mkdir()
    for number, row in enumerate((0, 11, 33)):
        array, affine = small_files.stored(("uint8", "uint16", "float32")[number], ORIENTATIONS[row])
        small_files.save_nifti(folder / f"nifti{row}.nii.gz", array, affine)
        small_files.save_nrrd(folder / f"nrrd{row}.nrrd", array, affine)
        small_files.save_metaimage(folder / f"one{row}.mha", array, affine, compress=bool(number % 2))
        small_files.save_metaimage(folder / f"two{row}.mhd", array, affine, compress=bool(number % 2))
    array, affine = small_files.stored("int16", ORIENTATIONS[5])
    for save, name in (
        (small_files.save_nifti, "upper.NII.GZ"),
        (small_files.save_nrrd, "upper2.NRRD"),
        (small_files.save_metaimage, "upper3.MHA"),
    ):
        lower = folder / name.lower()
        save(lower, array, affine)
        lower.rename(folder / name)
    for kind, codes, unit in (("shifted", (1, 2), "mm"), ("sheared", (1, 2), "mm"), ("same", (1, 1), "micron")):
        nibabel.save(small_files.with_forms(kind, *codes, unit, small_files.voxels()), folder / f"{kind}-{unit}.nii.gz")
    las = LPS[:3, :3] @ np.diag([1.0, -1, 1])
    header = {"space": "left-anterior-superior", "kinds": ["domain"] * 3}
    header |= {"space directions": (las @ AFFINE[:3, :3]).T, "space origin": las @ AFFINE[:3, 3]}
    nrrd.write(str(folder / "las.nrrd"), small_files.voxels(), header, index_order="F")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(folder / "side.png", exif=exif)
    (folder / "stolen.mhd").write_text(
        "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = /etc/passwd\n"
    )
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The server; its studies are `server.studies`."""
    folder = tmp_path_factory.mktemp("interop")
    conf = {"model_path": str(copy_weights(folder / "weights")), "train_after": "0"}
    with LiveServer(_studies(folder / "studies"), conf=conf) as running:
        yield running
