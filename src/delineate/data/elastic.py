"""The elastic deformation of the U-Net paper: random displacements on a 3x3 grid, interpolated bicubically."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

NODES = 3  # a side
STEEPEST = 0.6  # limit of the displacement's slope: below 1 nothing folds, and the inverse below converges


@dataclass(frozen=True, slots=True)
class ElasticGrid:
    """Displacements (y, x) in pixels at 3x3 nodes, of which the outer ones lie on the border pixels of a field of `size`.

    Ronneberger et al. 2015, section 3.1. The field that deforms is the patch, so that its look does not depend on how much of
    the picture lies around it. Coordinates are indices: (0, 0) is the centre of the first pixel.
    """

    nodes: Floats  # (3, 3, 2)
    size: tuple[int, int]

    def dense(self) -> tuple[Floats, Floats]:
        """Return the displacement along y and along x of every pixel of the field, each (H, W)."""
        rows, columns = (_lattice_weights(n) for n in self.size)
        along_y, along_x = (rows @ self.nodes[..., axis] @ columns.T for axis in range(2))
        return along_y, along_x

    def at(self, points: Floats) -> Floats:
        """Return the displacements (N, 2) at points (N, 2) of y, x; outside the field those of its border."""
        rows, columns = (_weights(points[:, axis], n) for axis, n in enumerate(self.size))
        return np.einsum("ni,ijc,nj->nc", rows, self.nodes, columns)

    def inverse(self, points: Floats) -> Floats:
        """Return the points p, (N, 2), with p + at(p) = `points`."""
        found = points
        for _ in range(40):  # the slope is below 0.6, so each round gains more than a factor of 1.6
            found = points - self.at(found)
        return found


def draw_elastic(rng: np.random.Generator, sigma: float, size: tuple[int, int]) -> ElasticGrid:
    """Draw Gaussian displacements of standard deviation `sigma` pixels for a field of `size`.

    Where they would fold the picture over itself (nodes closer than a few `sigma`), all are made smaller by one factor.
    """
    nodes = sigma * rng.standard_normal((NODES, NODES, 2)).astype(np.float32)
    steepest = _steepest(nodes, size)
    return ElasticGrid(nodes * np.float32(min(1.0, STEEPEST / max(steepest, 1e-9))), size)


def _steepest(nodes: Floats, size: tuple[int, int]) -> float:
    """Largest Frobenius norm of the displacement's Jacobian, probed at 33x33 places."""
    along_y, along_x = ElasticGrid(nodes, (33, 33)).dense()
    field = np.stack([along_y, along_x], -1)  # (33, 33, 2)
    steps = [max(n - 1, 1) / 32 for n in size]
    slope_y = np.diff(field, axis=0)[:, :-1] / steps[0]
    slope_x = np.diff(field, axis=1)[:-1] / steps[1]
    return float(np.sqrt((slope_y**2 + slope_x**2).sum(-1).max()))


@lru_cache(maxsize=16)
def _lattice_weights(size: int) -> Floats:
    return _weights(np.arange(size, dtype=np.float32), size)


def _weights(places: Floats, size: int) -> Floats:
    """Weight of each node, (N, 3), at `places` along an axis of `size` pixels: cubic convolution (Keys 1981) with the
    coefficient -0.75 and repeated borders, as torch's bicubic interpolation with align_corners."""
    t = np.clip(places / max(size - 1, 1), 0, 1) * (NODES - 1)
    first = np.minimum(np.floor(t), NODES - 2)
    weights = np.zeros((len(t), NODES), np.float32)
    for k in range(-1, 3):
        node = np.clip(first + k, 0, NODES - 1).astype(np.intp)
        weights[np.arange(len(t)), node] += _cubic(np.abs(t - (first + k)))
    return weights


def _cubic(d: Floats, a: float = -0.75) -> Floats:
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
