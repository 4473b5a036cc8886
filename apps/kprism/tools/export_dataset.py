# SPDX-License-Identifier: Apache-2.0
"""`./kprism export-dataset`: a site's images and submitted labels as a data set for nnU-Net or of the Decathlon's form.

The studies are only read, so a server may go on serving them.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests

from kprism_model.addresses import is_url
from kprism_model.cli.serve import check_studies
from kprism_model.cli.settings import check_setting
from kprism_model.cli.usage import UsageError
from kprism_model.locations import app_folder
from kprism_model.progress import progress_bar
from lib.dataset_export.cases import CaseReader
from lib.dataset_export.export import SPLITS, Export, Exported
from lib.dataset_export.kinds import PICTURE
from lib.dataset_export.origin import BY_CASE, BY_ID, BY_PATTERN
from lib.dataset_export.plan import MSD, NNUNET, Options, Plan
from lib.dataset_export.site import open_site
from lib.dataset_export.staging import PROVENANCE, staging
from lib.dicom.series_writer import SOP_CLASSES
from tools.import_folder import described_modality

PREPROCESSED, RAW = "nnUNet_preprocessed", "nnUNet_raw"
"""nnU-Net's own environment variables."""

SHOWN = 20
"""Cases that are left out of which each has a line."""

PATIENTS_BY = {
    BY_ID: "PatientID for {}",
    BY_PATTERN: "the pattern of --conf patients for {}",
    BY_CASE: "nothing for {}, so each of these counts as a patient",
}


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(prog="kprism export-dataset", description=__doc__)
    options.add_argument("--studies", required=True, metavar="FOLDER|URL", help="what a server serves")
    options.add_argument("--format", required=True, choices=(NNUNET, MSD), help="nnU-Net's raw data set, or MSD")
    options.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the data sets (nnUNet_raw)")
    options.add_argument("--name", default="KPrism", help="name of the data set (%(default)s)")
    options.add_argument("--id", type=int, metavar="N", help="its number (501, or 51 for msd); several count on")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="of the folds (%(default)s)")
    options.add_argument("--folds", type=int, default=5, metavar="N", help="of cross-validation (%(default)s)")
    options.add_argument("--structures", nargs="+", default=[], metavar="NAME", help="only these structures")
    options.add_argument("--complete", action="store_true", help="only cases that annotate all structures")
    options.add_argument(
        "--modality",
        choices=sorted(SOP_CLASSES),
        help="of image files that are not DICOM; by default that of a dataset.json, else CT or unknown by their values",
    )
    options.add_argument(
        "--keep-identifiers",
        action="store_true",
        help="write identifiers.csv, with image, patient and annotator of each case; else DICOM is not named",
    )
    options.add_argument(
        "--conf",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="as for serve: patients, state, worklist, dicomweb_token_file, ...",
    )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 1, with a sentence, if nothing is written, and 130 after Ctrl-C."""
    given = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left behind
    try:
        exported, kept = run(given), given.keep_identifiers
    except KeyboardInterrupt:
        print("kprism: interrupted; nothing was written", file=sys.stderr)
        return 130
    except (UsageError, ValueError, OSError, requests.RequestException) as error:
        print(f"kprism: {error}", file=sys.stderr)
        return 1
    for sentence in warnings(exported):
        print(f"kprism: {sentence}", file=sys.stderr)
    print("\n".join(report(exported, kept)))
    return 0


def run(given: argparse.Namespace) -> Exported:
    """Export what is asked for; errors as `main` prints them."""
    options = Options.checked(
        given.format,
        given.name,
        given.id,
        given.seed,
        given.folds,
        structures=tuple(given.structures),
        complete=given.complete,
        keep_identifiers=given.keep_identifiers,
    )
    studies, conf = check_studies(given.studies), dict(check_setting(*pair) for pair in given.conf)
    out = Path(given.out).absolute()
    if not is_url(studies) and out.resolve().is_relative_to(studies):
        raise ValueError(f"--out {given.out} lies in the studies; expected a folder elsewhere")
    modality = given.modality or (None if is_url(studies) else described_modality(Path(studies)))
    preprocessed = Path(os.environ[PREPROCESSED]) if os.environ.get(PREPROCESSED) else None
    with staging(out) as folder:
        site = open_site(studies, conf, app_folder(), folder / "read")
        reader = CaseReader(site, folder / "read", modality)
        export = Export(reader, options, out, folder, preprocessed)
        export.left_out += site.left_out
        export.stage(progress_bar(reader.listed(), "export", shown=sys.stderr.isatty()))
        return export.publish(site.source)


def warnings(exported: Exported) -> Iterator[str]:
    """Sentences about what is missing in the data sets, or may be misread."""
    for reason in exported.left_out[:SHOWN]:
        yield f"left out: {reason}"
    if len(exported.left_out) > SHOWN:
        yield f"left out: {len(exported.left_out) - SHOWN} more"
    for note in exported.notes:
        yield f"left out: {note}"
    for plan in exported.plans:
        if plan.partial:
            counts = ", ".join(f"{name} in {count}" for name, count in plan.counts.items())
            yield (
                f"{plan.folder}: {plan.partial} of {len(plan.cases)} cases do not annotate all structures ({counts}). "
                "Training takes what is not annotated for background. --complete leaves these cases out; "
                f"--structures NAME... chooses structures. {PROVENANCE} lists those of each case"
            )
        overlapping = sum(bool(case.origin.warnings) for case in plan.cases)
        if overlapping:
            yield (
                f"{plan.folder}: {overlapping} labels had more than one structure in a voxel, or lost something else: "
                f"the smaller structure is on top; see warnings in {PROVENANCE}"
            )
        if not plan.splits:
            yield f"{plan.folder}: all cases are of one patient, so there are no folds"
        elif len(plan.splits) < plan.options.folds:
            count = len(plan.splits)
            yield f"{plan.folder}: there are {count} patients, so there are {count} folds, not {plan.options.folds}"
    known = [PATIENTS_BY[way].format(count) for way, count in exported.ways.items()]
    yield f"patients of the cases are known by {'; '.join(known)}"


def report(exported: Exported, keep_identifiers: bool) -> Iterator[str]:
    """Lines about what was written, and what comes next."""
    for plan in exported.plans:
        path = exported.out / plan.folder
        is_new = path in exported.new
        structures = ", ".join(f"{value} {name}" for name, value in plan.codes.items())
        yield (
            f"{'Wrote' if is_new else 'Unchanged:'} {path}: cases {len(plan.cases)}, patients {len(set(plan.owners))}; "
            f"{plan.kind}; {structures}"
        )
    if not keep_identifiers and any(not case.origin.is_dicom for plan in exported.plans for case in plan.cases):
        yield f"{PROVENANCE} names the image files."
    for path in exported.splits_in:
        yield f"Wrote {path}"
    for plan in exported.plans:
        yield from _next_steps(plan, exported)


def _next_steps(plan: Plan, exported: Exported) -> Iterator[str]:
    path = exported.out / plan.folder
    if plan.options.form == MSD:
        yield f"Train: ./kprism train --data {path} ..."
        return
    yield f"Train: export {RAW}={exported.out}"
    yield f"       nnUNetv2_plan_and_preprocess -d {plan.number} --verify_dataset_integrity"
    if plan.splits and not exported.splits_in:
        yield f"       cp {path / SPLITS} ${PREPROCESSED}/{plan.folder}/"
    configuration = "2d" if plan.kind.form == PICTURE else "3d_fullres"
    yield f"       nnUNetv2_train {plan.number} {configuration} {0 if plan.splits else 'all'}"


if __name__ == "__main__":
    sys.exit(main())
