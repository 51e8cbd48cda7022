"""How sure a number is: bootstrap over pictures (Efron 1979), from what each picture adds, without measuring again.

A resample draws N of N pictures with replacement. All that a score needs to know of it is how often each picture was drawn; so
a score is a function of draws (R, N) that returns R numbers, and the score of the data itself is that of one draw of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from delineate.errors import ConfigError

Statistics = NDArray[Any]  # (N, ...): what each of N pictures adds to the sums
Reduce = Callable[[NDArray[np.float64]], NDArray[Any]]  # summed statistics (R, ...) to R scores
Draws = NDArray[np.float64]  # (R, N): how often each of R resamples draws each of N pictures
ScoresOf = Callable[[Draws], Mapping[str, NDArray[Any]]]  # the scores of each resample, (R,), by name


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
    better: float  # share of resamples in which A is better; a tie counts half


@dataclass(frozen=True, slots=True)
class Resampling:
    """How to resample; raises `ConfigError` for a confidence outside 0..1 or no resamples."""

    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence {self.confidence}: expected a share between 0 and 1, such as 0.95")
        if self.resamples < 1:
            raise ConfigError(f"resamples {self.resamples}: expected at least 1, better 2000")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed}: expected 0 or more")


DEFAULT_RESAMPLING = Resampling()


def bootstrap_interval(
    statistics: Statistics,
    reduce: Reduce | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a score over resampled sets of the pictures.

    `statistics` (N, ...): what each picture adds, for example its confusion matrix (N, K, K). A resample draws N pictures with
    replacement, adds up their statistics, and `reduce` turns R sums (R, ...) into R scores; so no metric runs again:
    `lambda c: ConfusionMatrix.from_counts(c).mean_iou()`. Without `reduce` the statistics (N,) are scores of pictures, and the
    score is their mean without NaN. Few pictures give too narrow an interval; one gives a point.

    >>> low, high = bootstrap_interval(np.array([0.7, 0.8, 0.9, 0.8]))
    >>> 0.7 < low < 0.8 < high < 0.9
    True
    """
    statistics = np.asarray(statistics)
    score = _score_of(statistics, reduce)
    return score_intervals(score, len(statistics), Resampling(confidence, resamples, seed))[_ONLY]


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
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}; both must be of the same pictures")
    of_a, of_b = _score_of(a, reduce), _score_of(b, reduce)
    return compare_scores(of_a, of_b, len(a), Resampling(confidence, resamples, seed))[_ONLY]


def score_intervals(scores: ScoresOf, pictures: int, resampling: Resampling = DEFAULT_RESAMPLING) -> dict[str, Interval]:
    """Percentile intervals of all `scores` of `pictures` pictures; all see the same resamples.

    >>> statistics = np.array([0.7, 0.8, 0.9, 0.8])
    >>> low, high = score_intervals(lambda draws: {"mean": mean_score(draws, statistics)}, 4)["mean"]
    >>> 0.7 < low < 0.8 < high < 0.9
    True
    """
    blocks = [scores(draws) for draws in _draws(pictures, resampling)]
    drawn = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return {name: Interval(*_percentiles(values, resampling.confidence)) for name, values in drawn.items()}


def compare_scores(
    a: ScoresOf,
    b: ScoresOf,
    pictures: int,
    resampling: Resampling = DEFAULT_RESAMPLING,
    *,
    lower_is_better: Collection[str] = (),
) -> dict[str, Comparison]:
    """Compare the scores that `a` and `b` both have, on the same pictures in the same order, in the same resamples."""
    whole = np.ones((1, pictures))
    of_a, of_b = a(whole), b(whole)
    names = [name for name in of_a if name in of_b]
    drawn = [(a(draws), b(draws)) for draws in _draws(pictures, resampling)]
    compared = {}
    for name in names:
        with np.errstate(invalid="ignore"):  # inf - inf
            differences = np.concatenate([np.asarray(x[name] - y[name], np.float64) for x, y in drawn])
            observed = float(of_a[name][0] - of_b[name][0])
        compared[name] = _comparison(observed, differences, resampling.confidence, name in lower_is_better)
    return compared


