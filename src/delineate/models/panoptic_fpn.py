"""Panoptic feature pyramid networks (Kirillov et al. 2019, arXiv:1901.02446): a semantic head beside those of Mask R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from delineate.models.norms import group_norm
from delineate.models.semantic_fpn import SemanticBranch

SCALE = 4  # of a picture to the head's logits
LOSS_WEIGHT = 0.5


class SemanticHead(nn.Module):
    """Logits of every pixel for the classes of stuff, after a first one that stands for all things."""

    def __init__(self, in_channels: int, reductions: Sequence[int], num_stuff: int, *, width: int = 128) -> None:
        super().__init__()
        self.num_stuff = num_stuff
        self.branch = SemanticBranch(in_channels, reductions, width, norm=partial(group_norm, groups=32))
        self.classifier = nn.Conv2d(width, num_stuff + 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, 1 + num_stuff, H / 4, W / 4), float32, of the pyramid's `maps`."""
        return self.classifier(self.branch(maps)).float()


def enlarge(logits: Tensor) -> Tensor:
    """Return logits (..., h, w) of `SemanticHead` in the size of the padded pictures, (..., 4 h, 4 w)."""
    return F.interpolate(logits, scale_factor=float(SCALE), mode="bilinear", align_corners=False)


def semantic_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Return half the mean cross-entropy of `logits` (B, C, H / 4, W / 4) over pixels of `classes` (B, H, W) that count.

    0 stands for things, 255 is not counted; a batch in which nothing counts gives 0.
    """
    total = F.cross_entropy(enlarge(logits), classes, ignore_index=255, reduction="sum")
    return LOSS_WEIGHT * total / (classes != 255).sum().clamp(min=1)
