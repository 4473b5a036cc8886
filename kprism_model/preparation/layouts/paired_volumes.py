# SPDX-License-Identifier: Apache-2.0
"""Volumes beside labels that share a number: BTCV, LiTS, KiTS19 and KiTS23. `_FORMS` says how their files are called.

BTCV (Synapse syn3193805; 30 labelled scans, 1-10 and 21-40)
    RawData/Training/{img/img0001.nii.gz, label/label0001.nii.gz}, RawData/Testing/img/img0061.nii.gz
    Sources: github.com/MIC-DKFZ/nnUNet, nnunet/dataset_conversion, Task017 (BeyondCranialVault...);
    github.com/constantinpape/torch-em, torch_em/data/datasets/medical/btcv.py. The first has Test/img; MONAI's copies
    have imagesTr and labelsTr: all are read. Registered copies (img0002-0001.nii.gz in RegData) are not.
LiTS (131 labelled scans, 0-130; 28-47 have no voxel size)
    media/nas/01_Datasets/CT/LITS/Training Batch 1/{volume-0.nii, segmentation-0.nii}, test-volume-0.nii
    Sources: github.com/kaiko-ai/eva, docs/datasets/lits.md; github.com/neuro-ml/amid, amid/lits/dataset.py. They spell
    the folders differently, copies on Kaggle part them otherwise: folders do not count. Official lists: none but test.
KiTS19 (0-209 labelled) and KiTS23 (0-299 and 400-588 labelled; 0-299 are the patients of KiTS19)
    kits19/data/case_00000/{imaging.nii.gz, segmentation.nii.gz}; kits23/dataset/case_00000/ the same, and instances/
    Sources: github.com/neheller/kits19 and kits23, README.md; github.com/MIC-DKFZ/nnUNet,
    nnunet/dataset_conversion/Task040_KiTS.py and nnunetv2/dataset_conversion/Dataset220_KiTS2023.py; they agree.
    Slices are stacked along the first axis. In KiTS19 cysts are kidney.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import walk
from kprism_model.preparation.findings import Findings, FoundCase
from kprism_model.preparation.images import StoredImage, nifti_values, open_nifti
from kprism_model.preparation.labels import LabelVolume
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pairing import Pair, by_number, pair, remark_other_affines, stored_affine

OPTIONS: frozenset[str] = frozenset()

Check = Callable[[Path, Sequence[Path], Sequence[Pair], Findings], None]


def _pattern(text: str) -> re.Pattern[str]:
    """For the end of a path: `N` stands for the number."""
    return re.compile(rf"(?:^|/){text.replace('N', '(?P<number>[0-9]+)')}\.nii(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class _Form:
    """`image`, `label` and `test` are patterns of the ends of paths; `name` makes a case's name of its number.

    `check` refuses other downloads, and adds remarks, once the pairs are known. `hint` says where images come from.
    """

    expected: str
    image: re.Pattern[str]
    label: re.Pattern[str]
    name: str
    check: Check
    test: re.Pattern[str] | None = None
    hint: str = ""


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The labelled volumes, wherever they are below `folder`; each number is a patient."""
    form = _FORMS[entry.name]
    findings = Findings()
    files = [path for path in walk(folder) if "regdata" not in map(str.casefold, path.relative_to(folder).parts)]
    images, labels = by_number(files, folder, form.image), by_number(files, folder, form.label)
    pairs = pair(findings, images, labels, hint=form.hint)
    for _, path in by_number(files, folder, form.test) if form.test else []:
        findings.remark("unlabelled", str(path))
    form.check(folder, files, pairs, findings)
    if not images and not labels:
        raise ValueError(f"{folder} is not {entry.title}: expected {form.expected}")
    remark_other_affines(findings, pairs)
    indices = {int(value): index for value, index in entry.indices.items()}
    for found in pairs:
        name = form.name.format(int(found.key))
        label = LabelVolume(found.label, indices)
        findings.cases.append(FoundCase(name, name, None, StoredImage(found.image), label))
    return findings


