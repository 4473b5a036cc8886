# SPDX-License-Identifier: Apache-2.0
"""Reads NIfTI-1 and NIfTI-2 files, compressed and not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.nifti1 import Nifti1Extension, Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from lib.errors import RequestError
from lib.imaging.nifti_places import nifti_places
from lib.imaging.stored import Room, Stored, check_axes, opened

MAX_HEADER = 16 << 20
"""Bytes before the voxels of a NIfTI file; a header that claims more is damaged."""

COMMENT = 6
"""Code of NIfTI header extensions that hold text."""

_VOLUMES = re.compile(rb"K-Prism: (\d{1,6}) volumes")
_CHANNELS = ("R", "G", "B")


def read_nifti(path: Path, room: Room) -> Stored:
    """The voxels of a NIfTI file; RequestError, or what nibabel raises, for a file that cannot be read."""
    compression = "gzip" if path.name.lower().endswith(".gz") else ""
    _check_header(path, compression, room)
    image: Any = _load(path)
    if not isinstance(image, nibabel.Nifti1Image):  # includes NIfTI-2, but not CIFTI
        raise RequestError(f"is {type(image).__name__}; expected a NIfTI volume")
    voxels: Any = image.dataobj
    places = nifti_places(image.header)
    shape, dtype = tuple(int(side) for side in image.shape), voxels.dtype
    check_axes(shape)
    colour = bool(dtype.fields) and tuple(dtype.fields)[:3] == _CHANNELS
    rescale = (1.0, 0.0) if colour else (float(voxels.slope), float(voxels.inter))
    with opened(path, compression) as stream:
        stream.seek(voxels.offset)
        if colour:
            channels = room.filled(stream, (len(dtype.fields), *shape), np.dtype(np.uint8))
            array = np.moveaxis(channels, 0, -1)[..., :3]
        else:
            array = room.filled(stream, shape, dtype)
        stream.read(1)  # at the end of a compressed file is its checksum
    affine, *others = places.stated or (image.affine,)
    return Stored(
        array,
        affine,
        image.header,
        colour,
        bool(places.stated),
        rescale,
        also_at=tuple(others),
        itk_affine=places.itk,
    )


def _load(path: Path) -> Any:
    """As `nibabel.load`, which knows no extensions in mixed letter case such as `.Nii.gz`."""
    ending = path.name[-len(".nii.gz") :] if path.name.lower().endswith(".gz") else path.suffix
    if ending in (ending.lower(), ending.upper()):
        return nibabel.load(path)
    file_map = {"image": FileHolder(str(path))}
    try:
        return nibabel.Nifti1Image.from_file_map(file_map)
    except (HeaderDataError, WrapStructError, ImageFileError):
        return nibabel.Nifti2Image.from_file_map(file_map)


def note_volumes(header: Nifti1Header, volumes: int) -> None:
    """Note in a header, as a comment, that the slices are those of several volumes, one after the other along k."""
    header.extensions.append(Nifti1Extension("comment", f"K-Prism: {volumes} volumes".encode()))


def noted_volumes(header: Nifti1Header, shape: tuple[int, ...]) -> int:
    """How many volumes a header notes; 1 if it notes none, or a number that does not divide the slices."""
    for extension in header.extensions:
        match = _VOLUMES.match(extension.get_content()) if extension.get_code() == COMMENT else None
        volumes = int(match[1]) if match else 1
        if volumes > 1 and shape[2] % volumes == 0:
            return volumes
    return 1


def _check_header(path: Path, compression: str, room: Room) -> None:
    """Check the header before nibabel reads the file, because nibabel reads as much as the header says."""
    with opened(path, compression) as stream:
        start = stream.read(540)
    size = int.from_bytes(start[:4], "little")
    kind: type[Nifti1Header]
    kind, length = (Nifti2Header, 540) if size in (540, 0x1C020000) else (Nifti1Header, 348)
    header = kind(start[:length], check=False)
    if float(header["vox_offset"]) > MAX_HEADER:
        raise RequestError(
            f"claims {float(header['vox_offset']):g} bytes before its voxels; expected at most {MAX_HEADER}"
        )
    room.check(tuple(int(side) for side in header.get_data_shape()), header.get_data_dtype())
