"""Objects found, missed and invented: instance maps matched by IoU, and the scores at fixed IoU of StarDist and DSB 2018."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delineate.errors import DataError
from delineate.metrics.overlap import Absent, Overlap, absent_score, joint_counts, nan_mean, ratio
from delineate.metrics.sums import StreamingSums

THRESHOLDS: tuple[float, ...] = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""0.50, 0.55 ... 0.95, as in COCO and DSB 2018."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Every pair of a true and a predicted object that overlap."""

    truth: NDArray[np.int64]  # (P,) index into truth_ids
    prediction: NDArray[np.int64]  # (P,) index into prediction_ids
    iou: NDArray[np.float64]  # (P,) > 0
    truth_ids: NDArray[np.int64]  # (M,) labels, sorted, without 0
    prediction_ids: NDArray[np.int64]  # (N,)


@dataclass(frozen=True, slots=True)
class Matching:
    """Which objects belong together at one IoU threshold; ids are the labels in the maps."""

    threshold: float
    truth_ids: NDArray[np.int64]  # (M,) all true objects
    prediction_ids: NDArray[np.int64]  # (N,) all predicted objects
    matched_truth: NDArray[np.int64]  # (TP,)
    matched_prediction: NDArray[np.int64]  # (TP,) partner of each
    iou: NDArray[np.float64]  # (TP,) of each pair

    @property
    def true_positives(self) -> int:
        """Pairs."""
        return len(self.matched_truth)

    @property
    def false_positives(self) -> int:
        """Predicted objects without a partner."""
        return len(self.prediction_ids) - self.true_positives

    @property
    def false_negatives(self) -> int:
        """True objects without a partner."""
        return len(self.truth_ids) - self.true_positives


def candidate_pairs(prediction: NDArray[Any], truth: NDArray[Any], ignore: NDArray[Any] | None = None) -> Candidates:
    """IoU of all pairs of objects that overlap, from one pass over two instance maps.

    Maps (H, W) of integers, 0 = background. Pixels where `ignore` (bool) is true are taken out of both maps; an object that has
    no pixel left does not count. Raises DataError when the shapes differ or a label is negative.
    """
    if prediction.shape != truth.shape:
        raise DataError(f"prediction has shape {prediction.shape}, truth {truth.shape}; both must be the same")
    if ignore is not None:
        prediction, truth = (np.where(ignore, 0, x) for x in (prediction, truth))
    try:
        counts = joint_counts(prediction, truth)
    except ValueError as error:
        raise DataError(str(error)) from error
    overlap = Overlap(counts.pixels, counts.prediction_pixels[counts.prediction], counts.truth_pixels[counts.truth])
    objects = (counts.truth_ids[counts.truth] > 0) & (counts.prediction_ids[counts.prediction] > 0)
    # The background, where it occurs, is the first of the sorted labels.
    first_truth, first_prediction = (int(ids[:1].tolist() == [0]) for ids in (counts.truth_ids, counts.prediction_ids))
    return Candidates(
        counts.truth[objects] - first_truth,
        counts.prediction[objects] - first_prediction,
        overlap.iou()[objects],
        counts.truth_ids[first_truth:],
        counts.prediction_ids[first_prediction:],
    )


