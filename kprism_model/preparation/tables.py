# SPDX-License-Identifier: Apache-2.0
"""Tables that lie beside the images of a download: .xlsx, which is XML in a zip file, and .csv."""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

TABLE_SUFFIXES = (".xlsx", ".csv")
_CELL = re.compile(r"([A-Z]+)\d*", re.IGNORECASE)
_DELIMITERS = ",;\t"
_HEADER_ROWS = 10


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table as (number of the row in the file, from 1 on; column -> text), without empty ones.

    Columns are named in lower case. The header is one of the first ten rows. ValueError that names the file if it
    cannot be read or lacks one of `columns`.
    """
    rows = list(_rows(path))
    for place, (_, header) in enumerate(rows[:_HEADER_ROWS]):
        names = [name.lower() for name in header]
        if set(columns) <= set(names):
            return [
                (number, {name: text for name, text in zip(names, row, strict=False) if name})
                for number, row in rows[place + 1 :]
                if any(row)
            ]
    first = ", ".join(filter(None, rows[0][1])) if rows else ""
    raise ValueError(f"{path} has no columns {' and '.join(columns)}; its first row is {first!r}")


def whole_number(text: str) -> int | None:
    """A number of a table, which some programs write as 9.0; None if it is not a whole one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    if path.suffix.lower() == ".csv":
        yield from enumerate(_csv_rows(path), start=1)
        return
    try:
        with zipfile.ZipFile(path) as book:
            yield from _sheet_rows(book)
    except (OSError, zipfile.BadZipFile, KeyError, ElementTree.ParseError, IndexError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an .xlsx table: {error}; save it as .csv beside it") from error


def _csv_rows(path: Path) -> Iterator[list[str]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = text.splitlines()
    delimiter = max(_DELIMITERS, key=lambda character: sum(line.count(character) for line in lines[:_HEADER_ROWS]))
    for row in csv.reader(lines, delimiter=delimiter):
        yield [cell.strip() for cell in row]


def _sheet_rows(book: zipfile.ZipFile) -> Iterator[tuple[int, list[str]]]:
    shared: list[str] = []
    if "xl/sharedStrings.xml" in book.namelist():
        shared = [_text(item) for item in ElementTree.fromstring(book.read("xl/sharedStrings.xml")).iterfind("{*}si")]
    sheet = ElementTree.fromstring(book.read(_first_sheet(book)))
    number = 0
    for row in sheet.iterfind("{*}sheetData/{*}row"):
        number = int(row.get("r") or number + 1)
        cells: dict[int, str] = {}
        for cell in row.iterfind("{*}c"):
            cells[_column(cell.get("r"), default=max(cells, default=-1) + 1)] = _cell_text(cell, shared)
        yield number, [cells.get(column, "") for column in range(max(cells, default=-1) + 1)]


def _first_sheet(book: zipfile.ZipFile) -> str:
    """The path of the first sheet in the zip file."""
    workbook = ElementTree.fromstring(book.read("xl/workbook.xml"))
    sheet = workbook.find("{*}sheets/{*}sheet")
    if sheet is None:
        raise ValueError("it has no sheet")
    (link,) = (value for key, value in sheet.attrib.items() if key.endswith("}id"))
    for relation in ElementTree.fromstring(book.read("xl/_rels/workbook.xml.rels")):
        if relation.get("Id") == link:
            return str(PurePosixPath("xl", relation.get("Target", ""))).lstrip("/")
    raise ValueError("its first sheet is missing")


def _column(reference: str | None, default: int) -> int:
    """Column from 0 on: 0 for "A1", 27 for "AB1"."""
    match = _CELL.fullmatch(reference or "")
    if match is None:
        return default
    column = 0
    for letter in match[1].upper():
        column = column * 26 + ord(letter) - ord("A") + 1
    return column - 1


def _cell_text(cell: ElementTree.Element, shared: list[str]) -> str:
    if (inline := cell.find("{*}is")) is not None:
        return _text(inline)
    value = cell.findtext("{*}v") or ""
    return shared[int(value)] if cell.get("t") == "s" else value.strip()


def _text(item: ElementTree.Element) -> str:
    """The text of a string, also of one with parts in different fonts, without notes on its pronunciation."""
    parts = [*item.iterfind("{*}t"), *item.iterfind("{*}r/{*}t")]
    return "".join(part.text or "" for part in parts).strip()
