"""The pieces that networks are put together from: convolution + norm + activation, and up-sampling + convolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from delineate.models.norms import Norm

Activation = Callable[[], nn.Module]
Upsample = Callable[[int, int], nn.Module]  # in channels, out channels -> twice the size, then a 3x3 convolution


class ConvNormAct(nn.Module):
    """A 3x3 convolution without bias, its normalisation and its activation."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm, activation: Activation, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = norm(out_channels)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))  # (B, O, H / stride, W / stride)


def conv_layers(
    in_channels: int, out_channels: int, size: int, *, norm: Norm | None = None, relu: bool = False
) -> nn.Sequential:
    """A convolution that keeps the size of the map, its normalisation (without one it has a bias) and, if wanted, ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=norm is None)]
    if norm is not None:
        layers.append(norm(out_channels))
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def widen(x: Tensor) -> Tensor:
    """Bfloat16 and float16 become float32: logits and deltas need its precision."""
    return x if x.dtype == torch.float64 else x.float()


class NearestConv(nn.Module):
    """Nearest-neighbour up-sampling by two, then a 3x3 convolution, without ever making the enlarged map.

    The enlarged map repeats each value in a 2x2 square, so several taps of the convolution always meet the same value: their
    sum is one tap of a 4x4 transposed convolution of stride 2. That needs 4 instead of 9 multiplications an output pixel, and
    its result and gradients are the same up to rounding.

    The weight is (in channels, out channels, 3, 3), as transposed convolutions have it: turning it round at each step would
    take as long as the convolution.
    """

    spread: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels, 3, 3))
        # Row u of `axis` says which of the taps 0, 1, 2 add up to tap u of the transposed convolution, along one axis.
        axis = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        self.register_buffer("spread", torch.kron(axis, axis).T.contiguous(), persistent=False)  # (9, 16)

    def kernel(self) -> Tensor:
        """The 4x4 kernel as `conv_transpose2d` takes it: (in channels, out channels, 4, 4)."""
        return (self.weight.flatten(2) @ self.spread).unflatten(2, (4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv_transpose2d(x, self.kernel(), stride=2, padding=1)  # (B, O, 2H, 2W)


def bilinear_conv(in_channels: int, out_channels: int) -> nn.Module:
    """Bilinear up-sampling by two (align_corners=False), then a 3x3 convolution without bias."""
    enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(enlarge, nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False))


def transpose_conv(in_channels: int, out_channels: int) -> nn.Module:
    """A learned 2x2 up-sampling by two (transposed convolution), then a 3x3 convolution without bias."""
    enlarge = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    return nn.Sequential(enlarge, nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False))


class Merge(nn.Module):
    """A 3x3 convolution of the concatenation of the enlarged deeper map and the skip connection.

    A convolution of a concatenation is the sum of a convolution of each part, so nothing is concatenated.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, *, upsample: Upsample) -> None:
        super().__init__()
        self.up = upsample(in_channels, out_channels)
        self.skip = nn.Conv2d(skip_channels, out_channels, 3, padding=1, bias=False) if skip_channels else None

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.up(x)  # (B, O, 2H, 2W)
        return x if self.skip is None or skip is None else x + self.skip(skip)


def initialize(module: nn.Module, slope: float) -> None:
    """Draw the weights of every convolution from N(0, 2 / ((1 + slope^2) N)), N incoming values (He et al. 2015, equation 15).

    `slope` is that of the activation below zero. Biases become 0. The two convolutions of a `Merge` are summed: N counts both.
    """
    incoming = {part: _incoming(part) for part in module.modules() if isinstance(part, (nn.Conv2d, NearestConv))}
    for part in module.modules():
        if isinstance(part, Merge) and part.skip is not None:
            up: Any = part.up[-1] if isinstance(part.up, nn.Sequential) else part.up
            incoming[up] = incoming[part.skip] = incoming[up] + incoming[part.skip]
    for part in module.modules():
        if isinstance(part, nn.ConvTranspose2d):  # kernel = stride: each output value sees one input pixel
            nn.init.normal_(part.weight, std=math.sqrt(1 / part.in_channels))  # no activation follows
        elif isinstance(part, (nn.Conv2d, NearestConv)):
            nn.init.normal_(part.weight, std=math.sqrt(2 / ((1 + slope**2) * incoming[part])))
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)) and part.bias is not None:
            nn.init.zeros_(part.bias)


def _incoming(convolution: nn.Conv2d | NearestConv) -> int:
    """Number of values that are summed into one output value."""
    weight = convolution.weight
    return weight[:, 0].numel() if isinstance(convolution, NearestConv) else weight[0].numel()
