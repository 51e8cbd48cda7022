"""Objects of data sets as COCO's annotations and detections, and COCO's numbers of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from delineate.data.dataset import Dataset, Instance, Record
from delineate.data.objects import record_objects
from delineate.data.raster import rle_box, segmentation_rle
from delineate.errors import ConfigError, DataError
from delineate.metrics.average_precision import ApSettings, Curves, IouType
from delineate.metrics.backends import BackendName
from delineate.metrics.bootstrap import Draws
from delineate.metrics.coco import coco_curves, coco_matches
from delineate.metrics.detection import DetectionScores, FoundObjects, TrueObjects
from delineate.metrics.detection_errors import DetectionErrors, detection_errors
from delineate.metrics.matches import Matches
from delineate.predict.reading import RESULTS, Pairs, truth_size
from delineate.predict.results import Results


class DetectionOptions(TypedDict, total=False):
    """How objects with scores are measured."""

    iou_types: Sequence[
        IouType
    ]  # bbox, segm, boundary or keypoints; empty: bbox, segm and keypoints, where both sides have them
    backend: BackendName  # that matches them: hotcoco unless given, or pycocotools
    sigmas: Sequence[float] | None  # of keypoint similarity; None: those of the data set's points
    errors: bool  # also the kinds of error, as TIDE defines them


@dataclass(frozen=True, slots=True)
class CocoPair:
    """Truth and detections of the same pictures as COCO's scripts take them."""

    path: Path  # of the detections
    images: tuple[int | str, ...]  # ids, in the order of the pictures
    truth: dict[str, Any]  # images, categories, annotations
    detections: list[dict[str, Any]]
    sigmas: tuple[float, ...]  # of the keypoints; empty: not known
    iou_types: tuple[IouType, ...]  # that both sides have what is needed for

    def chosen(self, options: DetectionOptions, boundary: bool) -> tuple[IouType, ...]:
        """The kinds of IoU to measure; raises `DataError` for one that is asked for and cannot be measured."""
        for asked in options.get("iou_types", ()):
            if asked not in self.iou_types:
                raise DataError(
                    f"{self.path}: '{asked}' cannot be measured, because not all objects of both sides have what it needs; "
                    f"they have {', '.join(t for t in self.iou_types if t != 'boundary') or 'nothing in common'}"
                )
        if options.get("iou_types"):
            return tuple(options.get("iou_types", ()))
        return tuple(t for t in self.iou_types if t != "boundary" or boundary)


def coco_pair(truth: Dataset, predicted: Dataset, pairs: Pairs, lookup: NDArray[Any], path: Path) -> CocoPair | None:
    """Return what COCO's numbers are made of; None unless the truth has objects and the predictions objects with scores.

    `lookup`: the truth's id of each predicted class. Images are in the order of `pairs`, categories those of the truth from 1.
    """
    if any(record.instances is None for record in (*pairs.truths, *pairs.predictions)):
        return None
    instances = [i for record in pairs.predictions for i in record.instances or ()]
    if predicted.format != RESULTS and not any("score" in i.extra for i in instances):
        return None
    # COCO takes pictures in the order of their ids, which decides between equal scores.
    ids = [record.image_id for record in pairs.truths]
    ids = [n for n in ids if n is not None] if len({type(n) for n in ids}) == 1 and None not in ids else []
    ids = ids or list(range(1, len(pairs.truths) + 1))
    sizes = map(truth_size, pairs.truths)
    content = {
        "images": [{"id": n, "height": size[0], "width": size[1]} for n, size in zip(ids, sizes, strict=True)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(truth.semantic_classes) if label],
        "annotations": [
            _annotation(i, n, i.label + 1) for n, r in zip(ids, pairs.truths, strict=True) for i in r.instances or ()
        ],
    }
    rows = zip(ids, pairs.predictions, strict=True)
    found = [_annotation(i, n, int(lookup[i.label + 1])) for n, record in rows for i in record.instances or ()]
    sigmas = truth.keypoints.sigmas if truth.keypoints else ()
    return CocoPair(path, tuple(ids), content, found, sigmas, _iou_types(pairs))


