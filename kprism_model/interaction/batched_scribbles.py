# SPDX-License-Identifier: Apache-2.0
"""Simulated scribbles on a batch of masks, computed on the masks' device (see `batched_clicks`).

A stroke is the smooth curve of `clicks.simulate_scribble`: a polyline through random pixels of the region's inner part,
smoothed with a Gaussian along its length. Here the smoothing has a closed form.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kprism_model.interaction.batched_regions import (
    central_pixel,
    drawn_pixel,
    largest_component,
    pixel_grid,
    positions,
    squared_distance,
)
from kprism_model.scribbles import SCRIBBLE_POINTS

STROKE_CHANCES = 5
"""Random numbers for one stroke: its nodes and its width."""

SCRIBBLE_CHANCES = 2 * STROKE_CHANCES + 1
"""Random numbers for the scribbles of a row: two strokes, and whether there is a negative one."""

_NODES = STROKE_CHANCES - 1
_NODE_DEPTH = 0.3  # nodes are at least this share of the greatest depth away from the region's edge
_NEGATIVE_REACH = 8  # a negative stroke lies at most this many pixels outside the object
_PADDING = -1  # label of a padded point


class Scribbles(NamedTuple):
    """Scribbles of N rows.

    `drawn` (N, 2, H, W) float32 of 0 and 1: positive, negative; `points` (N, 2 * `SCRIBBLE_POINTS`, 2) as (row, column)
    that represent them, with `labels` (N, 2 * `SCRIBBLE_POINTS`): 1 positive, 0 negative, -1 padding.
    """

    drawn: Tensor
    points: Tensor
    labels: Tensor


def scribbles(masks: Tensor, chance: Tensor) -> Scribbles:
    """A positive stroke in each of `masks` (N, H, W) and, half of the time, a negative one close outside.

    `chance` (N, `SCRIBBLE_CHANCES`), uniform in [0, 1). An empty mask gets no stroke.
    """
    beyond = squared_distance(~masks, border=False, reach=_NEGATIVE_REACH)
    negative = masks.any(2).any(1) & (chance[:, -1] < 0.5)
    around = (beyond > 1) & (beyond <= _NEGATIVE_REACH**2) & negative[:, None, None]
    drawn = strokes(torch.cat([masks, around]), torch.cat(chance[:, :-1].chunk(2, dim=1)))
    points, exists = spread_points(drawn)
    signs = torch.where(exists.chunk(2)[0], 1, _PADDING), torch.where(exists.chunk(2)[1], 0, _PADDING)
    return Scribbles(
        torch.stack(drawn.float().chunk(2), dim=1), torch.cat(points.chunk(2), dim=1), torch.cat(signs, dim=1)
    )


def strokes(regions: Tensor, chance: Tensor) -> Tensor:
    """A smooth curve, 1 or 3 pixels wide, along the longer axis of each region's largest component: (N, H, W).

    `regions` (N, H, W) boolean, `chance` (N, `STROKE_CHANCES`) uniform in [0, 1). A stroke lies inside its region,
    in one piece, and is empty only if the region is.
    """
    component, size = largest_component(regions)
    depth = squared_distance(component, border=True)
    inner = component & (depth >= _NODE_DEPTH**2 * depth.amax((1, 2), keepdim=True))
    nodes = drawn_pixel(inner, chance[:, :_NODES])
    samples = 4 * max(regions.shape[-2:])  # at least one a pixel on the longest curves
    curve = _smooth_curve(_along_main_axis(positions(nodes, regions.shape[-1])), samples).round().long()
    numbers = curve[..., 0] * regions.shape[-1] + curve[..., 1]
    first, last = _longest_run(component.flatten(1).gather(1, numbers))
    order = torch.arange(samples, device=regions.device)
    numbers = numbers.gather(1, torch.minimum(torch.maximum(order, first), last.clamp(min=0)))
    # A curve that leaves a bent region at once becomes a dot, which is still a valid stroke.
    numbers = torch.where(last >= first, numbers, nodes[:, :1])
    thin = torch.zeros_like(depth).flatten(1).scatter(1, numbers, 1.0).view_as(depth)
    wide = F.max_pool2d(thin, 3, 1, 1)
    stroke = torch.where((chance[:, _NODES] < 0.5)[:, None, None], wide, thin)
    return (stroke > 0) & component & (size > 0)[:, None, None]


def spread_points(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Points that represent strokes (N, H, W), chosen as in `kprism_model.scribbles.scribble_points`.

    Farthest-point sampling from the pixel nearest to the centre. Returns points (N, `SCRIBBLE_POINTS`, 2), float32, and
    which of them exist (N, `SCRIBBLE_POINTS`): a stroke with fewer pixels has fewer points; the others are (0, 0).
    """
    rows, columns = pixel_grid(drawn)
    nearest = torch.where(drawn, math.inf, 0.0)
    number = central_pixel(drawn)
    points, exists = [], []
    for _ in range(SCRIBBLE_POINTS):
        exists.append(nearest.flatten(1).gather(1, number[:, None])[:, 0] > 0)
        points.append(positions(number, drawn.shape[-1]))
        row, column = points[-1].T[..., None, None]
        nearest = torch.minimum(nearest, (rows - row).square() + (columns - column).square())
        number = nearest.flatten(1).argmax(1)
    there = torch.stack(exists, dim=1)
    return torch.stack(points, dim=1) * there[..., None], there


