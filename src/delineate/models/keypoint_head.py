"""Keypoint head: a heatmap a keypoint over the box of an object (Mask R-CNN, arXiv:1703.06870, section 5)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from delineate.models.blocks import conv_layers, widen


class KeypointHead(nn.Module):
    """3x3 convolutions, a 4x4 up-convolution, then bilinear enlargement: heatmaps four times as large as the features."""

    def __init__(self, in_channels: int, keypoints: int, *, convs: int = 8, width: int = 512) -> None:
        super().__init__()
        widths = [in_channels, *[width] * convs]
        self.convs = nn.Sequential(*[conv_layers(a, b, 3, relu=True) for a, b in pairwise(widths)])
        self.keypoints = keypoints
        self.heatmaps = nn.ConvTranspose2d(widths[-1], keypoints, 4, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (K, keypoints, 4 S, 4 S), float32, of the features (K, C, S, S) of K regions."""
        coarse = self.heatmaps(self.convs(features))  # (K, keypoints, 2 S, 2 S)
        return F.interpolate(widen(coarse), scale_factor=2.0, mode="bilinear", align_corners=False)
