# SPDX-License-Identifier: Apache-2.0
"""Raw data sets of nnU-Net, version 1 or 2: a file for each channel of an image, which dataset.json describes.

    Dataset011_Name/ (version 2) or Task011_Name/ (version 1)
      dataset.json
      imagesTr/case_0000.nii.gz, case_0001.nii.gz, ...     labelsTr/case.nii.gz
      imagesTs, labelsTs, imagesVal, labelsVal              (if there are any)
      splits_final.json                                     (or in nnUNet_preprocessed/Dataset011_Name)

Version 1 has modality {"0": "T2"} and labels {"1": "PZ"}; version 2 channel_names {"0": "T2"}, labels {"PZ": 1} with
regions {"tumour": [1, 2, 3]} and "ignore", file_ending, and perhaps `dataset`, which names the files of each case.
Sources: github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md, region_based_training.md, ignore_label.md,
manual_data_splits.md and dataset_conversion.md (version 1); its issue 1602, where the program prints the keys that it
needs. They differ: older files of version 2 have `modality` for `channel_names`. Each entry is read by its kind, so
mixtures of both versions are read.

One channel becomes the image: the option `channel`, a number or a name, the first one without it. Pictures in colour
are one file, though dataset.json counts three channels. Of regions that overlap, the parts become classes. An image
with voxels to be ignored is left out, because a data set has no word for "unknown". Fold 0 of splits_final.json gives
the validation list; names of its patients are known only for folders of `kprism export-dataset`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kprism_model.preparation.any_files import PICTURES, image_files, image_source, label_source, suffix_of
from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import roots
from kprism_model.preparation.findings import Findings, FoundCase, Split
from kprism_model.preparation.labels import LabelSource
from kprism_model.preparation.nnunet_splits import validation_lists
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.own_description import (
    OwnClasses,
    channel_names,
    chosen_channel,
    data_set_name,
    modality_of,
    own_classes,
    read_description,
    text_of,
)
from kprism_model.preparation.own_exports import classes_of_most, exported_cases
from kprism_model.preparation.value_pictures import UNKNOWN, WithoutUnknown, is_colour

OPTIONS = frozenset({"channel"})

_CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_FOLDERS: tuple[tuple[str, str, Split], ...] = (
    ("imagesTr", "labelsTr", "training"),
    ("imagesVal", "labelsVal", "validation"),
    ("imagesTs", "labelsTs", "test"),
)


@dataclass
class _Files:
    """The files of a case."""

    split: Split
    channels: dict[int, Path] = field(default_factory=dict)
    label: Path | None = None


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The labelled cases of one data set."""
    root = _root(folder)
    description = root / "dataset.json"
    content = read_description(description)
    findings = Findings()
    cases = _cases(findings, root, content)
    channels = channel_names(description, content)
    if _has_colour_pictures(cases, channels):
        channels = ["RGB"]
    channel = chosen_channel(channels, options.channel)
    exported = exported_cases(root)
    classes = classes_of_most(findings, own_classes(description, content.get("labels")), exported)
    _describe(findings, content, root, channels, channel, classes)
    lists = validation_lists(findings, root, {name for name, files in cases.items() if files.split == "training"})
    count = content.get("numTraining")
    found = sum(files.split == "training" for files in cases.values())
    if isinstance(count, int) and count != found:
        findings.remark("note", f"dataset.json counts {count} training cases, the folder holds {found}")
    if cases and not exported:
        findings.remark("note", "no patients are named: each case counts as one")
    for name, files in cases.items():
        export = exported.get(name)
        untold = export.untold(list(classes.names.values())) if export else []
        if not _is_whole(findings, name, files, channels, channel):
            continue
        if untold:
            findings.remark("unlabelled", f"{name}: its label says nothing about {', '.join(untold)}")
            continue
        label = _label(files.label, classes)
        image = image_source(files.channels[channel])
        split = lists.get(name, files.split)
        findings.cases.append(FoundCase(name, export.patient if export else name, split, image, label))
    return findings


def _root(folder: Path) -> Path:
    found = roots(folder, _is_root)
    if not found:
        raise ValueError(f"{folder} is no raw data set of nnU-Net: expected dataset.json beside imagesTr and labelsTr")
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:10])
        raise ValueError(f"{folder} holds several data sets: {names}; expected the folder of one")
    return found[0]


def _is_root(path: Path) -> bool:
    description = path / "dataset.json"
    if not description.is_file():
        return False
    return (path / "imagesTr").is_dir() or isinstance(read_description(description).get("dataset"), dict)


