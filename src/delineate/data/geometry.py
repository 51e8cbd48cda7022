"""What can be wrong with a polygon."""

from __future__ import annotations

import numpy as np

from delineate.data.dataset import Polygon
from delineate.data.decode import Array

_BLOCK = 512  # edges compared with all others at a time


def polygon_area(polygon: Polygon) -> float:
    """Return the area that a polygon x0, y0, x1, y1, ... encloses; parts of a figure of eight cancel.

    >>> polygon_area([0, 0, 4, 0, 4, 3, 0, 3])
    12.0
    """
    points = np.reshape(polygon, (-1, 2)).astype(float)
    x, y = (points - points.mean(0)).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def crosses_itself(polygon: Polygon) -> bool:
    """Whether two edges of a polygon cross; that edges touch, as those of two pixels that meet at a corner, is no crossing.

    >>> crosses_itself([0, 0, 2, 2, 2, 0, 0, 2]), crosses_itself([0, 0, 2, 0, 2, 2, 0, 2])
    (True, False)
    """
    start = np.reshape(polygon, (-1, 2)).astype(float)
    end = np.roll(start, -1, 0)
    return any(
        _cross(start[i : i + _BLOCK, None], end[i : i + _BLOCK, None], start[None], end[None]).any()
        for i in range(0, len(start), _BLOCK)
    )


def _cross(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Whether c and d lie strictly on two sides of the line a-b, and a and b on two sides of c-d."""
    return (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)


def _side(a: Array, b: Array, point: Array) -> Array:
    across = (b[..., 0] - a[..., 0]) * (point[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (point[..., 0] - a[..., 0])
    return np.sign(across)
