# SPDX-License-Identifier: Apache-2.0
"""BKAI-IGH NeoPolyp-Small: colonoscopy with coloured masks, which are JPEG.

    train/train/0081835cf877e004e8bfb905b78a9139.jpeg
    train_gt/train_gt/0081835cf877e004e8bfb905b78a9139.jpeg (red: neoplastic, green: not neoplastic)
    test/test/019410b1fcf0625f608b4ce97629ab55.jpeg (without masks)

Folders may be doubled or not; the zip file may hold zip files. Sources: github.com/constantinpape/torch-em,
torch_em/data/datasets/medical/bkai_igh_neopolyp.py (nearest colour); github.com/bangwayne/K-Prism,
dataset_conversion/khai_png_norm.py (each channel above 128; red where both are). They agree away from edges; here the
nearest colour is taken. No patient numbers exist.
"""

from __future__ import annotations

from pathlib import Path

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.colour_masks import ColourMask, read_colour
from kprism_model.preparation.files import folders_above, walk
from kprism_model.preparation.findings import Findings, FoundCase
from kprism_model.preparation.images import StoredImage
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pictures import add_file, is_picture, join_equal_pictures, leave_out, paired

OPTIONS: frozenset[str] = frozenset()

_FOLDERS = ("train", "train_gt", "test")
_EXPECTED = "pictures in the folders train and train_gt"


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The pictures of `train` with a mask in `train_gt`; those of `test` have none."""
    findings = Findings()
    unclear: set[str] = set()
    files: dict[str, dict[str, Path]] = {name: {} for name in _FOLDERS}
    packed: list[Path] = []
    for path in walk(folder):
        place = next((name for name in folders_above(path, folder) if name in _FOLDERS), None)
        if path.suffix.lower() == ".zip":
            packed.append(path)
        elif place is None or not is_picture(path):
            if path.suffix.lower() != ".csv":
                findings.remark("ignored", str(path))
        else:
            add_file(files[place], path.stem.casefold(), path, findings, unclear)
    lacking = [name for name in ("train", "train_gt") if not files[name]]
    if lacking:
        names = ", ".join(path.name for path in packed)
        advice = f"; unpack {names} first" if packed else ""
        raise ValueError(f"{folder} has no pictures in {' and '.join(lacking)}: expected {_EXPECTED}{advice}")
    for path in packed:
        findings.remark("ignored", f"{path}, which is still packed")
    for path in files["test"].values():
        findings.remark("unlabelled", str(path))
    findings.remark("note", "each pixel of a mask has the class of the nearest colour")
    findings.remark("note", "no patient numbers exist: pictures of one person may be on several lists")
    colours = {read_colour(text): index for text, index in entry.indices.items()}
    for name, path, mask in paired(files["train"], files["train_gt"], findings):
        findings.cases.append(FoundCase(name, name, None, StoredImage(path), ColourMask(mask, colours)))
    leave_out(findings, unclear)
    join_equal_pictures(findings)
    return findings
