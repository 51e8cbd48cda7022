"""DeepLabV3 and V3+ (Chen et al. 2017, 2018): context at several distances from convolutions with holes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from delineate.models.norms import Norm, normalize_pooled
from delineate.models.semantic import resize


def convolution(
    in_channels: int, out_channels: int, size: int, *, norm: Norm, dilation: int = 1, separable: bool = False
) -> nn.Sequential:
    """A convolution that keeps the size of the map, its normalisation and ReLU.

    If `separable` a convolution of each channel by itself comes first and mixes places, and a 1x1 convolution mixes channels.
    """
    padding = dilation * (size // 2)
    if separable:
        spatial = nn.Conv2d(in_channels, in_channels, size, padding=padding, dilation=dilation, groups=in_channels, bias=False)
        layers = [spatial, nn.Conv2d(in_channels, out_channels, 1, bias=False)]
    else:
        layers = [nn.Conv2d(in_channels, out_channels, size, padding=padding, dilation=dilation, bias=False)]
    return nn.Sequential(*layers, norm(out_channels), nn.ReLU(inplace=True))


class PooledContext(nn.Module):
    """The mean of the whole map, through a 1x1 convolution: (B, C, 1, 1)."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        return normalize_pooled(self.norm, self.conv(pooled)).relu()


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, a 3x3 one for each of `rates`, the mean, all mixed by a 1x1 one."""

    def __init__(
        self, in_channels: int, channels: int, rates: Sequence[int], *, norm: Norm, dropout: float, separable: bool = False
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([convolution(in_channels, channels, 1, norm=norm)])
        for rate in rates:
            self.branches.append(convolution(in_channels, channels, 3, norm=norm, dilation=rate, separable=separable))
        self.branches.append(PooledContext(in_channels, channels, norm=norm))
        self.project = convolution(len(self.branches) * channels, channels, 1, norm=norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        *maps, pooled = [branch(x) for branch in self.branches]
        maps.append(torch.zeros_like(maps[0]) + pooled)  # an expanded view would cost the concatenation its memory layout
        return self.dropout(self.project(torch.cat(maps, dim=1)))  # (B, C, h, w)


class PlusDecoder(nn.Module):
    """The decoder of V3+: context, enlarged to the map of quarter size, and the edges that this map knows.

    `context` works on the encoder's last map. Of the map number `level`, which has `in_channels`, `channels` are kept. `merge`
    takes both, concatenated.
    """

    def __init__(
        self,
        context: nn.Module,
        merge: nn.Module,
        *,
        level: int,
        in_channels: int,
        channels: int,
        norm: Norm,
        align_corners: bool,
    ) -> None:
        super().__init__()
        self.context = context
        self.reduce = convolution(in_channels, channels, 1, norm=norm)
        self.merge = merge
        self.level = level
        self.align_corners = align_corners

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        fine = self.reduce(features[self.level])  # (B, L, H / 4, W / 4)
        context = resize(self.context(features[-1]), fine.shape[-2:], self.align_corners)  # (B, C, H / 4, W / 4)
        return self.merge(torch.cat([context, fine], dim=1))
