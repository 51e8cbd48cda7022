"""Pasting small masks over boxes on a GPU, by Triton: what `paste_reference` computes, to the last bit.

Each pixel of the picture is interpolated from the four cells around it, in the order of the plain form, and written once. A
program has a tile of one mask's picture; one that the box does not touch only writes zeros.

No GPU has run these kernels yet.
"""

# pyright: reportInvalidTypeForm=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from delineate.ops.masks import Placement
from delineate.ops.triton_jit import EXACT, available, jit, tl

__all__ = ["available", "paste"]

_ROWS, _COLUMNS = 8, 128  # pixels of a program


def paste(masks: Tensor, place: Placement, size: tuple[int, int], threshold: float) -> Tensor:
    """Return the masks (N, S, T), of any floating type, pasted into a picture: (N, height, width) bool."""
    height, width = size
    pasted = masks.new_empty(len(masks), height, width, dtype=torch.bool)
    if pasted.numel():
        grid = len(masks), -(-height // _ROWS), -(-width // _COLUMNS)
        with torch.cuda.device_of(masks):
            paste_tile[grid](
                pasted.view(torch.uint8), *arguments(masks, place, threshold), height, width, _ROWS, _COLUMNS, **EXACT
            )
    return pasted


def arguments(masks: Tensor, place: Placement, threshold: float) -> tuple[Any, ...]:
    """Masks and where they lie, as kernels take them: `masks` to `threshold`."""
    columns, rows = place.cells
    lattice = float(columns), float(rows), place.shift
    return (
        masks.contiguous(),
        masks.shape[1],
        masks.shape[2],
        place.origin,
        place.extent,
        place.first,
        place.last,
        *lattice,
        threshold,
    )


# An axis is a tuple: where the lattice begins and how far it extends, the pixels first..last - 1 that it may cover, the cells
# on its extent, the shift of their coordinates, and the number of cells that have values.


@jit()
def axis_of(mask, axis: tl.constexpr, origin, extent, first, last, cells, shift, count):
    """Axis 0 (x) or 1 (y) of a mask."""
    i = mask * 2 + axis
    return tl.load(origin + i), tl.load(extent + i), tl.load(first + i), tl.load(last + i), cells, shift, count


@jit()
def coordinate(pixel, axis):
    """Where the centre of a pixel lies on the lattice."""
    origin, extent, _, _, cells, shift, _ = axis
    return tl.div_rn(pixel.to(tl.float32) + 0.5 - origin, extent) * cells - shift


@jit()
def cell_below(pixel, axis):
    """The padded cell below each pixel, how far from there to the next, and whether the lattice covers it; else 0, 0.0."""
    _, _, first, last, _, _, count = axis
    at = coordinate(pixel, axis)
    inside = (at >= -1.0) & (at < count) & (pixel >= first) & (pixel < last)
    at = tl.where(inside, at, -1.0)
    below = tl.floor(at)
    return below.to(tl.int32) + 1, at - below, inside


@jit()
def interpolate(low, high, fraction):
    return low + fraction * (high - low)


@jit()
def across_row(cells, rows, columns, row, column, fraction):
    """A padded row of the mask (rows, columns), interpolated between a padded column and the next."""
    within = (row >= 1) & (row <= rows)
    line = cells + (row - 1) * columns + column - 1
    low = tl.load(line, within & (column >= 1), 0.0).to(tl.float32)
    high = tl.load(line + 1, within & (column < columns), 0.0).to(tl.float32)
    return interpolate(low, high, fraction)


@jit("rows", "columns", "height", "width")
def paste_tile(
    pasted, masks, rows, columns, origin, extent, first, last, cells_x, cells_y, shift, threshold, height, width,
    rows_at_once: tl.constexpr, columns_at_once: tl.constexpr,
):  # fmt: skip
    """Write which pixels of a tile of a picture are at least the threshold."""
    mask = tl.program_id(0).to(tl.int64)
    y = tl.program_id(1) * rows_at_once + tl.arange(0, rows_at_once)
    x = tl.program_id(2) * columns_at_once + tl.arange(0, columns_at_once)
    row, down, covered_y = cell_below(y, axis_of(mask, 1, origin, extent, first, last, cells_y, shift, rows))
    column, across, covered_x = cell_below(x, axis_of(mask, 0, origin, extent, first, last, cells_x, shift, columns))
    covered = tl.max(covered_y.to(tl.int32), 0) * tl.max(covered_x.to(tl.int32), 0)
    inside = tl.zeros((rows_at_once, columns_at_once), tl.uint8)
    if covered > 0:
        cells = masks + mask * rows * columns
        low = across_row(cells, rows, columns, row[:, None], column[None, :], across[None, :])
        high = across_row(cells, rows, columns, row[:, None] + 1, column[None, :], across[None, :])
        inside = (interpolate(low, high, down[:, None]) >= threshold).to(tl.uint8)
    place = pasted + mask * height * width + y.to(tl.int64)[:, None] * width + x[None, :]
    tl.store(place, inside, (y < height)[:, None] & (x < width)[None, :])
