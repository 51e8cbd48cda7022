"""Drawing truth and predictions over pictures: tensors in, (3, H, W) uint8 tensors out, nothing read and nothing written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from delineate.data.sample import IGNORE
from delineate.report.boxes import draw_boxes
from delineate.report.canvas import (
    PAPER,
    as_labels,
    blend,
    check_size,
    font_of,
    hatch,
    inner_edges,
    line_width,
    outline_width,
    plane,
    resize,
    row_bands,
    to_display,
    write_line,
)
from delineate.report.palette import Color, object_color, palette
from delineate.report.skeletons import draw_skeletons

__all__ = [
    "draw_errors",
    "draw_instances",
    "draw_semantic",
    "draw_skeletons",
    "draw_stuff",
    "palette",
    "side_by_side",
    "to_display",
]

MISSED: Color = (86, 180, 233)  # blue: in the truth, not found
INVENTED: Color = (230, 159, 0)  # orange: found, not in the truth
CONFUSED: Color = (204, 121, 167)  # purple: found as another class


def draw_semantic(
    image: Tensor | np.ndarray,
    semantic: Tensor | np.ndarray,
    *,
    classes: Sequence[str] | None = None,
    alpha: float = 0.5,
    outlines: bool = True,
    background: int | None = 0,
    colors: Sequence[Color] | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Tint each pixel of `image` (C, H, W) by its class id in `semantic` (H, W); returns (3, H, W) uint8.

    Pixels of `background` keep the picture; pixels of `ignore_index` are hatched in grey. `outlines` draws the edges of regions
    in full colour. With `classes` a legend names the classes that occur. `colors` replaces `palette`.
    """
    canvas, ids = to_display(image), as_labels(semantic)
    check_size(canvas, ids, "semantic")
    ignored = ids == ignore_index
    present = [int(i) for i in ids[~ignored].unique() if int(i) != background]
    table = _color_table(colors, max(present, default=0) + 1)
    tinted = ~ignored if background is None else ~ignored & (ids != background)
    blend(canvas, tinted, table[ids.where(tinted, 0)].permute(2, 0, 1), alpha)
    if outlines:
        edge = inner_edges(ids, line_width(canvas)) & tinted
        blend(canvas, edge, table[ids.where(edge, 0)].permute(2, 0, 1), 1.0)
    hatch(canvas, ignored)
    if classes is not None:
        names = [classes[i] if i < len(classes) else str(i) for i in present]
        _draw_legend(canvas, [(name, _as_color(table[i])) for name, i in zip(names, present, strict=True)])
    return canvas


def draw_stuff(image: Tensor | np.ndarray, stuff: Tensor | np.ndarray, names: Sequence[str], *, alpha: float = 0.5) -> Tensor:
    """Tint the pixels of what is no object: s + 1 in `stuff` (H, W) is `names[s]`, 0 anything else; returns (3, H, W) uint8."""
    colors = palette(65 + len(names))[64:]  # objects have the first 64
    return draw_semantic(image, stuff, classes=("object", *names), alpha=alpha, colors=colors)


def draw_instances(
    image: Tensor | np.ndarray,
    *,
    instance_map: Tensor | np.ndarray | None = None,
    masks: Iterable[Tensor | np.ndarray] | None = None,
    boxes: Tensor | np.ndarray | None = None,
    labels: Sequence[int] | Tensor | np.ndarray | None = None,
    scores: Sequence[float] | Tensor | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    alpha: float = 0.4,
    outlines: bool = True,
    color_by_class: bool = False,
    colors: Sequence[Color] | None = None,
) -> Tensor:
    """Draw each object of `image` (C, H, W) in a colour of its own, or in `colors`; returns (3, H, W) uint8.

    The objects come as `instance_map` (H, W) of ids (0 background, object n - 1 of `labels` where the id is n), or as `masks`,
    (N, H, W) bool or any iterable of (H, W) masks, which is read one by one so that the masks need never be in memory together;
    both may be None. `boxes` (N, 4) xyxy in pixels are drawn with `names[label]` and score, where given (of over 100 where
    these fit into them). `color_by_class` gives the objects of a class one colour.
    """
    canvas = to_display(image)
    label_of = None if labels is None else [int(label) for label in labels]
    owners = label_of if color_by_class and label_of is not None else None
    if instance_map is not None:
        _tint_map(canvas, as_labels(instance_map), owners, alpha, outlines)
    for index, mask in enumerate(() if masks is None else masks):
        color = colors[index] if colors is not None else _object_color(index, owners)
        _tint_mask(canvas, torch.as_tensor(mask).bool().cpu(), color, alpha, outlines)
    if boxes is not None and len(boxes):
        of_boxes = list(colors) if colors is not None else [_object_color(i, owners) for i in range(len(boxes))]
        tags = _tags(len(boxes), label_of, scores, names)
        canvas = draw_boxes(canvas, torch.as_tensor(boxes).float().cpu(), tags, of_boxes)
    return canvas


