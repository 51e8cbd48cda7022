"""Cross-entropy that lets pixels at a border be of any class around them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from delineate.losses.shapes import class_vector, compute_dtype, is_multilabel, mean_over


def relaxed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    reach: int = 1,
    class_weights: Sequence[float] | Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Mean of -log of the probability that a pixel is of one of the classes around it (Zhu et al. 2019, arXiv:1812.01593).

    `logits` (B, K, H, W), labels (B, H, W) class ids, `ignore_index` not counted. Around a pixel is the square of 2 `reach` + 1
    pixels; away from borders the loss is the cross-entropy, with `reach` 0 everywhere. With `class_weights` the mean is
    weighted by those of the pixels' own classes, as in `cross_entropy`. Nothing to count: 0 with gradient 0. Raises ValueError
    for labels that are masks, and for a negative reach. Scalar, float32.

    >>> logits = torch.tensor([[[[5.0, 0.0, 0.0]], [[0.0, 5.0, 0.0]], [[0.0, 0.0, 5.0]]]])
    >>> labels = torch.tensor([[[1, 0, 0]]])  # the border is drawn one pixel too far to the left
    >>> [round(relaxed_cross_entropy(logits[..., :2], labels[..., :2], reach=reach).item(), 4) for reach in (0, 1)]
    [5.0134, 0.0067]
    """
    if is_multilabel(logits, labels):
        raise ValueError("labels are masks, one a class; expected class ids, as classes must exclude each other")
    if reach < 0:
        raise ValueError(f"reach is {reach}, expected 0 or more pixels")
    dtype = compute_dtype(logits)
    valid = labels != ignore_index
    truth = labels.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    around = F.max_pool2d(truth.to(dtype), 2 * reach + 1, stride=1, padding=reach) > 0  # (B, K, H, W)
    log = logits.log_softmax(1, dtype=dtype)
    union = torch.where(around | ~valid.unsqueeze(1), log, -torch.inf).logsumexp(1)
    weight = valid.to(dtype)
    if class_weights is not None:
        weight = weight * class_vector(class_weights, logits, "class_weights")[torch.where(valid, labels, 0).long()]
    return mean_over(torch.where(valid, -union, 0.0) * weight, weight)
