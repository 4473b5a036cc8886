# SPDX-License-Identifier: Apache-2.0
"""DICOM files on a disk, whatever they are called: what a file is, its header as DICOM JSON, and its bytes.

A file is known by its content, never by its name. Some devices write data sets without the preamble and the header of
PS3.10; those are completed when they are read.
"""

from __future__ import annotations

import io
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from lib.dicom.text import one_text
from lib.dicom.web import NON_IMAGE_MODALITIES

MAGIC_AT, MAGIC = 128, b"DICM"

TRANSFER_SYNTAX, LONGEST_HEADER = b"\x02\x00\x10\x00UI", 2048
"""How the element begins in a header, which is always written alike, and bytes in which it is."""

SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
"""What names of DICOM files end with if they end with anything; other files with these names are mistakes."""

PIXELS, FLOATS = 0x7FE00010, (0x7FE00008, 0x7FE00009)
UNKNOWN_LENGTH = 0xFFFFFFFF
LONG_LENGTHS = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UC", "UN", "UR", "UT")

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"

LARGEST_INLINE = 4096
"""Bytes of a binary attribute that are kept with a header; private ones of some devices take megabytes."""

UNREADABLE = (InvalidDicomError, OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, zlib.error)
"""What pydicom raises for damaged files."""

_KEYWORDS = (
    *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("PatientID", "PatientName", "StudyDate", "StudyDescription", "SeriesNumber", "SeriesDescription"),
    *("Rows", "Columns", "InstanceNumber", "ImagePositionPatient"),
)
_TAGS = tuple(Tag(name) for name in _KEYWORDS)


class Facts(NamedTuple):
    """What the files of a series have in common, for a list of series."""

    study: str
    series: str
    modality: str
    sop_class: str
    patient: str
    patient_name: str
    study_date: str
    study_description: str
    series_number: str
    description: str

    @property
    def is_segmentation(self) -> bool:
        """Whether it is a DICOM SEG."""
        return self.sop_class in SEG_CLASSES

    @property
    def kind(self) -> str:
        """The modality, or "SEG"; empty if none is given."""
        return "SEG" if self.is_segmentation else self.modality

    @property
    def may_be_image(self) -> bool:
        """Whether objects of the kind have images to segment."""
        return self.kind not in NON_IMAGE_MODALITIES


class DicomObject(NamedTuple):
    """The DICOM object in a file: its SOP instance, and the facts of its series.

    `mark` is its number and position, which differ between two images of one identifier that are not copies.
    """

    instance: str
    facts: Facts
    mark: str = ""


class NotDicomError(Exception):
    """A file that is no DICOM, and does not seem to be meant as one."""


class UnusableFileError(Exception):
    """A DICOM file that cannot be used; the message says why, without its name."""


def read_object(path: Path) -> DicomObject:
    """The object in a file, from its header; complete objects alone.

    NotDicomError for other files, and for a DICOMDIR: the files that it names are found without it. UnusableFileError
    for a DICOM file that is damaged, incomplete or without identifiers, and for an image without pixels.
    """
    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that are not as the standard wants them
            has_header = _check(stream, path)
            return _read(stream, has_header)
    except (NotDicomError, UnusableFileError):
        raise
    except OSError as error:
        raise UnusableFileError(f"cannot be read: {error.strerror or error}") from error
    except UNREADABLE as error:
        raise UnusableFileError(f"is damaged: {error}") from error


