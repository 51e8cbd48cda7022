"""Comparing partitions of a picture into segments: Rand and information scores, and the helpers for maps of membranes.

S is the prediction and T the truth, both label maps of one shape; n_ij pixels are of predicted segment i and true segment j,
s_i and t_j in all. Definitions: Arganda-Carreras et al. 2015, doi 10.3389/fnana.2015.00142. Two questions that packages answer
differently are arguments:

- `foreground`: pixels whose truth is 0 (membrane, background) are left out, as in ISBI 2012; or 0 is a segment like any other.
- `singletons`: a pixel predicted 0 belongs to no segment and is a segment of its own, as in ISBI 2012 and SNEMI3D; or all
  pixels predicted 0 form one segment, as in scikit-image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from delineate.metrics.overlap import joint_counts

Labels = NDArray[Any]  # integers >= 0, 0 = no segment
Counts = NDArray[np.int64]


class PartitionScore(NamedTuple):
    """A score in 0..1, 1 for equal partitions, and its two halves."""

    score: float
    split: float  # below 1 where true segments are split
    merge: float  # below 1 where true segments are merged


class VariationOfInformation(NamedTuple):
    """Bits by which two partitions differ; 0 for equal ones."""

    split: float  # H(S|T): true segments that are split
    merge: float  # H(T|S): true segments that are merged

    @property
    def total(self) -> float:
        """H(S|T) + H(T|S)."""
        return self.split + self.merge


def v_rand(
    prediction: Labels,
    truth: Labels,
    *,
    alpha: float = 0.5,
    foreground: bool = True,
    singletons: bool = True,
    distinct_pairs: bool = False,
) -> PartitionScore:
    """V^Rand = sum n_ij^2 / (alpha sum s_i^2 + (1 - alpha) sum t_j^2): how far pairs of pixels are together in both partitions.

    `split` is alpha 0 (Rand recall), `merge` alpha 1 (Rand precision). With `distinct_pairs` a pixel makes no pair with itself:
    n (n - 1) in place of n^2. NaN when no pixel counts; 1 where a ratio is 0 / 0, because nothing was there to join.

    >>> two, one = np.array([[1, 1, 2, 2]]), np.array([[1, 1, 1, 1]])
    >>> v_rand(one, two)  # merged
    PartitionScore(score=0.6666666666666666, split=1.0, merge=0.5)
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected 0 <= alpha <= 1")
    table = _table(prediction, truth, foreground, singletons)
    together = table.pairs(table.joint, distinct_pairs, table.singles)
    in_prediction = table.pairs(table.prediction, distinct_pairs, table.singles)
    in_truth = table.pairs(table.truth, distinct_pairs)
    return PartitionScore(
        table.share(together, alpha * in_prediction + (1 - alpha) * in_truth),
        table.share(together, in_truth),
        table.share(together, in_prediction),
    )


def adapted_rand_error(
    prediction: Labels,
    truth: Labels,
    *,
    alpha: float = 0.5,
    foreground: bool = True,
    singletons: bool = True,
    distinct_pairs: bool = False,
) -> float:
    """1 - V^Rand. `singletons=False, distinct_pairs=True` gives the number of `skimage.metrics.adapted_rand_error`.

    >>> adapted_rand_error(np.array([[1, 2]]), np.array([[1, 2]]))
    0.0
    """
    scores = v_rand(prediction, truth, alpha=alpha, foreground=foreground, singletons=singletons, distinct_pairs=distinct_pairs)
    return 1.0 - scores.score


def rand_error(prediction: Labels, truth: Labels, *, foreground: bool = False, singletons: bool = False) -> float:
    """1 - the Rand index (Rand 1971): share of the pairs of pixels that are together in one partition and apart in the other.

    By default all pixels count and 0 is a segment like any other, as in scikit-learn's `rand_score` and in Jain et al. 2010.
    NaN when no pixel counts, 0 for a single one. What ISBI 2012 calls Rand error is `adapted_rand_error`.

    >>> rand_error(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 1, 2]]))  # 3 of 6 pairs are wrongly together
    0.5
    """
    table = _table(prediction, truth, foreground, singletons)
    pairs = [table.pairs(sizes, distinct=True) for sizes in (table.prediction, table.truth, table.joint)]
    if table.pixels < 2:
        return 0.0 if table.pixels else math.nan
    return (pairs[0] + pairs[1] - 2 * pairs[2]) / (table.pixels * (table.pixels - 1))


