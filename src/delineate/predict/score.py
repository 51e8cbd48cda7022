"""Files -> numbers: predictions of any program measured against truth, without a model.

It lies beside `evaluate` and not in `metrics`, because it reads what `delineate predict` writes; the numbers are made there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np

from delineate.data.dataset import Dataset
from delineate.data.formats.panoptic import is_panoptic_file
from delineate.data.sample import IGNORE
from delineate.errors import DataError
from delineate.metrics.bootstrap import DEFAULT_RESAMPLING, Resampling
from delineate.metrics.comparison import ComparedScores, compare_evaluators
from delineate.metrics.evaluation import Evaluation, Evaluator, ImageScore, Kind
from delineate.metrics.families import Families, make_measures
from delineate.metrics.measures import Labelling
from delineate.metrics.panoptic import score_panoptic_files
from delineate.predict.detections import CocoNumbers, CocoPair, DetectionOptions, coco_pair, errors_of, only_boxes
from delineate.predict.objects import extract_objects
from delineate.predict.panoptic_scores import PanopticNumbers
from delineate.predict.reading import (
    ObjectsFrom,
    Pairs,
    align_classes,
    naming,
    open_predictions,
    open_truth,
    pair_records,
    read_labelling,
    truth_size,
)

SCORE_THRESHOLD = 0.5


class ScoreOptions(Families, DetectionOptions, total=False):
    """How `score` and `compare` read files, and what they measure: also all of `Families` and `DetectionOptions`."""

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
            COCO's numbers, which need no threshold, are in the summary as "segm/AP", "bbox/AP50", "keypoints/AR" ... Two
            files of COCO's panoptic format have "pq", "sq", "rq" and no other numbers.

    Raises `DataError` naming the file or record for anything missing, superfluous, damaged, or of another size or class.
    """
    measured = _measure(Path(predictions), Path(truth), options)
    resampling = ci if isinstance(ci, Resampling) else DEFAULT_RESAMPLING if ci else None
    return measured.evaluator.finish(measured.split, kind=measured.kind, intervals=resampling)


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


def _measure(predictions: Path, truth: Path, options: ScoreOptions) -> _Measured:
    if is_panoptic_file(truth):
        return _measure_panoptic(predictions, truth, options)
    opened = open_truth(truth, options.get("format"), options.get("classes"))
    predicted = open_predictions(predictions, opened, options.get("objects", "auto"))
    pairs = pair_records(predicted, opened)
    lookup, note = align_classes(predicted.semantic_classes, opened.semantic_classes, str(predictions))
    with naming(truth):
        detections = coco_pair(opened, predicted, pairs, lookup, predictions)
    reason = _no_pixels(opened, pairs)
    if reason and not detections:
        raise DataError(f"{predictions}: {reason}, and no scores; give outlines or label pictures")
    evaluator = Evaluator(opened.semantic_classes, pixels=False) if reason else _evaluator(opened, options)
    evaluator.notes += [*opened.notes, *([note] if note else [])]
    if reason:
        evaluator.notes.append(f"{reason}, so there are no numbers of pixels")
        evaluator.images += [ImageScore(record.name, str(record.image), {}) for record in pairs.truths]
    else:
        _add_pictures(evaluator, opened, predicted, pairs, lookup, options, (truth, predictions))
    if detections:
        _add_detections(evaluator, detections, options)
    elif options.get("iou_types") or options.get("errors"):
        raise DataError(f"{predictions}: COCO's numbers need objects with scores on this side, and objects in {truth}")
    return _Measured(evaluator, pairs.split, "instance" if evaluator.objects or reason else "semantic")


def _no_pixels(truth: Dataset, pairs: Pairs) -> str | None:
    """Why there can be no numbers of pixels."""
    if only_boxes(pairs.predictions) or only_boxes(pairs.truths):
        return "one side has objects without outlines"
    if truth.kind != "semantic" and len(truth.semantic_classes) > IGNORE:
        return f"{len(truth.classes)} classes of objects do not fit a map of class ids"
    return None


def _add_detections(evaluator: Evaluator, pair: CocoPair, options: ScoreOptions) -> None:
    for iou_type in pair.chosen(options, boundary=options.get("boundary", False)):
        if iou_type == "keypoints" and not (options.get("sigmas") or pair.sigmas or options.get("iou_types")):
            evaluator.notes.append("keypoints are not measured: they are not COCO's of a person; give sigmas, one for each")
            continue
        evaluator.include(CocoNumbers(pair, iou_type, options))
    if options.get("errors"):
        evaluator.errors = errors_of(pair)


def _evaluator(truth: Dataset, options: ScoreOptions) -> Evaluator:
    classes = truth.semantic_classes
    objects = options.get("objects", "auto")
    families = {key: value for key, value in options.items() if key in Families.__annotations__}
    return Evaluator(
        classes,
        objects=objects != "none" and (truth.kind != "semantic" or objects == "components"),
        preset=options.get("preset"),
        measures=make_measures(classes, **families),  # pyright: ignore[reportArgumentType]
    )


def _add_pictures(
    evaluator: Evaluator,
    truth: Dataset,
    predicted: Dataset,
    pairs: Pairs,
    lookup: np.ndarray,
    options: ScoreOptions,
    paths: tuple[Path, Path],
) -> None:
    objects, ignore = options.get("objects", "auto"), options.get("ignore", IGNORE)
    scored = any("score" in i.extra for r in pairs.predictions for i in r.instances or ())
    threshold = options.get("score_threshold", SCORE_THRESHOLD) if scored else 0.0
    if threshold:
        evaluator.notes.append(f"objects with a score below {threshold:g} are left out, except in COCO's numbers")
    for prediction, record in zip(pairs.predictions, pairs.truths, strict=True):
        with naming(paths[0]):
            size = truth_size(record)
            wanted = read_labelling(truth, record, record.image, size)
        with naming(paths[1]):
            found = _translated(read_labelling(predicted, prediction, record.image, size, threshold), lookup)
        if ignore != IGNORE:
            wanted = replace(wanted, semantic=np.where(wanted.semantic == ignore, IGNORE, wanted.semantic))
        if evaluator.objects:
            wanted, found = _with_objects(wanted, objects), _with_objects(found, objects)
        evaluator.add(record.name, found, wanted, str(record.image))


def _measure_panoptic(predictions: Path, truth: Path, options: ScoreOptions) -> _Measured:
    families = [PanopticNumbers(score_panoptic_files(predictions, truth))]
    if options.get("boundary"):
        families.append(PanopticNumbers(score_panoptic_files(predictions, truth, iou="boundary"), "boundary_"))
    evaluator = Evaluator(families[0].found.classes, pixels=False)
    for family in families:
        evaluator.include(family)
    for n, image_id in enumerate(families[0].found.image_ids):
        numbers = {name: float(score[n]) for family in families for name, score in family.of_pictures().items()}
        evaluator.images.append(ImageScore(str(image_id), None, numbers))
    return _Measured(evaluator, "all", "panoptic")


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
