"""Non-maximum suppression on a GPU, by Triton: what `suppress_reference` computes, for all pictures at once, without waiting.

Boxes are in falling order of score, and are settled `_BLOCK` at a time. `overlaps` writes, for each pair of tiles of 64 boxes,
which of the second each of the first would suppress: a word of 64 bits a box. `settle` goes through a picture's tiles: what the
boxes that stay in earlier tiles suppress is gathered from their words, and within a tile the rest is found as by the plain form
(to begin with all stay; after k rounds the first k are right). `sweep` then marks what a settled block suppresses in the blocks
after it. Nothing depends on the order in which programs run; memory is 2 MB a picture, and the number of launches depends on
the number of boxes alone.

No GPU has run these kernels yet.
"""

# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import torch
from torch import Tensor

from delineate.ops.triton_jit import EXACT, available, jit, tl

__all__ = ["available", "suppress"]

_TILE = 64  # boxes of a word of bits
_BLOCK = 4096  # boxes that are settled before what they suppress is looked for
_TILES_AT_ONCE = 8  # earlier tiles whose words are on their way together
_COLUMNS, _ROWS = 128, 32  # boxes that may go, of a program, and boxes that it holds against them at a time


def suppress(boxes: Tensor, classes: Tensor, threshold: float, kept: Tensor) -> Tensor:
    """Write to `kept` (B, N) bool which of `boxes` (B, N, 4) float32 stay, and return it; `classes` (B, N) int64."""
    pictures, count = classes.shape
    if kept.numel() == 0:
        return kept
    boxes, classes, stays = boxes.contiguous(), classes.contiguous(), kept.view(torch.uint8)
    gone = torch.zeros_like(stays)
    tiles = -(-min(count, _BLOCK) // _TILE)
    bits = torch.empty(pictures, tiles, tiles * _TILE, dtype=torch.int64, device=boxes.device)
    with torch.cuda.device_of(boxes):
        for start in range(0, count, _BLOCK):
            overlaps[(pictures, tiles, tiles)](bits, boxes, classes, threshold, count, start, tiles, _TILE, **EXACT)
            settle[(pictures,)](stays, bits, gone, count, start, tiles, _TILE, _TILES_AT_ONCE)
            end = start + _BLOCK
            if end < count:
                grid = pictures, -(-(count - end) // _COLUMNS)
                sweep[grid](gone, stays, boxes, classes, threshold, count, start, end, _COLUMNS, _ROWS, **EXACT)
    return kept


@jit()
def _load(boxes, classes, box, count):
    """The corners, areas and classes of boxes, all 0 after the last: these overlap nothing and come after all others."""
    known = box < count
    x0, y0 = tl.load(boxes + 4 * box, known, 0.0), tl.load(boxes + 4 * box + 1, known, 0.0)
    x1, y1 = tl.load(boxes + 4 * box + 2, known, 0.0), tl.load(boxes + 4 * box + 3, known, 0.0)
    return x0, y0, x1, y1, (x1 - x0) * (y1 - y0), tl.load(classes + box, known, 0)


@jit()
def _above(rows, columns, threshold):
    """Which boxes (rows, 1) and (1, columns) of one class have an IoU above the threshold; with NaN, which areas keep, none."""
    ax0, ay0, ax1, ay1, area_a, class_a = rows
    bx0, by0, bx1, by1, area_b, class_b = columns
    width = tl.minimum(ax1[:, None], bx1[None, :]) - tl.maximum(ax0[:, None], bx0[None, :])
    height = tl.minimum(ay1[:, None], by1[None, :]) - tl.maximum(ay0[:, None], by0[None, :])
    shared = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    iou = tl.div_rn(shared, area_a[:, None] + area_b[None, :] - shared)
    return (iou > threshold) & (class_a[:, None] == class_b[None, :])


@jit("count", "start", "tiles")
def overlaps(bits, boxes, classes, threshold, count, start, tiles, tile: tl.constexpr):
    """Write which boxes of tile j each box of tile i would suppress: those of its class after it that overlap it enough."""
    picture, i, j = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    if j >= i:
        boxes += picture * count * 4
        classes += picture * count
        lane = tl.arange(0, tile)
        row, column = i * tile + lane, j * tile + lane
        rows, columns = _load(boxes, classes, start + row, count), _load(boxes, classes, start + column, count)
        above = _above(rows, columns, threshold) & (column[None, :] > row[:, None])
        word = tl.sum(above.to(tl.int64) << lane.to(tl.int64)[None, :], 1)
        tl.store(bits + (picture * tiles + j) * tiles * tile + row, word)


@jit()
def _unpacked(word, lane):
    """The bits (words, bits), 0 or 1, of words."""
    return ((word[:, None] >> lane.to(tl.int64)[None, :]) & 1).to(tl.int32)


@jit("count", "start", "tiles")
def settle(stays, bits, gone, count, start, tiles, tile: tl.constexpr, tiles_at_once: tl.constexpr):
    """Write which boxes of a picture's block stay, tile by tile."""
    picture, lane = tl.program_id(0).to(tl.int64), tl.arange(0, tile)
    stays += picture * count + start
    gone += picture * count + start
    bits += picture * tiles * tiles * tile
    for i in range(tiles):
        known = start + i * tile + lane < count
        column = bits + i * tiles * tile + lane
        suppressing = tl.zeros((tile,), tl.int64)
        for first in range(0, i, tiles_at_once):
            for earlier in tl.static_range(tiles_at_once):
                here = (first + earlier) * tile
                stay = tl.load(stays + here + lane, first + earlier < i, 0)
                suppressing |= tl.where(stay != 0, tl.load(column + here, first + earlier < i, 0), 0)
        out = tl.max(_unpacked(suppressing, lane), 0) | tl.load(gone + i * tile + lane, known, 0).to(tl.int32)
        within = _unpacked(tl.load(column + i * tile), lane)
        stay, changed = 1 - out, 1
        while changed != 0:
            following = 1 - (out | tl.max(within * stay[:, None], 0))
            changed = tl.max(tl.abs(following - stay), 0)
            stay = following
        tl.store(stays + i * tile + lane, stay.to(tl.uint8), known)
        tl.debug_barrier()  # other threads of this program read them for the next tile


@jit("count", "start", "end")
def sweep(
    gone, stays, boxes, classes, threshold, count, start, end, columns_at_once: tl.constexpr, rows_at_once: tl.constexpr
):  # fmt: skip
    """Mark the boxes after a block that those of it that stay suppress."""
    picture = tl.program_id(0).to(tl.int64)
    boxes += picture * count * 4
    classes += picture * count
    column = end + tl.program_id(1) * columns_at_once + tl.arange(0, columns_at_once)
    columns = _load(boxes, classes, column, count)
    marked = tl.load(gone + picture * count + column, column < count, 0).to(tl.int32)
    for first in range(start, end, rows_at_once):
        row = first + tl.arange(0, rows_at_once)
        stay = tl.load(stays + picture * count + row)
        if tl.max(stay.to(tl.int32), 0) > 0:
            above = _above(_load(boxes, classes, row, count), columns, threshold) & (stay != 0)[:, None]
            marked |= tl.max(above.to(tl.int32), 0)
    tl.store(gone + picture * count + column, marked.to(tl.uint8), column < count)
