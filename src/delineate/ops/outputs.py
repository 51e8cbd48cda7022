"""What a semantic network returns in training beside its logits."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class WithAuxiliary(NamedTuple):
    """Logits, and those of branches to learn from only: the loss is loss(logits) + sum of weight * loss(branch).

    Networks return it in training only; in evaluation they return the logits and do not compute the branches.
    """

    logits: Tensor  # (B, K, H, W)
    auxiliary: tuple[Tensor, ...]  # each (B, K, h, w), as a rule of the size of `logits`
    weights: tuple[float, ...]  # of each of `auxiliary`
