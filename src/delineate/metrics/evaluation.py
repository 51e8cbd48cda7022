"""`Evaluation`: all that is measured on a set of pictures; `Evaluator` gathers it, picture by picture, from label arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from delineate.errors import DataError
from delineate.metrics.bootstrap import Interval, Reduce, bootstrap_interval
from delineate.metrics.clustering import adapted_rand_error, segments_of, v_info, v_rand
from delineate.metrics.confusion import ConfusionMatrix
from delineate.metrics.multilabel import MultilabelConfusion
from delineate.metrics.objects import ObjectScores
from delineate.metrics.overlap import Overlap, nan_mean, ratio

if TYPE_CHECKING:
    from rich.console import Group

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Labelling:
    """What one picture shows, as the truth or a prediction has it."""

    semantic: Array  # (H, W) class ids; (K, H, W) where classes may overlap: prediction 0 or 1, truth also -1 = not counted
    objects: Array | None = None  # (H, W) integers, 0 = none, n = object n - 1 of labels
    labels: Array | None = None  # (N,) class id of each object; None: all of class 1


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The numbers of one picture."""

    name: str
    path: str | None
    mean_iou: float
    mean_dice: float
    objects: dict[str, float] | None = None
    preview: str | None = None  # drawing of truth, prediction and errors, relative to the run folder


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
    objects: dict[str, float] | None = None
    intervals: dict[str, tuple[float, float]] | None = None  # 95 %, bootstrap over pictures
    notes: tuple[str, ...] = ()  # what was concluded on the way

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; numbers that are not defined (NaN) become null."""
        images = [{field: getattr(image, field) for field in ImageScore.__slots__} for image in self.images]
        content = {field: getattr(self, field) for field in Evaluation.__slots__} | {"images": images}
        return _plain(content | {"intervals": self.intervals or {}})

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Evaluation:
        """Rebuild from `to_json`'s value; null becomes NaN again."""
        images = tuple(
            ImageScore(
                **image
                | {key: _number(image[key]) for key in ("mean_iou", "mean_dice")}
                | {"objects": _numbers(image["objects"])}
            )
            for image in content["images"]
        )
        numbers = ("iou", "dice", "precision", "recall")
        return cls(
            split=content["split"],
            kind=content["kind"],
            classes=tuple(content["classes"]),
            summary=_numbers(content["summary"]) or {},
            per_class=tuple(row | {key: _number(row[key]) for key in numbers} for row in content["per_class"]),
            confusion=content["confusion"],
            images=images,
            objects=_numbers(content["objects"]),
            intervals={key: (_number(low), _number(high)) for key, (low, high) in content["intervals"].items()},
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
    ) -> None:
        self.classes, self.ignore_index, self.multilabel, self.membrane = tuple(classes), ignore_index, multilabel, membrane
        self.object_classes = tuple(range(1, len(classes))) if objects else ()
        self.images: list[ImageScore] = []
        self.notes: list[str] = []
        self._total = self._confusion()
        self._overlaps: list[Array] = []  # (3, K) of each picture: shared, predicted and true pixels
        self._objects: list[Array] = []  # (C, T, 4) of each picture: `ObjectScores.sums` of each object class
        self._segments: list[dict[str, float]] = []

    def add(self, name: str, prediction: Labelling, truth: Labelling, path: str | None = None) -> ImageScore:
        """Measure one picture; raises `DataError` naming it where sizes differ or a value is no class."""
        confusion = self._confusion()
        try:
            confusion.update(prediction.semantic, truth.semantic)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        self._total.merge(confusion)
        overlap = confusion.overlap
        self._overlaps.append(np.stack([overlap.intersection, overlap.prediction, overlap.truth]))
        objects = None
        if self.object_classes:
            self._objects.append(self._match(prediction, truth))
            objects = _object_summary(self._objects[-1])
        if self.membrane is not None:
            self._segments.append(_segment_scores(prediction.semantic, truth.semantic, self.membrane, self.ignore_index))
        image = ImageScore(name, path, float(confusion.mean_iou()), float(confusion.mean_dice()), objects)
        self.images.append(image)
        return image

    def finish(self, split: str, *, intervals: bool = True) -> Evaluation:
        """Return the numbers of all pictures; with `intervals` the bootstrap intervals of the headline numbers."""
        summary = self._total.summary(self.classes)
        objects = _object_summary(np.sum(self._objects, axis=0)) if self._objects else None
        summary |= {f"objects/{key}": value for key, value in (objects or {}).items()}
        segments = {
            key: np.array([row[key] for row in self._segments]) for key in (self._segments[0] if self._segments else ())
        }
        summary |= {key: float(nan_mean(values)) for key, values in segments.items()}
        found = self._intervals() | {key: bootstrap_interval(v) for key, v in segments.items()} if intervals else {}
        return Evaluation(
            split=split,
            kind="instance" if self.object_classes else "semantic",
            classes=self.classes,
            summary=summary,
            per_class=tuple(self._total.per_class(self.classes)),
            confusion=None if self.multilabel else self._total.counts.tolist(),
            images=tuple(self.images),
            objects=objects,
            intervals={key: (low, high) for key, (low, high) in found.items()},
            notes=tuple(self.notes),
        )

    def _confusion(self) -> Any:
        return (
            MultilabelConfusion(len(self.classes)) if self.multilabel else ConfusionMatrix(len(self.classes), self.ignore_index)
        )

    def _match(self, prediction: Labelling, truth: Labelling) -> Array:
        """Sums (C, T, 4) of one picture."""
        ignore = (truth.semantic < 0).all(axis=0) if self.multilabel else np.equal(truth.semantic, self.ignore_index)
        seen = {*_objects_of(prediction)[1].tolist(), *_objects_of(truth)[1].tolist()}
        sums = []
        for class_id in self.object_classes:
            scores = ObjectScores()
            if class_id in seen:
                scores.update(_of_class(prediction, class_id), _of_class(truth, class_id), ignore=np.asarray(ignore))
            sums.append(scores.sums)
        return np.stack(sums)

    def _intervals(self) -> dict[str, Interval]:
        if not self.images:
            return {}
        reductions: dict[str, Reduce] = {
            "mean_iou": lambda sums: nan_mean(_overlap(sums).iou()),
            "mean_dice": lambda sums: nan_mean(_overlap(sums).dice()),
        }
        if not self.multilabel:
            reductions["pixel_accuracy"] = lambda sums: ratio(sums[:, 0].sum(axis=-1), sums[:, 2].sum(axis=-1))
        found = {key: bootstrap_interval(np.stack(self._overlaps), reduce) for key, reduce in reductions.items()}
        if self._objects:
            of_objects: dict[str, Reduce] = {
                "objects/ap": lambda sums: nan_mean(ObjectScores.from_sums(sums).mean_average_precision()),
                "objects/ap50": lambda sums: nan_mean(ObjectScores.from_sums(sums).average_precision()[..., 0]),
                "objects/f1_50": lambda sums: nan_mean(ObjectScores.from_sums(sums).f1()[..., 0]),
            }
            found |= {key: bootstrap_interval(np.stack(self._objects), reduce) for key, reduce in of_objects.items()}
        return found


