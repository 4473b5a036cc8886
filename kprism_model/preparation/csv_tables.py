# SPDX-License-Identifier: Apache-2.0
"""Tables of downloads, as CSV files that several programs wrote: with or without a byte order mark, commas or `;`."""

from __future__ import annotations

import csv
from pathlib import Path


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows by the names of the columns, without white space around; rows without any value are left out.

    ValueError that names the file if it is not text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        lines = path.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    separator = max(",;\t", key=(lines[0] if lines else "").count)
    rows = [[value.strip() for value in row] for row in csv.reader(lines, delimiter=separator)]
    names = rows[0] if rows else []
    return [dict(zip(names, row, strict=False)) for row in rows[1:] if any(row)]


def whole_number(text: str) -> int | None:
    """A number of a table, which some programs write as 9.0; None if it is not a whole one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None
