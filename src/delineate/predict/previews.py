"""Drawings of truth and prediction side by side: of the worst, the best and some other pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from delineate.data.dataset import Instance, Record
from delineate.data.decode import decode_image
from delineate.data.formats.names import flat_names
from delineate.data.load import instance_mask
from delineate.data.preview import draw_truth
from delineate.files import atomic_path
from delineate.metrics.evaluation import ImageScore
from delineate.metrics.measures import Labelling
from delineate.predict.alignment import Alignment, match_record
from delineate.predict.results import Results
from delineate.report.overlay import (
    INVENTED,
    MISSED,
    draw_errors,
    draw_instances,
    draw_semantic,
    side_by_side,
    to_display,
)

PREVIEWS = 8
PREVIEW_HEIGHT = 512
_ERRORS = "errors: blue missed, orange invented, purple another class"


def draw_previews(
    draw: Callable[[Record], Tensor], records: Sequence[Record], images: Sequence[ImageScore], folder: Path
) -> tuple[ImageScore, ...]:
    """Draw the chosen pictures into `folder`; returns `images` with the paths of the drawings."""
    drawn = list(images)
    names = flat_names([record.name for record in records])
    for index in _chosen([image.quality for image in images], PREVIEWS):
        path = folder / f"{names[index]}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(draw(records[index]).permute(1, 2, 0).contiguous().numpy()).save(temporary)
        drawn[index] = replace(images[index], preview=f"{folder.name}/{path.name}")
    return tuple(drawn)


def semantic_preview(results: Results, truth: Labelling, image: Tensor, shares: Mapping[float, Tensor] | None = None) -> Tensor:
    """Return truth, prediction and errors of one picture side by side, and the share of each scale, (3, H, W) uint8."""
    background = results.background
    panels: list[Tensor] = []
    found = _one_map(results.multilabel.numpy()) if results.multilabel is not None else results.semantic
    wanted = _one_map(truth.semantic) if truth.semantic.ndim == 3 else truth.semantic
    assert found is not None
    for objects, semantic in ((truth.objects, wanted), (results.instance_map, found)):
        if truth.objects is not None and objects is not None:
            panels.append(draw_instances(image, instance_map=objects))
        else:
            panels.append(draw_semantic(image, semantic, classes=results.classes, background=background))
    panels.append(draw_errors(image, found, wanted, background=background))
    drawn = {f"share of scale {scale:g}": _heat(share) for scale, share in (shares or {}).items()}
    return _in_a_row([*panels, *drawn.values()], tuple(drawn))


def scales_preview(image: Tensor, shares: Mapping[float, Tensor]) -> Tensor:
    """Return a picture and the share (H, W) of each scale side by side, (3, H, W) uint8; dark: 0, yellow: 1."""
    captions = ("picture", *(f"share of scale {scale:g}" for scale in shares))
    return side_by_side([to_display(image), *map(_heat, shares.values())], captions)


def _heat(share: Tensor) -> Tensor:
    """Numbers (H, W) in 0..1 as colours (3, H, W) uint8."""
    colors = colormaps["viridis"](share.clamp(0, 1).numpy(), bytes=True)[..., :3]
    return torch.from_numpy(np.ascontiguousarray(colors.transpose(2, 0, 1)))


def objects_preview(results: Results, record: Record, alignment: Alignment) -> Tensor:
    """Return truth, prediction and errors of one picture side by side; an object is found from an IoU of 0.5 on."""
    image, truth = decode_image(record.image, record.frame), draw_truth(alignment.dataset, record)[1]
    wanted = alignment.truth(record)
    matched = match_record(wanted, alignment.found(record, results), threshold=0.0).values()
    errors = to_display(image) // 2 + 32
    for color, objects in zip((MISSED, INVENTED), zip(*(one.unmatched() for one in matched), strict=True), strict=False):
        errors = _tinted(errors, [i for some in objects for i in some], color, wanted)
    return _in_a_row([truth, results.draw(image), errors])


def _tinted(canvas: Tensor, objects: Sequence[Instance], color: tuple[int, int, int], record: Record) -> Tensor:
    """Objects in one colour: their masks, or their boxes where they have none."""
    size = (canvas.shape[1], canvas.shape[2])
    outlined = [i for i in objects if i.segmentation is not None]
    masks = (instance_mask(i, size, record) for i in outlined)
    canvas = draw_instances(canvas, masks=masks, colors=[color] * len(outlined), alpha=0.6)
    boxes = [i.box for i in objects if i.segmentation is None]
    return draw_instances(canvas, boxes=torch.tensor(boxes).reshape(-1, 4), colors=[color] * len(boxes))


def _in_a_row(panels: Sequence[Tensor], more: tuple[str, ...] = ()) -> Tensor:
    height = min(PREVIEW_HEIGHT, max(256, panels[0].shape[-2]))
    return side_by_side(panels, ("truth", "prediction", _ERRORS, *more), height=height)


def _one_map(classes: np.ndarray) -> np.ndarray:
    """Overlapping classes (K, H, W) as one map: the last class that a pixel belongs to."""
    ids = np.where(classes > 0, np.arange(len(classes))[:, None, None], 0).max(axis=0).astype(np.uint8)
    return np.where((classes < 0).all(axis=0), 255, ids).astype(np.uint8)


def _chosen(scores: Sequence[float], count: int) -> list[int]:
    """Indices of up to `count` pictures: the worst and the best three, and others evenly between.

    >>> _chosen([0.5, 0.9, 0.1, 0.7], 8)
    [2, 0, 3, 1]
    >>> _chosen([i / 20 for i in range(20)], 8)
    [0, 1, 2, 6, 13, 17, 18, 19]
    """
    order = sorted(range(len(scores)), key=lambda i: -1.0 if math.isnan(scores[i]) else scores[i])
    if len(order) <= count:
        return order
    between = order[3:-3]
    middle = [between[int((i + 0.5) * len(between) / (count - 6))] for i in range(count - 6)]
    return [*order[:3], *middle, *order[-3:]]
