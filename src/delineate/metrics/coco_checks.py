"""What can be wrong with truth and detections in COCO's form: every fault is a `DataError` that names the record.

Rows are dicts, as Python's JSON gives them, or structs with the same names (`coco_input`). Detections come by the hundred
thousand, so each check takes a column at a time, and looks at single records only to name one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import numpy as np

from delineate.errors import DataError
from delineate.metrics.average_precision import FREQUENCIES, ApSettings

Rows = Sequence[Any]


class Size(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """Height and width in a run-length code of a file."""

    height: int
    width: int


class Outline(msgspec.Struct, gc=False):
    """What is checked of a run-length code in a file; whoever decodes it sees to its counts."""

    size: Size


class Box(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """A box of a file: reading checks all that is asked of it."""

    x: float
    y: float
    width: Annotated[float, msgspec.Meta(ge=0)]
    height: Annotated[float, msgspec.Meta(ge=0)]


class Table:
    """Rows by column: `table["score"]` is the list of their scores, with None where a row has none."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._columns = rows, dict[str, list[Any]]()
        self._of_structs = len(rows) > 0 and not isinstance(rows[0], Mapping)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: str) -> list[Any]:
        if key not in self._columns:
            structs = self._of_structs
            self._columns[key] = list(map(attrgetter(key), self._rows)) if structs else [row.get(key) for row in self._rows]
        return self._columns[key]


def check_truth(images: Table, categories: Table, annotations: Table, settings: ApSettings) -> None:
    """Raise `DataError` for the first image, category or annotation that cannot be evaluated under `settings`."""
    _check_all(images, "image", "id", lambda i: isinstance(i, int | str | np.integer), "expected a number or a text")
    _check_all(categories, "category", "id", lambda i: isinstance(i, int | np.integer), "expected a number")
    for what, values in (("image", images["id"]), ("category", categories["id"])):
        if len(set(values)) < len(values):
            repeated = next(v for i, v in enumerate(values) if v in values[:i])
            raise DataError(f"{what} id {repeated!r} occurs twice in the truth; each needs its own")
    if len({isinstance(i, str) for i in images["id"]}) > 1:
        raise DataError("the ids of the images are not all numbers, or all texts; COCO takes the images in their order")
    _check_references(annotations, "annotation", images, categories)
    _check_shapes(annotations, "annotation", settings)
    _check_sizes(annotations, "annotation", images)
    _check_all(annotations, "annotation", "area", _is_area, "expected a number of pixels")
    _check_all(annotations, "annotation", "iscrowd", lambda flag: flag is None or flag in (0, 1), "expected 0 or 1")
    if settings.federated:
        _check_federated(images, categories)


def check_detections(truth: Mapping[str, Rows], detections: Rows, settings: ApSettings | None = None) -> None:
    """Raise `DataError` for the first detection that names an unknown image or category, or whose score or shape is missing.

    `truth` needs "images" and "categories" only; with `settings` the shape that they measure is asked for.
    """
    check_found(Table(truth["images"]), Table(truth["categories"]), Table(detections), settings)


def check_found(images: Table, categories: Table, detections: Table, settings: ApSettings | None) -> None:
    """`check_detections` of tables."""
    _check_all(detections, "detection", "score", _is_finite, "every detection needs a finite number")
    _check_references(detections, "detection", images, categories)
    _check_shapes(detections, "detection", settings)
    _check_sizes(detections, "detection", images)


def _check_references(rows: Table, what: str, images: Table, categories: Table) -> None:
    known = set(images["id"])
    if (bad := _first_outside(rows["image_id"], known)) is not None:
        value = rows["image_id"][bad]
        raise DataError(f"{what} {bad}: image_id {value!r} is not among the {len(known)} images of the truth")
    known = set(categories["id"])
    if (bad := _first_outside(rows["category_id"], known)) is not None:
        raise DataError(f"{what} {bad}: category_id {rows['category_id'][bad]!r} is unknown; the truth has {_shortened(known)}")


def _check_shapes(rows: Table, what: str, settings: ApSettings | None) -> None:
    """Every row must have what is measured, and all the same kinds of shape, of the right form."""
    needed = _wanted(settings, rows)
    counts = {key: sum(map(bool, rows[key])) for key in {"bbox", "segmentation", needed}}
    alike = [key for key in ("bbox", "segmentation") if counts[key] and what == "detection"]
    for key in dict.fromkeys([needed, *alike]):
        if counts[key] < len(rows):
            bad = next(i for i, value in enumerate(rows[key]) if not value)
            raise DataError(f"{what} {bad}: has no '{key}'; each needs a {_choice(settings)}, and all alike")
    if (bad := _first_bad_box(rows["bbox"])) is not None:
        raise DataError(f"{what} {bad}: bbox is {rows['bbox'][bad]!r}; expected x, y, width, height, finite and not negative")
    if (
        bad := next((i for i in _unchecked(rows["segmentation"]) if not is_outline(rows["segmentation"][i])), None)
    ) is not None:
        raise DataError(f"{what} {bad}: segmentation is neither polygons of 3 or more points nor a run-length code")
    if needed == "keypoints" and settings is not None:
        _check_keypoints(rows["keypoints"], what, len(settings.sigmas))