def v_info(
    prediction: Labels, truth: Labels, *, alpha: float = 0.5, foreground: bool = True, singletons: bool = True
) -> PartitionScore:
    """V^Info = I(S; T) / ((1 - alpha) H(S) + alpha H(T)): the information that the partitions share.

    `split` is alpha 0, I / H(S), and `merge` alpha 1, I / H(T). NaN when no pixel counts; 1 where a ratio is 0 / 0: a single
    segment cannot be split (or merged) further.

    >>> v_info(np.array([[1, 2, 3, 4]]), np.array([[1, 1, 2, 2]]))  # split in halves
    PartitionScore(score=0.6666666666666666, split=0.5, merge=1.0)
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected 0 <= alpha <= 1")
    table = _table(prediction, truth, foreground, singletons)
    of_prediction, of_truth, of_both = (table.entropy(c) for c in (table.prediction, table.truth, table.joint))
    mutual = max(0.0, of_prediction + of_truth - of_both)
    return PartitionScore(
        table.share(mutual, (1 - alpha) * of_prediction + alpha * of_truth),
        table.share(mutual, of_prediction),
        table.share(mutual, of_truth),
    )


def variation_of_information(
    prediction: Labels, truth: Labels, *, foreground: bool = True, singletons: bool = True
) -> VariationOfInformation:
    """H(S|T) (split) and H(T|S) (merge) in bits, a distance between partitions (Meila 2007); NaN when no pixel counts.

    `foreground=False, singletons=False` gives the numbers of `skimage.metrics.variation_of_information(truth, prediction)`.

    >>> variation_of_information(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 2, 2]]))
    VariationOfInformation(split=0.0, merge=1.0)
    """
    table = _table(prediction, truth, foreground, singletons)
    both = table.entropy(table.joint)
    split, merge = both - table.entropy(table.truth), both - table.entropy(table.prediction)
    return VariationOfInformation(*(x if math.isnan(x) else max(0.0, x) for x in (split, merge)))


def pixel_error(probability: NDArray[Any], truth: NDArray[Any], *, valid: NDArray[Any] | None = None) -> float:
    """1 - the largest F1 score over all thresholds of `probability`, pixel by pixel (ISBI 2012's pixel error).

    `probability` of the class that is non-zero in `truth`, arrays of one shape, a stack for example; `valid` (bool) chooses the
    pixels that count. F1 depends on which class is positive: cells in the ISBI challenge (labels 255), not membranes. NaN
    without a positive pixel.

    >>> pixel_error(np.array([0.9, 0.6, 0.4, 0.1]), np.array([1, 0, 1, 0]))  # best above 0.4: 2 right, 1 too many
    0.19999999999999996
    """
    if probability.shape != truth.shape:
        raise ValueError(f"probability has shape {probability.shape}, truth {truth.shape}; both must be the same")
    keep = np.ones(truth.shape, bool) if valid is None else valid.astype(bool)
    scores, positive = probability[keep], truth[keep] != 0
    total = int(positive.sum())
    if total == 0:
        return math.nan
    order = np.argsort(scores, kind="stable")[::-1]
    found = np.cumsum(positive[order])  # true positives when the first k + 1 pixels are above the threshold
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # a threshold cannot part equal scores
    return float(1.0 - (2 * found[ends] / (ends + 1 + total)).max())


def segments_of(interior: NDArray[Any], threshold: float = 0.5, *, thin: bool = False) -> NDArray[np.int32]:
    """Connected components (4-connected) of the pixels whose probability to lie inside a cell is above `threshold`.

    `interior` (H, W): probability, or a mask. For a map m of membranes pass 1 - m. Returns (H, W) int32, 0 = between cells.
    With `thin` the segments then grow, the most probable pixels first, until borders one pixel wide are left between them (a
    watershed), so that the width of a membrane does not count.

    >>> segments_of(np.array([[0.9, 0.2, 0.8]])).tolist()
    [[1, 0, 2]]
    """
    from scipy.ndimage import label

    # scipy's default neighbourhood is the cross: a diagonal gap in a membrane does not join two cells.
    segments = np.empty(interior.shape, np.int32)
    label(interior > threshold, output=segments)
    if not thin:
        return segments
    from skimage.segmentation import watershed

    return watershed(-interior.astype(np.float32), markers=segments, watershed_line=True).astype(np.int32)


@dataclass(frozen=True, slots=True)
class BestThreshold:
    """The threshold at which the mean score of some pictures is largest."""

    score: float
    threshold: float
    per_image: tuple[float, ...]  # scores at that threshold


def best_over_thresholds(
    interiors: Sequence[NDArray[Any]],
    truths: Sequence[Labels],
    *,
    score: Callable[[Labels, Labels], PartitionScore] = v_rand,
    thresholds: Sequence[float] = tuple(k / 10 for k in range(1, 10)),
    thin: bool = True,
) -> BestThreshold:
    """Segment each map at each threshold and return the best mean of `score`: with `thin`, V^Rand or V^Info of ISBI 2012.

    `interiors`: maps (H, W) of the probability to lie inside a cell; `truths`: label maps (H, W), 0 = between cells, which
    `segments_of(mask)` makes of a mask. Scores are taken picture by picture, in two dimensions. The threshold is chosen on the
    pictures that are scored, as the challenge does: a number found so is no estimate for other pictures.

    >>> truth = np.array([[1, 1, 0, 2, 2]])
    >>> best_over_thresholds([np.array([[0.9, 0.9, 0.5, 0.8, 0.8]])], [truth]).score
    1.0
    """
    if len(interiors) != len(truths) or not truths:
        raise ValueError(f"{len(interiors)} maps and {len(truths)} truths; expected as many of each, and at least one")
    best = BestThreshold(-math.inf, math.nan, ())
    for threshold in thresholds:
        per_image = [
            score(segments_of(interior, threshold, thin=thin), truth).score
            for interior, truth in zip(interiors, truths, strict=True)
        ]
        mean = float(np.mean(per_image))
        if mean > best.score:
            best = BestThreshold(mean, threshold, tuple(per_image))
    return best


@dataclass(frozen=True, slots=True)
class _Table:
    """Sizes of the segments and of their intersections, over the pixels that count."""

    joint: Counts
    prediction: Counts
    truth: Counts
    singles: int  # pixels that are predicted segments of their own; they are in none of joint and prediction

    @property
    def pixels(self) -> int:
        return int(self.truth.sum())

    def pairs(self, sizes: Counts, distinct: bool, singles: int = 0) -> float:
        """Sum of n^2, or of n (n - 1), over the sizes and `singles` segments of one pixel."""
        # Exact in int64 for pictures of up to 3e9 pixels; floating point from there on.
        exact = sizes if self.pixels < 3_000_000_000 else sizes.astype(np.float64)
        squares = float((exact * exact).sum())
        return squares - float(sizes.sum()) if distinct else squares + singles

    def entropy(self, sizes: Counts) -> float:
        """H = log2 n - sum c log2 c / n; segments of one pixel add nothing to the sum."""
        if self.pixels == 0:
            return math.nan
        return math.log2(self.pixels) - float((sizes * np.log2(np.maximum(sizes, 1))).sum()) / self.pixels

    def share(self, part: float, whole: float) -> float:
        if self.pixels == 0:
            return math.nan
        return part / whole if whole > 0 else 1.0


def _table(prediction: Labels, truth: Labels, foreground: bool, singletons: bool) -> _Table:
    counts = joint_counts(prediction, truth)
    pixels, t, s = counts.pixels, counts.truth, counts.prediction
    if foreground:
        keep = counts.truth_ids[t] != 0
        pixels, t, s = pixels[keep], t[keep], s[keep]
    truth_sizes = np.zeros(len(counts.truth_ids), np.int64)
    np.add.at(truth_sizes, t, pixels)
    singles = 0
    if singletons:
        alone = counts.prediction_ids[s] == 0
        singles = int(pixels[alone].sum())
        pixels, s = pixels[~alone], s[~alone]
    prediction_sizes = np.zeros(len(counts.prediction_ids), np.int64)
    np.add.at(prediction_sizes, s, pixels)
    return _Table(pixels, prediction_sizes, truth_sizes, singles)
