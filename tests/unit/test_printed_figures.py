# SPDX-License-Identifier: Apache-2.0
"""The table of published figures: every one has a source, and the reader names what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from kprism_model.published.evaluation.printed_figures import FIGURES, METRICS, OURS, read_printed
from kprism_model.published.sets import published_sets

ENTRY = '{ method = "K-Prism", mode = "semantic", sets = "trained", metric = "dice", value = 86.21, source = "here" }'
FRAME = """
[sources.here]
kind = "paper"
what = "the paper"
address = "nowhere"
[conditions]
[figures]
values = [
  %s,
]
"""


def test_figures_are_of_known_sets_and_have_a_source() -> None:
    printed = read_printed()
    assert {one.method for one in printed.figures} == {OURS, "Hermes", "Iris", "SegNext", "MultiverSeg"}
    for one in printed.figures:
        assert one.sets in {"trained", "external", "unseen", *published_sets()} and one.metric in METRICS[one.mode]
        assert printed.sources[one.source]["address"].startswith("https://") and one.conditions
        assert printed.sources[one.source]["kind"] == "summary"  # the paper itself was not at hand
    headline = [
        ("semantic", "dice", 86.21),
        ("in_context", "dice", 84.82),
        ("interactive", "dice_5", 95.50),
        ("interactive", "noc90", 1.95),
    ]
    for mode, metric, value in headline:
        found = printed.find(OURS, mode, "trained", metric)
        assert found is not None and found.value == value
    assert printed.find(OURS, "interactive", "trained", "noc85") is None


def test_references_choose_the_figure() -> None:
    printed = read_printed()
    found = [printed.find(OURS, "in_context", "amos_mr", "dice", count) for count in (1, 9, 5)]
    assert [one and one.value for one in found] == [78.21, 79.90, None]
    semantic = printed.find(OURS, "semantic", "trained", "dice", 9)
    assert semantic is not None and semantic.value == 86.21


def test_a_reader_can_add_a_figure(tmp_path: Path) -> None:
    text = FIGURES.read_text()
    added = ENTRY.replace("86.21", "90").replace("trained", "amos_ct").replace("here", "paper")
    (tmp_path / "mine.toml").write_text(f"  {added},\n]".join(text.rsplit("]", 1)))
    printed = read_printed(tmp_path / "mine.toml")
    found = printed.find(OURS, "semantic", "amos_ct", "dice")
    assert found is not None and (found.value, found.source, found.conditions) == (90, "paper", ())


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            'sets = "trained"',
            'sets = "amos"',
            "unknown sets 'amos'; expected one of trained, external, unseen, amos_mr",
        ),
        ('metric = "dice"', 'metric = "dice_5"', "unknown metric 'dice_5'; expected one of dice"),
        ('mode = "semantic"', 'mode = "clicks"', "unknown mode 'clicks'; expected one of semantic"),
        ('source = "here"', 'source = "paper"', "unknown source 'paper'; expected one of here"),
        (', source = "here"', "", "source; expected"),
        ("value = 86.21", 'value = "86.21"', "value, spread and references must be numbers from 0 to 100"),
        ("value = 86.21", "value = 186.21", "must be numbers from 0 to 100"),
        ("value = 86.21", "value = 86.21, shots = 1", "shots; expected"),
        ("value = 86.21", 'value = 86.21, conditions = ["x"]', "unknown conditions 'x'"),
        (ENTRY, f"{ENTRY}, {ENTRY}", "has two figures for"),
        ("[conditions]", "", "'conditions'"),
        ("values = [", "values = ", "is not a table of published figures"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path = tmp_path / "figures.toml"
    path.write_text((FRAME % ENTRY).replace(old, new))
    with pytest.raises(ValueError, match=r"figures\.toml") as refused:
        read_printed(path)
    assert sentence in str(refused.value)
