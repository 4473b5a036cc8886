# SPDX-License-Identifier: Apache-2.0
"""The rule by which new weights replace the current ones, on figures that are given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kprism_model.cli.main import main
from kprism_model.evaluation.comparison import COMPARED, CORE, compare
from kprism_model.evaluation.protocol import Protocol
from kprism_model.evaluation.report import DatasetResult, EvaluationReport, Figure

SETS = (*CORE, "isic_dermoscopy", "acdc_mr")
SETTINGS = Protocol(split="validation", draws=1, max_slices=20).to_dict()


def report(
    changes: Mapping[tuple[str, str], float] | None = None,
    *,
    everywhere: float = 0.0,
    classes: tuple[str, ...] = ("a", "b"),
    **settings: Any,
) -> EvaluationReport:
    """Every figure is 0.5 in class a and 0.7 in b, plus what is given `everywhere` or by data set and title."""
    results = []
    for name in SETS:
        figures = [
            Figure(name, held, mode, figure, value + everywhere + (changes or {}).get((name, title), 0.0), 4)
            for title, (mode, figure) in COMPARED.items()
            for held, value in zip(classes, (0.5, 0.7), strict=False)
            if not (name == "isic_dermoscopy" and mode == "semantic")  # never trained on
        ]
        results.append(DatasetResult(name, "4 of 4 cases, 4 of 4 slices", "all", figures))
    return EvaluationReport({**SETTINGS, **settings}, results)


def all_figures(name: str, change: float) -> dict[tuple[str, str], float]:
    return {(name, title): change for title in COMPARED}


def test_a_candidate_ships_if_the_mean_rises_and_no_set_falls_by_more_than_two_points() -> None:
    comparison = compare(report(), report(all_figures("acdc_mr", -0.02), everywhere=0.0001))
    assert comparison.ships and comparison.mean.difference == pytest.approx(0.0001)
    assert comparison.by_dataset["acdc_mr"].difference == pytest.approx(-0.0199)
    assert "ships: the mean over 6 data sets rises by 0.0 points" in comparison.verdict()
    assert "(lowest change: acdc_mr -2.0)" in comparison.verdict()


def test_exactly_two_points_are_not_more_than_two() -> None:
    changes = {**all_figures("acdc_mr", -0.02), **all_figures("busi_us", 0.01)}
    assert compare(report(), report(changes)).ships
    assert not compare(report(), report({**changes, **all_figures("acdc_mr", -0.0201)})).ships


def test_a_held_out_set_can_refuse_but_not_raise_the_mean() -> None:
    held_out = compare(report(), report(all_figures("isic_dermoscopy", 0.3)))
    assert not held_out.ships and held_out.mean.difference == 0
    assert held_out.verdict() == "The candidate does not ship: the mean over 6 data sets does not rise."
    fallen = compare(report(), report(all_figures("isic_dermoscopy", -0.03), everywhere=0.005))
    assert fallen.verdict() == "The candidate does not ship: isic_dermoscopy falls by 2.5 points."


def test_a_set_is_judged_by_the_mean_of_its_figures_and_a_single_fall_is_shown() -> None:
    changes = {("busi_us", "1 click"): -0.06, ("busi_us", "5 clicks"): 0.18}
    comparison = compare(report(), report(changes))
    assert comparison.ships
    assert comparison.by_dataset["busi_us"].difference == pytest.approx(0.02)
    assert comparison.mean.difference == pytest.approx(0.02 / 6, abs=1e-6)
    text = comparison.to_markdown()
    assert "| data set | semantic | semantic, per case | 1 ref. | 5 ref. | 1 click | 5 clicks | mean |" in text
    assert "| 0.600 → 0.540 (-6.0) | 0.600 → 0.780 (+18.0) | 0.600 → 0.620 (+2.0) |" in text
    assert "- busi_us, 1 click: falls by 6.0 points" in text
    assert "| isic_dermoscopy |  |  | 0.600 → 0.600 (+0.0) |" in text
    assert "| **mean of 6** | **0.600 → 0.600 (+0.0)** |" in text and "**0.600 → 0.603 (+0.3)** |" in text


def test_the_mean_is_over_the_sets_that_are_named() -> None:
    changes = {**all_figures("busi_us", 0.04), **all_figures("kvasir_polyp", -0.01)}
    assert compare(report(), report(changes), core=["busi_us"]).mean.difference == pytest.approx(0.04)
    assert not compare(report(), report(changes), core=["kvasir_polyp"]).ships


def test_a_class_that_only_the_candidate_knows_is_not_compared() -> None:
    comparison = compare(report(classes=("a",)), report(everywhere=0.01))
    assert comparison.by_dataset["busi_us"].difference == pytest.approx(0.01)
    assert "busi_us, semantic: only the candidate has a figure of b" in comparison.not_compared
    with pytest.raises(ValueError, match="the candidate has no figure 'semantic' of hippocampus_mr: b"):
        compare(report(), report(classes=("a",)))


def without(name: str) -> EvaluationReport:
    whole = report()
    return EvaluationReport(whole.protocol, [result for result in whole.results if result.name != name])


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (lambda: report(split="test"), "candidate: expected figures of the validation list, got 'test'"),
        (lambda: report(protocol="first"), "protocol is 'instances' for current and 'first' for candidate"),
        (lambda: report(max_slices=30), "max_slices is 20 for current and 30 for candidate"),
        (lambda: report(draws=2), "draws is 1 for current and 2 for candidate"),
        (lambda: report(modes="semantic chained"), "candidate: modes in_context, interactive not measured"),
        (lambda: report(references="1 2"), "candidate: references 5 not measured; got '1 2'"),
        (lambda: without("busi_us"), "candidate: no figures of busi_us; the mean is over hippocampus_mr"),
        (
            lambda: without("acdc_mr"),
            "acdc_mr: not the same cases: 4 of 4 cases, 4 of 4 slices for current and nothing",
        ),
    ],
)
def test_what_was_not_measured_alike_is_refused(candidate: Callable[[], EvaluationReport], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(report(), candidate())


def test_modes_that_do_not_count_and_the_time_may_differ() -> None:
    other = report(modes="semantic in_context interactive", seconds=3.0, weights_version="other")
    assert compare(report(), other).mean.difference == 0


def test_a_core_set_without_cases_is_refused() -> None:
    empty = [report(), report()]
    for one in empty:
        one.results[0].figures.clear()
    with pytest.raises(ValueError, match="nothing was measured on hippocampus_mr"):
        compare(*empty)


def test_the_command_tells_by_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {}
    for name, one in {"current": report(), "better": report(everywhere=0.01), "test": report(split="test")}.items():
        files[name] = str(tmp_path / f"{name}.json")
        Path(files[name]).write_text(json.dumps(one.to_dict()))
    command = ["compare", "--current", files["current"], "--candidate"]
    assert main([*command, files["better"]]) == 0
    assert "The candidate ships" in capsys.readouterr().out
    assert main([*command, files["current"]]) == 1
    assert "The candidate does not ship: the mean over 6 data sets does not rise." in capsys.readouterr().out
    assert main([*command, files["test"]]) == 2
    assert "expected figures of the validation list" in capsys.readouterr().err
    assert main(["compare", "--current", files["test"], "--candidate", files["test"], "--split", "test"]) == 1
    assert main([*command, str(tmp_path / "none.json")]) == 2
    assert "none.json is not a readable evaluation" in capsys.readouterr().err
    assert main([*command, files["better"], "--core", "busi"]) == 2
    assert "no figures of busi;" in capsys.readouterr().err
