# SPDX-License-Identifier: Apache-2.0
"""Two standard layers, computed by another route where PyTorch's CPU kernels fail."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """GroupNorm over 32 groups of the contiguous copy of its input.

    PyTorch's CPU kernel for channels-last input takes the variance as E[x^2] - E[x]^2, which loses it where a map is
    nearly constant (an empty prompt map: outputs off by 0.4); its kernel for contiguous input does not.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        return super().forward(x.contiguous())


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution as a matrix product over channels.

    oneDNN's AVX2 kernel for the weight gradient of 1 x 1 convolutions was seen to wait for ever on two cores; the
    matrix product is also the faster of the two in the channels-last layout.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h / stride, w / stride)."""
        stepped = x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
        return F.linear(stepped, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
