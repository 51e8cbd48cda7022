"""HRNet for semantic segmentation (HRNetV2, Wang et al. 2020): classes from the concatenation of all branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from delineate.models.norms import Norm
from delineate.models.semantic import Encoder, SemanticMaps, SemanticModel, resize


class ConcatenatingHead(nn.Sequential):
    """A 1x1 convolution that keeps the channels, normalisation, ReLU, and a 1x1 convolution to the classes."""

    def __init__(self, channels: int, num_classes: int, *, norm: Norm) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 1), norm(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, num_classes, 1)
        )


class HRNetSemantic(SemanticModel):
    """Backbone, concatenation of its maps at the finest one's size, head; logits are enlarged to the size of the picture."""

    def __init__(self, backbone: Encoder, head: ConcatenatingHead, *, align_corners: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.align_corners = align_corners
        self.stride = backbone.reductions[-1]
        self.feature_channels = sum(backbone.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, H, W) for pictures (B, C, H, W) of any size."""
        return self.fit(self.maps(x).logits, x.shape[-2:])

    def maps(self, x: Tensor) -> SemanticMaps:
        features = concatenate(self.backbone(x), self.align_corners)  # (B, 15 n, H / 4, W / 4)
        return SemanticMaps(features, self.head(features))


def concatenate(maps: Sequence[Tensor], align_corners: bool) -> Tensor:
    """Enlarge maps (B, C_i, h_i, w_i) to the size of the first, and concatenate them: (B, sum C_i, h_0, w_0)."""
    size = maps[0].shape[-2:]
    return torch.cat([maps[0], *(resize(x, size, align_corners) for x in maps[1:])], 1)
