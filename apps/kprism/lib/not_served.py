# SPDX-License-Identifier: Apache-2.0
"""What is in the studies but is not served, with the reason: for the status page and the log."""

from __future__ import annotations

from typing import NamedTuple


class NotServed(NamedTuple):
    """A file or series that is not offered for segmentation; `reason` is a sentence without its name."""

    name: str
    reason: str
