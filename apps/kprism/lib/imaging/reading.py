# SPDX-License-Identifier: Apache-2.0
"""Reads NIfTI, NRRD, MetaImage and pictures as `MedicalImage`; RequestError says why a file cannot be segmented.

The header of a file says how much room its voxels take. A file that needs more than the limit is refused before its
voxels are read, and compressed data are decompressed only up to the size in the header.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import nrrd
import numpy as np
from isal.igzip_lib import IsalError
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from kprism_model.intensity import rescaled
from kprism_model.orientation import stored_slice_axis
from lib.errors import NotFoundError, RequestError
from lib.imaging.file_labels import FileLabels
from lib.imaging.mapped import Allocate, in_memory
from lib.imaging.medical_image import LPS_TO_RAS, MedicalImage
from lib.imaging.metaimage import data_file, read_metaimage
from lib.imaging.nifti import noted_volumes, read_nifti
from lib.imaging.nrrd_files import read_nrrd
from lib.imaging.pictures import read_picture
from lib.imaging.stored import CHUNK, Room, Stored, check_axes
from lib.imaging.wide_labels import MAX_VALUE, numbered

NIFTI = (".nii.gz", ".nii")
NRRD = (".nrrd",)
METAIMAGE = (".mha", ".mhd")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SUFFIXES = NIFTI + NRRD + METAIMAGE + PICTURES
"""Extensions of the files that can be read."""

LIMIT = 4 << 30
"""Bytes that the voxels of one file may take, by default."""

MAX_FLOAT = 2**24
"""Whole numbers below this are exact in 32-bit floats, in which real numbers are kept."""

ROUNDING = 1e-3
"""A value of a label map may differ by this much from a whole number, because files with a slope round."""

MAX_ROUNDING = 0.05
"""A label map in integers with a slope may differ by half a step of its slope, but by no more than this."""

SPACINGS = (1e-6, 1e6)
"""Least and greatest distance of voxels, in millimetres, that counts as a place."""

MAX_ORIGIN = 1e6
"""Coordinates of the first voxel, in millimetres, beyond which 32 bits cannot tell one voxel from the next."""

MIN_DETERMINANT = 1e-6
"""Axes lie in a plane if the determinant of their directions is smaller."""

_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    nrrd.NRRDError,
    zlib.error,
    IsalError,
    EOFError,
    OSError,
    SyntaxError,
    LookupError,
    ValueError,
    OverflowError,
)


def suffix_of(path: Path) -> str:
    """The extension in lower case, with `.nii.gz` as one."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), path.suffix.lower())


def read_image(
    path: Path, name: str, limit: int = LIMIT, allocate: Allocate = in_memory, memory: int = LIMIT
) -> MedicalImage:
    """Read the image file `path`, whose voxels may take at most `limit` bytes; `name` stands for it in messages.

    `allocate` makes their array. A picture may take `memory` bytes while it is decoded.

    RequestError (NotFoundError if there is no file) for folders, unknown types, empty, damaged and too large files,
    more than three axes, values that are not real numbers, NaN or infinity, images with a single value, and
    segmentations of 3D Slicer.
    """
    image = _read(path, name, Room(allocate, limit, memory))
    if image.file_labels is not None and image.file_labels.names:
        first = next(iter(image.file_labels.names.values()))
        raise RequestError(
            f"{name} is a segmentation: it names its segments, the first {first!r}; expected an image (a segmentation "
            "is a label: it belongs into labels/final, under the name of its image)"
        )
    _check_intensities(image)
    return image


def read_mask(
    path: Path, name: str, limit: int = LIMIT, allocate: Allocate = in_memory, memory: int = LIMIT
) -> MedicalImage:
    """Read a mask or index map; RequestError as in `read_image`, and if a value is not an integer from 0.

    Pixels of a palette are its indices; a colour image whose channels are equal is a grey one. Where values are above
    255, the voxels are numbered 1, 2, ... and `file_labels` has the values.
    """
    image = _read(path, name, Room(allocate, limit, memory), is_mask=True)
    is_plain = image.array.dtype == np.uint8 and image.rescale == (1.0, 0.0)
    if is_plain and not image.is_colour:
        return image
    labels = allocate(image.grid, np.uint8)
    for k in range(image.grid[2]):
        plane = _label_plane(image, k)
        if plane.max(initial=0) > np.iinfo(np.uint8).max:
            return _numbered(image, allocate)
        labels[:, :, k] = plane
    return replace(image, array=labels, rescale=(1.0, 0.0))


