"""Focal loss: cross-entropy that fades on pixels that are already right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from delineate.losses.shapes import class_vector, compute_dtype, is_multilabel, mean_over


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    class_weights: Sequence[float] | Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Mean of -(1 - p)^gamma log p, p the probability of the truth (RetinaNet, arXiv:1708.02002, eq. 4 and 5).

    `logits` (B, K, H, W). Labels (B, H, W) class ids: softmax, one term a pixel, `ignore_index` not counted. Labels
    (B, K, H, W) masks: a sigmoid and a term for each class, -1 not counted; there `alpha` weighs the positive, 1 - alpha the
    negative terms, without entering the mean's divisor. `class_weights` make the mean a weighted one, as in `cross_entropy`.
    gamma 0 is cross-entropy. Nothing to count: 0 with gradient 0. Scalar, float32.

    >>> logits, labels = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    >>> round(focal_loss(logits, labels).item(), 4)  # 0.5**2 * log 2
    0.1733
    """
    multilabel = is_multilabel(logits, labels)
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}, expected gamma >= 0")
    if alpha is not None and not (multilabel and 0 <= alpha <= 1):
        raise ValueError(f"alpha is {alpha}: it needs multi-label masks and 0 <= alpha <= 1; use class_weights for class ids")
    dtype = compute_dtype(logits)
    logits = logits.to(dtype)
    weights = None if class_weights is None else class_vector(class_weights, logits, "class_weights")
    if multilabel:
        valid = labels >= 0
        target = torch.where(valid, labels, 0.0).to(dtype)
        values = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        values = _fade(values, gamma)
        if alpha is not None:
            values = values * (alpha * target + (1 - alpha) * (1 - target))
        weight = valid.to(dtype) if weights is None else valid * weights.view(-1, 1, 1)
        return mean_over(weight * values, weight)
    valid = labels != ignore_index
    values = _fade(F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="none"), gamma)
    weight = valid.to(dtype) if weights is None else valid * weights[torch.where(valid, labels, 0).long()]
    return mean_over(weight * values, weight)


def _fade(cross_entropy: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma CE for CE = -log p."""
    miss = -torch.expm1(-cross_entropy)  # 1 - p without cancellation
    if 0 < gamma < 1:
        miss = miss.clamp_min(1e-12)  # the slope of x^gamma at 0 is infinite
    return miss.pow(gamma) * cross_entropy
