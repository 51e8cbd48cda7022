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
_RIM: Color = (255, 255, 255)


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

    `schema` says where the lines are, and which points are left (blue) and right (orange); what lies in the middle, and all
    without a schema, has a colour of each figure's own. `edges` are the lines without one. A point is drawn where `visibility`
    (N, K) is over 0, hollow where it is 1 (hidden), where its score is over `threshold`, and where it is finite; a line where
    both of its ends are drawn.
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
    pen = ImageDraw.Draw(picture)
    width = line_width(canvas) + 1
    lines = edges if schema is None else schema.edges
    for index in range(len(points)):
        colors = _colors(points.shape[1], object_color(index), schema)
        _draw_figure(pen, points[index, :, :2].tolist(), (seen[index] * shown[index]).tolist(), lines, colors, width)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _draw_figure(
    pen: ImageDraw.ImageDraw,
    points: list[list[float]],
    seen: list[int],
    edges: Sequence[tuple[int, int]],
    colors: list[Color],
    width: int,
) -> None:
    """Lines first, so that points lie over them; a line that leads to the middle has the colour of its other end."""
    own = colors[-1]
    for start, end in edges:
        if seen[start] and seen[end]:
            color = colors[start] if colors[start] != own else colors[end]
            pen.line([*points[start], *points[end]], fill=color, width=width)
    for (x, y), visible, color in zip(points, seen, colors, strict=False):
        box = [x - width, y - width, x + width, y + width]
        if visible == 1:
            pen.ellipse(box, outline=color, width=max(1, width // 2))
        elif visible:
            pen.ellipse(box, fill=color, outline=_RIM)


def _colors(count: int, own: Color, schema: KeypointSchema | None) -> list[Color]:
    """The colour of each point, and last the figure's own."""
    colors = [own] * (count + 1)
    for left, right in () if schema is None else schema.flip_pairs:
        colors[left], colors[right] = _LEFT, _RIGHT
    return colors
