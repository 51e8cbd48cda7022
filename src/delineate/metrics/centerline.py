"""clDice (Shit et al. 2021): overlap of tubes, such as vessels or roads, measured along their centrelines."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from delineate.errors import DataError
from delineate.metrics.class_masks import Mask, as_masks
from delineate.metrics.overlap import Absent, absent_score, ratio


class CenterlineOverlap(NamedTuple):
    """Pixels of two centrelines, and how many of them lie in the other mask; counts of several pictures may be added up."""

    predicted_inside: int  # pixels of the predicted centreline in the true mask
    predicted: int  # pixels of the predicted centreline
    true_inside: int  # pixels of the true centreline in the predicted mask
    true: int  # pixels of the true centreline

    def precision(self, *, absent: Absent = "nan") -> float:
        """Topology precision: share of the predicted centreline in the true mask; `absent` where nothing is predicted."""
        return float(ratio(np.array(self.predicted_inside), np.array(self.predicted), absent_score(absent)))

    def sensitivity(self, *, absent: Absent = "nan") -> float:
        """Topology sensitivity: share of the true centreline in the predicted mask; `absent` where there is none."""
        return float(ratio(np.array(self.true_inside), np.array(self.true), absent_score(absent)))

    def dice(self, *, absent: Absent = "nan") -> float:
        """clDice: harmonic mean of the two; 0 where one is 0 or one centreline is missing, `absent` where both are."""
        if self.predicted == self.true == 0:
            return absent_score(absent)
        precision, sensitivity = self.precision(absent=0), self.sensitivity(absent=0)
        total = precision + sensitivity
        return 2 * precision * sensitivity / total if total else 0.0


def centerline_overlap(
    prediction: NDArray[Any], truth: NDArray[Any], *, ignore: NDArray[Any] | None = None
) -> CenterlineOverlap:
    """Count the centreline of each of two masks, and what of it lies in the other mask.

    Masks (H, W) or (D, H, W), bool or integers of which all but 0 are inside. Pixels where `ignore` is true are taken out of
    both first, so that a centreline ends there. Centrelines are scikit-image's `skeletonize`, as in the authors' code:
    Zhang and Suen's (1984) in two dimensions, Lee's (1994) in three. Raises `DataError` where shapes differ.

    Source: Shit et al. 2021, "clDice - a novel topology-preserving loss function for tubular structure segmentation".

    >>> truth = np.zeros((9, 20), bool)
    >>> truth[3:6, 2:18] = True
    >>> thin = np.zeros((9, 20), bool)
    >>> thin[4, 2:10] = True  # half the length, a third of the width
    >>> found = centerline_overlap(thin, truth)
    >>> found.precision(), round(found.sensitivity(), 3), round(found.dice(), 3)
    (1.0, 0.533, 0.696)
    """
    p, t = as_masks(prediction, truth, ignore)
    if p.ndim not in (2, 3):
        raise DataError(f"masks of shape {p.shape}; centrelines are defined in two and three dimensions")
    of_p, of_t = _skeleton(p), _skeleton(t)
    counts = (np.count_nonzero(x) for x in (of_p & t, of_p, of_t & p, of_t))
    return CenterlineOverlap(*map(int, counts))


def _skeleton(mask: Mask) -> Mask:
    from skimage.morphology import skeletonize

    return skeletonize(mask) if mask.any() else mask
