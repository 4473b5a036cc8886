# SPDX-License-Identifier: Apache-2.0
"""Sampling of training batches: every data set, class and case gets its share.

The images of a batch come in groups that show one structure, so that each is a reference for the others. The semantic,
the in-context and the interactive mode then share the image encoder's features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kprism_model.classes import ClassRegistry
from kprism_model.data.anatomy import foreign_classes
from kprism_model.data.augment import Augmentation, augment_batch, change_intensity
from kprism_model.data.batch import ABSENT_CLASSES_PER_IMAGE, NO_CLASS, Batch
from kprism_model.data.device_images import DeviceImages, beside_training
from kprism_model.data.groups import ImageGroup, TrainingSlice, draw_references, group_without_class
from kprism_model.data.kinds import kind_name
from kprism_model.data.region_tasks import RegionSampler
from kprism_model.data.slices import SliceStore
from kprism_model.data.synthetic import SYNTHETIC, synthetic_group
from kprism_model.data.targets import MINIMUM_PIXELS, Target, by_case, component_of, draw_slice, targets, union_of
from kprism_model.data.windows import crop_to_windows, random_windows

_LOST_PIXELS = 8  # an augmented object of fewer pixels is augmented again without geometry


@dataclass(frozen=True)
class Mixture:
    """The composition of batches, as chances.

    `absent`: an image does not show its group's structure. `elsewhere`: in images that cannot show a structure (see
    `kprism_model.data.anatomy`), it counts as absent; set this to 0 if it may be there unlabelled. `composite`: the
    object to click on is a union of classes or a part of one. `instance`: the object is one instance of a structure of
    many, such as nuclei. `window`: a group is seen in windows around its objects, as in corrections. `synthetic`: a
    group of synthetic images. `regions`: a group of views of one slice, with an object made of its regions.
    `references`: chances of 1, 2, ... references.
    """

    absent: float = 0.12
    elsewhere: float = 1.0
    composite: float = 0.08  # at 0.25, trained networks took one click on two lungs for one lung
    instance: float = 0.85
    window: float = 0.25
    synthetic: float = 0.12
    regions: float = 0.3
    references: tuple[float, ...] = (0.6, 0.2, 0.2)

    def __post_init__(self) -> None:
        """Refuse invalid chances, naming the field."""
        for name in ("absent", "elsewhere", "composite", "instance", "window", "synthetic", "regions"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Mixture.{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.synthetic + self.regions > 1:
            raise ValueError(
                f"Mixture.synthetic and Mixture.regions must not sum to more than 1, got {self.synthetic} "
                f"and {self.regions}"
            )
        if not self.references or min(self.references) < 0 or abs(sum(self.references) - 1) > 1e-6:
            raise ValueError(f"Mixture.references must be chances that sum to 1, got {self.references}")


class BatchSource(Protocol):
    """What a training draws its batches from; `registry` gives `Batch.class_index`."""

    registry: ClassRegistry

    def batch(self, n: int, *, step: int, size: int) -> Batch:
        """The batch of a step: n images of `size` x `size` pixels."""


class Sampler:
    """Draws batches: a data set by weight, then a class, cases and slices, each uniformly.

    `registry` gives `Batch.class_index`; by default it is made from the store's class names. `dataset_weights` by data
    set name; by default the store's own weights. A batch depends only on `seed` and its step. With `device`, images are
    stored and augmented there, with the same random draws except for noise. ValueError for an unknown data set name, a
    weight below zero, a class that is not in the registry, or a store without anything to draw.
    """

    def __init__(
        self,
        store: SliceStore,
        *,
        seed: int,
        registry: ClassRegistry | None = None,
        dataset_weights: Mapping[str, float] | None = None,
        mixture: Mixture | None = None,
        augmentation: Augmentation | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.store = store
        self.registry = registry or ClassRegistry(store.class_names)
        self._seed = seed
        self._mixture = mixture or Mixture()
        self._augmentation = augmentation or Augmentation()
        weights = _weights(store, dataset_weights or {})
        self._targets: list[list[Target]] = []
        shares = []
        for slice_set in store.sets:
            targets_of_set = targets(slice_set)
            for target in targets_of_set:
                self.registry.index(target.name)
            if targets_of_set and weights[slice_set.name] > 0:
                self._targets.append(targets_of_set)
                shares.append(weights[slice_set.name])
        if not self._targets:
            raise ValueError(f"no slice in {store.path} shows {MINIMUM_PIXELS} pixels of a class of a data set in use")
        self._shares = np.array(shares) / sum(shares)
        self._regions = RegionSampler(store, weights) if self._mixture.regions else None
        self._foreign = {
            slice_set.name: sorted(map(self.registry.index, foreign_classes(slice_set, store.sets)))
            for slice_set in store.sets
        }
        self._device = device or torch.device("cpu")
        self._images = None if device is None else DeviceImages(store, device)
        self._kinds = {SYNTHETIC: "", **{slice_set.name: kind_name(slice_set) for slice_set in store.sets}}

    def batch(self, n: int, *, step: int, size: int) -> Batch:
        """The batch of a step: n augmented images of `size` x `size` pixels, on the sampler's device."""
        with beside_training(self._device) as used_by_training:
            return used_by_training(self._batch(n, step, size))

    def _batch(self, n: int, step: int, size: int) -> Batch:
        if n < 1 or step < 0:
            raise ValueError(f"n must be 1 or more and step 0 or more, got {n} and {step}")
        rng = np.random.default_rng([self._seed, step])
        count = 1 + int(rng.choice(len(self._mixture.references), p=self._mixture.references))
        groups: list[ImageGroup] = []
        while sum(len(group.images) for group in groups) < n:
            room = n - sum(len(group.images) for group in groups)
            # Two images of a structure give each other one reference, four give up to three.
            groups.append(self._draw_group(min(2 if count == 1 else count + 1, room), size, rng))
        return Batch(
            self._joined([group.images for group in groups]),
            self._joined([group.masks for group in groups]),
            torch.tensor([group.class_index for group in groups for _ in group.images]),
            draw_references(groups, count, rng),
            self._joined([group.objects for group in groups]),
            torch.tensor([absent_classes for group in groups for absent_classes in group.absent_classes]),
            tuple(name for group in groups for name, _ in group.patients),
            tuple(self._kinds[name] for group in groups for name, _ in group.patients),
        ).to(self._device)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors of several groups as one, on the sampler's device; synthetic images are made on the CPU."""
        return torch.cat([slice_set.to(self._device) for slice_set in parts])

    def _draw_group(self, count: int, size: int, rng: np.random.Generator) -> ImageGroup:
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        kind = rng.random()
        if kind < self._mixture.synthetic:
            images, masks = synthetic_group(count, size, generator)
            images = change_intensity(images, torch.ones_like(masks), self._augmentation, generator)
            return group_without_class(images, masks, SYNTHETIC)
        if self._regions is not None and kind < self._mixture.synthetic + self._mixture.regions:
            return group_without_class(*self._regions.group(count, size, generator, self._augmentation, rng))
        classes = self._targets[rng.choice(len(self._targets), p=self._shares)]
        target = classes[rng.integers(len(classes))]
        pictures = self._draw_pictures(target, count, rng)
        images, masks, objects = self._augment(pictures, size, generator, rng)
        index = self.registry.index(target.name)
        absent_classes = [self._draw_absent_classes(picture, rng) for picture in pictures]
        return ImageGroup(images, masks, objects, index, [picture.patient for picture in pictures], absent_classes)

    def _draw_pictures(self, target: Target, count: int, rng: np.random.Generator) -> list[TrainingSlice]:
        """Slices of different cases, if there are enough; in some of them the structure is absent."""
        cases = rng.choice(len(target.shown), count, replace=count > len(target.shown))
        pictures = []
        for case in cases:
            if rng.random() < self._mixture.absent:
                pictures.append(self._draw_absent(target, rng))
            else:
                row = int(rng.choice(target.shown[case]))
                mask = target.mask(row)
                pictures.append(TrainingSlice(target.slice_set, row, mask, self._draw_object(target, row, mask, rng)))
        return pictures

    def _draw_object(
        self, target: Target, row: int, mask: NDArray[np.bool_], rng: np.random.Generator
    ) -> NDArray[np.bool_]:
        """An object to click on: the structure or, by chance and if possible, a union of classes or a component."""
        component, many = component_of(target, row, mask, rng)
        if many and component is not None and rng.random() < self._mixture.instance:
            return component
        if rng.random() >= self._mixture.composite:
            return mask
        options = [option for option in (union_of(target.slice_set, row, rng), component) if option is not None]
        return options[rng.integers(len(options))] if options else mask

    def _draw_absent(self, target: Target, rng: np.random.Generator) -> TrainingSlice:
        """A slice without the structure, or one with it if no slice in the store lacks it."""
        empty = np.zeros((self.store.size, self.store.size), dtype=bool)
        if target.absent:
            return TrainingSlice(target.slice_set, draw_slice(target.absent, rng), empty, empty)
        index = self.registry.index(target.name)
        others = [slice_set for slice_set in self.store.sets if index in self._foreign[slice_set.name]]
        if not others or rng.random() >= self._mixture.elsewhere:
            row = draw_slice(target.shown, rng)
            return TrainingSlice(target.slice_set, row, target.mask(row), target.mask(row))
        slice_set = others[rng.integers(len(others))]
        return TrainingSlice(slice_set, draw_slice(by_case(slice_set, np.arange(len(slice_set))), rng), empty, empty)

    def _draw_absent_classes(self, picture: TrainingSlice, rng: np.random.Generator) -> list[int]:
        """Absent classes of a slice: alternately one of its own data set and one that cannot be in such images."""
        slice_set = picture.slice_set
        own = [
            self.registry.index(name)
            for name, pixels in zip(slice_set.classes.values(), slice_set.pixels[picture.row], strict=True)
            if not pixels
        ]
        foreign = self._foreign[slice_set.name] if rng.random() < self._mixture.elsewhere else []
        kinds = [kind for kind in (own, foreign) if kind]
        return [
            int(rng.choice(kinds[slot % len(kinds)])) if kinds else NO_CLASS for slot in range(ABSENT_CLASSES_PER_IMAGE)
        ]

    def _augment(
        self, pictures: Sequence[TrainingSlice], size: int, generator: torch.Generator, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images, masks and objects after the same augmentation; by chance cropped to windows around the objects."""
        images = self._gather(pictures)
        whole = torch.from_numpy(np.stack([np.stack([picture.mask, picture.clicked]) for picture in pictures]))
        content = torch.from_numpy(np.stack([picture.slice_set.content[picture.row] for picture in pictures]))
        windows = None
        if rng.random() < self._mixture.window:
            windows = random_windows(whole[:, 1:], None, size, rng)
        whole = whole.to(self._device)
        if windows is not None:
            images, whole, content = crop_to_windows(images, whole, content, windows)
        changed, masks = augment_batch(
            images, whole, generator, size=size, content=content, settings=self._augmentation
        )
        lost = ((masks.sum(dim=(2, 3)) < _LOST_PIXELS) & whole.flatten(2).any(dim=2)).any(dim=1)
        if lost.any():
            changed[lost], masks[lost] = augment_batch(
                images[lost],
                whole[lost],
                generator,
                size=size,
                content=content[lost.cpu()],
                settings=self._augmentation.without_geometry(),
            )
        return changed, masks[:, :1], masks[:, 1:]

    def _gather(self, pictures: Sequence[TrainingSlice]) -> Tensor:
        """The canvases, uint8 (n, 3, side, side)."""
        if self._images is not None:
            return self._images.gather([(picture.slice_set, picture.row) for picture in pictures])
        side = self.store.size
        pixels = np.empty((len(pictures), 3, side, side), dtype=np.uint8)
        for canvas, picture in zip(pixels, pictures, strict=True):
            canvas[:] = picture.slice_set.images[picture.row].transpose(2, 0, 1)
        return torch.from_numpy(pixels)


def _weights(store: SliceStore, given: Mapping[str, float]) -> dict[str, float]:
    """The weight of each data set of a store: from `given`, else its own."""
    unknown = sorted(set(given) - {slice_set.name for slice_set in store.sets})
    if unknown or any(not weight >= 0 for weight in given.values()):
        raise ValueError(
            f"dataset_weights must map some of {[slice_set.name for slice_set in store.sets]} to weights of 0 or more, "
            f"got {dict(given)}"
        )
    return {slice_set.name: given.get(slice_set.name, slice_set.weight) for slice_set in store.sets}
