"""Drawing keypoints and the lines between them: left, right and middle are told apart by colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from delineate.report.canvas import line_width, to_display
from delineate.report.palette import Color, object_color
from delineate.skeleton import KeypointSchema

_LEFT: Color = (86, 180, 233)
_RIGHT: Color = (230, 159, 0)
_MIDDLE: Color = (0, 158, 115)
_RIM: Color = (255, 255, 255)
_CASING: Color = (0, 0, 0)  # around lines, so that they are seen on any ground
_SPAN = 40  # a line is at most this part of its figure's extent wide: far people in a large picture would be blots
_FINE = 4  # figures are drawn so many times as large and reduced, so that their edges are smooth ...
_MOST = 1 << 20  # ... unless they cover more pixels than this, where lines are thick


def draw_skeletons(
    image: Tensor | np.ndarray,
    keypoints: Tensor | np.ndarray,
    *,
    schema: KeypointSchema | None = None,
    edges: Sequence[tuple[int, int]] = (),
    visibility: Tensor | np.ndarray | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """Draw keypoints (N, K, 2) or (N, K, 3), x and y in pixels and then a score, and lines between them; (3, H, W) uint8.

    `schema` says where the lines are, and which points are left (blue) and right (orange); what lies in the middle, and lines
    from left to right, are green. Without one, or where it pairs no points, each figure has a colour of its own. `edges` are
    the lines without a schema. Lines are as wide as suits the picture, thinner in small figures. A point is drawn where
    `visibility` (N, K) is over 0, hollow where it is 1 (hidden), where its score is over `threshold`, and where it is finite;
    a line where both of its ends are drawn.
    """
    canvas = to_display(image)
    points = torch.as_tensor(keypoints).float().cpu()
    if points.ndim != 3 or points.shape[-1] not in (2, 3):
        raise ValueError(f"keypoints of shape {tuple(points.shape)}: expected (N, K, 2) or (N, K, 3)")
    seen = torch.full(points.shape[:2], 2) if visibility is None else torch.as_tensor(visibility).cpu().long()
    shown = points.isfinite().all(-1) & (seen > 0)
    if points.shape[-1] == 3:
        shown &= points[..., 2] > threshold
    picture = Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy())
    lines = edges if schema is None else schema.edges
    for index in range(len(points)):
        colors = _colors(points.shape[1], object_color(index), schema)
        _draw_figure(picture, points[index, :, :2], seen[index] * shown[index], lines, colors, line_width(canvas) + 1)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _draw_figure(
    picture: Image.Image, points: Tensor, seen: Tensor, edges: Sequence[tuple[int, int]], colors: list[Color], width: int
) -> None:
    """Draw one figure into the part of `picture` that it covers; its lines are at most `width` wide."""
    drawn = points[seen > 0]
    if not len(drawn):
        return
    low, high = drawn.amin(0), drawn.amax(0)
    width = min(width, max(1, round(float((high - low).max()) / _SPAN)))
    size, margin = torch.tensor(picture.size), 3 * width + 2
    (left, top), (right, bottom) = ((p.minimum(size).clamp(min=0)).int().tolist() for p in (low - margin, high + margin + 1))
    if left >= right or top >= bottom:
        return
    scale = _FINE if (right - left) * (bottom - top) <= _MOST else 1
    layer = Image.new("RGBA", ((right - left) * scale, (bottom - top) * scale))
    placed = (points - torch.tensor([left, top]) + 0.5) * scale
    _draw_lines(ImageDraw.Draw(layer), placed.tolist(), seen.tolist(), edges, colors, width * scale)
    layer = layer.reduce(scale)
    picture.paste(layer.convert("RGB"), (left, top), layer.getchannel("A"))


def _draw_lines(
    pen: ImageDraw.ImageDraw,
    points: list[list[float]],
    seen: list[int],
    edges: Sequence[tuple[int, int]],
    colors: list[Color],
    width: int,
) -> None:
    """Lines first, so that points lie over them; a line that leads to the middle has the colour of its other end."""
    middle = colors[-1]
    drawn = [(start, end) for start, end in edges if seen[start] and seen[end]]
    for start, end in drawn:
        pen.line([*points[start], *points[end]], fill=_CASING, width=2 * width)
    for start, end in drawn:
        ends = {colors[start], colors[end]} - {middle}
        pen.line([*points[start], *points[end]], fill=ends.pop() if len(ends) == 1 else middle, width=width)
    radius, rim = 1.5 * width, max(1, width // 2)
    for (x, y), visible, color in zip(points, seen, colors, strict=False):
        box = [x - radius, y - radius, x + radius, y + radius]
        if visible == 1:
            pen.ellipse(box, outline=color, width=rim)
        elif visible:
            pen.ellipse(box, fill=color, outline=_RIM, width=rim)


def _colors(count: int, own: Color, schema: KeypointSchema | None) -> list[Color]:
    """The colour of each point, and last that of the middle."""
    if schema is None or not schema.flip_pairs:
        return [own] * (count + 1)
    colors = [_MIDDLE] * (count + 1)
    for left, right in schema.flip_pairs:
        colors[left], colors[right] = _LEFT, _RIGHT
    return colors
