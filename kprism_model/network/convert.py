# SPDX-License-Identifier: Apache-2.0
"""Conversion of weights in the published layout (github.com/bangwayne/K-Prism, commit 6410912)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism

_PREDICTOR = "sem_seg_head.predictor"


def config_of(published: Mapping[str, Tensor], *, native_size: int = 512) -> KPrismConfig:
    """The configuration of a network, from the shapes of its published tensors; ValueError names a missing tensor.

    The number of the decoder's heads is not stored: the published networks have 8 at width 256, one for each 32
    channels; narrower ones have at least 4.
    """
    try:
        expert_gate = published[f"{_PREDICTOR}.transformer_cross_attention_layers.0.gating_network.weight"]
        experts, width = expert_gate.shape
        queries = published[f"{_PREDICTOR}.query_feat.weight"].shape[0]
        table = published["backbone.down1.blocks.1.attn.relative_position_encoding.relative_position_bias_table"]
        return KPrismConfig(
            native_size=native_size,
            num_classes=queries // 2,
            base_channels=published["backbone.inc.0.conv1.weight"].shape[0],
            encoder_heads=table.shape[1],
            reduced_size=(round(table.shape[0] ** 0.5) + 1) // 2,
            width=width,
            dense_channels=width,
            heads=max(4, width // 32),
            ffn_width=published[f"{_PREDICTOR}.transformer_ffn_layers.0.experts.0.0.weight"].shape[0],
            experts=experts,
            layers=_count(published, f"{_PREDICTOR}.transformer_pixel_ffn_layers."),
            summaries=published[f"{_PREDICTOR}.icl_query_feat.weight"].shape[0],
            head_channels=published[f"{_PREDICTOR}.simple_decoders.0.initial_conv.weight"].shape[0],
        )
    except KeyError as error:
        raise ValueError(f"not a published K-Prism state: tensor {error} is missing") from error


def convert(published: Mapping[str, Tensor], *, config: KPrismConfig | None = None) -> KPrism:
    """Build a network in evaluation mode from tensors with the published names.

    Two parts are not in a published file. The click tokens' MLP, which the published code initialises again in each
    pass, comes from `click_token_mlp.*` if given, else it keeps its random initialisation. The presence head is ours
    and predicts "present" until it is trained. ValueError names a tensor that is missing or has another shape.
    """
    model = KPrism(config or config_of(published))
    state = model.state_dict()
    for name, tensor in state.items():
        source = _read(published, name, tensor, model.config)
        if source is not None:
            state[name] = source
    state["decoder.presence.2.weight"] = torch.zeros_like(state["decoder.presence.2.weight"])
    state["decoder.presence.2.bias"] = torch.full_like(state["decoder.presence.2.bias"], 10.0)
    model.load_state_dict(state)
    return model.eval()


def _read(published: Mapping[str, Tensor], name: str, like: Tensor, config: KPrismConfig) -> Tensor | None:
    """The published tensor for our `name`, in the shape of `like`; None if there is none."""
    if name.endswith("num_batches_tracked") or name.startswith("decoder.presence."):
        return None
    if name.startswith("decoder.clicks.content.") and "click_token_mlp.mlp.0.weight" not in published:
        return None
    keys = _published_names(name, config)
    missing = [key for key in keys if key not in published]
    if missing:
        raise ValueError(f"not a published K-Prism state: tensor {missing[0]!r} is missing")
    tensor = torch.stack([published[key] for key in keys]) if len(keys) > 1 else published[keys[0]]
    if tensor.numel() != like.numel():
        raise ValueError(f"{keys[0]}: expected {tuple(like.shape)}, got {tuple(tensor.shape)}")
    return tensor.reshape(like.shape).to(like.dtype)


def _published_names(name: str, config: KPrismConfig) -> list[str]:
    """Published names of our tensor `name`: one name, or one for each expert."""
    if name == "decoder.clicks.position.labels":
        return [f"{_PREDICTOR}.point_embed_encoder.point_embeddings.{label}.weight" for label in range(2)]
    for ours, theirs in _prefixes(config):
        if name == ours or name.startswith(ours + "."):
            rest = name[len(ours) :]
            if "{expert}" in theirs:
                return [theirs.format(expert=expert) + rest for expert in range(config.experts)]
            return [theirs + rest]
    raise AssertionError(f"no published name for {name}")


def _prefixes(config: KPrismConfig) -> Iterator[tuple[str, str]]:
    """Pairs of our prefix and the published one, more specific prefixes first."""
    yield from _encoder_prefixes("image_encoder", "backbone", "blocks", first=0)
    yield from _encoder_prefixes("mask_encoder", "mask_encoder", "conv", first=1)
    for level in range(3):
        yield f"summarizer.project.{level}", f"object_summarizer.input_proj.{level}.0"
        yield f"decoder.heads.{level}.first", f"{_PREDICTOR}.simple_decoders.{level}.initial_conv"
        yield f"decoder.heads.{level}.last", f"{_PREDICTOR}.simple_decoders.{level}.final_conv"
        for block in range(2):
            for conv in range(2):
                theirs = f"{_PREDICTOR}.simple_decoders.{level}.res_blocks.{block}.conv{conv + 1}"
                yield f"decoder.heads.{level}.blocks.{block}.{2 * conv}", theirs
    yield "summarizer.features", "object_summarizer.feature_pred"
    yield "summarizer.weights", "object_summarizer.weights_pred"
    yield "projections", "sem_seg_head.pixel_decoder.input_proj"
    for down in range(4):
        yield f"dense_encoder.downs.{down}", f"sem_seg_head.pixel_decoder.mask_downsampler.down{down + 1}"
    for layer in range(config.layers):
        yield from _layer_prefixes(layer)
    for layer in range(config.layers - 1):
        kind = "downsample" if (layer + 1) % 3 == 0 else "upsample"
        yield f"decoder.resamplers.{layer}", f"{_PREDICTOR}.sample_layer_list.{layer}.{kind}"
    points = f"{_PREDICTOR}.point_embed_encoder"
    yield "decoder.clicks.content", "click_token_mlp.mlp"
    yield "decoder.clicks.position.gaussian", f"{points}.pe_layer.positional_encoding_gaussian_matrix"
    yield "decoder.clicks.position.padding", f"{points}.not_a_point_embed.weight"
    yield "decoder.class_content", f"{_PREDICTOR}.query_feat.weight"
    yield "decoder.class_position", f"{_PREDICTOR}.query_embed.weight"
    yield "decoder.reference_content", f"{_PREDICTOR}.icl_query_feat.weight"
    yield "decoder.reference_position", f"{_PREDICTOR}.icl_query_embed.weight"
    yield "decoder.summary_to_content", f"{_PREDICTOR}.summary_to_query_init"
    yield "decoder.summary_to_position", f"{_PREDICTOR}.summary_to_query_emb"
    yield "level_embedding", f"{_PREDICTOR}.level_embed.weight"


def _encoder_prefixes(ours: str, theirs: str, stage_name: str, *, first: int) -> Iterator[tuple[str, str]]:
    """Prefixes of an encoder; in its stages the residual block is number `first`, an attention block number 1."""
    for block in range(2):
        yield from _residual_prefixes(f"{ours}.stem.{block}", f"{theirs}.inc.{block}")
    for stage in range(4):
        mine, published = f"{ours}.stages.{stage}", f"{theirs}.down{stage + 1}.{stage_name}"
        yield from _residual_prefixes(f"{mine}.{first}", f"{published}.{first}")
        if first == 0:
            yield f"{mine}.1.norm1", f"{published}.1.bn1"
            yield f"{mine}.1.norm2", f"{published}.1.bn2"
            bias = f"{published}.1.attn.relative_position_encoding.relative_position_bias_table"
            yield f"{mine}.1.attention.position_bias.table", bias
            yield f"{mine}.1.attention", f"{published}.1.attn"
            yield f"{mine}.1.pointwise", f"{published}.1.mlp"


def _residual_prefixes(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.norm1", f"{theirs}.bn1"
    yield f"{ours}.norm2", f"{theirs}.bn2"
    yield ours, theirs


def _layer_prefixes(layer: int) -> Iterator[tuple[str, str]]:
    ours = f"decoder.layers.{layer}"
    for mine, published in (("read", "cross_attention"), ("write", "feature_query_cross_attention")):
        theirs = f"{_PREDICTOR}.transformer_{published}_layers.{layer}"
        for kind in ("weight", "bias"):
            yield f"{ours}.{mine}.in_{kind}", f"{theirs}.experts.{{expert}}.in_proj_{kind}"
            yield f"{ours}.{mine}.out_{kind}", f"{theirs}.experts.{{expert}}.out_proj.{kind}"
        yield f"{ours}.{mine}.gate.linear", f"{theirs}.gating_network"
        yield f"{ours}.{mine}.norm", f"{theirs}.norm_module"
    theirs = f"{_PREDICTOR}.transformer_ffn_layers.{layer}"
    for number, position in ((1, 0), (2, 3)):
        for kind in ("weight", "bias"):
            yield f"{ours}.feed_forward.{kind}{number}", f"{theirs}.experts.{{expert}}.{position}.{kind}"
    yield f"{ours}.feed_forward.gate.linear", f"{theirs}.gating_network"
    yield f"{ours}.feed_forward.norm", f"{theirs}.norm_module"
    theirs = f"{_PREDICTOR}.transformer_self_attention_layers.{layer}"
    yield f"{ours}.mix.attention", f"{theirs}.self_attn"
    yield f"{ours}.mix.norm", f"{theirs}.norm"
    theirs = f"{_PREDICTOR}.transformer_pixel_ffn_layers.{layer}.conv"
    yield f"{ours}.convolve.channel_mixer", f"{theirs}.conv"
    yield f"{ours}.convolve", theirs


def _count(published: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in published if name.startswith(prefix)})
