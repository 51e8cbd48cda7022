"""The one definition of overlap: intersection and cardinalities, and the scores made of them, for counts and for soft masks.

Metrics call it with int64 counts in numpy, losses with sums of probabilities in PyTorch; the formulas are the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delineate.ops import native

Absent = Literal["nan", 0, 1]
Array = TypeVar("Array", NDArray[Any], Tensor)


def ratio(numerator: Array, denominator: Array, empty: float = math.nan) -> Array:
    """Return `numerator / denominator`, and `empty` where the denominator is 0: no warning, and a gradient of 0 there.

    >>> ratio(np.array([1, 0]), np.array([2, 0]), empty=1.0)
    array([0.5, 1. ])
    """
    zero = denominator == 0
    quotient: Any = numerator / (denominator + zero)
    where: Any = torch.where if isinstance(quotient, Tensor) else np.where
    return where(zero, empty, quotient)


@dataclass(frozen=True, slots=True)
class Overlap(Generic[Array]):
    """How much predicted and true masks share; the three fields have one shape, one entry a pair of masks.

    >>> both = Overlap(np.array(2), np.array(4), np.array(3))  # 2 pixels shared, 4 predicted, 3 true
    >>> float(both.iou()), round(float(both.dice()), 4)
    (0.4, 0.5714)
    """

    intersection: Array  # I: pixels of both
    prediction: Array  # P: pixels predicted
    truth: Array  # T: pixels that are true

    @property
    def union(self) -> Array:
        """P + T - I: pixels of either."""
        return self.prediction + self.truth - self.intersection

    @property
    def false_positives(self) -> Array:
        """P - I."""
        return self.prediction - self.intersection

    @property
    def false_negatives(self) -> Array:
        """T - I."""
        return self.truth - self.intersection

    def tversky(self, alpha: float, beta: float, *, smooth: float = 0.0, empty: float = math.nan) -> Array:
        """(I + smooth) / (I + alpha FP + beta FN + smooth), Tversky's ratio (1977); `empty` where that is 0 / 0."""
        numerator = self.intersection + smooth
        return ratio(numerator, numerator + alpha * self.false_positives + beta * self.false_negatives, empty)

    def iou(self, *, smooth: float = 0.0, empty: float = math.nan) -> Array:
        """Intersection over union (Jaccard index): I / (P + T - I)."""
        return self.tversky(1.0, 1.0, smooth=smooth, empty=empty)

    def dice(self, *, smooth: float = 0.0, empty: float = math.nan) -> Array:
        """Dice coefficient (F1): 2 I / (P + T) = 2 IoU / (1 + IoU)."""
        return self.tversky(0.5, 0.5, smooth=smooth, empty=empty)

    def f_beta(self, beta: float, *, empty: float = math.nan) -> Array:
        """F-beta: (1 + b^2) I / ((1 + b^2) I + b^2 FN + FP); recall weighs b times as much as precision."""
        if not beta >= 0:
            raise ValueError(f"beta is {beta}, expected 0 or more")
        weight = beta**2 / (1 + beta**2)
        return self.tversky(1 - weight, weight, empty=empty)

    def precision(self, *, empty: float = math.nan) -> Array:
        """I / P."""
        return ratio(self.intersection, self.prediction, empty)

    def recall(self, *, empty: float = math.nan) -> Array:
        """I / T."""
        return ratio(self.intersection, self.truth, empty)

    def of_classes(self, classes: Sequence[int]) -> Overlap[Array]:
        """The entries `classes` of the last axis, for example all but the background."""
        chosen = list(classes)
        return Overlap(self.intersection[..., chosen], self.prediction[..., chosen], self.truth[..., chosen])


def absent_score(absent: Absent) -> float:
    """The number that stands for a score of what does not exist: NaN is left out of every mean.

    >>> absent_score("nan"), absent_score(1)
    (nan, 1.0)
    """
    if absent not in ("nan", 0, 1):
        raise ValueError(f"absent is {absent!r}, expected 'nan', 0 or 1")
    return math.nan if absent == "nan" else float(absent)


