# SPDX-License-Identifier: Apache-2.0
"""Writes an index map on the grid of its image, lossless, in the format that the client requests."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel
import nrrd
import numpy as np
from isal import igzip, isal_zlib
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray
from PIL import Image

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.medical_image import LPS_TO_RAS, MedicalImage, describe, planes_of
from lib.imaging.metaimage import LOCAL
from lib.imaging.stored import opened
from lib.options import as_bool

EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".mha", ".png")
DTYPES = ("uint8", "uint16", "int16", "int32", "float32")
PNG_DTYPES = ("uint8", "uint16")
METAIMAGE_TYPES = {
    "uint8": "MET_UCHAR",
    "uint16": "MET_USHORT",
    "int16": "MET_SHORT",
    "int32": "MET_INT",
    "float32": "MET_FLOAT",
}


@dataclass(frozen=True)
class ResultFormat:
    """File extension, value type, and whether `.nrrd` and `.mha` are compressed (`.nii.gz` and `.png` always are).

    They are compressed by default; OHIF requests raw NRRD files.
    """

    extension: str
    dtype: str = "uint8"
    compress: bool = True

    @classmethod
    def parse(cls, params: Mapping[str, Any], image: MedicalImage) -> ResultFormat:
        """From MONAI Label's `result_extension`, `result_dtype` and `result_compress`.

        Without `result_extension` the answer has the image's own type; it has PNG if that type is lossy, and `.mha`
        instead of `.mhd`, which needs a second file.
        """
        own = ".mha" if image.suffix == ".mhd" else image.suffix
        extension = params.get("result_extension") or (own if own in EXTENSIONS else ".png")
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
        picture = values.volume().squeeze(image.orientation.axes[0])  # its columns and rows are those of the file
        Image.fromarray(np.ascontiguousarray(picture.T)).save(path, compress_level=1)
    elif form.extension == ".nrrd":
        _write_nrrd(path, values, image, form.compress)
    elif form.extension == ".mha":
        _write_mha(path, values, image, form.compress)
    else:
        _write_nifti(path, values, image)


def _write_nifti(path: Path, values: SliceMap[Any], image: MedicalImage) -> None:
    """Write NIfTI; a header of the image states the same places in the mask, so that every reader finds it there."""
    header: Nifti1Header | None = None
    affine: NDArray[np.float64] | None = image.affine
    if image.header is not None:
        header, affine = image.header.copy(), None
        header.set_data_dtype(values.dtype)
        header["cal_min"] = header["cal_max"] = 0
    volume = values.volume()
    stored = nibabel.Nifti1Image(volume[:, :, 0] if image.dimensions == 2 else volume, affine, header)
    with opened(path, "gzip" if path.name.endswith(".gz") else "", "wb") as stream:
        stored.to_stream(stream)  # type: ignore[arg-type]


def _write_mha(path: Path, values: SliceMap[Any], image: MedicalImage, compress: bool) -> None:
    """Write MetaImage, where ITK has read the image."""
    axes = image.dimensions
    lps, spacing = _in_lps(image)
    body = isal_zlib.compress(values.volume().tobytes(order="F"), 1) if compress else b""
    fields: dict[str, Any] = {
        "ObjectType": "Image",
        "NDims": axes,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": compress,
        **({"CompressedDataSize": len(body)} if compress else {}),
        "TransformMatrix": _text((lps[:axes, :axes] / spacing[:axes]).T.ravel()),
        "Offset": _text(lps[:axes, 3]),
        "ElementSpacing": _text(spacing[:axes]),
        "DimSize": _text(image.grid[:axes]),
        "ElementType": METAIMAGE_TYPES[values.dtype.name],
        "ElementDataFile": LOCAL,
    }
    with path.open("wb") as stream:
        stream.write("".join(f"{key} = {value}\n" for key, value in fields.items()).encode())
        if compress:
            stream.write(body)
        else:
            _write_planes(stream, values, image)


def _in_lps(image: MedicalImage) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The affine where ITK has read an image, in LPS, and the distances of voxels along i, j and k."""
    lps = LPS_TO_RAS @ image.affine_in_itk
    return lps, np.linalg.norm(lps[:3, :3], axis=0)


def _text(numbers: Iterable[Any]) -> str:
    return " ".join(f"{number:.17g}" for number in numbers)


def _write_nrrd(path: Path, values: SliceMap[Any], image: MedicalImage, compress: bool) -> None:
    """Write NRRD with i as the fastest axis: OHIF copies the bytes after the header unchanged."""
    header: dict[str, Any] = {"encoding": "gzip" if compress else "raw"}
    axes, lps = image.dimensions, LPS_TO_RAS @ image.affine_in_itk
    space = 2 if axes == 2 and image.suffix != ".nrrd" else 3  # ITK reads pictures in spaces of two axes only
    if axes == 3 or (image.placed and np.linalg.det(lps[:space, :space])):
        header |= {
            **({"space": "left-posterior-superior"} if space == 3 else {"space dimension": space}),
            "space directions": lps[:space, :axes].T,
            "space origin": lps[:space, 3],
            "kinds": ["domain"] * axes,
        }
    else:
        header["spacings"] = np.array(image.spacing[:axes])
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
