"""What can be wrong with truth and detections in COCO's form: every fault is a `DataError` that names the record.

Rows are dicts, as Python's JSON gives them, or structs with the same names (`coco_input`); the checks take a column at a time,
because detections come by the hundred thousand.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from delineate.errors import DataError
from delineate.metrics.average_precision import FREQUENCIES, ApSettings

Rows = Sequence[Any]
_SHAPES = ("bbox", "segmentation", "keypoints")


def column(rows: Rows, key: str) -> list[Any]:
    """The values under one name; None where a row has none."""
    if rows and isinstance(rows[0], Mapping):
        return [row.get(key) for row in rows]
    return [getattr(row, key) for row in rows]


def check_truth(images: Rows, categories: Rows, annotations: Rows, settings: ApSettings) -> None:
    """Raise `DataError` for the first image, category or annotation that cannot be evaluated under `settings`."""
    ids, classes = column(images, "id"), column(categories, "id")
    for what, values in (("image", ids), ("category", classes)):
        if len(set(values)) < len(values):
            repeated = next(v for i, v in enumerate(values) if v in values[:i])
            raise DataError(f"{what} id {repeated!r} occurs twice in the truth; each needs its own")
    if None in ids or len({isinstance(i, str) for i in ids}) > 1:
        raise DataError("the ids of the images are not all numbers, or all texts; COCO takes the images in their order")
    _check_references(annotations, "annotation", ids, classes)
    _check_shapes(annotations, "annotation", settings)
    _check_sizes(annotations, "annotation", images)
    _check_first(annotations, "annotation", "area", _is_area, "expected a number of pixels")
    _check_first(annotations, "annotation", "iscrowd", lambda v: v is None or v in (0, 1), "expected 0 or 1")
    if settings.federated:
        _check_federated(images, categories)


def check_detections(truth: Mapping[str, Any], detections: Rows, settings: ApSettings | None = None) -> None:
    """Raise `DataError` for the first detection that names an unknown image or category, or whose score or shape is missing.

    `truth` needs "images" and "categories" only; with `settings` the shape that they measure is asked for.
    """
    scores = column(detections, "score")
    bad = next((i for i, s in enumerate(scores) if not (_is_number(s) and math.isfinite(s))), None)
    if bad is not None:
        raise DataError(f"detection {bad}: score is {scores[bad]!r}; every detection needs a finite number")
    _check_references(detections, "detection", column(truth["images"], "id"), column(truth["categories"], "id"))
    _check_shapes(detections, "detection", settings)
    _check_sizes(detections, "detection", truth["images"])


def _check_references(rows: Rows, what: str, images: Collection[Any], categories: Collection[Any]) -> None:
    known = set(images)
    values = column(rows, "image_id")
    if (bad := _first_outside(values, known)) is not None:
        raise DataError(f"{what} {bad}: image_id {values[bad]!r} is not among the {len(known)} images of the truth")
    known = set(categories)
    values = column(rows, "category_id")
    if (bad := _first_outside(values, known)) is not None:
        raise DataError(f"{what} {bad}: category_id {values[bad]!r} is unknown; the truth has {_shortened(known)}")


def _check_shapes(rows: Rows, what: str, settings: ApSettings | None) -> None:
    """Every row must have what is measured, and all the same kinds of shape, of the right form."""
    shapes = {key: column(rows, key) for key in _SHAPES}
    counts = {key: sum(value is not None and value != [] for value in values) for key, values in shapes.items()}
    wanted = _wanted(settings, counts)
    for key in wanted:
        if counts[key] < len(rows):
            bad = next(i for i, value in enumerate(shapes[key]) if value is None or value == [])
            raise DataError(f"{what} {bad}: has no '{key}'; each needs a {_choice(settings)}, and all alike")
    if what == "detection" and (mixed := [key for key in ("bbox", "segmentation") if 0 < counts[key] < len(rows)]):
        bad = next(i for i, value in enumerate(shapes[mixed[0]]) if not value)
        raise DataError(f"{what} {bad}: has no '{mixed[0]}', but others have; each needs a {_choice(settings)}, and all alike")
    if (bad := _first_bad_box(shapes["bbox"])) is not None:
        raise DataError(f"{what} {bad}: bbox is {shapes['bbox'][bad]!r}; expected x, y, width, height, finite and not negative")
    if (bad := next((i for i, s in enumerate(shapes["segmentation"]) if s and not _is_outline(s)), None)) is not None:
        raise DataError(f"{what} {bad}: segmentation is neither polygons of 3 or more points nor a run-length code")
    if settings is not None and settings.iou_type == "keypoints":
        _check_keypoints(shapes["keypoints"], what, len(settings.sigmas))


def _wanted(settings: ApSettings | None, counts: Mapping[str, int]) -> tuple[str, ...]:
    if settings is None or settings.iou_type == "bbox":
        return ("bbox",) if counts["bbox"] or not counts["segmentation"] else ("segmentation",)
    return ("keypoints",) if settings.iou_type == "keypoints" else ("segmentation",)


def _choice(settings: ApSettings | None) -> str:
    if settings is None or settings.iou_type == "bbox":
        return "'bbox' or a 'segmentation'"
    return "'keypoints'" if settings.iou_type == "keypoints" else "'segmentation'"


def _check_keypoints(values: Sequence[Any], what: str, points: int) -> None:
    for index, value in enumerate(values):
        if len(value) != 3 * points:
            raise DataError(f"{what} {index}: has {len(value) / 3:g} keypoints (x, y, v), but there are {points} sigmas")
        if not np.isfinite(value).all():
            raise DataError(f"{what} {index}: a keypoint is not finite")


def _check_sizes(rows: Rows, what: str, images: Rows) -> None:
    """A run-length code must be of its image's size; pycocotools would compare it with nothing."""
    if not images or (isinstance(images[0], Mapping) and "height" not in images[0]):
        return
    heights, widths = column(images, "height"), column(images, "width")
    sizes = {i: (h, w) for i, h, w in zip(column(images, "id"), heights, widths, strict=True)}
    for index, (image, outline) in enumerate(zip(column(rows, "image_id"), column(rows, "segmentation"), strict=True)):
        if outline is None or isinstance(outline, list | tuple):
            continue
        size = tuple(outline["size"] if isinstance(outline, Mapping) else outline.size)
        if size != sizes[image] and None not in sizes[image]:  # without its size an image takes any
            raise DataError(f"{what} {index}: its mask is {size} (height, width), its image {sizes[image]}; make them equal")


