# SPDX-License-Identifier: Apache-2.0
"""Batches for fine-tuning: every image comes with the masks of all structures that were annotated in it.

An image is encoded once for all of its structures, which is most of the work of a training step. One structure, the
focus, is also given by references and clicks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kprism_model.classes import ClassRegistry
from kprism_model.data.augment import Augmentation, augment_batch
from kprism_model.data.batch import ABSENT_CLASSES_PER_IMAGE, NO_CLASS, Batch
from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.data.targets import MINIMUM_PIXELS
from kprism_model.data.windows import crop_to_windows, random_windows
from kprism_model.network.prompts import PADDING

FOCUS_SHOWN = 0.75
"""Chance that an image is drawn from the slices that show the structure in focus."""

WINDOW = 0.15
"""Chance that a batch is seen in windows around its structures, as in corrections."""

MAX_CLICKS = 4
"""Recorded clicks of a slice and structure that are replayed, the first ones."""

Weights = Mapping[str, Mapping[int, float]]
"""Case name -> slice number -> how often the slice is drawn, relative to 1 for the others."""

RecordedClick = tuple[float, float, bool]
"""Row and column as shares of the image's height and width, and whether it is positive."""

RecordedClicks = Mapping[str, Mapping[str, Mapping[int, Sequence[RecordedClick]]]]
"""Case name -> structure -> slice number -> the clicks that an annotator made there, in their order."""

_DISC = 2  # pixels: a click is moved by the augmentation as a disc of this radius

_CANDIDATES = 8  # slices that are drawn to find one of another patient


@dataclass(frozen=True)
class AnnotatedBatch(Batch):
    """A `Batch` of the structure in focus, with the masks of all K structures annotated in these images.

    structure_masks: float32 (n, K, S, S) of 0 and 1. structure_classes: int64 (K,), their rows in the registry.
    points (n, `MAX_CLICKS`, 2) as (row, column) and point_labels (n, `MAX_CLICKS`), as in `Prompts`: the clicks that
    annotators made for the structure in focus.
    """

    structure_masks: Tensor = field(default_factory=lambda: torch.empty(0))
    structure_classes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    points: Tensor = field(default_factory=lambda: torch.empty(0, MAX_CLICKS, 2))
    point_labels: Tensor = field(default_factory=lambda: torch.empty(0, MAX_CLICKS, dtype=torch.int64))


