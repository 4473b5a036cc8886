# SPDX-License-Identifier: Apache-2.0
"""Reads NIfTI, NRRD and pictures as `MedicalImage`; RequestError says why a file cannot be segmented.

The header of a file says how much memory its voxels take. A file that needs more than the limit is refused before its
voxels are read, and compressed data are decompressed only up to the size in the header.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import nibabel
import nrrd
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension, Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray
from PIL import Image

from kprism_model.orientation import stored_slice_axis
from lib.errors import NotFoundError, RequestError, TooLargeError
from lib.imaging.medical_image import MedicalImage, describe

NIFTI = (".nii.gz", ".nii")
NRRD = (".nrrd",)
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SUFFIXES = NIFTI + NRRD + PICTURES
"""Extensions of the files that can be read."""

LIMIT = 4 << 30
"""Bytes that the voxels of one file may take in memory, by default."""

MAX_HEADER = 16 << 20
"""Bytes before the voxels of a NIfTI file; a header that claims more is damaged."""

SCALED_BYTES = 4
"""Bytes of a value after scaling for the network: float32."""

COMMENT = 6
"""Code of NIfTI header extensions that hold text."""

RAS = ("right-anterior-superior", "ras")
"""Names of NIfTI's axes in NRRD headers."""

MIN_DETERMINANT = 1e-6
"""Axes lie in a plane if the determinant of their directions is smaller."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The axes of NRRD and DICOM run to left and posterior, those of NIfTI to right and anterior."""

_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    nrrd.NRRDError,
    Image.DecompressionBombError,
    zlib.error,
    EOFError,
    OSError,
    SyntaxError,
    LookupError,
    ValueError,
    OverflowError,
)


class Stored(NamedTuple):
    """Values (i, j[, k][, ...]), affine (RAS+), NIfTI header, whether colours are on the last axis, and `placed`."""

    array: NDArray[Any]
    affine: NDArray[Any]
    header: Nifti1Header | None
    colour: bool = False
    placed: bool = True


def suffix_of(path: Path) -> str:
    """The extension in lower case, with `.nii.gz` as one."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), path.suffix.lower())


def read_image(path: Path, name: str, limit: int = LIMIT) -> MedicalImage:
    """Read the image file `path`, which may take at most `limit` bytes in memory; `name` stands for it in messages.

    RequestError (NotFoundError if there is no file) for folders, unknown types, empty, damaged and too large files,
    more than three axes, values that are not real numbers, NaN or infinity, and images with a single value.
    """
    image = _read(path, name, Limit(limit, SCALED_BYTES))
    _check_intensities(image)
    return image


def read_mask(path: Path, name: str, limit: int = LIMIT) -> MedicalImage:
    """Read a mask or index map; RequestError as in `read_image`, and if a value is not an integer from 0 to 255."""
    image = _read(path, name, Limit(limit, 1))
    values = image.array
    if values.dtype == bool:
        values = values.view(np.uint8)
    elif image.is_colour or not _are_labels(values):
        raise RequestError(f"{name} is not a label map; expected one integer from 0 to 255 for each voxel")
    return replace(image, array=values.astype(np.uint8, copy=False))


def _are_labels(values: NDArray[Any]) -> bool:
    if values.dtype.kind == "f" and any((plane != np.rint(plane)).any() for plane in values):
        return False
    return bool(values.min() >= 0 and values.max() <= 255)


def _read(path: Path, name: str, limit: Limit) -> MedicalImage:
    if not path.exists():
        raise NotFoundError(f"{name}: the file does not exist")
    if path.is_dir():
        raise RequestError(f"{name} is a folder; expected one file of type {', '.join(SUFFIXES)}")
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise RequestError(f"{name} is of type {suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise RequestError(f"{name} is an empty file")
    reader = _read_nifti if suffix in NIFTI else _read_nrrd if suffix in NRRD else _read_picture
    try:
        stored = reader(path, limit)
    except RequestError as error:
        raise type(error)(f"{name} {error}") from error
    except _UNREADABLE as error:
        reason = str(error).replace(str(path), path.name).replace(str(path.parent), "").strip() or type(error).__name__
        raise RequestError(f"{name} is not a readable {suffix} file: {reason}") from error
    array, dimensions = _as_volume(stored, name)
    affine, usable = _usable(stored.affine)
    digest = content_digest(path)
    slice_axis, volumes = None, 1
    if stored.header is not None:
        slice_axis, volumes = stored_slice_axis(stored.header), _noted_volumes(stored.header, array.shape)
    placed = stored.placed and usable
    return MedicalImage(
        name, array, affine, dimensions, suffix, digest, stored.header, placed, slice_axis, volumes=volumes
    )


_VOLUMES = re.compile(rb"K-Prism: (\d{1,6}) volumes")


def note_volumes(header: Nifti1Header, volumes: int) -> None:
    """Note in a header, as a comment, that the slices are those of several volumes, one after the other along k."""
    header.extensions.append(Nifti1Extension("comment", f"K-Prism: {volumes} volumes".encode()))


def _noted_volumes(header: Nifti1Header, shape: tuple[int, ...]) -> int:
    """How many volumes a header notes; 1 if it notes none, or a number that does not divide the slices."""
    for extension in header.extensions:
        match = _VOLUMES.match(extension.get_content()) if extension.get_code() == COMMENT else None
        volumes = int(match[1]) if match else 1
        if volumes > 1 and shape[2] % volumes == 0:
            return volumes
    return 1


DETACHED = ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip")
"""NRRD fields that take voxels from another file, which could be any file of the server, or from another offset."""

PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")


def content_digest(path: Path) -> str:
    """A short digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read_nifti(path: Path, limit: Limit) -> Stored:
    _check_nifti_header(path, limit)
    image: Any = nibabel.load(path)  # typed as the base class, which has no voxels
    if not isinstance(image, nibabel.Nifti1Image):  # includes NIfTI-2, but not CIFTI
        raise RequestError(f"is {type(image).__name__}; expected a NIfTI volume")
    placed = image.header["sform_code"] > 0 or image.header["qform_code"] > 0
    array = _voxels(image.dataobj)
    if array.dtype.fields and tuple(array.dtype.fields) == ("R", "G", "B"):
        array = np.stack([array[channel] for channel in "RGB"], axis=-1)
        return Stored(array, image.affine, image.header, True, placed)
    return Stored(array, image.affine, image.header, False, placed)


