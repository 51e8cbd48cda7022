"""Keypoints of objects as heatmaps over their boxes, and back: one cell a keypoint is the target, sub-pixel peaks are found."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from delineate.ops import gpu, native
from delineate.ops.boxes import constants

Peak = Literal["bicubic", "taylor"]


class Keypoints(NamedTuple):
    """Where the keypoints of N objects are, K each."""

    points: Tensor  # (N, K, 2) float32 x, y in pixels of the picture
    logits: Tensor  # (N, K) float32, the heatmap there: torchvision's score
    scores: Tensor  # (N, K) float32, softmax over the heatmap's cells: Detectron2's score, above 1 for some peaks between cells


def encode_keypoints(keypoints: Tensor, boxes: Tensor, size: int = 56) -> tuple[Tensor, Tensor]:
    """Return the heatmap cell of each keypoint, (N, K) int64 in 0..size * size - 1 (row-major), and which count, (N, K) bool.

    `keypoints` (N, K, 3) x, y, visibility in pixels of the picture; `boxes` (N, 4) xyxy. A keypoint counts if its visibility is
    above 0 and it lies in its box, right and lower edges included: these belong to the last cell (Mask R-CNN,
    arXiv:1703.06870, section 3.1; torchvision and Detectron2 agree). Cells that do not count are 0. In a box without area no
    keypoint counts. COCO's coordinates name pixels: Detectron2 adds 0.5 to them first, torchvision does not.

    >>> encode_keypoints(torch.tensor([[[5.0, 2.5, 2], [10, 10, 1], [11, 0, 2]]]), torch.tensor([[0.0, 0, 10, 10]]), 4)
    (tensor([[ 6, 15,  0]]), tensor([[ True,  True, False]]))
    """
    if keypoints.ndim != 3 or keypoints.shape[2] != 3 or boxes.shape != (keypoints.shape[0], 4):
        raise ValueError(f"keypoints {tuple(keypoints.shape)} and boxes {tuple(boxes.shape)}; expected (N, K, 3) and (N, 4)")
    dtype = torch.promote_types(torch.promote_types(keypoints.dtype, boxes.dtype), torch.float32)
    return keypoint_cells(keypoints.detach().to(dtype), boxes.detach().to(dtype), size)


@torch.library.custom_op("delineate::keypoint_cells", mutates_args=())
def keypoint_cells(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`encode_keypoints` with checked arguments."""
    if kernels := gpu.kernels("keypoints", keypoints):
        return kernels.keypoint_cells(keypoints, boxes, size)
    return keypoint_cells_reference(keypoints, boxes, size)