def _cases(findings: Findings, root: Path, content: Mapping[str, Any]) -> dict[str, _Files]:
    """The cases by name, of the entry `dataset` if there is one, else of the folders."""
    named = content.get("dataset")
    if isinstance(named, dict):
        return {str(case): _named_files(root, str(case), files) for case, files in named.items()}
    cases: dict[str, _Files] = {}
    for images, labels, split in _FOLDERS:
        found = image_files(findings, root / images)
        own = image_files(findings, root / labels)
        if split == "training" and found and not any(map(_CHANNEL_FILE.fullmatch, found)):
            raise ValueError(
                f"{root / images} holds {next(iter(found.values())).name}, expected the number of a channel at the end "
                "of each name, such as case_0000.nii.gz; folders of the Decathlon are read by `prepare msd`"
            )
        if found and not own:
            if split != "training":
                findings.remark("unlabelled", f"{root / images}: {len(found)} files, without labels")
                continue
            raise ValueError(f"{root} has no labels: expected {labels} with a file for each case of {images}")
        for name, path in found.items():
            match = _CHANNEL_FILE.fullmatch(name)
            if match is None:
                findings.remark("ignored", str(path))
            else:
                files = cases.setdefault(match["case"], _Files(split))
                if files.split != split:
                    findings.remark("doubled", f"{path}: {match['case']} is in another folder too, which counts")
                    continue
                files.channels[int(match["channel"])] = path
        for name, path in own.items():
            if name not in cases:
                findings.remark("missing", f"the image of {path}")
            elif cases[name].split == split:
                cases[name].label = path
    return cases


def _named_files(root: Path, case: str, files: Any) -> _Files:
    """The files that dataset.json names; relative ones are below its folder, and may begin with $VARIABLES."""
    if not isinstance(files, dict) or not isinstance(files.get("images"), list) or "label" not in files:
        raise ValueError(f'{root / "dataset.json"}: expected "images" and "label" of {case}, got {files!r}')
    paths = [root / os.path.expandvars(str(path)) for path in files["images"]]
    label = root / os.path.expandvars(str(files["label"]))
    channels = {number: path for number, path in enumerate(paths) if path.is_file()}
    return _Files("training", channels, label if label.is_file() else None)


def _has_colour_pictures(cases: Mapping[str, _Files], channels: list[str]) -> bool:
    """Whether each image is one picture in colour, though there are three channels."""
    if len(channels) != 3 or not all(set(files.channels) == {0} for files in cases.values()):
        return False
    paths = [files.channels[0] for files in cases.values()]
    return bool(paths) and suffix_of(paths[0]).lower() in PICTURES and is_colour(paths[0])


def _describe(
    findings: Findings, content: Mapping[str, Any], root: Path, channels: list[str], channel: int, classes: OwnClasses
) -> None:
    name = data_set_name(text_of(content, "name") or re.sub(r"^(Dataset|Task)\d{3}_", "", root.name)) or "nnunet"
    findings.classes = classes.names
    findings.about = {
        "name": name,
        "description": text_of(content, "description") or name,
        "modality": {"0": modality_of(channels[channel])},
        "anatomy": text_of(content, "anatomy"),
        "licence": text_of(content, "licence", "license") or "not stated",
        "licence_stated_at": "dataset.json of the download",
        "source": text_of(content, "source"),
        "reference": text_of(content, "reference"),
        "release": text_of(content, "release", "relase"),
    }
    if classes.regions:
        findings.about["regions"] = {region: list(parts) for region, parts in classes.regions.items()}
        for region, parts in classes.regions.items():
            findings.remark("note", f"the region {region} is {' + '.join(parts)}")
    if len(channels) > 1:
        findings.about["channel"] = channels[channel]
        findings.remark("note", f"channel {channel} ({channels[channel]}) of {', '.join(channels)} is the image")


def _is_whole(findings: Findings, name: str, files: _Files, channels: list[str], channel: int) -> bool:
    """Whether a case has its image and label; what it lacks is remarked."""
    for number, title in enumerate(channels):
        if number not in files.channels:
            findings.remark("missing", f"{name}: channel {number} ({title})")
    for number in sorted(set(files.channels) - set(range(len(channels)))):
        findings.remark("ignored", f"{files.channels[number]}: dataset.json has no channel {number}")
    if files.label is None:
        findings.remark("missing", f"{name}: the label")
    return channel in files.channels and files.label is not None


def _label(path: Path | None, classes: OwnClasses) -> LabelSource:
    assert path is not None
    if classes.ignored is None:
        return label_source(path, classes.indices)
    return WithoutUnknown(label_source(path, {**classes.indices, classes.ignored: UNKNOWN}), classes.ignored)
