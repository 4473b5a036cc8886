# SPDX-License-Identifier: Apache-2.0
"""The K-Prism network: encoders, prompts and decoder joined (arXiv 2509.25594)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kprism_model.network.config import SIZE_MULTIPLE, KPrismConfig
from kprism_model.network.decoder import Decoder
from kprism_model.network.efficientnet import EfficientNetLiteEncoder
from kprism_model.network.encoder import ImageEncoder, ImageFeatures, MaskEncoder, SharedMaskEncoder
from kprism_model.network.kinds import KindHead
from kprism_model.network.layers import GroupNorm, PointwiseConv
from kprism_model.network.position import sine_encoding
from kprism_model.network.prompts import DensePromptEncoder, Prompts
from kprism_model.network.references import ObjectSummarizer, References, read_references
from kprism_model.network.weight_cache import WeightCache


@dataclass
class Decoded:
    """Output of the decoder for N rows: `logits` of every layer (N, 1, h, w), the last at stride 4; `presence` (N,)."""

    logits: list[Tensor]
    presence: Tensor


class KPrism(nn.Module):
    """One network for three kinds of knowledge: trained classes, reference cases, and clicks or scribbles.

    Call `encode_image` once for an image, `encode_references` once for a set of references, and `decode` for each
    prediction.
    """

    def __init__(self, config: KPrismConfig) -> None:
        super().__init__()
        self.config = config
        published = config.encoder == "utnet"
        self.image_encoder = ImageEncoder(config) if published else EfficientNetLiteEncoder(config)
        shared = config.mask_encoder == "shared"
        self.mask_encoder = SharedMaskEncoder(config) if shared else MaskEncoder(config)
        self.summarizer = ObjectSummarizer(config)
        self.projections = nn.ModuleList(
            nn.Sequential(PointwiseConv(channels, config.width), GroupNorm(config.width))
            for channels in config.encoder_channels
        )
        self.dense_encoder = DensePromptEncoder(config.width, config.dense_channels)
        self.level_embedding = nn.Parameter(torch.randn(3, config.width))
        self.decoder = Decoder(config)
        self.kind_head = KindHead(config) if config.kinds else None
        self._empty_maps = WeightCache[tuple[Tensor, Tensor, Tensor]]()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Encode images (B, 3, H, W) with values in [0, 1]; ValueError unless H and W are multiples of 32."""
        self._check_images(images)
        features: ImageFeatures = self.image_encoder(images.contiguous(memory_format=torch.channels_last))
        return features

    def encode_references(self, images: Tensor, masks: Tensor, features: ImageFeatures | None = None) -> References:
        """Encode R reference images (B, R, 3, H, W) with their masks (B, R, 1, H, W) of 0 and 1, for B rows.

        `features` is the result of `encode_image` for the B * R images, if it is already known.
        """
        if images.ndim != 5 or masks.shape != (*images.shape[:2], 1, *images.shape[3:]):
            raise ValueError(
                "expected images (B, R, 3, H, W) and masks (B, R, 1, H, W), "
                f"got {tuple(images.shape)} and {tuple(masks.shape)}"
            )
        rows = images.shape[:2]
        flat_images = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        flat_masks = masks.flatten(0, 1).to(images.dtype)
        features = features or self.encode_image(flat_images)
        seen = features if self.config.mask_encoder == "shared" else flat_images
        encoded = self.mask_encoder(seen, flat_masks)
        summaries = tuple(s.unflatten(0, rows) for s in self.summarizer(encoded, flat_masks))
        return References(summaries, features.stride16.unflatten(0, rows), encoded.stride16.unflatten(0, rows))

    def project(self, features: ImageFeatures) -> ImageFeatures:
        """`features` at the decoder's width; several calls of `decode` for the same images can share the result."""
        return ImageFeatures(*(project(scale) for project, scale in zip(self.projections, features, strict=True)))

    def decode(self, features: ImageFeatures, prompts: Prompts, projected: ImageFeatures | None = None) -> Decoded:
        """Decode the rows of `prompts` with `features` of the images in `prompts.image_index`.

        `projected` is the result of `project` for `features`, if it is already known.
        """
        rows = len(prompts.image_index)
        if prompts.references is not None:
            prompts = replace(prompts, references=prompts.references.expand(rows))
        dense = self._encode_dense(prompts)
        positions = [
            sine_encoding(scale.shape[-2], scale.shape[-1], self.config.width, device=scale.device)
            for scale in features
        ]

        def embed(level: int, kept: Tensor) -> Tensor:
            scale = self._project(
                features[level], level, prompts, kept, None if projected is None else projected[level]
            )
            dense_map = dense[level] if len(dense[level]) == 1 else dense[level][kept]
            where = positions[level] + self.level_embedding[level][:, None, None]
            return (scale + (dense_map + where)).permute(0, 2, 3, 1).contiguous()

        logits, presence = self.decoder(embed, [p.permute(1, 2, 0).contiguous() for p in positions], prompts)
        return Decoded(logits, presence)

    def forward(self, images: Tensor, prompts: Prompts) -> Decoded:
        """Encode and decode in one call."""
        return self.decode(self.encode_image(images), prompts)

    def add_classes(self, count: int) -> None:
        """Append `count` rows to the class table, at the mean of the existing ones; no existing output changes."""
        if count < 1:
            raise ValueError(f"expected a positive number of new classes, got {count}")
        decoder = self.decoder
        for name in ("class_content", "class_position"):
            table: Tensor = getattr(decoder, name).data
            new = table.mean(0, keepdim=True).expand(count, -1, -1)
            setattr(decoder, name, nn.Parameter(torch.cat([table, new])))
        if self.kind_head is not None:
            self.kind_head.possible = F.pad(self.kind_head.possible, (0, 0, 0, count), value=True)
        self.config = replace(self.config, num_classes=self.config.num_classes + count)

    def _project(self, scale: Tensor, level: int, prompts: Prompts, kept: Tensor, projected: Tensor | None) -> Tensor:
        """One scale's features at the decoder's width for the rows `kept`; references are read at stride 16."""
        index = prompts.image_index.index_select(0, kept)
        projection = self.projections[level]
        if level == 0 and prompts.references is not None:
            scale = read_references(scale.index_select(0, index), prompts.references.select(kept))
        elif projected is not None:
            return projected.index_select(0, index)
        elif len(kept) < len(scale):  # fewer rows than images: project only the images of these rows
            scale = scale.index_select(0, index)
        else:
            return projection(scale).index_select(0, index)  # type: ignore[no-any-return]
        return projection(scale)  # type: ignore[no-any-return]

    def _encode_dense(self, prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
        if prompts.dense is not None:
            return self._dense_maps(prompts.dense)
        # The empty map is the same for all rows and, while the weights do not change, for all calls.
        device = prompts.image_index.device
        return self._empty_maps.get(
            self.dense_encoder.parameters(),
            (prompts.size, device),
            lambda: self._dense_maps(torch.zeros(1, 3, *prompts.size, device=device)),
        )

    def _dense_maps(self, dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps: tuple[Tensor, Tensor, Tensor] = self.dense_encoder(dense.contiguous(memory_format=torch.channels_last))
        return maps

    @staticmethod
    def _check_images(images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images (B, 3, H, W), got {tuple(images.shape)}")
        height, width = images.shape[-2:]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE or not height or not width:
            raise ValueError(f"height and width must be multiples of {SIZE_MULTIPLE}, got {height} x {width}")