def _check_nifti_header(path: Path, limit: Limit) -> None:
    """Check the header before nibabel reads the file, because nibabel reads as much as the header says."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
        start = stream.read(540)
    size = int.from_bytes(start[:4], "little")
    kind: type[Nifti1Header]
    kind, length = (Nifti2Header, 540) if size in (540, 0x1C020000) else (Nifti1Header, 348)
    header = kind(start[:length], check=False)
    if float(header["vox_offset"]) > MAX_HEADER:
        raise RequestError(
            f"claims {float(header['vox_offset']):g} bytes before its voxels; expected at most {MAX_HEADER}"
        )
    dtype = header.get_data_dtype()
    is_scaled = header.get_slope_inter() not in ((None, None), (1.0, 0.0))
    _check_size(header.get_data_shape(), 4 if is_scaled or dtype.kind == "f" else dtype.itemsize, limit)


def _voxels(stored: Any) -> NDArray[Any]:
    """The values of a NIfTI file; with a slope or an intercept in float32, half the size of nibabel's float64."""
    slope, inter = stored.slope, stored.inter
    raw: NDArray[Any] = np.asanyarray(stored.get_unscaled())
    if (slope, inter) == (1.0, 0.0):
        return raw
    scaled = np.empty(raw.shape, np.float32, order="F")
    for plane in range(raw.shape[-1]):
        scaled[..., plane] = raw[..., plane] * float(slope) + float(inter)
    return scaled


def _read_nrrd(path: Path, limit: Limit) -> Stored:
    with path.open("rb") as stream:
        header = nrrd.read_header(stream)
        for key in DETACHED:
            if header.get(key):
                raise RequestError(
                    f"names data outside of the file ({key}: {header[key]}); expected voxels in the file itself"
                )
        shape = tuple(int(side) for side in header["sizes"])
        itemsize = np.dtype(_NRRD_TYPES.get(header["type"], "V8")).itemsize
        _check_size(shape, itemsize, limit)
        array = _nrrd_voxels(header, stream, int(np.prod(shape)) * itemsize)
    spatial = np.array([kind in ("domain", "space") for kind in header.get("kinds", ["domain"] * array.ndim)])
    affine = np.eye(4)
    if "space directions" in header:
        directions = np.asarray(header["space directions"], float)
        spatial = np.isfinite(directions).all(axis=1)
        directions = directions[spatial][:3]
        origin = np.asarray(header.get("space origin", np.zeros(directions.shape[1])), float)
        affine[: directions.shape[1], : len(directions)] = directions.T
        affine[: len(origin), 3] = origin
    elif "spacings" in header:
        spacings = np.asarray(header["spacings"], float)[spatial][:3]
        affine[range(len(spacings)), range(len(spacings))] = spacings
    others = np.flatnonzero(~spatial)
    array = np.moveaxis(array, others, range(array.ndim - len(others), array.ndim))  # colour or time behind space
    colour = len(others) == 1 and array.shape[-1] in (3, 4) and array.dtype == np.uint8
    space = str(header.get("space", "left-posterior-superior")).lower()
    placed = "space directions" in header
    return Stored(array, affine if space in RAS else LPS_TO_RAS @ affine, None, colour, placed)


