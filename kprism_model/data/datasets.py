# SPDX-License-Identifier: Apache-2.0
"""Labelled images on disk: the dataset.json of the Medical Segmentation Decathlon (arXiv 2106.05735), 2-D and 3-D."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kprism_model.data.volume_files import open_slices, volume_orientation
from kprism_model.intensity import IntensityRange, Stack
from kprism_model.orientation import SliceOrientation

SPLITS = ("training", "validation", "test")
VOLUME_SUFFIXES = (".nii", ".nii.gz")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_GREY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class Case:
    """One image with its label map; `patient` is the case's own name if patients are unknown."""

    name: str
    patient: str
    image: Path
    label: Path | None
    scribble: Path | None

    @property
    def is_volume(self) -> bool:
        """Whether the image is a volume (NIfTI), not a picture."""
        return self.image.name.endswith(VOLUME_SUFFIXES)


@dataclass(frozen=True)
class Dataset:
    """A folder of cases: class names by label index (without the background, 0; see `class_name`), cases by split.

    `anatomy` is the part of the body that the images show; empty if dataset.json does not name it.
    """

    folder: Path
    name: str
    modality: str
    anatomy: str
    classes: Mapping[int, str]
    splits: Mapping[str, tuple[Case, ...]]

    def cases(self, split: str) -> tuple[Case, ...]:
        """The cases of "training", "validation" or "test"; ValueError for another name."""
        if split not in self.splits:
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        return self.splits[split]


@dataclass(frozen=True)
class LoadedCase:
    """A case in memory.

    `images` float32 in [0, 1], (slice, row, column) or (slice, row, column, 3); `labels` uint8 (slice, row, column) of
    label indices, None if the case has no label; a picture is one slice. `spacing` in mm between (slices, rows,
    columns) and `orientation` are None for pictures.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.uint8] | None
    spacing: tuple[float, float, float] | None
    orientation: SliceOrientation | None


def read_dataset(folder: Path) -> Dataset:
    """Read `folder`/dataset.json and check that every file it lists exists.

    An entry of a split is {"image", "label", optional "patient" and "scribble"} or, as in the test lists of the
    Decathlon, only the path of an image. ValueError that names the file and the wrong entry.
    """
    path = Path(folder) / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; expected the description of a data set") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    splits = {split: _read_split(path, split, content.get(split, [])) for split in SPLITS}
    names = [case.name for cases in splits.values() for case in cases]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} lists these images more than once: {', '.join(repeated[:5])}")
    name = str(content.get("name") or path.parent.name or path.parent.absolute().name)
    if name.startswith(".") or not name.isprintable() or {"/", "\\"} & set(name):  # files and folders have this name
        raise ValueError(f'{path}: "name" must be the name of a folder, without "/" and "." at its start, got {name!r}')
    classes = {value: class_name(name, given) for value, given in _read_classes(path, content).items()}
    anatomy = str(content.get("anatomy", ""))
    return Dataset(path.parent, name, _read_modality(path, content), anatomy, classes, splits)


@dataclass(frozen=True)
class CaseImages:
    """The images of a case as they are stored, (slice, row, column[, 3]), and the range that scales them."""

    stored: Stack
    intensities: IntensityRange

    def __len__(self) -> int:
        return len(self.stored)

    def scaled(self, part: slice) -> NDArray[np.float32]:
        """Some slices in [0, 1]."""
        return self.intensities.scale(self.stored[part])


@dataclass(frozen=True)
class CaseLabels:
    """The label map of a case (slice, row, column) as it is stored; `known` are the label indices that it may hold."""

    path: Path
    stored: Stack
    known: frozenset[int]

    def __len__(self) -> int:
        return len(self.stored)

    def checked(self, part: slice) -> NDArray[np.uint8]:
        """The label indices of some slices; ValueError that names the file for one without a class."""
        labels = self.stored[part]
        checked = np.empty(labels.shape, np.uint8)
        for number, one in enumerate(labels):
            unknown = [value for value in _label_values(one) if value not in self.known]
            if unknown:
                expected = sorted(self.known - {0})
                raise ValueError(f"{self.path} holds label {unknown[0]}, expected 0 or one of {expected}")
            checked[number] = one
        return checked


def load_case(dataset: Dataset, case: Case) -> LoadedCase:
    """Read a case's pixels, scaled to [0, 1] over the whole case, and check its labels against the data set's classes.

    ValueError that names the file if it cannot be read, shapes differ, or a label index has no class.
    """
    every = slice(None)
    images = open_images(dataset, case).scaled(every)
    labels = None if case.label is None else open_labels(dataset, case).checked(every)
    orientation = volume_orientation(case.image) if case.is_volume else None
    return LoadedCase(images, labels, None if orientation is None else orientation.spacing, orientation)


def open_images(dataset: Dataset, case: Case, scratch: Path | None = None) -> CaseImages:
    """The images of a case, to be read some slices at a time; `scratch` and errors are those of `open_slices`."""
    stack: Stack
    values: Stack
    if case.is_volume:
        stack = values = open_slices(case.image, volume_orientation(case.image), scratch)
    else:
        picture = read_picture(case.image)
        stack, values = picture[None], picture
    try:
        return CaseImages(stack, IntensityRange.of_stack(values, modality=dataset.modality))
    except ValueError as error:
        raise ValueError(f"{case.image}: {error}") from error


def open_labels(dataset: Dataset, case: Case, scratch: Path | None = None) -> CaseLabels:
    """The label map of a case that has one, to be read some slices at a time; its shape is that of the image.

    `scratch` and errors are those of `open_slices`.
    """
    assert case.label is not None
    known = frozenset({0, *dataset.classes})
    if case.is_volume:
        stack: Stack = open_slices(case.label, volume_orientation(case.image), scratch)
        return CaseLabels(case.label, stack, known)
    labels, size = read_picture(case.label), _picture_header(case.image)[:2]
    if labels.shape != size:
        raise ValueError(f"{case.label} has shape {labels.shape}, but its image {case.image} has {size}")
    return CaseLabels(case.label, labels[None], known)


def load_scribble(case: Case) -> NDArray[np.uint8]:
    """The hand-drawn scribbles of a case, (slice, row, column), values as in the data set's "scribble_labels"."""
    if case.scribble is None:
        raise ValueError(f"case {case.name} has no scribbles")
    if not case.is_volume:
        return read_picture(case.scribble)[None].astype(np.uint8)
    return open_slices(case.scribble, volume_orientation(case.image))[:].astype(np.uint8)


