# SPDX-License-Identifier: Apache-2.0
"""The network as three graphs of tensors: no Python decision depends on an input.

`KPrism` decides in Python which prompts a call has (a class, references, clicks) and how to compute it fastest. A graph
is traced once and must work for every call, so absent prompts are data here: an index of -1, a padded token, an axis of
length 0. Each row is decoded with the prompts that it has, as `KPrism.decode` would decode it alone.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kprism_model.network.config import STRIDES
from kprism_model.network.decoder import DecoderLayer, Tokens
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.experts import MixtureCrossAttention
from kprism_model.network.kprism import KPrism
from kprism_model.network.position import sine_encoding, summary_encoding
from kprism_model.network.references import References, read_references


class ImageEncoderGraph(nn.Module):
    """`images` (B, 3, H, W) in [0, 1], H and W multiples of 32 -> features (B, C, H / s, W / s), s = 16, 8 and 4."""

    def __init__(self, model: KPrism) -> None:
        super().__init__()
        self.encoder = model.image_encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images."""
        return tuple(self.encoder(images))


class ReferenceEncoderGraph(nn.Module):
    """`images` (R, 3, H, W), `masks` (R, 1, H, W) of 0 and 1 -> summaries (R, S, C) at strides 16, 8 and 4, values.

    `values` (R, Cv, H / 16, W / 16) belong to the keys, which are the image encoder's features at stride 16. If mask
    and image share an encoder, this graph has a copy of it, so that its inputs are the same for every network.
    """

    def __init__(self, model: KPrism) -> None:
        super().__init__()
        self.shared = model.image_encoder if model.config.mask_encoder == "shared" else None
        self.encoder = model.mask_encoder
        self.summarizer = model.summarizer

    def forward(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode references."""
        seen = images if self.shared is None else self.shared(images)
        features: ImageFeatures = self.encoder(seen, masks)
        coarse, middle, fine = (self._summarize(level, scale, masks) for level, scale in enumerate(features))
        return coarse, middle, fine, features.stride16

    def _summarize(self, level: int, feature: Tensor, masks: Tensor) -> Tensor:
        """As in `ObjectSummarizer`, but with average pooling: it has a fixed kernel, unlike "area" resizing."""
        summarizer = self.summarizer
        height, width = feature.shape[-2:]
        inside = F.avg_pool2d(masks, STRIDES[level]).permute(0, 2, 3, 1)
        half = summarizer.summaries // 2
        region = torch.cat([inside.expand(-1, -1, -1, half), (1 - inside).expand(-1, -1, -1, half)], dim=-1)
        value = summarizer.project[level](feature.permute(0, 2, 3, 1))
        value = value + summary_encoding(height, width, value.shape[-1], device=value.device)
        # onnxruntime's own sigmoid is wrong by up to 1e-7, which matters if all weights of a summary are that small.
        weights = region / (1 + (-summarizer.weights[level](value)).exp())
        sums = weights.flatten(1, 2).transpose(1, 2) @ summarizer.features[level](value).flatten(1, 2)
        return sums / (weights.sum((1, 2))[..., None] + 1e-4)  # type: ignore[no-any-return]


class ShiftedGroupNorm(nn.Module):
    """GroupNorm of the input minus the first value of each group; this changes only the rounding.

    onnxruntime sums the mean in single precision. For a constant map (an empty prompt map) this leaves a remainder, and
    the division by a standard deviation near zero turns it into 0.1 of a logit.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        norm = self.norm
        grouped = x.reshape(x.shape[0], norm.num_groups, -1)
        plain = F.group_norm(grouped - grouped[..., :1], norm.num_groups, eps=norm.eps).reshape(x.shape)
        return plain * norm.weight[:, None, None] + norm.bias[:, None, None]


class DecoderGraph(nn.Module):
    """Decodes N rows, each with a class or references, with or without clicks, or with clicks alone.

    Inputs, for B encoded images, G sets of R references and at most K clicks a row:

    - `stride16`, `stride8`, `stride4`: features of the image encoder, (B, C, h, w);
    - `image_index`, `class_index`, `reference_index` (N,): the image, the class and the set of references of each row;
      -1 is none, and a row has at most one of class and references;
    - `summaries16`, `summaries8`, `summaries4` (G, R, S, C), `keys` (G, R, Ck, h', w'), `values` (G, R, Cv, h', w');
    - `points` (N, K, 2) as (row, column) in input pixels, `point_labels` (N, K): 1 positive, 0 negative, -1 padding;
    - `dense` (N or 1, 3, H, W): discs of positive and negative clicks, probability of a previous mask; zeros if absent.

    R and K may be 0. Returns `logits` (N, 1, H / 4, W / 4) of the last layer and `presence` (N,), both before the
    sigmoid.
    """

    def __init__(self, model: KPrism) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for block in (*self.model.projections, *self.model.dense_encoder.downs):
            block[-1] = ShiftedGroupNorm(block[-1])

    def forward(
        self,
        stride16: Tensor,
        stride8: Tensor,
        stride4: Tensor,
        image_index: Tensor,
        class_index: Tensor,
        reference_index: Tensor,
        summaries16: Tensor,
        summaries8: Tensor,
        summaries4: Tensor,
        keys: Tensor,
        values: Tensor,
        points: Tensor,
        point_labels: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode."""
        rows = reference_index.clamp(min=0)
        summaries = summaries16[rows], summaries8[rows], summaries4[rows]
        references = References(summaries, keys[rows], values[rows])
        has_class, has_references = class_index >= 0, reference_index >= 0
        scales = [scale.index_select(0, image_index) for scale in (stride16, stride8, stride4)]
        read = read_references(scales[0], references)
        scales[0] = torch.where(has_references[:, None, None, None], read, scales[0])
        pixels, positions = self._embed(scales, dense)
        fixed_tokens = [
            Tokens.concatenate(
                [self._class_tokens(class_index, has_class), self._reference_tokens(summary, has_references)]
            )
            for summary in summaries
        ]
        has_clicks = (point_labels >= 0).long().sum(1) > 0
        class_only = has_class & ~has_clicks & ~has_references
        binary = ~has_class & ~has_references
        return self._decode(pixels, positions, fixed_tokens, (points, point_labels, dense), class_only, binary)

    def _embed(self, scales: list[Tensor], dense: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Pixels (N, h, w, C) as the decoder first sees them and positions (h, w, C), at strides 16, 8 and 4."""
        model = self.model
        pixels, positions = [], []
        for level, (scale, dense_map) in enumerate(zip(scales, model.dense_encoder(dense), strict=True)):
            where = sine_encoding(scale.shape[-2], scale.shape[-1], model.config.width, device=scale.device)
            embedded = model.projections[level](scale) + (
                dense_map + (where + model.level_embedding[level][:, None, None])
            )
            pixels.append(embedded.permute(0, 2, 3, 1))
            positions.append(where.permute(1, 2, 0))
        return pixels, positions

    def _decode(
        self,
        pixels: list[Tensor],
        positions: list[Tensor],
        fixed_tokens: list[Tokens],
        clicks: tuple[Tensor, Tensor, Tensor],
        class_only: Tensor,
        binary: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loop of `Decoder.forward`: rows `class_only` keep their tokens, a binary mask guides rows `binary`."""
        decoder = self.model.decoder
        sources = list(pixels)
        content: Tensor | None = None
        logits: Tensor | None = None
        presence: Tensor | None = None
        for number, layer in enumerate(decoder.layers):
            assert isinstance(layer, DecoderLayer)
            level = number % 3
            x = pixels[level]
            if number:
                x = x + decoder._resample(number, pixels[(number - 1) % 3])
            tokens = Tokens.concatenate([fixed_tokens[level], self._click_tokens(level, sources[level], *clicks)])
            if content is not None:
                tokens.content = torch.where(class_only[:, None, None], content, tokens.content)
            blocked = None if logits is None else self._blocked(logits, x, tokens, binary)
            content, pixels[level] = _apply(layer, tokens, x, positions[level], blocked)
            if level == 2:
                sources = list(pixels)
            logits = decoder.heads[level](pixels[level].permute(0, 3, 1, 2))
            if number == 0:
                presence = decoder._presence(tokens, content, pixels[0])
        assert logits is not None and presence is not None  # a decoder has at least three layers
        return logits, presence

    def _class_tokens(self, class_index: Tensor, present: Tensor) -> Tokens:
        tokens = self.model.decoder._class_tokens(class_index.clamp(min=0))
        return Tokens(tokens.content, tokens.position, tokens.foreground, ~(tokens.foreground & present[:, None]))

    def _reference_tokens(self, summaries: Tensor, present: Tensor) -> Tokens:
        tokens = self.model.decoder._reference_tokens(summaries)
        return Tokens(tokens.content, tokens.position, tokens.foreground, tokens.padded | ~present[:, None])

    def _click_tokens(self, level: int, pixels: Tensor, points: Tensor, labels: Tensor, dense: Tensor) -> Tokens:
        """As in `ClickEncoder`, for sizes that are known only when the graph runs."""
        clicks = self.model.decoder.clicks
        encoding = clicks.position
        fraction = torch.stack([(points[..., axis] + 0.5) / dense.shape[2 + axis] for axis in range(2)], dim=-1)
        angles = 2 * torch.pi * ((2 * fraction - 1) @ encoding.gaussian)
        position = torch.cat([angles.sin(), angles.cos()], dim=-1) + encoding.labels[labels.clamp(min=0)]
        position = torch.where((labels < 0)[..., None], encoding.padding, position)
        content = clicks.content(_read(pixels, points, STRIDES[level]))
        return Tokens(content, position, labels == 1, labels < 0)

    @staticmethod
    def _blocked(logits: Tensor, pixels: Tensor, tokens: Tokens, binary: Tensor) -> Tensor:
        hard = (logits > 0).to(logits.dtype) - 0.5
        guide = torch.where(binary[:, None, None, None], hard, logits)
        guide = F.interpolate(guide, pixels.shape[1:3], mode="bilinear", align_corners=False).flatten(2)
        foreground = tokens.foreground[..., None]
        blocked = (foreground & (guide < 0)) | (~foreground & (guide > 0))
        return blocked & ~blocked.all(-1, keepdim=True)


def _read(pixels: Tensor, points: Tensor, stride: int) -> Tensor:
    """Features (N, K, C) of `pixels` (N, h, w, C) under `points`: one pixel at stride 16, else the mean of 3 x 3."""
    height, width = pixels.shape[1:3]
    row, column = ((points[..., axis] / stride).round().long().clamp(min=0) for axis in range(2))
    row, column = row - (row - height + 1).clamp(min=0), column - (column - width + 1).clamp(min=0)
    flat = pixels.flatten(1, 2)
    total, count = torch.zeros_like(flat[:, :1]), torch.zeros_like(points[..., :1])
    reach = range(-1, 2) if stride < 16 else range(1)
    for down in reach:
        for right in reach:
            y, x = row + down, column + right
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            index = torch.where(inside, y * width + x, torch.zeros_like(y))
            weight = inside[..., None].to(flat.dtype)
            total = total + weight * flat.gather(1, index[..., None].expand(-1, -1, flat.shape[-1]))
            count = count + weight
    return total / count


def _apply(
    layer: DecoderLayer, tokens: Tokens, pixels: Tensor, position: Tensor, blocked: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`DecoderLayer.forward` with the attention always folded onto the tokens, whatever their number."""
    padded = tokens.padded & ~tokens.padded.all(-1, keepdim=True)
    flat, where = pixels.flatten(1, 2), position.flatten(0, 1)
    content = _fold(layer.read, tokens.content, flat, tokens.position, where, blocked, few_queries=True)
    content = layer.feed_forward(layer.mix(content, tokens.position, padded))
    flat = _fold(layer.write, flat, content, where, tokens.position, padded[:, None], few_queries=False)
    written = layer.convolve(flat.view_as(pixels).permute(0, 3, 1, 2))
    return content, written.permute(0, 2, 3, 1)


def _fold(
    attention: MixtureCrossAttention,
    target: Tensor,
    source: Tensor,
    target_position: Tensor,
    source_position: Tensor,
    blocked: Tensor | None,
    *,
    few_queries: bool,
) -> Tensor:
    fold = attention.fold_queries if few_queries else attention.fold_keys
    mixed = fold(target + target_position, source + source_position, source, attention.gate(target), blocked)
    return attention.norm(target + mixed)  # type: ignore[no-any-return]
