"""Average precision as COCO defines it, under COCO's names, computed by pycocotools with its traps closed.

Closed: a file without detections (pycocotools fails; here every AP is 0), annotation id 0 (pycocotools takes it for "no match";
ids are numbered anew), a missing `iscrowd` or `area`, and scores that are not numbers (`DataError`).
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from delineate.errors import DataError

IouType = Literal["bbox", "segm"]

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The order of `COCOeval.stats`. s, m, l: areas up to 32^2, 96^2, and above; AR1, 10, 100: recall with that many detections."""


def coco_scores(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], iou_type: IouType) -> dict[str, float]:
    """Return COCO's twelve numbers for `detections` (COCO's results list) against `truth` (COCO's annotation dict).

    IoU of boxes (xywh, pixels; of the masks' boxes where a detection has only a mask) or of masks, thresholds 0.50 to 0.95 in
    steps of 0.05, 101 recalls. A number without any truth to count, such as APs without small objects, is -1, as in COCO.
    Raises `DataError` for a detection whose image, category or score is unknown or not a number.

    Source: Lin et al. 2014, "Microsoft COCO"; cocodataset/cocoapi's `COCOeval`.

    >>> truth = {"images": [{"id": 1, "height": 8, "width": 8}], "categories": [{"id": 3, "name": "cell"}],
    ...          "annotations": [{"id": 0, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4]}]}
    >>> scores = coco_scores(truth, [{"image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.9}], "bbox")
    >>> round(scores["AP50"], 6), scores["APl"]
    (1.0, -1.0)
    """
    from pycocotools.cocoeval import COCOeval

    check_detections(truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = _indexed(_prepared_truth(truth))
        found = (
            coco.loadRes(_prepared_detections(truth, detections))
            if detections
            else _indexed({**coco.dataset, "annotations": []})
        )
        evaluation = COCOeval(coco, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(COCO_NAMES, evaluation.stats, strict=True)}


def check_detections(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> None:
    """Raise `DataError` for the first detection that names an unknown image or category, or whose score or shape is missing."""
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    shapes = [key for key in ("bbox", "segmentation") if detections and key in detections[0]] or ["bbox"]
    for index, detection in enumerate(detections):
        image, category, score = (detection.get(key) for key in ("image_id", "category_id", "score"))
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise DataError(f"detection {index}: score is {score!r}; every detection needs a finite number")
        if image not in images:
            raise DataError(f"detection {index}: image_id {image!r} is not among the {len(images)} images of the truth")
        if category not in categories:
            raise DataError(f"detection {index}: category_id {category!r} is unknown; the truth has {_shortened(categories)}")
        if lacking := [key for key in shapes if key not in detection]:
            raise DataError(f"detection {index}: has no '{lacking[0]}'; each needs a 'bbox' or a 'segmentation', and all alike")


def _prepared_truth(truth: Mapping[str, Any]) -> dict[str, Any]:
    """COCO's dict with what pycocotools needs: `info`, ids from 1, `iscrowd` and `area`."""
    from pycocotools import mask

    sizes = _sizes(truth)
    annotations = []
    for number, annotation in enumerate(truth.get("annotations", ()), start=1):
        area = annotation.get("area")
        if area is None and annotation.get("segmentation"):
            area = float(mask.area(_compressed(annotation["segmentation"], sizes[annotation["image_id"]])))
        elif area is None:
            area = float(annotation["bbox"][2] * annotation["bbox"][3])
        annotations.append({**annotation, "id": number, "iscrowd": annotation.get("iscrowd", 0), "area": area})
    return {"info": {}, **truth, "annotations": annotations}


def _prepared_detections(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the detections, polygons as run lengths, because `loadRes` takes no polygons."""
    sizes = _sizes(truth)
    prepared = [dict(detection) for detection in detections]
    for detection in prepared:
        if "segmentation" in detection:
            detection["segmentation"] = _compressed(detection["segmentation"], sizes[detection["image_id"]])
    return prepared


def _sizes(truth: Mapping[str, Any]) -> dict[Any, tuple[int, int]]:
    return {image["id"]: (image["height"], image["width"]) for image in truth["images"]}


def _compressed(segmentation: Any, size: tuple[int, int]) -> Any:
    """COCO's compressed run lengths of polygons, of uncompressed run lengths, or of run lengths that are compressed already."""
    from pycocotools import mask

    if isinstance(segmentation, list):
        return mask.merge(mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return mask.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def _indexed(dataset: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    coco: Any = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _shortened(ids: set[Any], count: int = 10) -> str:
    shown = sorted(ids, key=str)[:count]
    return ", ".join(map(str, shown)) + (f" and {len(ids) - count} more" if len(ids) > count else "")
