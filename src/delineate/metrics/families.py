"""Families of numbers that are measured when asked for, each under one option of `score` and `evaluate`.

`preset` is read by the measure of pixels, whose counts it needs; the others are measures of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

import numpy as np

from delineate.errors import ConfigError, suggest
from delineate.metrics.bootstrap import Draws, sum_score
from delineate.metrics.boundary import BoundaryScores
from delineate.metrics.contour_measures import CenterlineMeasure, SurfaceMeasure
from delineate.metrics.measures import Array, Labelling, Measure, MembraneMeasure, Scores


class Families(TypedDict, total=False):
    """Which numbers to measure beyond those of pixels and objects."""

    em: bool | str  # ISBI 2012's scores of the segments between membranes; a name: of the class that separates them
    preset: str | None  # mean IoU as this package defines it, see `delineate.metrics.MEAN_IOU`
    boundary: bool  # IoU of the pixels near outlines
    surface: float | None  # distances between outlines, and normalised surface Dice at this tolerance
    spacing: float | Sequence[float]  # size of a pixel, (rows, columns) or one number: the unit of distances and tolerance
    cldice: str | Sequence[str]  # names of classes that are tubes, whose centrelines are compared


def make_measures(classes: Sequence[str], ignore_index: int = 255, **families: Unpack[Families]) -> list[Measure]:
    """Return the measures of the families asked for; raises `ConfigError` for a class that does not exist."""
    measures: list[Measure] = []
    if families.get("boundary"):
        measures.append(BoundaryMeasure(classes, ignore_index))
    if (tolerance := families.get("surface")) is not None:
        measures.append(SurfaceMeasure(classes, ignore_index, spacing=families.get("spacing", 1.0), tolerance=tolerance))
    elif "spacing" in families:
        raise ConfigError("spacing: is the unit of surface distances; give their tolerance too, with surface")
    if tubes := families.get("cldice"):
        measures.append(CenterlineMeasure(classes, [tubes] if isinstance(tubes, str) else tubes, ignore_index))
    if em := families.get("em"):
        measures.append(MembraneMeasure(membrane_class(classes, em), ignore_index))
    return measures


def membrane_class(classes: Sequence[str], em: bool | str) -> int:
    """The id of the class that separates segments: of the name `em`, or, for True, one called membrane or the like, or 0."""
    if isinstance(em, str):
        return class_named(classes, em, "em")
    named = [i for i, name in enumerate(classes) if any(word in name.lower() for word in ("membrane", "boundary", "border"))]
    return named[0] if named else 0


def class_named(classes: Sequence[str], name: str, option: str) -> int:
    """The id of the class `name`; raises `ConfigError` naming the option that asked for it.

    >>> class_named(("background", "vessel"), "vessel", "cldice")
    1
    """
    if name not in classes:
        raise ConfigError(
            f"{option} '{name}' is not a class; expected one of {', '.join(classes)}{suggest(name, list(classes))}"
        )
    return list(classes).index(name)


class BoundaryMeasure:
    """Boundary IoU, the mean over classes as "boundary_iou" and that of each class as "boundary_iou/NAME"."""

    def __init__(self, classes: Sequence[str], ignore_index: int = 255) -> None:
        self.classes = tuple(classes)
        self._total = BoundaryScores(len(classes), ignore_index)
        self._counts: list[Array] = []  # (K, 2, 3) of each picture

    def update(self, prediction: Labelling, truth: Labelling) -> dict[str, float]:
        """Count the pixels near the outlines of a picture."""
        picture = self._total.update(prediction.semantic, truth.semantic)
        self._counts.append(picture.counts)
        return {name: float(score) for name, score in self._of(picture.counts).items()}

    def scores(self, draws: Draws) -> Scores:
        """Boundary IoU and its smaller-of-two form."""
        return sum_score(draws, np.stack(self._counts), self._of)

    def _of(self, counts: Array) -> Scores:
        scores = BoundaryScores.from_counts(counts)
        of_classes = scores.boundary_iou()
        return {
            "boundary_iou": scores.mean_boundary_iou(),
            "min_boundary_iou": scores.mean_min_boundary_iou(),
            **{f"boundary_iou/{name}": of_classes[..., k] for k, name in enumerate(self.classes)},
        }
