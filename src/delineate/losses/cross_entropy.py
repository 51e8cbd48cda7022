"""Cross-entropy, plain and weighted pixel by pixel with the border map of U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from delineate.losses.shapes import class_vector, compute_dtype, is_multilabel, mean_over


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Sequence[float] | Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = 255,
) -> Tensor:
    """Mean cross-entropy over the pixels that are not ignored.

    `logits` (B, K, H, W). Labels (B, H, W), integer class ids, `ignore_index` not counted: softmax cross-entropy. Labels
    (B, K, H, W), masks of 0 and 1, -1 not counted: the binary cross-entropy of each class. The mean is weighted: with
    `class_weights` w it is sum w_y CE / sum w_y, as in `torch.nn.functional.cross_entropy`. `label_smoothing` s moves the
    target to (1 - s) t + s / K (multi-label: s / 2). Nothing to count: 0 with gradient 0, where PyTorch gives NaN. Scalar,
    float32.

    >>> round(cross_entropy(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, 255]]])).item(), 4)
    0.6931
    """
    return _weighted_mean(logits, labels, None, class_weights, label_smoothing, ignore_index)


def border_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    class_weights: Sequence[float] | Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = 255,
) -> Tensor:
    """Cross-entropy times the weight of each pixel, high between touching objects (U-Net, arXiv:1505.04597, eq. 1 and 2).

    `weight` (B, H, W) >= 0, made by `delineate.data.border_weight_map`; the other arguments are those of `cross_entropy`. The
    paper sums over pixels; here the sum is divided by the sum of the weights, so that the scale is that of `cross_entropy`, to
    which it is equal for a constant weight.

    >>> labels = torch.tensor([[[0, 1, 1]]])
    >>> logits = torch.tensor([[[[2.0, 0.0, 2.0]], [[0.0, 2.0, 0.0]]]])  # the third pixel is wrong
    >>> weight = torch.tensor([[[1.0, 1.0, 10.0]]])
    >>> bool(border_cross_entropy(logits, labels, weight) > cross_entropy(logits, labels))
    True
    """
    if weight.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected one number a pixel of logits {tuple(logits.shape)}")
    return _weighted_mean(logits, labels, weight, class_weights, label_smoothing, ignore_index)


def _weighted_mean(
    logits: Tensor,
    labels: Tensor,
    pixel_weight: Tensor | None,
    class_weights: Sequence[float] | Tensor | None,
    label_smoothing: float,
    ignore_index: int,
) -> Tensor:
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 <= label_smoothing < 1")
    multilabel = is_multilabel(logits, labels)
    dtype = compute_dtype(logits)
    logits = logits.to(dtype)
    weights = None if class_weights is None else class_vector(class_weights, logits, "class_weights")
    if multilabel:
        valid = labels >= 0
        target = (labels * valid).to(dtype) * (1 - label_smoothing) + label_smoothing / 2
        weight = valid.to(dtype) if weights is None else valid * weights.view(-1, 1, 1)  # (B, K, H, W)
        weight = weight if pixel_weight is None else weight * pixel_weight.unsqueeze(1).to(dtype)
        return mean_over(weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none"), weight)
    valid = labels != ignore_index
    # Not reduction="sum": that one adds with atomics on CUDA, which is not deterministic.
    values = F.cross_entropy(
        logits, labels.long(), weights, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )  # (B, H, W), class weight included, 0 where ignored
    weight = valid.to(dtype) if weights is None else valid * weights[torch.where(valid, labels, 0).long()]
    if pixel_weight is None:
        return mean_over(values, weight)
    return mean_over(values * pixel_weight, weight * pixel_weight)