def read_picture(path: Path) -> NDArray[Any]:
    """A picture as it is stored: (row, column) if grey, else 8-bit (row, column, 3); ValueError if unreadable."""
    try:
        with Image.open(path) as picture:
            if picture.mode == "LA":
                return np.array(picture.convert("L"))
            return np.array(picture if picture.mode in _GREY_MODES else picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def slice_counts(case: Case) -> tuple[int, int]:
    """The number of slices and of channels (1 or 3) of a case, from the file headers alone."""
    if case.is_volume:
        return volume_orientation(case.image).stack_shape[0], 1
    return 1, _picture_header(case.image)[2]


def _picture_header(path: Path) -> tuple[int, int, int]:
    """Rows, columns and channels (1 or 3) of a picture."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width, 1 if picture.mode in _GREY_MODES else 3
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def _read_modality(path: Path, content: Mapping[str, Any]) -> str:
    modality = content.get("modality")
    if not isinstance(modality, dict) or len(modality) != 1:
        raise ValueError(f'{path}: "modality" must name one modality, as in {{"0": "MRI"}}, got {modality!r}')
    return str(next(iter(modality.values())))


def _read_classes(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f'{path}: "labels" must map label indices to names, got {labels!r}')
    classes: dict[int, str] = {}
    for index, name in labels.items():
        if not index.isdecimal() or not 0 <= int(index) <= 255 or not isinstance(name, str) or not name.strip():
            raise ValueError(f'{path}: "labels" must map 0..255 to names, got {index!r}: {name!r}')
        if int(index):
            classes[int(index)] = name
    if len({name.casefold() for name in classes.values()}) < len(classes) or not classes:
        raise ValueError(f'{path}: "labels" must hold one or more classes with different names, got {labels!r}')
    return classes


def _read_split(path: Path, split: str, entries: Any) -> tuple[Case, ...]:
    if not isinstance(entries, list):
        raise ValueError(f'{path}: "{split}" must be a list, got {type(entries).__name__}')
    return tuple(_read_case(path, f"{split}[{number}]", entry) for number, entry in enumerate(entries))


def _read_case(path: Path, where: str, entry: Any) -> Case:
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise ValueError(f'{path}: {where} must be a path or an object with "image", got {entry!r}')
    files = {key: path.parent / entry[key] for key in ("image", "label", "scribble") if entry.get(key) is not None}
    for key, file in files.items():
        if not file.name.endswith(VOLUME_SUFFIXES) and file.suffix.lower() not in PICTURE_SUFFIXES:
            raise ValueError(f"{path}: {where} {key} {entry[key]!r} is neither NIfTI nor {', '.join(PICTURE_SUFFIXES)}")
        if not file.is_file():
            raise ValueError(f"{path}: {where} {key} {entry[key]!r} does not exist")
    name = Path(entry["image"]).name
    suffix = next((suffix for suffix in (*reversed(VOLUME_SUFFIXES), Path(name).suffix) if name.endswith(suffix)), "")
    name = name.removesuffix(suffix)
    return Case(name, str(entry.get("patient", name)), files["image"], files.get("label"), files.get("scribble"))


def _label_values(labels: NDArray[Any]) -> list[Any]:
    """The different values, sorted. Counting is much faster than sorting, where the values are few whole numbers."""
    low, high = labels.min(), labels.max()
    if low >= 0 and high <= 255:
        small = labels.astype(np.uint8, copy=False)
        if labels.dtype.kind in "bui" or np.array_equal(small, labels):
            found = np.flatnonzero(np.bincount(small.reshape(-1)))
            return list(found.astype(labels.dtype).tolist())
    return list(np.unique(labels).tolist())


CLASS_NAMES: dict[str, dict[str, str]] = {
    "density_mammography": {"dense breast tissue": "fibroglandular tissue"},
    "fives_fundus": {"vessel": "retinal vessel"},
    "hrf_retina": {"vessel": "retinal vessel"},
    "ocdc_oral_he": {"tumour": "squamous cell carcinoma"},
    "scd_cardiac_mr": {"left ventricular cavity": "left ventricle"},
    "usgra_us": {"nerve": "peripheral nerve"},
}
"""Name of a data set -> name of a class there -> the network's name for it; other classes keep their names."""


def class_name(dataset: str, name: str) -> str:
    """The network's name for the class `name` of a data set."""
    return CLASS_NAMES.get(dataset, {}).get(name, name)
