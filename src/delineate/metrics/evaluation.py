"""`Evaluation`: all that is measured on a set of pictures; `Evaluator` gathers it, picture by picture, from label arrays."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from delineate.errors import DataError
from delineate.files import write_text
from delineate.metrics.bootstrap import DEFAULT_RESAMPLING, Draws, Resampling, score_intervals
from delineate.metrics.confusion import ConfusionMatrix
from delineate.metrics.detection_errors import DetectionErrors
from delineate.metrics.measures import Labelling, Measure, ObjectMeasure, PixelMeasure, Scores

if TYPE_CHECKING:
    from rich.console import Group


Kind = Literal["semantic", "instance", "panoptic"]


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
    def quality(self) -> float:
        """What pictures are ranked by: mean IoU, or of objects alone panoptic quality at IoU 0.5; NaN where not measured."""
        return self.numbers.get("mean_iou", self.numbers.get("objects/panoptic_quality_50", math.nan))

    @property
    def objects(self) -> dict[str, float] | None:
        """Numbers of its objects, without "objects/" before their names; None where not measured."""
        return _objects(self.numbers)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The numbers of a set of pictures; `to_json` is what evaluation.json holds."""

    split: str
    kind: Kind
    classes: tuple[str, ...]
    summary: dict[str, float]  # flat names; those of objects begin with "objects/", COCO's with "bbox/" and "segm/"
    per_class: tuple[dict[str, Any], ...]  # name; iou, dice, precision, recall, truth_pixels, predicted_pixels; AP; pq, sq, rq
    confusion: list[list[int]] | None  # pixels [truth][prediction]; None where classes may overlap
    images: tuple[ImageScore, ...]
    intervals: dict[str, tuple[float, float]] | None = None  # bootstrap over pictures
    confidence: float = 0.95  # of the intervals
    notes: tuple[str, ...] = ()  # what was concluded on the way
    errors: DetectionErrors | None = None  # kinds of error of detections, where asked for
    # Of detections: precision at each recall, the mean over classes: {"iou_type", "iou" (None: the mean over all), "recall",
    # "precision"}.
    curves: tuple[dict[str, Any], ...] = ()
    pictures_per_second: float | None = None  # of the prediction, files read

    @property
    def confusions(self) -> list[dict[str, Any]]:
        """The most frequent confusions of classes, as `ConfusionMatrix.confusions` lists them."""
        if self.confusion is None:
            return []
        return ConfusionMatrix.from_counts(np.array(self.confusion, np.int64)).confusions(self.classes)

    @property
    def objects(self) -> dict[str, float] | None:
        """Numbers of objects, without "objects/" before their names; None where not measured."""
        return _objects(self.summary)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; numbers that are not defined or infinite become null."""
        images = [{"name": i.name, "path": i.path, "preview": i.preview, **i.numbers} for i in self.images]
        content = {field.name: getattr(self, field.name) for field in fields(self)} | {"images": images}
        errors = None if self.errors is None else asdict(self.errors) | {"kinds": ()}  # one for each detection: too many
        content |= {"objects": self.objects, "confusions": self.confusions, "intervals": self.intervals or {}, "errors": errors}
        return plain(content)

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
        return cls(
            split=content["split"],
            kind=content["kind"],
            classes=tuple(content["classes"]),
            summary=_numbers(content["summary"]),
            per_class=tuple(_numbers(row) for row in content["per_class"]),
            confusion=content["confusion"],
            images=images,
            intervals={key: (_number(low), _number(high)) for key, (low, high) in content["intervals"].items()},
            confidence=content.get("confidence", 0.95),
            notes=tuple(content.get("notes", ())),
            errors=DetectionErrors(**content["errors"]) if content.get("errors") else None,
            curves=tuple(content.get("curves", ())),
            pictures_per_second=content.get("pictures_per_second"),
        )

    def table(self) -> Group:
        """Return the numbers as tables for a terminal."""
        from delineate.metrics.tables import evaluation_tables

        return evaluation_tables(self)

    def print(self) -> None:
        """Print the tables to the terminal."""
        from rich.console import Console

        Console().print(self.table())

    def write_csv(self, path: Path) -> None:
        """Write a row for each picture: its name, and its numbers under their flat names; empty where not defined.

        Raises `DelineateError` where the file cannot be written.
        """
        names = dict.fromkeys(name for image in self.images for name in image.numbers)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["picture", *names])
        for image in self.images:
            numbers = [plain(image.numbers.get(name)) for name in names]
            writer.writerow([image.name, *("" if number is None else number for number in numbers)])
        write_text(path, text.getvalue())


class Included(Protocol):
    """Numbers that are gathered elsewhere than in a `Measure`."""

    @property
    def summary(self) -> Mapping[str, float]:
        """The scores of all pictures; may say more than NaN, such as COCO's -1."""
        ...

    @property
    def per_class(self) -> Sequence[dict[str, Any]]:
        """Rows with "name" and the numbers of a class."""
        ...

    def scores(self, draws: Draws) -> Mapping[str, Any]:
        """Scores of the pictures, drawn as often as `draws` (R, N) says; NaN where not defined."""
        ...


