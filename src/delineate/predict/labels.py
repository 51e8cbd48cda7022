"""From scores to labels: what is kept of each pixel once its scores are forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delineate.predict.tiling import Strip
from delineate.weights.conventions import Outputs

Array = NDArray[Any]


@dataclass(slots=True)
class LabelRows:
    """Labels of some rows of a picture, or of all; what was not asked for, or the network does not tell, is None."""

    semantic: Array  # (n, W) uint8 class ids (uint16 beyond 256 classes)
    foreground: Array | None = None  # (n, W) float16, probability of any class but 0
    border: Array | None = None  # (n, W) bool, outputs "border": the border of an object; `semantic` is then the object's class
    distance: Array | None = None  # (n, W) float16 in 0..1, outputs "distance"
    multilabel: Array | None = None  # (K, n, W) bool, outputs "multilabel"


def decode_scores(scores: Tensor, outputs: Outputs, num_classes: int, *, objects: bool, threshold: float = 0.5) -> LabelRows:
    """Turn scores (K', n, W) of `ScoringNetwork` into labels; `objects`: keep also what telling objects apart needs.

    A pixel of the border class lies inside an object, so its class is the likeliest of the others but the background.
    `threshold` is that of "multilabel", where `semantic` is the likeliest class.
    """
    classes = scores[:num_classes]  # (K, n, W)
    ids = classes.argmax(0)
    rows = LabelRows(semantic=np.empty(0))
    if outputs == "border":
        band = scores[num_classes] > classes.amax(0)
        ids = torch.where(band, classes[1:].argmax(0) + 1, ids)
        rows.border = _numpy(band) if objects else None
    if outputs == "distance" and objects:
        rows.distance = _numpy(scores[num_classes].half())
    if outputs == "multilabel":
        rows.multilabel = _numpy(classes > threshold)
    if objects:
        rows.foreground = _numpy((1 - classes[0]).half())
    rows.semantic = _numpy(ids.to(torch.uint8 if num_classes <= 256 else torch.uint16))
    return rows


def join_rows(strips: Iterator[Strip], height: int) -> LabelRows:
    """Put the strips of a picture of `height` rows, decoded to `LabelRows`, into whole arrays."""
    whole: LabelRows | None = None
    names = [field.name for field in fields(LabelRows)]
    for top, rows in strips:
        if whole is None:
            empty: dict[str, Any] = {name: _stretched(getattr(rows, name), height) for name in names}
            whole = LabelRows(**empty)
        for name in names:
            if (part := getattr(rows, name)) is not None:
                getattr(whole, name)[..., top : top + part.shape[-2], :] = part
    assert whole is not None  # a picture has at least one row
    return whole


def _stretched(part: Array | None, height: int) -> Array | None:
    return None if part is None else np.empty((*part.shape[:-2], height, part.shape[-1]), part.dtype)


def _numpy(tensor: Tensor) -> Array:
    return tensor.cpu().numpy()
