"""The scores of classes that every kind of confusion count has: IoU, Dice, precision, recall and their means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from delineate.metrics.overlap import Absent, Overlap, absent_score, nan_mean, ratio
from delineate.metrics.sums import StreamingSums

Presence = Literal["union", "gt"]
Scores = NDArray[np.float64]


def exists(overlap: Overlap[NDArray[Any]], presence: Presence) -> NDArray[np.bool_]:
    """Which classes there are, by the rule `presence` of `ClassScores`."""
    if presence not in ("union", "gt"):
        raise ValueError(f"presence is {presence!r}, expected 'union' or 'gt'")
    return (overlap.union if presence == "union" else overlap.truth) > 0


class ClassScores(StreamingSums, ABC):
    """Scores of K classes from integer counts, which `ConfusionMatrix` and `MultilabelConfusion` gather.

    Two questions that packages answer differently are arguments:

    - `presence`: a class exists if it occurs in truth or prediction ("union": predicted but not true scores 0, as in
      Cityscapes' scripts and MMSegmentation), or only if it occurs in the truth ("gt": left out, as in Detectron2).
    - `absent`: what a class that does not exist scores: "nan" (left out of every mean), 0 or 1.

    The counts may have leading axes, one set a picture for example: scores then have them too.
    """

    @property
    def counts(self) -> NDArray[Any]:
        """The sums, which are whole numbers."""
        return self.sums

    @property
    @abstractmethod
    def overlap(self) -> Overlap[NDArray[Any]]:
        """Intersection and cardinalities of each class, (..., K)."""

    @abstractmethod
    def pixel_accuracy(self) -> Scores:
        """Share of the counted decisions that are right, (...)."""

    @property
    @abstractmethod
    def counted(self) -> NDArray[Any]:
        """Decisions that count for each class, (..., K), or (..., 1) where they are the same for all."""

    def iou(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """IoU of each class, (..., K): n_cc / (sum_j n_cj + sum_i n_ic - n_cc)."""
        return self._of_existing(self.overlap.iou(), absent, presence)

    def dice(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """Dice (F1) of each class, (..., K)."""
        return self._of_existing(self.overlap.dice(), absent, presence)

    def f_beta(self, beta: float, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """F-beta of each class, (..., K): `beta` 1 is Dice, 2 asks more for recall, 0.5 more for precision."""
        return self._of_existing(self.overlap.f_beta(beta), absent, presence)

    def precision(self, *, absent: Absent = "nan") -> Scores:
        """Share of the pixels predicted as a class that are of it, (..., K); `absent` for a class that is never predicted."""
        return self.overlap.precision(empty=absent_score(absent))

    def recall(self, *, absent: Absent = "nan") -> Scores:
        """Share of the pixels of a class that are predicted as it (its accuracy), (..., K); `absent` without true pixels."""
        return self.overlap.recall(empty=absent_score(absent))

    def specificity(self, *, absent: Absent = "nan") -> Scores:
        """Share of the pixels that are not of a class and not predicted as it, (..., K); `absent` where all are of it."""
        overlap = self.overlap
        return ratio(self.counted - overlap.union, self.counted - overlap.truth, absent_score(absent))

    def mean_iou(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """Mean of `iou` over the classes that are not NaN, (...); NaN when all are."""
        return nan_mean(self.iou(absent=absent, presence=presence))

    def mean_dice(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """Mean of `dice` over the classes that are not NaN, (...)."""
        return nan_mean(self.dice(absent=absent, presence=presence))

    def mean_accuracy(self, *, absent: Absent = "nan") -> Scores:
        """Mean of `recall` over the classes that are not NaN, (...)."""
        return nan_mean(self.recall(absent=absent))

    def frequency_weighted_iou(self) -> Scores:
        """IoU averaged with each class's share of the true pixels as its weight, (...); NaN without pixels."""
        truth = self.overlap.truth
        return ratio((truth * self.overlap.iou(empty=0.0)).sum(axis=-1), truth.sum(axis=-1))

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """One row a class: name, iou, dice, precision, recall (NaN where not defined), truth_pixels, predicted_pixels."""
        self._check_names(classes)
        overlap = self.overlap
        columns = {
            "iou": self.iou(),
            "dice": self.dice(),
            "precision": self.precision(),
            "recall": self.recall(),
            "truth_pixels": overlap.truth,
            "predicted_pixels": overlap.prediction,
        }
        return [{"name": name} | {key: column[k].item() for key, column in columns.items()} for k, name in enumerate(classes)]

    def summary(self, classes: Sequence[str] | None = None) -> dict[str, float]:
        """The means under their names, and with `classes` also "iou/NAME" and "dice/NAME"; NaN where not defined."""
        means = {
            "mean_iou": self.mean_iou(),
            "mean_dice": self.mean_dice(),
            "pixel_accuracy": self.pixel_accuracy(),
            "mean_accuracy": self.mean_accuracy(),
            "frequency_weighted_iou": self.frequency_weighted_iou(),
        }
        flat = {name: float(value) for name, value in means.items()}
        if classes is not None:
            self._check_names(classes)
            flat |= {f"iou/{name}": float(value) for name, value in zip(classes, self.iou(), strict=True)}
            flat |= {f"dice/{name}": float(value) for name, value in zip(classes, self.dice(), strict=True)}
        return flat

    def _of_existing(self, scores: Scores, absent: Absent, presence: Presence) -> Scores:
        return np.where(exists(self.overlap, presence), scores, absent_score(absent))

    def _check_names(self, classes: Sequence[str]) -> None:
        if self.overlap.truth.shape != (len(classes),):
            raise ValueError(f"{len(classes)} names for counts of shape {self.counts.shape}")
