# SPDX-License-Identifier: Apache-2.0
"""Reads NIfTI-1 and NIfTI-2 files, compressed and not."""

from __future__ import annotations

import re
from io import IOBase
from pathlib import Path
from typing import Any, cast

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.nifti1 import Nifti1Extension, Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Image

from lib.errors import RequestError
from lib.imaging.nifti_places import nifti_places
from lib.imaging.stored import Room, Stored, check_axes, opened

MAX_HEADER = 16 << 20
"""Bytes before the voxels of a NIfTI file; a header that claims more is damaged."""

GZIP = b"\x1f\x8b"
"""The first bytes of a gzip file."""

COMMENT = 6
"""Code of NIfTI header extensions that hold text."""

_VOLUMES = re.compile(rb"K-Prism: (\d{1,6}) volumes")
_CHANNELS = ("R", "G", "B")


def read_nifti(path: Path, room: Room) -> Stored:
    """The voxels of a NIfTI file; RequestError, or what nibabel raises, for a file that cannot be read.

    Whether a `.nii.gz` file is compressed is seen in its content: browsers unpack what they download.
    """
    compression = compression_of(path)
    if compression and not path.name.lower().endswith(".gz"):
        raise RequestError("is compressed with gzip, but its name does not end in .gz; rename it")
    kind = _check_header(path, compression, room)
    with opened(path, compression) as stream:
        image: Any = kind.from_file_map({"image": FileHolder(fileobj=cast(IOBase, stream))})
        voxels: Any = image.dataobj
        places = nifti_places(image.header)
        shape, dtype = tuple(int(side) for side in image.shape), voxels.dtype
        check_axes(shape)
        colour = bool(dtype.fields) and tuple(dtype.fields)[:3] == _CHANNELS
        rescale = (1.0, 0.0) if colour else (float(voxels.slope), float(voxels.inter))
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


def compression_of(path: Path) -> str:
    """How a NIfTI file is compressed, by its first bytes: "gzip" or not at all."""
    with path.open("rb") as file:
        return "gzip" if file.read(2) == GZIP else ""


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


def _check_header(path: Path, compression: str, room: Room) -> type[Nifti1Image]:
    """Check the header before nibabel reads the file, because nibabel reads as much as the header says.

    Returns what reads the file.
    """
    with opened(path, compression) as stream:
        start = stream.read(540)
    size = int.from_bytes(start[:4], "little")
    is_second = size in (540, 0x1C020000)
    kind: type[Nifti1Image] = Nifti2Image if is_second else Nifti1Image
    header = kind.header_class(start[: 540 if is_second else 348], check=False)
    magic, offset = header["magic"].item()[:3], float(header["vox_offset"])
    if magic in (b"ni1", b"ni2"):
        raise RequestError("is the header of a pair of files, .hdr and .img; expected one file")
    if magic not in (b"n+1", b"n+2"):
        raise ImageFileError("it does not begin with a NIfTI header")
    if offset > MAX_HEADER:
        raise RequestError(f"claims {offset:g} bytes before its voxels; expected at most {MAX_HEADER}")
    if not offset >= header.single_vox_offset:
        raise RequestError(
            f"claims that its voxels begin at byte {offset:g}, inside of its header; expected "
            f"{header.single_vox_offset} or more"
        )
    room.check(tuple(int(side) for side in header.get_data_shape()), header.get_data_dtype())
    return kind
