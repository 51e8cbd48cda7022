"""Region-proposal network (Ren et al. 2015, arXiv:1506.01497): where in a picture there may be an object, of whatever class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from delineate.losses.detection import proposal_losses
from delineate.losses.matching import Sampler, match_boxes, sample_matches
from delineate.models.blocks import conv_layers, widen
from delineate.models.detector_conventions import DetectorConventions
from delineate.ops import cell_anchors, clip_boxes, decode_boxes, grid_anchors, large_boxes, nms_fixed
from delineate.ops.instances import InstanceTargets


class Proposals(NamedTuple):
    """Boxes that may hold an object, at most P in each of B pictures, best first."""

    boxes: Tensor  # (B, P, 4) float32 xyxy, inside the picture; without gradient
    valid: Tensor  # (B, P) bool


class AnchorScores(NamedTuple):
    """What the network says of the N anchors of one level."""

    logits: Tensor  # (B, N) float32: is it an object?
    deltas: Tensor  # (B, N, 4) float32: what would make it fit
    anchors: Tensor  # (N, 4) float32 xyxy


class Selection(NamedTuple):
    """How many proposals are kept: `before` suppression from each level, `after` it from all together."""

    before: int
    after: int


class RPNHead(nn.Module):
    """`convs` 3x3 convolutions, then for each of `anchors` anchors of a place its objectness and its four deltas."""

    def __init__(self, in_channels: int, anchors: int, *, convs: int = 1) -> None:
        super().__init__()
        self.convs = nn.Sequential(*[conv_layers(in_channels, in_channels, 3, relu=True) for _ in range(convs)])
        self.objectness = nn.Conv2d(in_channels, anchors, 1)
        self.deltas = nn.Conv2d(in_channels, 4 * anchors, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias) if module.bias is not None else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, H * W * anchors) and deltas (B, H * W * anchors, 4) of a map (B, C, H, W), row by row."""
        x = self.convs(features)
        logits = self.objectness(x).permute(0, 2, 3, 1)  # (B, H, W, A)
        deltas = self.deltas(x).permute(0, 2, 3, 1)  # (B, H, W, 4 A)
        return widen(logits.flatten(1)), widen(deltas.unflatten(3, (-1, 4)).flatten(1, 3))


class RPN(nn.Module):
    """The network and its anchors: `anchor_sizes` are the sides, in pixels, of each level; a ratio is height / width.

    It learns from `samples` anchors of each picture, half of them positive at most; `sampler` draws them.
    """

    cells: Tensor  # (levels, A, 4)

    def __init__(
        self,
        head: nn.Module,
        reductions: Sequence[int],
        conventions: DetectorConventions,
        *,
        anchor_sizes: Sequence[Sequence[float]],
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        training: Selection,
        inference: Selection,
        nms_threshold: float = 0.7,
        samples: int = 256,
    ) -> None:
        super().__init__()
        self.head = head
        self.reductions = tuple(reductions)
        self.conventions = conventions
        self.selections = {True: training, False: inference}
        self.nms_threshold = nms_threshold
        self.sampler: Sampler = partial(sample_matches, count=samples, positive_fraction=0.5)
        rounded, size_major = conventions.round_anchors, conventions.size_major_anchors
        cells = [cell_anchors(sizes, ratios, rounded=rounded, size_major=size_major) for sizes in anchor_sizes]
        self.register_buffer("cells", torch.stack(cells), persistent=False)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> list[AnchorScores]:
        """Return scores and deltas of every level of `maps`; `size` is height and width of the padded pictures."""
        scores = []
        for features, cell, reduction in zip(maps, self.cells, self.reductions, strict=True):
            height, width = features.shape[-2:]
            stride = (reduction, reduction)
            if self.conventions.stride_from_grid:
                stride = (size[0] // height, size[1] // width)
            logits, deltas = self.head(features)
            scores.append(AnchorScores(logits, deltas, grid_anchors(cell, (height, width), stride)))
        return scores

    def propose(self, levels: Sequence[AnchorScores], sizes: Tensor) -> Proposals:
        """Return the best boxes that hardly overlap, level by level; `sizes` (B, 2) is height and width of each picture."""
        before, after = self.selections[self.training]
        boxes, logits, numbers = [], [], []
        for number, level in enumerate(levels):
            best, index = level.logits.detach().topk(min(before, level.logits.shape[1]), dim=1)  # (B, T)
            deltas = level.deltas.detach().gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(decode_boxes(deltas, level.anchors[index]))
            logits.append(best)
            numbers.append(torch.full_like(index, number))
        found, scores = clip_boxes(torch.cat(boxes, dim=1), sizes[:, None]), torch.cat(logits, dim=1)
        if self.conventions.rank_by_probability:
            scores = scores.sigmoid()
        valid = large_boxes(found, self.conventions.min_proposal_size) & scores.isfinite()
        numbers = torch.cat(numbers, dim=1)
        kept, used = nms_fixed(found, scores, self.nms_threshold, after, classes=numbers, valid=valid)
        found = found.gather(1, kept[..., None].expand(-1, -1, 4))
        return Proposals(torch.where(used[..., None], found, 0.0), used)

    def losses(self, levels: Sequence[AnchorScores], targets: InstanceTargets) -> tuple[Tensor, Tensor]:
        """Return the losses of objectness and of boxes, a scalar each."""
        logits = torch.cat([level.logits for level in levels], dim=1)
        deltas = torch.cat([level.deltas for level in levels], dim=1)
        anchors = torch.cat([level.anchors for level in levels])
        matches = match_boxes(anchors, targets, low=0.3, high=0.7, allow_low_quality=True)
        sample = self.sampler(matches.kind)
        beta, per_sample = self.conventions.rpn_beta, self.conventions.rpn_per_sample
        return proposal_losses(logits, deltas, anchors, targets, matches, sample, beta=beta, per_sample=per_sample)
