# SPDX-License-Identifier: Apache-2.0
"""The numbers that govern propagation, chosen on validation lists."""

from __future__ import annotations

from dataclasses import dataclass, field

from kprism_model.volumes.adaptation import AdaptationRules


@dataclass(frozen=True)
class PropagationRules:
    """The numbers that govern propagation.

    slope: how far an outline may move sideways from slice to slice, in distances between slices. presence: a structure
    ends where its presence is less probable than this. support: it also ends where the prompted slice alone, without
    the masks between, supports the mask by less than this share of the support for its own mask; so a mask cannot slide
    into other tissue step by step. class_share: the share, at most, of a known class in the prediction, see
    `class_prior`. adaptation: of a prompted slice, before a mask is propagated from it to an end of the volume; None
    for none.
    """

    slope: float = 2.0
    presence: float = 0.5
    support: float = 0.2
    class_share: float = 0.6
    adaptation: AdaptationRules | None = field(default_factory=AdaptationRules)
