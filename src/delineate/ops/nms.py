"""Non-maximum suppression: of boxes that overlap much, the one with the highest score stays (greedy, from the highest down).

Order and ties are torchvision's: falling score, equal scores in the order of the input, NaN first. A box goes if its IoU with
a kept box is *above* the threshold; an IoU of 0 / 0, or with NaN, is not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from delineate.ops import gpu, native
from delineate.ops.boxes import box_area


class Kept(NamedTuple):
    """The boxes that stay, in a fixed number of slots (batch dimensions first)."""

    indices: Tensor  # (..., capacity) int64, by falling score; 0 in a slot that is not used
    valid: Tensor  # (..., capacity) bool: which slots are used


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices (K,) int64 of the boxes that stay, by falling score; torchvision.ops.nms.

    `boxes` (N, 4) xyxy, `scores` (N,). Raises ValueError for other shapes.

    >>> nms(torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [5, 5, 6, 6]]), torch.tensor([0.8, 0.9, 0.1]), 0.5)
    tensor([1, 2])
    """
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices (K,) int64 of the boxes that stay if only boxes of one class suppress each other, by falling score.

    `boxes` (N, 4) xyxy, `scores` (N,), `classes` (N,) any integers. torchvision.ops.batched_nms, without its trick of
    moving each class to a place of its own, which costs precision. Raises ValueError for other shapes.

    >>> batched_nms(torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]]), torch.tensor([0.8, 0.9]), torch.tensor([0, 1]), 0.5)
    tensor([1, 0])
    """
    order, kept = _ordered(boxes[None], scores[None], classes[None], iou_threshold)
    return order[0][kept[0]]


def nms_fixed(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    capacity: int,
    *,
    classes: Tensor | None = None,
    valid: Tensor | None = None,
) -> Kept:
    """Return the first `capacity` boxes that stay, in slots: those of `batched_nms`, in shapes that depend on no value.

    `boxes` (..., N, 4) xyxy, `scores` (..., N), `classes` (..., N) integers or None for one class, `valid` (..., N) bool: boxes
    that are not valid neither stay nor suppress. Leading dimensions are pictures. Raises ValueError for other shapes.

    >>> nms_fixed(torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [5, 5, 6, 6]]), torch.tensor([0.8, 0.9, 0.1]), 0.5, 3)
    Kept(indices=tensor([1, 2, 0]), valid=tensor([ True,  True, False]))
    """
    if valid is not None:
        boxes = torch.where(valid[..., None], boxes, torch.nan)  # overlaps nothing
    if classes is None:
        classes = torch.zeros_like(scores, dtype=torch.int64)
    batch = scores.shape[:-1]
    flat = boxes[None].flatten(0, -3), scores[None].flatten(0, -2), classes[None].flatten(0, -2)
    order, kept = _ordered(*flat, iou_threshold)  # (B, N)
    if valid is not None:
        kept = kept & valid.reshape(order.shape).gather(1, order)
    slot = kept.cumsum(1) - 1
    slot = torch.where(kept & (slot < capacity), slot, capacity)  # the last slot takes what does not stay
    indices = order.new_zeros(order.shape[0], capacity + 1).scatter(1, slot, order)[:, :capacity]
    used = torch.arange(capacity, device=order.device) < kept.sum(1, keepdim=True)
    return Kept(indices.reshape(*batch, capacity), used.reshape(*batch, capacity))


def _ordered(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """The order of falling score, (B, N), and which boxes stay in that order, for boxes (B, N, 4)."""
    if boxes.shape != (*scores.shape, 4) or classes.shape != scores.shape:
        shapes = f"boxes {tuple(boxes.shape)}, scores {tuple(scores.shape)}, classes {tuple(classes.shape)}"
        raise ValueError(f"{shapes}; expected (N, 4), (N,) and (N,)")
    if boxes.dtype != torch.float64:
        boxes = boxes.float()
    order = scores.detach().argsort(dim=1, descending=True, stable=True)
    boxes = boxes.detach().gather(1, order[..., None].expand(-1, -1, 4))
    return order, suppress(boxes, classes.long().gather(1, order), iou_threshold)


@torch.library.custom_op("delineate::suppress", mutates_args=())
def suppress(boxes: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Which of `boxes` (B, N, 4) stay, (B, N) bool, if each suppresses those of its class (B, N) that come later."""
    kept = torch.empty_like(classes, dtype=torch.bool, memory_format=torch.contiguous_format)
    if kernels := gpu.kernels("nms", boxes):
        return kernels.suppress(boxes, classes, _not_above(iou_threshold, boxes.dtype), kept)
    if native.available and boxes.device.type == "cpu":
        arrays = boxes.contiguous(), classes.contiguous(), kept
        native.kernels.suppress(*arrays, _not_above(iou_threshold, boxes.dtype), torch.get_num_threads())
        return kept
    for picture, (box, of_class) in enumerate(zip(boxes, classes, strict=True)):
        kept[picture] = suppress_reference(box, of_class, iou_threshold)
    return kept


@suppress.register_fake
def _(boxes: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(classes, dtype=torch.bool)


_BLOCK = 256


def suppress_reference(boxes: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Which of `boxes` (N, 4) stay, (N,) bool: the plain form of `suppress`, whose memory grows with N alone.

    The first boxes of those left are settled, and what they suppress leaves. Among them, boxes are suppressed by those that
    stay, to begin with by all; after k rounds the first k are right, and once a round changes nothing all are.
    """
    area, threshold = box_area(boxes), _not_above(iou_threshold, boxes.dtype)
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    left = torch.arange(len(boxes), device=boxes.device)

    def above(a: Tensor, b: Tensor) -> Tensor:
        return (_iou(boxes[a], area[a], boxes[b], area[b]) > threshold) & (classes[a, None] == classes[b])

    while len(left):
        block, left = left.split([min(_BLOCK, len(left)), max(0, len(left) - _BLOCK)])
        within = above(block, block).triu(1)
        stay = torch.ones_like(block, dtype=torch.bool)
        while not torch.equal(following := ~(within & stay[:, None]).any(0), stay):
            stay = following
        kept[block] = stay
        left = left[~above(block[stay], left).any(0)]
    return kept


def _not_above(threshold: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` that is not above `threshold`: to be above the one is to be above the other."""
    rounded = torch.tensor(threshold, dtype=dtype)
    if rounded.item() > threshold:
        rounded = rounded.nextafter(torch.tensor(-torch.inf, dtype=dtype))
    return rounded.item()


def _iou(a: Tensor, area_a: Tensor, b: Tensor, area_b: Tensor) -> Tensor:
    """(R, L); 0 / 0 is NaN here, and NaN is above no threshold."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    intersection = width * height
    return intersection / (area_a[:, None] + area_b - intersection)
