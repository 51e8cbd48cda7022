"""What the losses have in common: the two kinds of labels, the precision of the sums, and the mean over what is counted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_multilabel(logits: Tensor, labels: Tensor) -> bool:
    """Tell (B, K, H, W) labels, one mask a class, from (B, H, W) class ids; ValueError when neither fits the logits."""
    if logits.ndim != 4:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, expected (B, K, H, W)")
    if labels.shape == logits.shape:
        return True
    if labels.shape != (logits.shape[0], *logits.shape[2:]):
        b, k, h, w = logits.shape
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, expected ({b}, {h}, {w}) class ids or ({b}, {k}, {h}, {w}) masks"
        )
    if labels.is_floating_point():
        raise ValueError(f"class ids have dtype {labels.dtype}, expected an integer type")
    return False


def compute_dtype(logits: Tensor) -> torch.dtype:
    """The type that a loss computes in: float32 also for bf16 and fp16 logits, float64 for float64."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def class_vector(values: Sequence[float] | Tensor, logits: Tensor, name: str) -> Tensor:
    """One number >= 0 a class as a (K,) tensor beside the logits; ValueError names `name`."""
    vector = torch.as_tensor(values, dtype=compute_dtype(logits), device=logits.device)
    if vector.shape != (logits.shape[1],):
        raise ValueError(f"{name} holds {vector.numel()} numbers, but there are {logits.shape[1]} classes")
    if not isinstance(values, Tensor) and min(values) < 0:  # looking into a tensor would synchronise
        raise ValueError(f"{name} holds {min(values)}, expected numbers >= 0")
    return vector


def mean_over(values: Tensor, weight: Tensor) -> Tensor:
    """Sum of `values` over sum of `weight`; 0, with gradient 0, where nothing weighs."""
    total = weight.sum()
    return values.sum() / torch.where(total > 0, total, 1.0)
