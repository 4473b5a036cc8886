# SPDX-License-Identifier: Apache-2.0
"""Agreement with the published network, on what its own code computed (reference/README.md beside the project)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kprism_model.network.convert import config_of, convert
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import POSITIVE_PADDING, Prompts, click_discs
from kprism_model.network.references import References, read_references

TOLERANCE = 1e-4
SIZE = (512, 512)
MODES = ("semantic_class3", "semantic_class3_clicks", "interactive_clicks", "in_context", "in_context_clicks")


class Golden:
    """The published numbers beside what our network computes from the same inputs and weights."""

    def __init__(self, folder: Path) -> None:
        self.published = load_file(folder / "weights.safetensors")
        config = replace(config_of(self.published), attend_padding=True)
        self.model: KPrism = convert(self.published, config=config)
        self.arrays = {name: torch.from_numpy(value) for name, value in np.load(folder / "io.npz").items()}
        with torch.inference_mode():
            self.features: ImageFeatures = self.model.encode_image(self.arrays["image"])
            masks = self.arrays["reference_masks"].float()
            self.references: References = self.model.encode_references(self.arrays["reference_images"], masks)
        # The published code pads its lists of positive and of negative clicks to three each.
        self.points = torch.tensor([[[100, 200], [300, 260], [-1, -1], [40, 480], [-1, -1], [-1, -1]]]).float()
        self.labels = torch.tensor([[1, 1, POSITIVE_PADDING, 0, -1, -1]])
        discs = click_discs(self.points, self.labels, SIZE)
        self.dense = torch.cat([discs, self.arrays["previous_mask"]], dim=1)

    def prompts(self, mode: str) -> Prompts:
        knowledge: dict[str, Any] = {}
        if mode.startswith("semantic"):
            knowledge["class_index"] = torch.tensor([2])
        if mode.startswith("in_context"):
            knowledge["references"] = self.references
        if mode.endswith("clicks"):
            knowledge.update(points=self.points, point_labels=self.labels, dense=self.dense)
        return Prompts(SIZE, torch.zeros(1, dtype=torch.long), **knowledge)

    def difference(self, name: str, ours: Tensor) -> float:
        expected = self.arrays[name]
        assert ours.shape == expected.shape
        return float((ours - expected).abs().max())


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared / "reference")


def test_encoder_dense_map_summaries_and_readout(golden: Golden) -> None:
    with torch.inference_mode():
        readout = read_references(golden.features.stride16, golden.references)
    differences = {
        "features_res4": golden.difference("features_res4", golden.features.stride8),
        "features_res5": golden.difference("features_res5", golden.features.stride16),
        "dense_map": golden.difference("dense_map", golden.dense),
        "readout_res5": golden.difference("readout_res5", readout),
    }
    for scale, summary in enumerate(golden.references.summaries):
        differences[f"summaries_{scale}"] = golden.difference(f"summaries_{scale}", summary)
    print("largest difference:", max(differences.values()))
    assert max(differences.values()) <= TOLERANCE, differences


@pytest.mark.parametrize("mode", MODES)
def test_logits_of_every_layer(golden: Golden, mode: str) -> None:
    with torch.inference_mode():
        logits = golden.model.decode(golden.features, golden.prompts(mode)).logits
    names = [f"{mode}_layer{layer}" for layer in range(5)] + [mode]
    differences = {name: golden.difference(name, layer) for name, layer in zip(names, logits, strict=True)}
    print("largest difference:", max(differences.values()))
    assert max(differences.values()) <= TOLERANCE, differences


def test_masked_padding_differs_from_the_published_code(golden: Golden) -> None:
    """Our default keeps padding out of attention, which the published code does not: the switch has an effect."""
    model = convert(golden.published, config=replace(golden.model.config, attend_padding=False))
    with torch.inference_mode():
        logits = model.decode(golden.features, golden.prompts("interactive_clicks")).logits[-1]
    assert golden.difference("interactive_clicks", logits) > TOLERANCE


def test_a_missing_tensor_is_named(golden: Golden) -> None:
    published = dict(golden.published)
    del published["backbone.inc.0.conv2.weight"]
    with pytest.raises(ValueError, match=r"backbone\.inc\.0\.conv2\.weight"):
        convert(published)


def test_a_tensor_of_another_shape_is_named(golden: Golden) -> None:
    published = dict(golden.published)
    published["sem_seg_head.predictor.level_embed.weight"] = torch.zeros(3, 32)
    with pytest.raises(ValueError, match=r"level_embed.*\(3, 64\).*\(3, 32\)"):
        convert(published)
