# SPDX-License-Identifier: Apache-2.0
"""Standard layers, computed in another way where PyTorch's CPU kernels are wrong or slow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kprism_model.network.weight_cache import WeightCache

GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """GroupNorm over 32 groups, exact also for channels-last input.

    PyTorch's CPU kernel for that layout computes the variance as E[x^2] - E[x]^2. This is inexact if a map is nearly
    constant (an empty prompt map: outputs wrong by 0.4); the kernel for contiguous input is exact. In training the
    input is copied for that kernel. In inference the variance is computed in a second pass, without a copy, which is 3
    times as fast.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        if torch.is_grad_enabled() or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x.contiguous())
        centred = x - self._by_group(x)
        scale = (self._by_group(centred.square()) + self.eps).rsqrt() * self.weight[:, None, None]
        return centred * scale + self.bias[:, None, None]

    def _by_group(self, x: Tensor) -> Tensor:
        """The mean over each group, (N, C, 1, 1)."""
        groups: Tensor = x.mean((2, 3)).unflatten(1, (self.num_groups, -1))
        return groups.mean(-1, keepdim=True).expand_as(groups).flatten(1)[:, :, None, None]


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution as a matrix product over channels.

    oneDNN's AVX2 kernel for the weight gradient of 1 x 1 convolutions sometimes never returned on two cores. The matrix
    product is also faster in the channels-last layout.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h / stride, w / stride)."""
        return self.convolved(x, self.weight, self.bias)

    def convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with a weight and a bias of the same shapes."""
        stepped = x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
        return F.linear(stepped, weight.flatten(1), bias).permute(0, 3, 1, 2)


class DepthwiseConv(nn.Conv2d):
    """A depthwise convolution without bias, with our own weight gradient for bfloat16 on a CPU.

    If the kernel is 5 x 5 or the stride is 2, oneDNN takes 5 to 15 times as long for that gradient, which is then three
    quarters of an EfficientNet-Lite's backward pass.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(channels, channels, kernel, stride, padding, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h', w')."""
        usual = self.kernel_size[0] == 3 and self.stride[0] == 1
        if usual or x.device.type != "cpu" or x.dtype != torch.bfloat16 or not torch.is_grad_enabled():
            return super().forward(x)
        out: Tensor = _Depthwise.apply(x, self.weight, self.stride[0], self.padding[0])  # type: ignore[no-untyped-call]
        return out


class ConvNorm(nn.Sequential):
    """A convolution without bias, a BatchNorm, and an activation if there is one.

    In inference the norm is a factor and a summand for each channel, which are folded into the convolution: a pass less
    over each map, and equal up to rounding.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d, *activation: nn.Module) -> None:
        super().__init__(convolution, norm, *activation)
        self._folded = WeightCache[tuple[Tensor, Tensor]]()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h', w')."""
        if self.training or torch.is_grad_enabled():
            return super().forward(x)  # type: ignore[no-untyped-call, no-any-return]
        convolution, norm, *activation = self
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        used = (convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        weight, bias = self._folded.get(
            (tensor for tensor in used if tensor is not None), norm.eps, lambda: _fold(convolution, norm)
        )
        if isinstance(convolution, PointwiseConv):
            x = convolution.convolved(x, weight, bias)
        else:
            x = F.conv2d(x, weight, bias, convolution.stride, convolution.padding, groups=convolution.groups)
        for part in activation:
            x = part(x)
        return x


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals `convolution` followed by `norm` in inference."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = convolution.weight * scale[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    kept = convolution.weight.dtype
    return weight.to(kept, memory_format=torch.channels_last), bias.to(kept)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution in the dtype of its input; the weight gradient is summed tap by tap in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight.to(x.dtype), None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding = [ctx.stride] * 2, [ctx.padding] * 2
        for_input = None
        if ctx.needs_input_grad[0]:
            for_input = torch.ops.aten.convolution_backward(
                gradients[0], x, weight.to(x.dtype), None, stride, padding, [1, 1], False, [0, 0], len(weight),
                [True, False, False],
            )[0]  # fmt: skip
        return for_input, _weight_gradient(x, gradients[0], weight.shape[-1], ctx.stride, ctx.padding), None, None


def _weight_gradient(x: Tensor, gradient: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """The weight's gradient (C, 1, kernel, kernel) of a depthwise convolution of `x`, float32."""
    height, width = gradient.shape[2:]
    pixels = F.pad(x, [padding] * 4).permute(0, 2, 3, 1).float()
    away = gradient.permute(0, 2, 3, 1).float().contiguous()
    product = torch.empty_like(away)
    taps = []
    for row in range(kernel):
        for column in range(kernel):
            seen = pixels[:, row : row + stride * height : stride, column : column + stride * width : stride]
            torch.mul(away, seen, out=product)
            taps.append(product.flatten(0, 2).sum(0))
    return torch.stack(taps, dim=1).view(-1, 1, kernel, kernel)
