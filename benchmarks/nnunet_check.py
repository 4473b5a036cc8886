# SPDX-License-Identifier: Apache-2.0
"""nnU-Net trains on what `kprism export-dataset` writes: parts of the sample studies, labelled by threshold.

    PYTHONPATH=apps/kprism python -m benchmarks.nnunet_check --nnunet /path/of/environment/bin --work /tmp/check

`--nnunet` is the folder of nnU-Net's commands, in an environment of its own. Labels are submitted by the server's own
code. Each data set (CT, grey pictures, colour pictures) is planned, checked, preprocessed, and trained for an epoch on
the CPU; the form of the Decathlon is turned into nnU-Net's by its own converter, and planned too. Ends with the first
command that fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.places import ROOT
from kprism_model.locations import app_folder
from lib.configs.app_config import MONAI_LABEL_SETTINGS
from lib.folder_store import FolderStore
from lib.imaging.label_registry import LabelRegistry
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import SubmissionStore
from tools.export_dataset import main as export_dataset

SAMPLES = ROOT / "sample-datastore"
SIDE = 64
TRAINER = "nnUNetTrainer_1epoch"


def make_site(studies: Path) -> None:
    """Parts of the samples as studies: two of CT and three pictures, five parts each, two of them one patient's."""
    (studies / "sent").mkdir(parents=True)
    sent: dict[str, Mapping[str, int]] = {}
    for name in ("pyradiomics_lung1", "pyradiomics_lung2"):
        whole: Any = nibabel.load(SAMPLES / f"{name}.nii.gz")
        for number, (i, j) in enumerate(((40, 80), (60, 120), (130, 100), (150, 140), (100, 60))):
            part = whole.slicer[i : i + SIDE, j : j + SIDE, 4:20]
            values = np.asarray(part.dataobj)
            labels = np.where(values < -500, 1, np.where(values > 0, 2, 0))
            case = f"{name[-5:]}-p{number // 2}-{number}"
            nibabel.save(part, studies / f"{case}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), part.affine), studies / "sent" / f"{case}.nii.gz")
            sent[f"{case}.nii.gz"] = {"air": 1, "soft tissue": 2}
    for name in ("mni152_axial60", "mni152_axial72", "mni152_axial85"):
        grey = np.asarray(Image.open(SAMPLES / f"{name}.png").convert("L"))
        for number, row in enumerate((20, 40, 60, 80, 100)):
            part = grey[row : row + SIDE, 60 : 60 + SIDE]
            case = f"{name[-7:]}-p{number // 2}-{number}"
            _pictures(studies, case, part, sent)
    service = SubmissionService(
        SubmissionStore(studies / ".kprism" / "intake"),
        FolderStore(str(studies), extensions=MONAI_LABEL_SETTINGS["MONAI_LABEL_DATASTORE_FILE_EXT"]),
        LabelRegistry(),
    )
    for file, names in sent.items():
        image_id = file.removesuffix(".nii.gz").removesuffix(".png")
        service.submit(image_id, studies / "sent" / file, {"label_names": dict(names)}, by="check")


def _pictures(studies: Path, case: str, part: NDArray[Any], sent: dict[str, Mapping[str, int]]) -> None:
    """A grey picture and one in colour, with the same label."""
    label = Image.fromarray((part > 120).astype(np.uint8))
    Image.fromarray(part).save(studies / f"{case}.png")
    Image.fromarray(np.stack([part, part // 2, 255 - part], axis=2)).save(studies / f"colour-{case}.png")
    for name in (case, f"colour-{case}"):
        label.save(studies / "sent" / f"{name}.png")
        sent[f"{name}.png"] = {"brain": 1}


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", type=Path, required=True, help="folder of nnU-Net's commands")
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    given = parser.parse_args()
    work: Path = given.work.absolute()
    make_site(work / "studies")
    folders = {name: work / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for name, folder in folders.items():
        folder.mkdir()
        os.environ[name] = str(folder)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}

    def nnunet(command: str, *words: str | Path) -> None:
        print("$", command, *words, flush=True)
        subprocess.run([given.nnunet / command, *words], check=True)

    common = ["--studies", str(work / "studies"), "--conf", "patients", r"[a-z0-9]+-p\d", "--name", "Check"]
    assert export_dataset([*common, "--format", "nnunet", "--out", str(folders["nnUNet_raw"])]) == 0
    assert export_dataset([*common, "--format", "msd", "--out", str(work / "msd")]) == 0
    for path in sorted(folders["nnUNet_raw"].iterdir()):
        number = path.name[7:10]
        nnunet("nnUNetv2_plan_and_preprocess", "-d", number, "--verify_dataset_integrity", "-npfp", "1", "-np", "1")
        nnunet("nnUNetv2_train", number, "2d", "0", "-device", "cpu", "-tr", TRAINER)
    for path in sorted((work / "msd").glob("Task*CT")):
        nnunet("nnUNetv2_convert_MSD_dataset", "-i", path, "-np", "1")
        number = f"{int(path.name[4:6]):03}"
        nnunet("nnUNetv2_plan_and_preprocess", "-d", number, "--verify_dataset_integrity", "-npfp", "1", "-np", "1")
    print(f"nnU-Net has trained on what was exported from {app_folder()}.")


if __name__ == "__main__":
    main()
