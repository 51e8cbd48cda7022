"""A detector measured on the pictures of a data set: COCO's numbers, errors, and objects at fixed IoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from delineate.data.dataset import Dataset, Record
from delineate.errors import ConfigError, DataError
from delineate.files import write_json
from delineate.metrics.average_precision import USUAL_SIGMA, IouType
from delineate.metrics.bootstrap import Resampling
from delineate.metrics.evaluation import Evaluation, Evaluator, ImageScore
from delineate.metrics.families import Families
from delineate.predict.alignment import Alignment, match_record
from delineate.predict.detections import CocoNumbers, CocoPair, DetectionOptions, coco_pair, errors_of
from delineate.predict.panoptic_scores import PanopticMeasure
from delineate.predict.pictures import Picture
from delineate.predict.predictor import Predictor
from delineate.predict.reading import RESULTS, Pairs

_CURVES = (0.5, 0.75, None)  # IoU of the precision-recall curves; None: the mean over all


def evaluate_instances(
    predictor: Predictor,
    alignment: Alignment,
    records: Sequence[Record],
    *,
    split: str,
    intervals: Resampling | None,
    iou_types: Sequence[IouType] = (),
    predictions: Path | None = None,
    **families: Unpack[Families],
) -> Evaluation:
    """Predict `records`, which have a truth, and measure what was found; see `evaluate`.

    `iou_types`: none for all that the network and the data have. Of a panoptic network and such data also PQ, SQ and RQ.
    `predictions`: a file for COCO's list of results.
    """
    dataset, network = alignment.dataset, predictor.instances
    if strange := [name for name, value in families.items() if name != "boundary" and value not in (None, False, ())]:
        raise ConfigError(f"{strange[0]}: is a number of classes of pixels, and the network finds objects; leave it away")
    evaluator = Evaluator(dataset.semantic_classes, objects=True, pixels=False)
    assert evaluator.objects is not None
    truths = [alignment.truth(record) for record in records]
    panoptic = None
    if dataset.stuff and network.has_masks and network.num_stuff:
        panoptic = PanopticMeasure(dataset, alignment.labels, predictor.conventions.stuff)
        evaluator.notes += panoptic.notes
    kinds = _chosen_types(iou_types, predictor, dataset, truths, boundary=families.get("boundary", False))
    found: list[Record] = []
    pictures = (Picture(record.image, record.frame, record.name) for record in records)
    answers = network.predict_all(pictures, score_threshold=0.0)
    for record, truth, results in zip(records, truths, answers, strict=True):
        found.append(alignment.found(truth, results))
        matched = match_record(truth, found[-1], network.score_threshold)
        numbers = evaluator.objects.update_pairs({label + 1: one.pairs for label, one in matched.items()})
        if panoptic is not None:
            numbers |= panoptic.update(record, results)
        evaluator.images.append(ImageScore(truth.name, str(truth.image), numbers))
        evaluator.seconds += results.seconds
    evaluator.notes += alignment.notes
    evaluator.notes.append(
        f"objects with a score below {network.score_threshold:g} are left out, except in COCO's numbers and errors"
    )
    pair = _as_coco(dataset, split, tuple(truths), tuple(found))
    _include(evaluator, dataset, pair, kinds)
    if panoptic is not None:
        evaluator.include(panoptic.numbers())
    if predictions is not None:
        write_json(predictions, _with_ids_of(dataset, pair))
    return evaluator.finish(split, intervals=intervals)


def _include(evaluator: Evaluator, dataset: Dataset, pair: CocoPair, kinds: Sequence[IouType]) -> None:
    """Add COCO's numbers of each kind, their curves, and the kinds of error."""
    options: DetectionOptions = {}
    if "keypoints" in kinds:
        options["sigmas"] = _sigmas(dataset, evaluator.notes)
    for kind in kinds:
        numbers = CocoNumbers(pair, kind, options)
        evaluator.include(numbers)
        evaluator.curves += numbers.mean_curves(_CURVES)
    evaluator.errors = errors_of(pair, [kind for kind in kinds if kind in ("segm", "bbox")] or ("bbox",))


def _chosen_types(
    asked: Sequence[IouType], predictor: Predictor, dataset: Dataset, truths: Sequence[Record], boundary: bool
) -> tuple[IouType, ...]:
    """The kinds of IoU that both sides have; raises `DataError` for one that is asked for and cannot be measured."""
    network = predictor.instances
    outlined = network.has_masks and all(i.segmentation is not None for r in truths for i in r.instances or ())
    pointed = network.num_keypoints > 0 and dataset.keypoints is not None
    there: dict[IouType, bool] = {"segm": outlined, "boundary": outlined, "bbox": True, "keypoints": pointed}
    if lacking := [kind for kind in asked if not there[kind]]:
        raise DataError(
            f"{dataset.root}: '{lacking[0]}' cannot be measured; network and data both have "
            f"{', '.join(kind for kind, has in there.items() if has)}"
        )
    if asked:
        return tuple(asked)
    return tuple(kind for kind, has in there.items() if has and (kind != "boundary" or boundary))


def _sigmas(dataset: Dataset, notes: list[str]) -> tuple[float, ...]:
    """The falloff of each keypoint; where the data do not say it, the usual one, with a note."""
    schema = dataset.keypoints
    assert schema is not None
    if not schema.sigmas:
        notes.append(f"the data name no sigmas of keypoint similarity: {USUAL_SIGMA:g} for each, about the mean of COCO's")
        return (USUAL_SIGMA,) * len(schema.names)
    if len(schema.sigmas) != len(schema.names):
        raise DataError(f"{dataset.root}: {len(schema.sigmas)} sigmas for {len(schema.names)} keypoints; give one for each")
    return schema.sigmas


def _as_coco(dataset: Dataset, split: str, truths: tuple[Record, ...], found: tuple[Record, ...]) -> CocoPair:
    truth = replace(dataset, splits={split: truths})
    answers = replace(dataset, format=RESULTS, kind="instance", splits={split: found})
    lookup = np.arange(len(dataset.semantic_classes))
    pair = coco_pair(truth, answers, Pairs(split, found, truths), lookup, dataset.root)
    assert pair is not None  # every record has a list of objects
    return pair


def _with_ids_of(dataset: Dataset, pair: CocoPair) -> list[dict[str, Any]]:
    """COCO's list of results, with the category ids that the data's own file has."""
    own = dataset.extra["categories"] if dataset.format == "coco" else [{"id": n + 1} for n in range(len(dataset.classes))]
    ids = [category["id"] for category in own]
    return [{**detection, "category_id": ids[detection["category_id"] - 1]} for detection in pair.detections]
