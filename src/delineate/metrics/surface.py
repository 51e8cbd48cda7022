"""Distances between the outlines of two masks: Hausdorff distance and its percentiles, mean distances, normalised surface Dice.

A surface is a set of points with weights, and two packages that report "HD95" differ in which. Two definitions are here:

- "voxels" (MONAI, MedPy): the centres of the pixels (voxels) of the mask that share a side with one outside it, each of
  weight 1. The surface lies half a pixel inside the mask.
- "elements" (DeepMind's surface-distance): the corners between pixels around which there are some inside and some outside,
  weighted with the length (area) of the outline there, as marching squares (cubes) draw it. The surface lies between pixels.

Outside the picture is outside the mask. Two and three dimensions; the axes are those of the arrays, so `spacing` is
(rows, columns) or (planes, rows, columns).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from delineate.errors import ConfigError, DataError
from delineate.metrics.class_masks import Mask, as_masks, bounding_box
from delineate.metrics.overlap import Absent, absent_score

Definition = Literal["voxels", "elements"]
Percentile = Literal["directed", "pooled", "weighted"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """Distance of each point of one surface to the nearest of the other, in units of the spacing; infinite if there is none.

    Where both masks are empty every distance is 0; where one is, infinite.

    >>> truth = np.zeros((9, 9), bool)
    >>> truth[2:7, 2:7] = True
    >>> found = surface_distances(np.roll(truth, 1, axis=0), truth)
    >>> found.hausdorff(), found.average_symmetric(), found.normalised_surface_dice(tolerance=0)
    (1.0, 0.5, 0.5)
    """

    prediction_to_truth: Floats  # (N,)
    truth_to_prediction: Floats  # (M,)
    prediction_weights: Floats  # (N,) length or area of the surface at each point, or 1
    truth_weights: Floats  # (M,)

    @property
    def both_empty(self) -> bool:
        """Whether neither mask has a surface."""
        return len(self.prediction_to_truth) + len(self.truth_to_prediction) == 0

    @property
    def one_empty(self) -> bool:
        """Whether exactly one mask has a surface."""
        return (len(self.prediction_to_truth) == 0) != (len(self.truth_to_prediction) == 0)

    def hausdorff(self, percentile: float = 100.0, variant: Percentile = "directed") -> float:
        """Hausdorff distance, or the `percentile` of the distances (95: HD95); its three definitions agree at 100.

        - "directed": the larger of the two directed percentiles, each interpolated between points (MONAI).
        - "pooled": the percentile of the distances of both directions together, interpolated (MedPy).
        - "weighted": the larger of the two distances within which lies that share of a surface's weight (DeepMind).
        """
        if not 0 <= percentile <= 100:
            raise ConfigError(f"percentile {percentile}: expected 0 to 100, such as 95")
        if self.both_empty or self.one_empty:
            return self._of_empty()
        sides = self.prediction_to_truth, self.truth_to_prediction
        if variant == "directed":
            return float(max(np.percentile(side, percentile) for side in sides))
        if variant == "pooled":
            return float(np.percentile(np.concatenate(sides), percentile))
        if variant == "weighted":
            weights = self.prediction_weights, self.truth_weights
            return max(_weighted_percentile(*side, percentile) for side in zip(sides, weights, strict=True))
        raise ValueError(f"variant is {variant!r}, expected 'directed', 'pooled' or 'weighted'")

    def mean_distances(self) -> tuple[float, float]:
        """Weighted mean distance from the predicted surface to the true one, and from the true to the predicted one."""
        if self.both_empty or self.one_empty:
            return self._of_empty(), self._of_empty()
        return (
            float(np.average(self.prediction_to_truth, weights=self.prediction_weights)),
            float(np.average(self.truth_to_prediction, weights=self.truth_weights)),
        )

    def average_symmetric(self, variant: Literal["pooled", "directed"] = "pooled") -> float:
        """Average symmetric surface distance (ASSD).

        "pooled": weighted mean of the distances of both directions together (MONAI, MedPy). "directed": mean of the two
        directed means (MedPy up to 0.4), which differs where one surface is larger.
        """
        if variant not in ("pooled", "directed"):
            raise ValueError(f"variant is {variant!r}, expected 'pooled' or 'directed'")
        if self.both_empty or self.one_empty:
            return self._of_empty()
        if variant == "directed":
            return sum(self.mean_distances()) / 2
        distances = np.concatenate([self.prediction_to_truth, self.truth_to_prediction])
        return float(np.average(distances, weights=np.concatenate([self.prediction_weights, self.truth_weights])))

    def normalised_surface_dice(self, tolerance: float, *, absent: Absent = "nan") -> float:
        """NSD: share of both surfaces' weight within `tolerance` of the other; 0 if one mask is empty, `absent` if both.

        Source: Nikolov et al. 2018, "Deep learning to achieve clinically applicable segmentation".
        """
        if not tolerance >= 0:
            raise ConfigError(f"tolerance {tolerance}: expected a distance of at least 0")
        if self.both_empty:
            return absent_score(absent)
        near = sum(
            float(weights[distances <= tolerance].sum())
            for distances, weights in (
                (self.prediction_to_truth, self.prediction_weights),
                (self.truth_to_prediction, self.truth_weights),
            )
        )
        return near / float(self.prediction_weights.sum() + self.truth_weights.sum())

    def _of_empty(self) -> float:
        return 0.0 if self.both_empty else math.inf


def surface_distances(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    *,
    spacing: float | Sequence[float] = 1.0,
    surface: Definition = "voxels",
    ignore: NDArray[Any] | None = None,
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks, exactly.

    Masks (H, W) or (D, H, W), bool or integers of which all but 0 are inside. `spacing`: size of a pixel, one number or one an
    axis; distances are in its unit. `surface`: see the module. Pixels where `ignore` is true are taken out of both masks first.
    Raises `DataError` where shapes differ, `ConfigError` for a spacing that does not fit.

    Only the surfaces' points are compared, through a k-d tree, and no distance transform of the picture is made.
    """
    p, t = as_masks(prediction, truth, ignore)
    if p.ndim not in (2, 3):
        raise DataError(f"masks of shape {p.shape}; surfaces are defined in two and three dimensions")
    if surface not in ("voxels", "elements"):
        raise ValueError(f"surface is {surface!r}, expected 'voxels' or 'elements'")
    steps = check_spacing(spacing, p.ndim)
    box = bounding_box(p | t)
    find = _border_voxels if surface == "voxels" else _elements
    (of_p, p_weights), (of_t, t_weights) = (find(mask[box], steps) for mask in (p, t))
    return SurfaceDistances(_nearest(of_p, of_t, steps), _nearest(of_t, of_p, steps), p_weights, t_weights)


