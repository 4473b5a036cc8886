# SPDX-License-Identifier: Apache-2.0
"""All sites of a federation on one machine, in FLARE's simulator: a server and one process for each site.

FLARE ends normally even if nothing was aggregated, so what it left is checked: the aggregate must be new, have all
rounds, and hold exactly the tensors that were expected.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy

import kprism_model
from kprism_model.checkpoint import Checkpoint
from kprism_model.files import write_bytes
from kprism_model.locations import app_folder
from lib.federation.aggregate import Aggregate, read_aggregate
from lib.federation.exchange import sent
from lib.federation.local_site import ERROR_NAME, SITES_VARIABLE
from lib.federation.plan import FederationError, FederationPlan
from lib.federation.processes import kill_tree
from lib.federation.site import Site, check_sites
from lib.files import write_json

MIN_SITES = 2
"""A federation of one site is a local training."""

LOG_NAME, AGGREGATE_NAME, START_NAME = "flare.log", "aggregate.safetensors", "start.safetensors"
"""Files in the folder of a federation."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_LOG_LINES = 15


@dataclass(frozen=True)
class Place:
    """Where a site is: its folder of studies, and the settings of its server."""

    studies: Path
    conf: Mapping[str, str]


def check_flare() -> None:
    """FederationError if NVIDIA FLARE is not installed."""
    if importlib.util.find_spec("nvflare") is None:
        raise FederationError(
            "NVIDIA FLARE is not installed; it moves and averages the weights: "
            "pip install nvflare==2.9.0, in a checkout .venv/bin/pip install nvflare==2.9.0"
        )


def check_places(places: Mapping[str, Place]) -> None:
    """FederationError for names that FLARE does not take, fewer than two sites, or one folder twice."""
    for name in places:
        if not _NAME.fullmatch(name) or name.lower() in ("server", "simulator"):
            raise FederationError(f"{name!r} is no name of a site; expected letters, digits, - and _, and not 'server'")
    if len(places) < MIN_SITES:
        raise FederationError(f"a federation has {MIN_SITES} sites or more; got {len(places)}")
    folders: dict[Path, str] = {}
    for name, place in places.items():
        other = folders.setdefault(place.studies.resolve(), name)
        if other != name:
            raise FederationError(f"sites {other} and {name} have the same folder {place.studies}")


def simulate(
    plan: FederationPlan, places: Mapping[str, Place], sites: Mapping[str, Site], shipped: Checkpoint, folder: Path
) -> Aggregate:
    """Run all rounds in `folder`, which is emptied first; returns the aggregate of the last one.

    FederationError that names the sites that failed and why, or what is wrong with the aggregate.
    """
    check_flare()
    check_places(places)
    check_sites(list(sites.values()), plan)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for site in sites.values():
        (site.folder / ERROR_NAME).unlink(missing_ok=True)
    write_start(plan, shipped, folder / START_NAME)
    write_json(
        folder / "sites.json",
        {name: {"studies": str(place.studies.resolve()), "conf": dict(place.conf)} for name, place in places.items()},
    )
    status = _run_flare(plan, list(places), folder)
    failed = {
        name: path.read_text().partition("\n")[0]
        for name, site in sites.items()
        if (path := site.folder / ERROR_NAME).exists()
    }
    if failed:
        reasons = "; ".join(f"site {name}: {reason}" for name, reason in failed.items())
        raise FederationError(f"the federation failed at {reasons}")
    return _aggregate(shipped, folder, status)


def write_start(plan: FederationPlan, shipped: Checkpoint, path: Path) -> None:
    """Write what the first round starts from: the shipped weights, with the rows that they have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, safetensors.numpy.save(dict(sent(shipped.model, shipped.registry, plan.structures))))


def export_job(plan: FederationPlan, names: Sequence[str], shipped: Checkpoint, folder: Path) -> None:
    """Write FLARE's job for a federation that runs already, to be submitted by its administrator."""
    check_flare()
    write_start(plan, shipped, folder / START_NAME)
    status = _job("export", plan, names, folder, folder / "job")
    if status:
        raise FederationError(f"FLARE could not write the job (status {status}):\n{_log_end(folder)}")


def environment() -> dict[str, str]:
    """The environment of FLARE's processes: they find this code, and each computes in one thread."""
    code = [str(app_folder()), str(Path(kprism_model.__file__).parents[1])]
    path = os.pathsep.join([*code, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _run_flare(plan: FederationPlan, names: Sequence[str], folder: Path) -> int:
    return _job("simulate", plan, names, folder, folder / "flare")


def _job(action: str, plan: FederationPlan, names: Sequence[str], folder: Path, place: Path) -> int:
    """Run `lib.federation.job`; returns its exit status. Its processes end with this one's interruption."""
    words = ["--plan", plan.encoded(), "--folder", str(place.resolve()), "--sites", *names]
    files = ["--source", str((folder / START_NAME).resolve()), "--target", str((folder / AGGREGATE_NAME).resolve())]
    known = {**environment(), SITES_VARIABLE: str((folder / "sites.json").resolve())}
    with (folder / LOG_NAME).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lib.federation.job", action, *words, *files],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=known,
            cwd=folder,
            start_new_session=True,
        )
        try:
            return process.wait()
        except BaseException:
            kill_tree(process.pid)
            process.wait()
            raise


def _aggregate(shipped: Checkpoint, folder: Path, status: int) -> Aggregate:
    path = folder / AGGREGATE_NAME
    log = f"FLARE ended with status {status}; its log ends with\n{_log_end(folder)}"
    if not path.exists():
        raise FederationError(f"nothing was aggregated. {log}")
    try:
        return read_aggregate(path, shipped)
    except FederationError as error:
        raise FederationError(f"{error}. {log}") from error


def _log_end(folder: Path) -> str:
    lines = (folder / LOG_NAME).read_text(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:])
