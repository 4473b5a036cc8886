# SPDX-License-Identifier: Apache-2.0
"""Labels that are needed for a Dice, and which strategies a paired test tells apart from chance."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.strategies import finished, main, random_order, write_results
from benchmarks.strategy_statistics import Curve, Sample, compare, labels_or_last, labels_to, table_of, wanted_dice

COUNTS = (1, 5, 10, 20)


def curve(*values: float) -> Curve:
    return {str(count): value for count, value in zip(COUNTS, values, strict=True)}


def runs(shift: float, noise: float, seed: int, count: int = 5) -> dict[str, Curve]:
    """Runs that rise from 0.3 to 0.6, `shift` above that, with a level for each seed that all strategies share."""
    rng, levels = np.random.default_rng(seed), np.random.default_rng(0).normal(0, 0.05, count)
    return {
        str(number): curve(*(np.array([0.3, 0.4, 0.5, 0.6]) + shift + level + rng.normal(0, noise, 4)).tolist())
        for number, level in enumerate(levels)
    }


def test_labels_are_counted_between_measurements() -> None:
    found = curve(0.2, 0.4, 0.6, 0.5)
    assert labels_to(found, 0.1) == 1.0
    assert labels_to(found, 0.3) == pytest.approx(3.0)
    assert labels_to(found, 0.6) == pytest.approx(10.0)
    assert labels_to(found, 0.7) is None and labels_or_last(found, 0.7) == 20.0


def test_the_wanted_dice_is_what_chance_has_in_the_end() -> None:
    curves = {"first": {"0": curve(0, 0, 0, 0.9)}, "random": {"0": curve(0, 0, 0, 0.5), "1": curve(0, 0, 0, 0.7)}}
    assert wanted_dice(curves) == pytest.approx(0.6)
    assert wanted_dice({"first": curves["first"]}) == 0.9


def test_mean_and_standard_error() -> None:
    assert Sample.of([1.0, 2.0, 3.0]) == Sample(2.0, pytest.approx(1 / math.sqrt(3)))
    assert Sample.of([1.0, 2.0, 3.0]).text(1) == "2.0 ± 0.6"
    assert Sample.of([1.25]).text(2) == "1.25"


def test_a_strategy_that_is_better_with_every_seed_is_told_apart_and_noise_is_not() -> None:
    chance = runs(0.0, 0.005, 1)
    better = compare(runs(0.1, 0.005, 2), chance, 0.55, 4)
    assert better.p < 0.01 and better.difference.mean < -3
    assert better.verdict == "fewer labels than random"
    assert compare(runs(-0.05, 0.005, 3), chance, 0.5, 4).verdict == "more labels than random"
    same = compare(runs(0.0, 0.05, 4), chance, 0.5, 4)
    assert same.p > 0.05 and same.verdict == "not told apart from random"


def test_more_comparisons_need_more_evidence() -> None:
    chance, other = runs(0.0, 0.02, 1), runs(0.03, 0.02, 2)
    one, four = (compare(other, chance, 0.5, comparisons) for comparisons in (1, 4))
    assert four.p == pytest.approx(min(1.0, 4 * one.p)) and four.difference == one.difference


def test_equal_runs_do_not_differ_and_one_seed_cannot_tell() -> None:
    chance = runs(0.0, 0.01, 1)
    assert compare(chance, chance, 0.5, 4).p == 1.0
    single = {"0": chance["0"]}
    assert compare(single, single, 0.5, 4).verdict == "cannot tell: fewer than two seeds"
    with pytest.raises(ValueError, match="no seed in common: 7 and 0"):
        compare({"7": chance["0"]}, single, 0.5, 4)


def test_the_table_says_all_this() -> None:
    curves = {"random": runs(0.0, 0.005, 1), "uncertainty": runs(0.1, 0.005, 2), "first": runs(-0.2, 0.005, 3)}
    head, _, chance, uncertainty, first = table_of(curves).splitlines()
    assert "| labels to 0.6" in head and head.count("|") == chance.count("|") == uncertainty.count("|")
    assert chance.startswith("| random | 5 | ") and chance.endswith("|  |  |  |")
    assert uncertainty.endswith("| fewer labels than random |")
    assert "| at least 20.0 ± 0.0 |" in first


def test_runs_are_kept_for_the_same_settings_only(tmp_path: Path) -> None:
    path = tmp_path / "out" / "strategies-x.json"
    curves = {"random": runs(0.0, 0.01, 1), "first": runs(0.0, 0.01, 2)}
    write_results(path, {"data": "x", "cases": 4}, curves)
    assert finished(path, {"data": "x", "cases": 4}) == curves == json.loads(path.read_text())["curves"]
    assert finished(path, {"data": "x", "cases": 5}) == {} == finished(tmp_path / "none.json", {})
    assert path.with_suffix(".png").stat().st_size > 5000
    assert path.with_suffix(".md").read_text() == table_of(curves) + "\n"


def test_a_seed_draws_one_order() -> None:
    pool: dict[str, dict[str, np.ndarray]] = {name: {} for name in "abcdefgh"}
    assert random_order(pool, 1) == random_order(dict(reversed(pool.items())), 1) != random_order(pool, 2)
    assert sorted(random_order(pool, 1)) == list("abcdefgh")


def test_settings_that_make_no_sense_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--seeds", "0"], ["--labels", "40"], ["--at", "30"]):
        with pytest.raises(SystemExit):
            main(["--data", str(tmp_path), *wrong])
        assert "expected a seed or more, fewer labels than cases" in capsys.readouterr().err
