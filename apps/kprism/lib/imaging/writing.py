# SPDX-License-Identifier: Apache-2.0
"""Writes an index map on the grid of its image, lossless, in the format that the client requests."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel
import nrrd
import numpy as np
from isal import igzip
from PIL import Image

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.medical_image import LPS_TO_RAS, MedicalImage, describe, planes_of
from lib.imaging.stored import opened
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


def write_mask(labels: SliceMap[np.uint8], image: MedicalImage, form: ResultFormat) -> Path:
    """Write `labels` on the image's grid to a new temporary file, which is the caller's to remove.

    Those of a part (see `MedicalImage.part`) are written on the grid of the whole.
    """
    if labels.orientation.shape != image.grid:
        shape = describe(labels.orientation.shape)
        raise ValueError(f"labels have {shape} voxels, {image.name} has {describe(image.grid)}")
    labels, image = image.on_whole(labels), image.whole or image
    values = labels.mapped(lambda slice_: slice_.astype(form.dtype, copy=False), np.dtype(form.dtype).type)
    handle, name = tempfile.mkstemp(suffix=form.extension, prefix="kprism-")
    os.close(handle)
    path = Path(name)
    try:
        _write(path, values, image, form)
    except BaseException:
        path.unlink()
        raise
    return path


def _write(path: Path, values: SliceMap[Any], image: MedicalImage, form: ResultFormat) -> None:
    if form.extension == ".png":
        picture = values.turned(image.orientation).on(0)
        Image.fromarray(np.ascontiguousarray(picture)).save(path, compress_level=1)
    elif form.extension == ".nrrd":
        _write_nrrd(path, values, image, form.compress)
    else:
        _write_nifti(path, values, image)


def _write_nifti(path: Path, values: SliceMap[Any], image: MedicalImage) -> None:
    header = None
    if image.header is not None:  # keeps qform and sform codes and the units
        header = image.header.copy()
        header.set_data_dtype(values.dtype)
        header["cal_min"] = header["cal_max"] = 0
    volume = values.volume()
    stored = nibabel.Nifti1Image(volume[:, :, 0] if image.dimensions == 2 else volume, image.affine, header)
    with opened(path, "gzip" if path.name.endswith(".gz") else "", "wb") as stream:
        stored.to_stream(stream)  # type: ignore[arg-type]


def _write_nrrd(path: Path, values: SliceMap[Any], image: MedicalImage, compress: bool) -> None:
    """Write NRRD with i as the fastest axis: OHIF copies the bytes after the header unchanged."""
    header: dict[str, Any] = {"encoding": "gzip" if compress else "raw"}
    if image.dimensions == 2:
        header["spacings"] = np.array(image.spacing[:2])
    else:
        lps = LPS_TO_RAS @ image.affine
        header |= {
            "space": "left-posterior-superior",
            "space directions": lps[:3, :3].T,
            "space origin": lps[:3, 3],
            "kinds": ["domain"] * 3,
        }
    with path.open("wb") as stream:
        stream.write(_nrrd_header(header, image.grid[: image.dimensions], values.dtype))
        if compress:
            stream.write(igzip.compress(values.volume().tobytes(order="F"), compresslevel=1))
        else:
            _write_planes(stream, values, image)


def _nrrd_header(header: dict[str, Any], sizes: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The text before the voxels of an NRRD file, by pynrrd, which writes no header without voxels."""
    one, text = (1,) * len(sizes), io.BytesIO()
    nrrd.write(text, np.zeros(one, dtype), header, index_order="F")
    written = text.getvalue().partition(b"\n\n")[0]
    line = b"\nsizes: " + " ".join(map(str, one)).encode() + b"\n"
    return written.replace(line, b"\nsizes: " + " ".join(map(str, sizes)).encode() + b"\n") + b"\n\n"


def _write_planes(stream: IO[bytes], values: SliceMap[Any], image: MedicalImage) -> None:
    """Write voxels as they are stored, k the slowest; the file has holes where a plane is empty."""
    planes = values.turned(planes_of(image.grid))
    start, size = stream.tell(), planes.size[0] * planes.size[1] * planes.dtype.itemsize
    stream.truncate(start + size * image.grid[2])
    for k in planes.filled:
        stream.seek(start + k * size)
        stream.write(np.ascontiguousarray(planes.on(k)).tobytes())