def _along_main_axis(nodes: Tensor) -> Tensor:
    """The nodes (N, n, 2) in order of their position on the axis of their greatest spread."""
    centred = nodes - nodes.mean(1, keepdim=True)
    down, right = centred.unbind(-1)
    angle = torch.atan2(2 * (down * right).sum(1), (down.square() - right.square()).sum(1)) / 2
    along = down * angle.cos()[:, None] + right * angle.sin()[:, None]
    return nodes.gather(1, along.argsort(dim=1)[..., None].expand(-1, -1, 2))


def _smooth_curve(nodes: Tensor, samples: int) -> Tensor:
    """Points (N, samples, 2), evenly spaced along a smooth path through the nodes (N, n, 2); it stays in their hull.

    A polyline by arc length is a sum of ramps, and so is its convolution with a Gaussian, of smooth ramps.
    """
    steps = nodes.diff(dim=1)
    lengths = steps.square().sum(-1).sqrt()
    units = steps / lengths.clamp(min=1e-6)[..., None]
    knots = F.pad(lengths.cumsum(1), (1, 0))
    share = torch.linspace(0, 1, samples, device=nodes.device)
    along = share[:, None] * knots[:, None, -1:]  # (N, samples, 1)
    ramps = _smooth_ramp(along - knots[:, None], (knots[:, -1:, None] / 12).clamp(min=0.5))
    travelled = ramps[..., :-1] - ramps[..., 1:]  # (N, samples, n - 1)
    return nodes[:, None, 0] + (travelled[..., None] * units[:, None]).sum(2)


def _smooth_ramp(x: Tensor, sigma: Tensor) -> Tensor:
    """max(x, 0), smoothed with a Gaussian of standard deviation `sigma`."""
    z = x / sigma
    smooth: Tensor = x * torch.special.ndtr(z) + sigma / math.sqrt(2 * math.pi) * (-z.square() / 2).exp()
    return smooth


def _longest_run(inside: Tensor) -> tuple[Tensor, Tensor]:
    """First and last index (N, 1) of the longest run of true values in each row of (N, S); last < first if none."""
    order = torch.arange(inside.shape[1], device=inside.device)
    length = order - torch.where(inside, -1, order).cummax(1).values
    longest, last = length.max(1, keepdim=True)
    return last - longest + 1, torch.where(longest > 0, last, -1)
