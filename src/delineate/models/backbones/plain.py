"""U-Net's own contracting path, padded: two convolutions a level, the first of them halving the size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from delineate.models.blocks import Activation, ConvNormAct
from delineate.models.norms import Norm


class PlainEncoder(nn.Module):
    """A level for each of `channels`, each half the size of the one before; the first has the size of the picture.

    As in nnU-Net (Isensee et al. 2021) a stride-2 convolution takes the place of max-pooling.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], *, norm: Norm, activation: Activation) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.reductions = tuple(2**level for level in range(len(channels)))
        self.levels = nn.ModuleList()
        for level, out_channels in enumerate(channels):
            first = ConvNormAct(in_channels, out_channels, norm=norm, activation=activation, stride=2 if level else 1)
            second = ConvNormAct(out_channels, out_channels, norm=norm, activation=activation)
            self.levels.append(nn.Sequential(first, second))
            in_channels = out_channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a map a level, finest first: (B, channels[i], H / 2^i, W / 2^i); H and W must divide by the last reduction."""
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features
