# SPDX-License-Identifier: Apache-2.0
"""`./kprism import FOLDER`: DICOM files as they are, and NIfTI, NRRD, MetaImage, PNG and JPEG files as DICOM.

They go into a DICOMweb server or a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import requests
from pydicom.dataset import Dataset
from tqdm import tqdm

from kprism_model.addresses import check_store, is_url
from lib.dicom.access import StoreAccess
from lib.dicom.folder_index import FolderIndex
from lib.dicom.seg_writer import write_seg
from lib.dicom.series import describe_series
from lib.dicom.series_writer import SOP_CLASSES, dicom_series, guess_modality
from lib.dicom.web import DicomWeb, StoreAccessError, StoreDownError, as_bytes
from lib.errors import RequestError
from lib.imaging.file_labels import FileLabels
from lib.imaging.hand_names import LABEL_FILE, HandNames
from lib.imaging.label_maps import values_in
from lib.imaging.label_names import one_value_each, shown, value_names
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import SUFFIXES, read_image, read_mask, suffix_of
from tools.import_dicom import Tally, find_dicom, import_dicom, left_out

DEFAULT_STORE = "http://127.0.0.1:8042/dicom-web"
_HOST = re.compile(r"[\w.-]+:[0-9]+(/|$)|//|\w+://")
"""How addresses begin that lack http://, or have another scheme."""

INSTANCES_PER_REQUEST = 32
"""Instances in one request, so that a series of many large slices is not in memory several times."""

# Words in the `modality` of a dataset.json and the DICOM modality; the first that occurs counts.
MODALITY_WORDS = {
    "ct": "CT",
    "mri": "MR",
    "mr": "MR",
    "ultrasound": "US",
    "x-ray": "CR",
    "endoscopy": "ES",
    "fundus": "OP",
    "dermoscopy": "XC",
    "histopathology": "GM",
    "microscopy": "GM",
}


@dataclass(frozen=True)
class Found:
    """What lies at a path: DICOM files, in subfolders too, and image files of other types, in the folder itself."""

    path: Path
    dicom: FolderIndex
    files: list[Path]


def find(path: Path) -> Found:
    """What can be imported from a path; RequestError if there is nothing."""
    if not path.is_dir() and not path.is_file():
        raise RequestError(f"there is no file or folder {str(path)!r}")
    dicom = find_dicom(path)
    if path.is_file():
        is_dicom = any(entry.object is not None or entry.reason for entry in dicom.entries.values())
        return Found(path, dicom, [] if is_dicom else [path])
    files = sorted(file for file in path.iterdir() if suffix_of(file) in SUFFIXES and not file.name.startswith("."))
    if not files and not dicom.series:
        problems = "; ".join(left_out(dicom)[:3])
        raise RequestError(
            f"folder {str(path)!r} has no images; expected files of type {', '.join(SUFFIXES)}, or DICOM files in it "
            f"or in its subfolders{f' ({problems})' if problems else ''}"
        )
    return Found(path, dicom, files)


def described_modality(path: Path) -> str | None:
    """The modality in a `dataset.json` beside the files or one folder above (the format of the Medical Decathlon)."""
    folder = path if path.is_dir() else path.parent
    for candidate in (folder / "dataset.json", folder.parent / "dataset.json"):
        try:
            words = " ".join(json.loads(candidate.read_bytes())["modality"].values()).lower()
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            continue
        return next((modality for word, modality in MODALITY_WORDS.items() if word in words.split()), None)
    return None


def label_of(path: Path, name: str, image: MedicalImage, instances: list[Dataset]) -> tuple[list[Dataset], list[str]]:
    """The submitted label of an image in a folder that MONAI Label has served, as a SEG, and what is not in that.

    Both are empty if it has none. RequestError if the label cannot be read, has another shape, or nothing names its
    values.
    """
    info = _label_info(path.parent, name)
    file = path.parent / "labels" / "final" / str(info.get("name", ""))
    if not info.get("name") or not file.is_file():
        return [], []
    mask = read_mask(file, f"the label of {path.name}")
    values, own = image.on_grid(mask, mask.name), mask.file_labels or FileLabels()
    present = values_in(values)
    try:
        named = value_names(info, HandNames.read(path.parent).of(name), present, own)
    except RequestError as error:
        raise RequestError(f"{mask.name}: {error}") from error
    nameless = own.in_file(present.difference(named))
    if nameless:
        raise RequestError(
            f"{mask.name}: nothing names the value{'s' if len(nameless) > 1 else ''} {shown(nameless)[1:-1]}; "
            f"expected a name in {LABEL_FILE} of its folder"
        )
    table, names = one_value_each(named)
    labels = image.to_slices(table[values]).transpose(2, 1, 0)
    series = describe_series(instances)
    numbers = {str(instance.SOPInstanceUID): row for row, instance in enumerate(instances)}
    rows = [numbers[frame.instance] for frame in series.frames]
    seg = write_seg(np.ascontiguousarray(labels[:, :, rows]), names, series, "K-Prism")
    return [seg], [f"{mask.name}: {warning}" for warning in own.warnings]