class Evaluator:
    """Gathers the scores of pictures.

    `classes`: names, index = id in `Labelling.semantic`. `multilabel`: classes may overlap. `objects`: also match objects of
    one class at IoU 0.50 to 0.95; pixels that the truth ignores belong to no object. `preset`: also mean IoU as this package
    defines it. `measures`: further families of numbers. `pixels=False`: none of pixels, for predictions that are boxes alone.

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
        preset: str | None = None,
        measures: Sequence[Measure] = (),
        pixels: bool = True,
    ) -> None:
        self.classes = tuple(classes)
        self.pixels = PixelMeasure(classes, ignore_index, multilabel, preset) if pixels else None
        self.objects = ObjectMeasure(range(1, len(classes)), ignore_index) if objects else None
        self.measures: list[Measure] = [m for m in (self.pixels, self.objects, *measures) if m is not None]
        self._included: list[Included] = []
        self.images: list[ImageScore] = []
        self.notes: list[str] = []
        self.errors: DetectionErrors | None = None
        self.curves: list[dict[str, Any]] = []
        self.seconds = 0.0  # of the prediction

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

    def include(self, numbers: Included) -> None:
        """Take up numbers that were gathered elsewhere, of the same pictures in the same order."""
        self._included.append(numbers)

    def scores(self, draws: Draws) -> Scores:
        """Scores of the pictures, drawn as often as `draws` (R, N) says: what the bootstrap resamples."""
        return {name: score for family in (*self.measures, *self._included) for name, score in family.scores(draws).items()}

    def summary(self) -> dict[str, float]:
        """The scores of all pictures, each drawn once."""
        if not self.images:
            return {}
        whole = np.ones((1, len(self.images)))
        summary: dict[str, float] = {}
        for measure in self.measures:
            summary |= {name: float(score[0]) for name, score in measure.scores(whole).items()}
            if isinstance(measure, ObjectMeasure):
                summary |= measure.counts()
        for numbers in self._included:
            summary |= numbers.summary
        return summary

    def _per_class(self) -> tuple[dict[str, Any], ...]:
        """A row a class with the numbers of all families that have some."""
        rows = {row["name"]: row for row in (self.pixels.total.per_class(self.classes) if self.pixels else ())}
        for row in (row for numbers in self._included for row in numbers.per_class):
            rows[row["name"]] = rows.get(row["name"], {}) | row
        return tuple(rows.values())

    def finish(self, split: str, *, kind: Kind | None = None, intervals: Resampling | None = DEFAULT_RESAMPLING) -> Evaluation:
        """Return the numbers of all pictures; unless `intervals` is None, with the bootstrap interval of each."""
        count, total = len(self.images), self.pixels.total if self.pixels else None
        found = score_intervals(self.scores, count, intervals) if intervals and count else {}
        return Evaluation(
            split=split,
            kind=kind or ("instance" if self.objects else "semantic"),
            classes=self.classes,
            summary=self.summary(),
            per_class=self._per_class(),
            confusion=total.counts.tolist() if isinstance(total, ConfusionMatrix) else None,
            images=tuple(self.images),
            intervals={name: (low, high) for name, (low, high) in found.items()},
            confidence=intervals.confidence if intervals else DEFAULT_RESAMPLING.confidence,
            notes=tuple(self.notes),
            errors=self.errors,
            curves=tuple(self.curves),
            pictures_per_second=count / self.seconds if self.seconds else None,
        )


def _objects(numbers: dict[str, float]) -> dict[str, float] | None:
    prefix = "objects/"
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)} or None


def plain(value: Any) -> Any:
    """Tuples as lists, numpy numbers as Python's, NaN and infinity as None: what JSON can hold."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _number(value) for key, value in values.items()}
