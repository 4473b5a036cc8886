# SPDX-License-Identifier: Apache-2.0
"""The EfficientNet-Lite encoder: the published plan, the published file's weights, and its gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kprism_model.network.config import KPrismConfig
from kprism_model.network.efficientnet import EfficientNetLiteEncoder, load_imagenet, read_imagenet, stages
from kprism_model.network.encoder import SharedMaskEncoder
from kprism_model.network.kprism import KPrism
from kprism_model.network.layers import DepthwiseConv

CONFIG = KPrismConfig.tiny(encoder="efficientnet_lite0", mask_encoder="shared")

# Kernel side, stride, expansion, input and output channels of the 16 blocks of EfficientNet-Lite0, as published.
LITE0 = [
    (3, 1, 1, 32, 16),
    (3, 2, 6, 16, 24),
    (3, 1, 6, 24, 24),
    (5, 2, 6, 24, 40),
    (5, 1, 6, 40, 40),
    (3, 2, 6, 40, 80),
    *[(3, 1, 6, 80, 80)] * 2,
    (5, 1, 6, 80, 112),
    *[(5, 1, 6, 112, 112)] * 2,
    (5, 2, 6, 112, 192),
    *[(5, 1, 6, 192, 192)] * 3,
    (3, 1, 6, 192, 320),
]


def _published(seed: int) -> dict[str, Tensor]:
    """Random tensors under the names and in the shapes of the file on PyPI."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def convolution(name: str, *shape: int) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5

    def norm(name: str, channels: int) -> None:
        for part, low, high in (("weight", 0.5, 1.5), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
            tensors[f"{name}.{part}"] = torch.empty(channels).uniform_(low, high, generator=generator)
        tensors[f"{name}.running_var"] = torch.empty(channels).uniform_(0.5, 1.5, generator=generator)
        tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for number, (kernel, _, expansion, narrow, wide) in enumerate(LITE0):
        hidden = narrow * expansion
        if expansion > 1:
            convolution(f"_blocks.{number}._expand_conv", hidden, narrow, 1, 1)
            norm(f"_blocks.{number}._bn0", hidden)
        convolution(f"_blocks.{number}._depthwise_conv", hidden, 1, kernel, kernel)
        norm(f"_blocks.{number}._bn1", hidden)
        convolution(f"_blocks.{number}._project_conv", wide, hidden, 1, 1)
        norm(f"_blocks.{number}._bn2", wide)
    convolution("_conv_head", 1280, 320, 1, 1)
    return tensors


def _published_forward(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """The published network up to its last block, written out: "same" padding, batch norm, ReLU6."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    def same(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
        kernel, size = weight.shape[-1], x.shape[-1]
        padding = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before, after = padding // 2, padding - padding // 2
        return F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups)

    x = norm(same(images, tensors["_conv_stem.weight"], 2, 1), "_bn0").clamp(0, 6)
    for number, (_, stride, expansion, narrow, wide) in enumerate(LITE0):
        name, out = f"_blocks.{number}", x
        if expansion > 1:
            out = norm(F.conv2d(out, tensors[f"{name}._expand_conv.weight"]), f"{name}._bn0").clamp(0, 6)
        out = same(out, tensors[f"{name}._depthwise_conv.weight"], stride, narrow * expansion)
        out = norm(out, f"{name}._bn1").clamp(0, 6)
        out = norm(F.conv2d(out, tensors[f"{name}._project_conv.weight"]), f"{name}._bn2")
        x = x + out if stride == 1 and narrow == wide else out
    return x


def test_the_published_weights_compute_what_the_published_network_does() -> None:
    torch.manual_seed(0)
    encoder, weights, images = EfficientNetLiteEncoder(CONFIG).eval(), _published(1), torch.rand(2, 3, 64, 96)
    load_imagenet(encoder, weights)
    last: list[Tensor] = []
    encoder.stages[-1].register_forward_hook(lambda _, __, out: last.append(out))
    with torch.inference_mode():
        features = encoder(images)
        expected = _published_forward(weights, 2 * images - 1)
    torch.testing.assert_close(last[0], expected, rtol=1e-4, atol=1e-4)
    assert [tuple(scale.shape) for scale in features] == [(2, 64, 4, 6), (2, 32, 8, 12), (2, 16, 16, 24)]


def test_wider_and_deeper_variants() -> None:
    assert [(s.repeats, s.channels) for s in stages("efficientnet_lite0")] == [
        (1, 16), (2, 24), (2, 40), (3, 80), (3, 112), (4, 192), (1, 320),
    ]  # fmt: skip
    assert [(s.repeats, s.channels) for s in stages("efficientnet_lite2")] == [
        (1, 16), (3, 24), (3, 48), (4, 88), (4, 120), (5, 208), (1, 352),
    ]  # fmt: skip


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = _published(2)
    with pytest.raises(ValueError, match=r"expected _blocks\.0\._project_conv\.weight of shape \(16, 32, 1, 1\)"):
        load_imagenet(EfficientNetLiteEncoder(CONFIG), {**weights, "_blocks.0._project_conv.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="EfficientNet-Lite encoder, this one is ImageEncoder"):
        load_imagenet(KPrism(KPrismConfig.tiny()).image_encoder, weights)
    (tmp_path / "no.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no\.pth cannot be read as ImageNet weights"):
        read_imagenet(tmp_path / "no.pth")
    torch.save(weights, tmp_path / "yes.pth")
    assert set(read_imagenet(tmp_path / "yes.pth")) == set(weights)


def test_the_trunk_is_what_imagenet_weights_exist_for() -> None:
    encoder = EfficientNetLiteEncoder(CONFIG)
    published = sum(tensor.numel() for name, tensor in _published(3).items() if _is_parameter(name))
    assert sum(parameter.numel() for parameter in encoder.trunk_parameters()) == published


def _is_parameter(name: str) -> bool:
    return not name.startswith("_conv_head") and name.rpartition(".")[2] in ("weight", "bias")


@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (5, 2), (3, 2)])
def test_depthwise_gradients_in_bfloat16(kernel: int, stride: int) -> None:
    torch.manual_seed(4)
    layer = DepthwiseConv(6, kernel, stride, kernel // 2)
    x = torch.randn(2, 6, 16, 16).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    away = torch.randn_like(out)
    out.backward(away)
    exact_x, exact_weight = x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    exact = F.conv2d(exact_x, exact_weight, None, stride, kernel // 2, groups=6)
    exact.backward(away.double())
    torch.testing.assert_close(out.double(), exact.detach(), rtol=0.02, atol=0.02)
    assert x.grad is not None and layer.weight.grad is not None
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=0.02, atol=0.05)
    torch.testing.assert_close(layer.weight.grad.double(), exact_weight.grad, rtol=1e-4, atol=1e-3)


def test_references_share_the_image_encoder_and_still_see_their_masks() -> None:
    torch.manual_seed(5)
    model = KPrism(CONFIG).eval()
    assert isinstance(model.mask_encoder, SharedMaskEncoder)
    images, masks = torch.rand(1, 2, 3, 64, 64), torch.zeros(1, 2, 1, 64, 64)
    masks[..., 20:40, 20:40] = 1
    with torch.inference_mode():
        features = model.encode_image(images[0])
        one = model.encode_references(images, masks, features)
        other = model.encode_references(images, 1 - masks, features)
    assert torch.equal(one.keys, other.keys)
    assert not torch.allclose(one.values, other.values)


def test_files_from_before_there_was_a_choice_of_encoders_are_read() -> None:
    written = KPrismConfig.tiny().to_dict()
    assert (written.pop("encoder"), written.pop("mask_encoder")) == ("utnet", "own")
    assert KPrismConfig.from_dict(written) == KPrismConfig.tiny()
    with pytest.raises(ValueError, match=r"KPrismConfig\.encoder must be one of utnet, .*, got 'resnet'"):
        KPrismConfig.tiny(encoder="resnet")


def test_norms_are_folded_into_convolutions_for_inference_only() -> None:
    torch.manual_seed(0)
    config = KPrismConfig.tiny(encoder="efficientnet_lite0")
    encoder = EfficientNetLiteEncoder(config).eval()
    for norm in encoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2.0)
    images = torch.rand(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)

    def differences() -> list[float]:
        apart = encoder(images)  # with gradients: norm by norm
        with torch.inference_mode():
            folded = encoder(images)
        return [float((one - other).abs().max() / one.abs().max()) for one, other in zip(apart, folded, strict=True)]

    assert max(differences()) < 1e-5
    with torch.no_grad():
        encoder.stem[0].weight.mul_(1.5)
        encoder.stages[2][0].depthwise[1].running_mean.add_(0.3)
    assert max(differences()) < 1e-5  # what was folded is computed again
    encoder.train()
    with torch.no_grad():
        batch_statistics = encoder(images)
    encoder.eval()
    with torch.no_grad():
        assert float((encoder(images)[0] - batch_statistics[0]).abs().max()) > 0.1
