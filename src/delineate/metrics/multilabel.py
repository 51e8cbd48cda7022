"""Counts for classes that may overlap: one yes or no for each pixel and class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delineate.errors import DataError
from delineate.metrics.overlap import Overlap, ratio
from delineate.metrics.scores import ClassScores, Scores


class MultilabelConfusion(ClassScores):
    """For each class the pixels that are and are not of it, and are and are not predicted; scores as in `ConfusionMatrix`.

    `counts` (K, 2, 2) int64 [class, truth, prediction].

    >>> confusion = MultilabelConfusion(2)
    >>> truth = np.array([[[1, 1, -1]], [[0, 1, 1]]])  # (K, H, W): overlapping masks, a pixel that is not counted
    >>> confusion.update(prediction=np.array([[[1, 0, 0]], [[0, 1, 1]]]), truth=truth)
    >>> confusion.iou()
    array([0.5, 1. ])
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1")
        super().__init__(np.zeros((num_classes, 2, 2), np.int64), {"num_classes": num_classes})
        self.num_classes = num_classes

    @classmethod
    def from_counts(cls, counts: NDArray[Any]) -> MultilabelConfusion:
        """Wrap counts (..., K, 2, 2) [class, truth, prediction]; any leading axes stay in the scores."""
        return cls(counts.shape[-3] if counts.ndim > 2 else 1).with_sums(counts)

    def update(self, prediction: NDArray[Any] | Tensor, truth: NDArray[Any] | Tensor) -> None:
        """Add masks (..., K, H, W), arrays or tensors of one shape; truth 0 or 1, below 0 = not counted; prediction 0 or not.

        Raises DataError when the shapes differ or do not have K classes.
        """
        if tuple(prediction.shape) != tuple(truth.shape) or truth.ndim < 3 or truth.shape[-3] != self.num_classes:
            raise DataError(
                f"prediction has shape {tuple(prediction.shape)}, truth {tuple(truth.shape)}; "
                f"expected (..., {self.num_classes}, H, W) for both"
            )
        t = torch.as_tensor(truth)
        p = torch.as_tensor(prediction, device=t.device) != 0
        axes = tuple(axis for axis in range(t.ndim) if axis != t.ndim - 3)
        cells = [((t < 0).logical_not() & ((t > 0.5) == bool(i)) & (p == bool(j))).sum(axes) for i in (0, 1) for j in (0, 1)]
        self.sums = self.sums + torch.stack(cells, dim=-1).cpu().numpy().reshape(self.num_classes, 2, 2)

    @property
    def overlap(self) -> Overlap[NDArray[Any]]:
        """Intersection and cardinalities of each class, (..., K)."""
        return Overlap(self.counts[..., 1, 1], self.counts[..., 1].sum(axis=-1), self.counts[..., 1, :].sum(axis=-1))

    @property
    def counted(self) -> NDArray[Any]:
        """Pixels that count for each class, (..., K)."""
        return self.counts.sum(axis=(-2, -1))

    def pixel_accuracy(self) -> Scores:
        """Share of the counted (pixel, class) decisions that are right, (...); NaN without any."""
        right = self.counts[..., 0, 0] + self.counts[..., 1, 1]
        return ratio(right.sum(axis=-1), self.counts.sum(axis=(-3, -2, -1)))
