"""Box head: which class a proposal is, and where its box really lies (Fast R-CNN, arXiv:1504.08083)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from delineate.models.blocks import conv_layers, widen
from delineate.models.norms import Norm
from delineate.models.rpn import Proposals
from delineate.ops import clip_boxes, decode_boxes, large_boxes, nms_fixed

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Deltas of proposals are learned in units of a tenth of the box and a fifth of its logarithm."""

CANDIDATES = 4096
"""Boxes of a picture, the best of all classes, that go into suppression. The result is that of all boxes unless more of them
pass the threshold and yet fewer than are asked for stay."""


class FoundBoxes(NamedTuple):
    """Boxes of objects, at most D in each of B pictures, best first; zero where not valid."""

    boxes: Tensor  # (B, D, 4) float32 xyxy
    scores: Tensor  # (B, D) float32
    labels: Tensor  # (B, D) int64
    valid: Tensor  # (B, D) bool


class BoxLayers(nn.Module):
    """3x3 convolutions, then fully connected layers: what turns the features of a region into a vector."""

    def __init__(
        self,
        in_channels: int,
        size: int,
        *,
        convs: int = 0,
        conv_width: int = 256,
        fcs: int = 2,
        fc_width: int = 1024,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        widths = [in_channels, *[conv_width] * convs]
        self.convs = nn.Sequential(*[conv_layers(a, b, 3, norm=norm, relu=True) for a, b in pairwise(widths)])
        lengths = [widths[-1] * size * size, *[fc_width] * fcs]
        self.fcs = nn.Sequential()
        for a, b in pairwise(lengths):
            self.fcs.extend([nn.Linear(a, b), nn.ReLU(inplace=True)])
        self.channels = lengths[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=1)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.fcs(self.convs(features).flatten(1))  # (K, channels)


class MeanLayers(nn.Module):
    """The mean of a region's features: the C4 form, whose layers are the encoder's last stage."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))  # (K, channels)


class BoxHead(nn.Module):
    """Logits of `classes` classes and then the background, and for each class four deltas (one set if `agnostic`)."""

    def __init__(self, layers: BoxLayers | MeanLayers, classes: int, *, agnostic: bool = False) -> None:
        super().__init__()
        self.classes = classes
        self.layers = layers
        self.classifier = nn.Linear(layers.channels, classes + 1)
        self.deltas = nn.Linear(layers.channels, 4 if agnostic else 4 * classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (K, classes + 1) and deltas (K, 4 or 4 * classes), float32, of the features of K regions."""
        x = self.layers(features)
        return widen(self.classifier(x)), widen(self.deltas(x))


def find_boxes(
    logits: Tensor,
    deltas: Tensor,
    proposals: Proposals,
    sizes: Tensor,
    *,
    score_threshold: float,
    nms_threshold: float,
    capacity: int,
    min_size: float,
) -> FoundBoxes:
    """Return the boxes of each class that score above the threshold and hardly overlap.

    `logits` (B, P, K + 1) with the background last, `deltas` (B, P, 4 or 4 K), `sizes` (B, 2) height and width of each picture.
    """
    classes = logits.shape[-1] - 1
    scores = logits.softmax(-1)[..., :-1]  # (B, P, K)
    wanted = proposals.valid[..., None] & (scores > score_threshold)
    ranked = torch.where(wanted, scores, -1.0).flatten(1)  # (B, P K)
    index = ranked.topk(min(ranked.shape[1], CANDIDATES), dim=1).indices.sort(dim=1).values  # (B, N): ties by their order
    score, proposal, label = ranked.gather(1, index), index // classes, index % classes
    chosen = index if deltas.shape[-1] == 4 * classes else proposal
    delta = deltas.unflatten(-1, (-1, 4)).flatten(1, 2).gather(1, chosen[..., None].expand(-1, -1, 4))
    reference = proposals.boxes.gather(1, proposal[..., None].expand(-1, -1, 4))
    boxes = clip_boxes(decode_boxes(delta, reference, BOX_WEIGHTS), sizes[:, None])  # (B, N, 4)
    valid = (score > -1) & large_boxes(boxes, min_size)
    kept, used = nms_fixed(boxes, score, nms_threshold, capacity, classes=label, valid=valid)
    found = torch.where(used[..., None], boxes.gather(1, kept[..., None].expand(-1, -1, 4)), 0.0)
    return FoundBoxes(found, torch.where(used, score.gather(1, kept), 0.0), torch.where(used, label.gather(1, kept), 0), used)
