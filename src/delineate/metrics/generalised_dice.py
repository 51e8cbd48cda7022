"""Generalised Dice: one score for all classes of a picture, in which small classes count as much as large ones."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from delineate.metrics.overlap import Absent, Overlap, absent_score, ratio
from delineate.metrics.scores import Scores

_POWER = {"square": 2, "simple": 1, "uniform": 0}


def generalised_dice(
    overlap: Overlap[NDArray[Any]],
    weights: Literal["square", "simple", "uniform"] = "square",
    *,
    absent: Absent = "nan",
) -> Scores:
    """Generalised Dice (...) of pictures with overlaps (..., K): 2 sum_c w_c I_c / sum_c w_c (P_c + T_c).

    `weights`: w = 1 / T^2 ("square": Crum et al. 2006, Sudre et al. 2017, arXiv:1707.03237), 1 / T ("simple") or 1 ("uniform":
    Dice of all classes pooled), from the true pixels of that picture. A class without true pixels takes the largest weight of
    the others, so false positives of it count; where no class has any, all weigh the same. A picture with neither true nor
    predicted pixels scores `absent`. Scores of pictures are what the bootstrap resamples: their mean is the data set's.

    >>> picture = Overlap(np.array([90, 5]), np.array([95, 5]), np.array([90, 10]))
    >>> float(generalised_dice(picture, "uniform")), round(float(generalised_dice(picture)), 4)
    (0.95, 0.7071)
    """
    if weights not in _POWER:
        raise ValueError(f"weights is {weights!r}, expected {', '.join(map(repr, _POWER))}")
    truth = overlap.truth.astype(np.float64)
    there = (truth > 0) | (_POWER[weights] == 0)
    weight = ratio(np.ones_like(truth), np.where(there, truth ** _POWER[weights], 0.0), 0.0)
    largest = weight.max(axis=-1, keepdims=True)
    weight = np.where(there, weight, np.where(largest > 0, largest, 1.0))
    numerator = 2 * (weight * overlap.intersection).sum(axis=-1)
    denominator = (weight * (overlap.prediction + overlap.truth)).sum(axis=-1)
    return ratio(numerator, denominator, absent_score(absent))
