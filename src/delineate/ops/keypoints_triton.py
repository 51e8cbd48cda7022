"""Keypoints on a GPU, by Triton: their cells, and the peaks of heatmaps, without waiting or memory of the size of boxes.

A program has one heatmap. For "bicubic" it goes through the pixels of the resized heatmap, `_LOOK` at a time, each made of the
sixteen cells around it, and keeps the first of the largest; for "taylor" it looks through the cells, and then at the nine
around the largest.

No GPU has run these kernels yet.
"""

# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import torch
from torch import Tensor

from delineate.ops.triton_jit import EXACT, available, jit, tl

__all__ = ["available", "bicubic_peaks", "keypoint_cells", "taylor_peaks"]

_LOOK = 512  # pixels of a resized heatmap, or cells, looked at together
_POINTS = 256  # keypoints of a program that finds cells


def bicubic_peaks(heatmaps: Tensor, boxes: Tensor, most_pixels: int) -> tuple[Tensor, Tensor]:
    """Points (N, K, 2) and values (N, K) of `bicubic_peaks_reference`; NaN also for a box of more than `most_pixels`."""
    points, values = _results(heatmaps)
    if values.numel():
        rows, columns = heatmaps.shape[2:]
        with torch.cuda.device_of(heatmaps):
            resized_peak[(values.numel(),)](
                points, values, heatmaps.contiguous(), boxes.contiguous(), heatmaps.shape[1], rows, columns, float(most_pixels),
                _LOOK, **EXACT,
            )  # fmt: skip
    return points, values


