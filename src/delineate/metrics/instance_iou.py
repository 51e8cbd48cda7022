"""Cityscapes' iIoU: IoU of classes in which every object weighs as much as an object of average size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delineate.errors import DataError
from delineate.metrics.confusion import ConfusionMatrix
from delineate.metrics.overlap import joint_counts, nan_mean, ratio
from delineate.metrics.scores import Scores
from delineate.metrics.sums import StreamingSums

# Mean pixels of an object, as cityscapesscripts/evaluation/evalPixelLevelSemanticLabeling.py has them.
CITYSCAPES_SIZES = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
CITYSCAPES_CATEGORIES = {
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}


class InstanceIoU(StreamingSums):
    """iIoU = iTP / (iTP + FP + iFN): a true pixel weighs average size of its class / size of its object (Cordts et al. 2016).

    IoU favours large objects; here every object counts alike. Predictions need no objects, so false positives keep weight 1.
    True pixels of such a class that belong to no object (a crowd) are neither found nor missed.

    `classes`: names, index = class id. `average_sizes`: mean pixels of an object, for each class that has objects. `groups`:
    names of the scores, and the classes that each takes as one (`CITYSCAPES_CATEGORIES` gives the category level); by default
    each class with a size alone. `sums` (..., G, 3) float64: iTP, iFN, FP of each group.

    >>> scores = InstanceIoU(("road", "car"), {"car": 2.0})
    >>> truth, objects = np.array([0, 1, 1, 1, 1, 1]), np.array([0, 1, 2, 2, 2, 2])  # two cars, the small one missed
    >>> picture = scores.update(prediction=np.array([0, 0, 1, 1, 1, 1]), truth=truth, objects=objects)
    >>> scores.iou()
    array([0.5])
    """

    def __init__(
        self,
        classes: Sequence[str],
        average_sizes: Mapping[str, float],
        groups: Mapping[str, Sequence[str]] | None = None,
        ignore_index: int = 255,
    ) -> None:
        self.groups = {name: (name,) for name in average_sizes} if groups is None else dict(groups)
        for name in [*average_sizes, *(name for names in self.groups.values() for name in names)]:
            if name not in classes or not average_sizes.get(name, 0) > 0:
                raise ValueError(f"{name!r} is not a class, or has no average size above 0; classes are {', '.join(classes)}")
        self.classes, self.ignore_index = tuple(classes), ignore_index
        self._sizes = np.array([average_sizes.get(name, 0.0) for name in classes])  # (K,) 0: a class without objects
        self._members = np.array([[name in names for name in classes] for names in self.groups.values()])  # (G, K)
        settings = {"classes": self.classes, "average_sizes": dict(average_sizes), "groups": self.groups}
        super().__init__(np.zeros((len(self.groups), 3)), settings)

    def update(self, prediction: NDArray[Any], truth: NDArray[Any], objects: NDArray[Any]) -> InstanceIoU:
        """Add one picture and return the scores of it alone: three integer arrays of one shape.

        `prediction` and `truth` hold class ids, truth also `ignore_index`; `objects` numbers the true objects, 0 = none. The
        class of an object is the truth at its pixels, its size the pixels that count. Raises DataError for an object of two
        classes, a negative number, and what `ConfusionMatrix.update` refuses.
        """
        if objects.shape != truth.shape:
            raise DataError(f"objects have shape {objects.shape}, truth {truth.shape}; both must be the same")
        matrix = ConfusionMatrix(len(self.classes), self.ignore_index)
        matrix.update(prediction, truth)
        inside = (objects != 0) & (truth != self.ignore_index)
        weighted = self._weighted(prediction[inside], truth[inside], objects[inside])
        false_positives = [matrix.counts[~members][:, members].sum() for members in self._members]
        picture = self.with_sums(np.column_stack([weighted, false_positives]).astype(np.float64))
        self.merge(picture)
        return picture

    def iou(self) -> Scores:
        """iIoU of each group, (..., G); NaN where there is nothing."""
        return ratio(self.sums[..., 0], self.sums.sum(axis=-1))

    def mean_iou(self) -> Scores:
        """Mean of `iou` over the groups that are not NaN, (...)."""
        return nan_mean(self.iou())

    def _weighted(self, prediction: NDArray[Any], truth: NDArray[Any], objects: NDArray[Any]) -> NDArray[np.float64]:
        """iTP and iFN (G, 2) of the pixels (P,) of all objects of a picture."""
        try:
            whole, found = joint_counts(truth, objects), joint_counts(prediction, objects)
        except ValueError as error:
            raise DataError(str(error)) from error
        if len(whole.truth) > len(whole.truth_ids):  # the object axis is joint_counts' truth
            index = int(np.flatnonzero(np.bincount(whole.truth) > 1)[0])
            raise DataError(f"object {whole.truth_ids[index]} lies on more than one true class; an object has one")
        class_of = whole.prediction_ids[whole.prediction]  # (M,)
        weight = self._sizes[class_of] / whole.pixels
        rows = []
        for members in self._members:
            hit = found.pixels * members[found.prediction_ids[found.prediction]]
            right = np.bincount(found.truth, hit, minlength=len(class_of))
            own = members[class_of] * weight
            rows.append([(own * right).sum(), (own * (whole.pixels - right)).sum()])
        return np.array(rows)
