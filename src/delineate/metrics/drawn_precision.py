"""Average precision of drawn sets of pictures: a running sum over detections in which each weighs as often as its picture.

All draws run side by side: rows are detections from the best score down, columns are draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from delineate.metrics.average_precision import Number, summary_numbers
from delineate.metrics.bootstrap import Draws
from delineate.metrics.overlap import nan_mean, ratio

if TYPE_CHECKING:
    from delineate.metrics.matches import Matches

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
EPSILON = float(np.spacing(1))
"""pycocotools adds it to every denominator of a precision."""

_NUMBERS = 1 << 24
"""Weights in a block, 128 MiB."""


def drawn_scores(matches: Matches, draws: Draws) -> dict[str, Floats]:
    """The numbers of a summary for each draw, (R,) by name; NaN where nothing counts. `draws` (R, I) of the I pictures."""
    largest = max((len(rows) for rows in matches.rows()), default=1)
    step = max(1, _NUMBERS // max(largest, len(matches.images), 1))
    blocks = [_block_scores(matches, draws[start : start + step]) for start in range(0, len(draws), step)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _block_scores(matches: Matches, draws: Draws) -> dict[str, Floats]:
    settings = matches.settings
    numbers = summary_numbers(settings)
    last = len(settings.max_detections) - 1
    shape = (len(settings.iou_thresholds), len(matches.categories), len(draws))
    precision = {area: np.full(shape, np.nan) for area in range(len(settings.areas))}
    places = {(n.area, n.max_detections % (last + 1)) for n in numbers.values() if n.kind == "recall"}
    recall = {place: np.full(shape, np.nan) for place in places}
    drawn = np.ascontiguousarray(draws.T)  # (I, R)
    for k, rows in enumerate(matches.rows()):
        truth = matches.truth_category == k
        positives = matches.truths[truth].T.astype(np.float64) @ drawn[matches.truth_image[truth]]  # (A, R)
        ranked = matches.ranked(rows, settings.max_detections[-1])
        for area in np.flatnonzero(matches.truths[truth].sum(axis=0)).tolist():
            reached = _precision_and_recall(matches, ranked, area, drawn, positives[area])
            precision[area][:, k], whole = reached
            for at, m in places:
                if at == area:
                    limit = settings.max_detections[m]
                    within = whole if m == last else _recall(matches, ranked, area, limit, drawn, positives[area])
                    recall[at, m][:, k] = within
    return {name: _mean(matches, number, precision, recall, last) for name, number in numbers.items()}


def _mean(
    matches: Matches, number: Number, precision: Mapping[int, Floats], recall: Mapping[tuple[int, int], Floats], last: int
) -> Floats:
    """(R,) means over thresholds and classes."""
    of_recall = number.kind == "recall"
    values = recall[number.area, number.max_detections % (last + 1)] if of_recall else precision[number.area]
    if number.iou is not None:
        values = values[number.iou : number.iou + 1]
    if number.frequency:
        values = values[:, [c.frequency == number.frequency for c in matches.categories]]
    return nan_mean(values.reshape(-1, values.shape[-1]).T)


class _Reached(NamedTuple):
    precision: Floats  # (T, R) mean over recalls
    recall: Floats  # (T, R) of all detections


def _precision_and_recall(matches: Matches, ranked: Ints, area: int, drawn: Floats, positives: Floats) -> _Reached:
    """Of one class: `drawn` (I, R) how often each picture is drawn, `positives` (R,) true objects then; NaN for none.

    Precision is looked up where recall rises, which is at hits: only those need the envelope. The mean over recalls counts for
    each hit the recalls that it is the first to reach.
    """
    wanted = np.array(matches.settings.recalls)
    image, hit = matches.image[ranked], matches.hit[ranked, area]
    counted = hit | matches.miss[ranked, area]
    thresholds = len(matches.settings.iou_thresholds)
    mean, recall = np.zeros((thresholds, len(positives))), np.zeros((thresholds, len(positives)))
    total, rows = np.zeros((0, 0)), np.zeros(0, np.int64)
    for t in range(thresholds):
        there = np.flatnonzero(counted[:, t])
        if not np.array_equal(there, rows):  # most thresholds count the same detections
            total, rows = running(np.add, drawn[image[there]]), there
        at = np.flatnonzero(hit[there, t])
        if len(at) == 0:
            continue
        hits = running(np.add, drawn[image[there[at]]])
        envelope = running(np.maximum, (hits / (total[at] + EPSILON))[::-1])[::-1]
        of_truth = ratio(hits, positives, empty=0.0)
        reached = np.searchsorted(wanted, of_truth, side="right")
        mean[t] = (envelope * np.diff(reached, axis=0, prepend=0)).sum(axis=0) / len(wanted)
        recall[t] = of_truth[-1]
    mean[:, positives == 0] = recall[:, positives == 0] = np.nan
    return _Reached(mean, recall)


def _recall(matches: Matches, ranked: Ints, area: int, limit: int, drawn: Floats, positives: Floats) -> Floats:
    """Recall (T, R) of the best `limit` detections of each picture; NaN where `positives` (R,) is 0."""
    rows = ranked[matches.rank[ranked] < limit]
    return ratio(matches.hit[rows, area].T.astype(np.float64) @ drawn[matches.image[rows]], positives)


def running(combine: np.ufunc, rows: Floats) -> Floats:
    """Accumulate along the first axis, in place: row by row, which for wide rows is many times as fast as `accumulate`.

    >>> running(np.maximum, np.array([[1.0, 5.0], [2.0, 3.0]])).tolist()
    [[1.0, 5.0], [2.0, 5.0]]
    """
    for before, row in pairwise(rows):
        combine(before, row, out=row)
    return rows