def taylor_peaks(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Points (N, K, 2) and values (N, K) of `taylor_peaks_reference`."""
    points, values = _results(heatmaps)
    if values.numel():
        kinds, rows, columns = heatmaps.shape[1:]
        given = points, values, heatmaps.contiguous(), boxes.contiguous(), kinds, rows, columns
        with torch.cuda.device_of(heatmaps):
            top_of_paraboloid[(values.numel(),)](*given, _LOOK, **EXACT)
    return points, values


def keypoint_cells(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The cells (N, K) int64 and which count, (N, K) bool, of `keypoint_cells_reference`."""
    count, kinds = keypoints.shape[:2]
    cells = torch.empty(count, kinds, dtype=torch.int64, device=keypoints.device)
    valid = torch.empty(count, kinds, dtype=torch.bool, device=keypoints.device)
    if cells.numel():
        given = cells, valid.view(torch.uint8), keypoints.contiguous(), boxes.contiguous(), cells.numel(), kinds, size
        with torch.cuda.device_of(keypoints):
            cells_of[(-(-cells.numel() // _POINTS),)](*given, _POINTS, **EXACT)
    return cells, valid


def _results(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    values = heatmaps.new_empty(heatmaps.shape[:2], dtype=torch.float32)
    return values.new_empty(*values.shape, 2), values


@jit()
def _far(d):
    """Keys' cubic convolution (1981) with A = -0.75, 1 < d < 2."""
    return ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0


@jit()
def _near(d):
    """The same, d <= 1."""
    return (1.25 * d - 2.25) * d * d + 1.0


@jit()
def _taps(pixel, pixels, cells):
    """The cell below each of `pixels` pixels that `cells` cells are resized to, and the weights of the four around it."""
    place = tl.div_rn(cells.to(tl.float32), pixels) * (pixel.to(tl.float32) + 0.5) - 0.5
    below = tl.floor(place)
    t = place - below
    return below.to(tl.int32), (_far(t + 1.0), _near(t), _near(1.0 - t), _far(2.0 - t))


@jit()
def _cell(tap, below, cells):
    return tl.minimum(tl.maximum(below + tap - 1, 0), cells - 1)


@jit("kinds", "rows", "columns")
def resized_peak(points, values, heatmaps, boxes, kinds, rows, columns, most_pixels, pixels_at_once: tl.constexpr):
    """Write where a heatmap that is resized to its box is largest, and how large."""
    number = tl.program_id(0).to(tl.int64)
    box = boxes + number // kinds * 4
    heatmap = heatmaps + number * rows * columns
    x0, y0, x1, y1 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    side_x, side_y = tl.maximum(x1 - x0, 1.0), tl.maximum(y1 - y0, 1.0)
    across, down = tl.ceil(side_x), tl.ceil(side_y)
    usable = (x0 - x0 == 0) & (y0 - y0 == 0) & (x1 - x1 == 0) & (y1 - y1 == 0) & (across * down <= most_pixels)
    width = tl.where(usable, across, 1.0).to(tl.int32)
    count = tl.where(usable, width * tl.where(usable, down, 1.0).to(tl.int32), 0)

    lane = tl.arange(0, pixels_at_once)
    best = tl.full((pixels_at_once,), float("-inf"), tl.float32)
    where = lane * 0
    for start in range(0, count, pixels_at_once):
        pixel = start + lane
        column, taps_x = _taps(pixel % width, across, columns)
        row, taps_y = _taps(pixel // width, down, rows)
        value = tl.zeros((pixels_at_once,), tl.float32)
        for i in tl.static_range(4):
            line = heatmap + _cell(i, row, rows) * columns
            stretched = tl.zeros((pixels_at_once,), tl.float32)
            for j in tl.static_range(4):
                stretched += tl.load(line + _cell(j, column, columns)).to(tl.float32) * taps_x[j]
            value += stretched * taps_y[i]
        better = (pixel < count) & (value > best)
        best = tl.where(better, value, best)
        where = tl.where(better, pixel, where)
    largest = tl.max(best, 0)
    first = tl.min(tl.where(best == largest, where, 2147483647), 0)
    nan = float("nan")
    x = ((first % width).to(tl.float32) + 0.5) * tl.div_rn(side_x, across) + x0
    y = ((first // width).to(tl.float32) + 0.5) * tl.div_rn(side_y, down) + y0
    tl.store(points + number * 2, tl.where(usable, x, nan))
    tl.store(points + number * 2 + 1, tl.where(usable, y, nan))
    tl.store(values + number, tl.where(usable, largest, nan))


@jit("kinds", "rows", "columns")
def top_of_paraboloid(points, values, heatmaps, boxes, kinds, rows, columns, cells_at_once: tl.constexpr):
    """Write the top of the paraboloid through the cells around the largest: the formulas of the plain form."""
    number = tl.program_id(0).to(tl.int64)
    heatmap = heatmaps + number * rows * columns
    lane = tl.arange(0, cells_at_once)
    best, where = tl.full((cells_at_once,), float("-inf"), tl.float32), lane
    for start in range(0, rows * columns, cells_at_once):
        cell = start + lane
        value = tl.load(heatmap + cell, cell < rows * columns, float("-inf")).to(tl.float32)
        better = (value > best) | ((value != value) & (best == best))  # NaN is the largest, as in PyTorch
        best, where = tl.where(better, value, best), tl.where(better, cell, where)
    missing = best != best
    largest = tl.where(tl.max(missing.to(tl.int32), 0) > 0, missing, best == tl.max(best, 0))
    first = tl.min(tl.where(largest, where, 2147483647), 0)
    x, y = first % columns, first // columns
    left, right = tl.maximum(x - 1, 0), tl.minimum(x + 1, columns - 1)
    above, here, below = tl.maximum(y - 1, 0) * columns, y * columns, tl.minimum(y + 1, rows - 1) * columns
    f00, f01, f02 = _at(heatmap, above + left), _at(heatmap, above + x), _at(heatmap, above + right)
    f10, f11, f12 = _at(heatmap, here + left), _at(heatmap, here + x), _at(heatmap, here + right)
    f20, f21, f22 = _at(heatmap, below + left), _at(heatmap, below + x), _at(heatmap, below + right)
    gx, gy = (f12 - f10) * 0.5, (f21 - f01) * 0.5
    xx, yy = f12 - 2.0 * f11 + f10, f21 - 2.0 * f11 + f01
    xy = (f22 - f20 - f02 + f00) * 0.25
    determinant = xx * yy - xy * xy
    peaked = (xx < 0) & (determinant > 0)
    determinant = tl.where(peaked, determinant, 1.0)
    dx = _half_a_cell(tl.where(peaked, tl.div_rn(xy * gy - yy * gx, determinant), 0.0))
    dy = _half_a_cell(tl.where(peaked, tl.div_rn(xy * gx - xx * gy, determinant), 0.0))
    height = f11 + gx * dx + gy * dy + 0.5 * (xx * dx * dx + 2.0 * xy * dx * dy + yy * dy * dy)
    box = boxes + number // kinds * 4
    x0, y0 = tl.load(box), tl.load(box + 1)
    cell_x = tl.div_rn(_at_least_1(tl.load(box + 2) - x0), columns.to(tl.float32))
    cell_y = tl.div_rn(_at_least_1(tl.load(box + 3) - y0), rows.to(tl.float32))
    tl.store(points + number * 2, (x.to(tl.float32) + 0.5 + dx) * cell_x + x0)
    tl.store(points + number * 2 + 1, (y.to(tl.float32) + 0.5 + dy) * cell_y + y0)
    tl.store(values + number, height)


@jit()
def _at(heatmap, cell):
    return tl.load(heatmap + cell).to(tl.float32)


@jit()
def _half_a_cell(step):
    return tl.minimum(tl.maximum(step, -0.5, propagate_nan=tl.PropagateNan.ALL), 0.5, propagate_nan=tl.PropagateNan.ALL)


@jit()
def _at_least_1(side):
    return tl.maximum(side, 1.0, propagate_nan=tl.PropagateNan.ALL)


@jit("points", "kinds", "size")
def cells_of(cells, valid, keypoints, boxes, points, kinds, size, points_at_once: tl.constexpr):
    """Write the heatmap cells of some keypoints, and which count."""
    point = tl.program_id(0) * points_at_once + tl.arange(0, points_at_once)
    known = point < points
    length = tl.zeros((points_at_once,), tl.float32) + size
    box, keypoint = boxes + point // kinds * 4, keypoints + point.to(tl.int64) * 3
    x, inside_x = _cell_along(keypoint, box, length, known)
    y, inside_y = _cell_along(keypoint + 1, box + 1, length, known)
    counts = inside_x & inside_y & (tl.load(keypoint + 2, known, 0.0) > 0)
    cell = tl.where(counts, y.to(tl.int64) * size + x.to(tl.int64), 0)
    tl.store(cells + point, cell, known)
    tl.store(valid + point, counts.to(tl.uint8), known)


@jit()
def _cell_along(keypoint, box, size, known):
    """The cell along one axis, and whether the point lies on the box and rounding does not carry it past the end."""
    at, low, high = tl.load(keypoint, known, 0.0), tl.load(box, known, 0.0), tl.load(box + 2, known, 0.0)
    side = high - low
    inside = (at >= low) & (at <= high) & (side > 0) & (side - side == 0)
    cell = tl.floor((at - low) * tl.div_rn(size, side))
    cell = tl.where(at == high, size - 1.0, cell)
    inside &= cell < size
    return tl.where(inside, cell, 0.0), inside