def _overlap(sums: Array) -> Overlap[Array]:
    return Overlap(sums[:, 0], sums[:, 1], sums[:, 2])


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


def _object_summary(sums: Array) -> dict[str, float]:
    """`ObjectScores.summary` of each class, (C, T, 4), averaged over the classes that occur; with the numbers of objects."""
    rows = [ObjectScores.from_sums(of_class).summary() for of_class in sums]
    means = {key: float(nan_mean(np.array([row[key] for row in rows]))) for key in rows[0]}
    true_positives, false_positives, false_negatives = (int(x) for x in sums[:, 0, :3].sum(axis=0))
    return means | {"truth_objects": true_positives + false_negatives, "predicted_objects": true_positives + false_positives}


def _segment_scores(prediction: Array, truth: Array, membrane: int, ignore_index: int) -> dict[str, float]:
    """ISBI 2012's scores of the segments between membranes: truth without its membranes, borders of the prediction thinned."""
    counted = (truth != membrane) & (truth != ignore_index)
    wanted = segments_of(counted)
    found = segments_of(prediction != membrane, thin=True)
    rand, info = v_rand(found, wanted), v_info(found, wanted)
    return {
        "em/v_rand": rand.score,
        "em/v_rand_split": rand.split,
        "em/v_rand_merge": rand.merge,
        "em/v_info": info.score,
        "em/adapted_rand_error": adapted_rand_error(found, wanted),
    }


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


def _numbers(values: dict[str, float | None] | None) -> dict[str, float] | None:
    return None if values is None else {key: _number(value) for key, value in values.items()}
