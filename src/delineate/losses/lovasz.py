"""Lovász losses: the tight convex surrogate of the IoU."""

from __future__ import annotations

import torch
from torch import Tensor

from delineate.losses.shapes import compute_dtype, is_multilabel


def lovasz_loss(logits: Tensor, labels: Tensor, *, per_image: bool = False, ignore_index: int = 255) -> Tensor:
    """Lovász extension of 1 - IoU at the errors abs(t - p), the mean over the classes present (arXiv:1705.08790, eq. 8 and 11).

    `logits` (B, K, H, W). Labels (B, H, W) class ids, `ignore_index` not counted: p is the softmax (Lovász-softmax). Labels
    (B, K, H, W) masks of 0 and 1, -1 not counted: p is the sigmoid of each class (not the hinge on logits that the authors'
    code uses for two classes). With `per_image` each picture is one set of pixels, else the batch. A class without a true pixel
    in the set is left out; no class: 0 with gradient 0. Scalar, float32.

    >>> labels = torch.tensor([[[0, 1, 1, 255]]])
    >>> round(lovasz_loss(torch.zeros(1, 2, 1, 4), labels).item(), 4)  # all errors 1/2: half of 1 - IoU of the worst case
    0.5
    """
    dtype = compute_dtype(logits)
    if is_multilabel(logits, labels):
        valid = labels >= 0  # (B, K, H, W)
        truth = labels > 0.5
        probability = logits.to(dtype).sigmoid()
    else:
        valid = (labels != ignore_index).unsqueeze(1).expand_as(logits)
        truth = labels.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
        probability = torch.softmax(logits, dim=1, dtype=dtype)
    errors = (truth.to(dtype) - probability).abs()
    errors, truth, valid = (_as_sets(x, per_image) for x in (errors, truth, valid))  # (S, N): a row a set of pixels and class
    with torch.no_grad():
        # Where the order of the errors does not change the loss is linear in them: only these slopes are kept for backward.
        slopes = torch.stack([_slopes(e, t, v) for e, t, v in zip(errors, truth, valid, strict=True)])
        present = truth.any(dim=1)
    losses = (errors * slopes).sum(dim=1)
    return torch.where(present, losses, 0.0).sum() / present.sum().clamp_min(1)


def _as_sets(values: Tensor, per_image: bool) -> Tensor:
    """(B, K, H, W) to (B * K, H * W), or to (K, B * H * W)."""
    if per_image:
        return values.flatten(0, 1).flatten(1)
    return values.transpose(0, 1).flatten(1)


def _slopes(errors: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Derivative of one set's loss by each of its errors (N,): how 1 - IoU grows as pixels turn wrong, worst first (Alg. 1)."""
    # What is not counted comes last, after every true pixel: 1 - IoU is 1 there, and grows no more.
    order = torch.where(valid, errors, -1.0).argsort(descending=True)
    truth = truth[order]
    total = truth.sum()
    intersection = total - truth.cumsum(0)  # int64: exact for any number of pixels
    union = total + truth.logical_not().cumsum(0)
    jaccard = 1.0 - intersection.to(errors.dtype) / union.to(errors.dtype)
    growth = jaccard.diff(prepend=jaccard.new_zeros(1))
    return torch.zeros_like(errors).scatter_(0, order, growth)