def _check_federated(images: Rows, categories: Rows) -> None:
    """LVIS's own fields."""
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        lacking = [image for image, value in zip(column(images, "id"), column(images, key), strict=True) if value is None]
        if lacking:
            raise DataError(f"image {lacking[0]!r}: has no '{key}', which LVIS needs")
    for category, frequency in zip(column(categories, "id"), column(categories, "frequency"), strict=True):
        if frequency not in FREQUENCIES:
            raise DataError(f"category {category!r}: frequency is {frequency!r}, expected {', '.join(FREQUENCIES)}")


def _check_first(rows: Rows, what: str, key: str, good: Any, expected: str) -> None:
    values = column(rows, key)
    bad = next((i for i, value in enumerate(values) if not good(value)), None)
    if bad is not None:
        raise DataError(f"{what} {bad}: {key} is {values[bad]!r}; {expected}")


def _first_outside(values: Sequence[Any], known: set[Any]) -> int | None:
    try:
        if set(values) <= known:
            return None
    except TypeError:  # a list or a dict in place of an id
        return next(i for i, value in enumerate(values) if isinstance(value, list | dict))
    return next(i for i, value in enumerate(values) if value not in known)


def _first_bad_box(boxes: Iterable[Any]) -> int | None:
    boxes = list(boxes)
    there = [i for i, box in enumerate(boxes) if box is not None]
    try:
        array = np.array([boxes[i] for i in there], np.float64).reshape(len(there), -1)
        good = np.isfinite(array).all(axis=1) & (array[:, 2:] >= 0).all(axis=1) & (array.shape[1] == 4 or not there)
    except (ValueError, TypeError):  # of different lengths, or not numbers
        good = np.array([_is_box(boxes[i]) for i in there])
    return None if good.all() else there[int(np.argmin(good))]


def _is_box(box: Any) -> bool:
    return not isinstance(box, str) and hasattr(box, "__len__") and len(box) == 4 and all(map(_is_number, box))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _is_area(value: Any) -> bool:
    return value is None or (_is_number(value) and math.isfinite(value))


def _is_polygon(outline: Any) -> bool:
    return isinstance(outline, list | tuple) and len(outline) > 0


def _is_outline(outline: Any) -> bool:
    if _is_polygon(outline):
        return all(hasattr(p, "__len__") and not isinstance(p, str) and len(p) >= 6 and len(p) % 2 == 0 for p in outline)
    if not isinstance(outline, Mapping):
        return hasattr(outline, "counts")  # a struct, whose types are checked
    size = outline.get("size")
    return isinstance(outline.get("counts"), str | bytes | list) and isinstance(size, list | tuple) and len(size) == 2


def _shortened(ids: set[Any], count: int = 10) -> str:
    shown = sorted(ids, key=str)[:count]
    return ", ".join(map(str, shown)) + (f" and {len(ids) - count} more" if len(ids) > count else "")
