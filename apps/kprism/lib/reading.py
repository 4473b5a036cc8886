# SPDX-License-Identifier: Apache-2.0
"""Reading NIfTI, NRRD and pictures into one structure; what cannot be segmented is refused with a sentence."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import nrrd
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray
from PIL import Image

from lib.errors import NotFoundError, RequestError
from lib.images import MedicalImage, describe

NIFTI = (".nii.gz", ".nii")
NRRD = (".nrrd",)
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SUFFIXES = NIFTI + NRRD + PICTURES
"""Extensions of the files that can be read."""

MAX_VOXELS = 1 << 30
"""More than this is a damaged header or no medical image."""

RAS = ("right-anterior-superior", "ras")
"""Names of NIfTI's axes in NRRD headers."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NRRD and DICOM count towards left and posterior, NIfTI towards right and anterior."""

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
    """Values of a file (i, j[, k][, ...]), affine (RAS+), NIfTI header, whether colours are on the last axis."""

    array: NDArray[Any]
    affine: NDArray[Any]
    header: Nifti1Header | None
    colour: bool = False


def suffix_of(path: Path) -> str:
    """The extension in lower case, with `.nii.gz` as one."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), path.suffix.lower())


def read_image(path: Path, name: str) -> MedicalImage:
    """Read the image file `path`; `name` stands for it in messages.

    RequestError (NotFoundError where there is no file) for folders, unknown types, empty and damaged files, more than
    three axes, other than real numbers, NaN or infinity, and images of one single value.
    """
    image = _read(path, name)
    _check_intensities(image)
    return image


def read_mask(path: Path, name: str) -> MedicalImage:
    """Read a mask or index map; RequestError as in `read_image`, and if a value is not an integer from 0 to 255."""
    image = _read(path, name)
    values = image.array
    if image.is_colour or values.min() < 0 or values.max() > 255 or (values != np.rint(values)).any():
        raise RequestError(f"{name} is no label map: it must hold one integer from 0 to 255 a voxel")
    return MedicalImage(
        name, values.astype(np.uint8), image.affine, image.dimensions, image.suffix, image.digest, image.header
    )


def _read(path: Path, name: str) -> MedicalImage:
    if not path.exists():
        raise NotFoundError(f"{name}: there is no such file")
    if path.is_dir():
        raise RequestError(f"{name} is a folder; expected one file of type {', '.join(SUFFIXES)}")
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise RequestError(f"{name} is of type {suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise RequestError(f"{name} is an empty file")
    reader = _read_nifti if suffix in NIFTI else _read_nrrd if suffix in NRRD else _read_picture
    try:
        stored = reader(path)
    except RequestError as error:
        raise RequestError(f"{name} {error}") from error
    except _UNREADABLE as error:
        reason = str(error).replace(str(path), path.name).replace(str(path.parent), "").strip() or type(error).__name__
        raise RequestError(f"{name} is not a readable {suffix} file: {reason}") from error
    array, dimensions = _as_volume(stored, name)
    return MedicalImage(name, array, _usable(stored.affine), dimensions, suffix, content_digest(path), stored.header)


DETACHED = ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip")
"""NRRD fields that take voxels from another file, or from elsewhere than behind the header: any file of the server."""

PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")


def content_digest(path: Path) -> str:
    """A short digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read_nifti(path: Path) -> Stored:
    image: Any = nibabel.load(path)  # typed as the base class, which has no voxels
    if not isinstance(image, nibabel.Nifti1Image):  # of which NIfTI-2 is a kind, CIFTI is not
        raise RequestError(f"is {type(image).__name__}; expected a NIfTI volume")
    _check_size(image.shape)
    array = np.asanyarray(image.dataobj)
    if array.dtype.fields and tuple(array.dtype.fields) == ("R", "G", "B"):
        return Stored(np.stack([array[channel] for channel in "RGB"], axis=-1), image.affine, image.header, True)
    return Stored(array, image.affine, image.header)


def _read_nrrd(path: Path) -> Stored:
    header = nrrd.read_header(str(path))
    for key in DETACHED:
        if header.get(key):
            raise RequestError(
                f"names data outside of the file ({key}: {header[key]}); expected voxels in the file itself"
            )
    _check_size(tuple(int(side) for side in header["sizes"]))
    array, header = nrrd.read(str(path), index_order="F")
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
    return Stored(array, affine if space in RAS else LPS_TO_RAS @ affine, None, colour)


def _read_picture(path: Path) -> Stored:
    # Pillow goes by content, not by name: only what the names promise, for other formats run other decoders.
    with Image.open(path, formats=PICTURE_FORMATS) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            raise RequestError(f"holds {frames} pictures; expected one")
        plain = picture.mode in ("L", "RGB", "F") or picture.mode.startswith("I")
        pixels = np.asarray(picture if plain else picture.convert("L" if picture.mode in ("1", "LA") else "RGB"))
    return Stored(pixels.swapaxes(0, 1), LPS_TO_RAS.copy(), None, pixels.ndim == 3)


def _check_size(shape: tuple[int, ...]) -> None:
    if min(shape, default=0) < 1 or np.prod([float(side) for side in shape]) > MAX_VOXELS:
        raise RequestError(f"claims {describe(shape)} voxels; expected at least 1 along each axis and at most 2^30")


def _as_volume(stored: Stored, name: str) -> tuple[NDArray[Any], int]:
    """The array as (i, j, k) or (i, j, k, 3), and how many axes of space the file had."""
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


def _usable(affine: NDArray[Any]) -> NDArray[np.float64]:
    """The affine, or voxels of 1 mm where the file gives none that can be inverted."""
    affine = np.asarray(affine, np.float64)
    usable = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12
    return affine if usable else LPS_TO_RAS.copy()


def _check_intensities(image: MedicalImage) -> None:
    values = image.array
    if values.dtype.kind == "f":
        broken = ~np.isfinite(values)
        if broken.any():
            first = tuple(int(index) for index in np.argwhere(broken)[0][:3])
            raise RequestError(
                f"{image.name} has {int(broken.sum())} voxels that are not finite numbers, the first at {list(first)} "
                f"({values[first]}); replace them before segmentation"
            )
    if values.min() == values.max():
        raise RequestError(f"{image.name} is constant: every voxel is {values.flat[0]:g}")
