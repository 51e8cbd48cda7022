"""Arithmetic of boxes: area, overlap, clipping, coordinate forms, and the deltas that a network regresses.

A box is x0, y0, x1, y1 in pixels ("xyxy"), (0, 0) being the outer corner of the first pixel, so that width is x1 - x0. Every
function takes any leading dimensions, keeps its shapes whatever the values are, and is differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

BoxForm = Literal["xyxy", "xywh", "cxcywh"]
Weights = tuple[float, float, float, float]

MAX_LOG_SCALE = math.log(1000.0 / 16)
"""Largest log of a scale that a delta may ask for: a box of 16 pixels may grow to 1000 (Fast R-CNN)."""


def box_area(boxes: Tensor) -> Tensor:
    """Return the area of boxes (..., 4) xyxy, in square pixels: (...,), float32 or wider, int64 for integers.

    The area of an inside-out box is what its sides multiply to, as in torchvision.

    >>> box_area(torch.tensor([[0, 0, 4, 3], [2, 2, 2, 9]]))
    tensor([12,  0])
    """
    low, high = _wide(boxes).chunk(2, -1)
    width, height = (high - low).unbind(-1)
    return width * height


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union of every box of `a` (..., N, 4) with every box of `b` (..., M, 4): (..., N, M).

    Boxes are xyxy. The IoU of two boxes without any area is 0, with gradient 0; a box with NaN has the IoU NaN.

    >>> box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2], [5, 5, 6, 6]]))
    tensor([[0.3333, 0.0000]])
    """
    return _ratio(*_intersection_and_union(_wide(a), _wide(b)))


def generalized_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return IoU - (C - U) / C of every pair, C being the area of the box around both and U their union: (..., N, M) in -1..1.

    Rezatofighi et al. 2019 (arXiv:1902.09630), algorithm 1. Shapes and coordinates as `box_iou`; 0 where C is 0.

    >>> generalized_box_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]]))
    tensor([[-0.3333]])
    """
    a, b = _wide(a), _wide(b)
    intersection, union = _intersection_and_union(a, b)
    low = torch.minimum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.maximum(a[..., :, None, 2:], b[..., None, :, 2:])
    width, height = (high - low).unbind(-1)
    around = width * height
    return _ratio(intersection, union) - _ratio(around - union, around)


def clip_boxes(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Return boxes (..., 4) xyxy cut to a picture of `size` (height, width); a box outside it becomes one without area.

    `size` may be a tensor (..., 2), where each picture has its own.

    >>> clip_boxes(torch.tensor([[-3.0, 2, 9, 4]]), (5, 8))
    tensor([[0., 2., 8., 4.]])
    """
    limit = constants(size, boxes) if isinstance(size, tuple) else size.to(boxes.dtype)
    low, high = boxes.clamp(min=0).unflatten(-1, (2, 2)).minimum(limit.flip(-1)[..., None, :]).unbind(-2)  # (..., 2)
    return torch.cat([low, high], -1)


def large_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """Return which boxes (..., 4) xyxy have both sides at least `min_size` pixels long: (...,) bool.

    A mask, so that shapes stay: `boxes[large_boxes(boxes, 1)]` removes the others. A box with NaN is not large.

    >>> large_boxes(torch.tensor([[0.0, 0, 4, 3], [2, 2, 2, 9]]), 1.0)
    tensor([ True, False])
    """
    return (boxes[..., 2:] - boxes[..., :2] >= min_size).all(-1)


def convert_boxes(boxes: Tensor, source: BoxForm, target: BoxForm) -> Tensor:
    """Return boxes (..., 4) in another form: corners "xyxy", corner and size "xywh" (COCO's), centre and size "cxcywh".

    Integer boxes have no exact centre: "cxcywh" of them is float32. Raises ValueError for a form that is none of these.

    >>> convert_boxes(torch.tensor([[1, 2, 3, 6]]), "xyxy", "cxcywh")
    tensor([[2., 4., 2., 4.]])
    """
    for form in (source, target):
        if form not in ("xyxy", "xywh", "cxcywh"):
            raise ValueError(f"box form {form!r}; expected 'xyxy', 'xywh' or 'cxcywh'")
    if "cxcywh" in (source, target) and not boxes.dtype.is_floating_point:
        boxes = boxes.float()
    if source == target:
        return boxes.clone()
    first, second = boxes[..., :2], boxes[..., 2:]
    if source == "cxcywh":
        first = first - 0.5 * second
    size = second - first if source == "xyxy" else second
    if target == "xywh":
        return torch.cat([first, size], -1)
    if target == "cxcywh":
        return torch.cat([first + 0.5 * size, size], -1)
    return torch.cat([first, first + size], -1)


