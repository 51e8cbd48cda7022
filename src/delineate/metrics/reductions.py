"""From the scores of many pictures and classes to one number: every order of averaging, and the mean IoU of seven packages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from delineate.metrics.overlap import Absent, Overlap, absent_score, nan_mean, ratio
from delineate.metrics.scores import Presence, Scores, exists

Score = Literal["iou", "dice", "precision", "recall"]
Average = Literal["macro", "micro", "weighted"]
Over = Literal["dataset", "image", "class", "image_class"]


@dataclass(frozen=True, slots=True)
class Reduction:
    """How the overlaps of N pictures and K classes become one number.

    `over` says what the mean is taken over:

    - "dataset": pixels of all pictures are added up, then classes are scored.
    - "image": each picture is scored, then the mean of the pictures.
    - "class": each class has the mean over the pictures that it exists in, then the mean of the classes.
    - "image_class": the mean of all pairs (picture, class) that exist.

    `average` says how the classes of the data set, or of a picture, become one: "macro", their mean; "weighted", a mean in
    which each weighs as much as its true pixels; "micro", their pixels are added up before scoring. The last two `over` are
    macro. `absent` and `presence` are those of `ClassScores`; what is NaN is left out of every mean.

    What a picture adds is `statistics`; the sum of those is all that `reduce` needs. So the number streams, merges, and
    `bootstrap_interval(reduction.statistics(overlap), reduction.reduce)` is its interval.

    >>> both = Overlap(np.array([[4, 0], [1, 1]]), np.array([[4, 2], [1, 1]]), np.array([[6, 0], [1, 1]]))  # 2 pictures
    >>> Reduction("iou")(both), Reduction("iou", over="image")(both)
    (0.5238095238095238, 0.6666666666666666)
    """

    score: Score = "iou"
    average: Average = "macro"
    over: Over = "dataset"
    absent: Absent = "nan"
    presence: Presence = "union"

    def __post_init__(self) -> None:
        choices = {"score": Score, "average": Average, "over": Over, "absent": Absent, "presence": Presence}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(str, get_args(allowed)))}")
        if self.over in ("class", "image_class") and self.average != "macro":
            raise ValueError(f"over {self.over!r} is a mean of single classes; average {self.average!r} has no meaning there")

    def __call__(self, overlap: Overlap[NDArray[Any]]) -> float:
        """The number for pictures and classes (N, K); a sum over pictures (K,) will do for "dataset"."""
        if overlap.truth.ndim == 1 and self.over != "dataset":
            raise ValueError(f"over {self.over!r} needs the overlap of each picture, (N, K), and not only their sum (K,)")
        sums = self.statistics(overlap)
        return float(self.reduce(sums.sum(axis=0) if overlap.truth.ndim > 1 else sums))

    def statistics(self, overlap: Overlap[NDArray[Any]]) -> NDArray[Any]:
        """What each picture adds, from overlaps (..., K).

        (..., 3, K) shared, predicted and true pixels for "dataset"; else sum and number of scores: (..., 2, K) for "class",
        (..., 2) for the others.
        """
        if self.over == "dataset":
            return np.stack([overlap.intersection, overlap.prediction, overlap.truth], axis=-2)
        scores = self._of_picture(overlap)[..., None] if self.over == "image" else self._of_classes(overlap)
        defined = ~np.isnan(scores)
        sums = np.stack([np.where(defined, scores, 0.0), defined], axis=-2)
        return sums if self.over == "class" else sums.sum(axis=-1)

    def reduce(self, sums: NDArray[Any]) -> Scores:
        """Scores (...) of summed statistics, of the shape that `statistics` has."""
        if self.over == "dataset":
            return self._of_picture(Overlap(sums[..., 0, :], sums[..., 1, :], sums[..., 2, :]))
        if self.over == "class":
            return nan_mean(ratio(sums[..., 0, :], sums[..., 1, :]))
        return ratio(sums[..., 0], sums[..., 1])

    def _of_classes(self, overlap: Overlap[NDArray[Any]]) -> Scores:
        """Score of each class, (..., K)."""
        empty = absent_score(self.absent)
        return np.where(exists(overlap, self.presence), getattr(overlap, self.score)(empty=empty), empty)

    def _of_picture(self, overlap: Overlap[NDArray[Any]]) -> Scores:
        """One score (...) for all classes."""
        if self.average == "micro":
            fields = (overlap.intersection, overlap.prediction, overlap.truth)
            return self._of_classes(Overlap(*(field.sum(axis=-1, keepdims=True) for field in fields)))[..., 0]
        scores = self._of_classes(overlap)
        if self.average == "macro":
            return nan_mean(scores)
        weights = np.where(np.isnan(scores), 0, overlap.truth)
        return ratio((weights * np.nan_to_num(scores)).sum(axis=-1), weights.sum(axis=-1))


MEAN_IOU: dict[str, Reduction] = {
    "cityscapes": Reduction("iou"),
    "mmseg": Reduction("iou"),
    "detectron2": Reduction("iou", presence="gt"),
    "hrnet": Reduction("iou", absent=0),
    "hmsa": Reduction("iou"),
    "smp": Reduction("iou", absent=1),
    "torchmetrics": Reduction("iou", over="image_class"),
}
"""What each package calls mean IoU; docs/metrics.md names the source and the version of each."""


def mean_iou(overlap: Overlap[NDArray[Any]], preset: str = "cityscapes") -> float:
    """Mean IoU as the package `preset` defines it, of pictures and classes (N, K); NaN where the package divides 0 by 0.

    `preset`: "cityscapes" (its scripts), "mmseg" (MMSegmentation's IoUMetric), "detectron2" (SemSegEvaluator, since July 2022),
    "hrnet", "hmsa" (NVIDIA's hierarchical multi-scale attention), "smp" (iou_score with reduction="macro") or "torchmetrics"
    (segmentation.MeanIoU, which needs the pictures one by one; the others also take the sum over pictures, (K,)).

    >>> toy = Overlap(np.array([7, 0]), np.array([7, 1]), np.array([8, 0]))  # one pixel of eight is called a class not there
    >>> mean_iou(toy, "cityscapes"), mean_iou(toy, "detectron2")
    (0.4375, 0.875)
    """
    if preset not in MEAN_IOU:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(MEAN_IOU)}")
    return MEAN_IOU[preset](overlap)


def worst_mean(scores: NDArray[np.float64], share: float) -> Scores:
    """Mean of the lowest `share` of the scores (N, ...) of pictures, rounded down to whole pictures but at least one: (...).

    NaN scores do not take part. With the picture's mean IoU it is mIoU^Iq of Wang et al. 2023 (arXiv:2310.19252), and with the
    IoU of each class, then averaged over the classes, mIoU^Cq; both with presence="gt".

    >>> worst_mean(np.array([0.9, 0.2, np.nan, 0.4, 0.8]), 0.5)
    array(0.3)
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, expected 0 < share <= 1")
    ordered = np.sort(scores, axis=0)  # NaN last
    defined = (~np.isnan(scores)).sum(axis=0)
    kept = np.minimum(defined, np.maximum(1, (share * defined).astype(np.int64)))
    place = np.arange(len(scores)).reshape(-1, *[1] * (scores.ndim - 1))
    return ratio(np.where(place < kept, ordered, 0.0).sum(axis=0), kept)
