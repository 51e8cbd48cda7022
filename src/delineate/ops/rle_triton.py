"""Run-length codes on a GPU, by Triton: from masks, and from small masks over boxes without pasting them.

A mask's code follows from its edges, the places in column-major order where it changes. For small masks over boxes
`paste_edges` counts them, and, once it is known where each program's begin, runs again and writes them. Between two rows of
cells the values of a column are monotonic: a segment whose ends agree has no edge within, and else halving finds the one it
has, for all segments of some columns together. So a column costs as much as the small mask is high. `spell` then counts and
writes the characters of each run. Only texts leave the GPU, which is waited for twice: for the number of edges, and of
characters.

No GPU has run these kernels yet.
"""

# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import torch
from torch import Tensor

from delineate.ops.masks import Placement
from delineate.ops.masks_triton import across_row, arguments, axis_of, cell_below, coordinate, interpolate
from delineate.ops.triton_jit import EXACT, available, jit, power_of_two, tl

__all__ = ["available", "edges_to_text", "pasted_edges"]

_LANES = 512  # segments of a program
_RUNS = 256  # of a program
_CHARACTERS = 10  # of the longest number: runs of 2^49 pixels


def pasted_edges(masks: Tensor, place: Placement, size: tuple[int, int], threshold: float) -> tuple[Tensor, Tensor]:
    """Return the edges (E,) int64 of masks (N, S, T) pasted into a picture, mask by mask, and how many each has, (N,)."""
    height, width = size
    lanes = power_of_two(masks.shape[1] + 2)
    columns = max(1, _LANES // lanes)
    grid = len(masks), -(-width // columns)
    counts = torch.zeros(grid, dtype=torch.int64, device=masks.device)
    if counts.numel() == 0:
        return counts.flatten(), counts.sum(1)
    given = *arguments(masks, place, threshold), height, width, lanes, columns
    with torch.cuda.device_of(masks):
        paste_edges[grid](counts, counts, *given, False, **EXACT)
        ends = counts.flatten().cumsum(0)
        edges = torch.empty(int(ends[-1]), dtype=torch.int64, device=masks.device)  # waits
        if len(edges):
            paste_edges[grid](edges, ends - counts.flatten(), *given, True, **EXACT)
    return edges, counts.sum(1)


def edges_to_text(edges: Tensor, counts: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Return the text (characters,) uint8 of codes of masks of `pixels` pixels, and where each ends, (N,), both on the CPU.

    `edges` are those of all masks, `counts` (N,) how many each has: its runs are one more.
    """
    count = len(edges) + len(counts)
    if count == 0:
        return torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    owners = torch.arange(len(counts), device=edges.device).repeat_interleave(counts + 1, output_size=count)
    ends = torch.empty(count, dtype=torch.int64, device=edges.device)
    given = edges, bounds, owners, count, pixels
    grid = (-(-count // _RUNS),)
    with torch.cuda.device_of(edges):
        spell[grid](ends, ends, *given, _RUNS, _CHARACTERS, False)
        ends = ends.cumsum(0)
        text = torch.empty(int(ends[-1]), dtype=torch.uint8, device=edges.device)  # waits
        spell[grid](text, ends, *given, _RUNS, _CHARACTERS, True)
    last = bounds[1:] + torch.arange(len(counts), device=edges.device)  # the last run of each mask
    return text.cpu(), ends[last].cpu()


@jit()
def _first_row(segment, axis):
    """The first pixel of an axis that lies on padded cell `segment` or after it."""
    _, _, first, last, _, _, _ = axis
    low, high = segment * 0 + first, segment * 0 + last
    while tl.max(high - low, 0) > 0:
        middle = (low + high) // 2
        reached = coordinate(middle, axis) >= (segment - 1).to(tl.float32)
        open = low < high
        low = tl.where(open & (reached == 0), middle + 1, low)
        high = tl.where(open & reached, middle, high)
    return low


@jit()
def _covers(cells, rows, columns, x, y, axis_x, axis_y, threshold):
    """Whether pixels belong to the mask."""
    row, down, covered_y = cell_below(y, axis_y)
    column, across, covered_x = cell_below(x, axis_x)
    low = across_row(cells, rows, columns, row, column, across)
    high = across_row(cells, rows, columns, row + 1, column, across)
    return (interpolate(low, high, down) >= threshold) & covered_x & covered_y


@jit()
def _within(cells, rows, columns, x, first, last, segment, axis_x, axis_y, threshold):
    """Whether the first pixel of a segment first..last belongs to the mask, and the first where that changes, or `first`."""
    column, across, _ = cell_below(x, axis_x)
    low = across_row(cells, rows, columns, segment, column, across)
    high = across_row(cells, rows, columns, segment + 1, column, across)
    begins = interpolate(low, high, cell_below(first, axis_y)[1]) >= threshold
    ends = interpolate(low, high, cell_below(last, axis_y)[1]) >= threshold
    before, after = first, tl.where(begins == ends, first, last)
    while tl.max(after - before, 0) > 1:
        middle = (before + after) // 2
        same = (interpolate(low, high, cell_below(middle, axis_y)[1]) >= threshold) == begins
        open = after - before > 1
        before = tl.where(open & same, middle, before)
        after = tl.where(open & (same == 0), middle, after)
    return begins, after


@jit("rows", "columns", "height", "width")
def paste_edges(
    result, begins, masks, rows, columns, origin, extent, first, last, cells_x, cells_y, shift, threshold, height, width,
    lanes: tl.constexpr, columns_at_once: tl.constexpr, write: tl.constexpr,
):  # fmt: skip
    """Count the edges in some columns of a mask, or, with `write`, write them from where `begins` says that they begin.

    A column has a lane for each padded row of cells, whose pixels are a segment, and one for what follows the last. An edge
    before a segment is its lane's, and so is the one within it.
    """
    mask, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cells = masks + mask * rows * columns
    axis_x = axis_of(mask, 0, origin, extent, first, last, cells_x, shift, columns)
    axis_y = axis_of(mask, 1, origin, extent, first, last, cells_y, shift, rows)
    lane = tl.arange(0, lanes * columns_at_once)
    x, segment = axis_x[2] + block * columns_at_once + lane // lanes, lane % lanes
    if axis_x[2] + block * columns_at_once < axis_x[3]:
        top, end = _first_row(segment, axis_y), _first_row(tl.minimum(segment + 1, rows + 1), axis_y)
        covered_x, next_covered = cell_below(x, axis_x)[2], cell_below(x + 1, axis_x)[2]
        exists = (segment <= rows) & (top < end) & covered_x
        now, change = _within(cells, rows, columns, x, top, tl.maximum(end - 1, top), segment, axis_x, axis_y, threshold)
        # the pixel before, which may be the last of the column before
        wraps = top == 0
        previous = _covers(
            cells, rows, columns, tl.where(wraps, x - 1, x), tl.where(wraps, height, top) - 1, axis_x, axis_y, threshold
        )
        # after the last row the mask ends, unless the column reaches from edge to edge and the next one goes on
        goes_on = (top == height) & (_first_row(segment * 0, axis_y) == 0) & next_covered
        closes = (
            (segment == rows + 1) & covered_x & (goes_on == 0) & (x.to(tl.int64) * height + top < height.to(tl.int64) * width)
        )
        outer = (exists & (now != previous)) | (closes & previous)
        inner = exists & (change > top)
        count = outer.to(tl.int32) + inner.to(tl.int32)
        if write:
            place = tl.load(begins + mask * tl.num_programs(1) + block) + tl.cumsum(count, 0) - count
            tl.store(result + place, x.to(tl.int64) * height + top, outer)
            tl.store(result + place + outer.to(tl.int32), x.to(tl.int64) * height + change, inner)
        else:
            tl.store(result + mask * tl.num_programs(1) + block, tl.sum(count, 0).to(tl.int64))


@jit("count")
def spell(
    result, ends, edges, bounds, owners, count, pixels, runs_at_once: tl.constexpr, most: tl.constexpr, write: tl.constexpr
):  # fmt: skip
    """Count the characters of some runs, or, with `write`, write them so that they end where `ends` says."""
    run = tl.program_id(0) * runs_at_once + tl.arange(0, runs_at_once)
    known = run < count
    owner = tl.load(owners + run, known, 0)
    begin, end = tl.load(bounds + owner, known, 0), tl.load(bounds + owner + 1, known, 0)
    number = run - begin - owner  # within its mask: from edge number - 1 to edge number
    edge = edges + begin + number
    to = tl.where(number < end - begin, tl.load(edge, known & (number < end - begin), 0), pixels)
    value = to - tl.load(edge - 1, known & (number > 0), 0)
    two_before = tl.load(edge - 2, known & (number > 2), 0) - tl.load(edge - 3, known & (number > 2), 0)
    value -= two_before
    digits = tl.full((runs_at_once,), 1, tl.int32)
    for k in tl.static_range(1, most):  # signed numbers of 5 k bits leave only the sign
        rest = value >> (5 * k - 1)
        digits += ((rest != 0) & (rest != -1)).to(tl.int32)
    if write:
        start = tl.load(ends + run, known, 0) - digits
        for k in tl.static_range(most):
            more = (k + 1 < digits).to(tl.int32)
            character = 48 + ((value >> (5 * k)) & 31).to(tl.int32) + 32 * more
            tl.store(result + start + k, character.to(tl.uint8), known & (k < digits))
    else:
        tl.store(result + run, digits.to(tl.int64), known)
