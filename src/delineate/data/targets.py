"""What the network is to answer: labels, weights and distances, made from a Sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.measure import label as connected_components
from torch import Tensor

from delineate.data.sample import IGNORE, Sample
from delineate.errors import DataError
from delineate.weights.conventions import Conventions

Window = tuple[slice, slice]


def make_targets(
    sample: Sample, conventions: Conventions, num_classes: int, *, object_class: int | None = None, border_width: float = 2
) -> dict[str, Tensor]:
    """Return the targets of `sample` for a network of these conventions and K = `num_classes` classes.

    "labels": (H, W) int64, IGNORE = not counted, with K on the border of objects for outputs "border"; for "multilabel"
    (K, H, W) float32 of 0 and 1, -1 = not counted. "distance": (H, W) float32, for outputs "distance". "weight": (H, W)
    float32, where the sample has one. Objects are those of `find_objects(sample, object_class)`. Raises DataError for a sample
    without class ids, or with one that is not below K.
    """
    targets: dict[str, Tensor] = {"labels": _labels(sample, num_classes)}
    if conventions.outputs == "multilabel":
        targets["labels"] = _one_hot(sample, targets["labels"], num_classes)
    if conventions.outputs == "border":
        band = border_band(find_objects(sample, object_class), border_width) & (targets["labels"] != IGNORE)
        targets["labels"][band] = num_classes
    if conventions.outputs == "distance":
        distance = distance_map(find_objects(sample, object_class)) if sample.distance is None else sample.distance
        targets["distance"] = distance.as_subclass(Tensor)
    if sample.weight is not None:
        targets["weight"] = sample.weight.as_subclass(Tensor)
    return targets


def find_objects(sample: Sample, object_class: int | None = None) -> Tensor:
    """Return `sample.instance_map`, or else the connected pieces of `object_class` (None: of every class but 0), (H, W) int32.

    Pieces are connected by four neighbours, so that a line one pixel wide separates them, a diagonal one too.
    """
    if sample.instance_map is not None:
        return sample.instance_map.as_subclass(Tensor)
    semantic = _semantic(sample).numpy()
    classes = np.where(semantic == IGNORE, 0, semantic) if object_class is None else (semantic == object_class).astype(np.uint8)
    return torch.from_numpy(np.asarray(connected_components(classes, background=0, connectivity=1)).astype(np.int32))


def border_band(instance_map: ArrayLike | Tensor, width: float = 2) -> Tensor:
    """Return the pixels of objects within `width` pixels of a pixel of something else, (H, W) bool.

    The band lies inside the objects: with it they have their true outline, without it touching objects are 2 `width` apart and
    become seeds. Objects that it would swallow get a thinner band, and none if even one pixel is too much, so that every object
    keeps a seed. The border of the picture is not a border of objects.

    >>> border_band([[1, 1, 1, 2, 2, 2]], width=1).int().tolist()
    [[0, 0, 1, 1, 0, 0]]
    """
    ids = np.asarray(instance_map)
    band = np.zeros(ids.shape, np.bool_)
    pending = ids > 0  # pixels of objects that have no band yet
    for thinner in np.arange(width, 0, -1):
        candidate = pending & _near_others(ids, thinner)
        counts = np.bincount(ids[pending & ~candidate], minlength=ids.max() + 1)
        done = pending & (counts[ids] > 0)
        band |= candidate & done
        pending &= ~done
        if not pending.any():
            break
    return torch.from_numpy(band)


def distance_map(instance_map: ArrayLike | Tensor) -> Tensor:
    """Return the Euclidean distance to the nearest pixel outside the object, over its maximum in the object, (H, W) float32.

    0 outside objects; the border of the picture is not a border of objects.

    >>> distance_map([[0, 1, 1, 1, 0]])
    tensor([[0.0000, 0.5000, 1.0000, 0.5000, 0.0000]])
    """
    ids = np.asarray(instance_map)
    distance = np.zeros(ids.shape, np.float32)
    for number, window in _windows(ids, reach=1):
        inside = ids[window] == number
        if inside.all():  # nothing but this object in the picture
            distance[window] = 1
            continue
        depth = _distance(inside)
        distance[window][inside] = (depth / depth.max())[inside]
    return torch.from_numpy(distance)


def border_weight_map(
    instance_map: ArrayLike | Tensor, w0: float = 10.0, sigma: float = 5.0, *, classes: ArrayLike | Tensor | None = None
) -> Tensor:
    """Return U-Net's weight of each pixel, w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2)), (H, W) float32.

    d1 and d2 are the distances in pixels to the nearest and to the second nearest object (Ronneberger et al. 2015, eq. 2). The
    second term is that of the background: it is 0 inside objects and where there are fewer than two within 5 `sigma`, beyond
    which it is below 4e-6 w0. w_c is 1, or with class ids `classes` (H, W) the weight that gives every class the same total and
    the mean 1 over the pixels that are not IGNORE.

    >>> border_weight_map([[1, 1, 0, 2, 2]])[0, 2].item()  # d1 = d2 = 1
    10.23116397857666
    """
    ids = np.asarray(instance_map)
    nearest = np.full(ids.shape, np.inf, np.float32)
    second = nearest.copy()
    for number, window in _windows(ids, reach=int(np.ceil(5 * sigma))):
        distance = _distance(ids[window] != number)
        second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
        nearest[window] = np.minimum(nearest[window], distance)
    between = np.where(ids > 0, 0, w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2)))
    balance = 1.0 if classes is None else _balance(np.asarray(classes))
    return torch.from_numpy((balance + between).astype(np.float32))


def _labels(sample: Sample, num_classes: int) -> Tensor:
    labels = _semantic(sample).long()
    largest = int(torch.where(labels == IGNORE, 0, labels).max())
    if largest >= num_classes:
        raise DataError(
            f"{sample.path or sample.name}: class id {largest} in its labels, but there are {num_classes} classes (0 to "
            f"{num_classes - 1}, {IGNORE} = not counted); name all classes, or correct the labels"
        )
    return labels


def _one_hot(sample: Sample, labels: Tensor, num_classes: int) -> Tensor:
    """(K, H, W) float32: objects may overlap where there are masks (of classes 1 to K - 1; class 0 is what they leave)."""
    hot = labels[None] == torch.arange(num_classes)[:, None, None]
    if sample.masks is not None and sample.labels is not None:
        crowd = torch.zeros_like(sample.labels, dtype=torch.bool) if sample.crowd is None else sample.crowd
        for mask, label in zip(sample.masks.as_subclass(Tensor)[~crowd], sample.labels[~crowd].tolist(), strict=True):
            hot[label + 1] |= mask
        hot[0] = ~hot[1:].any(0)
    return torch.where(labels[None] == IGNORE, -1.0, hot.float())


def _semantic(sample: Sample) -> Tensor:
    if sample.semantic is None:
        raise DataError(f"{sample.path or sample.name}: has no class ids to learn from; load it with want=('semantic',)")
    return sample.semantic.as_subclass(Tensor)


def _near_others(ids: NDArray[Any], reach: float) -> NDArray[np.bool_]:
    """Pixels with a pixel of another id within `reach`."""
    height, width = ids.shape
    near = np.zeros(ids.shape, np.bool_)
    for dy in range(min(int(reach), height - 1) + 1):
        for dx in range(-min(int(reach), width - 1), min(int(reach), width - 1) + 1):
            if dy * dy + dx * dx > reach * reach or (dy, dx) <= (0, 0):
                continue
            here = (slice(0, height - dy), slice(max(-dx, 0), width - max(dx, 0)))
            there = (slice(dy, height), slice(max(dx, 0), width - max(-dx, 0)))
            differs = ids[here] != ids[there]
            near[here] |= differs
            near[there] |= differs
    return near


def _windows(ids: NDArray[Any], reach: int) -> Iterator[tuple[int, Window]]:
    """The id of each object and the part of the picture within `reach` of its bounding box."""
    for number, place in enumerate(ndimage.find_objects(ids), start=1):
        if place is not None:
            y, x = (slice(max(s.start - reach, 0), s.stop + reach) for s in place)
            yield number, (y, x)


def _distance(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance of each true pixel to the nearest false one."""
    return np.asarray(ndimage.distance_transform_edt(mask))


def _balance(classes: NDArray[Any]) -> NDArray[np.float64]:
    counts = np.bincount(classes.ravel(), minlength=IGNORE + 1).astype(np.float64)
    counts[IGNORE] = 0
    present = counts > 0
    weights = np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 0)
    return weights[classes]
