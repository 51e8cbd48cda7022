"""Files -> numbers: predictions of any program measured against truth, without a model.

It lies beside `evaluate` and not in `metrics`, because it reads what `delineate predict` writes; the numbers are made there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from delineate.data.dataset import Dataset
from delineate.data.sample import IGNORE
from delineate.errors import DataError
from delineate.metrics.bootstrap import DEFAULT_RESAMPLING, Resampling
from delineate.metrics.coco import coco_scores
from delineate.metrics.comparison import ComparedScores, compare_evaluators
from delineate.metrics.evaluation import Evaluation, Evaluator, ImageScore, Included, Kind
from delineate.metrics.families import Families, make_measures
from delineate.metrics.measures import Labelling
from delineate.metrics.panoptic import score_panoptic_files
from delineate.predict.detections import CocoPair, coco_pair, only_boxes
from delineate.predict.objects import extract_objects
from delineate.predict.reading import (
    ObjectsFrom,
    Pairs,
    align_classes,
    is_panoptic_file,
    open_predictions,
    open_truth,
    pair_records,
    read_labelling,
    truth_size,
)

SCORE_THRESHOLD = 0.5


class ScoreOptions(Families, total=False):
    """How `score` and `compare` read files, and what they measure: the `Families` too."""

    format: str | None  # of the truth; None: recognised
    classes: Sequence[str] | None  # names of the truth's classes
    ignore: int  # class id of the truth whose pixels are not counted, 255 unless given; crowd regions are not counted either
    # Where objects come from. "auto": where the truth has some; label pictures of class ids then give their connected
    # components. "components": of both, also where the truth has only classes. "instances": label pictures hold object ids.
    objects: ObjectsFrom
    # Predicted objects with a lower score (0.5 unless given) do not count in numbers of pixels and of objects at fixed IoU.
    score_threshold: float


def score(
    predictions: str | Path, truth: str | Path, *, ci: bool | Resampling = False, **options: Unpack[ScoreOptions]
) -> Evaluation:
    """Measure `predictions` against `truth`, both paths of files.

    Args:
        predictions: what `delineate predict` wrote, a label picture or a folder of them (class ids, or object ids), COCO
            results, or any data set. Names must agree with those of the truth, or of one of its splits, one for one.
        truth: any data set that `open_dataset` reads, or a label picture or a folder of them. Images need not be there.
        ci: with bootstrap intervals: 95 %, or as a `Resampling` says.
        options: see `ScoreOptions`. Where both sides have objects with outlines or boxes and the predictions have scores,
            COCO's numbers, which need no threshold, are in the summary as "segm/AP", "bbox/AP50" ... Two files of COCO's
            panoptic format have "pq", "sq", "rq" and no other numbers.

    Raises `DataError` naming the file or record for anything missing, superfluous, damaged, or of another size or class.
    """
    measured = _measure(Path(predictions), Path(truth), options)
    resampling = ci if isinstance(ci, Resampling) else DEFAULT_RESAMPLING if ci else None
    evaluation = measured.evaluator.finish(measured.split, kind=measured.kind, intervals=resampling)
    return replace(evaluation, summary=evaluation.summary | measured.detections)


def compare(
    a: str | Path,
    b: str | Path,
    truth: str | Path,
    *,
    resampling: Resampling = DEFAULT_RESAMPLING,
    **options: Unpack[ScoreOptions],
) -> ComparedScores:
    """Measure the predictions `a` and `b` against `truth`, and how sure their difference is: a paired bootstrap over pictures.

    Paths and `options` as in `score`; each resample draws the same pictures for both. Raises `DataError` as `score` does, and
    where `a` and `b` are predictions of different pictures.
    """
    of_a, of_b = (_measure(Path(path), Path(truth), options) for path in (a, b))
    if of_a.split != of_b.split:
        sizes = [f"{path} is of the {len(m.evaluator.images)} pictures of '{m.split}'" for path, m in ((a, of_a), (b, of_b))]
        raise DataError(f"{sizes[0]}, {sizes[1]}; both must be predictions of the same pictures of {truth}")
    compared = compare_evaluators(of_a.evaluator, of_b.evaluator, (str(a), str(b)), of_a.split, resampling)
    notes = dict.fromkeys((*of_a.evaluator.notes, *of_b.evaluator.notes, *compared.notes))
    return replace(compared, notes=tuple(notes))


@dataclass(frozen=True, slots=True)
class _Measured:
    """Predictions that were measured: what `score` sums up and `compare` resamples."""

    evaluator: Evaluator
    split: str
    kind: Kind
    detections: dict[str, float]


def _measure(predictions: Path, truth: Path, options: ScoreOptions) -> _Measured:
    if is_panoptic_file(truth):
        return _measure_panoptic(predictions, truth, options)
    opened = open_truth(truth, options.get("format"), options.get("classes"))
    predicted = open_predictions(predictions, opened, options.get("objects", "auto"))
    pairs = pair_records(predicted, opened)
    lookup, note = align_classes(predicted.semantic_classes, opened.semantic_classes, str(predictions))
    boxes = only_boxes(pairs.predictions) or only_boxes(pairs.truths)
    evaluator = _evaluator(opened, boxes, options)
    evaluator.notes += [*opened.notes, *([note] if note else [])]
    detections = coco_pair(opened, predicted, pairs, lookup)
    if boxes and not detections:
        raise DataError(f"{predictions}: one side has boxes without outlines, and no scores; give outlines or label pictures")
    if boxes:
        evaluator.notes.append("one side has boxes without outlines, so there are no numbers of pixels")
        evaluator.images += [ImageScore(record.name, str(record.image), {}) for record in pairs.truths]
    else:
        _add_pictures(evaluator, opened, predicted, pairs, lookup, options)
    numbers = _coco_numbers(detections, predictions) if detections else {}
    return _Measured(evaluator, pairs.split, "instance" if evaluator.objects or boxes else "semantic", numbers)


def _evaluator(truth: Dataset, boxes: bool, options: ScoreOptions) -> Evaluator:
    classes = truth.semantic_classes
    if boxes:
        return Evaluator(classes, pixels=False)
    objects = options.get("objects", "auto")
    families = {key: value for key, value in options.items() if key in Families.__annotations__}
    return Evaluator(
        classes,
        objects=objects != "none" and (truth.kind != "semantic" or objects == "components"),
        preset=options.get("preset"),
        measures=make_measures(classes, **families),  # pyright: ignore[reportArgumentType]
    )


def _add_pictures(
    evaluator: Evaluator, truth: Dataset, predicted: Dataset, pairs: Pairs, lookup: np.ndarray, options: ScoreOptions
) -> None:
    objects, ignore = options.get("objects", "auto"), options.get("ignore", IGNORE)
    scored = any("score" in i.extra for r in pairs.predictions for i in r.instances or ())
    threshold = options.get("score_threshold", SCORE_THRESHOLD) if scored else 0.0
    if threshold:
        evaluator.notes.append(f"objects with a score below {threshold:g} are left out, except in COCO's numbers")
    for prediction, record in zip(pairs.predictions, pairs.truths, strict=True):
        size = truth_size(record)
        wanted = read_labelling(truth, record, record.image, size)
        found = _translated(read_labelling(predicted, prediction, record.image, size, threshold), lookup)
        if ignore != IGNORE:
            wanted = replace(wanted, semantic=np.where(wanted.semantic == ignore, IGNORE, wanted.semantic))
        if evaluator.objects:
            wanted, found = _with_objects(wanted, objects), _with_objects(found, objects)
        evaluator.add(record.name, found, wanted, str(record.image))


def _measure_panoptic(predictions: Path, truth: Path, options: ScoreOptions) -> _Measured:
    found = score_panoptic_files(predictions, truth)
    evaluator = Evaluator(found.classes, pixels=False)
    per_class = found.quality.per_class(found.classes)
    evaluator.include(Included(found.scores, per_class=per_class))
    of_pictures = found.quality.from_sums(found.sums).means()
    if options.get("boundary"):
        boundary = score_panoptic_files(predictions, truth, iou="boundary")
        evaluator.include(Included(lambda draws: _prefixed("boundary_", boundary.scores(draws))))
        of_pictures |= _prefixed("boundary_", boundary.quality.from_sums(boundary.sums).means())
    for n, image_id in enumerate(found.image_ids):
        evaluator.images.append(ImageScore(str(image_id), None, {key: float(v[n]) for key, v in of_pictures.items()}))
    return _Measured(evaluator, "all", "panoptic", {})


def _prefixed(prefix: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": score for name, score in scores.items()}


def _coco_numbers(pair: CocoPair, path: Path) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for iou_type in pair.iou_types:
        try:
            found = coco_scores(pair.truth, pair.detections, iou_type)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        numbers |= {f"{iou_type}/{name}": value for name, value in found.items()}
    return numbers


def _translated(labelling: Labelling, lookup: np.ndarray) -> Labelling:
    """The labelling with its classes called as the truth's."""
    if np.array_equal(lookup, np.arange(len(lookup))):
        return labelling
    table = np.arange(max(256, len(lookup)))
    table[: len(lookup)] = lookup
    labels = None if labelling.labels is None else lookup[labelling.labels]
    return Labelling(table[labelling.semantic], labelling.objects, labels)


def _with_objects(labelling: Labelling, objects: ObjectsFrom) -> Labelling:
    """The labelling with objects: its own, or the connected components of each class but the first."""
    if labelling.objects is not None and objects != "components":
        return labelling
    found = extract_objects(np.where(labelling.semantic == IGNORE, 0, labelling.semantic))
    return replace(labelling, objects=found.instance_map, labels=found.labels)