def _wanted(settings: ApSettings | None, rows: Table) -> str:
    """The shape that each row must have: for IoU of boxes masks do where no row has a box."""
    if settings is None or settings.iou_type == "bbox":
        return "bbox" if any(rows["bbox"]) or not any(rows["segmentation"]) else "segmentation"
    return "keypoints" if settings.iou_type == "keypoints" else "segmentation"


def _choice(settings: ApSettings | None) -> str:
    if settings is None or settings.iou_type == "bbox":
        return "'bbox' or a 'segmentation'"
    return "'keypoints'" if settings.iou_type == "keypoints" else "'segmentation'"


def _check_keypoints(values: Sequence[Any], what: str, points: int) -> None:
    for index, value in enumerate(values):
        if not isinstance(value, list | tuple | np.ndarray) or not all(map(_is_finite, value)):
            raise DataError(f"{what} {index}: keypoints are not finite numbers x, y, v of each point")
        if len(value) != 3 * points:
            raise DataError(f"{what} {index}: has {len(value) / 3:g} keypoints (x, y, v), but there are {points} sigmas")


def _check_sizes(rows: Table, what: str, images: Table) -> None:
    """A run-length code must be of its image's size: pycocotools would compare it with nothing."""
    known = zip(images["height"], images["width"], strict=True) if len(images) else ()
    sizes = {image: Size(*size) for image, size in zip(images["id"], known, strict=True)}
    outlines, wanted = rows["segmentation"], list(map(sizes.__getitem__, rows["image_id"]))
    if set(map(type, outlines)) == {Outline} and list(map(attrgetter("size"), outlines)) == wanted:
        return
    for index, (outline, own) in enumerate(zip(outlines, wanted, strict=True)):
        if not outline or isinstance(outline, list | tuple) or None in (own.height, own.width):
            continue  # an image without a size takes masks of any
        size = outline.size if isinstance(outline, Outline) else Size(*outline["size"])
        if size != own:
            shown = [(s.height, s.width) for s in (size, own)]
            raise DataError(f"{what} {index}: its mask is {shown[0]} (height, width), its image {shown[1]}; make them equal")


def _check_federated(images: Table, categories: Table) -> None:
    """LVIS's own fields."""
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        if None in images[key]:
            raise DataError(f"image {images['id'][images[key].index(None)]!r}: has no '{key}', which LVIS needs")
    for category, frequency in zip(categories["id"], categories["frequency"], strict=True):
        if not isinstance(frequency, str) or frequency not in FREQUENCIES:
            raise DataError(f"category {category!r}: frequency is {frequency!r}, expected {', '.join(FREQUENCIES)}")


def _check_all(rows: Table, what: str, key: str, good: Callable[[Any], bool], expected: str) -> None:
    values = rows[key]
    if set(map(type, values)) == {float} and np.isfinite(values).all():  # as all but a few are
        return
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


def _first_bad_box(boxes: Sequence[Any]) -> int | None:
    if set(map(type, boxes)) <= {Box, type(None)}:
        return None
    return next((i for i, box in enumerate(boxes) if not isinstance(box, Box | None) and not _is_box(box)), None)


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list | tuple | np.ndarray)
        and len(box) == 4
        and all(map(_is_finite, box))
        and box[2] >= 0
        and box[3] >= 0
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_area(value: Any) -> bool:
    return value is None or _is_finite(value)


def _unchecked(outlines: Sequence[Any]) -> Iterable[int]:
    """Places of the outlines whose form reading did not check."""
    if set(map(type, outlines)) <= {Outline, type(None)}:
        return ()
    return (i for i, outline in enumerate(outlines) if outline and type(outline) is not Outline)


def is_outline(outline: Any) -> bool:
    """Whether it has the form of polygons or of a run-length code."""
    if isinstance(outline, list | tuple):
        return all(map(_is_polygon, outline))
    size = outline.get("size") if isinstance(outline, Mapping) else None
    return isinstance(size, list | tuple) and len(size) == 2 and isinstance(outline.get("counts"), str | bytes | list)


def _is_polygon(polygon: Any) -> bool:
    """Whether there are an even number of numbers, 6 or more; of a polygon that is not parsed, whether it may be so."""
    if type(polygon) is msgspec.Raw:
        commas = bytes(polygon).count(b",")
        return commas >= 5 and commas % 2 == 1
    if not isinstance(polygon, list | tuple | np.ndarray) or len(polygon) < 6 or len(polygon) % 2:
        return False
    return all(map(_is_finite, polygon))


def _shortened(ids: set[Any], count: int = 10) -> str:
    shown = sorted(ids, key=str)[:count]
    return ", ".join(map(str, shown)) + (f" and {len(ids) - count} more" if len(ids) > count else "")