def _check_btcv(folder: Path, files: Sequence[Path], pairs: Sequence[Pair], findings: Findings) -> None:
    averaged = [path for path in files if any(part.startswith("averaged-") for part in path.relative_to(folder).parts)]
    if averaged and not pairs:
        raise ValueError(
            f"{averaged[0]} is of another set of the same Synapse project, averaged images; expected the folder "
            "RawData of BTCV's Abdomen, with img/img0001.nii.gz"
        )
    if averaged:
        findings.remark("ignored", f"averaged images, another set ({len(averaged)} files): {averaged[0]} and on")
    packed = [path for path in files if path.suffix in (".npz", ".h5")]
    if packed and not pairs:
        raise ValueError(
            f"{packed[0]} is a copy of BTCV that was prepared for TransUNet, whose values are numbered otherwise; "
            "expected the original RawData, with img/img0001.nii.gz"
        )
    for found in pairs:
        if (highest := _highest_value(found.label)) is not None:
            if highest == 14:
                raise ValueError(
                    f"{found.label} holds the value 14: these are the labels of Gibson et al. (Zenodo 1169361), which "
                    "have the names of BTCV's but other contents; expected BTCV's own, with the values 1 to 13"
                )
            return


def _highest_value(path: Path) -> float | None:
    """The highest value of a label file; None if it cannot be read, which is said when the case is written."""
    try:
        return float(nifti_values(open_nifti(path), path).max())
    except ValueError:
        return None


def _check_lits(folder: Path, files: Sequence[Path], pairs: Sequence[Pair], findings: Findings) -> None:
    decathlon = next((path for path in files if re.fullmatch(r"liver_\d+\.nii(\.gz)?", path.name)), None)
    if decathlon is not None and not pairs:
        raise ValueError(
            f"{decathlon} is of the Decathlon's Task03_Liver, the same scans under other numbers; expected "
            "volume-0.nii beside segmentation-0.nii"
        )
    for found in pairs:
        affine = stored_affine(found.image)
        if affine is not None and np.allclose(np.abs(affine[:3, :3]), np.eye(3), atol=1e-6):
            findings.remark(
                "note",
                f"{found.image} stores no voxel size (1 x 1 x 1 mm, as of 28 to 47): lengths in mm are not real",
            )


def _check_kits19(folder: Path, files: Sequence[Path], pairs: Sequence[Pair], findings: Findings) -> None:
    _refuse_kits21(files)
    later = [found.label for found in pairs if int(found.key) >= 210]
    later += [path for path in files if path.name == "kits23.json"]
    if later:
        raise ValueError(f"{later[0]} is of KiTS23; expected KiTS19, labelled up to case_00209 (or prepare kits23_ct)")


def _check_kits23(folder: Path, files: Sequence[Path], pairs: Sequence[Pair], findings: Findings) -> None:
    _refuse_kits21(files)
    names = {path.name: path for path in files}
    if "kits.json" in names and "kits23.json" not in names:
        raise ValueError(
            f"{names['kits.json']} is of KiTS19, where cysts are kidney; expected KiTS23, with kits23.json "
            "(or prepare kits19_ct)"
        )


def _refuse_kits21(files: Sequence[Path]) -> None:
    for path in files:
        if re.fullmatch(r"aggregated_\w+_seg\.nii(\.gz)?", path.name):
            raise ValueError(f"{path} is of KiTS21; expected case folders with imaging and segmentation.nii.gz")


_KITS_IMAGE, _KITS_LABEL = _pattern("case_N/imaging"), _pattern("case_N/segmentation")

_FORMS = {
    "btcv_ct": _Form(
        expected="RawData with Training/img/img0001.nii.gz and Training/label/label0001.nii.gz",
        image=_pattern("img(?=[0-9]{4}[.])N"),
        label=_pattern("label(?=[0-9]{4}[.])N"),
        name="btcv_{:04d}",
        check=_check_btcv,
    ),
    "lits_ct": _Form(
        expected="volume-0.nii beside segmentation-0.nii, in any folders",
        image=_pattern("volume-N"),
        label=_pattern("segmentation-N"),
        name="lits_{:03d}",
        check=_check_lits,
        test=_pattern("test-volume-N"),
    ),
    "kits19_ct": _Form(
        expected="data/case_00000 with imaging.nii.gz and segmentation.nii.gz",
        image=_KITS_IMAGE,
        label=_KITS_LABEL,
        name="case_{:05d}",
        check=_check_kits19,
        hint="; images are not in the repository, its starter_code/get_imaging.py downloads them",
    ),
    "kits23_ct": _Form(
        expected="dataset/case_00000 with imaging.nii.gz and segmentation.nii.gz",
        image=_KITS_IMAGE,
        label=_KITS_LABEL,
        name="case_{:05d}",
        check=_check_kits23,
        hint="; images are not in the repository, its command kits23_download_data downloads them",
    ),
}
