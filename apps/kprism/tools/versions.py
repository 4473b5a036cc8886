# SPDX-License-Identifier: Apache-2.0
"""`./kprism versions`: list the versions of the weights, or let another one serve; a running server follows at once."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kprism_model.locations import data_folder, weights_folder
from lib.learning.versions import Version, VersionError, Versions

FOLDER = data_folder() / "sample-datastore" / ".kprism" / "versions"
SHIPPED = weights_folder() / "kprism_small.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="kprism versions", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the versions lie (default: %(default)s)")
    parser.add_argument(
        "--shipped",
        type=Path,
        default=SHIPPED,
        help="weights of version 0, whose network all others must be of to serve (default: %(default)s)",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="all versions; * marks the one that serves")
    actions.add_parser("check", help="read every version and say which are damaged")
    rollback = actions.add_parser("rollback", help="let version N serve; 0 are the shipped weights")
    rollback.add_argument("number", type=int, metavar="N")
    given = parser.parse_args(arguments)
    versions = Versions(given.folder, given.shipped)
    try:
        if given.action == "rollback":
            print(f"serving now: {describe(versions.roll_back(given.number))}")
            return 0
        return show(versions, check=given.action == "check")
    except VersionError as error:
        print(f"kprism versions: {error}", file=sys.stderr)
        return 1


def show(versions: Versions, *, check: bool) -> int:
    """Print one line a version; with `check` the status is 1 if one is damaged."""
    serving = versions.current().number
    damaged = 0
    for version in versions.known():
        fault = versions.fault(version) if check else None
        damaged += fault is not None
        mark = "*" if version.number == serving else " "
        print(f"{mark} {describe(version)}{f'  DAMAGED: {fault}' if fault else ''}")
    return int(damaged > 0)


def describe(version: Version) -> str:
    """Number, date, hash, parent, what it was trained on, and whether it cannot serve any more, in a line."""
    if version.made is None:
        return f"{version.number:4d}  {'shipped':16}  {version.weights_version}"
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(version.made))
    cases = version.note.get("trained_on")
    trained = f"  {len(cases)} cases" if isinstance(cases, list) else ""
    network = "  of an earlier network: cannot serve" if version.earlier else ""
    return f"{version.number:4d}  {made:16}  {version.weights_version}  from {version.parent}{trained}{network}"


if __name__ == "__main__":
    sys.exit(main())