def _numbered(image: MedicalImage, allocate: Allocate) -> MedicalImage:
    try:
        labels, values = numbered(lambda k: _label_plane(image, k), image.grid, allocate)
    except RequestError as error:
        raise RequestError(f"{image.name} {error}") from error
    file_labels = replace(image.file_labels or FileLabels(), values=values)
    return replace(image, array=labels, rescale=(1.0, 0.0), file_labels=file_labels)


def _label_plane(image: MedicalImage, k: int) -> NDArray[Any]:
    """The values (i, j) of the plane k of a label map, whole numbers from 0; RequestError if they are not."""
    plane = _grey(image, k) if image.is_colour else image.array[:, :, k]
    is_plain = image.array.dtype == np.uint8 and image.rescale == (1.0, 0.0)
    return plane if is_plain else _whole(rescaled(plane, image.rescale), image, k)


def _grey(image: MedicalImage, k: int) -> NDArray[Any]:
    """The plane k of a label map that is stored in colour; RequestError where its channels differ."""
    plane = image.array[:, :, k]
    places = np.argwhere((plane[..., 1:] != plane[..., :1]).any(axis=-1))
    if len(places):
        i, j = places[0].tolist()
        raise RequestError(
            f"{image.name} is in colour: it is {plane[i, j].tolist()} at {[i, j, k]}; expected one integer "
            "from 0 for each voxel, as grey values or as the indices of a palette"
        )
    return plane[..., 0]


def _whole(plane: NDArray[Any], image: MedicalImage, k: int) -> NDArray[Any]:
    """The values (i, j) of the plane k, rounded; RequestError names one that is no integer from 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        labels = np.rint(plane)
        step = abs(image.rescale[0]) / 2 if image.array.dtype.kind in "ui" else 0.0
        is_whole = np.abs(plane - labels) <= max(ROUNDING, min(step, MAX_ROUNDING))
        usable = is_whole & (labels >= 0) & (labels < MAX_VALUE)
    if not usable.all():
        i, j = np.argwhere(~usable)[0].tolist()
        raise RequestError(
            f"{image.name} is not a label map: it is {plane[i, j]:.7g} at {[i, j, k]}; expected one integer from 0 for "
            "each voxel"
        )
    if image.array.dtype.kind == "f" and labels.max(initial=0) >= MAX_FLOAT:
        raise RequestError(
            f"{image.name} holds {labels.max():.0f} as a floating-point number; expected values below {MAX_FLOAT}, or "
            "integers"
        )
    return np.asarray(labels)


def files_of(path: Path) -> list[Path]:
    """The files that hold an image: the one at `path`, and for some headers one beside it."""
    data = data_file(path) if suffix_of(path) in METAIMAGE else None
    return [path] if data is None else [path, data]


def _read(path: Path, name: str, room: Room, is_mask: bool = False) -> MedicalImage:
    if not path.exists():
        raise NotFoundError(f"{name}: the file does not exist")
    if path.is_dir():
        raise RequestError(f"{name} is a folder; expected one file of type {', '.join(SUFFIXES)}")
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise RequestError(f"{name} is of type {suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise RequestError(f"{name} is an empty file")
    reader = _reader(suffix, is_mask)
    try:
        with ThreadPoolExecutor(1) as other_core:
            refused = Event()
            digest = other_core.submit(content_digest, path, refused)
            try:
                stored, content = reader(path, room), digest.result()
            finally:
                refused.set()  # what cannot be read need not be hashed to its end
    except RequestError as error:
        raise type(error)(f"{name} {error}") from error
    except _UNREADABLE as error:  # type: ignore[misc]  # some come without types
        reason = str(error).replace(str(path), path.name).replace(str(path.parent), "").strip() or type(error).__name__
        raise RequestError(f"{name} is not a readable {suffix} file: {reason}") from error
    array, dimensions = _as_volume(stored, name)
    affine, usable = _usable(stored.affine)
    places = [place for place, is_usable in map(_usable, stored.also_at) if is_usable]
    if places and not usable:
        (affine, *places), usable = places, True
    itk, is_read = (affine, False) if stored.itk_affine is None else _usable(stored.itk_affine)
    return MedicalImage(
        name,
        array,
        affine,
        dimensions,
        suffix,
        content,
        stored.header,
        placed=stored.placed and usable,
        also_at=(*places, itk) if is_read else tuple(places),
        itk_affine=itk if is_read else None,
        exif_orientation=stored.exif_orientation,
        slice_axis=None if stored.header is None else stored_slice_axis(stored.header),
        volumes=1 if stored.header is None else noted_volumes(stored.header, array.shape),
        rescale=stored.rescale,
        file_labels=stored.file_labels,
    )


def _reader(suffix: str, is_mask: bool) -> Callable[[Path, Room], Stored]:
    """What reads files of an extension."""
    if suffix in NIFTI:
        return read_nifti
    if suffix in NRRD:
        return read_nrrd
    return read_metaimage if suffix in METAIMAGE else partial(read_picture, indices=is_mask)


def content_digest(path: Path, stop: Event) -> str:
    """A short digest of the bytes of an image's files; of some of them if `stop` is set before the end."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files_of(path):
        with file.open("rb") as stream:
            while not stop.is_set() and (piece := stream.read(CHUNK)):
                digest.update(piece)
    return digest.hexdigest()


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
    try:
        check_axes(tuple(space))
    except RequestError as error:
        raise RequestError(f"{name} {error}") from error
    del space[3:]  # each of a single voxel
    array = array.reshape(*space, *[1] * (3 - len(space)), array.shape[-1])
    return array[..., :3] if stored.colour else array[..., 0], len(space)


