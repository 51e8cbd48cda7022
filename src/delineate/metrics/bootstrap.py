"""How sure a number is: bootstrap intervals over pictures, from what each picture adds to the counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Statistics = NDArray[Any]  # (N, ...): what each of N pictures adds to the sums
Reduce = Callable[[NDArray[np.float64]], NDArray[Any]]  # summed statistics (R, ...) to R scores


class Interval(NamedTuple):
    """Ends of an interval; NaN where no resample gives a number."""

    low: float
    high: float


class Comparison(NamedTuple):
    """Score of A minus score of B, its interval, and how surprising it is if both are equally good."""

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    statistics: Statistics,
    reduce: Reduce | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a score over resampled sets of the pictures (Efron 1979).

    `statistics` (N, ...): what each picture adds, for example its confusion matrix (N, K, K). A resample draws N pictures with
    replacement, adds up their statistics, and `reduce` turns R sums (R, ...) into R scores; so no metric runs again:
    `lambda c: ConfusionMatrix.from_counts(c).mean_iou()`. Without `reduce` the statistics (N,) are scores of pictures, and the
    score is their mean without NaN. Few pictures give too narrow an interval; one gives a point.

    >>> low, high = bootstrap_interval(np.array([0.7, 0.8, 0.9, 0.8]))
    >>> 0.7 < low < 0.8 < high < 0.9
    True
    """
    _check(confidence, resamples)
    statistics, reduce = _sums(np.asarray(statistics), reduce)
    scores = np.concatenate([reduce(s) for s in _resampled(statistics, resamples, seed)])
    return Interval(*_percentiles(scores, confidence))


def paired_bootstrap(
    a: Statistics,
    b: Statistics,
    reduce: Reduce | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two methods on the same pictures: each resample draws the same pictures for both.

    `a` and `b` (N, ...) as in `bootstrap_interval`, in the same order of pictures. `p_value` is two-sided: twice the smaller
    share of resamples whose difference is <= 0 or >= 0, counting the data itself once, so at least 2 / (resamples + 1).

    >>> better, worse = np.array([0.9, 0.8, 0.95, 0.85]), np.array([0.8, 0.7, 0.9, 0.8])
    >>> paired_bootstrap(better, worse).p_value < 0.05
    True
    """
    _check(confidence, resamples)
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}; both must be of the same pictures")
    (a, of_a), (b, of_b) = _sums(a, reduce), _sums(b, reduce)
    observed = float(of_a(a.sum(axis=0, keepdims=True))[0] - of_b(b.sum(axis=0, keepdims=True))[0])
    drawn = zip(_resampled(a, resamples, seed), _resampled(b, resamples, seed), strict=True)
    differences = np.concatenate([of_a(x) - of_b(y) for x, y in drawn])
    defined = differences[~np.isnan(differences)]
    tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    p_value = min(1.0, 2 * (tail + 1) / (len(defined) + 1)) if len(defined) else math.nan
    return Comparison(observed, *_percentiles(differences, confidence), p_value)


def _check(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence {confidence}, resamples {resamples}: expected 0 < confidence < 1 and at least 1 resample")


def _sums(statistics: Statistics, reduce: Reduce | None) -> tuple[NDArray[np.float64], Reduce]:
    """Statistics that may be added, and what makes scores of the sums."""
    if statistics.ndim == 0 or len(statistics) == 0:
        raise ValueError("there are no pictures to resample")
    if reduce is not None:
        return statistics.astype(np.float64), reduce
    if statistics.ndim != 1:
        raise ValueError(f"statistics have shape {statistics.shape}; give `reduce`, or one score a picture")
    defined = ~np.isnan(statistics)
    pairs = np.stack([np.where(defined, statistics, 0.0), defined], axis=1).astype(np.float64)
    return pairs, _mean


def _mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return sums[:, 0] / sums[:, 1]


_BLOCK = 1 << 24
"""Numbers in a block: 128 MiB of draws, and of sums."""


def _resampled(statistics: NDArray[np.float64], resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Sums (R', ...) of the statistics of the pictures that each resample draws, in blocks; the same draws for the same seed.

    How often each picture is drawn is multinomial, so a block of resamples is one matrix product; sums of counts are exact
    below 2^53.
    """
    rng = np.random.default_rng(seed)
    pictures = len(statistics)
    flat = statistics.reshape(pictures, -1)
    block = max(1, _BLOCK // max(pictures, flat.shape[1]))
    for start in range(0, resamples, block):
        drawn = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=min(block, resamples - start))
        yield (drawn.astype(np.float64) @ flat).reshape(-1, *statistics.shape[1:])


def _percentiles(scores: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    defined = scores[~np.isnan(scores)]
    if len(defined) == 0:
        return math.nan, math.nan
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
