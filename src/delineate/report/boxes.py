"""Boxes and what is written at them: names and scores, of a size that goes with the box, none over another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from delineate.report.canvas import SMALLEST, font_of, outline_width
from delineate.report.palette import Color

MANY = 100
"""Among more boxes than this only those have a tag that are wider than it, where it hides no other."""
CELL = 4  # pixels; where tags lie is remembered this finely

Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1


def draw_boxes(canvas: Tensor, boxes: Tensor, tags: list[str] | None, colors: list[Color]) -> Tensor:
    """Draw boxes (N, 4) xyxy over (3, H, W) uint8, each with its tag in its upper left corner."""
    boxes = _proper(boxes)
    picture = Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy())
    pen, spans = ImageDraw.Draw(picture), boxes[:, 2:] - boxes[:, :2]
    lines = [outline_width(canvas, extent) for extent in spans.amin(1).tolist()]
    for box, color, line in zip(boxes.long().tolist(), colors, lines, strict=True):
        pen.rectangle(box, outline=color, width=line)
    if tags is not None:
        _write_tags(pen, boxes, tags, colors, lines, (canvas.shape[1], canvas.shape[2]))
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).contiguous()


def _write_tags(
    pen: ImageDraw.ImageDraw,
    boxes: Tensor,
    tags: list[str],
    colors: list[Color],
    lines: list[int],
    size: tuple[int, int],
) -> None:
    """Write the tags into a picture of `size`, those of the largest boxes first."""
    taken = np.zeros((-(-size[0] // CELL), -(-size[1] // CELL)), dtype=bool)
    largest, many = max(SMALLEST, min(size) // 32), len(tags) > MANY
    spans = boxes[:, 2:] - boxes[:, :2]
    for index in spans.prod(1).argsort(descending=True, stable=True).tolist():
        points, wide = _fit_tag(tags[index], spans[index].tolist(), largest)
        if many and wide > float(spans[index, 0]):
            continue
        places = _places(boxes[index].tolist(), wide, round(1.3 * points), size, lines[index])
        free = [place for place in places if not _cells(taken, place).any()]
        if many and not free:
            continue
        x0, y0, x1, y1 = place = free[0] if free else places[0]
        _cells(taken, place)[:] = True
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colors[index])
        ink = "black" if _is_light(colors[index]) else "white"
        pen.text((x0 + points // 4, (y0 + y1) / 2), tags[index], fill=ink, font=font_of(points), anchor="lm")


def _fit_tag(tag: str, span: Sequence[float], largest: int) -> tuple[int, int]:
    """Height of the letters and width of a tag that fits into a box of `span` (width, height), if it can be read then."""
    points = int(min(largest, max(SMALLEST, span[1] / 4)))
    if (wide := _tag_width(tag, points)) > span[0]:
        points = max(SMALLEST, int(points * span[0] / wide))
        wide = _tag_width(tag, points)
    return points, wide


def _tag_width(tag: str, points: int) -> int:
    return round(font_of(points).getlength(tag)) + points // 2


def _places(box: Sequence[float], wide: int, high: int, size: tuple[int, int], line: int) -> list[Rectangle]:
    """Where a tag may lie, best first: in the upper or lower left corner of the box, inside the picture."""
    left = max(0, min(round(box[0]) + line, size[1] - wide))
    tops = (round(box[1]) + line, round(box[3]) - line - high)
    return [(left, top, left + wide, top + high) for top in (max(0, min(top, size[0] - high)) for top in tops)]


def _cells(taken: np.ndarray, place: Rectangle) -> np.ndarray:
    x0, y0, x1, y1 = place
    return taken[y0 // CELL : -(-y1 // CELL), x0 // CELL : -(-x1 // CELL)]


def _proper(boxes: Tensor) -> Tensor:
    """Boxes with their corners in order."""
    first, second = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], 1)


def _is_light(color: Color) -> bool:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
