# SPDX-License-Identifier: Apache-2.0
"""Writing the cases of a download as a data set: images, label maps and dataset.json, which `train --data` reads.

Each file is written beside its place and renamed. dataset.json is written last, so a folder that has one is whole.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import nibabel as nib
from PIL import Image

from kprism_model.files import PART
from kprism_model.orientation import SliceOrientation
from kprism_model.preparation.findings import FoundCase
from kprism_model.preparation.images import Grid
from kprism_model.preparation.labels import LabelMap, label_counts
from kprism_model.preparation.records import CaseRecord, append_record, case_key, read_records
from kprism_model.preparation.target import DATASET_NAME
from kprism_model.progress import progress_bar

IMAGES, LABELS = "images", "labels"


def write_cases(
    cases: Sequence[FoundCase], classes: Mapping[int, str], out: Path, *, workers: int, progress: bool
) -> tuple[dict[str, CaseRecord], list[str]]:
    """Write the cases that are not in `out` yet, `workers` at a time.

    Returns the records of all whole cases by name, in the order of `cases`, and a sentence for each faulty one.
    """
    for name in (IMAGES, LABELS):
        (out / name).mkdir(parents=True, exist_ok=True)
    _remove_parts(out)
    known = read_records(out)
    done: dict[str, CaseRecord] = {}
    faults: dict[str, str] = {}
    waiting = []
    for case in cases:
        try:
            key = case_key(case, classes)
        except OSError as error:
            faults[case.name] = f"{case.name}: {error}"
            continue
        record = known.get(case.name)
        if record is not None and record.key == key and _is_there(out, record):
            done[case.name] = record
        else:
            waiting.append((case, key))
    gone = set(known) - {case.name for case in cases}
    if waiting or gone:
        (out / DATASET_NAME).unlink(missing_ok=True)  # it does not describe what is half changed
    for name in gone:
        _remove(out, known[name])
    with ThreadPoolExecutor(workers, thread_name_prefix="prepare") as threads:
        futures = _submitted(threads, waiting, classes, out, workers)
        for case, future in progress_bar(futures, "cases", shown=progress and bool(waiting), total=len(waiting)):
            try:
                record = future.result()
                append_record(out, record)
                done[case.name] = record
            except Exception as error:  # whatever a library makes of a strange file, the other cases go on
                if isinstance(error, OSError) and not _is_of_download(error, case):
                    raise  # a full disk, not a faulty case
                named = isinstance(error, ValueError)
                faults[case.name] = str(error) if named else f"{case.image.files[0]} or its label: {error!r}"
    return {case.name: done[case.name] for case in cases if case.name in done}, [
        faults[case.name] for case in cases if case.name in faults
    ]


def _submitted(
    threads: ThreadPoolExecutor,
    waiting: Sequence[tuple[FoundCase, str]],
    classes: Mapping[int, str],
    out: Path,
    workers: int,
) -> Iterator[tuple[FoundCase, Future[CaseRecord]]]:
    """Cases as they finish; no more than `workers` have begun, so an interrupt waits for few."""
    rest = iter(waiting)
    running: dict[Future[CaseRecord], FoundCase] = {}
    while True:
        for case, key in islice(rest, workers - len(running)):
            running[threads.submit(_write_case, case, key, classes, out)] = case
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future


def _write_case(case: FoundCase, key: str, classes: Mapping[int, str], out: Path) -> CaseRecord:
    grid = case.image.grid()
    labels = case.label.read(grid)
    suffix = case.image.suffix
    label_suffix = ".png" if grid.affine is None else ".nii.gz"
    image, label = Path(IMAGES, case.name + suffix), Path(LABELS, case.name + label_suffix)
    with _renamed(out / image, suffix) as path:
        case.image.write(path)
    with _renamed(out / label, label_suffix) as path:
        _write_label(path, labels, grid)
    counts = label_counts(labels)
    return CaseRecord(
        name=case.name,
        key=key,
        image=str(image),
        label=str(label),
        shape=grid.shape,
        spacing=tuple(round(length, 4) for length in grid.spacing),
        slices=_slices(grid),
        voxels={name: int(counts[index]) for index, name in classes.items()},
        remarks=tuple(getattr(case.label, "remarks", ())),  # of a `RemarkingLabel`
    )


def _is_of_download(error: OSError, case: FoundCase) -> bool:
    """Whether a file of the case could not be read; else its copy could not be written."""
    files = {str(path) for path in (*case.image.files, *case.label.files)}
    return error.filename2 is None and str(error.filename) in files


def _write_label(path: Path, labels: LabelMap, grid: Grid) -> None:
    if grid.affine is None:
        Image.fromarray(labels).save(path, "png")
    else:
        nib.save(nib.Nifti1Image(labels, grid.affine), path)


def _slices(grid: Grid) -> int:
    return 1 if grid.affine is None else SliceOrientation.of(grid.affine, grid.shape).stack_shape[0]


@contextmanager
def _renamed(path: Path, suffix: str) -> Iterator[Path]:
    """A name beside `path` to write to, which is renamed to `path` at the end."""
    temporary = path.with_name(f".{uuid.uuid4().hex}{PART}{suffix}")
    try:
        yield temporary
        path.unlink(missing_ok=True)  # a rename between two links to one file would do nothing
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_there(out: Path, record: CaseRecord) -> bool:
    return (out / record.image).is_file() and (out / record.label).is_file()


def _remove(out: Path, record: CaseRecord) -> None:
    """Remove the files of a case that the download has no longer."""
    (out / record.image).unlink(missing_ok=True)
    (out / record.label).unlink(missing_ok=True)


def _remove_parts(out: Path) -> None:
    for name in (IMAGES, LABELS):
        for path in (out / name).glob(f".*{PART}*"):
            path.unlink(missing_ok=True)
