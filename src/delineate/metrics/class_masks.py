"""Class maps taken apart: the predicted and the true mask of each class that occurs, ignored pixels in neither."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delineate.errors import DataError

Mask = NDArray[np.bool_]


def check_pair(prediction: NDArray[Any], truth: NDArray[Any]) -> None:
    """Raise `DataError` where two masks or maps differ in shape."""
    if prediction.shape != truth.shape:
        raise DataError(f"prediction has shape {prediction.shape}, truth {truth.shape}; both must be the same")


def as_masks(prediction: NDArray[Any], truth: NDArray[Any], ignore: NDArray[Any] | None = None) -> tuple[Mask, Mask]:
    """Two masks as bool, both without the pixels of `ignore`; raises `DataError` where shapes differ.

    >>> as_masks(np.array([[1, 1]]), np.array([[2, 0]]), np.array([[0, 1]]))
    (array([[ True, False]]), array([[ True, False]]))
    """
    check_pair(prediction, truth)
    p, t = (np.asarray(mask).astype(bool, copy=False) for mask in (prediction, truth))
    if ignore is None:
        return p, t
    check_pair(np.asarray(ignore), truth)
    known = ~np.asarray(ignore).astype(bool, copy=False)
    return p & known, t & known


def class_masks(
    prediction: NDArray[Any], truth: NDArray[Any], num_classes: int, ignore_index: int | None = 255
) -> Iterator[tuple[int, Mask, Mask]]:
    """Yield (class id, predicted mask, true mask) of each class that occurs in either, masks (H, W) bool.

    Two maps (H, W) of class ids; or (K, H, W) where classes may overlap, prediction 0 or not, truth 0 or 1, and below 0 where
    that class is not counted. Pixels whose truth is `ignore_index` are in no mask, whatever is predicted there.
    Raises `DataError` where shapes differ or, after the last class, where a value that counts is no class.

    >>> [(k, p.tolist(), t.tolist()) for k, p, t in class_masks(np.array([[0, 1, 1]]), np.array([[0, 0, 255]]), 3)]
    [(0, [[True, False, False]], [[True, True, False]]), (1, [[False, True, False]], [[False, False, False]])]
    """
    check_pair(prediction, truth)
    if truth.ndim == 3:
        yield from _overlapping(prediction, truth, num_classes)
        return
    known = np.ones(truth.shape, bool) if ignore_index is None else truth != ignore_index
    left_p = left_t = int(np.count_nonzero(known))  # pixels of no class so far
    for k in range(num_classes):
        p, t = (prediction == k) & known, (truth == k) & known
        of_p, of_t = int(np.count_nonzero(p)), int(np.count_nonzero(t))
        left_p, left_t = left_p - of_p, left_t - of_t
        if of_p or of_t:
            yield k, p, t
    for what, labels, left in (("prediction", prediction, left_p), ("truth", truth, left_t)):
        if left:
            strange = np.unique(labels[known & ~np.isin(labels, range(num_classes))])[:5].tolist()
            raise DataError(
                f"the {what} holds {', '.join(map(str, strange))}, but the classes are 0..{num_classes - 1} "
                f"and {ignore_index} is ignored"
            )


def _overlapping(prediction: NDArray[Any], truth: NDArray[Any], num_classes: int) -> Iterator[tuple[int, Mask, Mask]]:
    if len(truth) != num_classes:
        raise DataError(f"the masks have shape {truth.shape}; expected ({num_classes}, H, W)")
    for k in range(num_classes):
        p, t = (prediction[k] != 0) & (truth[k] >= 0), truth[k] > 0
        if p.any() or t.any():
            yield k, p, t


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Slices of the smallest box that holds the mask; empty ones where there is none.

    >>> bounding_box(np.array([[0, 0, 0], [0, 1, 1]], bool))
    (slice(1, 2, None), slice(1, 3, None))
    """
    box: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        filled = np.flatnonzero(mask[tuple(box)].any(axis=others))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, 0))
    return tuple(box)
