"""Polygons as masks; `delineate.ops.polygons` is the way back."""

from __future__ import annotations

from collections.abc import Sequence

from delineate.data.dataset import Polygon
from delineate.data.decode import Array
from delineate.data.raster import decode_rle, segmentation_rle


def polygons_to_mask(polygons: Sequence[Polygon], size: tuple[int, int]) -> Array:
    """Return the `(H, W)` bool mask of the union of polygons, by COCO's rasteriser; odd or infinite numbers are a `DataError`.

    >>> polygons_to_mask([[1, 0, 3, 0, 3, 1, 1, 1]], (2, 3)).astype(int).tolist()
    [[0, 1, 1], [0, 0, 0]]
    """
    return decode_rle(segmentation_rle(tuple(polygons), size))
