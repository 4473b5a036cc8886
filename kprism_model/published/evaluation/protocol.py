# SPDX-License-Identifier: Apache-2.0
"""The protocol of the published table: its settings, and where it leaves a choice, which reading was taken.

The unit is a pair: one slice and one structure that is in its ground truth. Facts are from the public code
(github.com/bangwayne/K-Prism, commit bf86975) and, where it lacks a file, from its predecessor by the same author
(github.com/bangwayne/Verse, commit 36790a4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kprism_model.data.datasets import SPLITS
from kprism_model.evaluation.protocol import MODES
from kprism_model.published.evaluation.clicks import CLICK_LIMIT, CLICK_RULES

PAPER_SIZE = 512
"""The long side in pixels to which the paper resizes images."""

REFERENCE_LISTS = ("training", "scored")
"""Lists that references are drawn from: the training list, or the list that is measured, less what was drawn."""


@dataclass(frozen=True)
class PublishedProtocol:
    """What is measured.

    `modes` are some of "semantic", "in_context", "interactive" and "chained" (clicks after a semantic and after an
    in-context mask). `references` is their number, the same ones for all images of a set; `draws` are drawn by `seed`.
    `reference_list` is one of `REFERENCE_LISTS`; a set without a training list always uses the list that is measured.
    `clicks` is one of `CLICK_RULES`. `max_slices` takes whole cases by `seed`, as long as they fit, at least one.
    ValueError for anything else.
    """

    modes: Sequence[str] = MODES
    split: str = "test"
    seed: int = 0
    references: int = 1
    draws: int = 1
    reference_list: str = REFERENCE_LISTS[0]
    clicks: str = "published"
    max_slices: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot be measured."""
        for name, value, allowed in (
            *(("modes", mode, MODES) for mode in self.modes),
            ("split", self.split, SPLITS),
            ("reference list", self.reference_list, REFERENCE_LISTS),
            ("clicks", self.clicks, tuple(CLICK_RULES)),
        ):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; expected one of {', '.join(allowed)}")
        for name, count in (("references", self.references), ("draws", self.draws), ("max_slices", self.max_slices)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")

    @property
    def uses_references(self) -> bool:
        """Whether a mode needs references."""
        return "in_context" in self.modes or "chained" in self.modes

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as a report states it."""
        return {"protocol": "published", **asdict(self), "modes": list(self.modes), "click_limit": CLICK_LIMIT}


READINGS = (
    (
        "mean of a set",
        "over all pairs of slice and structure, so a structure with many slices counts more (the public code)",
        "the mean of the structures' means; both are in the table of readings",
    ),
    (
        "Dice",
        "of each slice that shows the structure (the public code)",
        "of each volume, summed over the slices that show the structure (neither counts false positives in others)",
    ),
    (
        "threshold of NoC",
        "the first mask with a Dice above the threshold (the code of the predecessor)",
        "at least the threshold: NoC (>=) in the table of readings",
    ),
    (
        "clicks after a first mask",
        "0 clicks are needed if the first mask is above the threshold (the code of the predecessor)",
        "",
    ),
    (
        "references",
        "drawn once by seed from the training list; from a volume the middle slice of those that show the structure; "
        "of a set without a training list, cases of the measured list are taken out and never scored",
        "the public code draws from the test images and scores the drawn case too; `--reference-list scored` draws "
        "there and does not score it",
    ),
    (
        "size",
        "the long side is the checkpoint's own size; probabilities are resized to the slice's size and cut at > 0.5",
        f"the paper has a long side of {PAPER_SIZE}, and its volumes were resampled and cropped to the labelled region "
        "before: a slice there is not the slice of the download",
    ),
    (
        "end of the clicks",
        f"when prediction and truth are equal on the canvas, or after {CLICK_LIMIT} clicks",
        "the public code goes on with an empty click, which can change the last mask a little",
    ),
    (
        "mean of a group of sets",
        "over the sets that were measured; how many of the paper's these are is in brackets",
        "",
    ),
)
"""For each choice that the paper leaves: the reading taken, and what the other one is."""
