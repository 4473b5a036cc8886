# SPDX-License-Identifier: Apache-2.0
"""The state of the server for the mode and the status page: one JSON, cheap enough to request every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastapi.responses import Response
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask

from lib.api.ohif import versions
from lib.api.opened_file import opened_file
from lib.dicom.dicom_folder_store import DicomFolderStore
from lib.dicom.label_objects import KINDS
from lib.dicom.mixed_store import dicom_part
from lib.dicom.segments import colour_of
from lib.errors import NotFoundError
from lib.imaging.label_registry import BACKGROUND

QUEUE = 50
"""Cases without a label that are listed; there may be thousands."""

MISSING = 20
"""Lines of a work list that are shown because they name nothing."""

NOT_SERVED = 100
"""Entries of `not_served` that are listed."""


def status() -> dict[str, Any]:
    """Structures with colours, cases, models, strategies, training, versions of the weights.

    `warning` says why the published weights do not serve; null if they do. `served` lists what answers each structure
    in each mode, see `versions.served`. `upgrade` is what remains to do after an
    upgrade to a new network, see `versions.upgrade`; null if nothing does. `report` is the time of the last training's
    report in seconds since 1970; null without a report. `worklist` is the setting that limits the cases, or null,
    `worklist_problem` why it cannot be read any more, and `worklist_missing` its first lines that name nothing of the
    studies, of `worklist_missing_count`.
    `not_served` is what is in the studies but cannot be segmented, with the reasons; there may be more than are listed
    (`not_served_count`). `nothing_to_serve` is a sentence if there is no image, else null.
    """
    app = app_instance()
    info = app.info()
    networks = app.engine.networks()
    names = [name for name in info["labels"] if name != BACKGROUND]
    return {
        "name": info["name"],
        "time": time.time(),
        "weights": networks.version,
        "warning": app.learning_loop.warning,
        "device": networks.device,
        "structures": [{"name": name, "colour": list(colour_of(name))} for name in names],
        "known": list(info["models"]["semantic"]["labels"]),
        "models": {name: model["type"] for name, model in info["models"].items()},
        "strategies": {name: entry["description"] for name, entry in info["strategies"].items()},
        "trainers": list(info["trainers"]),
        "cases": _cases(app),
        **_worklist(app),
        **_not_served(app.datastore()),
        "training": _training(info.get("train_stats") or {}),
        "versions": versions.listed(app),
        "served": versions.served(app),
        "upgrade": versions.upgrade(app),
        "report": path.stat().st_mtime if (path := _report(app)) else None,
    }


def report() -> Response:
    """The page that the last training wrote."""
    path = _report(app_instance())
    if path is None:
        raise NotFoundError("no training has written a report yet")
    return opened_file(path, media_type="text/html", headers={"Cache-Control": "no-cache"})


def _report(app: Any) -> Path | None:
    pages = (app.config.state / "training" / "reports").glob("*.html")
    return max(pages, key=lambda path: path.stat().st_mtime, default=None)


def _cases(app: Any) -> dict[str, Any]:
    """How many cases there are, how many are labelled, which are not, and which labels are unusable."""
    datastore = app.datastore()
    images, labelled = datastore.list_images(), set(datastore.get_labeled_images())
    waiting = [image for image in images if image not in labelled]
    return {
        "all": len(images),
        "labelled": len(labelled),
        "waiting": [{"id": image, **_where(datastore.get_image_info(image))} for image in waiting[:QUEUE]],
        "refused": list(_refused(app)),
        "indexed": _indexed(datastore),
    }


def _indexed(datastore: Any) -> list[int] | None:
    """How many DICOM files of a folder are indexed, of how many; None while there are none to index."""
    series = dicom_part(datastore)
    progress = series.progress if isinstance(series, DicomFolderStore) else None
    return None if progress is None else list(progress)


def _worklist(app: Any) -> dict[str, Any]:
    worklist = app.config.worklist
    missing = [] if worklist is None or worklist.query else worklist.missing(app.datastore().names_of_images())
    return {
        "worklist": worklist.source if worklist else None,
        "worklist_problem": worklist.problem if worklist else None,
        "worklist_missing": missing[:MISSING],
        "worklist_missing_count": len(missing),
    }


def _not_served(datastore: Any) -> dict[str, Any]:
    entries = datastore.not_served()
    return {
        "not_served": [entry._asdict() for entry in entries[:NOT_SERVED]],
        "not_served_count": len(entries),
        "nothing_to_serve": datastore.nothing_to_serve(),
    }


def _refused(app: Any) -> Iterator[dict[str, Any]]:
    """Stored labels that cannot be used, and why."""
    datastore = app.datastore()
    series = dicom_part(datastore)
    if series is not None:
        for segmentation in series.unusable():
            entry = segmentation.entry
            reason = f"{KINDS.get(entry.modality, 'label')} {entry.description or entry.series!r} {segmentation.reason}"
            yield {"title": entry.patient, "study": entry.study, "reason": reason}
    for image, entry in app.learning_loop.submission_store.rejected().items():
        where = _where(datastore.get_image_info(image) or {})
        yield {**where, "title": where["title"] or image, "reason": entry["reason"]}


def _where(info: Mapping[str, Any]) -> dict[str, Any]:
    """The title of a case and the study to open; None if unknown."""
    return {"title": info.get("title") or info.get("PatientID"), "study": info.get("StudyInstanceUID")}


def _training(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The last training: whether it runs, how far it is, its curve and the end of its log."""
    task, _ = AsyncTask.status("train")
    known: Mapping[str, Any] = next((entry for entry in stats.values() if entry), {})
    if task is None:  # no training since the server started
        return {"running": False, "progress": 0.0, "sentence": known.get("message"), "curve": [], "log": []}
    running = task["status"] in ("SUBMITTED", "RUNNING")
    done, total = int(known.get("epoch") or 0), int(known.get("total_epochs") or 0)
    return {
        "running": running,
        "progress": done / total if total else 0.0,
        "sentence": _sentence(task, running, done, total, known),
        "curve": known.get("curve") or [],
        "log": list(task.get("details") or [])[-20:],
    }


def _sentence(task: Mapping[str, Any], running: bool, done: int, total: int, known: Mapping[str, Any]) -> str:
    ends = {"DONE": "The last training is done", "ERROR": "The last training failed", "STOPPED": "It was stopped"}
    start = f"Training: {done} of {total} rounds" if running and total else "Training"
    text = start if running else ends.get(str(task["status"]), str(task["status"]))
    best = known.get("best_metric")
    text = f"{text}; best Dice {float(best):.3f}." if best is not None else f"{text}."
    message = known.get("message")
    return f"{text} {message[:1].upper()}{message[1:]}." if message and task["status"] in ("DONE", "ERROR") else text
