"""`Evaluation`: all that is measured on a set of pictures; `Evaluator` gathers it, picture by picture, from label arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from delineate.errors import DataError
from delineate.metrics.bootstrap import DEFAULT_RESAMPLING, Draws, Resampling, score_intervals
from delineate.metrics.measures import Labelling, Measure, MembraneMeasure, ObjectMeasure, PixelMeasure, Scores

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The numbers of one picture, under the flat names of the summary."""

    name: str
    path: str | None
    numbers: dict[str, float]
    preview: str | None = None  # drawing of truth, prediction and errors, relative to the run folder

    @property
    def mean_iou(self) -> float:
        """Mean IoU of its classes; NaN where not measured."""
        return self.numbers.get("mean_iou", math.nan)

    @property
    def mean_dice(self) -> float:
        """Mean Dice of its classes; NaN where not measured."""
        return self.numbers.get("mean_dice", math.nan)

    @property
    def objects(self) -> dict[str, float] | None:
        """Numbers of its objects, without "objects/" before their names; None where not measured."""
        return _objects(self.numbers)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The numbers of a set of pictures; `to_json` is what evaluation.json holds."""

    split: str
    kind: Literal["semantic", "instance"]
    classes: tuple[str, ...]
    summary: dict[str, float]  # flat names; those of objects begin with "objects/", COCO's with "bbox/" and "segm/"
    per_class: tuple[dict[str, Any], ...]  # name, iou, dice, precision, recall, truth_pixels, predicted_pixels
    confusion: list[list[int]] | None  # pixels [truth][prediction]; None where classes may overlap
    images: tuple[ImageScore, ...]
    intervals: dict[str, tuple[float, float]] | None = None  # bootstrap over pictures
    confidence: float = 0.95  # of the intervals
    notes: tuple[str, ...] = ()  # what was concluded on the way

    @property
    def objects(self) -> dict[str, float] | None:
        """Numbers of objects, without "objects/" before their names; None where not measured."""
        return _objects(self.summary)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; numbers that are not defined or infinite become null."""
        images = [{"name": i.name, "path": i.path, "preview": i.preview, **i.numbers} for i in self.images]
        content = {field: getattr(self, field) for field in Evaluation.__slots__} | {"images": images}
        return _plain(content | {"objects": self.objects, "intervals": self.intervals or {}})

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Evaluation:
        """Rebuild from `to_json`'s value; null becomes NaN again."""
        texts = ("name", "path", "preview")
        images = tuple(
            ImageScore(
                **{key: image[key] for key in texts},
                numbers=_numbers({key: value for key, value in image.items() if key not in texts}),
            )
            for image in content["images"]
        )
        numbers = ("iou", "dice", "precision", "recall")
        return cls(
            split=content["split"],
            kind=content["kind"],
            classes=tuple(content["classes"]),
            summary=_numbers(content["summary"]),
            per_class=tuple(row | {key: _number(row[key]) for key in numbers} for row in content["per_class"]),
            confusion=content["confusion"],
            images=images,
            intervals={key: (_number(low), _number(high)) for key, (low, high) in content["intervals"].items()},
            confidence=content.get("confidence", 0.95),
            notes=tuple(content.get("notes", ())),
        )

    def table(self) -> Group:
        """Return the numbers as tables for a terminal."""
        from delineate.metrics.tables import evaluation_tables

        return evaluation_tables(self)

    def print(self) -> None:
        """Print the tables to the terminal."""
        from rich.console import Console

        Console().print(self.table())


class Evaluator:
    """Gathers the scores of pictures.

    `classes`: names, index = id in `Labelling.semantic`. `multilabel`: classes may overlap. `objects`: also match objects of
    one class at IoU 0.50 to 0.95; pixels that the truth ignores belong to no object. `membrane`: id of the class that separates
    segments; ISBI 2012's V^Rand, V^Info and adapted Rand error are then measured on the connected components of the others.
    `measures`: further families of numbers.

    >>> evaluator = Evaluator(("background", "cell"))
    >>> truth = Labelling(np.array([[0, 1, 1, 255]]))
    >>> evaluator.add("a", Labelling(np.array([[0, 1, 0, 1]])), truth).mean_iou
    0.5
    >>> evaluator.finish("val").summary["pixel_accuracy"]
    0.6666666666666666
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        ignore_index: int = 255,
        multilabel: bool = False,
        objects: bool = False,
        membrane: int | None = None,
        measures: Sequence[Measure] = (),
    ) -> None:
        self.classes = tuple(classes)
        self.pixels = PixelMeasure(classes, ignore_index, multilabel)
        self.objects = ObjectMeasure(range(1, len(classes)), ignore_index) if objects else None
        membranes = MembraneMeasure(membrane, ignore_index) if membrane is not None else None
        self.measures: list[Measure] = [m for m in (self.pixels, self.objects, membranes, *measures) if m is not None]
        self.images: list[ImageScore] = []
        self.notes: list[str] = []

    def add(self, name: str, prediction: Labelling, truth: Labelling, path: str | None = None) -> ImageScore:
        """Measure one picture; raises `DataError` naming it where sizes differ or a value is no class."""
        numbers: dict[str, float] = {}
        try:
            for measure in self.measures:
                numbers |= measure.update(prediction, truth)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        self.images.append(ImageScore(name, path, numbers))
        return self.images[-1]

    def scores(self, draws: Draws) -> Scores:
        """Scores of the pictures, drawn as often as `draws` (R, N) says: what the bootstrap resamples."""
        return {name: score for measure in self.measures for name, score in measure.scores(draws).items()}

    def finish(self, split: str, *, intervals: Resampling | None = DEFAULT_RESAMPLING) -> Evaluation:
        """Return the numbers of all pictures; unless `intervals` is None, with the bootstrap interval of each."""
        count = len(self.images)
        whole = self.scores(np.ones((1, count))) if count else {}
        found = score_intervals(self.scores, count, intervals) if intervals and count else {}
        return Evaluation(
            split=split,
            kind="instance" if self.objects else "semantic",
            classes=self.classes,
            summary={name: float(score[0]) for name, score in whole.items()} | (self.objects.counts() if self.objects else {}),
            per_class=tuple(self.pixels.total.per_class(self.classes)),
            confusion=None if self.pixels.multilabel else self.pixels.total.counts.tolist(),
            images=tuple(self.images),
            intervals={name: (low, high) for name, (low, high) in found.items()},
            confidence=intervals.confidence if intervals else 0.95,
            notes=tuple(self.notes),
        )


def _objects(numbers: dict[str, float]) -> dict[str, float] | None:
    prefix = "objects/"
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)} or None


def _plain(value: Any) -> Any:
    """Tuples as lists, numpy numbers as Python's, NaN as null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _numbers(values: dict[str, float | None]) -> dict[str, float]:
    return {key: _number(value) for key, value in values.items()}
