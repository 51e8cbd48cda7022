"""Outlines as pixels: COCO's polygons and run-length codes, checked before they reach C code that does not check."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco

from delineate.data.dataset import Polygon, Rle
from delineate.data.decode import Array
from delineate.errors import DataError
from delineate.ops.rle import rle_runs


def segmentation_rle(segmentation: tuple[Polygon, ...] | Rle, size: tuple[int, int]) -> Rle:
    """Return the compressed run-length code of polygons (their union) or of a run-length code of either kind.

    `size` is height and width of the picture. Polygons with fewer than three points cover nothing. Raises `DataError` for a
    code that is damaged or of another size, and for coordinates that are not finite.
    """
    if isinstance(segmentation, dict):
        return _checked_rle(segmentation, size)
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not all(len(p) % 2 == 0 and np.isfinite(p).all() for p in polygons):
        raise DataError("a polygon needs pairs of finite numbers x, y")
    if not polygons:
        return encode_mask(np.zeros(size, bool))
    # Far outside the picture C's integers overflow; the margin keeps edges that cross the picture nearly where they were.
    limits = np.array([[-size[1], 2 * size[1]], [-size[0], 2 * size[0]]], float)
    clipped = [np.reshape(p, (-1, 2)).clip(limits[:, 0], limits[:, 1]).ravel().tolist() for p in polygons]
    return _plain(coco.merge(coco.frPyObjects(clipped, *size)))


def encode_mask(mask: Array) -> Rle:
    """Return the compressed run-length code of a `(H, W)` mask: {"size": [h, w], "counts": bytes}."""
    return _plain(coco.encode(np.asfortranarray(mask, np.uint8)))


def decode_rle(rle: Rle) -> Array:
    """Return the `(H, W)` bool mask of a compressed run-length code of `segmentation_rle` or `encode_mask`."""
    return coco.decode(rle).astype(bool)  # pyright: ignore[reportArgumentType]


def rle_area(rle: Rle) -> int:
    """Return the number of pixels of a compressed run-length code."""
    return int(coco.area(rle))  # pyright: ignore[reportArgumentType]


def rle_box(rle: Rle) -> tuple[float, float, float, float]:
    """Return the xyxy box around a compressed run-length code."""
    x, y, width, height = np.asarray(coco.toBbox(rle)).tolist()  # pyright: ignore[reportArgumentType]
    return x, y, x + width, y + height


def union_area(rles: list[Rle]) -> int:
    """Return the number of pixels that at least one of the codes covers."""
    return rle_area(coco.merge(rles)) if rles else 0  # pyright: ignore[reportArgumentType]


def _checked_rle(rle: Rle, size: tuple[int, int]) -> Rle:
    if list(rle.get("size", ())) != list(size):
        raise DataError(f"its run-length code is for {rle.get('size')}, the picture is {list(size)} (height, width)")
    return _plain(coco.frPyObjects({"size": list(size), "counts": rle_runs(rle).tolist()}, *size))  # pyright: ignore[reportCallIssue, reportArgumentType]


def _plain(rle: Any) -> Rle:
    """pycocotools' types are narrower than what it takes and gives."""
    return rle
