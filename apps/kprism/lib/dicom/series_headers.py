# SPDX-License-Identifier: Apache-2.0
"""The headers of a series as DICOM JSON (PS3.18, F.2): all that is needed to know its order, grid and pixel type.

They are kept in a file of the series' folder, so that a series that was opened once is known without its server. To
parse all attributes of hundreds of headers takes a second, so only those in `NEEDED` are parsed at first; the complete
headers, which segmentations are written from, are parsed when somebody looks at them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from kprism_model.files import write_bytes
from lib.dicom.pixel_type import PixelType, pixel_type
from lib.dicom.series import Series, describe_series
from lib.dicom.source import DicomSource
from lib.dicom.web import SeriesEntry, StoreDownError, StoreError
from lib.errors import RequestError

logger = logging.getLogger(__name__)

FILE_NAME = "headers.json"

PIXEL_GROUP = 0x7FE0

Item = dict[str, Any]
"""One header as DICOM JSON: eight hexadecimal digits of a tag -> type and values."""

KEYWORDS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "InstanceNumber"),
    *("StudyDate", "StudyTime", "Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "ImagerPixelSpacing", "SpacingBetweenSlices", "SliceThickness", "SequenceOfUltrasoundRegions"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PatientID"),
    *("TemporalPositionIdentifier", "TriggerTime", "EchoNumbers", "EchoTime", "DiffusionBValue", "AcquisitionNumber"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation"),
    *("RescaleSlope", "RescaleIntercept"),
)
NEEDED = frozenset(f"{tag_for_keyword(keyword):08X}" for keyword in KEYWORDS)
"""The attributes that `describe_series` and `pixel_type` read, and those that an image is listed with."""

CHARACTER_SET = "00080005"
NUMBERS = tuple(
    f"{tag_for_keyword(name):08X}" for name in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
)


@dataclass(frozen=True)
class SeriesHeaders:
    """Headers as DICOM JSON, the number of instances by the server's listing, and whether values need 32 bits.

    The number is the server's and not that of the headers: with a server that counts wrongly they would never agree.
    """

    items: tuple[Item, ...]
    instances: int
    wide: bool = False

    @classmethod
    def of(cls, items: Iterable[Item], instances: int) -> SeriesHeaders:
        """Headers without their bulk data, such as pixels, which are not in them."""
        kept = [{tag: value for tag, value in item.items() if "BulkDataURI" not in value} for item in items]
        return cls(tuple(kept), instances)

    @classmethod
    def read(cls, folder: Path) -> SeriesHeaders | None:
        """The headers in a folder; None if there are none, or the file is damaged: they can be fetched again."""
        try:
            content = json.loads((folder / FILE_NAME).read_bytes())
            return cls(tuple(content["headers"]), int(content["instances"]), bool(content["wide"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Keep the headers in a folder, which is made if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"instances": self.instances, "wide": self.wide, "headers": self.items}
        write_bytes(folder / FILE_NAME, json.dumps(content, separators=(",", ":")).encode())

    def widened(self) -> SeriesHeaders:
        """The same for values that need 32 bits."""
        return replace(self, wide=True)

    @property
    def are_sufficient(self) -> bool:
        """Whether they say how large the images are: some servers answer with a few attributes only."""
        sized = [item for item in self.items if "00280010" in item and "00280011" in item]
        return bool(sized) and all("00280100" in item and "00080018" in item for item in sized)

    @property
    def are_garbled(self) -> bool:
        """Whether the server has lost numbers: to Orthanc, the backslash between them is a yen sign in ISO_IR 13."""
        return any(
            "IR 13" in str(item.get(CHARACTER_SET))
            and any(tag in item and not item[tag].get("Value") for tag in NUMBERS)
            for item in self.items
        )

    def describe(self, folder: Path) -> tuple[Series, PixelType]:
        """The series whose headers are kept in `folder`, and how its voxels are stored; RequestError if it is none."""
        series = describe_series(needed_headers(self.items))
        try:
            kind = pixel_type(series.headers, wide=self.wide)
        except RequestError:
            raise
        except (TypeError, ValueError) as error:
            raise RequestError(f"series {series.uid} does not say how its pixels are stored: {error}") from error
        instances = frozenset(frame.instance for frame in series.frames)
        return replace(series, headers=KeptHeaders(folder, instances)), kind


def needed_headers(items: Sequence[Item]) -> list[Dataset]:
    """The attributes in `NEEDED` of each header. An element with the same value in many headers is parsed once."""
    elements: dict[tuple[str, str], DataElement | None] = {}

    def element(tag: str, value: Any) -> DataElement | None:
        key = (tag, repr(value))
        if key not in elements:
            elements[key] = _element(tag, value)
        return elements[key]

    named = ([element(tag, item[tag]) for tag in NEEDED if tag in item] for item in items)
    return [Dataset({found.tag: found for found in header if found is not None}) for header in named]


def _element(tag: str, value: Any) -> DataElement | None:
    """An element of DICOM JSON; None if its value is none of its type: scanners and exporters write such."""
    try:
        element = next(iter(Dataset.from_json({tag: value}, bulk_data_uri_handler=lambda address: b"")))
        element.to_json_dict(None, 0)  # a number that is none is found when it is looked at
        return element
    except Exception as error:  # whatever pydicom raises for a malformed one
        logger.info("Attribute %s is left out, its value is not valid: %s", tag, error)
        return None


def parsed(item: Item) -> Dataset:
    """A header as a data set, without attributes that are not valid; RequestError if it is not DICOM JSON."""
    try:
        return Dataset.from_json(item, bulk_data_uri_handler=lambda address: b"")  # those in sequences are not fetched
    except Exception as error:  # whatever pydicom raises for a malformed one
        if not isinstance(item, dict):
            raise RequestError(f"a header of the series is not valid DICOM JSON: {error}") from error
        found = (_element(tag, value) for tag, value in item.items())
        return Dataset({element.tag: element for element in found if element is not None})


class KeptHeaders(Sequence[Dataset]):
    """The complete headers of `instances` in a folder, read when they are looked at and not kept in memory."""

    def __init__(self, folder: Path, instances: frozenset[str]) -> None:
        self._folder, self._instances = folder, instances

    def __len__(self) -> int:
        return len(self._instances)

    @overload
    def __getitem__(self, index: int) -> Dataset: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Dataset]: ...
    def __getitem__(self, index: int | slice) -> Dataset | Sequence[Dataset]:
        return self._all()[index]

    def __iter__(self) -> Iterator[Dataset]:
        return iter(self._all())

    def _all(self) -> tuple[Dataset, ...]:
        try:
            headers = _read_all(self._folder, (self._folder / FILE_NAME).stat().st_mtime_ns)
        except FileNotFoundError as error:
            raise RequestError(f"series {self._folder.name} has changed; open it again") from error
        return tuple(header for header in headers if str(header.SOPInstanceUID) in self._instances)


@lru_cache(maxsize=2)
def _read_all(folder: Path, changed: int) -> tuple[Dataset, ...]:
    headers = SeriesHeaders.read(folder)
    datasets = [parsed(item) for item in headers.items] if headers else []
    return tuple(dataset for dataset in datasets if "Rows" in dataset and "Columns" in dataset)


def fetch_headers(web: DicomSource, entry: SeriesEntry) -> SeriesHeaders:
    """The headers of a series from its server.

    They are read from the instances themselves if the server has no metadata, only a few attributes or garbled ones.
    StoreDownError if it does not answer.
    """
    try:
        headers = SeriesHeaders.of(web.header_items(entry.study, entry.series), entry.instances)
        if headers.are_sufficient and not headers.are_garbled:
            return headers
    except StoreDownError:
        raise
    except StoreError as error:
        logger.info("The headers of series %s are read from its instances: %s", entry.series, error)
    items = []
    for instance in web.fetch(entry.study, entry.series):
        header = Dataset({element.tag: element for element in instance if element.tag.group < PIXEL_GROUP})
        items.append(header.to_json_dict(suppress_invalid_tags=True))
    return SeriesHeaders.of(items, entry.instances)
