"""Families of numbers: each gathers what every picture adds, and makes scores of any draw of the pictures.

To add a family, write a `Measure` and give it to `Evaluator(measures=...)`: its numbers then are in the tables and files, and
have intervals and comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from delineate.errors import ConfigError, DataError, suggest
from delineate.metrics.bootstrap import Draws, mean_score, sum_score
from delineate.metrics.clustering import adapted_rand_error, segments_of, v_info, v_rand, variation_of_information
from delineate.metrics.confusion import ConfusionMatrix
from delineate.metrics.multilabel import MultilabelConfusion
from delineate.metrics.objects import Candidates, ObjectScores
from delineate.metrics.overlap import Overlap, nan_mean, ratio
from delineate.metrics.reductions import MEAN_IOU
from delineate.metrics.scores import ClassScores
from delineate.metrics.warping import warping_error

Array = NDArray[Any]
Scores = dict[str, Array]  # flat name -> (R,), one score a draw


@dataclass(frozen=True, slots=True)
class Labelling:
    """What one picture shows, as the truth or a prediction has it."""

    semantic: Array  # (H, W) class ids; (K, H, W) where classes may overlap: prediction 0 or 1, truth also -1 = not counted
    objects: Array | None = None  # (H, W) integers, 0 = none, n = object n - 1 of labels
    labels: Array | None = None  # (N,) class id of each object; None: all of class 1


class Measure(Protocol):
    """A family of numbers over pictures."""

    def update(self, prediction: Labelling, truth: Labelling) -> dict[str, float]:
        """Add a picture and return its own numbers; raises `DataError` where it cannot be measured."""
        ...

    def scores(self, draws: Draws) -> Scores:
        """Scores of the pictures, drawn as often as `draws` (R, N) says; NaN where not defined."""
        ...


_LOWER_IS_BETTER = (
    "em/adapted_rand_error",
    "em/voi_split",
    "em/voi_merge",
    "em/warping_error",
    "hd",
    "hd95",
    "assd",
    "surface_missing",
)


def lower_is_better(name: str) -> bool:
    """Whether a smaller number under this flat name is a better one.

    >>> lower_is_better("em/adapted_rand_error"), lower_is_better("hd95/cell"), lower_is_better("mean_iou")
    (True, True, False)
    """
    return name in _LOWER_IS_BETTER or name.partition("/")[0] in _LOWER_IS_BETTER


class OverlapCounts(ClassScores):
    """Scores of single-label pixels from counts (..., 3, K): shared, predicted and true pixels of each class.

    All that a confusion matrix says of classes, in 3 K numbers a picture in place of K^2.
    """

    def __init__(self, counts: Array) -> None:
        super().__init__(np.zeros(counts.shape[-2:], counts.dtype), {"num_classes": counts.shape[-1]})
        self.sums = counts

    @property
    def overlap(self) -> Overlap[Array]:
        """Intersection and cardinalities of each class, (..., K)."""
        return Overlap(self.counts[..., 0, :], self.counts[..., 1, :], self.counts[..., 2, :])

    @property
    def counted(self) -> Array:
        """Pixels that count, (..., 1)."""
        return self.overlap.truth.sum(axis=-1, keepdims=True)

    def pixel_accuracy(self) -> Array:
        """Share of the counted pixels whose class is right, (...)."""
        return ratio(self.overlap.intersection.sum(axis=-1), self.overlap.truth.sum(axis=-1))


class PixelMeasure:
    """Numbers of pixels: IoU, Dice and accuracy, from what each picture counts.

    `preset`: also mean IoU as this package defines it, as "mean_iou/PRESET"; raises `ConfigError` for an unknown one.
    """

    def __init__(
        self, classes: Sequence[str], ignore_index: int = 255, multilabel: bool = False, preset: str | None = None
    ) -> None:
        if preset is not None and preset not in MEAN_IOU:
            raise ConfigError(f"preset '{preset}': expected one of {', '.join(MEAN_IOU)}{suggest(preset, list(MEAN_IOU))}")
        self.classes, self.ignore_index, self.multilabel, self.preset = tuple(classes), ignore_index, multilabel, preset
        self.total = self._empty()
        self._counts: list[Array] = []  # of each picture: (3, K), or (K, 2, 2) where classes may overlap

    def update(self, prediction: Labelling, truth: Labelling) -> dict[str, float]:
        """Count the pixels of a picture."""
        picture = self._empty()
        picture.update(prediction.semantic, truth.semantic)
        self.total.merge(picture)
        overlap = picture.overlap
        counts = picture.counts if self.multilabel else np.stack([overlap.intersection, overlap.prediction, overlap.truth])
        self._counts.append(counts)
        return {"mean_iou": float(picture.mean_iou()), "mean_dice": float(picture.mean_dice())}

    def scores(self, draws: Draws) -> Scores:
        """The means over classes, and the IoU and Dice of each class as "iou/NAME" and "dice/NAME"."""
        counts = np.stack(self._counts)
        scores = sum_score(draws, counts, self._of)
        if self.preset is not None:  # some presets score each picture first, so the sum of the counts would not do
            reduction = MEAN_IOU[self.preset]
            statistics = reduction.statistics(self._wrapped(counts).overlap)
            scores |= {f"mean_iou/{self.preset}": sum_score(draws, statistics, reduction.reduce)}
        return scores

    def _wrapped(self, counts: Any) -> ClassScores:
        return MultilabelConfusion.from_counts(counts) if self.multilabel else OverlapCounts(counts)

    def _of(self, sums: Array) -> Scores:
        counts = self._wrapped(sums)
        of_classes = {"iou": counts.iou(), "dice": counts.dice()}
        return {
            "mean_iou": counts.mean_iou(),
            "mean_dice": counts.mean_dice(),
            "pixel_accuracy": counts.pixel_accuracy(),
            "mean_accuracy": counts.mean_accuracy(),
            "frequency_weighted_iou": counts.frequency_weighted_iou(),
            **{f"{key}/{name}": s[..., k] for key, s in of_classes.items() for k, name in enumerate(self.classes)},
        }

    def _empty(self) -> Any:
        return (
            MultilabelConfusion(len(self.classes)) if self.multilabel else ConfusionMatrix(len(self.classes), self.ignore_index)
        )


class ObjectMeasure:
    """Objects matched at fixed IoU, class by class, and averaged over the classes that occur; names begin with "objects/".

    `object_classes`: class ids of objects. Pixels that the truth ignores belong to no object.
    """

    def __init__(self, object_classes: Sequence[int], ignore_index: int = 255) -> None:
        self.object_classes, self.ignore_index = tuple(object_classes), ignore_index
        self._sums: list[Array] = []  # (C, T, 4) of each picture: `ObjectScores.sums` of each class

    def update(self, prediction: Labelling, truth: Labelling) -> dict[str, float]:
        """Match the objects of a picture."""
        ignore = (truth.semantic < 0).all(axis=0) if truth.semantic.ndim == 3 else truth.semantic == self.ignore_index
        seen = {*_objects_of(prediction)[1].tolist(), *_objects_of(truth)[1].tolist()}
        sums = []
        for class_id in self.object_classes:
            scores = ObjectScores()
            if class_id in seen:
                scores.update(_of_class(prediction, class_id), _of_class(truth, class_id), ignore=np.asarray(ignore))
            sums.append(scores.sums)
        return self._add(sums)

    def update_pairs(self, pairs: Mapping[int, Candidates]) -> dict[str, float]:
        """Match objects that may overlap, by the IoU of the pairs of each class that occurs in a picture."""
        sums = []
        for class_id in self.object_classes:
            scores = ObjectScores()
            if class_id in pairs:
                scores.update_pairs(pairs[class_id])
            sums.append(scores.sums)
        return self._add(sums)

    def _add(self, sums: Sequence[Array]) -> dict[str, float]:
        """Keep the sums of each class of a picture, and return its numbers."""
        self._sums.append(np.stack(sums))
        row = _object_scores(self._sums[-1])
        return {name: float(value) for name, value in row.items()} | _object_counts(self._sums[-1])

    def scores(self, draws: Draws) -> Scores:
        """The numbers of `ObjectScores`, averaged over classes."""
        return sum_score(draws, np.stack(self._sums), _object_scores)

    def counts(self) -> dict[str, int]:
        """True and predicted objects of all pictures."""
        return _object_counts(np.sum(self._sums, axis=0))


def _object_scores(sums: Array) -> Scores:
    """Scores (...) of sums (..., C, T, 4)."""
    return {f"objects/{name}": nan_mean(scores) for name, scores in ObjectScores().with_sums(sums).scores().items()}


def _object_counts(sums: Array) -> dict[str, int]:
    true_positives, false_positives, false_negatives = (int(x) for x in sums[:, 0, :3].sum(axis=0))
    return {
        "objects/truth_objects": true_positives + false_negatives,
        "objects/predicted_objects": true_positives + false_positives,
    }


def _objects_of(labelling: Labelling) -> tuple[Array, Array]:
    """The map of objects, and the class id of each."""
    if labelling.objects is None:
        raise ValueError("objects are to be measured, but a labelling has none")
    count = int(labelling.objects.max(initial=0))
    labels = np.ones(count, np.int64) if labelling.labels is None else np.asarray(labelling.labels)
    if len(labels) < count:
        raise DataError(f"the map of objects holds object {count}, but only {len(labels)} objects have a class")
    return labelling.objects, labels


def _of_class(labelling: Labelling, class_id: int) -> Array:
    """The map without the objects of other classes."""
    objects, labels = _objects_of(labelling)
    kept = np.concatenate([[False], labels == class_id])
    return np.where(kept[objects], objects, 0)


class MembraneMeasure:
    """Scores of the segments between membranes, those of ISBI 2012 first, the mean over pictures; names begin with "em/".

    The segments are the connected components of all classes but `membrane`: of the truth without its membranes, of the
    prediction with borders thinned to one pixel.
    """

    def __init__(self, membrane: int, ignore_index: int = 255) -> None:
        self.membrane, self.ignore_index = membrane, ignore_index
        self._pictures: list[dict[str, float]] = []

    def update(self, prediction: Labelling, truth: Labelling) -> dict[str, float]:
        """Compare the segments of a picture."""
        ignored = truth.semantic == self.ignore_index
        cells = prediction.semantic != self.membrane
        true_cells = (truth.semantic != self.membrane) & ~ignored
        found, wanted = segments_of(cells, thin=True), segments_of(true_cells)
        rand, info, voi = v_rand(found, wanted), v_info(found, wanted), variation_of_information(found, wanted)
        row = {
            "em/v_rand": rand.score,
            "em/v_rand_split": rand.split,
            "em/v_rand_merge": rand.merge,
            "em/v_info": info.score,
            "em/adapted_rand_error": adapted_rand_error(found, wanted),
            "em/voi_split": voi.split,
            "em/voi_merge": voi.merge,
            "em/warping_error": warping_error(cells, true_cells, ignore=ignored).error,
        }
        self._pictures.append(row)
        return row

    def scores(self, draws: Draws) -> Scores:
        """Means over the pictures."""
        return mean_scores(draws, self._pictures)


def mean_scores(draws: Draws, pictures: Sequence[dict[str, float]]) -> Scores:
    """Each number's mean over the drawn pictures that have it."""
    names = dict.fromkeys(name for row in pictures for name in row)
    return {name: mean_score(draws, np.array([row.get(name, np.nan) for row in pictures])) for name in names}
