"""Cross-entropy of the hardest pixels: online hard example mining."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from delineate.losses.shapes import class_vector, compute_dtype, is_multilabel, mean_over


def ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    class_weights: Sequence[float] | Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Mean cross-entropy over the pixels whose right class has a probability below `threshold`.

    `logits` (B, K, H, W), labels (B, H, W) class ids, `ignore_index` not counted. If fewer than `min_kept` pixels of the batch
    are so hard, the threshold is the probability of the `min_kept`-th hardest after the hardest, so that about as many count
    (Shrivastava et al. 2016, arXiv:1604.03540; this form and its numbers are HRNet-Semantic-Segmentation's). With
    `class_weights` it is the mean of w_y CE, not divided by the weights. Nothing to count: 0 with gradient 0. Raises
    ValueError for labels that are masks, and for a threshold or number that cannot be. Scalar, float32.

    >>> logits = torch.tensor([[[[0.0, 4.0]], [[0.0, 0.0]]]])  # the first pixel is undecided, the second is right
    >>> round(ohem_cross_entropy(logits, torch.tensor([[[0, 0]]]), min_kept=0).item(), 4)
    0.6931
    """
    if is_multilabel(logits, labels):
        raise ValueError("labels are masks, one a class; expected class ids, as classes must exclude each other")
    if not 0 < threshold <= 1 or min_kept < 0:
        raise ValueError(f"threshold is {threshold}, min_kept {min_kept}; expected 0 < threshold <= 1 and min_kept >= 0")
    logits = logits.to(compute_dtype(logits))
    valid = (labels != ignore_index).flatten()
    entropy = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="none").flatten()
    with torch.no_grad():
        probability = torch.where(valid, (-entropy).exp(), torch.inf)
        hardest = probability.topk(min(min_kept, len(probability) - 1) + 1, largest=False).values
        last = (valid.sum() - 1).clamp(0, len(hardest) - 1)  # fewer may count than are to be kept
        kept = valid & (probability < hardest.gather(0, last[None]).clamp(min=threshold))
    if class_weights is not None:
        weights = class_vector(class_weights, logits, "class_weights")
        entropy = entropy * weights[torch.where(valid, labels.flatten(), 0).long()]
    return mean_over(torch.where(kept, entropy, 0.0), kept)
