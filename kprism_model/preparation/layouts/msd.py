# SPDX-License-Identifier: Apache-2.0
"""Medical Segmentation Decathlon: a folder for each task, which its dataset.json describes.

    Task04_Hippocampus/dataset.json
    Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz, labelsTr/hippocampus_001.nii.gz, imagesTs/hippocampus_002.nii.gz
    and ._hippocampus_001.nii.gz beside them: traces of macOS, which are no NIfTI files

dataset.json: name, licence, release (in some tasks `relase`), modality {"0": "CT"}, labels {"1": "liver"}, training
[{"image", "label"}], test ["./imagesTs/..."]. Images of several sequences have four axes, the last one is the sequence;
the option `channel` chooses by number or name. Some labels are stored as floating-point numbers. Sources:
github.com/MIC-DKFZ/nnUNet, nnunetv2/dataset_conversion/convert_MSD_dataset.py and documentation/dataset_conversion.md;
github.com/openmedlab/Awesome-Medical-Dataset, resources/MSD_Brain.md. They agree; the first takes all files of the
folders, whatever dataset.json lists. So it is here, and what differs from the lists is named.

Data sets of others in this form are read as well, among them those of `kprism export-dataset --format msd`, with their
`validation` list and the `patient` of each entry. The tasks of the Decathlon themselves get our names (decathlon.toml).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kprism_model.preparation.any_files import image_files, image_source, label_source, suffix_of
from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.decathlon import known_task
from kprism_model.preparation.files import roots
from kprism_model.preparation.findings import Findings, FoundCase, Split
from kprism_model.preparation.images import Frame, ImageSource, nifti_suffix, open_nifti
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
from kprism_model.preparation.own_exports import ExportedCase, classes_of_most, exported_cases

OPTIONS = frozenset({"channel"})

_CHANNEL = re.compile(r".+_\d{4}")


@dataclass(frozen=True)
class _Listed:
    """An entry of a list of dataset.json."""

    split: Split
    patient: str | None


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The labelled images of one task."""
    root = _root(folder)
    description = root / "dataset.json"
    content = read_description(description)
    findings = Findings()
    images, labels = image_files(findings, root / "imagesTr"), image_files(findings, root / "labelsTr")
    if "channel_names" in content or (
        images and not set(images) & set(labels) and all(map(_CHANNEL.fullmatch, images))
    ):
        raise ValueError(f"{root} is a folder of nnU-Net, not of the Decathlon; `prepare nnunet` reads it")
    channels = channel_names(description, content)
    channel = chosen_channel(channels, options.channel)
    classes = own_classes(description, content.get("labels"))
    if classes.regions or classes.ignored is not None:
        raise ValueError(f'{description}: "labels" has regions or ignored voxels; `prepare nnunet` reads these')
    exported = exported_cases(root)
    classes = classes_of_most(findings, classes, exported)
    _describe(findings, entry, content, root, list(images), channels, channel, classes)
    lists = _lists(findings, description, content, set(images))
    _add_cases(findings, exported, images, labels, lists, classes, (channels, channel))
    test = image_files(findings, root / "imagesTs")
    if test:
        findings.remark("unlabelled", f"{root / 'imagesTs'}: {len(test)} images, of which nobody has the labels")
    for name in sorted(_names(content.get("test")) - set(test) - set(images)):
        findings.remark("missing", f"{name} of the test list of dataset.json")
    return findings


def _root(folder: Path) -> Path:
    found = roots(folder, lambda path: (path / "dataset.json").is_file() and (path / "imagesTr").is_dir())
    if not found:
        raise ValueError(f"{folder} is not of the Decathlon: expected dataset.json beside imagesTr and labelsTr")
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:10])
        raise ValueError(f"{folder} holds several tasks: {names}; expected the folder of one")
    return found[0]


