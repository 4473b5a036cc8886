# SPDX-License-Identifier: Apache-2.0
"""The checks in three tiers; `./kprism test` runs this module in the project's environment.

    python -m tests.run                         every check, as CI runs them: ruff, mypy, pytest
    python -m tests.run --fast                  pytest without what trains or starts servers of its own: 2.5 minutes
    python -m tests.run --campaign              the names of the campaigns
    python -m tests.run --campaign NAME         one of them in its long form: 40 minutes, or --minutes
    python -m tests.run ARGUMENT...             pytest with these arguments, in one process

The first two share the tests among parallel workers; `tests/tiers.py` says which tests stay together, because they
share a server or a data set that is dear to make, and which are slow. A campaign is a test that draws what it does at
random. The suite runs its short form, a fixed number of rounds with a fixed seed; the long form goes on for the minutes
given. A round that fails is repeated with the arguments that are printed above the failure.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CAMPAIGNS = {
    "requests": "tests/contract/test_unforeseen_requests.py",
    "kills": "tests/e2e/test_any_moment.py",
    "users": "tests/e2e/test_many_users.py",
}
"""Name -> file; the first line of its docstring says what it is about."""

FAST = ["-m", "not slow", "tests/unit", "tests/contract", "tests/interop"]

CAMPAIGN_MINUTES = 40.0


def worker_arguments() -> list[str]:
    """As many workers as processors, from two (a worker waits for its server at times) to four."""
    return ["-n", str(max(2, min(4, os.cpu_count() or 2)))]


def about(path: str) -> str:
    """The first line of a campaign's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    sentence = text.partition("\n")[0].removeprefix("Campaign: ")
    return sentence[:1].upper() + sentence[1:]


def campaign_arguments(words: Sequence[str]) -> list[str] | None:
    """pytest's arguments for a campaign; None where no name is given, so that the names are to be listed."""
    parser = argparse.ArgumentParser(prog="./kprism test --campaign", description="A long test, by hand.")
    parser.add_argument("name", nargs="?", choices=[*CAMPAIGNS], metavar="NAME", help=f"one of {', '.join(CAMPAIGNS)}")
    parser.add_argument("--minutes", type=float, default=CAMPAIGN_MINUTES, help="time to take (%(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="ROUND", help="the round to begin with (%(default)s)")
    given = parser.parse_args(words)
    if given.name is None:
        return None
    return [CAMPAIGNS[given.name], f"--minutes={given.minutes}", f"--seed={given.seed}", f"--first={given.first}"]


def run(module: str, *arguments: str) -> int:
    """Run a Python module as a process of its own in the project's folder; its exit status."""
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=False).returncode


def run_all() -> int:
    """Every check; mypy, which takes most of a minute without its cache, runs beside the tests."""
    for arguments in (["check", "."], ["format", "--check", "."]):
        if status := run("ruff", *arguments):
            return status
    with ThreadPoolExecutor(1) as beside:
        types = beside.submit(run, "mypy")
        status = run("pytest", *worker_arguments())
    if types.result():
        print("mypy has found errors: see above, before the end of the tests.", file=sys.stderr)
    return status or types.result()


def main(words: Sequence[str]) -> int:
    """Run what the arguments ask for; the exit status is 0 if all checks passed."""
    match list(words):
        case []:
            return run_all()
        case ["--fast", *rest]:
            return run("pytest", *worker_arguments(), *FAST, *rest)
        case ["--campaign", *rest]:
            arguments = campaign_arguments(rest)
            if arguments is not None:
                return run("pytest", *arguments)
            print("\n".join(f"{name:10}{about(path)}" for name, path in CAMPAIGNS.items()))
            return 0
        case arguments:
            return run("pytest", *arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