def looks_like_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, or is a data set without the header of PS3.10."""
    try:
        with path.open("rb") as stream:
            start = stream.read(MAGIC_AT + len(MAGIC))
        if _has_header(start):
            return True
        return _may_be_bare(start) and bool(read_object(path))
    except (OSError, NotDicomError, UnusableFileError):
        return False


def _may_be_bare(start: bytes) -> bool:
    """Whether a file without a header begins as a data set: a small element of one of the first groups."""
    return start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00"


def _has_header(start: bytes) -> bool:
    return start[MAGIC_AT:] == MAGIC


def _check(stream: BinaryIO, path: Path) -> bool:
    """Whether the file has the header of PS3.10; NotDicomError if it is no data set without one either."""
    start = stream.read(MAGIC_AT + len(MAGIC))
    stream.seek(0)
    if _has_header(start):
        return True
    named = path.suffix.lower() in SUFFIXES
    if _may_be_bare(start):
        return False
    if named:
        raise UnusableFileError("is empty" if not start else "is no DICOM file, though its name is that of one")
    raise NotDicomError


def _read(stream: BinaryIO, has_header: bool) -> DicomObject:
    end: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: BaseTag, kind: str | None, length: int) -> bool:
        if tag == PIXELS or tag in FLOATS:
            end.append((int(tag), kind, length))
        return bool(end)

    header = read_partial(stream, at_pixels, force=not has_header, specific_tags=list(_TAGS))
    if str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")) == DIRECTORY_CLASS:
        raise NotDicomError
    missing = [name for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID") if not header.get(name)]
    if missing and not has_header and len(missing) == 3:
        raise NotDicomError
    if missing:
        raise UnusableFileError(f"has no {' and no '.join(missing)}, or ends before them")
    facts = _facts(header)
    if not _is_identifier(facts.series) or not _is_identifier(str(header.SOPInstanceUID)):
        raise UnusableFileError(
            f"has the identifiers {facts.series!r:.80} and {str(header.SOPInstanceUID)!r:.80}, which are none of DICOM"
        )
    if facts.may_be_image or facts.is_segmentation:
        _check_pixels(stream, header, end)
    return DicomObject(str(header.SOPInstanceUID), facts, _mark(header))


def _facts(header: Dataset) -> Facts:
    def text(name: str) -> str:
        value = one_text(header.get(name))
        return " ".join(value.replace("^", " ").split()) if "Name" in name else value

    return Facts(
        text("StudyInstanceUID"),
        text("SeriesInstanceUID"),
        text("Modality"),
        text("SOPClassUID"),
        text("PatientID"),
        text("PatientName"),
        text("StudyDate"),
        text("StudyDescription"),
        text("SeriesNumber"),
        text("SeriesDescription"),
    )


def _mark(header: Dataset) -> str:
    try:
        return " ".join(one_text(header.get(name)) for name in ("InstanceNumber", "ImagePositionPatient"))
    except (ValueError, TypeError, OverflowError):  # no numbers
        return ""


def _is_identifier(text: str) -> bool:
    """Whether a text can name a file; some tools write other identifiers than numbers with points."""
    return (
        0 < len(text) <= 64 and text.isascii() and text[0] != "." and text.replace(".", "").replace("-", "").isalnum()
    )


def _check_pixels(stream: BinaryIO, header: Dataset, end: list[tuple[int, str | None, int]]) -> None:
    """UnusableFileError unless the file holds all pixels that its header announces."""
    if not end:
        kind = header.get("SOPClassUID")
        raise UnusableFileError(f"holds no pixels, or ends before them ({getattr(kind, 'name', kind)})")
    tag, value_kind, length = end[0]
    if tag in FLOATS:
        raise UnusableFileError("has pixels that are floating-point numbers (a parametric map), which are not read")
    if header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return  # what was inflated ends with the checksum that zlib has compared
    start = stream.tell() + (12 if value_kind in LONG_LENGTHS else 8)
    size = stream.seek(0, io.SEEK_END)
    missing = _missing_items(stream, start, size) if length == UNKNOWN_LENGTH else start + length - size
    if missing > 0:
        raise UnusableFileError(f"is truncated: at least {missing:,} bytes are missing at its end")


def _missing_items(stream: BinaryIO, at: int, size: int) -> int:
    """How many bytes are missing of compressed frames, which are items with lengths of their own (PS3.5, A.4)."""
    while at + 8 <= size:
        stream.seek(at)
        item = stream.read(8)
        if item[:4] == b"\xfe\xff\xdd\xe0":
            return 0
        if item[:4] != b"\xfe\xff\x00\xe0":
            raise UnusableFileError("is damaged: its compressed pixels are not a sequence of items")
        at += 8 + int.from_bytes(item[4:], "little")
    return max(at - size, 0)  # some devices leave out the end of the sequence


def header_item(path: Path) -> dict[str, Any]:
    """The header of a file as DICOM JSON (PS3.18, F.2), without pixels and other large binary values."""
    header = dcmread(path, stop_before_pixels=True, force=True)
    if not header.get("SOPClassUID") and header.file_meta.get("MediaStorageSOPClassUID"):
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID
    item: dict[str, Any] = header.to_json_dict(
        bulk_data_threshold=LARGEST_INLINE, bulk_data_element_handler=lambda element: "", suppress_invalid_tags=True
    )
    if "00080005" in item:
        item["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}  # the texts are UTF-8 now
    return item


def file_bytes(path: Path) -> bytes:
    """The content of a file as PS3.10 has it; a preamble, a header or a transfer syntax is added if it is missing."""
    content = path.read_bytes()
    if _has_header(content[: MAGIC_AT + len(MAGIC)]) and TRANSFER_SYNTAX in content[:LONGEST_HEADER]:
        return content
    dataset = dcmread(io.BytesIO(content), force=True)
    stream = io.BytesIO()
    _completed(dataset).save_as(stream, write_like_original=False)
    return stream.getvalue()


def read_file(path: Path) -> Dataset:
    """The complete object in a file."""
    return dcmread(io.BytesIO(file_bytes(path)))


def _completed(dataset: Dataset) -> Dataset:
    """A data set that was read without a header, with one."""
    if dataset.is_little_endian:
        syntax = ImplicitVRLittleEndian if dataset.is_implicit_VR else ExplicitVRLittleEndian
    else:
        syntax = ExplicitVRBigEndian
    meta = FileMetaDataset()
    meta.update(dataset.get("file_meta") or {})
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = meta.get("TransferSyntaxUID") or syntax
    dataset.file_meta = meta
    return dataset
