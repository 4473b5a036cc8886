# SPDX-License-Identifier: Apache-2.0
"""BraTS, glioma before treatment, 2017 to 2023: folders of cases with four sequences and a label.

    BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz; 2017 to 2020 alike, also in HGG and LGG
    BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz in 2023: patient, point in time

Sources: github.com/constantinpape/torch-em, torch_em/data/datasets/medical/brats.py (2023);
github.com/MIC-DKFZ/nnUNet, nnunetv2/dataset_conversion/Dataset137_BraTS21.py (to 2021). They differ in the value of the
enhancing tumour, because the challenge changed it: 4 to 2021, 3 in 2023. It goes by the names, never by the values.
Case 355 of 2020 has W39_1998.09.19_Segm.nii for its label. BraTS 2024 (points in time from 100 on; another task, with a
resection cavity), other tumours, and the Decathlon's Task01 (other values) are refused, and so is a folder with several
years, because they have the same patients under other numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import entries, walk
from kprism_model.preparation.findings import Findings, FoundCase
from kprism_model.preparation.images import StoredImage, nifti_suffix
from kprism_model.preparation.labels import LabelVolume
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pairing import pair, remark_other_affines

OPTIONS = frozenset({"channel"})

_CHANNELS = {
    "t1": ("t1", "t1n", "t1w"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f"),
}
_CHANNEL_OF = {word: channel for channel, words in _CHANNELS.items() for word in words}
_FILE = re.compile(
    rf"(?P<case>BraTS.+?)[_-](?P<kind>{'|'.join(sorted(_CHANNEL_OF, key=len, reverse=True))}|seg)\.nii(\.gz)?",
    re.IGNORECASE,
)
_CASE_TO_2021 = re.compile(r"BraTS(20)?(?P<year>17|18|19|20|21)_.+", re.IGNORECASE)
_CASE_2023 = re.compile(r"BraTS-(?P<tumour>[A-Z]+)-(?P<patient>\d{5})-(?P<time>\d{3})", re.IGNORECASE)
_GLIOMA = {"GLI", "SSA"}
_FIRST_TIME_OF_2024 = 100
_VALUES_TO_2021, _VALUES_2023 = (1, 2, 4), (1, 2, 3)


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The labelled cases, each with one sequence as its image: `options.channel`, by default flair."""
    channel = _CHANNEL_OF.get((options.channel or "flair").casefold())
    if channel is None:
        raise ValueError(f"--channel is {options.channel!r}, expected one of {', '.join(_CHANNELS)}")
    findings = Findings()
    findings.about["channel"] = channel
    images: list[tuple[str, Path]] = []
    labels: list[tuple[str, Path]] = []
    cases: dict[str, Path] = {}
    foreign: Counter[str] = Counter()
    for path in walk(folder):
        match = _FILE.fullmatch(path.name)
        if match is None:
            _refuse_decathlon(path)
            continue
        case, kind = match["case"], match["kind"].casefold()
        if not _is_ours(case, path, foreign):
            continue
        cases.setdefault(case, path)
        if kind == "seg":
            labels.append((case, path))
        elif _CHANNEL_OF[kind] == channel:
            images.append((case, path))
    _refuse_or_name_foreign(folder, findings, cases, foreign)
    _refuse_several_years(folder, cases)
    labels += _odd_labels(findings, cases, {case for case, _ in labels})
    for case in sorted(cases.keys() - {case for case, _ in images} - {case for case, _ in labels}):
        findings.remark("missing", f"{channel} of {case}, in {cases[case].parent}")
    pairs = pair(findings, images, labels, hint=f", the sequence {channel}")
    remark_other_affines(findings, pairs)
    indices = {int(value): index for value, index in entry.indices.items()}
    for found in pairs:
        modern = _CASE_2023.fullmatch(found.key)
        known = {value: indices[value] for value in (_VALUES_2023 if modern else _VALUES_TO_2021)}
        patient = f"BraTS-{modern['tumour']}-{modern['patient']}" if modern else found.key
        label = LabelVolume(found.label, known)
        findings.cases.append(FoundCase(found.key, patient, None, StoredImage(found.image), label))
    return findings


def _is_ours(case: str, path: Path, foreign: Counter[str]) -> bool:
    modern = _CASE_2023.fullmatch(case)
    if modern and int(modern["time"]) >= _FIRST_TIME_OF_2024:
        raise ValueError(
            f"{path} is of BraTS 2024, after treatment, where 3 and 4 mean the enhancing tumour and the resection "
            "cavity; expected BraTS 2017 to 2023 (such as BraTS-GLI-00000-000)"
        )
    if modern and modern["tumour"].upper() not in _GLIOMA:
        foreign[modern["tumour"].upper()] += 1
        return False
    return bool(modern or _CASE_TO_2021.fullmatch(case))


def _refuse_decathlon(path: Path) -> None:
    if re.fullmatch(r"BRATS_\d{3}\.nii(\.gz)?", path.name):
        raise ValueError(
            f"{path} is of the Decathlon's Task01_BrainTumour, whose values mean other classes; expected case folders "
            "such as BraTS2021_00000 or BraTS-GLI-00000-000"
        )


def _refuse_or_name_foreign(folder: Path, findings: Findings, cases: dict[str, Path], foreign: Counter[str]) -> None:
    for tumour, count in sorted(foreign.items()):
        findings.remark("ignored", f"{count} files of BraTS-{tumour}, which is not glioma")
    if not cases:
        found = f"; BraTS-{', BraTS-'.join(sorted(foreign))} is not glioma" if foreign else ""
        raise ValueError(
            f"{folder} is not BraTS: expected case folders such as BraTS2021_00000 with BraTS2021_00000_flair.nii.gz, "
            f"or BraTS-GLI-00000-000 with BraTS-GLI-00000-000-t2f.nii.gz{found}"
        )


def _refuse_several_years(folder: Path, cases: dict[str, Path]) -> None:
    years: dict[str, str] = {}
    for case in cases:
        older = _CASE_TO_2021.fullmatch(case)
        years.setdefault(f"20{older['year']}" if older else "2023", case)
    if len(years) > 1:
        raise ValueError(
            f"{folder} holds BraTS {' and '.join(sorted(years))} ({', '.join(years.values())}), which have the same "
            "patients under other numbers; expected the folder of one year"
        )


def _odd_labels(findings: Findings, cases: dict[str, Path], labelled: set[str]) -> list[tuple[str, Path]]:
    """Of cases without a label: the only other file of their folder that is called a segmentation."""
    labels = []
    for case, path in cases.items():
        if case in labelled:
            continue
        others = [
            other
            for other in entries(path.parent)
            if nifti_suffix(other) and "seg" in other.name.casefold() and not _FILE.fullmatch(other.name)
        ]
        if len(others) == 1 and path.parent.name == case:
            findings.remark("note", f"{others[0]} is taken as the label of {case}, which has no other")
            labels.append((case, others[0]))
    return labels