@keypoint_cells.register_fake
def _(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    cells = keypoints.new_empty(keypoints.shape[:2], dtype=torch.int64)
    return cells, torch.empty_like(cells, dtype=torch.bool)


def keypoint_cells_reference(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The plain form of `keypoint_cells`."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]  # (N, 1, 2)
    points = keypoints[..., :2]
    inside = (points >= low) & (points <= high) & (high > low) & (high - low).isfinite()
    cell = ((points - low) * (size / (high - low))).floor()
    cell = torch.where(points == high, size - 1, cell)
    inside &= cell < size  # rounding may carry a point just before the edge past it; both sources leave it out
    valid = inside.all(-1) & (keypoints[..., 2] > 0)
    x, y = torch.where(valid[..., None], cell, 0).long().unbind(-1)
    return y * size + x, valid


def decode_keypoints(heatmaps: Tensor, boxes: Tensor, method: Peak = "bicubic") -> Keypoints:
    """Return the peak of each heatmap (N, K, S, T) of logits over its box (N, 4) xyxy, in pixels of the picture.

    - "bicubic": each heatmap is resized to its box (sides rounded up, at least 1 pixel) by bicubic interpolation, and the
      centre of the largest pixel is the keypoint, as in torchvision and Detectron2. The plain form gives their very numbers,
      the kernels those up to rounding: another pixel only where two are equally high but for rounding. A box that is not finite
      gives NaN; one of more than 2^30 pixels is a ValueError, and with the GPU's kernel, which waits for nothing, NaN.
    - "taylor": the largest cell, moved by one Newton step on the 3 x 3 cells around it, at most half a cell; all boxes at once,
      in fixed shapes, without waiting for the device. Of a smooth peak it is the maximum of the fitted parabola; it does not
      agree with the other method where two peaks are about equally high.

    Both are opaque to gradients. Raises ValueError for other shapes or another method.

    >>> heatmap = torch.zeros(1, 1, 4, 4)
    >>> heatmap[0, 0, 1, 2] = 9.0
    >>> decode_keypoints(heatmap, torch.tensor([[10.0, 10, 18, 18]]), "taylor").points
    tensor([[[15., 13.]]])
    """
    if heatmaps.ndim != 4 or boxes.shape != (heatmaps.shape[0], 4):
        raise ValueError(f"heatmaps {tuple(heatmaps.shape)} and boxes {tuple(boxes.shape)}; expected (N, K, S, T) and (N, 4)")
    if method not in ("bicubic", "taylor"):
        raise ValueError(f"method {method!r}; expected 'bicubic' or 'taylor'")
    heatmaps, boxes = heatmaps.detach().float(), boxes.detach().float()
    peak = bicubic_peaks if method == "bicubic" else taylor_peaks
    points, logits = peak(heatmaps, boxes)
    return Keypoints(points, logits, (logits - heatmaps.flatten(2).logsumexp(-1)).exp())


_RESIZED = 1 << 24
"""Values of resized heatmaps that the plain form holds at a time."""

_MOST_PIXELS = 1 << 30
"""A box that is larger than any picture would never end."""


@torch.library.custom_op("delineate::bicubic_peaks", mutates_args=())
def bicubic_peaks(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Points (N, K, 2) and values (N, K) of the largest pixels of heatmaps (N, K, S, T) resized to their boxes (N, 4)."""
    if kernels := gpu.kernels("keypoints", heatmaps):
        return kernels.bicubic_peaks(heatmaps, boxes, _MOST_PIXELS)
    if not native.available or heatmaps.device.type != "cpu":
        return bicubic_peaks_reference(heatmaps, boxes)
    points, values = _fake_peaks(heatmaps, boxes)
    native.kernels.bicubic_peaks(heatmaps.contiguous(), boxes.contiguous(), points, values, torch.get_num_threads())
    return points, values


@torch.library.custom_op("delineate::taylor_peaks", mutates_args=())
def taylor_peaks(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Points (N, K, 2) and values (N, K) of the tops of paraboloids on heatmaps (N, K, S, T) over boxes (N, 4)."""
    if kernels := gpu.kernels("keypoints", heatmaps):
        return kernels.taylor_peaks(heatmaps, boxes)
    return taylor_peaks_reference(heatmaps, boxes)


def _fake_peaks(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    count, kinds = heatmaps.shape[:2]
    return heatmaps.new_empty(count, kinds, 2), heatmaps.new_empty(count, kinds)


bicubic_peaks.register_fake(_fake_peaks)
taylor_peaks.register_fake(_fake_peaks)


def bicubic_peaks_reference(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The plain form of `bicubic_peaks`, whose interpolation is PyTorch's; NaN for a box that is not finite."""
    count, kinds = heatmaps.shape[:2]
    points, values = heatmaps.new_full((count, kinds, 2), torch.nan), heatmaps.new_full((count, kinds), torch.nan)
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = size.ceil()
    finite = boxes.isfinite().all(-1)
    for i, ((width, height), usable) in enumerate(zip(pixels.tolist(), finite.tolist(), strict=True)):
        if not usable:
            continue
        if width * height > _MOST_PIXELS:
            raise ValueError(f"boxes[{i}] has more than 2^30 pixels; clip boxes to the picture")
        rows = max(1, int(_RESIZED / (width * height)))
        for first in range(0, kinds, rows):
            part = slice(first, first + rows)
            resized = F.interpolate(heatmaps[i : i + 1, part], (int(height), int(width)), mode="bicubic")[0].flatten(1)
            values[i, part], place = resized.max(-1)
            x, y = place % int(width), place // int(width)
            points[i, part] = (torch.stack([x, y], -1) + 0.5) * (size[i] / pixels[i]) + boxes[i, :2]
    return points, values


def taylor_peaks_reference(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The plain form of `taylor_peaks`.

    f(c + d) = f + g d + d H d / 2 is largest at d = -H^-1 g if H is negative definite; g and H are central differences.
    """
    _, _, rows, columns = heatmaps.shape
    place = heatmaps.flatten(2).argmax(-1)  # (N, K)
    y, x = place // columns, place % columns
    around = torch.arange(-1, 2, device=heatmaps.device)
    near_y, near_x = (y[..., None] + around).clamp(0, rows - 1), (x[..., None] + around).clamp(0, columns - 1)  # (N, K, 3)
    near = near_y[..., :, None] * columns + near_x[..., None, :]
    f = heatmaps.flatten(2).gather(2, near.flatten(2)).unflatten(2, (3, 3))  # (N, K, 3, 3)
    gx, gy = (f[..., 1, 2] - f[..., 1, 0]) / 2, (f[..., 2, 1] - f[..., 0, 1]) / 2
    xx = f[..., 1, 2] - 2 * f[..., 1, 1] + f[..., 1, 0]
    yy = f[..., 2, 1] - 2 * f[..., 1, 1] + f[..., 0, 1]
    xy = (f[..., 2, 2] - f[..., 2, 0] - f[..., 0, 2] + f[..., 0, 0]) / 4
    determinant = xx * yy - xy * xy
    peaked = (xx < 0) & (determinant > 0)
    determinant = torch.where(peaked, determinant, 1.0)
    step = torch.stack([xy * gy - yy * gx, xy * gx - xx * gy], -1) / determinant[..., None]
    step = torch.where(peaked[..., None], step, 0.0).clamp(-0.5, 0.5)
    dx, dy = step.unbind(-1)
    value = f[..., 1, 1] + gx * dx + gy * dy + 0.5 * (xx * dx * dx + 2 * xy * dx * dy + yy * dy * dy)
    cell = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1) / constants((columns, rows), boxes)
    center = torch.stack([x, y], -1) + 0.5 + step
    return center * cell[:, None] + boxes[:, None, :2], value
