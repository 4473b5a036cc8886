# SPDX-License-Identifier: Apache-2.0
"""The series of a DICOMweb server, listed page by page in the background."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from lib.dicom.refresher import PATIENCE_SECONDS, Refresher
from lib.dicom.web import SeriesEntry, StoreDownError

logger = logging.getLogger(__name__)

LISTING_SECONDS = 2.0
"""Seconds for which a listing of the server is used again; longer if the server needs long for it."""


class SeriesListing:
    """Series with images -> their entries; `pages` asks the server, `known` are those of an earlier run.

    While the server is down, those of the last listing count. During the first one, those of its pages so far do.
    """

    def __init__(self, pages: Callable[[], Iterable[list[SeriesEntry]]], known: Mapping[str, SeriesEntry]) -> None:
        self._pages = pages
        self._entries = dict(known)  # replaced, never changed: others are reading it
        self._has_page = self._is_complete = False
        self.is_current = False
        self._refresher = Refresher(self._list, LISTING_SECONDS, "dicom-listing")

    def begin(self) -> None:
        """Begin the first listing."""
        self._refresher.ask(patience=0.0)

    def entries(self, *, refresh: bool = False, complete: bool = False) -> Mapping[str, SeriesEntry]:
        """The series; with `refresh` from a new listing, with `complete` not from the first pages alone."""
        if refresh:
            self._refresher.now()
        elif self._is_complete:
            self._refresher.ask(patience=PATIENCE_SECONDS if self._refresher.is_quick else 0.0)
        elif complete:
            self._refresher.ask(patience=None)
        else:
            self._refresher.ask(patience=None, enough=lambda: self._has_page)
        return self._entries

    def _list(self) -> float | None:
        """List all; 0 seconds if the server is down, else None: the work is the server's alone."""
        listed: dict[str, SeriesEntry] = {}
        try:
            for page in self._pages():
                listed |= {entry.series: entry for entry in page if entry.holds_images}
                if not self._is_complete:
                    self._entries, self._has_page = {**self._entries, **listed}, True
                    self._refresher.progress()
        except StoreDownError as error:
            logger.warning("%s", error)
            self.is_current = False
            return 0.0
        self._entries, self._is_complete, self.is_current = listed, True, True
        return None
