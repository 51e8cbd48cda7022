"""Panoptic results: objects and the classes of pixels made one, so that each pixel belongs to one segment at most.

The rule is that of Kirillov et al. 2019 (arXiv:1801.00868, section 6) as Detectron2 applies it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from delineate.data.panoptic import PanopticMap
from delineate.models.panoptic_fpn import enlarge
from delineate.predict.masks import Crop


def merge_panoptic(
    masks: Iterable[Crop],
    scores: Tensor,
    labels: Tensor,
    semantic: Tensor,
    num_classes: int,
    *,
    min_score: float = 0.5,
    max_overlap: float = 0.5,
    min_stuff_area: int = 4096,
) -> PanopticMap:
    """Lay objects over each other, best first, then fill what is left with stuff.

    Args:
        masks: of N objects, best first.
        scores, labels: (N,), labels from 0 to num_classes - 1.
        semantic: (H, W) class of each pixel: 0 stands for all objects, s for the s-th kind of stuff.
        num_classes: of objects; the s-th kind of stuff gets the label num_classes + s - 1.
        min_score: worse objects are left out.
        max_overlap: an object of whose pixels a larger share is taken already is left out.
        min_stuff_area: pixels that a kind of stuff must have left.

    >>> masks = [Crop(0, 0, np.array([[True, True]])), Crop(1, 0, np.array([[True, True]]))]
    >>> semantic = torch.tensor([[0, 0, 0, 2]])
    >>> merged = merge_panoptic(masks, torch.tensor([0.9, 0.8]), torch.tensor([4, 5]), semantic, 10, min_stuff_area=1)
    >>> merged.segments.tolist(), merged.labels.tolist()
    ([[1, 1, 2, 3]], [4, 5, 11])
    """
    segments = np.zeros(semantic.shape, np.int32)
    found: list[int] = []
    for (left, top, mask), score, label in zip(masks, scores.tolist(), labels.tolist(), strict=True):
        window = segments[top : top + mask.shape[0], left : left + mask.shape[1]]
        taken = mask & (window > 0)
        if score < min_score or not mask.any() or taken.sum() / mask.sum() > max_overlap:
            continue
        found.append(label)
        window[mask & (window == 0)] = len(found)
    free = semantic.numpy() * (segments == 0)
    areas = np.bincount(free.ravel())
    for kind in range(1, len(areas)):
        if areas[kind] > 0 and areas[kind] >= min_stuff_area:
            found.append(num_classes + kind - 1)
            segments[free == kind] = len(found)
    return PanopticMap(segments, np.array(found, np.int64), np.zeros(len(found), bool))


def semantic_classes(logits: Tensor, resized: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return the most likely class (H, W) int64 of each pixel of a picture of `size`.

    `logits` (C, h, w) are those of `SemanticHead` for the picture `resized` to (height, width) and padded. They are enlarged
    one class after the other, so that memory does not grow with their number.
    """
    height, width = resized
    best = torch.full(size, -torch.inf)
    classes = torch.zeros(size, dtype=torch.int64)
    for index, one in enumerate(logits):
        fitted = enlarge(one[None, None])[:, :, :height, :width]
        values = F.interpolate(fitted, size=size, mode="bilinear", align_corners=False)[0, 0]
        better = values > best
        classes[better] = index
        best = torch.maximum(best, values)
    return classes
