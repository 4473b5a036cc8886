# SPDX-License-Identifier: Apache-2.0
"""A quick look at the beginning and the end of an image file: whether it can be read, as far as these tell.

A folder may hold ten thousand images, so their voxels cannot be read to find the few that are damaged. What does not
look right here is read as a whole, by the reader that would open it; only that one says what is wrong.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any

import nrrd
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from PIL import Image

from lib.imaging.metaimage import holds_its_voxels
from lib.imaging.nifti import compression_of
from lib.imaging.nrrd_files import read_header
from lib.imaging.pictures import PICTURE_FORMATS
from lib.imaging.segments import segments_in
from lib.imaging.stored import CHUNK, opened

_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_TIFF_OFFSETS, _TIFF_COUNTS = (273, 324), (279, 325)  # of strips, of tiles


def looks_complete(path: Path, *, count: bool = True) -> bool:
    """Whether the header of an image file is in order and its voxels are all there, judged by the file's size and end.

    With `count`, the bytes in a compressed file are counted if its end says another number than is expected. False also
    for whatever cannot be judged so: types that are not known here, unusual encodings.
    """
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            return _is_whole_nifti(path, count)
        if name.endswith(".nrrd"):
            return _is_whole_nrrd(path, count)
        if name.endswith((".mha", ".mhd")):
            return holds_its_voxels(path)
        return _is_whole_picture(path)
    except Exception:  # whatever a library raises for a damaged file: the reader will say what is wrong
        return False


def _is_whole_nifti(path: Path, count: bool) -> bool:
    compression = compression_of(path)
    if compression and not path.name.lower().endswith(".gz"):
        return False
    with opened(path, compression) as stream:
        start = stream.read(540)
    is_second = start[:4] in ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
    kind: Any = Nifti2Header if is_second else Nifti1Header  # the call has no types
    header = kind(start[: 540 if is_second else 348], check=False)
    shape = [int(side) for side in header.get_data_shape()]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    is_header = int(header["sizeof_hdr"]) == len(header.binaryblock) and header["magic"].item()[:3] in (b"n+1", b"n+2")
    begin = int(header["vox_offset"])
    if not is_header or begin < header.single_vox_offset or len(shape) not in (2, 3) or min(shape) < 1:
        return False
    size = begin + math.prod(shape) * header.get_data_dtype().itemsize
    return _holds_gzip(path, 0, size, count) if compression else path.stat().st_size >= size


def _is_whole_nrrd(path: Path, count: bool) -> bool:
    with path.open("rb") as file:
        header = read_header(file)
        begin = file.tell()
    if (
        segments_in(header)
        or len(header["sizes"]) > 3
        or min(header["sizes"]) < 1
        or any("file" in key for key in header)
    ):
        return False
    dtype = np.dtype(nrrd.reader._TYPEMAP_NRRD2NUMPY[header["type"]])
    size = math.prod(int(side) for side in header["sizes"]) * dtype.itemsize
    encoding = header["encoding"].lower()
    if encoding == "raw":
        return path.stat().st_size >= begin + size
    return encoding in ("gzip", "gz") and _holds_gzip(path, begin, size, count)


def _is_whole_picture(path: Path) -> bool:
    with Image.open(path, formats=PICTURE_FORMATS) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            return False
        if picture.format == "TIFF":
            return _is_whole_tiff(picture, path.stat().st_size)
        kind = str(picture.format)
    if kind not in _ENDS:
        return False
    with path.open("rb") as file:
        return _tail(file, 16).rstrip(b"\0").endswith(_ENDS[kind])


def _is_whole_tiff(picture: Image.Image, size: int) -> bool:
    tags = picture.tag_v2  # type: ignore[attr-defined]
    for offsets, counts in zip(_TIFF_OFFSETS, _TIFF_COUNTS, strict=True):
        if offsets in tags and counts in tags:
            return all(begin + count <= size for begin, count in zip(tags[offsets], tags[counts], strict=True))
    return False


def _holds_gzip(path: Path, begin: int, size: int, count: bool) -> bool:
    """Whether a gzip stream that begins at a byte of a file holds at least `size` bytes.

    Its last four bytes say how many bytes it holds. Where they say another number, the bytes are read and counted
    (`count`): it may be cut off, and some programs write several streams one after the other.
    """
    with path.open("rb") as file:
        if int.from_bytes(_tail(file, 4), "little") == size % 2**32:
            return True
        if not count:
            return False
        file.seek(begin)
        with opened(file, "gzip") as stream:
            left = size
            while left > 0 and (piece := stream.read(min(CHUNK, left))):
                left -= len(piece)
        return left <= 0


def _tail(file: IO[bytes], count: int) -> bytes:
    end = file.seek(0, 2)
    file.seek(max(0, end - count))
    return file.read(count)
