"""What can be wrong with an annotated object: `data check` lists it, training counts it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from delineate.data.dataset import Instance, Polygon, Rle
from delineate.data.formats.problems import Severity
from delineate.data.geometry import crosses_itself, polygon_area
from delineate.data.load import has_extent
from delineate.data.raster import rle_area, rle_box, segmentation_rle
from delineate.errors import DataError

Box = tuple[float, float, float, float]  # xyxy, pixels
Size = tuple[int, int]  # height, width
Fault = tuple[Severity, str, str]  # kind of finding, and what follows "object 7"

_XYWH = "a bbox is [x, y, width, height], not two corners"


def object_faults(instance: Instance, size: Size) -> Iterator[Fault]:
    """All that is wrong with an object of a picture of `size`."""
    if instance.box is None and instance.segmentation is None and not any(v for _, _, v in instance.keypoints or ()):
        yield "error", "object without place", "has neither box, outline nor labelled keypoints; remove it"
    yield from place_faults(instance, size)
    if isinstance(instance.segmentation, tuple):
        yield from _polygon_faults(instance.segmentation, size)
    yield from _pixel_faults(instance, size)
    yield from _keypoint_faults(instance, size)


def place_faults(instance: Instance, size: Size) -> Iterator[Fault]:
    """What is wrong with where it lies: what can be told without drawing it."""
    if instance.box is not None:
        yield from _box_faults(instance.box, size)
    if (text := in_first_pixel(instance)) is not None:
        yield "error", "coordinates in 0..1", text
    if (text := unlike_outline(instance)) is not None:
        yield "warning", "box unlike its outline", text


def object_name(instance: Instance, number: int) -> str:
    """How an object is called: by its id, or by its place among those of its picture."""
    return f"object {instance.id if instance.id is not None else number}"


def unlike_outline(instance: Instance) -> str | None:
    """How the box differs from the box around the outline, where they share less than half of their union."""
    if instance.box is None or not _has_area(instance.box):
        return None
    around = _around(instance.segmentation)
    if around is None or not _has_area(around) or _iou(instance.box, around) >= 0.5:
        return None
    x, y, x1, y1 = instance.box
    corners = (x, y, x1 - x, y1 - y)  # what was read as width and height
    advice = _XYWH if _has_area(corners) and _iou(corners, around) > 0.5 else "correct either"
    return f"has the box {_shown(instance.box)}, its outline reaches over {_shown(around)}; {advice}"


def in_first_pixel(instance: Instance) -> str | None:
    """Where the object lies if that is within the first pixel: shares of the picture in place of pixels."""
    place = instance.box or _around(instance.segmentation)
    if place is None or not _has_area(place) or min(place) < 0 or max(place) > 1 or not any(v % 1 for v in place):
        return None
    return f"reaches over {_shown(place)}, within the first pixel; coordinates are pixels, not shares of the picture"


def is_outside(box: Box | None, size: Size) -> bool:
    """Whether a box lies wholly outside a picture of `size`."""
    return box is not None and not (box[0] < size[1] and box[1] < size[0] and box[2] > 0 and box[3] > 0)


def is_degenerate(instance: Instance, size: Size | None, *, masks: bool) -> bool:
    """Whether training leaves an object out: no extent, or outside its picture; with `masks`, its outline tells that."""
    if not has_extent(instance):
        return True
    place = _around(instance.segmentation) if masks and size is not None and is_outside(instance.box, size) else None
    return size is not None and is_outside(place or instance.box, size)


def repeated(instances: Sequence[Instance]) -> list[tuple[int, int]]:
    """Places (later, first) of objects that have class, box, outline and keypoints in common with an earlier one."""
    first: dict[tuple[int, Box | None], list[int]] = {}
    pairs = []
    for n, instance in enumerate(instances):
        alike = first.setdefault((instance.label, instance.box), [])
        own = (instance.segmentation, instance.keypoints)
        same = next((m for m in alike if (instances[m].segmentation, instances[m].keypoints) == own), None)
        if same is None:
            alike.append(n)
        else:
            pairs.append((n, same))
    return pairs


def _box_faults(box: Box, size: Size) -> Iterator[Fault]:
    x0, y0, x1, y1 = box
    height, width = size
    has = f"has the box {_shown(box)}"
    if not np.isfinite(box).all():
        yield "error", "damaged outline", f"{has}; expected finite numbers"
    elif not _has_area(box):
        yield "warning", "degenerate box", f"{has} without extent and is left out"
    elif is_outside(box, size):
        yield "error", "outside the image", f"{has}, wholly outside the {width} x {height} image"
    elif x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1:
        corners = 0 <= x0 < x1 - x0 <= width + 1 and 0 <= y0 < y1 - y0 <= height + 1
        text = f"{has}, which reaches outside the {width} x {height} image"
        yield "warning", "outside the image", f"{text}; {_XYWH}" if corners else text


def _polygon_faults(polygons: Iterable[Polygon], size: Size) -> Iterator[Fault]:
    for polygon in polygons:
        if len(polygon) % 2 or not np.isfinite(polygon).all():
            continue  # reported when it is rasterised
        points = np.reshape(polygon, (-1, 2))
        if len(points) < 3:
            text = f"has the polygon {polygon}, which covers nothing; a polygon is one list of 3 or more x, y"
            yield "warning", "degenerate polygon", text
        elif crosses_itself(polygon):
            yield "warning", "self-crossing polygon", f"has a polygon of {len(points)} points whose edges cross"
        elif polygon_area(polygon) < 1e-6:
            yield "warning", "degenerate polygon", f"has a polygon of {len(points)} points without area"
        beyond = ((points < -1) | (points > (size[1] + 1, size[0] + 1))).any(1)
        if beyond.any():
            x, y = points[beyond][0]
            text = f"has a polygon that reaches outside the {size[1]} x {size[0]} image, to ({x:g}, {y:g})"
            yield "warning", "outside the image", text


def _pixel_faults(instance: Instance, size: Size) -> Iterator[Fault]:
    """What shows when the outline is rasterised."""
    pixels = None
    if instance.segmentation is not None and has_extent(instance):
        try:
            pixels = rle_area(segmentation_rle(instance.segmentation, size))
        except DataError as error:
            yield "error", "damaged outline", f"cannot be drawn: {error}"
            return
        if pixels == 0:
            yield "warning", "empty object", "covers no pixel and is left out"
            return
    if (text := _area_fault(instance, pixels)) is not None:
        yield "warning", "area", f"{text}; AP tells small from large by it, so correct it or leave it away"


def _area_fault(instance: Instance, pixels: int | None) -> str | None:
    area = instance.area
    if area is None or instance.crowd or (pixels is None and not has_extent(instance)):
        return None
    if area <= 0:
        return f"has the area {area:g}"
    place = instance.box if pixels is None else _around(instance.segmentation)
    if place is None:
        return None
    width, height = place[2] - place[0], place[3] - place[1]
    slack = 2 * (width + height)  # half pixels along the border, which polygons count differently
    if pixels is None:
        return f"has the area {area:g}, its box {width * height:g}" if area > 2 * width * height + slack else None
    return f"has the area {area:g}, but covers {pixels} pixels" if abs(area - pixels) > pixels / 2 + slack else None


def _keypoint_faults(instance: Instance, size: Size) -> Iterator[Fault]:
    points = instance.keypoints or ()
    outside = [(x, y) for x, y, visible in points if visible and not (0 <= x <= size[1] and 0 <= y <= size[0])]
    if outside:
        yield "warning", "outside the image", f"has {len(outside)} keypoints outside the image, such as {outside[0]}"
    if points and not any(v for _, _, v in points) and (placed := sum(x != 0 or y != 0 for x, y, _ in points)):
        text = f"has {placed} keypoints of the visibility 0, which are not learned; set 1 (hidden) or 2 (visible)"
        yield "warning", "keypoints not labelled", text


def _around(segmentation: tuple[Polygon, ...] | Rle | None) -> Box | None:
    """The box around an outline; None where it covers nothing or is damaged."""
    if segmentation is None:
        return None
    if isinstance(segmentation, dict):
        try:
            height, width = map(int, segmentation["size"])
            return rle_box(segmentation_rle(segmentation, (height, width)))
        except DataError:
            return None
    polygons = [p for p in segmentation if len(p) >= 6]
    if not polygons or any(len(p) % 2 or not np.isfinite(p).all() for p in polygons):
        return None
    xs, ys = [v for p in polygons for v in p[::2]], [v for p in polygons for v in p[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def _has_area(box: Box) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _shown(box: Box) -> str:
    return f"({', '.join(f'{value:g}' for value in box)})"
