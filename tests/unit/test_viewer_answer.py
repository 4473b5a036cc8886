# SPDX-License-Identifier: Apache-2.0
"""What the viewer's panel says of an answer: the sentences of its module, which Node.js runs as the browser does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kprism_model.image_kind import NONE


def said(node: str, repository: Path, function: str, answer: dict[str, Any]) -> str:
    """What a function of the module makes of an answer."""
    module = (repository / "apps" / "kprism" / "viewer" / "core" / "answer.js").as_uri()
    script = (
        f"import {{ {function} }} from {json.dumps(module)};"
        f"process.stdout.write({function}({json.dumps(answer, ensure_ascii=True)}));"
    )
    done = subprocess.run(
        [node, "--input-type=module", "--eval", script], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("kind", "not_asked", "sentence"),
    [
        (
            "CT, chest",
            ["polyp", "left ventricle"],
            "This image was taken for “CT, chest”: 2 structures that cannot be in such an image were not looked for.",
        ),
        (
            "CT, chest",
            ["polyp"],
            "This image was taken for “CT, chest”: 1 structure that cannot be in such an image was not looked for.",
        ),
        (
            "CT, chest",
            [],
            "This image was taken for “CT, chest”: every structure that the network knows was looked for.",
        ),
        (
            NONE,
            ["polyp", "lungs"],
            "This image is unlike those that the network was trained on, so 2 structures were not looked for; "
            "clicks and references still work.",
        ),
        (
            NONE,
            ["polyp"],
            "This image is unlike those that the network was trained on, so 1 structure was not looked for; "
            "clicks and references still work.",
        ),
        (
            NONE,
            [],
            "This image is unlike those that the network was trained on; clicks and references still work.",
        ),
    ],
)
def test_the_kind_of_image_and_what_was_left_out_are_one_sentence(
    node: str, repository: Path, kind: str, not_asked: list[str], sentence: str
) -> None:
    assert said(node, repository, "kindSentence", {"image_kind": kind, "not_asked": not_asked}) == sentence


@pytest.mark.parametrize(
    ("names", "absent", "sentence"),
    [
        ({"lungs": 1, "heart": 2}, ["polyp"], "Found: lungs, heart."),
        ({"lungs": 1, "polyp": 2}, ["polyp"], "Found: lungs."),
        ({"polyp": 1}, ["polyp"], "Not found in this case: polyp."),
        ({}, ["polyp", "lungs"], "Nothing was found in this case."),
        ({}, [], "No structure was looked for in this case."),
    ],
)
def test_what_was_found_is_told(
    node: str, repository: Path, names: dict[str, int], absent: list[str], sentence: str
) -> None:
    assert said(node, repository, "foundIn", {"label_names": names, "absent": absent}) == sentence


@pytest.mark.parametrize(("number", "where"), [(12, "slice 12"), (None, "one slice")])
def test_the_next_slice_is_one_sentence(node: str, repository: Path, number: int | None, where: str) -> None:
    sentence = said(node, repository, "nextSliceSentence", {"structure": "liver", "number": number})
    assert sentence == f"Look at {where} next: liver is least certain there."
