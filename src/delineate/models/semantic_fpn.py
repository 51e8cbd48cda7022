"""The semantic branch of panoptic feature pyramid networks (Kirillov et al. 2019, section 3.1 and figure 3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from delineate.models.norms import Norm


class SemanticBranch(nn.Module):
    """Brings each map of a pyramid to the size of the finest, by steps of a 3x3 convolution and bilinear doubling, and sums.

    `reductions` are those of the maps, finest first, each twice the one before; all have `in_channels` channels. Maps that the
    pyramid has beyond them are not used. `align_corners` is of the doublings.
    """

    def __init__(
        self, in_channels: int, reductions: Sequence[int], channels: int, *, norm: Norm, align_corners: bool = False
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for reduction in reductions:
            doublings = (reduction // reductions[0]).bit_length() - 1
            level = nn.Sequential()
            for step in range(max(doublings, 1)):
                level.append(nn.Conv2d(channels if step else in_channels, channels, 3, padding=1, bias=False))
                level.append(norm(channels))
                level.append(nn.ReLU(inplace=True))
                if doublings:
                    level.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners))
            self.levels.append(level)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Return (B, channels, h, w), the size of the finest map; each map must be exactly twice as large as the next."""
        total = self.levels[0](pyramid[0])  # (B, C, h, w)
        for level, x in zip(self.levels[1:], pyramid[1:], strict=False):
            total = total + level(x)
        return total