_NRRD_TYPES = nrrd.reader._TYPEMAP_NRRD2NUMPY

_INFLATERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    "gz": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    "bzip2": bz2.BZ2Decompressor,
    "bz2": bz2.BZ2Decompressor,
}


def _nrrd_voxels(header: dict[str, Any], stream: IO[bytes], size: int) -> NDArray[Any]:
    """The voxels after a header; pynrrd itself would decompress data of any size."""
    encoding = header["encoding"].lower()
    if encoding in _INFLATERS:
        inflated = _INFLATERS[encoding]().decompress(stream.read(), size)
        return np.asarray(nrrd.read_data({**header, "encoding": "raw"}, io.BytesIO(inflated), index_order="F"))
    return np.asarray(nrrd.read_data(header, stream, index_order="F"))


def _read_picture(path: Path, limit: Limit) -> Stored:
    # Pillow chooses the decoder by content, not by name; other decoders must not run.
    with Image.open(path, formats=PICTURE_FORMATS) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            raise RequestError(f"holds {frames} pictures; expected one")
        _check_size((*picture.size, len(picture.getbands())), 4 if picture.mode[0] in "IF" else 1, limit)
        plain = picture.mode in ("L", "RGB", "F") or picture.mode.startswith("I")
        pixels = np.asarray(picture if plain else picture.convert("L" if picture.mode in ("1", "LA") else "RGB"))
    return Stored(pixels.swapaxes(0, 1), LPS_TO_RAS.copy(), None, pixels.ndim == 3, placed=False)


class Limit(NamedTuple):
    """The bytes that a file may take, if each of its values takes at least `value` bytes in memory."""

    size: int
    value: int


def _check_size(shape: tuple[int, ...], voxel: int, limit: Limit) -> None:
    """TooLargeError for a file whose header claims more than the limit, at `voxel` bytes for each value."""
    if min(shape, default=0) < 1:
        raise RequestError(f"claims {describe(shape)} voxels; expected at least 1 along each axis")
    size = math.prod(int(side) for side in shape) * max(voxel, limit.value)
    if size > limit.size:
        raise TooLargeError(
            f"claims {describe(shape)} voxels, which take {size / 2**20:,.0f} MiB of memory; this server's limit for "
            f"one image is {limit.size / 2**20:,.0f} MiB (--conf cache_mb)"
        )


def _as_volume(stored: Stored, name: str) -> tuple[NDArray[Any], int]:
    """The array as (i, j, k) or (i, j, k, 3), and the number of spatial axes in the file."""
    array = stored.array
    if array.dtype.kind not in "buif":
        raise RequestError(f"{name} holds values of type {array.dtype}; expected real numbers")
    if array.dtype.kind == "f" and array.dtype != np.float32:
        array = array.astype(np.float32)
    if not stored.colour:
        array = array[..., None]
    *space, _ = array.shape
    while len(space) > 3 and space[-1] == 1:
        space.pop()
    if len(space) not in (2, 3):
        raise RequestError(f"{name} has {len(space)} axes ({describe(tuple(space))}); expected 2 or 3")
    array = array.reshape(*space, *[1] * (3 - len(space)), array.shape[-1])
    return array[..., :3] if stored.colour else array[..., 0], len(space)


def _usable(affine: NDArray[Any]) -> tuple[NDArray[np.float64], bool]:
    """The affine and True; if it cannot be inverted, an affine of 1 mm voxels and False."""
    affine = np.asarray(affine, np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if np.isfinite(affine).all() and spacing.all() and abs(np.linalg.det(affine[:3, :3] / spacing)) > MIN_DETERMINANT:
        return affine, True
    return LPS_TO_RAS.copy(), False


def _check_intensities(image: MedicalImage) -> None:
    values = image.array
    if values.dtype.kind == "f" and not np.isfinite(values.sum(dtype=np.float64)):  # a sum needs no memory
        broken = ~np.isfinite(values)
        if broken.any():
            first = tuple(int(index) for index in np.argwhere(broken)[0][:3])
            raise RequestError(
                f"{image.name} has {int(broken.sum())} voxels that are not finite numbers, the first at {list(first)} "
                f"({values[first]}); replace them before segmentation"
            )
    if values.min() == values.max():
        raise RequestError(f"{image.name} is constant: every voxel is {values.flat[0]:g}")
