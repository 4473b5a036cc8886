# SPDX-License-Identifier: Apache-2.0
"""`./kprism versions`: list the versions of the weights, choose the serving one (a running server reloads it), and take
a version from one server to another.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kprism_model.locations import data_folder, weights_folder
from lib.learning.version_archive import export_version, import_version
from lib.learning.version_files import Version, VersionError
from lib.learning.versions import Versions

FOLDER = data_folder() / "sample-datastore" / ".kprism" / "versions"
SHIPPED = weights_folder() / "kprism_small.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="kprism versions", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the versions (default: %(default)s)")
    parser.add_argument(
        "--shipped",
        type=Path,
        default=SHIPPED,
        help="weights of version 0; versions of another network cannot serve (default: %(default)s)",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="all versions; * marks the one that serves")
    actions.add_parser("check", help="read every version and say which are damaged")
    rollback = actions.add_parser("rollback", help="make version N the serving one; 0 are the shipped weights")
    rollback.add_argument("number", type=int, metavar="N")
    export = actions.add_parser("export", help="write version N to a new file, for another server")
    export.add_argument("number", type=int, metavar="N")
    export.add_argument("archive", type=Path, metavar="FILE.zip")
    importing = actions.add_parser("import", help="add the version in a file; it serves after a rollback to it")
    importing.add_argument("archive", type=Path, metavar="FILE.zip")
    given = parser.parse_args(arguments)
    versions = Versions(given.folder, given.shipped)
    try:
        if given.action == "rollback":
            print(f"serving now: {describe(versions.roll_back(given.number))}")
            return 0
        if given.action == "export":
            numbers = export_version(versions, given.number, given.archive)
            print(f"{given.archive}: version {', '.join(map(str, numbers))}")
            return 0
        if given.action == "import":
            version = import_version(versions, given.archive)
            print(f"added: {describe(version)}\n`rollback {version.number}` makes it serve")
            return 0
        return show(versions, check=given.action == "check")
    except (VersionError, OSError) as error:
        print(f"kprism versions: {error}", file=sys.stderr)
        return 1


def show(versions: Versions, *, check: bool) -> int:
    """Print one line for each version; with `check` the exit status is 1 if one is damaged."""
    serving = versions.current().number
    damaged = 0
    for version in versions.known():
        fault = versions.fault(version) if check else None
        damaged += fault is not None
        mark = "*" if version.number == serving else " "
        print(f"{mark} {describe(version)}{f'  DAMAGED: {fault}' if fault else ''}")
    return int(damaged > 0)


def describe(version: Version) -> str:
    """One line: number, date, hash, parent or origin, training cases, what it answers, or why it cannot serve."""
    if version.made is None:
        return f"{version.number:4d}  {'shipped':16}  {version.weights_version}"
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(version.made))
    cases, count = version.metadata.get("trained_on"), version.metadata.get("cases")
    count = len(cases) if isinstance(cases, list) else count
    trained = "" if count is None else f"  {count} cases"
    origin, federated = version.metadata.get("origin"), version.metadata.get("federated")
    source = f"version {origin['version']} of {origin['archive']}" if origin else version.parent
    together = f"  federated: {federated['sites']} sites, rounds: {federated['rounds']}" if federated else ""
    network = "  of an earlier network: cannot serve" if version.earlier else ""
    answers = "".join(f"  {mode}: {', '.join(names)}" for mode, names in _answers(version).items())
    warning = f"  ({version.warning})" if version.warning else ""
    start = f"{version.number:4d}  {made:16}  {version.weights_version}  from {source}"
    return f"{start}{trained}{together}{answers}{network}{warning}"


def _answers(version: Version) -> dict[str, list[str]]:
    """Mode -> structures that are not answered by the shipped weights; with the number of an earlier version."""
    return {
        mode: [name if number == version.number else f"{name} (version {number})" for name, number in entries.items()]
        for mode, entries in version.routes.by_mode.items()
    }


if __name__ == "__main__":
    sys.exit(main())