def only_boxes(records: Sequence[Record]) -> bool:
    """Whether some object has no outline."""
    instances = [instance for record in records for instance in record.instances or ()]
    return any(instance.segmentation is None for instance in instances)


def _iou_types(pairs: Pairs) -> tuple[IouType, ...]:
    """What both sides have."""
    truths, found = ([i for record in side for i in record.instances or ()] for side in (pairs.truths, pairs.predictions))
    both = [*truths, *found]
    types: list[IouType] = []
    if all(i.segmentation is not None for i in both):
        types.append("segm")
        types.append("boundary")
    if all(i.segmentation is not None or i.box is not None for i in both):
        types.append("bbox")
    if any(i.keypoints for i in truths) and all("keypoints" in i.extra for i in found):
        types.append("keypoints")
    return tuple(types)


def _annotation(instance: Instance, image_id: Any, category_id: int) -> dict[str, Any]:
    """COCO's dict of an object; boxes are taken from the file where they are kept, because x + w - x is not w."""
    content: dict[str, Any] = {
        **instance.extra,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": int(instance.crowd),
    }
    if instance.segmentation is not None:
        outline = instance.segmentation
        content["segmentation"] = outline if isinstance(outline, dict) else list(outline)
    if instance.box is not None and "bbox" not in content:
        x0, y0, x1, y1 = instance.box
        content["bbox"] = [x0, y0, x1 - x0, y1 - y0]
    if instance.area is not None:
        content["area"] = instance.area
    if instance.keypoints is not None:
        content["keypoints"] = [value for point in instance.keypoints for value in point]
    return content


class CocoNumbers:
    """COCO's numbers of one kind of IoU, as "segm/AP", "bbox/AP50" ..."""

    def __init__(self, pair: CocoPair, iou_type: IouType, options: DetectionOptions) -> None:
        self.pair, self.iou_type = pair, iou_type
        self.backend: BackendName = options.get("backend", "hotcoco")
        self.settings = _settings(pair, iou_type, options)
        try:
            curves = coco_curves(pair.truth, pair.detections, self.settings, backend=self.backend)
        except DataError as error:
            raise DataError(f"{pair.path}: {error}") from error
        self.curves = curves
        self.summary = _named(iou_type, curves.summary())
        self.per_class = _class_rows(iou_type, curves)

    def mean_curves(self, ious: Sequence[float | None]) -> list[dict[str, Any]]:
        """Precision at each recall, the mean over classes with true objects: at each IoU, or, for None, over all of them."""
        recalls = np.array(self.settings.recalls)
        precision = self.curves.precision[..., 0, -1]  # (T, R, K) of objects of all sizes
        precision = precision[..., (precision[0, 0] > -1)]
        if not precision.shape[-1]:
            return []
        rows = [precision if iou is None else precision[[self.settings.threshold_index(iou)]] for iou in ious]
        return [
            {"iou_type": self.iou_type, "iou": iou, "recall": recalls.tolist(), "precision": row.mean((0, 2)).round(4).tolist()}
            for iou, row in zip(ious, rows, strict=True)
        ]

    def scores(self, draws: Draws) -> dict[str, NDArray[np.float64]]:
        """Scores of the pictures, drawn as often as `draws` (R, N) says; NaN where COCO says -1."""
        return _named(self.iou_type, self._matches.scores(_in_order(draws, self.pair.images, self._matches.images)))

    @cached_property
    def _matches(self) -> Matches:
        """What each picture adds: only intervals and comparisons need it."""
        return coco_matches(self.pair.truth, self.pair.detections, self.settings, backend=self.backend)


