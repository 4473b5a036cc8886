# SPDX-License-Identifier: Apache-2.0
"""The file with the aggregate of a federation: its tensors, and as metadata its plan, sites and the rounds done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.numpy

from kprism_model.checkpoint import Checkpoint
from lib.federation.exchange import Arrays, check, expected_names
from lib.federation.plan import FederationError, FederationPlan


@dataclass(frozen=True)
class Aggregate:
    """The tensors that `sites` sites have averaged by a plan."""

    plan: FederationPlan
    sites: int
    arrays: Arrays


def read_aggregate(path: Path, shipped: Checkpoint) -> Aggregate:
    """The aggregate in a file; FederationError unless it has all rounds and exactly the tensors that it must have."""
    what = f"the aggregate {path}"
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
        arrays: Arrays = safetensors.numpy.load_file(path)
        plan, done, sites = FederationPlan.decoded(metadata["plan"]), int(metadata["rounds"]), int(metadata["sites"])
    except (OSError, safetensors.SafetensorError, LookupError, ValueError) as error:
        raise FederationError(f"{what} cannot be used: {error!r}") from error
    if done != plan.rounds:
        raise FederationError(f"{what} has {done} of {plan.rounds} rounds")
    if plan.base != shipped.weights_version:
        raise FederationError(
            f"{what} started from the shipped weights {plan.base}; here are {shipped.weights_version}"
        )
    check(arrays, shipped.model, plan.structures, what)
    missing = sorted(expected_names(shipped.model, plan.structures) - set(arrays))
    if missing:
        raise FederationError(f"{what} lacks {', '.join(missing[:3])} ({len(missing)} tensors in all)")
    return Aggregate(plan, sites, arrays)


def by_fold(aggregates: Iterable[Aggregate]) -> dict[int, Aggregate]:
    """Aggregates by the fold that no site has trained on; FederationError if they do not belong together."""
    found: dict[int, Aggregate] = {}
    for one in aggregates:
        fold, first = one.plan.fold, next(iter(found.values()), one)
        if fold is None:
            raise FederationError("an aggregate was trained on all patients, so no site can judge it; expected a fold")
        if one.plan.without_fold(None) != first.plan.without_fold(None) or one.sites != first.sites:
            raise FederationError("the aggregates are of federations with different plans; expected one plan")
        if fold in found:
            raise FederationError(f"there are two aggregates of fold {fold}; expected one of each fold")
        found[fold] = one
    if not found:
        raise FederationError("there is no aggregate to judge")
    return found
