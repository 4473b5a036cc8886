# SPDX-License-Identifier: Apache-2.0
"""A site as FLARE's client script sees it: found by its name, opened at the first round, silent about its cases."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path
from typing import Any

from kprism_model.files import write_bytes
from lib.federation.exchange import Arrays
from lib.federation.plan import FederationError, FederationPlan
from lib.federation.site import Site, open_site
from lib.federation.site_training import SiteTraining
from lib.files import read_json

SITES_VARIABLE = "KPRISM_FEDERATION_SITES"
"""Environment variable with the path of the JSON file that says where the sites of this machine are."""

ERROR_NAME = "error.txt"
"""File in a site's folder with the reason why it failed."""


class LocalSite:
    """The site `name` of this machine."""

    def __init__(self, name: str, plan: FederationPlan) -> None:
        self._name, self._plan = name, plan
        self._site: Site | None = None
        self._training: SiteTraining | None = None

    @property
    def cases(self) -> int:
        """How many labelled cases the site trains on: FLARE weighs its tensors by it."""
        return 0 if self._training is None else self._training.cases

    def train(self, weights: Arrays, number: int) -> dict[str, Any]:
        """Train a round; returns the tensors to send. FederationError without any detail of the site's cases."""
        site = self._site = self._site or opened(self._name)
        try:
            if self._training is None:
                self._training = SiteTraining(site, self._plan)
            return self._training.train(weights, number)
        except Exception as error:
            site.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(site.folder / ERROR_NAME, f"{error}\n\n{traceback.format_exc()}".encode())
        raise FederationError(f"site {self._name} failed; the reason is in its own folder federation/{ERROR_NAME}")


def opened(name: str) -> Site:
    """The site of this name in the file of `SITES_VARIABLE`; FederationError if it is not there."""
    path = os.environ.get(SITES_VARIABLE)
    content = None if path is None else read_json(Path(path))
    entry = (content or {}).get(name)
    if not isinstance(entry, dict) or not isinstance(entry.get("studies"), str):
        raise FederationError(
            f"site {name}: {SITES_VARIABLE} must name a JSON file like "
            f'{{"{name}": {{"studies": FOLDER, "conf": {{}}}}}}; it is {path!r}'
        )
    return open_site(name, Path(entry["studies"]), entry.get("conf", {}))


def keep_messages() -> None:
    """Keep our own messages, which name cases, out of FLARE's log: FLARE can be set up to send that to its server."""
    for name in ("lib", "kprism_model"):
        logger = logging.getLogger(name)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
