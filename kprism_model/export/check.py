# SPDX-License-Identifier: Apache-2.0
"""The exported graphs in onnxruntime, with the interface of `KPrism`, and a comparison of the two."""

from __future__ import annotations

import importlib
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kprism_model.network.config import SIZE_MULTIPLE, KPrismConfig
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import Prompts, click_discs
from kprism_model.network.references import References

PROMPT_COMBINATIONS = ("class", "references", "clicks", "class+clicks", "references+clicks")
"""The combinations of prompts that a row can have."""


class OnnxKPrism:
    """`KPrism` for inference, computed by onnxruntime on the CPU from the three files in `folder`."""

    def __init__(self, folder: Path, config: KPrismConfig) -> None:
        runtime = importlib.import_module("onnxruntime")
        self.config = config
        self.image_encoder, self.reference_encoder, self.decoder = (
            runtime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            for name in ("image_encoder", "reference_encoder", "decoder")
        )

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """As `KPrism.encode_image`."""
        return ImageFeatures(*_run(self.image_encoder, {"images": images}))

    def encode_references(self, images: Tensor, masks: Tensor) -> References:
        """As `KPrism.encode_references`."""
        rows, flat = images.shape[:2], images.flatten(0, 1)
        *summaries, values = _run(self.reference_encoder, {"images": flat, "masks": masks.flatten(0, 1)})
        coarse, middle, fine = (summary.unflatten(0, rows) for summary in summaries)
        keys = self.encode_image(flat).stride16
        return References((coarse, middle, fine), keys.unflatten(0, rows), values.unflatten(0, rows))

    def decode(self, features: ImageFeatures, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Logits (N, 1, h, w) of the last layer and presence (N,)."""
        logits, presence = _run(self.decoder, decoder_inputs(features, prompts, self.config))
        return logits, presence


def _run(session: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    outputs = session.run(None, {name: value.detach().numpy() for name, value in inputs.items()})
    return [torch.from_numpy(output) for output in outputs]


def decoder_inputs(features: ImageFeatures, prompts: Prompts, config: KPrismConfig) -> dict[str, Tensor]:
    """The inputs of `decoder.onnx` for `prompts`; prompts that are absent have an axis of length 0."""
    rows = len(prompts.image_index)
    none = torch.full((rows,), -1)
    references, reference_index = prompts.references, torch.zeros(rows, dtype=torch.long)
    if references is None:
        summary = torch.zeros(1, 0, config.summaries, config.width)
        grid = torch.zeros(1, 0, config.encoder_channels[0], 1, 1)
        references, reference_index = References((summary, summary, summary), grid, grid), none
    elif len(references.keys) == rows:
        reference_index = torch.arange(rows)
    no_points, no_labels = torch.zeros(rows, 0, 2), torch.zeros(rows, 0, dtype=torch.long)
    return {
        **dict(zip(("stride16", "stride8", "stride4"), features, strict=True)),
        "image_index": prompts.image_index,
        "class_index": none if prompts.class_index is None else prompts.class_index,
        "reference_index": reference_index,
        **dict(zip(("summaries16", "summaries8", "summaries4"), references.summaries, strict=True)),
        "keys": references.keys,
        "values": references.values,
        "points": no_points if prompts.points is None else prompts.points,
        "point_labels": no_labels if prompts.point_labels is None else prompts.point_labels,
        "dense": torch.zeros(1, 3, *prompts.size) if prompts.dense is None else prompts.dense,
    }


@torch.inference_mode()
def greatest_difference(folder: Path, model: KPrism) -> float:
    """Greatest absolute difference between onnxruntime and PyTorch in the last logits and, without clicks, presence.

    Every combination of prompts is decoded for two random images in three rows, at the native size and at a size that
    is not square, with references that each of the two encodes itself. Presence with clicks is not trained and has no
    meaning.
    """
    native = model.config.native_size
    exported = OnnxKPrism(folder, model.config)
    generator = torch.Generator().manual_seed(0)
    differences = []
    sizes = ((native, native), (SIZE_MULTIPLE, 2 * SIZE_MULTIPLE))
    for size, combination in product(sizes, PROMPT_COMBINATIONS):
        images = torch.rand(2, model.config.in_channels, *size, generator=generator)
        pictures = torch.rand(1, 2, model.config.in_channels, *size, generator=generator)
        outputs = []
        for network in (model, exported):
            prompts = _example_prompts(network, combination, size, pictures)
            decoded = network.decode(network.encode_image(images), prompts)
            outputs.append(decoded if isinstance(decoded, tuple) else (decoded.logits[-1], decoded.presence))
        compared = 1 if "clicks" in combination else 2
        differences += [(ours - theirs).abs().max() for ours, theirs in list(zip(*outputs, strict=True))[:compared]]
    return float(torch.stack(differences).max())  # NaN if one of them is NaN


def _example_prompts(
    network: KPrism | OnnxKPrism, combination: str, size: tuple[int, int], pictures: Tensor
) -> Prompts:
    """Three rows with one combination of prompts."""
    classes = torch.arange(3) % network.config.num_classes if "class" in combination else None
    masks = (pictures[:, :, :1] > 0.5).float()
    references = network.encode_references(pictures, masks) if "references" in combination else None
    index = torch.tensor([0, 1, 1])
    if "clicks" not in combination:
        return Prompts(size, index, classes, references)
    points = torch.tensor([[0.1, 0.3], [0.6, 0.9]]).expand(3, 2, 2) * torch.tensor(size)
    labels = torch.tensor([[1, 0], [0, 1], [1, -1]])
    dense = torch.cat([click_discs(points, labels, size), pictures[0, :1, :1].expand(3, -1, -1, -1)], dim=1)
    return Prompts(size, index, classes, references, points, labels, dense)
