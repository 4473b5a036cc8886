# SPDX-License-Identifier: Apache-2.0
"""The files that describe a data set: `dataset.json` of nnU-Net and of the Decathlon, `provenance.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydicom.sr.coding import Code

from kprism_model import __version__
from lib.dataset_export.kinds import PICTURE
from lib.dataset_export.plan import NNUNET, Plan
from lib.dicom.segments import codes_of

LICENCE = "not stated; that of the site's images"

DESCRIPTION = (
    "Images and submitted labels of a K-Prism server. A label tells of the structures that provenance.json lists for "
    "its case, and nothing about others."
)


def nnunet_json(plan: Plan) -> dict[str, Any]:
    """nnU-Net's `dataset.json` (version 2); it leaves alone the keys that it does not know."""
    content: dict[str, Any] = {
        "channel_names": {str(place): name for place, name in enumerate(plan.kind.channel_names)},
        "labels": {"background": 0, **plan.codes},
        "numTraining": len(plan.cases),
        "file_ending": plan.kind.ending,
        "name": plan.name,
        "description": DESCRIPTION,
        "licence": LICENCE,
    }
    if plan.kind.form != PICTURE and not plan.is_rectangular:  # nnU-Net's first choice, ITK, cannot read them
        content["overwrite_image_reader_writer"] = "NibabelIO"
    return {**content, "codes": codes(plan)}


def msd_json(plan: Plan) -> dict[str, Any]:
    """The `dataset.json` of the Medical Segmentation Decathlon, with the patients and the validation that we read.

    `numTraining` counts both lists, as nnU-Net's converter takes all that is in `imagesTr`.
    """
    ending = plan.kind.ending
    entries = [
        {"image": f"./imagesTr/{name}{ending}", "label": f"./labelsTr/{name}{ending}", "patient": f"patient {owner}"}
        for name, owner in zip(plan.names, plan.owners, strict=True)
    ]
    held_out = {name for fold in plan.splits[:1] for name in fold["val"]}
    parts: dict[bool, list[dict[str, str]]] = {True: [], False: []}
    for name, entry in zip(plan.names, entries, strict=True):
        parts[name in held_out].append(entry)
    return {
        "name": plan.name,
        "description": DESCRIPTION,
        "reference": "",
        "licence": LICENCE,
        "release": "",
        "tensorImageSize": "2D" if plan.kind.form == PICTURE else "3D",
        "modality": {"0": plan.kind.modality},
        "labels": {"0": "background", **{str(value): name for name, value in plan.codes.items()}},
        "numTraining": len(entries),
        "numTest": 0,
        "training": parts[False],
        "validation": parts[True],
        "test": [],
        "codes": codes(plan),
    }


def codes(plan: Plan) -> dict[str, Any]:
    """Structure -> its category and type as in our DICOM segmentations: SNOMED CT where it is known."""
    found = {}
    for name in plan.classes:
        category, kind = codes_of(name)
        found[name] = {"category": _code(category), "type": _code(kind)}
    return found


def _code(code: Code) -> dict[str, str]:
    return {"value": code.value, "scheme": code.scheme_designator, "meaning": code.meaning}


def provenance(plan: Plan, source: str, written: str, ways: Mapping[str, int]) -> dict[str, Any]:
    """Where each image and label of a data set comes from."""
    options = plan.options
    cases = []
    for name, case, owner in zip(plan.names, plan.cases, plan.owners, strict=True):
        origin, digests = case.origin, list(case.digests)
        is_named = not origin.is_dicom or options.keep_identifiers
        entry: dict[str, Any] = {
            "case": name,
            **({"image": case.image_id} if is_named else {}),
            **({"volume": case.volume} if case.volume else {}),
            "patient": owner,
            "structures": sorted(set(case.structures) & set(plan.classes), key=plan.classes.index),
            "submitted": origin.at,
            "way": origin.way,
            "image_sha256": digests[0] if len(digests) == 1 else digests,
            "label_sha256": case.label_digest,
        }
        if origin.first_mask:
            entry["first_mask"] = dict(origin.first_mask)
        if origin.warnings:
            entry["warnings"] = list(origin.warnings)
        cases.append(entry)
    return {
        "program": f"K-Prism {__version__}",
        "written": written,
        "source": source,
        "format": "nnU-Net raw data set, version 2" if options.form == NNUNET else "Medical Segmentation Decathlon",
        "images": str(plan.kind),
        "labels": DESCRIPTION,
        "asked": {
            "structures": list(options.structures) or "all",
            "complete": options.complete,
            "folds": options.folds,
            "seed": options.seed,
        },
        "patients": {"number": len(set(plan.owners)), "known by": dict(ways)},
        "classes": [
            {"value": value, "name": name, "cases": plan.counts[name], **codes(plan)[name]}
            for name, value in plan.codes.items()
        ],
        "cases": cases,
    }
