"""Validation of detectors: whole pictures through `Predictor`, as users have it, COCO's precision and panoptic quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric

from delineate.data.dataset import Dataset, Record
from delineate.metrics.average_precision import USUAL_SIGMA, ApSettings, IouType
from delineate.metrics.detection import DetectionScores, FoundObjects
from delineate.metrics.panoptic import PanopticQuality
from delineate.models.instance import InstanceModel
from delineate.predict.detections import true_objects
from delineate.predict.panoptic_scores import PanopticMeasure
from delineate.predict.predictor import Predictor
from delineate.train.processes import PRECISIONS
from delineate.weights.conventions import Conventions

NAMES: dict[IouType, str] = {"segm": "mask", "bbox": "box", "keypoints": "keypoint"}
"""What COCO's kinds of IoU are called in the numbers of a run."""

Mergeable = TypeVar("Mergeable", DetectionScores, PanopticQuality)


def measures_panoptic(model: InstanceModel) -> bool:
    """Whether objects and stuff that a network finds become segments: panoptic quality is of those."""
    return model.has_masks and model.num_stuff > 0


class InstanceValidation:
    """Measures a detector on the pictures of `records`; processes take every `world`-th."""

    def __init__(
        self, fabric: Fabric, dataset: Dataset, records: Sequence[Record], model: InstanceModel, conventions: Conventions
    ) -> None:
        self.fabric, self.dataset, self.conventions = fabric, dataset, conventions
        self.records = [r for r in records if r.instances is not None or r.label_map is not None]
        found: dict[IouType, bool] = {"segm": model.has_masks, "bbox": True, "keypoints": model.num_keypoints > 0}
        self.iou_types: list[IouType] = [kind for kind, there in found.items() if there]
        self.panoptic = measures_panoptic(model)

    def names(self) -> list[str]:
        """The names of the numbers: mask_AP, box_AP50 ..., mask_AP/CLASS of classes that have true objects; pq, pq/CLASS ..."""
        names = [name for scores in self._scores().values() for name in _named(scores)]
        names += [f"{NAMES[kind]}_AP/{name}" for kind in self.iou_types for name in self.dataset.classes]
        return names + (list(self._measure().quality.summary(self._measure().classes)) if self.panoptic else [])

    @torch.no_grad()
    def __call__(self, model: Any, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return COCO's numbers, NaN where there is nothing to count, and the AP of each class."""
        model.eval()
        if self.fabric.world_size > 1:  # running statistics are each process's own; those of the first are saved
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        predictor = self._predictor(model)
        scores, panoptic = self._scores(), self._measure() if self.panoptic else None
        for record in self.records[self.fabric.global_rank :: self.fabric.world_size]:
            check()
            results = predictor.predict(record.image, frame=record.frame, name=record.name)
            found = FoundObjects(results.scores, results.labels, results.boxes, results.masks, results.keypoints)
            truth = true_objects(self.dataset, record)
            for one in scores.values():
                one.update(record.name, found, truth)
            if panoptic is not None:
                panoptic.update(record, results)
        merged = [self._merged(one) for one in scores.values()]
        numbers = {name: value for one in merged for name, value in (_named(one) | _of_classes(one)).items()}
        return numbers | (self._merged(panoptic.quality).summary(panoptic.classes) if panoptic is not None else {})

    def _predictor(self, model: Any) -> Predictor:
        model.classes, model.conventions = self.dataset.classes, self.conventions
        names = {fabric: ours for ours, fabric in PRECISIONS.items()}
        precision = names[self.fabric.strategy.precision.precision]  # pyright: ignore[reportAttributeAccessIssue]
        return Predictor(model, self.fabric.device, precision, score_threshold=0.0)

    def _scores(self) -> dict[IouType, DetectionScores]:
        return {kind: DetectionScores(self.dataset.classes, self._settings(kind)) for kind in self.iou_types}

    def _measure(self) -> PanopticMeasure:
        return PanopticMeasure(self.dataset, np.arange(len(self.dataset.classes)), self.dataset.stuff)

    def _settings(self, kind: IouType) -> ApSettings:
        schema = self.conventions.keypoints
        if kind != "keypoints" or schema is None:
            return ApSettings.coco(kind)
        return ApSettings.coco(kind, sigmas=schema.sigmas or (USUAL_SIGMA,) * len(schema.names))

    def _merged(self, scores: Mergeable) -> Mergeable:
        """The scores of all processes."""
        if self.fabric.world_size == 1:
            return scores
        parts: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(parts, scores)
        first, *others = parts
        for other in others:
            first.merge(other)
        return first


def _named(scores: DetectionScores) -> dict[str, float]:
    kind = NAMES[scores.settings.iou_type]
    return {f"{kind}_{name}": _or_nan(value) for name, value in scores.summary().items()}


def _of_classes(scores: DetectionScores) -> dict[str, float]:
    kind = NAMES[scores.settings.iou_type]
    return {f"{kind}_AP/{row['name']}": _or_nan(row["AP"]) for row in scores.curves().per_class()}


def _or_nan(value: float) -> float:
    return float("nan") if value == -1 else value
