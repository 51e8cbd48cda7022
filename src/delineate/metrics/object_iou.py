"""IoU of every pair of two sets of instance masks, whose pictures are never laid side by side: run lengths are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from delineate.errors import DataError

Rle = Mapping[str, Any]
MaskSet = NDArray[Any] | Tensor | Sequence[Rle] | Sequence[NDArray[Any]]


def mask_iou(a: MaskSet, b: MaskSet, crowd: Sequence[bool | int] | NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Return the IoU of each mask of `a` with each of `b`, (N, M); 0 where both are empty.

    Masks are (N, H, W) bool or integers of which all but 0 are inside, a list of such (H, W), or COCO's run-length codes
    ({"size": [height, width], "counts": text, bytes or numbers}). Where `crowd` (M,) is true, b stands for a group, and the
    entry is the share of the mask of `a` that lies in it, as in COCO. Raises `DataError` where two masks are of different
    sizes, `ValueError` for other shapes.

    >>> masks = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 1]]], bool)
    >>> mask_iou(masks, masks)
    array([[1.  , 0.25],
           [0.25, 1.  ]])
    >>> mask_iou(masks, masks, crowd=[False, True])
    array([[1.  , 0.5 ],
           [0.25, 1.  ]])
    """
    of_a, of_b = mask_codes(a), mask_codes(b)
    sizes = {tuple(code["size"]) for code in (*of_a, *of_b)}
    if len(sizes) > 1:
        raise DataError(f"masks are of different sizes: {', '.join(map(str, sorted(sizes)[:3]))} (height, width)")
    groups = [False] * len(of_b) if crowd is None else [bool(c) for c in crowd]
    if len(groups) != len(of_b):
        raise ValueError(f"crowd has {len(groups)} entries for {len(of_b)} masks")
    if not of_a or not of_b:
        return np.zeros((len(of_a), len(of_b)))
    return hotcoco.primitives.mask_iou(of_a, of_b, groups)


def mask_areas(masks: MaskSet) -> NDArray[np.int64]:
    """Return the pixels of each mask, (N,); masks as in `mask_iou`.

    >>> mask_areas(np.ones((2, 3, 4), bool))
    array([12, 12])
    """
    return np.array([hotcoco.mask.area(code) for code in mask_codes(masks)], np.int64)


def mask_codes(masks: MaskSet) -> list[dict[str, Any]]:
    """Return COCO's compressed run-length codes of masks that are arrays; codes stay as they are."""
    if isinstance(masks, Tensor):
        masks = masks.cpu().numpy()
    if isinstance(masks, np.ndarray) and masks.ndim != 3:
        raise ValueError(f"masks have shape {masks.shape}, expected (N, H, W)")
    return [dict(mask) if isinstance(mask, Mapping) else _encoded(mask) for mask in masks]


def _encoded(mask: Any) -> dict[str, Any]:
    mask = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask has shape {mask.shape}, expected (H, W)")
    return hotcoco.mask.encode(np.asfortranarray(mask != 0))
