# SPDX-License-Identifier: Apache-2.0
"""The two small heads that are fitted at the end of a training: presence, and the kind of image."""

from __future__ import annotations

from kprism_model.data.sampling import Sampler
from kprism_model.data.sequence_sampling import SequenceSampler
from kprism_model.data.slices import SliceStore
from kprism_model.network.kprism import KPrism
from kprism_model.training.kinds import fit_kinds, mark_possible
from kprism_model.training.presence import fit_presence


def fit_heads(
    model: KPrism, sampler: Sampler, sequences: SequenceSampler | None, store: SliceStore, seed: int
) -> dict[str, dict[str, float]]:
    """Fit the presence head and the kind head in place; returns their accuracies, for the checkpoint."""
    presence = fit_presence(model, sampler, sequences)
    mark_possible(model, sampler.registry, store)
    return {"presence": presence, "kinds": fit_kinds(model, store, seed=seed)}