class AnnotatedSampler:
    """Draws images of cases with the same annotated structures, and a structure of them as the focus.

    `without` are patients that are not drawn. `weights` say which slices are drawn more often, `clicks` where
    annotators clicked. A batch depends only on `seed` and its step. ValueError if no slice is left.
    """

    def __init__(
        self,
        store: SliceStore,
        registry: ClassRegistry,
        *,
        seed: int,
        without: Collection[str] = (),
        weights: Weights | None = None,
        clicks: RecordedClicks | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.store, self.registry = store, registry
        self._seed, self._augmentation = seed, augmentation or Augmentation()
        self._clicks = clicks or {}
        self._parts = [part for part in (_Part.of(one, without, weights or {}) for one in store.sets) if part.shown]
        if not self._parts:
            raise ValueError(f"no slice in {store.path} shows {MINIMUM_PIXELS} pixels of a structure to learn from")
        sizes = np.array([len(part.rows) for part in self._parts], float)
        self._shares = sizes / sizes.sum()

    def batch(self, n: int, *, step: int, size: int) -> AnnotatedBatch:
        """The batch of a step: n augmented images of `size` x `size` pixels."""
        rng = np.random.default_rng([self._seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        part = self._parts[rng.choice(len(self._parts), p=self._shares)]
        focus = list(part.shown)[rng.integers(len(part.shown))]
        rows = _drawn(part, focus, n, rng)
        clicks = [self._recorded(part.slices, row, focus) for row in rows]
        images, masks, discs = self._augmented(part.slices, rows, clicks, size, rng, generator)
        classes = torch.tensor([self.registry.index(name) for name in part.slices.classes.values()])
        mask = masks[:, focus : focus + 1]
        return AnnotatedBatch(
            images=images,
            masks=mask,
            class_index=classes[focus].expand(n).clone(),
            references=_references(mask, part.slices.patient[rows], rng),
            objects=mask,
            absent_classes=torch.full((n, ABSENT_CLASSES_PER_IMAGE), NO_CLASS),
            dataset=(part.slices.name,) * n,
            kinds=("",) * n,
            structure_masks=masks,
            structure_classes=classes,
            points=_centres(discs),
            point_labels=_labels(clicks, discs),
        )

    def _recorded(self, slices: SliceSet, row: int, structure: int) -> Sequence[RecordedClick]:
        """The clicks of an annotator on a slice, for a structure by its place in the set."""
        case, name = slices.case_names[slices.case[row]], list(slices.classes.values())[structure]
        return self._clicks.get(case, {}).get(name, {}).get(int(slices.number[row]), ())[:MAX_CLICKS]

    def _augmented(
        self,
        slices: SliceSet,
        rows: NDArray[np.int64],
        clicks: Sequence[Sequence[RecordedClick]],
        size: int,
        rng: np.random.Generator,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images, masks of all structures, and clicks as discs (n, `MAX_CLICKS`, S, S), after the same augmentation."""
        images = torch.from_numpy(slices.images[rows].transpose(0, 3, 1, 2).copy()).expand(-1, 3, -1, -1).contiguous()
        values = np.array(list(slices.classes)).reshape(1, -1, 1, 1)
        masks = torch.from_numpy(slices.labels[rows][:, None] == values)
        content = torch.from_numpy(slices.content[rows])
        side = images.shape[-1]
        discs = torch.stack([_discs(own, shape, side) for own, shape in zip(clicks, content.tolist(), strict=True)])
        both = torch.cat([masks, discs], dim=1)
        if rng.random() < WINDOW:
            windows = random_windows(masks.any(1, keepdim=True), None, size, rng)
            images, both, content = crop_to_windows(images, both, content, windows)
        changed, moved = augment_batch(images, both, generator, size=size, content=content, settings=self._augmentation)
        return changed, moved[:, : masks.shape[1]], moved[:, masks.shape[1] :]


def _drawn(part: _Part, focus: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The rows of n images; neighbours are of different patients if chance allows: one can be the other's reference."""
    rows = [part.draw(focus, rng)]
    while len(rows) < n:
        candidates = [part.draw(focus, rng) for _ in range(_CANDIDATES)]
        patient = part.slices.patient[rows[-1]]
        rows.append(next((row for row in candidates if part.slices.patient[row] != patient), candidates[0]))
    return np.array(rows)


def _discs(clicks: Sequence[RecordedClick], shape: Sequence[int], side: int) -> Tensor:
    """Clicks as discs on the canvas, bool (`MAX_CLICKS`, side, side); `shape` is that of the image on it."""
    discs = torch.zeros(MAX_CLICKS, side, side, dtype=torch.bool)
    centres = torch.arange(side) + 0.5
    for number, (row, column, _) in enumerate(clicks):
        down, right = (centres - row * shape[0]).square(), (centres - column * shape[1]).square()
        discs[number] = down[:, None] + right <= (_DISC + 0.5) ** 2
    return discs


def _centres(discs: Tensor) -> Tensor:
    """The centres (n, m, 2) of discs (n, m, S, S), (row, column); 0 where there is none."""
    places = torch.arange(discs.shape[-1], dtype=torch.float32)
    area = discs.sum((2, 3)).clamp(min=1)
    return torch.stack([(discs.sum(3) * places).sum(2) / area, (discs.sum(2) * places).sum(2) / area], dim=2)


def _labels(clicks: Sequence[Sequence[RecordedClick]], discs: Tensor) -> Tensor:
    """Labels (n, m) of the points: 1 positive, 0 negative, padding where the augmentation has moved the click away."""
    labels = torch.full(discs.shape[:2], PADDING)
    for image, own in enumerate(clicks):
        for number, (_, _, positive) in enumerate(own):
            if discs[image, number].any():
                labels[image, number] = int(positive)
    return labels


def _references(masks: Tensor, patients: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
    """For each image the number of another patient's image that shows the structure, (n, 1); -1 if there is none."""
    shown = masks.flatten(1).any(1).numpy()
    chosen = []
    for patient in patients:
        others = np.flatnonzero(shown & (patients != patient))
        chosen.append([int(rng.choice(others)) if len(others) else -1])
    return torch.tensor(chosen)


@dataclass(frozen=True)
class _Part:
    """The slices of a set that may be drawn: `rows`, their chances, and the same for those that show a structure."""

    slices: SliceSet
    rows: NDArray[np.int64]
    chances: NDArray[np.float64]
    shown: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]]

    @classmethod
    def of(cls, slices: SliceSet, without: Collection[str], weights: Weights) -> _Part:
        patients = np.array(slices.patients)[slices.case]
        rows = np.flatnonzero(~np.isin(patients, list(without)))
        names = [slices.case_names[case] for case in slices.case]
        weight = np.array(
            [weights.get(name, {}).get(int(number), 1.0) for name, number in zip(names, slices.number, strict=True)]
        )
        shown = {}
        for structure in range(len(slices.classes)):
            own = rows[slices.pixels[rows, structure] >= MINIMUM_PIXELS]
            if len(own):
                shown[structure] = own, _chances(weight[own])
        return cls(slices, rows, _chances(weight[rows]), shown)

    def draw(self, focus: int, rng: np.random.Generator) -> int:
        """A slice, with the chance `FOCUS_SHOWN` one that shows the structure in focus for certain."""
        rows, chances = self.shown[focus] if rng.random() < FOCUS_SHOWN else (self.rows, self.chances)
        return int(rng.choice(rows, p=chances))


def _chances(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return weights / weights.sum() if len(weights) else weights
