"""Boxes and what is written at them: names and scores, of a size that goes with the box, none over another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from delineate.report.canvas import font_of, line_width
from delineate.report.palette import Color

MANY = 100
"""Among more boxes than this only those have a tag that are wider than it, where it hides no other."""
SMALLEST = 10  # pixels of a line that can be read
CELL = 4  # pixels; where tags lie is remembered this finely

Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1


def draw_boxes(canvas: Tensor, boxes: Tensor, tags: list[str] | None, colors: list[Color]) -> Tensor:
    """Draw boxes (N, 4) xyxy over (3, H, W) uint8, each with its tag in its upper left corner."""
    boxes = _proper(boxes)
    drawn = draw_bounding_boxes(
        canvas,
        boxes,
        colors=colors,  # pyright: ignore[reportArgumentType]  (list is invariant; torchvision means a sequence)
        width=line_width(canvas),
    )
    return drawn if tags is None else _draw_tags(drawn, boxes, tags, colors)


def _draw_tags(canvas: Tensor, boxes: Tensor, tags: list[str], colors: list[Color]) -> Tensor:
    """Write the tags, those of the largest boxes first."""
    height, width = canvas.shape[1:]
    picture = Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy())
    pen, taken = ImageDraw.Draw(picture), np.zeros((-(-height // CELL), -(-width // CELL)), dtype=bool)
    largest, many = max(SMALLEST, min(height, width) // 32), len(tags) > MANY
    spans = boxes[:, 2:] - boxes[:, :2]
    for index in spans.prod(1).argsort(descending=True, stable=True).tolist():
        size = int(min(largest, max(SMALLEST, float(spans[index, 1]) / 4)))
        font = font_of(size)
        wide = round(font.getlength(tags[index])) + size // 2
        if many and wide > float(spans[index, 0]):
            continue
        places = _places(boxes[index].tolist(), wide, round(1.3 * size), (height, width), line_width(canvas))
        free = [place for place in places if not _cells(taken, place).any()]
        if many and not free:
            continue
        x0, y0, x1, y1 = place = free[0] if free else places[0]
        _cells(taken, place)[:] = True
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colors[index])
        ink = "black" if _is_light(colors[index]) else "white"
        pen.text((x0 + size // 4, (y0 + y1) / 2), tags[index], fill=ink, font=font, anchor="lm")
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).contiguous()


def _places(box: Sequence[float], wide: int, high: int, size: tuple[int, int], line: int) -> list[Rectangle]:
    """Where a tag may lie, best first: in the upper or lower left corner of the box, inside the picture."""
    left = max(0, min(round(box[0]) + line, size[1] - wide))
    tops = (round(box[1]) + line, round(box[3]) - line - high)
    return [(left, top, left + wide, top + high) for top in (max(0, min(top, size[0] - high)) for top in tops)]


def _cells(taken: np.ndarray, place: Rectangle) -> np.ndarray:
    x0, y0, x1, y1 = place
    return taken[y0 // CELL : -(-y1 // CELL), x0 // CELL : -(-x1 // CELL)]


def _proper(boxes: Tensor) -> Tensor:
    """Boxes with their corners in order, as torchvision demands."""
    first, second = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], 1)


def _is_light(color: Color) -> bool:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
