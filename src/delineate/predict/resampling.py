"""Bilinear resizing of pictures and maps in parts: the same numbers, up to rounding, as of the whole by torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from delineate.data.windows import ImageReader


class Taps(NamedTuple):
    """For each of some places of a resized axis, the two places of the original that it lies between."""

    low: Tensor  # (n,) int64
    high: Tensor  # (n,) int64
    weight: Tensor  # (n,) float32, of `high`

    @property
    def first(self) -> int:
        """First place that is needed."""
        return int(self.low[0])

    @property
    def end(self) -> int:
        """Place after the last that is needed."""
        return int(self.high[-1]) + 1


def find_taps(size: int, new_size: int, start: int, stop: int, *, align_corners: bool = False) -> Taps:
    """Return the taps of the places `start` to `stop` of an axis of `size` that is resized to `new_size`.

    >>> find_taps(2, 4, 0, 3).weight.tolist()
    [0.0, 0.25, 0.75]
    """
    places = torch.arange(start, stop, dtype=torch.float32)
    if align_corners:
        source = places * ((size - 1) / max(1, new_size - 1))
    else:
        source = ((places + 0.5) * torch.tensor(size / new_size) - 0.5).clamp(min=0)
    low = source.long().clamp(max=size - 1)
    return Taps(low, (low + 1).clamp(max=size - 1), source - low)


def resize_rows(x: Tensor, first: int, height: int, width: int, taps: Taps, *, align_corners: bool = False) -> Tensor:
    """Return some rows (C, n, `width`) of a resized map, of which `x` (C, m, w) holds the rows from `first` on.

    `taps` tell which, and `height` is that of the whole map before.
    """
    assert first <= taps.first <= taps.end <= min(height, first + x.shape[1])
    x = x[:, taps.first - first : taps.end - first]
    if x.shape[2] != width:
        x = F.interpolate(x[None], size=(x.shape[1], width), mode="bilinear", align_corners=align_corners)[0]
    weight = taps.weight.to(x.device)[:, None]
    low, high = ((index - taps.first).to(x.device) for index in (taps.low, taps.high))
    return x[:, low] * (1 - weight) + x[:, high] * weight


class ScaledReader:
    """A picture resized to `size` (height, width), read from the parts of the original that are needed; float32."""

    computed = True

    def __init__(self, reader: ImageReader, size: tuple[int, int], *, align_corners: bool = False) -> None:
        self.reader = reader
        self.align_corners = align_corners
        self.shape: tuple[int, int, int] = (reader.shape[0], *size)
        self.dtype = np.dtype(np.float32)
        self._kept: tuple[int, int, NDArray[Any]] | None = None  # first row, end, and these rows (C, n, W) of the original

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        rows = self._taps(1, top, height)
        columns = self._taps(2, left, width)
        part = self._rows(rows.first, rows.end)[:, :, columns.first : columns.end]
        x = torch.from_numpy(np.ascontiguousarray(part)).float()
        x = x[:, :, columns.low - columns.first] * (1 - columns.weight) + x[:, :, columns.high - columns.first] * columns.weight
        return resize_rows(x, rows.first, self.reader.shape[1], width, rows).numpy()

    def _rows(self, first: int, end: int) -> NDArray[Any]:
        """Rows of the original over its whole width, which the windows of a row share."""
        if self._kept is None or self._kept[:2] != (first, end):
            self._kept = None  # before the next are read
            self._kept = first, end, self.reader.read(first, 0, end - first, self.reader.shape[2])
        return self._kept[2]

    def close(self) -> None:
        self.reader.close()

    def _taps(self, axis: int, start: int, count: int) -> Taps:
        sizes = self.reader.shape[axis], self.shape[axis]
        return find_taps(*sizes, start, start + count, align_corners=self.align_corners)
