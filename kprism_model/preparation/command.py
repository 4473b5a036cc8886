# SPDX-License-Identifier: Apache-2.0
"""The command `prepare`: from the folder of a download to a data set that `train` and `evaluate` read."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from kprism_model.preparation.catalogue import CatalogueEntry, catalogue
from kprism_model.preparation.dataset_json import write_dataset_json
from kprism_model.preparation.files import links_to_nowhere
from kprism_model.preparation.findings import Findings, Split
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.overview import write_overview
from kprism_model.preparation.splits import split_as_published, split_by_patient
from kprism_model.preparation.summary import describe
from kprism_model.preparation.target import claimed
from kprism_model.preparation.writing import write_cases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `prepare`."""
    entries = catalogue()
    names = "; ".join(f"{name}: {entry.title}" for name, entry in entries.items())
    parser.add_argument("name", choices=entries, metavar="NAME", help=names)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the download was unpacked")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the data set; it may be half done"
    )
    parser.add_argument(
        "--splits",
        choices=("patients", "published"),
        default="patients",
        help="patients: the official lists, and where there are none, lists drawn by patient (default); published: as "
        "the code of the paper draws them, by image, only to compare with the paper",
    )
    parser.add_argument("--seed", type=int, default=0, help="of lists that are drawn (default: 0)")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="OAI-ZIB: where the images are")
    parser.add_argument(
        "--channel", help="which sequence, channel or view becomes the image (BraTS, M&Ms-2, Decathlon, nnU-Net)"
    )
    parser.add_argument("--expert", help="PAPILA: whose contours (1, 2 or both)")
    parser.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), help="cases at a time (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prepare the data set and print what was found; status 1 if cases were faulty, which are named and left out."""
    entry = catalogue()[arguments.name]
    if not arguments.folder.is_dir():
        raise ValueError(f"{arguments.folder} is not a folder; expected the unpacked download of {entry.title}")
    if arguments.workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {arguments.workers}")
    if arguments.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {arguments.seed}")
    findings = find_cases(entry, arguments.folder, LayoutOptions(arguments.images, arguments.channel, arguments.expert))
    classes = entry.classes if findings.classes is None else dict(findings.classes)
    name = str(findings.about.get("name", entry.name))
    lists, notes = _lists(entry, findings, arguments.splits, arguments.seed)
    cases = [case for case in findings.cases if case.name in lists]
    with claimed(arguments.out, name):
        records, faults = write_cases(cases, classes, arguments.out, workers=arguments.workers, progress=True)
        for fault in faults:
            findings.remark("faulty", fault)
        for sentence in (sentence for record in records.values() for sentence in record.remarks):
            findings.remark("note", sentence)
        if not records:
            raise ValueError(f"{arguments.folder}: no case is whole; the first: {faults[0]}")
        write_dataset_json(arguments.out, entry, findings, classes, cases, records, lists, notes)
        write_overview(arguments.out, classes, list(records.values()), seed=arguments.seed)
    print(f"{entry.title} -> {arguments.out}\n")
    print(describe(cases, records, lists, classes, findings, notes))
    print(f"\nLicence: {findings.about.get('licence', entry.licence)}")
    if citation := findings.about.get("reference", entry.citation):
        print(f"Cite: {citation}")
    if faulty := findings.remarks.get("faulty"):
        print(f"error: {len(faulty)} cases are faulty and were left out; they are named above", file=sys.stderr)
    return 1 if faulty else 0


def find_cases(entry: CatalogueEntry, folder: Path, options: LayoutOptions) -> Findings:
    """The cases of a download; ValueError if `folder` is not this download, or for an option that it does not have."""
    layout: ModuleType = importlib.import_module(f"kprism_model.preparation.layouts.{entry.layout}")
    options.check(layout.OPTIONS, entry.name)
    broken = [path for top in (folder, options.images) if top is not None for path in links_to_nowhere(top)]
    try:
        findings: Findings = layout.find(folder, entry, options)
        for path in broken:
            findings.remark("missing", f"{path} is a link to {path.readlink()}, which is not there")
        findings.check(folder)
    except ValueError as error:
        if not broken:
            raise
        raise ValueError(f"{error}; links below it lead to no file ({len(broken)}), such as {broken[0]}") from error
    return findings


def _lists(entry: CatalogueEntry, findings: Findings, how: str, seed: int) -> tuple[dict[str, Split], list[str]]:
    if how == "patients":
        return split_by_patient(findings.cases, seed)
    if entry.published_split == "official":
        return split_by_patient(findings.cases, seed)
    if entry.published_split == "shuffled":
        return split_as_published(findings.cases), [
            "as the published code: by image, shuffled with seed 42, four fifths"
        ]
    if entry.published_split == "all for test":
        return {case.name: "test" for case in findings.cases}, ["as the published code: all for test"]
    raise ValueError(f"the published code does not say how it splits {entry.name}; leave --splits published out")