def _describe(
    findings: Findings,
    entry: CatalogueEntry,
    content: Mapping[str, Any],
    root: Path,
    cases: list[str],
    channels: list[str],
    channel: int,
    classes: OwnClasses,
) -> None:
    """Set classes and description, with our names for the tasks of the Decathlon."""
    task = known_task(cases, classes.names.values())
    findings.classes = {index: name if task is None else task.class_name(name) for index, name in classes.names.items()}
    name = data_set_name(text_of(content, "name") or root.name) or entry.name
    licence = text_of(content, "licence", "license") or (entry.licence if task else "not stated")
    findings.about = {
        "name": name,
        "description": text_of(content, "description") or name,
        "modality": {"0": task.modality if task else modality_of(channels[channel])},
        "anatomy": task.anatomy if task else text_of(content, "anatomy"),
        "licence": licence,
        "licence_stated_at": "dataset.json of the download",
        "source": entry.url if task else text_of(content, "source"),
        "reference": "; ".join(filter(None, (text_of(content, "reference"), entry.citation if task else ""))),
        "release": text_of(content, "release", "relase"),
    }
    if task:
        findings.about["task"] = task.folder
    if task and task.warning:
        findings.remark("note", f"{task.folder}: {task.warning}")
    if len(channels) > 1:
        findings.about["channel"] = channels[channel]
        findings.remark("note", f"channel {channel} ({channels[channel]}) of {', '.join(channels)} is the image")


def _lists(findings: Findings, description: Path, content: Mapping[str, Any], images: set[str]) -> dict[str, _Listed]:
    """The entries of the lists with labels, by the names of the images; what differs from the folder is remarked."""
    lists: dict[str, _Listed] = {}
    of_keys: dict[str, Split] = {"training": "training", "validation": "validation", "test": "test"}
    for key, split in of_keys.items():
        items = content.get(key)
        for item in items if isinstance(items, list) else []:
            if not isinstance(item, dict) or not isinstance(item.get("image"), str):
                continue
            name = _name(item["image"])
            if name in lists:
                findings.remark("doubled", f"{name} is twice on the lists of {description}; the first entry counts")
                continue
            patient = item.get("patient")
            lists[name] = _Listed(split, None if patient is None else str(patient))
            if name not in images:
                findings.remark("missing", f"{item['image']} of the {key} list of dataset.json")
    for name in sorted(images - set(lists)) if lists else []:
        findings.remark("note", f"{name} is on no list of dataset.json; it counts as training")
    return lists


def _names(items: Any) -> set[str]:
    """Names of the images of a list without labels."""
    return {_name(item) for item in items if isinstance(item, str)} if isinstance(items, list) else set()


def _name(image: str) -> str:
    path = Path(image)
    return path.name.removesuffix(suffix_of(path))


def _add_cases(
    findings: Findings,
    exported: Mapping[str, ExportedCase],
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    lists: Mapping[str, _Listed],
    classes: OwnClasses,
    channels: tuple[list[str], int],
) -> None:
    for name in sorted(set(labels) - set(images)):
        findings.remark("missing", f"the image of {labels[name]}")
    for name, path in images.items():
        if name not in labels:
            findings.remark("missing", f"the label of {path}")
            continue
        export = exported.get(name)
        if export and (untold := export.untold(list(classes.names.values()))):
            findings.remark("unlabelled", f"{name}: its label says nothing about {', '.join(untold)}")
            continue
        try:
            image = _image(path, *channels)
        except ValueError as error:
            findings.remark("faulty", str(error))
            continue
        listed = lists.get(name)
        patient = (listed and listed.patient) or (export.patient if export else name)
        split = listed.split if listed else None
        findings.cases.append(FoundCase(name, patient, split, image, label_source(labels[name], classes.indices)))


def _image(path: Path, channels: list[str], channel: int) -> ImageSource:
    """The image, or one channel of a file with four axes; ValueError if it has another number of channels."""
    if not nifti_suffix(path):
        return image_source(path)
    shape = open_nifti(path).shape
    if len(shape) == 3 and len(channels) == 1:
        return image_source(path)
    if len(shape) != 4 or shape[3] != len(channels):
        raise ValueError(
            f"{path} has the shape {tuple(shape)}, expected {len(channels)} channels: {', '.join(channels)}"
        )
    return Frame(path, channel)
