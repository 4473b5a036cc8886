# SPDX-License-Identifier: Apache-2.0
"""Soft mixtures of experts: attention and feed-forward layers that evaluate every expert (arXiv 2509.25594).

out = sum over experts e of softmax(W_g t)_e * expert_e(t). The experts of a layer are stacked tensors, not modules, and
cross-attention is folded onto the side with few tokens. Folding is exact:

- few queries: q_h W_k,h is one vector of C for each head and expert, so pixels need no key or value projection. W_v is
  applied after the weighted sum of raw pixels. The key bias cancels in the softmax; the value bias is added once;
- few keys: W_q,h^T k_h and W_o,h v_h are computed once for each token, so pixels need no query or output projection.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MixtureGate(nn.Module):
    """Weights of the experts for each token: softmax of a linear map."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, experts)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., E), summing to 1 over the last axis."""
        return self.linear(tokens).softmax(-1)  # type: ignore[no-any-return]


class MixtureCrossAttention(nn.Module):
    """LN(target + mixture of multi-head cross-attentions from `target` to `source`).

    Weights, E experts and width C: `in_weight` (E, 3 C, C) and `in_bias` (E, 3 C) for queries, keys and values, one
    after the other; `out_weight` (E, C, C) and `out_bias` (E, C).
    """

    def __init__(self, width: int, heads: int, experts: int) -> None:
        super().__init__()
        self.heads = heads
        self.experts = experts
        self.head_width = width // heads
        self.in_weight = nn.Parameter(torch.empty(experts, 3 * width, width))
        self.in_bias = nn.Parameter(torch.zeros(experts, 3 * width))
        self.out_weight = nn.Parameter(torch.empty(experts, width, width))
        self.out_bias = nn.Parameter(torch.zeros(experts, width))
        self.gate = MixtureGate(width, experts)
        self.norm = nn.LayerNorm(width)
        bound = math.sqrt(6 / (width + width))
        nn.init.uniform_(self.in_weight, -bound, bound)
        nn.init.uniform_(self.out_weight, -bound, bound)

    def forward(
        self,
        target: Tensor,
        source: Tensor,
        target_position: Tensor,
        source_position: Tensor,
        blocked: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        `target` (B, T, C), `source` (B, S, C); positions broadcast to them; `blocked` (B, T, S) or (B, 1, S) is true
        where attention is masked; no row may be masked completely. Returns (B, T, C).
        """
        queries, keys = target + target_position, source + source_position
        gate = self.gate(target)
        # For the side with many tokens, folding costs heads * few / C of a projection, and saves one or two of them.
        # Measured: it pays up to about as many few tokens as one head is wide.
        few = self.head_width
        if target.shape[1] <= min(few, source.shape[1]):
            mixed = self.fold_queries(queries, keys, source, gate, blocked)
        elif source.shape[1] <= few:
            mixed = self.fold_keys(queries, keys, source, gate, blocked)
        else:
            mixed = self.plain(queries, keys, source, gate, blocked)
        return self.norm(target + mixed)  # type: ignore[no-any-return]

    def plain(self, queries: Tensor, keys: Tensor, values: Tensor, gate: Tensor, blocked: Tensor | None) -> Tensor:
        """The definition, expert by expert; the folded forms are equal to it up to rounding."""
        outputs = []
        for expert in range(self.experts):
            weights, biases = self.in_weight[expert].chunk(3), self.in_bias[expert].chunk(3)
            q, k, v = (
                (x @ w.T + b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for x, w, b in zip((queries, keys, values), weights, biases, strict=True)
            )
            scores = q @ k.transpose(-1, -2) / self.head_width**0.5
            if blocked is not None:
                scores = scores.masked_fill(blocked[:, None], -math.inf)
            out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            outputs.append(out @ self.out_weight[expert].T + self.out_bias[expert])
        return torch.einsum("bte,ebtc->btc", gate, torch.stack(outputs))

    def fold_queries(
        self, queries: Tensor, keys: Tensor, values: Tensor, gate: Tensor, blocked: Tensor | None
    ) -> Tensor:
        """Cross-attention of few queries to many keys, with raw `keys` and `values` (B, S, C)."""
        batch, tokens = queries.shape[:2]
        w_q, w_k, w_v, b_q, b_v = self._by_head()
        q = torch.einsum("btc,ehdc->behtd", queries, w_q) + b_q[:, :, None]
        folded = torch.einsum("behtd,ehdc->behtc", q / self.head_width**0.5, w_k).flatten(1, 3)
        scores = (folded @ keys.transpose(1, 2)).unflatten(1, (-1, tokens))
        if blocked is not None:
            scores = scores.masked_fill(blocked[:, None], -math.inf)
        pooled = scores.softmax(-1).flatten(1, 2) @ values
        pooled = pooled.view(batch, self.experts, self.heads, tokens, -1)
        out = torch.einsum("behtc,ehdc->behtd", pooled, w_v) + b_v[:, :, None]
        out = out.permute(0, 1, 3, 2, 4).flatten(3)
        out = torch.einsum("betd,ecd->betc", out, self.out_weight) + self.out_bias[:, None]
        return torch.einsum("bte,betc->btc", gate, out)

    def fold_keys(self, queries: Tensor, keys: Tensor, values: Tensor, gate: Tensor, blocked: Tensor | None) -> Tensor:
        """Cross-attention of many queries (B, T, C) to few keys, with raw `queries`."""
        tokens = keys.shape[1]
        w_q, w_k, w_v, b_q, b_v = self._by_head()
        # The key bias adds the same value to all scores of a query, so it cancels in the softmax.
        k = torch.einsum("bsc,ehdc->behsd", keys, w_k) / self.head_width**0.5
        folded = torch.einsum("behsd,ehdc->behsc", k, w_q).flatten(1, 3)
        offset = torch.einsum("behsd,ehd->behs", k, b_q).flatten(1)
        v = torch.einsum("bsc,ehdc->behsd", values, w_v) + b_v[:, :, None]
        w_o = self.out_weight.unflatten(2, (self.heads, self.head_width))
        projected = torch.einsum("behsd,echd->behsc", v, w_o).flatten(1, 3)
        # (B, E * H, S, T): the softmax is over an outer axis, so it is vectorised over the many queries.
        scores = torch.baddbmm(offset[..., None], folded, queries.transpose(1, 2)).unflatten(1, (-1, tokens))
        if blocked is not None:
            scores = scores.masked_fill(blocked.transpose(1, 2)[:, None], -math.inf)
        weights = scores.softmax(2).unflatten(1, (self.experts, self.heads))
        weights = weights * gate.transpose(1, 2)[:, :, None, None]
        mixed: Tensor = weights.flatten(1, 3).transpose(1, 2) @ projected + gate @ self.out_bias
        return mixed

    def _by_head(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Query, key and value weights (E, H, d, C) and query and value biases (E, H, d)."""
        weight = self.in_weight.unflatten(1, (3, self.heads, self.head_width))
        bias = self.in_bias.unflatten(1, (3, self.heads, self.head_width))
        return weight[:, 0], weight[:, 1], weight[:, 2], bias[:, 0], bias[:, 2]


class MixtureFeedForward(nn.Module):
    """LN(t + mixture of two-layer perceptrons)."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(experts, hidden, width))
        self.bias1 = nn.Parameter(torch.zeros(experts, hidden))
        self.weight2 = nn.Parameter(torch.empty(experts, width, hidden))
        self.bias2 = nn.Parameter(torch.zeros(experts, width))
        self.gate = MixtureGate(width, experts)
        self.norm = nn.LayerNorm(width)
        bound = math.sqrt(6 / (width + hidden))
        nn.init.uniform_(self.weight1, -bound, bound)
        nn.init.uniform_(self.weight2, -bound, bound)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        hidden = (torch.einsum("btc,ehc->beth", tokens, self.weight1) + self.bias1[:, None]).relu()
        out = torch.einsum("beth,ech->betc", hidden, self.weight2) + self.bias2[:, None]
        mixed = torch.einsum("bte,betc->btc", self.gate(tokens), out)
        return self.norm(tokens + mixed)  # type: ignore[no-any-return]
