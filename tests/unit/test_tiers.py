# SPDX-License-Identifier: Apache-2.0
"""The tiers of the suite: what each command runs, and the rounds of a campaign."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests import run, tiers
from tests.budget import Budget


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The modules that were to be run, with their arguments; all of them succeed."""
    commands: list[list[str]] = []
    monkeypatch.setattr(run, "run", lambda *words: commands.append([*words]) or 0)
    return commands


def test_without_arguments_every_check_runs(started: list[list[str]]) -> None:
    assert run.main([]) == 0
    assert [command[0] for command in started[:2]] == ["ruff", "ruff"]
    types, tests = sorted(started[2:])  # at the same time
    assert types == ["mypy"]
    assert tests[:2] == ["pytest", "-n"] and int(tests[2]) >= 2


@pytest.mark.parametrize("failing", ["ruff", "mypy", "pytest"])
def test_a_check_that_fails_fails_the_run(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    monkeypatch.setattr(run, "run", lambda module, *_: 3 if module == failing else 0)
    assert run.main([]) == 3


def test_the_fast_tier_leaves_the_slow_tests_out(started: list[list[str]]) -> None:
    assert run.main(["--fast", "-x"]) == 0
    [command] = started
    assert command[0] == "pytest" and command[3:] == [*run.FAST, "-x"]


def test_other_arguments_go_to_pytest_unchanged(started: list[list[str]]) -> None:
    assert run.main(["tests/unit/test_files.py", "-k", "rename"]) == 0
    assert started == [["pytest", "tests/unit/test_files.py", "-k", "rename"]]


def test_campaigns_are_listed_and_run_by_name(started: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--campaign"]) == 0 and started == []
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*run.CAMPAIGNS]
    assert all((run.ROOT / path).is_file() for path in run.CAMPAIGNS.values())
    assert run.main(["--campaign", "kills", "--minutes", "5", "--seed", "3"]) == 0
    assert started == [["pytest", run.CAMPAIGNS["kills"], "--minutes=5.0", "--seed=3", "--first=0"]]
    with pytest.raises(SystemExit):
        run.main(["--campaign", "nobody"])
    assert "invalid choice: 'nobody'" in capsys.readouterr().err


def test_a_round_can_be_repeated_alone() -> None:
    drawn = {number: rng.random() for number, rng in Budget(seed=7).rounds(3)}
    assert [*drawn] == [0, 1, 2] and len({*drawn.values()}) == 3
    [(number, rng), *_] = itertools.islice(Budget(seed=7, first=2).rounds(3), 1)
    assert (number, rng.random()) == (2, drawn[2])
    assert [number for number, _ in Budget(minutes=0.0).rounds(3)] == [0]


def test_listed_folders_and_files_exist() -> None:
    folder = Path(__file__).parents[1]
    for path in (*tiers.FOLDERS, *tiers.LONGEST, *tiers.SLOW_FILES):
        assert (folder / path).exists(), path


def test_tests_that_share_a_server_stay_together() -> None:
    groups = [tiers.group_of(f"tests/contract/{file}.py::test[a/b]") for file in ("test_a", "test_b")]
    assert groups == ["contract", "contract"]
    assert tiers.group_of("tests/unit/test_a.py::test") == "tests/unit/test_a.py"


def test_the_longest_groups_come_first() -> None:
    ranks = [tiers.rank(path) for path in ("e2e/viewer/test_case.py", "e2e/test_import.py", "unit/test_a.py")]
    assert ranks == sorted(set(ranks))
