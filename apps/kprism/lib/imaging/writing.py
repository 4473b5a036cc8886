# SPDX-License-Identifier: Apache-2.0
"""Writes an index map on the grid of its image, lossless, in the format that the client requests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lib.errors import RequestError
from lib.imaging.medical_image import MedicalImage, describe
from lib.imaging.reading import LPS_TO_RAS
from lib.options import as_bool

EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".png")
DTYPES = ("uint8", "uint16", "int16", "int32", "float32")
PNG_DTYPES = ("uint8", "uint16")


@dataclass(frozen=True)
class ResultFormat:
    """File extension, value type, and whether NRRD files are compressed (`.nii.gz` and `.png` always are).

    NRRD files are compressed by default; OHIF requests raw ones.
    """

    extension: str
    dtype: str = "uint8"
    compress: bool = True

    @classmethod
    def parse(cls, params: Mapping[str, Any], image: MedicalImage) -> ResultFormat:
        """From MONAI Label's `result_extension`, `result_dtype` and `result_compress`.

        Without `result_extension` the answer has the image's own type, or PNG if that type is lossy.
        """
        extension = params.get("result_extension") or (image.suffix if image.suffix in EXTENSIONS else ".png")
        dtype = params.get("result_dtype") or "uint8"
        if isinstance(extension, str) and not extension.startswith("."):
            extension = f".{extension}"
        if extension not in EXTENSIONS:
            raise RequestError(f"result_extension is {extension!r}; expected one of {', '.join(EXTENSIONS)}")
        known = PNG_DTYPES if extension == ".png" else DTYPES
        if dtype not in known:
            raise RequestError(f"result_dtype is {dtype!r}; for {extension} expected one of {', '.join(known)}")
        if extension == ".png" and image.slices > 1:
            raise RequestError(
                f"result_extension '.png' cannot hold the {image.slices} slices of {image.name}; "
                "ask for '.nrrd' or '.nii.gz'"
            )
        return cls(extension, dtype, as_bool("result_compress", params.get("result_compress", True)))


def write_mask(labels: NDArray[np.uint8], image: MedicalImage, form: ResultFormat) -> Path:
    """Write `labels` (i, j, k) on the image's grid to a new temporary file, which is the caller's to remove.

    Those of a part (see `MedicalImage.part`) are written on the grid of the whole.
    """
    if labels.shape != image.grid:
        raise ValueError(f"labels have {describe(labels.shape)} voxels, {image.name} has {describe(image.grid)}")
    if image.whole is not None:
        labels, image = image.on_whole(labels), image.whole
    handle, name = tempfile.mkstemp(suffix=form.extension, prefix="kprism-")
    os.close(handle)
    path = Path(name)
    try:
        _write(path, labels.astype(form.dtype, copy=False), image, form)
    except BaseException:
        path.unlink()
        raise
    return path


def _write(path: Path, values: NDArray[Any], image: MedicalImage, form: ResultFormat) -> None:
    if form.extension == ".png":
        rows_and_columns = np.ascontiguousarray(image.to_slices(values)[0])
        Image.fromarray(rows_and_columns).save(path)
    elif form.extension == ".nrrd":
        _write_nrrd(path, values, image, form.compress)
    else:
        _write_nifti(path, values, image)


def _write_nifti(path: Path, values: NDArray[Any], image: MedicalImage) -> None:
    header = None
    if image.header is not None:  # keeps qform and sform codes and the units
        header = image.header.copy()
        header.set_data_dtype(values.dtype)
        header["cal_min"] = header["cal_max"] = 0
    stored = values[:, :, 0] if image.dimensions == 2 else values
    nibabel.save(nibabel.Nifti1Image(stored, image.affine, header), path)


def _write_nrrd(path: Path, values: NDArray[Any], image: MedicalImage, compress: bool) -> None:
    """Write NRRD with i as the fastest axis: OHIF copies the bytes after the header unchanged."""
    lps = LPS_TO_RAS @ image.affine
    header: dict[str, Any] = {"encoding": "gzip" if compress else "raw", "endian": "little"}
    if image.dimensions == 2:
        values = values[:, :, 0]
        header["spacings"] = np.array(image.spacing[:2])
    else:
        header |= {
            "space": "left-posterior-superior",
            "space directions": lps[:3, :3].T,
            "space origin": lps[:3, 3],
            "kinds": ["domain"] * 3,
        }
    nrrd.write(str(path), values, header, index_order="F", compression_level=1)
