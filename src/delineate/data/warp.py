"""From a patch to the place in the picture that each of its pixels comes from, and back for points: one resampling a patch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from delineate.data.elastic import ElasticGrid, Floats


@dataclass(frozen=True)
class Warp:
    """An affine map with an optional elastic deformation before it, from patch pixels to picture pixels.

    A pixel at p of the patch (y, x; indices) shows the picture at `centre + matrix @ (p + elastic(p) - middle)`, where `middle`
    is the middle of the patch. What lies outside the picture is mirrored at its border pixels (numpy's "reflect"), as often as
    it takes. Only the pixels of the patch are computed, never the deformed picture.
    """

    patch: tuple[int, int]  # height, width
    picture: tuple[int, int]
    matrix: Floats  # (2, 2), on (y, x)
    centre: Floats  # (2,)
    elastic: ElasticGrid | None = None

    @property
    def mirrors(self) -> bool:
        """True if left and right change places."""
        return bool(np.linalg.det(self.matrix) < 0)

    @property
    def upright(self) -> bool:
        """True if the sides of a box stay upright: no rotation but quarter turns, and no deformation."""
        return self.elastic is None and bool((np.abs(self.matrix) < 1e-6).sum() == 2)

    @property
    def exact(self) -> bool:
        """True if pixels fall on pixels: nothing but shifts, flips and quarter turns."""
        return self.elastic is None and bool(np.isin(self.matrix, (-1, 0, 1)).all())

    @cached_property
    def places(self) -> tuple[Floats, Floats]:
        """Row and column of the picture that each pixel of the patch shows, before mirroring, each (h, w)."""
        y, x = (np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2) for n in self.patch)
        (yy, yx), (xy, xx) = self.matrix
        rows = (self.centre[0] + yy * y)[:, None] + (yx * x)[None]
        columns = (self.centre[1] + xy * y)[:, None] + (xx * x)[None]
        if self.elastic is not None:
            along_y, along_x = self.elastic.dense()
            rows = rows + yy * along_y + yx * along_x
            columns = columns + xy * along_y + xx * along_x
        return rows, columns

    @cached_property
    def mirrored(self) -> tuple[Floats, Floats]:
        """`places` with those outside the picture mirrored into it."""
        rows, columns = self.places
        return _mirror(rows, self.picture[0]), _mirror(columns, self.picture[1])

    @cached_property
    def nearest(self) -> NDArray[np.intp]:
        """Index into the flattened picture of the pixel nearest to each place, (h, w)."""
        rows, columns = (np.rint(places).astype(np.intp) for places in self.mirrored)
        return rows * self.picture[1] + columns

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """Which pixels of the patch show the picture itself and not its mirror image, (h, w)."""
        (rows, columns), (height, width) = self.places, self.picture
        return (rows > -0.5) & (rows < height - 0.5) & (columns > -0.5) & (columns < width - 0.5)

    def take(self, field: NDArray) -> NDArray:
        """Resample (..., H, W) to (..., h, w) by the nearest pixel; for labels, and for pictures where `exact`."""
        return np.take(field.reshape(*field.shape[:-2], field.shape[-2] * field.shape[-1]), self.nearest, axis=-1)

    def interpolate(self, field: Tensor) -> Tensor:
        """Resample (C, H, W) of any dtype to (C, h, w) float32, bilinearly."""
        part = field[:, *self._window].float()
        return F.grid_sample(part[None], self._grid, padding_mode="border", align_corners=False)[0]

    def points(self, points: Floats) -> Floats:
        """Move points (N, 2) of the picture to the patch; x, y, with (0, 0) the outer corner of the first pixel."""
        middle = (np.array(self.patch, np.float32) - 1) / 2
        moved = (points[:, ::-1] - 0.5 - self.centre) @ np.linalg.inv(self.matrix).T + middle
        if self.elastic is not None:
            moved = self.elastic.inverse(moved)
        return (moved[:, ::-1] + 0.5).astype(np.float32)

    @cached_property
    def _window(self) -> tuple[slice, slice]:
        """The part of the picture that is seen."""
        rows, columns = (slice(int(p.min()), int(np.ceil(p.max())) + 1) for p in self.mirrored)
        return rows, columns

    @cached_property
    def _grid(self) -> Tensor:
        """Places as `grid_sample` wants them, (1, h, w, 2): x, y, with -1 and 1 the outer corners of the window."""
        grid = np.empty((1, *self.patch, 2), np.float32)
        for axis, (places, window) in enumerate(zip(self.mirrored, self._window, strict=True)):
            grid[0, ..., 1 - axis] = (places - (window.start - 0.5)) * (2 / (window.stop - window.start)) - 1
        return torch.from_numpy(grid)


def _mirror(places: Floats, size: int) -> Floats:
    """Mirror indices at 0 and size - 1, as numpy.pad's "reflect" does."""
    last = size - 1
    if places.min() >= 0 and places.max() <= last:
        return places
    if last == 0:
        return np.zeros_like(places)
    places = np.abs(places)
    if places.max() > 2 * last:
        places = places % (2 * last)
    return last - np.abs(last - places)