def check_spacing(spacing: float | Sequence[float], dimensions: int) -> tuple[float, ...]:
    """The spacing of each axis; raises `ConfigError` for numbers that are not positive, or too few or too many.

    >>> check_spacing(0.5, 2)
    (0.5, 0.5)
    """
    steps = (float(spacing),) * dimensions if isinstance(spacing, int | float) else tuple(map(float, spacing))
    if len(steps) != dimensions or not all(0 < step < math.inf for step in steps):
        raise ConfigError(f"spacing {spacing}: expected one positive number, or one for each of {dimensions} axes")
    return steps


def _nearest(points: Mask, others: Mask, spacing: tuple[float, ...]) -> Floats:
    """Distance of each of `points` to the nearest of `others`, in the order of the array."""
    from scipy.spatial import KDTree

    at, there = np.flatnonzero(points), np.flatnonzero(others)
    if len(there) == 0:
        return np.full(len(at), np.inf)
    apart = ~others.reshape(-1)[at]  # in a good prediction most points lie on the other surface, at distance 0
    distances = np.zeros(len(at))
    if apart.any():
        goals, starts = (np.stack(np.unravel_index(index, points.shape), -1) * spacing for index in (there, at[apart]))
        distances[apart] = KDTree(goals, balanced_tree=False).query(starts)[0]
    return distances


def _border_voxels(mask: Mask, spacing: tuple[float, ...]) -> tuple[Mask, Floats]:
    """The pixels of a mask that share a side with one outside, and weights of 1."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        along, kept = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        kept[1:] &= along[:-1]
        kept[:-1] &= along[1:]
        kept[:1] = kept[-1:] = False
    border = mask & ~inner
    return border, np.ones(np.count_nonzero(border))


def _elements(mask: Mask, spacing: tuple[float, ...]) -> tuple[Mask, Floats]:
    """The corners of pixels that the outline passes, and the length or area of the outline around each."""
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([side + 1 for side in mask.shape], np.uint8)
    for bit, place in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        around = padded[tuple(slice(start, start + side) for start, side in zip(place, codes.shape, strict=True))]
        codes |= around << bit
    sizes = _element_sizes(spacing)
    passed = (codes != 0) & (codes != len(sizes) - 1)
    return passed, sizes[codes[passed]]


@lru_cache(maxsize=16)
def _element_sizes(spacing: tuple[float, ...]) -> Floats:
    """Length or area of the outline around a corner, for each code of the pixels around it: (16,) or (256,)."""
    if len(spacing) == 2:
        return np.array([_contour_length(code, spacing) for code in range(16)])
    from skimage.measure import mesh_surface_area

    return np.array([mesh_surface_area(v * spacing, f) if len(f) else 0.0 for v, f in _cubes()])


def _contour_length(code: int, spacing: tuple[float, ...]) -> float:
    """Length of the outline that marching squares draw between four pixels; bit 2 row + column of `code`: inside."""
    inside = _corners(code, 2)
    if inside.sum() in (0, 4):
        return 0.0
    if inside.sum() != 2:
        return math.hypot(*spacing) / 2  # cuts off one corner
    if inside[0, 0] == inside[1, 1]:
        return math.hypot(*spacing)  # cuts off two opposite corners
    return spacing[1] if inside[0, 0] == inside[0, 1] else spacing[0]


@cache
def _cubes() -> list[tuple[Floats, NDArray[Any]]]:
    """Vertices and faces of the surface that marching cubes (Lorensen and Cline 1987) draw between eight voxels, for each code.

    With more than four voxels inside, the surface is that of the voxels outside: their tunnels and corners are kept apart.
    """
    from skimage.measure import marching_cubes

    surfaces = []
    for code in range(256):
        inside = _corners(code, 3)
        solid = inside if inside.sum() <= 4 else ~inside
        if solid.any():
            vertices, faces, *_ = marching_cubes(solid.astype(np.float32), 0.5, method="lorensen")
            surfaces.append((vertices.astype(np.float64), faces))
        else:
            surfaces.append((np.zeros((0, 3)), np.zeros((0, 3), int)))
    return surfaces


def _corners(code: int, dimensions: int) -> Mask:
    """The pixels around a corner whose bits are set in `code`."""
    return np.array([code >> bit & 1 for bit in range(2**dimensions)], bool).reshape((2,) * dimensions)


def _weighted_percentile(distances: Floats, weights: Floats, percentile: float) -> float:
    """The smallest distance within which lies at least that share of the weight."""
    order = np.lexsort((weights, distances))
    share = np.cumsum(weights[order]) / weights[order].sum()
    return float(distances[order][min(int(np.searchsorted(share, percentile / 100)), len(order) - 1)])
