"""A network measured on the pictures of a data set: numbers, intervals, and drawings of the best and the worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
from PIL import Image
from torch import Tensor

from delineate.data.dataset import Dataset, Record
from delineate.data.decode import decode_image
from delineate.data.formats.names import flat_names
from delineate.data.load import load_sample
from delineate.data.targets import make_targets
from delineate.errors import ConfigError, DataError
from delineate.files import atomic_path, make_folder
from delineate.metrics.average_precision import IouType
from delineate.metrics.bootstrap import DEFAULT_RESAMPLING, Resampling
from delineate.metrics.evaluation import Evaluation, Evaluator, ImageScore
from delineate.metrics.families import Families, make_measures
from delineate.metrics.measures import Labelling
from delineate.predict.detections import ResultsNumbers
from delineate.predict.predictor import Predictor
from delineate.predict.reading import align_classes, has_truth, read_labelling, truth_size
from delineate.predict.results import Results

PREVIEWS = 8
PREVIEW_HEIGHT = 512


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    records: Sequence[Record],
    *,
    split: str,
    previews: Path | None = None,
    intervals: Resampling | None = DEFAULT_RESAMPLING,
    iou_types: Sequence[IouType] = (),
    **families: Unpack[Families],
) -> Evaluation:
    """Predict `records` of `dataset` and measure the predictions against their truth.

    Numbers of pixels; for data of objects, where the network tells objects apart, also those of objects at fixed IoU, and
    COCO's of each of `iou_types`; those of the `families` asked for; bootstrap intervals over pictures unless `intervals` is
    None. `previews`: a folder for drawings of truth, prediction and errors of the worst, the best and some other pictures.
    Pictures without a truth are left out, with a note. Raises `DataError` where nothing is left, and where the classes of
    network and data differ.
    """
    known = [record for record in records if has_truth(record)]
    if not known:
        raise DataError(f"{dataset.root}: '{split}' has no pictures with a truth to evaluate on; choose another --split")
    task = _Task(predictor, dataset)
    if task.multilabel and families.get("em"):
        raise ConfigError("em: the segments between membranes are not defined where classes may overlap; leave it away")
    classes = dataset.semantic_classes
    measures = make_measures(classes, **families)
    evaluator = Evaluator(
        classes, multilabel=task.multilabel, objects=task.objects, preset=families.get("preset"), measures=measures
    )
    evaluator.notes += task.notes
    if len(known) < len(records):
        evaluator.notes.append(f"{len(records) - len(known)} of {len(records)} pictures have no truth and are left out")
    if iou_types and not task.objects:
        raise ConfigError(f"iou_types: COCO's numbers are of objects, which the network or {dataset.root} has not")
    detections = [ResultsNumbers(dataset, iou_type) for iou_type in iou_types]
    for record in known:
        results = task.results(record)
        evaluator.add(record.name, task.prediction(results), task.truth(record), str(record.image))
        for numbers in detections:
            numbers.update(record, results, task.lookup)
    for numbers in detections:
        evaluator.include(numbers)
    evaluation = evaluator.finish(split, intervals=intervals)
    if previews is None:
        return evaluation
    return replace(evaluation, images=_draw_previews(task, known, evaluation.images, make_folder(previews)))


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


def _draw_previews(
    task: _Task, records: Sequence[Record], images: Sequence[ImageScore], folder: Path
) -> tuple[ImageScore, ...]:
    """Predict the chosen pictures once more and draw them; returns `images` with the paths of the drawings."""
    drawn = list(images)
    names = flat_names([record.name for record in records])
    for index in _chosen([image.mean_iou for image in images], PREVIEWS):
        path = folder / f"{names[index]}.png"
        picture = draw_preview(
            task.results(records[index]), task.truth(records[index]), decode_image(records[index].image, records[index].frame)
        )
        with atomic_path(path) as temporary:
            Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(temporary)
        drawn[index] = replace(images[index], preview=f"{folder.name}/{path.name}")
    return tuple(drawn)


def draw_preview(results: Results, truth: Labelling, image: Tensor) -> Tensor:
    """Return truth, prediction and errors of one picture side by side, (3, H, W) uint8."""
    from delineate.report.overlay import draw_errors, draw_instances, draw_semantic, side_by_side

    background = results.background
    panels: list[Tensor] = []
    found = _one_map(results.multilabel.numpy()) if results.multilabel is not None else results.semantic
    wanted = _one_map(truth.semantic) if truth.semantic.ndim == 3 else truth.semantic
    assert found is not None
    for objects, semantic in ((truth.objects, wanted), (results.instance_map, found)):
        if truth.objects is not None and objects is not None:
            panels.append(draw_instances(image, instance_map=objects))
        else:
            panels.append(draw_semantic(image, semantic, classes=results.classes, background=background))
    panels.append(draw_errors(image, found, wanted, background=background))
    captions = ("truth", "prediction", "errors: blue missed, orange invented")
    return side_by_side(panels, captions, height=min(PREVIEW_HEIGHT, max(256, image.shape[-2])))


def _one_map(classes: np.ndarray) -> np.ndarray:
    """Overlapping classes (K, H, W) as one map: the last class that a pixel belongs to."""
    ids = np.where(classes > 0, np.arange(len(classes))[:, None, None], 0).max(axis=0).astype(np.uint8)
    return np.where((classes < 0).all(axis=0), 255, ids).astype(np.uint8)


def _chosen(scores: Sequence[float], count: int) -> list[int]:
    """Indices of up to `count` pictures: the worst and the best three, and others evenly between.

    >>> _chosen([0.5, 0.9, 0.1, 0.7], 8)
    [2, 0, 3, 1]
    >>> _chosen([i / 20 for i in range(20)], 8)
    [0, 1, 2, 6, 13, 17, 18, 19]
    """
    order = sorted(range(len(scores)), key=lambda i: -1.0 if math.isnan(scores[i]) else scores[i])
    if len(order) <= count:
        return order
    between = order[3:-3]
    middle = [between[int((i + 0.5) * len(between) / (count - 6))] for i in range(count - 6)]
    return [*order[:3], *middle, *order[-3:]]
