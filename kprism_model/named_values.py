# SPDX-License-Identifier: Apache-2.0
"""Command-line options that map names to numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def named_values(option: str, pairs: Sequence[str], known: Collection[str] | None = None) -> dict[str, float]:
    """Parse an option's NAME=NUMBER arguments; ValueError for other text, or a name that is not in `known`."""
    values = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise ValueError(f"{option} takes NAME=NUMBER, got {pair!r}") from None
        if known is not None and name not in known:
            raise ValueError(f"{option} names {name!r}, expected one of {', '.join(sorted(known))}")
    return values
