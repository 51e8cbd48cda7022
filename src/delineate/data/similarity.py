"""Pictures that look alike: a difference hash of their brightness."""

from __future__ import annotations

import numpy as np
from PIL import Image

from delineate.data.decode import Array

SIDE = 16
THRESHOLD = 12
"""Pictures whose hashes differ in at most this many of 256 bits count as near-duplicates."""

_BLOCK = 256


def difference_hash(pixels: Array) -> Array:
    """Return 256 bits, `(4,)` uint64: whether each cell of a 16 x 16 grid is darker than the cell on its right.

    `pixels` is `(H, W)` or `(H, W, 3)`. The hash stays nearly the same under scaling, compression and changes of brightness.
    """
    grey = pixels.astype(np.float32)
    grey = grey.mean(2) if grey.ndim == 3 else grey
    cells = np.asarray(Image.fromarray(grey).resize((SIDE + 1, SIDE), Image.Resampling.BOX))
    return np.packbits(cells[:, :-1] < cells[:, 1:]).view(np.uint64)


def near_pairs(hashes: Array, threshold: int = THRESHOLD) -> list[tuple[int, int]]:
    """Return the pairs i < j of rows of `(N, 4)` hashes that differ in at most `threshold` bits."""
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(hashes), _BLOCK):
        differing = np.bitwise_count(hashes[start : start + _BLOCK, None] ^ hashes[None]).sum(-1, dtype=np.int32)
        rows, columns = np.nonzero(differing <= threshold)
        pairs += [(start + i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if start + i < j]
    return pairs