class ResultsNumbers:
    """COCO's numbers of one kind of IoU, gathered from `Results` as they come, without JSON."""

    def __init__(self, dataset: Dataset, iou_type: IouType) -> None:
        self.dataset, self.iou_type = dataset, iou_type
        self._scores = DetectionScores(dataset.semantic_classes, iou_type)
        self._pictures: list[str] = []

    def update(self, record: Record, results: Results, lookup: NDArray[Any]) -> None:
        """Add what was found in a picture; `lookup`: the data's id of each class of the network."""
        labels = lookup[results.labels.numpy()]
        found = FoundObjects(results.scores, labels, results.boxes, results.masks, results.keypoints)
        truth = true_objects(self.dataset, record)
        self._scores.update(record.name, found, replace(truth, labels=np.asarray(truth.labels) + 1))  # 0 is the background
        self._pictures.append(record.name)

    @property
    def summary(self) -> dict[str, float]:
        """COCO's numbers under their names."""
        return _named(self.iou_type, self._scores.summary())

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """A row for each class with true objects."""
        return _class_rows(self.iou_type, self._scores.curves())

    def scores(self, draws: Draws) -> dict[str, NDArray[np.float64]]:
        """Scores of the pictures, drawn as often as `draws` (R, N) says; NaN where COCO says -1."""
        matches = self._scores.matches()
        return _named(self.iou_type, matches.scores(_in_order(draws, self._pictures, matches.images)))


def true_objects(dataset: Dataset, record: Record) -> TrueObjects:
    """Return the objects of a picture as COCO's numbers need them; labels are indices into `dataset.classes`."""
    size, objects = truth_size(record), record_objects(dataset, record) or ()
    codes = [None if o.segmentation is None else segmentation_rle(o.segmentation, size) for o in objects]
    boxes = [o.box if o.box is not None or code is None else rle_box(code) for o, code in zip(objects, codes, strict=True)]
    count = 0 if dataset.keypoints is None else len(dataset.keypoints.names)
    points = [o.keypoints if o.keypoints is not None else ((0, 0, 0),) * count for o in objects]
    return TrueObjects(
        labels=np.array([o.label for o in objects], np.int64),
        boxes=None if None in boxes else np.array(boxes, np.float64).reshape(-1, 4),
        masks=None if None in codes else codes,
        keypoints=np.array(points, np.float64).reshape(len(objects), count, 3) if count else None,
        crowd=np.array([o.crowd for o in objects], bool),
        areas=None if any(o.area is None for o in objects) else np.array([o.area for o in objects], np.float64),
    )


def _named(iou_type: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{iou_type}/{name}": value for name, value in numbers.items()}


def _class_rows(iou_type: str, curves: Curves) -> list[dict[str, Any]]:
    return [{"name": row["name"]} | _named(iou_type, _without_names(row)) for row in curves.per_class()]


def _in_order(draws: Draws, pictures: Sequence[Any], images: Sequence[Any]) -> Draws:
    """The columns of `draws`, which are of `pictures`, in the order of `images`."""
    place = {picture: n for n, picture in enumerate(pictures)}
    return draws[:, [place[image] for image in images]]


def _without_names(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("id", "name")}


def _settings(pair: CocoPair, iou_type: IouType, options: DetectionOptions) -> ApSettings:
    if iou_type != "keypoints":
        return ApSettings.coco(iou_type)
    sigmas = tuple(options.get("sigmas") or pair.sigmas)
    if not sigmas:
        raise ConfigError(
            "keypoints: the similarity of points that are not COCO's 17 of a person needs a sigma for each; give sigmas, or "
            "leave keypoints out with iou_types"
        )
    return ApSettings.coco("keypoints", sigmas=sigmas)


def errors_of(pair: CocoPair, among: Sequence[IouType] = ("segm", "bbox")) -> DetectionErrors:
    """The kinds of error, of masks where both sides have some, else of boxes; raises `DataError` where they have neither."""
    kinds = [kind for kind in ("segm", "bbox") if kind in pair.iou_types and kind in among]
    if not kinds:
        raise DataError(f"{pair.path}: errors are told apart by boxes or masks, which not all objects of both sides have")
    return detection_errors(pair.truth, pair.detections, kinds[0])  # pyright: ignore[reportArgumentType]
