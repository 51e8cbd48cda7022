"""Objects of data sets as COCO's annotations and detections, and which kinds of IoU they can be measured with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from delineate.data.dataset import Dataset, Instance, Record
from delineate.metrics.coco import IouType
from delineate.predict.reading import RESULTS, Pairs, truth_size


@dataclass(frozen=True, slots=True)
class CocoPair:
    """Truth and detections of the same pictures as COCO's scripts take them."""

    truth: dict[str, Any]  # images, categories, annotations
    detections: list[dict[str, Any]]
    iou_types: tuple[IouType, ...]  # that both sides have what is needed for


def coco_pair(truth: Dataset, predicted: Dataset, pairs: Pairs, lookup: NDArray[Any]) -> CocoPair | None:
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
    return CocoPair(content, found, _iou_types(pairs))


def only_boxes(records: Sequence[Record]) -> bool:
    """Whether some object has no outline."""
    instances = [instance for record in records for instance in record.instances or ()]
    return any(instance.segmentation is None for instance in instances)


def _iou_types(pairs: Pairs) -> tuple[IouType, ...]:
    """What both sides have."""
    types: list[IouType] = []
    if not only_boxes(pairs.truths) and not only_boxes(pairs.predictions):
        types.append("segm")
    if all(i.box is not None for record in pairs.truths for i in record.instances or ()):
        types.append("bbox")
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
    return content
