"""Regression of the distance map that separates touching objects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from delineate.losses.shapes import compute_dtype, mean_over


def distance_loss(prediction: Tensor, distance: Tensor, valid: Tensor, *, beta: float = 0.1) -> Tensor:
    """Smooth L1 between two distance maps, the mean over the pixels that are `valid`.

    `prediction` (B, H, W), raw network output; `distance` (B, H, W), 0 outside objects and 1 at the deepest point of each;
    `valid` (B, H, W) bool. Errors below `beta` count squared (Fast R-CNN, arXiv:1504.08083, eq. 3). No valid pixel: 0 with
    gradient 0. Scalar, float32.

    >>> zero = torch.zeros(1, 2, 2)
    >>> round(distance_loss(zero, zero + 1, zero == 0).item(), 4)
    0.95
    """
    if not prediction.shape == distance.shape == valid.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)}, distance {tuple(distance.shape)}, valid {tuple(valid.shape)} differ"
        )
    dtype = compute_dtype(prediction)
    values = F.smooth_l1_loss(prediction.to(dtype), torch.where(valid, distance, 0.0).to(dtype), beta=beta, reduction="none")
    return mean_over(torch.where(valid, values, 0.0), valid.to(dtype))