def match_objects(
    prediction: NDArray[Any] | Candidates,
    truth: NDArray[Any] | None = None,
    iou_threshold: float = 0.5,
    *,
    ignore: NDArray[Any] | None = None,
) -> Matching:
    """Pair predicted with true objects of IoU >= `iou_threshold`: as many pairs as possible, with the largest sum of IoU.

    Instance maps (H, W), 0 = background, or the `Candidates` of two. Above 0.5 no object has two partners and the matching is
    unique; down from there it is an optimal assignment, as in StarDist. `iou_threshold` in (0, 1].

    >>> truth = np.array([[1, 1, 1, 0, 2, 2]])
    >>> found = np.array([[5, 5, 0, 0, 0, 6]])
    >>> matching = match_objects(found, truth, 0.6)
    >>> matching.matched_truth.tolist(), matching.matched_prediction.tolist(), matching.false_positives
    ([1], [5], 1)
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}, expected 0 < iou_threshold <= 1")
    if isinstance(prediction, Candidates):
        pairs = prediction
    else:
        if truth is None:
            raise ValueError("match_objects needs two instance maps, or Candidates")
        pairs = candidate_pairs(prediction, truth, ignore)
    allowed = np.flatnonzero(pairs.iou >= iou_threshold)
    chosen = _assign(pairs.truth[allowed], pairs.prediction[allowed], pairs.iou[allowed])
    index = allowed[chosen]
    return Matching(
        iou_threshold,
        pairs.truth_ids,
        pairs.prediction_ids,
        pairs.truth_ids[pairs.truth[index]],
        pairs.prediction_ids[pairs.prediction[index]],
        pairs.iou[index],
    )


def _assign(truth: NDArray[np.int64], prediction: NDArray[np.int64], iou: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the pairs that an optimal assignment keeps.

    Most objects have one possible partner, which has no other: those pairs are kept at once. The others fall into small groups,
    so that no matrix over all objects is ever made.
    """
    if len(truth) == 0:
        return np.zeros(0, np.int64)
    lonely = (np.bincount(truth)[truth] == 1) & (np.bincount(prediction)[prediction] == 1)
    kept = [np.flatnonzero(lonely)]
    rest = np.flatnonzero(~lonely)
    if len(rest):
        from scipy.optimize import linear_sum_assignment
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        rows, columns = int(truth.max()) + 1, int(prediction.max()) + 1
        size = rows + columns
        edges = coo_array((np.ones(len(rest)), (truth[rest], rows + prediction[rest])), shape=(size, size))
        group = connected_components(edges, directed=False)[1][truth[rest]]
        for g in np.unique(group):
            members = rest[group == g]
            t_ids, t = np.unique(truth[members], return_inverse=True)
            p_ids, p = np.unique(prediction[members], return_inverse=True)
            # A pair is worth more than all the IoU that can be gained without it.
            worth = np.zeros((len(t_ids), len(p_ids)))
            worth[t, p] = 2.0 * min(worth.shape) + iou[members]
            pair = np.full(worth.shape, -1)
            pair[t, p] = members
            picked = pair[linear_sum_assignment(worth, maximize=True)]
            kept.append(picked[picked >= 0])
    return np.sort(np.concatenate(kept))


