"""`Sample`: one picture with everything known about it, the type that data, transforms and training speak."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision import tv_tensors

IGNORE = 255
"""The class id in `Sample.semantic` that no loss and no metric counts."""


@dataclass(slots=True)
class Sample:
    """One decoded picture and its truth; fields that a data set does not have, or that were not asked for, are None.

    Coordinates are pixels of the picture, x to the right, y down, (0, 0) the outer corner of the first pixel.
    """

    image: tv_tensors.Image  # (C, H, W) uint8, uint16 or float32; C is 1 (grey) or 3 (RGB)
    name: str  # unique in its data set, without a suffix: the stem that outputs are called by
    path: Path | None = None
    image_id: int | str | None = None
    semantic: tv_tensors.Mask | None = None  # (H, W) uint8 class ids, IGNORE = not counted; of `load_objects`: as `stuff_map`
    instance_map: tv_tensors.Mask | None = None  # (H, W) int32, 0 = background, 1..N = object n - 1 of `labels`
    masks: tv_tensors.Mask | None = None  # (N, H, W) bool, may overlap
    codes: tuple[Any, ...] | None = None  # N run-length codes in place of `masks`, which may fill the memory
    boxes: tv_tensors.BoundingBoxes | None = None  # (N, 4) float32 xyxy
    labels: Tensor | None = None  # (N,) int64, index into Dataset.classes
    crowd: Tensor | None = None  # (N,) bool, regions of many objects
    keypoints: tv_tensors.KeyPoints | None = None  # (N, K, 2) float32 x, y
    visibility: Tensor | None = None  # (N, K) uint8: 0 not labelled, 1 hidden, 2 visible
    weight: tv_tensors.Mask | None = None  # (H, W) float32 weight of each pixel in the loss
    distance: tv_tensors.Mask | None = None  # (H, W) float32 distance to the object's edge, 1 at its deepest point, 0 outside

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[-2], self.image.shape[-1]
