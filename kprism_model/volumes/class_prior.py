# SPDX-License-Identifier: Apache-2.0
"""What the network knows of a structure by its name, as a prior of propagation.

A structure that is propagated may be one of the network's classes. Where the prediction of that class agrees with the
prompted slices, it helps on the others: it knows where the structure ends, and how it looks there. Where it disagrees,
because the image is of another kind or the user means something else by the name, it has no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kprism_model.metrics import dice
from kprism_model.predictor import THRESHOLD, Prediction
from kprism_model.volumes.prompts import digest, digest_of
from kprism_model.volumes.slice_features import SliceFeatures, SliceQuery

AGREEMENT = (0.5, 0.8)
"""Dice with the masks of prompted slices from which a class has a say, and at which it has all of its share."""


@dataclass(frozen=True)
class ClassPrior:
    """A class that the network knows, and the share that its prediction has in a propagated one, 0 to 1."""

    features: SliceFeatures
    class_name: str
    share: float

    @classmethod
    def of(
        cls,
        features: SliceFeatures,
        class_name: str,
        masks: Sequence[tuple[int, NDArray[np.bool_]]],
        most: float,
    ) -> ClassPrior:
        """The prior of a class, with a share of `most` at most; `masks` are numbers and masks of prompted slices.

        ValueError if the network does not know the class.
        """
        agreement = [_agreement(features, class_name, number, mask) for number, mask in masks]
        low, high = AGREEMENT
        share = most * float(np.clip((np.mean(agreement) - low) / (high - low), 0, 1))
        return cls(features, class_name, share)

    def joined(self, number: int, prediction: Prediction) -> Prediction:
        """The weighted mean of a prediction on slice `number` and of the prediction of the class there."""
        if not self.share:
            return prediction
        [known] = self.features.predict([SliceQuery(number, class_name=self.class_name)])
        probability = (1 - self.share) * prediction.probability + self.share * known.probability
        presence = (1 - self.share) * prediction.presence + self.share * known.presence
        return Prediction(probability >= THRESHOLD, probability, presence)


def _agreement(features: SliceFeatures, class_name: str, number: int, mask: NDArray[np.bool_]) -> float:
    """Dice of a prompted slice's mask with the prediction of a class there; kept, because two ranges ask for it."""

    def compute() -> float:
        [prediction] = features.predict([SliceQuery(number, class_name=class_name)])
        return dice(prediction.mask_if_present, mask)

    return features.cached("agreement", digest(class_name, str(number), digest_of(mask)), compute)
