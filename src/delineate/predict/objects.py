"""Objects from a semantic network: connected components, or a watershed that starts from seeds (M9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label as connected_components
from skimage.morphology import reconstruction
from skimage.segmentation import watershed

from delineate.data.load import boxes_of_map
from delineate.errors import ConfigError, suggest

Array = NDArray[Any]
Method = Literal["components", "watershed", "border", "distance"]

METHODS: tuple[Method, ...] = ("components", "watershed", "border", "distance")
_NEIGHBOURS = ndimage.generate_binary_structure(2, 1)  # four
_HEIGHTS = {"watershed": 2.0, "distance": 0.1}  # pixels; share of the deepest point


@dataclass(frozen=True, slots=True)
class Objects:
    """N objects that do not overlap, numbered from the top of the picture."""

    instance_map: NDArray[np.int32]  # (H, W), 0 = background, n = object n - 1 of the others
    labels: NDArray[np.int64]  # (N,) class ids, those of the label picture
    scores: NDArray[np.float32]  # (N,) mean foreground probability inside
    boxes: NDArray[np.float32]  # (N, 4) xyxy, pixels

    def __len__(self) -> int:
        return len(self.labels)


def extract_objects(
    classes: Array,
    *,
    method: Method = "components",
    foreground: Array | None = None,
    distance: Array | None = None,
    border: Array | None = None,
    min_area: int = 0,
    min_score: float = 0.0,
    height: float | None = None,
) -> Objects:
    """Tell the objects of a label picture apart; pixels of class 0 belong to none.

    Methods: "components": pixels of one class connected by their four neighbours. "watershed": seeds are the deep places of the
    foreground, where the distance to the background has a dome of at least `height` pixels (2 unless given). "border": seeds
    are the pieces that remain without the border; they grow back into it. "distance": seeds are the domes of `distance`, at
    least `height` (0.1) high. Seeds grow over the foreground that is connected with them. The class of an object is that of
    most of its pixels. Raises `ConfigError` for an unknown method, or where what it needs is missing.

    Args:
        classes: (H, W) class ids.
        method: one of the above.
        foreground: (H, W) probability of any class but 0, from which the scores are made; without it all scores are 1.
        distance: (H, W), a network's distance output: 0 at an object's edge, 1 at its deepest point.
        border: (H, W) bool, the inner border of objects as a network told it.
        min_area: objects with fewer pixels are left out.
        min_score: objects with a lower score are left out.
        height: of the domes that become seeds.

    >>> extract_objects(np.array([[1, 1, 0, 2], [0, 0, 0, 2]])).labels.tolist()
    [1, 2]
    """
    if method not in METHODS:
        raise ConfigError(f"objects '{method}' is unknown; expected {', '.join(METHODS)}{suggest(method, METHODS)}")
    if (method == "border" and border is None) or (method == "distance" and distance is None):
        raise ConfigError(f"objects '{method}' needs a network trained with outputs '{method}'; take components or watershed")
    ids = np.asarray(classes).astype(np.int32, copy=False)
    if height is None:
        height = _HEIGHTS.get(method, 0.0)
    if method == "components":
        pieces = _pieces(ids)
    elif method == "watershed":
        depth = _depth(ids > 0)
        pieces = _grow(_domes(depth, height), ids > 0, -depth)
    elif method == "border":
        interior = (ids > 0) & ~np.asarray(border, np.bool_)
        pieces = _grow(_pieces(interior), ids > 0, np.asarray(ndimage.distance_transform_edt(~interior)))
    else:
        peaks = np.where(ids > 0, np.asarray(distance, np.float64), 0.0)
        pieces = _grow(_domes(peaks, height), ids > 0, -peaks)
    return _measure(pieces, ids, foreground, min_area, min_score)


def _pieces(values: Array) -> NDArray[np.int32]:
    """Number the connected pieces of equal values other than 0 from the top; neighbours are four, as in training."""
    return np.asarray(connected_components(values, background=0, connectivity=1)).astype(np.int32, copy=False)


def _depth(mask: Array) -> Array:
    """Distance of each pixel of `mask` to the nearest one outside; the border of the picture is no outside."""
    if mask.all():  # there is no outside, and SciPy's answer has no meaning
        return np.ones(mask.shape)
    return np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge")))[1:-1, 1:-1]


def _domes(depth: Array, height: float) -> NDArray[np.int32]:
    """Number the domes of `depth` that rise at least `height` over the ground that joins them to a higher one.

    A dome is what stands above the morphological reconstruction of `depth` less `height` (Soille 2003, h-domes); the domes of
    lower rises stay below `height` and are left out, except that each piece of ground over 0 keeps its highest.
    """
    above = depth - reconstruction(np.maximum(depth - height, 0), depth, footprint=_NEIGHBOURS)
    domes = _pieces(above > 0)
    numbers = np.arange(1, domes.max() + 1)
    ground = _pieces(depth > 0)
    highest = np.asarray(ndimage.maximum(depth, ground, np.arange(ground.max() + 1)))[ground]  # (H, W) of each pixel's piece
    needed = np.minimum(height, np.asarray(ndimage.maximum(highest, domes, numbers))) * (1 - 1e-6)
    tops = np.asarray(ndimage.maximum(above, domes, numbers))
    return _renumber(domes, np.concatenate([[False], tops >= needed]))


def _grow(seeds: NDArray[np.int32], mask: Array, elevation: Array) -> NDArray[np.int32]:
    """Flood `mask` from the seeds, lowest `elevation` first; pieces of `mask` without a seed stay 0."""
    return np.asarray(watershed(elevation, seeds, mask=mask)).astype(np.int32)


def _measure(
    pieces: NDArray[np.int32], ids: NDArray[np.int32], foreground: Array | None, min_area: int, min_score: float
) -> Objects:
    """Class, score and box of each piece, without those that are too small or too uncertain."""
    count, classes = int(pieces.max(initial=0)) + 1, int(ids.max(initial=0)) + 1
    votes, totals = np.zeros(count * classes, np.int64), np.zeros(count)
    rows = max(1, (1 << 22) // max(1, pieces.shape[1]))  # at once: the sums are made of copies of eight bytes a pixel
    for top in range(0, pieces.shape[0], rows):
        part = pieces[top : top + rows].astype(np.int64)
        votes += np.bincount((part * classes + ids[top : top + rows]).ravel(), minlength=count * classes)
        if foreground is not None:
            totals += np.bincount(part.ravel(), np.asarray(foreground[top : top + rows], np.float64).ravel(), count)
    votes = votes.reshape(count, classes)
    areas = votes.sum(1)
    scores = np.ones(count) if foreground is None else totals / np.maximum(areas, 1)
    kept = (areas >= max(1, min_area)) & (scores >= min_score)
    kept[0] = False
    instance_map = _renumber(pieces, kept)
    return Objects(
        instance_map=instance_map,
        labels=votes[kept].argmax(1).astype(np.int64),
        scores=scores[kept].astype(np.float32),
        boxes=boxes_of_map(instance_map),
    )


def _renumber(pieces: NDArray[np.int32], kept: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the pieces where `kept[number]` 1, 2, 3 ... in their order; the others become 0."""
    table = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return table[pieces]
