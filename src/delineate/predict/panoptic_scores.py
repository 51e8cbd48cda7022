"""Panoptic quality of what a network found in the pictures of a data set, and as numbers that an `Evaluator` takes up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delineate.data.dataset import Dataset, Record
from delineate.data.load import load_panoptic
from delineate.data.panoptic import PanopticMap
from delineate.metrics.bootstrap import Draws
from delineate.metrics.panoptic import PanopticQuality, PanopticScores
from delineate.predict.reading import align_objects, truth_size
from delineate.predict.results import Results


class PanopticMeasure:
    """Adds up PQ, SQ and RQ of pictures of panoptic data: of its things, then its stuff.

    `things` (K,) is the data's label of each of the network's classes of objects, -1 for what the data do not know, and `stuff`
    are the names of its classes of stuff. Segments of unknown classes are void. `notes` says what was concluded.
    """

    def __init__(self, dataset: Dataset, things: NDArray[np.int64], stuff: Sequence[str]) -> None:
        self.classes = (*dataset.classes, *dataset.stuff)
        lookup, self.notes = align_objects(stuff, dataset.stuff, "the network's stuff")
        self._labels = np.concatenate([things, np.where(lookup < 0, -1, lookup + len(dataset.classes))])
        self.quality = PanopticQuality(len(self.classes), range(len(dataset.classes)))
        self._names: list[str] = []
        self._sums: list[NDArray[np.float64]] = []

    def update(self, record: Record, results: Results) -> dict[str, float]:
        """Add a picture and return its numbers; raises `DataError` where its truth cannot be read."""
        assert record.label_map is not None
        assert results.panoptic is not None
        truth = load_panoptic(record.label_map, record.image, truth_size(record))
        picture = self.quality.update(relabelled(results.panoptic, self._labels), truth)
        self._names.append(record.name)
        self._sums.append(picture.sums)
        return picture.summary()

    def numbers(self) -> PanopticNumbers:
        """The numbers of all pictures that were added."""
        return PanopticNumbers(PanopticScores(self.classes, tuple(self._names), self.quality, np.array(self._sums)))


def relabelled(picture: PanopticMap, labels: NDArray[np.int64]) -> PanopticMap:
    """Return a picture whose segments of class k are of class `labels[k]`, or void where that is -1.

    >>> picture = PanopticMap(np.array([[0, 1, 2]]), np.array([1, 0]), np.zeros(2, bool))
    >>> changed = relabelled(picture, np.array([5, -1]))
    >>> changed.segments.tolist(), changed.labels.tolist()
    ([[0, 0, 1]], [5])
    """
    wanted = labels[picture.labels]
    known = wanted >= 0
    numbers = np.append(0, np.cumsum(known) * known).astype(np.int32)
    return PanopticMap(numbers[picture.segments], wanted[known], picture.crowd[known])


@dataclass(frozen=True, slots=True)
class PanopticNumbers:
    """Panoptic quality of files as numbers that an `Evaluator` takes up."""

    found: PanopticScores
    prefix: str = ""

    @property
    def summary(self) -> dict[str, float]:
        """PQ, SQ and RQ of all pictures: of all classes, things and stuff."""
        return self._named(self.found.quality.summary())

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """A row a class; of boundaries none, because they have the same names."""
        return [] if self.prefix else self.found.quality.per_class(self.found.classes)

    def scores(self, draws: Draws) -> dict[str, Any]:
        """Scores of the pictures, drawn as often as `draws` (R, N) says."""
        return self._named(self.found.scores(draws))

    def of_pictures(self) -> dict[str, Any]:
        """The numbers of each picture, (N,)."""
        return self._named(self.found.quality.with_sums(self.found.sums).means())

    def _named(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self.prefix}{name}": value for name, value in numbers.items()}