def nan_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without the NaN entries; NaN, and no warning, where nothing is left.

    >>> nan_mean(np.array([[1.0, np.nan], [np.nan, np.nan]]))
    array([ 1., nan])
    """
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


class JointCounts(NamedTuple):
    """The pixels that each pair of segments shares: a sparse contingency table, one entry a pair that meets."""

    truth: NDArray[np.int64]  # (P,) index into truth_ids
    prediction: NDArray[np.int64]  # (P,) index into prediction_ids
    pixels: NDArray[np.int64]  # (P,) > 0
    truth_ids: NDArray[np.int64]  # (M,) the label values of the truth, sorted
    prediction_ids: NDArray[np.int64]  # (N,)

    @property
    def truth_pixels(self) -> NDArray[np.int64]:
        """(M,) pixels of each true segment."""
        return _int_bincount(self.truth, self.pixels, len(self.truth_ids))

    @property
    def prediction_pixels(self) -> NDArray[np.int64]:
        """(N,) pixels of each predicted segment."""
        return _int_bincount(self.prediction, self.pixels, len(self.prediction_ids))


_CHUNK = 1 << 20
"""Pixels joined at a time, so that a large picture needs no int64 copy of itself."""


def joint_counts(prediction: NDArray[Any], truth: NDArray[Any]) -> JointCounts:
    """Count, exactly and in one pass, the pixels of every pair (true segment, predicted segment) that meets.

    Both arrays hold integers >= 0 and have the same shape, which may be any. Raises ValueError otherwise.

    >>> joint_counts(np.array([0, 0, 7]), np.array([1, 2, 2])).pixels
    array([1, 1, 1])
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, truth {truth.shape}; both must be the same")
    t, p = (np.ascontiguousarray(x).reshape(-1) for x in (truth, prediction))
    rows, columns = _count_of_values(t, "truth"), _count_of_values(p, "prediction")
    if rows * columns <= max(4 * t.size, 1 << 16):
        return _joint_counts_of_few(p, t, rows, columns)
    t_ids, t_table = _compact(t)
    p_ids, p_table = _compact(p)
    width = len(p_ids)
    size = len(t_ids) * width
    dense = size <= max(4 * t.size, 1 << 16)  # then no sort is needed
    total = np.zeros(size if dense else 0, np.int64)
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for start in range(0, t.size, max(_CHUNK, len(total))):
        piece = slice(start, start + max(_CHUNK, len(total)))
        joint = _index(t[piece], t_ids, t_table) * width + _index(p[piece], p_ids, p_table)
        if dense:
            total += np.bincount(joint, minlength=size)
        else:
            parts.append(np.unique(joint, return_counts=True))
    if dense:
        codes = np.flatnonzero(total)
        pixels = total[codes]
    else:
        codes, where = np.unique(np.concatenate([codes for codes, _ in parts]), return_inverse=True)
        pixels = _int_bincount(where, np.concatenate([counts for _, counts in parts]), len(codes))
    return JointCounts(codes // max(width, 1), codes % max(width, 1), pixels, t_ids, p_ids)


def _count_of_values(labels: NDArray[Any], what: str) -> int:
    """One more than the largest label, 0 without labels; raises ValueError for what is no map of segments."""
    if labels.dtype.kind not in "biu":
        raise ValueError(f"{what} has dtype {labels.dtype}; a map of segments holds integers")
    if labels.size and (low := int(labels.min())) < 0:
        raise ValueError(f"{what} holds {low}; segments are numbered from 0")
    return int(labels.max()) + 1 if labels.size else 0


def _joint_counts_of_few(p: NDArray[Any], t: NDArray[Any], rows: int, columns: int) -> JointCounts:
    """`joint_counts` of labels below `rows` (truth) and `columns`: counted as they are, not numbered anew first."""
    side = max(rows, columns)
    if native.available and side <= native.MOST_CLASSES and side**2 <= max(4 * t.size, 1 << 16):
        table = native.joint_histogram(t, p, side)[:rows, :columns]
    else:
        total = np.zeros(rows * columns, np.int64)
        for start in range(0, t.size, max(_CHUNK, len(total))):
            piece = slice(start, start + max(_CHUNK, len(total)))
            total += np.bincount(t[piece].astype(np.int64) * columns + p[piece].astype(np.int64), minlength=len(total))
        table = total.reshape(rows, columns)
    t_ids, p_ids = np.flatnonzero(table.any(axis=1)), np.flatnonzero(table.any(axis=0))
    row, column = np.nonzero(table)
    return JointCounts(np.searchsorted(t_ids, row), np.searchsorted(p_ids, column), table[row, column], t_ids, p_ids)


def _compact(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """The sorted values of `labels` (N,), and the table from value to index among them where one fits."""
    high = int(labels.max(initial=0))
    if high > max(4 * labels.size, 1 << 16):  # few pixels with large numbers
        return np.unique(labels).astype(np.int64), None
    there = np.zeros(high + 1, bool)
    for start in range(0, labels.size, _CHUNK):
        there[labels[start : start + _CHUNK].astype(np.int64)] = True
    ids = np.flatnonzero(there)
    table = np.zeros(high + 1, np.int64)
    table[ids] = np.arange(len(ids))
    return ids, table


def _index(labels: NDArray[Any], ids: NDArray[np.int64], table: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The place of each label among `ids`."""
    return np.searchsorted(ids, labels) if table is None else table[labels.astype(np.int64)]


def _int_bincount(index: NDArray[np.int64], weights: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """np.bincount with int64 weights, without the way through float64."""
    total = np.zeros(length, np.int64)
    np.add.at(total, index, weights)
    return total
