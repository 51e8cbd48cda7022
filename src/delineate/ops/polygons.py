"""Masks as polygons along pixel edges: the outlines of a mask, exact to the pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.ndimage import label as label_pieces

from delineate.ops.rle import Rle, decode_rle, rle_boxes

Array = NDArray[Any]
Polygon = list[float]  # x0, y0, x1, y1, ... in pixels


def rle_polygons(rle: Rle) -> tuple[list[Polygon], list[Polygon]]:
    """Return the outlines of a run-length code, as `mask_to_polygons` does, in pixels of the picture.

    With `paste_rle` these are the polygons of small masks over boxes; one mask of the picture's size exists at a time.

    >>> rle_polygons({"size": [2, 3], "counts": "213"})
    ([[1.0, 0.0, 2.0, 0.0, 2.0, 1.0, 1.0, 1.0]], [])
    """
    left, top, right, bottom = rle_boxes([rle])[0].astype(int).tolist()
    outer, holes = mask_to_polygons(decode_rle([rle])[0, top:bottom, left:right].numpy())

    def moved(polygons: list[Polygon]) -> list[Polygon]:
        return [np.add(np.reshape(polygon, (-1, 2)), (left, top)).ravel().tolist() for polygon in polygons]

    return moved(outer), moved(holes)


def mask_to_polygons(mask: Array) -> tuple[list[Polygon], list[Polygon]]:
    """Return the outlines of a mask: the outer one of each 8-connected piece, and those of the holes.

    `mask` is `(H, W)` bool. A polygon is x0, y0, x1, y1, ... along pixel edges, (0, 0) being the outer corner of the first
    pixel, so that COCO's rasteriser gives the very pixels back. Its points are the corners, its sides alternately
    horizontal and vertical.

    >>> mask_to_polygons(np.array([[0, 1, 1], [0, 0, 0]], bool))
    ([[1.0, 0.0, 3.0, 0.0, 3.0, 1.0, 1.0, 1.0]], [])
    """
    outer: list[Polygon] = []
    holes: list[Polygon] = []
    if not mask.any():
        return outer, holes
    pieces, _ = label_pieces(mask, np.ones((3, 3)))  # pyright: ignore
    for number, window in enumerate(find_objects(pieces), 1):
        rows, columns = window
        piece = pieces[window] == number
        for loop in _trace(piece):
            x, y = loop[0]
            polygon = np.add(loop, (columns.start, rows.start)).astype(float).ravel().tolist()
            # A loop begins at its topmost, leftmost corner; the pixel below and right of it lies inside the loop.
            (outer if piece[y, x] else holes).append(polygon)
    return outer, holes


def _trace(mask: Array) -> list[Array]:
    """Return the closed outlines of a mask as `(N, 2)` arrays of corners x, y.

    A grid point is a corner where the pixels around it turn. Along a row of the grid, corners pair up as the ends of
    horizontal edges; along a column, as those of vertical edges. A point where two pixels meet by their corners alone
    counts twice, once for each pixel's turn.
    """
    padded = np.pad(mask, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    crossing = (nw == se) & (ne == sw) & (nw != ne)
    corner = crossing | ((nw ^ ne) ^ (sw ^ se))
    ys, xs = np.nonzero(corner)
    twice = np.where(crossing[ys, xs], 2, 1)
    ys, xs, falling = np.repeat(ys, twice), np.repeat(xs, twice), np.repeat(nw[ys, xs], twice)
    second = np.zeros(len(xs), bool)
    second[1:] = (xs[1:] == xs[:-1]) & (ys[1:] == ys[:-1])

    along_rows = np.arange(len(xs)).reshape(-1, 2)  # nonzero's order: the first copy of a crossing ends the edge on its left
    # Pieces are 8-connected, so that at a crossing the outline keeps the two set pixels together: where the north-west one
    # is set, left joins down and up joins right, so the first copy takes the lower edge; else the first takes the upper one.
    doubled = crossing[ys, xs]
    lower = np.where(falling, ~second, second) & doubled
    order = np.lexsort((lower, ys, xs))
    along_columns = order.reshape(-1, 2)

    beside, above = np.empty(len(xs), np.int64), np.empty(len(xs), np.int64)
    beside[along_rows], beside[along_rows[:, ::-1]] = along_rows[:, ::-1], along_rows
    above[along_columns], above[along_columns[:, ::-1]] = along_columns[:, ::-1], along_columns
    return _follow(np.stack([xs, ys], 1), beside.tolist(), above.tolist())


def _follow(points: Array, beside: list[int], above: list[int]) -> list[Array]:
    """Walk from corner to corner, alternately along horizontal and vertical edges, until each loop closes."""
    loops = []
    visited = bytearray(len(points))
    for start in range(len(points)):
        if visited[start]:
            continue
        loop, here = [], start
        while not visited[here]:
            across = beside[here]
            visited[here] = visited[across] = 1
            loop += [here, across]
            here = above[across]
        loops.append(points[loop])
    return loops