def _label_info(folder: Path, name: str) -> dict[str, Any]:
    """The information about an image's submitted label in MONAI Label's index of the folder."""
    try:
        index = json.loads((folder / "datastore_v2.json").read_bytes())
        label = index["objects"][name]["labels"]["final"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {"name": f"{name}{label['ext']}", **label["info"]}


def import_file(path: Path, modality: str | None, store: DicomWeb | Path, taken: set[str]) -> list[str]:
    """Convert one file and store it; returns what of its label is left out. RequestError if that is not possible.

    In a folder, its images get a sub-folder of its name, which is not one of those that are `taken` by other files.
    """
    image = read_image(path, path.name)
    name = path.name[: -len(suffix_of(path))]
    chosen = modality or guess_modality(image)
    if modality is None and image.is_colour and chosen == "OT":
        chosen = "XC"
    instances: list[Dataset] = list(dicom_series(image, name, chosen))
    label, warnings = label_of(path, name, image, instances)
    instances += label
    if isinstance(store, Path):
        folder = store / _free_name(name, taken)
        folder.mkdir(parents=True, exist_ok=True)
        for number, instance in enumerate(instances, 1):
            partial = folder / f"{number:04}.partial"
            partial.write_bytes(as_bytes(instance))
            os.replace(partial, folder / f"{number:04}.dcm")
        return warnings
    for start in range(0, len(instances), INSTANCES_PER_REQUEST):
        store.store(instances[start : start + INSTANCES_PER_REQUEST])
    return warnings


def _free_name(name: str, taken: set[str]) -> str:
    """A name, or with a number behind it if it is taken, in any letter case; it is taken now."""
    numbered = (name if number == 1 else f"{name}-{number}" for number in count(1))
    free = next(candidate for candidate in numbered if candidate.casefold() not in taken)
    taken.add(free.casefold())
    return free


def import_all(paths: Sequence[Path], modality: str | None, store: DicomWeb | Path) -> Iterator[str]:
    """Import everything at `paths`; yields a message for each file that could not be imported."""
    yield from import_found([find(path) for path in paths], modality, store, Tally())


def import_found(found: Sequence[Found], modality: str | None, store: DicomWeb | Path, tally: Tally) -> Iterator[str]:
    """The same for what was found already; counts what was imported."""
    taken: set[str] = set()
    for place in found:
        yield from left_out(place.dicom)
        yield from import_dicom(place.dicom, store, tally)
        chosen = modality or described_modality(place.path)
        quiet = not place.files or not sys.stderr.isatty()
        for file in tqdm(place.files, desc=place.path.name, unit="file", disable=quiet):
            try:
                yield from import_file(file, chosen, store, taken)
            except RequestError as error:
                if isinstance(error, StoreDownError | StoreAccessError):
                    raise
                yield str(error)
            else:
                tally.images += 1


def _place(to: str, conf: Mapping[str, str]) -> DicomWeb | Path:
    """Where the images go; ValueError for an address or a setting that cannot be used."""
    if not is_url(to):
        if not to.strip() or _HOST.match(to):
            raise ValueError(f"--to {to!r}: expected a folder, or an address such as {DEFAULT_STORE}")
        return Path(to)
    return DicomWeb.at(check_store(to), StoreAccess.parse(conf))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 1 if anything was left out."""
    parser = argparse.ArgumentParser(prog="./kprism import", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="folder of images, or one image file")
    parser.add_argument(
        "--to", default=DEFAULT_STORE, metavar="URL|FOLDER", help=f"DICOMweb server or folder ({DEFAULT_STORE})"
    )
    parser.add_argument(
        "--modality",
        choices=sorted(SOP_CLASSES),
        help="modality of the images; by default that of a dataset.json, else CT or MR for volumes by their values, "
        "XC for colour and OT (secondary capture) for grey pictures",
    )
    parser.add_argument(
        "--conf",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="how the server is asked, as for serve: dicomweb_token_file, dicomweb_client_certificate, dicomweb_ca",
    )
    options = parser.parse_args(arguments)
    try:
        store = _place(options.to, dict(options.conf))
        found = [find(path) for path in options.paths]
        tally = Tally()
        problems = list(import_found(found, options.modality, store, tally))
    except (ValueError, OSError, requests.RequestException) as error:
        print(f"kprism: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(f"kprism: left out: {problem}", file=sys.stderr)
    for sentence in others(found):
        print(f"kprism: {sentence}", file=sys.stderr)
    print(f"Imported {summary(found, tally)} into {options.to}.")
    return 1 if problems else 0


def others(found: Sequence[Found]) -> Iterator[str]:
    """Sentences about files that nobody will miss, or that lie where they are not looked for."""
    for place in found:
        if not place.dicom.series:
            continue
        strange = sum(1 for entry in place.dicom.odd.values() if not entry.reason)
        if strange:
            yield f"{strange:,} other files in {place.path} are neither DICOM nor images."
        nested = sorted(name for name in place.dicom.images if "/" in name and not name.startswith("labels/"))
        if nested:
            many = f"{len(nested):,} images in subfolders of {place.path}"
            yield f"{many}, such as {nested[0]}, are not imported with it."


def summary(found: Sequence[Found], tally: Tally) -> str:
    """How much was imported."""
    files = sum(len(place.files) for place in found)
    parts = [f"{tally.images} of {files} images"] if files else []
    if any(place.dicom.series for place in found):
        parts.append(str(tally))
    return " and ".join(parts) or "nothing"


if __name__ == "__main__":
    sys.exit(main())
