# SPDX-License-Identifier: Apache-2.0
"""A site: its studies, the labels that were accepted there, and its versions of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kprism_model.classes import ClassRegistry, name_key
from kprism_model.locations import app_folder
from lib.configs.app_config import AppConfig, apply_monailabel_settings
from lib.dicom.mixed_store import dicom_part
from lib.dicom.open_store import open_folder
from lib.federation.plan import FederationError, FederationPlan
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import Submission
from lib.learning.training_schedule import MIN_LABELS
from lib.learning.version_files import SHIPPED
from lib.learning.versions import Versions
from lib.learning_loop import LearningLoop
from lib.trainers.case_cache import CaseCache
from lib.trainers.judged_scores import SETTINGS


@dataclass(frozen=True)
class Site:
    """A site, by its folder of studies; `folder` is for what a federation keeps here, such as its last error."""

    name: str
    state: Path
    device: str
    submissions: SubmissionService
    versions: Versions

    @property
    def folder(self) -> Path:
        """What a federation keeps at the site: nothing in it leaves it."""
        return self.state / "federation"

    @property
    def cases(self) -> CaseCache:
        """The labelled cases, reduced to what a training needs."""
        return CaseCache(self.folder / "cases", self.submissions.load, self.submissions.files, SETTINGS)

    def labelled(self) -> list[Submission]:
        """The accepted labels."""
        return self.submissions.store.submissions()

    def agreed(self, structures: Sequence[str]) -> list[Submission]:
        """The accepted labels of these structures alone, spelled as they are here; others are left out."""
        return [entry for entry in (_restricted(one, structures) for one in self.labelled()) if entry.structures]


def open_site(name: str, studies: Path, conf: Mapping[str, str] | None = None) -> Site:
    """The site whose server serves the folder `studies` with the settings `conf`; FederationError if it cannot be."""
    if not studies.is_dir():
        raise FederationError(f"site {name}: there is no folder {studies}; expected a folder that a server serves")
    apply_monailabel_settings()
    try:
        config = AppConfig.parse(conf or {}, app_folder(), str(studies))
        datastore = open_folder(studies, config.state, config.image_mb << 20, None)
        loop = LearningLoop(config, datastore)
    except ValueError as error:
        raise FederationError(f"site {name}: {error}") from error
    series = dicom_part(datastore)
    if series is not None:
        loop.engine.opener = series.local_volume
    return Site(name, config.state, config.device, loop.submissions, loop.versions)


def trained_on(submissions: Sequence[Submission], fold: int | None) -> list[Submission]:
    """The labels that a federation trains on: those of patients outside `fold`."""
    return [entry for entry in submissions if fold is None or entry.fold != fold]


def check_site(site: Site, plan: FederationPlan) -> list[Submission]:
    """The labels that a site trains on; FederationError if it has other shipped weights or too few labels."""
    base = site.versions.version(SHIPPED).weights_version
    if base != plan.base:
        raise FederationError(f"site {site.name} has the shipped weights {base}; expected {plan.base} at every site")
    usable = trained_on(site.agreed(plan.structures), plan.fold)
    if len(usable) < MIN_LABELS:
        kept = "" if plan.fold is None else f" outside the patients of fold {plan.fold}, which judge the result"
        raise FederationError(
            f"site {site.name} has {len(usable)} labelled case{'' if len(usable) == 1 else 's'} of "
            f"{', '.join(plan.structures)}{kept}; "
            f"expected {MIN_LABELS} or more"
        )
    return usable


def check_sites(sites: Sequence[Site], plan: FederationPlan) -> None:
    """FederationError if a site does not fit the plan (`check_site`), or if no site has labels of a structure."""
    labels = [entry for site in sites for entry in check_site(site, plan)]
    found = known_here(plan.structures, labels)
    missing = [name for name in plan.structures if name not in found]
    if missing:
        raise FederationError(f"no site has a label to train on of {', '.join(missing)}; expected one at some site")


def known_here(structures: Sequence[str], submissions: Sequence[Submission]) -> list[str]:
    """Those of the agreed structures that some of the labels are about."""
    labelled = {name_key(name) for entry in submissions for name in entry.structures}
    return [name for name in structures if name_key(name) in labelled]


def _restricted(submission: Submission, structures: Sequence[str]) -> Submission:
    agreed = ClassRegistry(structures)
    return replace(
        submission,
        structures={name: value for name, value in submission.structures.items() if name in agreed},
        prompts={name: slices for name, slices in submission.prompts.items() if name in agreed},
    )
