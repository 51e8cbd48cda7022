"""What a detector found and what is true, object by object: with the same classes and keypoints, and matched by IoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from delineate.data.dataset import Dataset, Instance, Record
from delineate.data.objects import record_objects
from delineate.data.raster import rle_box, segmentation_rle
from delineate.errors import DataError
from delineate.metrics.object_iou import mask_iou
from delineate.metrics.objects import Candidates, match_objects
from delineate.predict.predictor import Predictor
from delineate.predict.reading import align_objects, truth_size
from delineate.predict.results import Results


class Alignment:
    """Brings what a detector finds in the pictures of a data set into the data's terms.

    `notes` says what was concluded. Raises `DataError` where the data have no objects, and where their classes or keypoints are
    not the network's.
    """

    def __init__(self, predictor: Predictor, dataset: Dataset) -> None:
        if dataset.kind == "semantic":
            raise DataError(f"{dataset.root}: holds classes, not objects, which the network finds; give data with objects")
        self.dataset = dataset
        self.labels, self.notes = align_objects(predictor.classes, dataset.classes, "the network")
        self.points: NDArray[np.int64] | None = None  # the network's keypoint for each of the data's
        if predictor.instances.num_keypoints and dataset.keypoints is not None:
            ours = predictor.conventions.keypoints
            self.points = self._aligned_points(() if ours is None else ours.names, predictor.instances.num_keypoints)

    def truth(self, record: Record) -> Record:
        """The record with its objects as a list, also those that a label picture draws."""
        return replace(record, label_map=None, instances=record_objects(self.dataset, record) or ())

    def found(self, record: Record, results: Results) -> Record:
        """The record with what was found in place of its truth; classes that the data do not have are left out."""
        codes = results.masks.rle() if results.masks is not None else [None] * len(results)
        labels = self.labels[results.labels.numpy()].tolist()
        instances = []
        for n, (score, box, code) in enumerate(zip(results.scores.tolist(), results.boxes.tolist(), codes, strict=True)):
            extra: dict[str, Any] = {"score": score, "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]]}
            if results.keypoints is not None and self.points is not None:
                extra["keypoints"] = results.keypoints[n, self.points].flatten().tolist()
            if labels[n] >= 0:
                instances.append(Instance(labels[n], code, tuple(box), extra=extra))
        return replace(record, label_map=None, instances=tuple(instances))

    def _aligned_points(self, names: Sequence[str], count: int) -> NDArray[np.int64]:
        schema = self.dataset.keypoints
        assert schema is not None
        if count != len(schema.names):
            raise DataError(
                f"{self.dataset.root}: has {len(schema.names)} keypoints, the network finds {count}; they must be the same"
            )
        if set(names) == set(schema.names):
            return np.array([names.index(name) for name in schema.names])
        self.notes.append("the network's keypoints have other names than the data's, and are taken in order")
        return np.arange(count)


class ClassObjects(NamedTuple):
    """The objects of one class in a picture, without crowds, and which of them overlap."""

    truth: list[Instance]
    found: list[Instance]
    pairs: Candidates  # ids 1, 2 ... in the order of the lists

    def unmatched(self, iou: float = 0.5) -> tuple[list[Instance], list[Instance]]:
        """True objects that were missed, and found ones that are not there."""
        matching = match_objects(self.pairs, iou_threshold=iou)
        sides = (self.truth, set(matching.matched_truth.tolist())), (self.found, set(matching.matched_prediction.tolist()))
        missed, invented = ([i for n, i in enumerate(side, start=1) if n not in matched] for side, matched in sides)
        return missed, invented


def match_record(truth: Record, found: Record, threshold: float) -> dict[int, ClassObjects]:
    """Return the objects of each class that occurs in a picture, by label, paired by IoU of masks, else of boxes.

    Found objects with a score below `threshold`, and those that are none but lie in a crowd of their class, are left out.
    """
    answers = [i for i in found.instances or () if i.extra["score"] >= threshold]
    wanted = truth.instances or ()
    outlined = all(i.segmentation is not None for i in (*answers, *wanted))
    size = truth_size(truth)
    matched = {}
    for label in sorted({i.label for i in (*answers, *wanted)}):
        objects, crowds = ([i for i in wanted if i.label == label and i.crowd == crowd] for crowd in (False, True))
        mine = [i for i in answers if i.label == label]
        iou = _iou(mine, objects, size, outlined)
        if crowds:
            hidden = _iou(mine, crowds, size, outlined, crowd=True).max(1, initial=0) >= 0.5
            kept = ~hidden | (iou.max(1, initial=0) >= 0.5)
            mine, iou = [i for i, keep in zip(mine, kept, strict=True) if keep], iou[kept]
        prediction, true = np.nonzero(iou)
        ids = np.arange(1, len(objects) + 1), np.arange(1, len(mine) + 1)
        matched[label] = ClassObjects(objects, mine, Candidates(true, prediction, iou[prediction, true], *ids))
    return matched


def _iou(
    found: Sequence[Instance], truth: Sequence[Instance], size: tuple[int, int], outlined: bool, crowd: bool = False
) -> NDArray[np.float64]:
    """IoU of every found with every true object, (N, M); of a `crowd` the share of the found object that lies in it."""
    crowds = [crowd] * len(truth)
    if outlined:
        return mask_iou([_code(i, size) for i in found], [_code(i, size) for i in truth], crowds)
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    boxes: list[Any] = [[_xywh(i, size) for i in side] for side in (found, truth)]
    return np.asarray(coco.iou(boxes[0], boxes[1], [int(crowd)] * len(truth)))


def _code(instance: Instance, size: tuple[int, int]) -> dict[str, Any]:
    assert instance.segmentation is not None
    return segmentation_rle(instance.segmentation, size)


def _xywh(instance: Instance, size: tuple[int, int]) -> list[float]:
    x0, y0, x1, y1 = instance.box if instance.box is not None else rle_box(_code(instance, size))
    return [x0, y0, x1 - x0, y1 - y0]
