"""A network measured on the pictures of a data set: numbers, intervals, and drawings of the best and the worst."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from delineate.data.dataset import Dataset, Record
from delineate.data.decode import decode_image
from delineate.data.load import load_sample
from delineate.data.targets import make_targets
from delineate.errors import ConfigError, DataError
from delineate.files import make_folder
from delineate.metrics.average_precision import IouType
from delineate.metrics.bootstrap import DEFAULT_RESAMPLING, Resampling
from delineate.metrics.evaluation import Evaluation, Evaluator
from delineate.metrics.families import Families, make_measures
from delineate.metrics.measures import Labelling
from delineate.predict.alignment import Alignment
from delineate.predict.detections import ResultsNumbers
from delineate.predict.evaluate_instances import evaluate_instances
from delineate.predict.pictures import Picture
from delineate.predict.predictor import Predictor
from delineate.predict.previews import draw_previews, objects_preview, semantic_preview
from delineate.predict.reading import align_classes, has_truth, read_labelling, truth_size
from delineate.predict.results import Results


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    records: Sequence[Record],
    *,
    split: str,
    previews: Path | None = None,
    intervals: Resampling | None = DEFAULT_RESAMPLING,
    iou_types: Sequence[IouType] = (),
    predictions: Path | None = None,
    **families: Unpack[Families],
) -> Evaluation:
    """Predict `records` of `dataset` and measure the predictions against their truth.

    Of a network that gives each pixel a class: numbers of pixels; for data of objects, where the network tells objects apart,
    also those of objects at fixed IoU, and COCO's of each of `iou_types`; those of the `families` asked for. Of a detector:
    COCO's numbers of masks, boxes and keypoints, whichever network and data both have, or of `iou_types`; precision-recall
    curves, kinds of error, and objects at fixed IoU; of a panoptic network on panoptic data also "pq", "sq", "rq" of all
    classes, things and stuff.

    Bootstrap intervals over pictures unless `intervals` is None. `previews`: a folder for drawings of truth, prediction and
    errors of the worst, the best and some other pictures. `predictions`: a file for what a detector found, as COCO's list of
    results. Pictures without a truth are left out, with a note. Raises `DataError` where nothing is left, and where the classes
    of network and data differ.
    """
    known = [record for record in records if has_truth(record)]
    if not known:
        raise DataError(f"{dataset.root}: '{split}' has no pictures with a truth to evaluate on; choose another --split")
    draw: Callable[[Record], Tensor]
    if predictor.conventions.outputs == "instances":
        alignment = Alignment(predictor, dataset)
        options: dict[str, Any] = {"iou_types": iou_types, "predictions": predictions, **families}
        evaluation = evaluate_instances(predictor, alignment, known, split=split, intervals=intervals, **options)
        draw = partial(_draw_objects, predictor, alignment)
    else:
        if predictions is not None:
            raise ConfigError("predictions: only detectors write COCO's list of results here; use predict with the format coco")
        task = _Task(predictor, dataset)
        evaluation = _evaluate_pixels(task, known, split, intervals, iou_types, families)
        draw = task.preview
    if len(known) < len(records):
        note = f"{len(records) - len(known)} of {len(records)} pictures have no truth and are left out"
        evaluation = replace(evaluation, notes=(*evaluation.notes, note))
    if previews is None:
        return evaluation
    return replace(evaluation, images=draw_previews(draw, known, evaluation.images, make_folder(previews)))


def _evaluate_pixels(
    task: _Task,
    records: Sequence[Record],
    split: str,
    intervals: Resampling | None,
    iou_types: Sequence[IouType],
    families: Families,
) -> Evaluation:
    """Measure a network that gives each pixel a class."""
    if task.multilabel and families.get("em"):
        raise ConfigError("em: the segments between membranes are not defined where classes may overlap; leave it away")
    classes = task.dataset.semantic_classes
    measures = make_measures(classes, **families)
    evaluator = Evaluator(
        classes, multilabel=task.multilabel, objects=task.objects, preset=families.get("preset"), measures=measures
    )
    evaluator.notes += task.notes
    if iou_types and not task.objects:
        raise ConfigError(f"iou_types: COCO's numbers are of objects, which the network or {task.dataset.root} has not")
    detections = [ResultsNumbers(task.dataset, iou_type) for iou_type in iou_types]
    for record in records:
        results = task.results(record)
        evaluator.add(record.name, task.prediction(results), task.truth(record), str(record.image))
        evaluator.seconds += results.seconds
        for numbers in detections:
            numbers.update(record, results, task.lookup)
    for numbers in detections:
        evaluator.include(numbers)
    return evaluator.finish(split, intervals=intervals)


def _draw_objects(predictor: Predictor, alignment: Alignment, record: Record) -> Tensor:
    results = predictor.predict(record.image, frame=record.frame, name=record.name)
    return objects_preview(results, record, alignment)


class _Task:
    """Truth and prediction of pictures as labellings with the same class ids."""

    def __init__(self, predictor: Predictor, dataset: Dataset) -> None:
        self.predictor, self.dataset = predictor, dataset
        self.multilabel = predictor.conventions.outputs == "multilabel"
        self.objects = dataset.kind != "semantic" and predictor.semantic.objects != "none"
        lookup, note = align_classes(predictor.classes, dataset.semantic_classes, "the network")
        if self.multilabel and not np.array_equal(lookup, np.arange(len(dataset.semantic_classes))):
            raise DataError(f"{dataset.root}: the classes of a multilabel network must be in the order of the data's")
        self.lookup, self.notes = lookup, [note] if note else []

    def results(self, record: Record) -> Results:
        return self.predictor.predict(record.image, frame=record.frame, name=record.name)

    def prediction(self, results: Results) -> Labelling:
        if self.multilabel:
            assert results.multilabel is not None
            return Labelling(results.multilabel.numpy())
        assert results.semantic is not None
        semantic = self.lookup[results.semantic.numpy()]
        instance_map = results.instance_map
        if not self.objects or instance_map is None:
            return Labelling(semantic)
        return Labelling(semantic, instance_map.numpy(), self.lookup[results.labels.numpy()])

    def truth(self, record: Record) -> Labelling:
        if not self.multilabel:
            return read_labelling(self.dataset, record, record.image, truth_size(record))
        want = ("semantic",) if self.dataset.kind == "semantic" else ("semantic", "masks")
        sample = load_sample(self.dataset, record, want)
        labels = make_targets(sample, self.predictor.conventions, len(self.dataset.semantic_classes))["labels"]
        return Labelling(labels.numpy())

    def preview(self, record: Record) -> Tensor:
        """Predict a picture once more and draw it."""
        shares = self.predictor.semantic.shares(Picture(record.image, record.frame, record.name))
        return semantic_preview(self.results(record), self.truth(record), decode_image(record.image, record.frame), shares)
