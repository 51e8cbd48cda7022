"""Feature pyramid network (Lin et al. 2017, arXiv:1612.03144): maps of all sizes that all know what the coarsest sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from delineate.models.blocks import conv_layers
from delineate.models.hrnet import concatenate
from delineate.models.norms import Norm

Extra = Literal["pool", "conv"]


class FPN(nn.Module):
    """A pyramid of maps with `channels` channels each over an encoder's maps, and one level more, half as large as the last.

    `in_channels` and `reductions` are those of the encoder's maps, each half the size of the one before. `extra`: the level on
    top takes every second value of the last ("pool", as in the paper), or is a 3x3 convolution of it ("conv"). Without `smooth`
    there is no 3x3 convolution of each merged map.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        reductions: Sequence[int],
        channels: int = 256,
        *,
        norm: Norm | None = None,
        extra: Extra = "pool",
        smooth: bool = True,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.reductions = (*reductions, 2 * reductions[-1])
        self.lateral = nn.ModuleList([conv_layers(c, channels, 1, norm=norm) for c in in_channels])
        self.output = nn.ModuleList(
            [conv_layers(channels, channels, 3, norm=norm) if smooth else nn.Identity() for _ in in_channels]
        )
        self.extra = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if extra == "conv" else nn.MaxPool2d(1, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the pyramid of the last of the encoder's maps, finest first: (B, channels, H / reductions[i], W / ...)."""
        laterals = [conv(x) for conv, x in zip(self.lateral, features[-len(self.lateral) :], strict=True)]
        merged = laterals[-1:]
        for lateral in reversed(laterals[:-1]):
            merged.insert(0, lateral + F.interpolate(merged[0], size=lateral.shape[-2:], mode="nearest"))
        pyramid = [conv(x) for conv, x in zip(self.output, merged, strict=True)]
        return [*pyramid, self.extra(pyramid[-1])]


class HRFPN(nn.Module):
    """The pyramid of HRNet (HRNetV2p, Wang et al. 2020): all branches as one map of the finest size, averaged to each level.

    The branches are enlarged to the finest and concatenated, a 1x1 convolution gives them `channels`; each level is the mean
    over squares of 1, 2, 4, 8 and 16 pixels, through a 3x3 convolution of its own. As in the authors' code, what does not fill
    a square at the right and lower border is left out; squares are not larger than the map.
    """

    def __init__(
        self, in_channels: Sequence[int], reductions: Sequence[int], channels: int = 256, *, norm: Norm | None = None
    ) -> None:
        super().__init__()
        self.channels = channels
        self.reductions = (*reductions, 2 * reductions[-1])
        self.reduce = conv_layers(sum(in_channels), channels, 1, norm=norm)
        self.output = nn.ModuleList([conv_layers(channels, channels, 3, norm=norm) for _ in self.reductions])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the pyramid of the encoder's maps, finest first: (B, channels, H / reductions[i], W / reductions[i])."""
        finest = self.reduce(concatenate(features, align_corners=False))  # (B, C, H / 4, W / 4)
        height, width = finest.shape[-2:]
        sides = [reduction // self.reductions[0] for reduction in self.reductions]
        means = [F.avg_pool2d(finest, (min(side, height), min(side, width))) for side in sides]
        return [conv(x) for conv, x in zip(self.output, means, strict=True)]


class LastMap(nn.Module):
    """In place of a pyramid: the encoder's last map alone, as the C4 form of Mask R-CNN has it."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.channels = channels
        self.reductions = (reduction,)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [features[-1]]