def _comparison(observed: float, differences: NDArray[np.float64], confidence: float, lower_is_better: bool) -> Comparison:
    defined = differences[~np.isnan(differences)]
    low, high = _percentiles(differences, confidence)
    if len(defined) == 0:
        return Comparison(observed, low, high, math.nan, math.nan)
    tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    p_value = min(1.0, 2 * (tail + 1) / (len(defined) + 1))
    gain = -defined if lower_is_better else defined
    better = float((gain > 0).mean() + (gain == 0).mean() / 2)
    return Comparison(observed, low, high, p_value, better)


_BLOCK = 1 << 24
"""Numbers in a block: 128 MiB of draws, and of sums."""


def sum_score(draws: Draws, statistics: Statistics, reduce: Callable[[NDArray[np.float64]], Any]) -> Any:
    """What `reduce` makes of the summed statistics (R, ...) of each resample.

    `reduce` returns R scores, or a dict of such by name. How often each picture is drawn times what it adds is one matrix
    product; sums of counts are exact below 2^53.

    >>> sum_score(np.array([[1.0, 1.0], [2.0, 0.0]]), np.array([[1, 2], [3, 4]]), lambda s: s[:, 0] / s[:, 1])
    array([0.66666667, 0.5       ])
    """
    flat = statistics.reshape(len(statistics), -1).astype(np.float64)
    rows = max(1, _BLOCK // max(1, flat.shape[1]))
    parts = [
        reduce((draws[start : start + rows] @ flat).reshape(-1, *statistics.shape[1:])) for start in range(0, len(draws), rows)
    ]
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Mapping):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def mean_score(draws: Draws, values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean of the pictures' `values` (N,) in each resample, without NaN; infinite where an infinite one is drawn.

    >>> mean_score(np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]]), np.array([1.0, 2.0, np.nan]))
    array([1.5, 2. ])
    """
    finite, defined = np.isfinite(values), ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (draws @ np.where(finite, values, 0.0)) / (draws @ defined.astype(np.float64))
    endless = draws @ (defined & ~finite).astype(np.float64) > 0
    return np.where(endless, np.inf, means)


_ONLY = "score"


def _score_of(statistics: Statistics, reduce: Reduce | None) -> ScoresOf:
    """The one score that statistics and `reduce`, or the mean, define."""
    if statistics.ndim == 0 or len(statistics) == 0:
        raise ValueError("there are no pictures to resample")
    if reduce is not None:
        return lambda draws: {_ONLY: sum_score(draws, statistics, reduce)}
    if statistics.ndim != 1:
        raise ValueError(f"statistics have shape {statistics.shape}; give `reduce`, or one score a picture")
    return lambda draws: {_ONLY: mean_score(draws, statistics)}


def _draws(pictures: int, resampling: Resampling) -> Iterator[Draws]:
    """The resamples in blocks; the same for the same seed and number of pictures, whatever the size of a block."""
    if pictures < 1:
        raise ValueError("there are no pictures to resample")
    rng = np.random.default_rng(resampling.seed)
    block = max(1, _BLOCK // pictures)
    for start in range(0, resampling.resamples, block):
        rows = min(block, resampling.resamples - start)
        # Drawing N times with replacement: the counts are multinomial.
        yield rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=rows).astype(np.float64)


def _percentiles(scores: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    defined = scores[~np.isnan(scores)]
    if len(defined) == 0:
        return math.nan, math.nan
    ends = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if not np.isfinite(defined).all():  # between two infinities there is nothing to interpolate
        low, high = np.sort(defined)[np.round(ends * (len(defined) - 1)).astype(int)]
    else:
        low, high = np.quantile(defined, ends)
    return float(low), float(high)