def encode_boxes(targets: Tensor, references: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Return the deltas dx, dy, dw, dh (..., 4) that turn `references` (..., 4) into `targets` (..., 4), both xyxy.

    dx = wx (tx - rx) / rw and dw = ww log(tw / rw), with centres x and widths w, times `weights` (R-CNN, arXiv:1311.2524,
    appendix C). torchvision, Detectron2 and MMDetection share it; MMDetection's standard deviations are 1 / weights. Where
    either box has no area there is nothing to learn: 0, where the others give NaN or infinity. float32 or wider.

    >>> encode_boxes(torch.tensor([[2.0, 0, 6, 4]]), torch.tensor([[0.0, 0, 4, 4]]))
    tensor([[0.5000, 0.0000, 0.0000, 0.0000]])
    """
    target_center, target_size = _center_and_size(targets)
    center, size = _center_and_size(references)
    proper = ((size > 0) & (target_size > 0)).all(-1, keepdim=True)
    size, target_size = torch.where(proper, size, 1.0), torch.where(proper, target_size, 1.0)
    shift = torch.where(proper, (target_center - center) / size, 0.0)
    return torch.cat([shift, torch.log(target_size / size)], -1) * constants(weights, shift)


def decode_boxes(
    deltas: Tensor,
    references: Tensor,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
    max_log_scale: float = MAX_LOG_SCALE,
) -> Tensor:
    """Return the boxes (..., K * 4) xyxy that `deltas` (..., K * 4) make of `references` (..., 4) xyxy.

    The inverse of `encode_boxes`; K is 1, or the number of classes with deltas of their own. dw and dh are clamped to
    `max_log_scale` before the exponential (Detectron2 and torchvision: log(1000 / 16)). Computed in float32 or wider, as
    Detectron2 does.

    >>> decode_boxes(torch.tensor([[0.5, 0, 0, 0]]), torch.tensor([[0.0, 0, 4, 4]]))
    tensor([[2., 0., 6., 4.]])
    """
    center, size = _center_and_size(references)
    scaled = _wide(deltas).unflatten(-1, (-1, 4))  # (..., K, 4)
    scaled = scaled / constants(weights, scaled)
    new_center = scaled[..., :2] * size[..., None, :] + center[..., None, :]
    new_size = scaled[..., 2:].clamp(max=max_log_scale).exp() * size[..., None, :]
    return torch.cat([new_center - 0.5 * new_size, new_center + 0.5 * new_size], -1).flatten(-2)


def check_boxes(boxes: Tensor, name: str = "boxes") -> Tensor:
    """Return `boxes` if they are (..., 4) and finite; else raise ValueError that names the first bad box. Waits for the device.

    >>> check_boxes(torch.tensor([[0.0, 0, float("nan"), 1]]))
    Traceback (most recent call last):
    ValueError: boxes[0] is [0.0, 0.0, nan, 1.0]; coordinates must be finite
    """
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"{name} has shape {tuple(boxes.shape)}; expected (..., 4)")
    bad = (~boxes.isfinite().all(-1)).nonzero()
    if len(bad):
        place = bad[0].tolist()
        raise ValueError(f"{name}{place} is {boxes[tuple(place)].tolist()}; coordinates must be finite")
    return boxes


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """A few numbers as a tensor with the type and device of another, written there: to copy them to a GPU would wait for it.

    >>> constants((1, 2), torch.zeros(3))
    tensor([1., 2.])
    """
    return torch.stack([like.new_full((), value) for value in values])


def _wide(values: Tensor) -> Tensor:
    """Products of coordinates need more than half precision, and more than int32."""
    if values.dtype.is_floating_point:
        return values if values.dtype in (torch.float32, torch.float64) else values.float()
    return values.long()


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = _wide(boxes).chunk(2, -1)
    size = high - low
    return low + 0.5 * size, size


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(..., N, M) both."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    intersection = width * height
    return intersection, box_area(a)[..., :, None] + box_area(b)[..., None, :] - intersection


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator is 0, and a gradient of 0 there."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / (denominator + zero))
