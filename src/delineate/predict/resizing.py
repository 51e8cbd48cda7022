"""Resizing pictures as the sources of published weights do it: a pixel that differs is another result."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from delineate.weights.conventions import ResizeFilter


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
