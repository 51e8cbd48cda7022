"""Files -> numbers: predictions of any program measured against truth, without a model.

It lies beside `evaluate` and not in `metrics`, because it reads what `delineate predict` writes; the numbers are made there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from delineate.data.dataset import Dataset, Instance, Record
from delineate.data.sample import IGNORE
from delineate.errors import ConfigError, DataError, suggest
from delineate.metrics.bootstrap import Resampling
from delineate.metrics.coco import IouType, coco_scores
from delineate.metrics.evaluation import Evaluation, Evaluator
from delineate.metrics.measures import Labelling
from delineate.predict.objects import extract_objects
from delineate.predict.reading import (
    RESULTS,
    ObjectsFrom,
    Pairs,
    align_classes,
    open_predictions,
    open_truth,
    pair_records,
    read_labelling,
    truth_size,
)

SCORE_THRESHOLD = 0.5


def score(
    predictions: str | Path,
    truth: str | Path,
    *,
    format: str | None = None,
    classes: Sequence[str] | None = None,
    ignore: int = IGNORE,
    objects: ObjectsFrom = "auto",
    em: bool | str = False,
    ci: bool = False,
    score_threshold: float = SCORE_THRESHOLD,
) -> Evaluation:
    """Measure `predictions` against `truth`, both paths of files.

    Args:
        truth: any data set that `open_dataset` reads (in `format`), or a label picture or a folder of them; `classes` names its
            classes. Images need not be there. Pixels of class id `ignore`, and crowd regions, are not counted.
        predictions: what `delineate predict` wrote, a label picture or a folder of them (class ids, or object ids), COCO
            results, or any data set. Names must agree with those of the truth, or of one of its splits, one for one.
        objects: "auto": where the truth has objects; label pictures of class ids then give their connected components.
            "components": of both, also where the truth has only classes. "instances": label pictures hold object ids. "none".
        em: also ISBI 2012's scores of the segments between membranes; a name: of the class that separates them.
        ci: with 95 % bootstrap intervals.
        score_threshold: predicted objects with a lower score do not count in numbers of pixels and of objects at fixed IoU.
            Where both sides have objects with outlines or boxes and the predictions have scores, COCO's numbers, which need no
            threshold, are in the summary as "segm/AP", "bbox/AP50" ...

    Raises `DataError` naming the file or record for anything missing, superfluous, damaged, or of another size or class.
    """
    opened = open_truth(Path(truth), format, classes)
    predicted = open_predictions(Path(predictions), opened, objects)
    pairs = pair_records(predicted, opened)
    lookup, note = align_classes(predicted.semantic_classes, opened.semantic_classes, str(predictions))
    notes = [*opened.notes, *([note] if note else [])]
    summary = _coco_numbers(opened, predicted, pairs, lookup, Path(predictions))
    if _only_boxes(pairs.predictions) or _only_boxes(pairs.truths):
        if not summary:
            raise DataError(
                f"{predictions}: one side has boxes without outlines, and no scores; give outlines or label pictures"
            )
        notes.append("one side has boxes without outlines, so there are no numbers of pixels")
        return Evaluation(pairs.split, "instance", opened.semantic_classes, summary, (), None, (), notes=tuple(notes))
    with_objects = objects != "none" and (opened.kind != "semantic" or objects == "components")
    membrane = membrane_class(opened.semantic_classes, em) if em else None
    evaluator = Evaluator(opened.semantic_classes, objects=with_objects, membrane=membrane)
    threshold = score_threshold if any("score" in i.extra for r in pairs.predictions for i in r.instances or ()) else 0.0
    if threshold:
        notes.append(f"objects with a score below {threshold:g} are left out, except in COCO's numbers")
    for prediction, record in zip(pairs.predictions, pairs.truths, strict=True):
        size = truth_size(record)
        wanted = read_labelling(opened, record, record.image, size)
        found = _translated(read_labelling(predicted, prediction, record.image, size, threshold), lookup)
        if ignore != IGNORE:
            wanted = replace(wanted, semantic=np.where(wanted.semantic == ignore, IGNORE, wanted.semantic))
        if with_objects:
            wanted, found = _with_objects(wanted, objects), _with_objects(found, objects)
        evaluator.add(record.name, found, wanted, str(record.image))
    evaluation = evaluator.finish(pairs.split, intervals=Resampling() if ci else None)
    return replace(evaluation, summary=evaluation.summary | summary, notes=(*notes, *evaluation.notes))


def membrane_class(classes: Sequence[str], em: bool | str) -> int:
    """The id of the class that separates segments: of the name `em`, or, for True, one called membrane or the like, or 0."""
    if isinstance(em, str):
        if em not in classes:
            raise ConfigError(f"em '{em}' is not a class; expected one of {', '.join(classes)}{suggest(em, list(classes))}")
        return list(classes).index(em)
    named = [i for i, name in enumerate(classes) if any(word in name.lower() for word in ("membrane", "boundary", "border"))]
    return named[0] if named else 0


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


def _only_boxes(records: Sequence[Record]) -> bool:
    instances = [instance for record in records for instance in record.instances or ()]
    return any(instance.segmentation is None for instance in instances)


def _coco_numbers(truth: Dataset, predicted: Dataset, pairs: Pairs, lookup: np.ndarray, path: Path) -> dict[str, float]:
    """COCO's numbers where predictions have scores and the truth objects; {} otherwise."""
    if any(record.instances is None for record in (*pairs.truths, *pairs.predictions)):
        return {}
    instances = [i for record in pairs.predictions for i in record.instances or ()]
    if predicted.format != RESULTS and not any("score" in i.extra for i in instances):
        return {}
    # COCO takes pictures in the order of their ids, which decides between equal scores.
    ids = [record.image_id for record in pairs.truths]
    ids = ids if len({type(n) for n in ids}) == 1 and None not in ids else list(range(1, len(ids) + 1))
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
    numbers: dict[str, float] = {}
    for iou_type in _iou_types(pairs):
        try:
            numbers |= {f"{iou_type}/{name}": value for name, value in coco_scores(content, found, iou_type).items()}
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return numbers


def _iou_types(pairs: Pairs) -> list[IouType]:
    """What both sides have."""
    types: list[IouType] = []
    if not _only_boxes(pairs.truths) and not _only_boxes(pairs.predictions):
        types.append("segm")
    if all(i.box is not None for record in pairs.truths for i in record.instances or ()):
        types.append("bbox")
    return types


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
    return content