def draw_errors(
    image: Tensor | np.ndarray,
    prediction: Tensor | np.ndarray,
    truth: Tensor | np.ndarray,
    *,
    background: int | None = 0,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Show over a darkened `image` where `prediction` and `truth`, both (H, W) class ids, differ; returns (3, H, W) uint8.

    Blue: missed (truth is a class, the prediction background). Orange: invented (the other way round). Purple: another class.
    Pixels that the truth ignores are hatched.
    """
    canvas = to_display(image) // 2 + 32
    found, wanted = as_labels(prediction), as_labels(truth)
    check_size(canvas, found, "prediction")
    check_size(canvas, wanted, "truth")
    ignored = wanted == ignore_index
    wrong = (found != wanted) & ~ignored
    missed, invented = wrong & (found == background), wrong & (wanted == background)
    for where, color in ((missed, MISSED), (invented, INVENTED), (wrong & ~missed & ~invented, CONFUSED)):
        blend(canvas, where, plane(color), 0.9)
    hatch(canvas, ignored)
    return canvas


def side_by_side(
    panels: Sequence[Tensor | np.ndarray],
    captions: Sequence[str] = (),
    *,
    height: int | None = None,
    columns: int | None = None,
) -> Tensor:
    """Put pictures in a row, each under its caption; returns (3, H, W) uint8.

    All are resized to `height` pixels (by default that of the highest; small ones are enlarged to 256, so that captions can be
    read). Four or more wide pictures are laid out in two rows, unless `columns` says how many stand in one. A caption that is
    too wide for its picture has smaller letters, and is shortened if that is not enough.
    """
    shown = [to_display(panel) for panel in panels]
    if not shown:
        raise ValueError("side_by_side needs at least one picture")
    height = height or max(256, *(panel.shape[1] for panel in shown))
    resized = [resize(panel, height) for panel in shown]
    wide = len(shown) >= 4 and all(panel.shape[2] >= 1.6 * height for panel in resized)
    columns = columns or (-(-len(shown) // 2) if wide else len(shown))
    gap = max(4, height // 64)
    cells = [_with_caption(panel, captions[i] if i < len(captions) else "", bool(captions)) for i, panel in enumerate(resized)]
    return _stack([_stack(cells[i : i + columns], gap, dim=2) for i in range(0, len(cells), columns)], gap, dim=1)


def _with_caption(panel: Tensor, caption: str, has_strip: bool) -> Tensor:
    """The picture below a strip with its caption."""
    size = max(13, panel.shape[1] // 24)
    strip = round(1.6 * size) if has_strip else 0
    cell = PAPER.expand(3, strip + panel.shape[1], panel.shape[2]).clone()
    cell[:, strip:] = panel
    if caption:
        write_line(cell, caption, size // 3, round(0.15 * size), panel.shape[2] - size // 3, size)
    return cell


def _stack(parts: Sequence[Tensor], gap: int, dim: int) -> Tensor:
    """Pictures in a row (dim 2) or a column (dim 1), `gap` pixels apart, on paper where one is smaller than the others."""
    across = 3 - dim
    extent = max(part.shape[across] for part in parts)
    shape = [3, extent, extent]
    shape[dim] = sum(part.shape[dim] for part in parts) + gap * (len(parts) - 1)
    canvas = PAPER.expand(*shape).clone()
    start = 0
    for part in parts:
        canvas.narrow(dim, start, part.shape[dim]).narrow(across, 0, part.shape[across]).copy_(part)
        start += part.shape[dim] + gap
    return canvas


def _color_table(colors: Sequence[Color] | None, count: int) -> Tensor:
    given = tuple(colors or ())[:count]
    return torch.tensor([*given, *palette(count)[len(given) :]], dtype=torch.uint8)  # (count, 3)


def _object_color(index: int, owners: Sequence[int] | None) -> Color:
    wanted = owners[index] if owners is not None and index < len(owners) else index
    return object_color(wanted)


def _as_color(row: Tensor) -> Color:
    return (int(row[0]), int(row[1]), int(row[2]))


def _tint_map(canvas: Tensor, ids: Tensor, owners: Sequence[int] | None, alpha: float, outlines: bool) -> None:
    check_size(canvas, ids, "instance_map")
    sample = ids[::4, ::4]
    width = outline_width(canvas, 4 * float((sample > 0).sum() / max(1, len(sample.unique()) - 1)) ** 0.5)
    for rows in row_bands(canvas):
        first = max(0, rows.start - width)  # outlines depend on rows around
        near, inside = ids[first : rows.stop + width], slice(rows.start - first, rows.stop - first)
        present, compact = near.unique(return_inverse=True)  # ids may be sparse and large
        colors = [(0, 0, 0) if int(i) == 0 else _object_color(int(i) - 1, owners) for i in present]
        color = torch.tensor(colors, dtype=torch.uint8)[compact[inside]].permute(2, 0, 1)
        marked, part = ids[rows] > 0, canvas[:, rows]
        blend(part, marked, color, alpha)
        if outlines:
            blend(part, inner_edges(compact, width)[inside] & marked, color, 1.0)


def _tint_mask(canvas: Tensor, mask: Tensor, color: Color, alpha: float, outlines: bool) -> None:
    check_size(canvas, mask, "mask")
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(rows):
        return
    width = outline_width(canvas, min(len(rows), len(columns)))
    # Work in the mask's own window: a picture may hold thousands of small objects.
    top, bottom = max(0, int(rows[0]) - width), int(rows[-1]) + 1 + width
    left, right = max(0, int(columns[0]) - width), int(columns[-1]) + 1 + width
    window, part = canvas[:, top:bottom, left:right], mask[top:bottom, left:right]
    blend(window, part, plane(color), alpha)
    if outlines:
        blend(window, part & inner_edges(part.long(), width), plane(color), 1.0)


def _tags(
    count: int, labels: Sequence[int] | None, scores: Sequence[float] | Tensor | np.ndarray | None, names: Sequence[str] | None
) -> list[str] | None:
    """The words at each box, or None where there is nothing to say."""
    if scores is None and (labels is None or names is None):
        return None
    tags: list[str] = []
    for index in range(count):
        name = names[labels[index]] if labels is not None and names is not None else ""
        score = "" if scores is None else f"{float(scores[index]):.2f}"
        tags.append(f"{name} {score}".strip())
    return tags


def _draw_legend(canvas: Tensor, entries: Sequence[tuple[str, Color]]) -> None:
    """Name colours in the upper left corner; left out where the picture is too small to read it."""
    height, width = canvas.shape[1:]
    size = max(11, min(height, width) // 32)
    line = round(1.5 * size)
    entries = entries[: max(0, (height - line // 2) // line)]
    if not entries or width < 8 * size:
        return
    inner = min(width - 2 * line, 1 + max(round(font_of(size).getlength(name)) for name, _ in entries))
    panel = canvas[:, : line * len(entries) + line // 2, : inner + 2 * line]
    panel.copy_(panel // 4)
    for row, (name, color) in enumerate(entries):
        top = line // 4 + row * line
        panel[:, top + line // 4 : top + line // 4 + size, line // 3 : line // 3 + size] = plane(color)
        write_line(canvas, name, round(1.4 * line), top + line // 8, inner, size)