class ObjectScores(StreamingSums):
    """Scores of objects over pictures, at several IoU thresholds, from sums that stream and merge.

    `sums` (..., T, 4) float64: true positives, false positives, false negatives (whole numbers, exact to 2^53) and the sum of
    the matched IoU, at each of T thresholds. Leading axes, one entry a picture for example, stay in the scores (`with_sums`).
    `absent` is what a score is where there is nothing to count ("nan", 0 or 1): for `average_precision` a picture without
    objects, none of which was predicted.

    >>> scores = ObjectScores((0.5, 0.9))
    >>> picture = scores.update(np.array([[1, 1, 0, 2]]), np.array([[1, 1, 1, 0]]))
    >>> scores.average_precision(), scores.recall(), scores.mean_matched_iou()
    (array([0.5, 0. ]), array([1., 0.]), array([0.66666667,        nan]))
    """

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS) -> None:
        self.thresholds = tuple(thresholds)
        super().__init__(np.zeros((len(self.thresholds), 4)), {"thresholds": self.thresholds})

    def update(self, prediction: NDArray[Any], truth: NDArray[Any], *, ignore: NDArray[Any] | None = None) -> ObjectScores:
        """Add one picture's instance maps (H, W), 0 = background, and return the scores of that picture alone."""
        return self.update_pairs(candidate_pairs(prediction, truth, ignore))

    def update_pairs(self, pairs: Candidates) -> ObjectScores:
        """Add one picture's objects, which may overlap, by the IoU of their pairs; returns the scores of that picture alone."""
        matchings = [match_objects(pairs, iou_threshold=threshold) for threshold in self.thresholds]
        rows = [[m.true_positives, m.false_positives, m.false_negatives, m.iou.sum()] for m in matchings]
        picture = self.with_sums(np.array(rows))
        self.merge(picture)
        return picture

    @property
    def true_positives(self) -> NDArray[np.float64]:
        """Matched objects, (..., T)."""
        return self.sums[..., 0]

    @property
    def false_positives(self) -> NDArray[np.float64]:
        """Predicted objects without a partner, (..., T)."""
        return self.sums[..., 1]

    @property
    def false_negatives(self) -> NDArray[np.float64]:
        """True objects without a partner, (..., T)."""
        return self.sums[..., 2]

    @property
    def _overlap(self) -> Overlap[NDArray[Any]]:
        """The objects as two sets that overlap in the matched ones, so that their scores are those of masks."""
        matched = self.true_positives
        return Overlap(matched, matched + self.false_positives, matched + self.false_negatives)

    def average_precision(self, *, absent: Absent = "nan") -> NDArray[np.float64]:
        """TP / (TP + FP + FN) at each threshold, (..., T): "AP" of StarDist and of DSB 2018, not the area of COCO."""
        return self._overlap.iou(empty=absent_score(absent))

    def mean_average_precision(self, *, absent: Absent = "nan") -> NDArray[np.float64]:
        """Mean of `average_precision` over the thresholds, (...)."""
        return nan_mean(self.average_precision(absent=absent))

    def precision(self, *, absent: Absent = "nan") -> NDArray[np.float64]:
        """TP / (TP + FP), (..., T); `absent` where nothing is predicted."""
        return self._overlap.precision(empty=absent_score(absent))

    def recall(self, *, absent: Absent = "nan") -> NDArray[np.float64]:
        """TP / (TP + FN), (..., T); `absent` where there is no object."""
        return self._overlap.recall(empty=absent_score(absent))

    def f1(self, *, absent: Absent = "nan") -> NDArray[np.float64]:
        """TP / (TP + FP / 2 + FN / 2), (..., T): panoptic RQ."""
        return self._overlap.dice(empty=absent_score(absent))

    def mean_matched_iou(self) -> NDArray[np.float64]:
        """Mean IoU of the matched pairs, (..., T): panoptic SQ; NaN where nothing is matched."""
        return ratio(self.sums[..., 3], self.true_positives)

    def panoptic_quality(self, *, absent: Absent = "nan") -> NDArray[np.float64]:
        """Sum of matched IoU / (TP + FP / 2 + FN / 2) = SQ RQ, (..., T); panoptic segmentation reports it for IoU > 0.5."""
        whole = self.true_positives + (self.false_positives + self.false_negatives) / 2
        return ratio(self.sums[..., 3], whole, absent_score(absent))

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """By flat name, (...): "ap", "ap50", "ap55" ...; precision, recall, f1, matched IoU and PQ at the first threshold."""
        names = [f"{round(100 * threshold)}" for threshold in self.thresholds]
        average_precision = self.average_precision()
        at_first = {
            "precision": self.precision(),
            "recall": self.recall(),
            "f1": self.f1(),
            "mean_matched_iou": self.mean_matched_iou(),
            "panoptic_quality": self.panoptic_quality(),
        }
        return {
            "ap": self.mean_average_precision(),
            **{f"ap{name}": average_precision[..., t] for t, name in enumerate(names)},
            **{f"{key}_{names[0]}": value[..., 0] for key, value in at_first.items()},
        }

    def summary(self) -> dict[str, float]:
        """`scores` as plain numbers, of sums without leading axes."""
        return {name: float(value) for name, value in self.scores().items()}


def object_scores(
    predictions: Sequence[NDArray[Any]], truths: Sequence[NDArray[Any]], *, thresholds: Sequence[float] = THRESHOLDS
) -> ObjectScores:
    """`ObjectScores` of a list of predicted and a list of true instance maps, picture by picture, added up.

    >>> same = np.array([[1, 0, 2]])
    >>> object_scores([same], [same]).summary()["ap"]
    1.0
    """
    if len(predictions) != len(truths):
        raise DataError(f"{len(predictions)} predictions and {len(truths)} truths; expected as many of each")
    scores = ObjectScores(thresholds)
    for prediction, truth in zip(predictions, truths, strict=True):
        scores.update(prediction, truth)
    return scores
