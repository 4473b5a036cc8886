# SPDX-License-Identifier: Apache-2.0
"""An export from the first case to the last file: cases are read once, written aside, numbered, and put in place."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib.dataset_export.cases import CaseReader, ExportCase
from lib.dataset_export.descriptions import msd_json, nnunet_json, provenance
from lib.dataset_export.files import Voxels, write_picture, write_volume
from lib.dataset_export.kinds import PICTURE
from lib.dataset_export.plan import MSD, NNUNET, Options, Plan, StagedCase, make_plans
from lib.dataset_export.staging import PROVENANCE, publish
from lib.errors import RequestError
from lib.files import write_json
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import read_mask
from lib.labelled_cases import LabelledCase

SPLITS, IDENTIFIERS = "splits_final.json", "identifiers.csv"


@dataclass(frozen=True)
class Exported:
    """What was written: `plans` with their folders in `out`, those that are `new`, and sentences about the rest.

    `ways`: how many cases have their patient known how.
    """

    out: Path
    plans: tuple[Plan, ...]
    new: tuple[Path, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    ways: Mapping[str, int]
    splits_in: tuple[Path, ...] = field(default=())


class Export:
    """Writes the cases of a reader to `out` by way of the folder `staging`; `preprocessed` is nnU-Net's own, if any."""

    def __init__(
        self, reader: CaseReader, options: Options, out: Path, staging: Path, preprocessed: Path | None
    ) -> None:
        self._reader, self._options, self._out = reader, options, out
        self._staging, self._preprocessed = staging, preprocessed
        self._staged: list[StagedCase] = []
        self.left_out: list[str] = []

    def stage(self, cases: Iterable[LabelledCase]) -> None:
        """Read the cases and write their voxels aside; those that cannot be used are `left_out` with a sentence."""
        for case in cases:
            try:
                for part in self._reader.read(case):
                    self._staged.append(self._write(part))
            except RequestError as error:
                if error.is_passing:  # the store is down: the data set would lack cases without need
                    raise
                self.left_out.append(str(error))

    def _write(self, case: ExportCase) -> StagedCase:
        number, kind = len(self._staged), case.kind
        if kind.channels == 3 and kind.form != PICTURE and self._options.form == MSD:
            raise RequestError(
                f"image {case.image_id!r} is a volume in colour, which --format msd is not written with; "
                f"--format {NNUNET} is"
            )
        image, affine = case.image, case.image.affine
        if kind.form == PICTURE:
            voxels = [Voxels(image, channel=0 if image.is_colour and kind.channels == 1 else None)]
        else:
            channels = range(kind.channels) if image.is_colour else [None]
            voxels = [Voxels(image, channel=channel) for channel in channels]
        axis, paths, digests = image.orientation.axes[0], [], []
        for place, one in enumerate(voxels):
            path = self._staging / f"image_{number}_{place}{kind.ending}"
            is_picture = kind.form == PICTURE
            digests.append(write_picture(path, one) if is_picture else write_volume(path, one, affine, axis))
            paths.append(path)
        label = self._staging / f"label_{number}.nii.gz"
        write_volume(label, Voxels(as_image(case.labels, image)), affine, axis)
        return StagedCase(
            case.image_id,
            kind,
            tuple(paths),
            label,
            dict(case.structures),
            case.patient,
            affine,
            axis,
            tuple(digests),
            case.origin,
            case.volume,
        )

    def publish(self, source: str) -> Exported:
        """Number and describe what was staged, and put it in place.

        RequestError if that is not possible; then nothing has changed.
        """
        plans, notes = make_plans(self._staged, self._options)
        self._check_targets(plans)
        written = datetime.now(UTC).isoformat(timespec="seconds")
        ways: Counter[str] = Counter()
        folders = []
        for plan in plans:
            own = Counter(case.origin.patient_by for case in plan.cases)
            ways += own
            folders.append(self._make(plan, source, written, own))
        new = publish(folders, self._out)
        splits = [path for plan in plans if (path := self._hand_over(plan)) is not None]
        left_out = tuple(self.left_out)
        return Exported(self._out, tuple(plans), tuple(new), left_out, tuple(notes), dict(ways), tuple(splits))

    def _check_targets(self, plans: list[Plan]) -> None:
        """RequestError for another data set with the same number, and for other splits that nnU-Net trains with."""
        for plan in plans:
            prefix = plan.folder.split("_")[0]
            for other in sorted(self._out.glob(f"{prefix}_*")):
                if other.name != plan.folder:
                    raise RequestError(f"{other} has the number {plan.number} already; choose another by --id")
            splits = self._splits_of(plan)
            if splits is not None and splits.exists() and not _holds(splits, plan.splits):
                raise RequestError(
                    f"{splits} holds other splits, which nnU-Net trains with; nothing was changed. Remove it, or "
                    "choose another --id"
                )

    def _splits_of(self, plan: Plan) -> Path | None:
        """Where nnU-Net reads the splits of a data set; None if that is not known, or there are none."""
        if self._preprocessed is None or plan.options.form != NNUNET or not plan.splits:
            return None
        return self._preprocessed / plan.folder / SPLITS

    def _hand_over(self, plan: Plan) -> Path | None:
        splits = self._splits_of(plan)
        if splits is not None:
            splits.parent.mkdir(parents=True, exist_ok=True)
            write_json(splits, plan.splits)
        return splits

    def _make(self, plan: Plan, source: str, written: str, ways: Mapping[str, int]) -> Path:
        """The folder of a data set, in the staging folder."""
        folder = self._staging / plan.folder
        for part in ("imagesTr", "labelsTr", *(["imagesTs"] if plan.options.form == MSD else [])):
            (folder / part).mkdir(parents=True)
        cases = []
        for name, case in zip(plan.names, plan.cases, strict=True):
            for place, path in enumerate(case.images):
                channel = f"_{place:04}" if plan.options.form == NNUNET else ""
                os.replace(path, folder / "imagesTr" / f"{name}{channel}{plan.kind.ending}")
            label = folder / "labelsTr" / f"{name}{plan.kind.ending}"
            cases.append(replace(case, label_digest=_write_label(label, case, plan)))
        plan = replace(plan, cases=tuple(cases))
        write_json(folder / "dataset.json", msd_json(plan) if plan.options.form == MSD else nnunet_json(plan))
        write_json(folder / PROVENANCE, provenance(plan, source, written, ways))
        if plan.splits:
            write_json(folder / SPLITS, plan.splits)
        if plan.options.keep_identifiers:
            _write_identifiers(folder / IDENTIFIERS, plan)
        return folder


def _write_label(path: Path, case: StagedCase, plan: Plan) -> str:
    """Write a label with the numbers of the data set; returns the digest of its voxels."""
    mask = read_mask(case.label, "a label")
    table = np.zeros(256, np.uint8)
    for name, value in case.structures.items():
        table[value] = plan.codes.get(name, 0)
    voxels = Voxels(as_image(table[mask.array], mask))
    case.label.unlink()
    if plan.kind.form == PICTURE:
        return write_picture(path, voxels)
    return write_volume(path, voxels, case.affine, case.slice_axis)


def as_image(labels: NDArray[np.uint8], image: MedicalImage) -> MedicalImage:
    """A label map on the grid of an image, to be written like one."""
    return replace(image, array=labels, rescale=(1.0, 0.0), arrival=None)


def _write_identifiers(path: Path, plan: Plan) -> None:
    """A table of what tells who the patients and the annotators are."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["case", "image", "patient", "submitted by"])
        for name, case in zip(plan.names, plan.cases, strict=True):
            table.writerow([name, case.image_id, case.patient, case.origin.by])


def _holds(path: Path, content: object) -> bool:
    """Whether a file is JSON of this content."""
    try:
        return bool(json.loads(path.read_bytes()) == content)
    except ValueError:
        return False