def _usable(affine: NDArray[Any]) -> tuple[NDArray[np.float64], bool]:
    """The affine and True; if no voxels can lie like that, an affine of 1 mm voxels and False."""
    affine = np.asarray(affine, np.float64)
    if np.isfinite(affine).all() and np.abs(affine[:3, 3]).max() < MAX_ORIGIN:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        is_length = SPACINGS[0] < spacing.min() and spacing.max() < SPACINGS[1]
        if is_length and abs(np.linalg.det(affine[:3, :3] / spacing)) > MIN_DETERMINANT:
            return affine, True
    return LPS_TO_RAS.copy(), False


def _check_intensities(image: MedicalImage) -> None:
    """RequestError for voxels that are not finite numbers, and for an image of one value."""
    if image.array.dtype.kind == "f":
        _check_finite(image)
    check_contrast(image)


def check_contrast(image: MedicalImage) -> None:
    """RequestError for an image of one value. Of voxels that still arrive it waits for those that show their range."""
    for first in range(0, image.grid[2], image.grid[2] // image.volumes):
        intensities = image.part(first).intensities
        if intensities.bottom < intensities.top:
            return
    raise RequestError(f"{image.name} is constant: every voxel is {intensities.bottom:g}")


def _check_finite(image: MedicalImage) -> None:
    """RequestError for values that are not finite numbers; says how many, and where the first is."""
    broken: list[tuple[int, int, int]] = []
    count = 0
    for k in range(image.grid[2]):
        plane = image.array[:, :, k]
        if not np.isfinite(plane.sum(dtype=np.float64)):  # a sum needs no memory
            places = np.argwhere(~np.isfinite(plane))
            count += len(places)
            broken += [(int(i), int(j), k) for i, j, *_ in places[:1]]
    if broken:
        raise RequestError(
            f"{image.name} has {count} voxels that are not finite numbers, the first at {list(broken[0])} "
            f"({image.array[broken[0]]}); replace them before segmentation"
        )
