"""Resizing pictures as the sources of published weights do it: a pixel that differs is another result."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from delineate.weights.conventions import Resize, ResizeFilter


def network_size(size: tuple[int, int], resize: Resize | None) -> tuple[int, int]:
    """Return height and width in which a detector sees a picture of `size`; at least 1 each.

    The shorter side becomes `resize.shortest`, unless the longer one would exceed `resize.longest`. What is left of a pixel is
    cut off with the filter "bilinear" (torchvision's `GeneralizedRCNNTransform`) and rounded with "pillow" (Detectron2's
    `ResizeShortestEdge`). None leaves the picture as it is.

    >>> [network_size((427, 640), Resize(filter=filter)) for filter in ("bilinear", "pillow")]
    [(800, 1199), (800, 1199)]
    >>> [network_size((640, 426), Resize(800, 1000, filter)) for filter in ("bilinear", "pillow")]
    [(1000, 665), (1000, 666)]
    """
    if resize is None:
        return size
    if resize.filter == "bilinear":
        scale = min(resize.shortest / min(size), resize.longest / max(size))
        height, width = (max(1, math.floor(side * scale)) for side in size)
        return height, width
    scale = resize.shortest / min(size)
    sides = [float(resize.shortest) if side == min(size) else side * scale for side in size]
    if max(sides) > resize.longest:
        scale = resize.longest / max(sides)
        sides = [side * scale for side in sides]
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


def resize_pixels(pixels: Tensor, size: tuple[int, int], filter: ResizeFilter) -> Tensor:
    """Return stored pixels (C, H, W) in another `size`.

    "bilinear": float32, interpolated between the four nearest pixels, without antialiasing, as torchvision's detectors do.
    "pillow": Pillow's bilinear filter, which averages when it shrinks; uint8 stays uint8, all else becomes float32.
    """
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    if filter == "bilinear":
        return F.interpolate(pixels[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    planes = pixels.cpu().numpy()
    planes = planes if planes.dtype == np.uint8 else planes.astype(np.float32)
    resized = [Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR) for plane in planes]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in resized])).to(pixels.device)
