# SPDX-License-Identifier: Apache-2.0
"""Tiny copies of downloads, made of random pictures, and what `kprism prepare` makes of them."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kprism_model.cli.main import main
from kprism_model.data.datasets import Case, Dataset, read_dataset, read_picture


def volume(path: Path, values: NDArray[Any], affine: NDArray[np.float64] | None = None) -> NDArray[Any]:
    """Write a NIfTI file, with an affine of 1.5 x 1.5 x 8 mm unless one is given; returns the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([1.5, 1.5, 8.0, 1.0]) if affine is None else affine), path)
    return values


def noise(seed: int, shape: Sequence[int] = (9, 8, 4)) -> NDArray[np.int16]:
    """Values as of a CT volume."""
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)


def blocks(seed: int, values: Sequence[int], shape: Sequence[int] = (9, 8, 4)) -> NDArray[np.uint8]:
    """A label with each of `values` in some voxels, and background."""
    labels = np.random.default_rng(seed).choice([0, *values], shape).astype(np.uint8)
    labels.reshape(-1)[: len(values) + 1] = [0, *values]
    return labels


def picture(path: Path, pixels: NDArray[np.uint8], mode: str | None = None, **options: Any) -> NDArray[np.uint8]:
    """Write a picture, converted to `mode` if it is given; returns the pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(pixels)
    (made if mode is None else made.convert(mode)).save(path, **options)
    return pixels


def colour_noise(seed: int, size: tuple[int, int] = (24, 32)) -> NDArray[np.uint8]:
    """Random colours, (rows, columns, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def disc(size: tuple[int, int] = (24, 32), centre: tuple[int, int] = (12, 16), radius: int = 6) -> NDArray[np.uint8]:
    """A disc of 1 on 0, (rows, columns)."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    return ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2).astype(np.uint8)


def spreadsheet(path: Path, rows: Sequence[Sequence[object]], *, shared: bool = True, sheet: str = "sheet1") -> None:
    """Write an .xlsx file; texts are in a table of their own, as Excel writes them, or in their cells."""
    texts: list[str] = []

    def cell(row: int, column: int, value: object) -> str:
        place = f'r="{chr(ord("A") + column)}{row}"'
        if isinstance(value, int):
            return f"<c {place}><v>{value}</v></c>"
        if not shared:
            return f'<c {place} t="inlineStr"><is><t>{value}</t></is></c>'
        texts.append(str(value))
        return f'<c {place} t="s"><v>{len(texts) - 1}</v></c>'

    lines = []
    for number, row in enumerate(rows, start=1):
        cells = [cell(number, column, value) for column, value in enumerate(row) if value is not None]
        lines.append(f'<row r="{number}">{"".join(cells)}</row>')
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    documents = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    packages = "http://schemas.openxmlformats.org/package/2006/relationships"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as book:
        book.writestr(
            "xl/workbook.xml",
            f'<workbook {main} xmlns:r="{documents}"><sheets><sheet name="a" r:id="rId1"/></sheets></workbook>',
        )
        book.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<a:Relationships xmlns:a="{packages}">'
            f'<a:Relationship Id="rId1" Target="worksheets/{sheet}.xml"/></a:Relationships>',
        )
        book.writestr(
            f"xl/worksheets/{sheet}.xml", f"<worksheet {main}><sheetData>{''.join(lines)}</sheetData></worksheet>"
        )
        if shared:
            # One text in two parts, as Excel writes it where a part is bold.
            items = "".join(f"<si><r><t>{text[:2]}</t></r><r><t>{text[2:]}</t></r></si>" for text in texts)
            book.writestr("xl/sharedStrings.xml", f"<sst {main}>{items}</sst>")


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made: status, what it printed, the data set, and its dataset.json."""

    status: int
    printed: str
    dataset: Dataset
    content: Mapping[str, Any]

    def case(self, name: str) -> Case:
        """A case by its name."""
        return {case.name: case for cases in self.dataset.splits.values() for case in cases}[name]

    def names(self, split: str) -> set[str]:
        """Names of the cases on a list."""
        return {case.name for case in self.dataset.cases(split)}

    def label(self, name: str) -> NDArray[np.uint8]:
        """The label of a case as it is stored."""
        return _values(self.case(name).label)

    def image(self, name: str) -> NDArray[Any]:
        """The image of a case as it is stored."""
        return _values(self.case(name).image)

    def remarks(self, kind: str) -> list[str]:
        """The remarks of a kind in dataset.json."""
        found: list[str] = self.content["prepared"]["remarks"].get(kind, [])
        return found


def prepare(name: str, folder: Path, out: Path, *options: str) -> Prepared:
    """Run the command; its printed output includes errors."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = main(["prepare", name, str(folder), "--out", str(out), "--workers", "2", *options])
    if status == 2:
        raise ValueError(printed.getvalue())
    content = json.loads((out / "dataset.json").read_text())
    return Prepared(status, printed.getvalue(), read_dataset(out), content)


def _values(path: Path | None) -> NDArray[Any]:
    assert path is not None
    if path.name.endswith((".nii", ".nii.gz")):
        image: Any = nib.load(path)
        return np.asarray(image.dataobj)
    return read_picture(path)
