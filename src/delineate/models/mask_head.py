"""Mask head: which pixels of a box belong to its object (Mask R-CNN, arXiv:1703.06870, section 3)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from delineate.models.blocks import conv_layers, widen
from delineate.models.norms import Norm

Activation = Literal["sigmoid", "softmax"]


class FCNMasks(nn.Module):
    """3x3 convolutions, a 2x2 up-convolution and a 1x1 convolution: a map twice as large as the region's features."""

    def __init__(self, in_channels: int, outputs: int, *, convs: int = 4, width: int = 256, norm: Norm | None = None) -> None:
        super().__init__()
        widths = [in_channels, *[width] * convs]
        self.convs = nn.Sequential(*[conv_layers(a, b, 3, norm=norm, relu=True) for a, b in pairwise(widths)])
        self.up = nn.ConvTranspose2d(widths[-1], width, 2, stride=2)
        self.logits = nn.Conv2d(width, outputs, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.logits.weight, std=0.001)

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(self.up(self.convs(features)).relu())  # (K, outputs, 2 S, 2 S)


class MLPMasks(nn.Module):
    """Two fully connected layers, then every pixel of every map: the paper's table 2e shows what it loses."""

    def __init__(self, in_channels: int, size: int, outputs: int, *, width: int = 1024) -> None:
        super().__init__()
        self.side = 2 * size
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(in_channels * size**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.logits = nn.Linear(width, outputs * self.side**2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.logits.weight, std=0.001)

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(self.layers(features)).unflatten(1, (-1, self.side, self.side))  # (K, outputs, 2 S, 2 S)


class MaskHead(nn.Module):
    """Mask logits of each class, or of any object if `agnostic`.

    With "sigmoid" each class decides for itself; with "softmax" the classes and the background, which comes last, compete.
    """

    def __init__(self, layers: nn.Module, *, activation: Activation = "sigmoid", agnostic: bool = False) -> None:
        super().__init__()
        self.layers = layers
        self.activation: Activation = activation
        self.agnostic = agnostic

    @staticmethod
    def outputs(classes: int, *, activation: Activation, agnostic: bool) -> int:
        """Number of maps that the layers must give."""
        return (1 if agnostic else classes) + (activation == "softmax")

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (K, outputs, S, S), float32, of the features of K regions."""
        return widen(self.layers(features))

    def probabilities(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the probability (K, S, S) that a pixel belongs to the object, which is of the class `labels` (K,)."""
        maps = logits.softmax(1) if self.activation == "softmax" else logits
        channel = torch.zeros_like(labels) if self.agnostic else labels
        chosen = maps[torch.arange(len(labels), device=labels.device), channel]
        return chosen if self.activation == "softmax" else chosen.sigmoid()
