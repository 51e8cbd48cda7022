"""Losses of overlapping regions: Dice, soft Jaccard (IoU) and Tversky, all made of one soft `Overlap`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from delineate.losses.shapes import compute_dtype, is_multilabel
from delineate.metrics.overlap import Overlap

Absent = Literal["skip", "count"]


def soft_overlap(logits: Tensor, labels: Tensor, *, per_image: bool = False, ignore_index: int = 255) -> Overlap[Tensor]:
    """Sums of probabilities in place of pixel counts: I = sum p t, P = sum p, T = sum t, over the pixels not ignored.

    `logits` (B, K, H, W); labels (B, H, W) class ids (softmax) or (B, K, H, W) masks, -1 ignored (sigmoid). The fields have
    shape (B, K) with `per_image`, else (K,): the batch counts as one picture.
    """
    dims = (2, 3) if per_image else (0, 2, 3)
    dtype = compute_dtype(logits)
    if is_multilabel(logits, labels):
        valid = labels >= 0  # (B, K, H, W)
        truth = (labels * valid).to(dtype)
        probability = logits.to(dtype).sigmoid() * valid
        return Overlap((probability * truth).sum(dims), probability.sum(dims), truth.sum(dims))
    classes = torch.arange(logits.shape[1], device=logits.device)
    truth = labels.unsqueeze(1) == classes.view(1, -1, 1, 1)  # (B, K, H, W) bool: a quarter of a float one-hot
    probability = torch.softmax(logits, dim=1, dtype=dtype)
    # Products with bool masks: quicker than torch.where on a CPU, and only the bool is kept for backward.
    intersection = (probability * truth).sum(dims)
    prediction = (probability * (labels != ignore_index).unsqueeze(1)).sum(dims)
    return Overlap(intersection, prediction, truth.sum(dims).to(dtype))


def dice_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    per_image: bool = False,
    background: bool = True,
    smooth: float = 1.0,
    absent: Absent = "skip",
    ignore_index: int = 255,
) -> Tensor:
    """1 - Dice = 1 - (I + smooth) / ((P + T) / 2 + smooth), the mean over classes.

    I, P and T are the sums of `soft_overlap`. After V-Net (arXiv:1606.04797), with P in place of its sum of squares.
    `logits` (B, K, H, W); labels (B, H, W) class ids, `ignore_index` not counted, or (B, K, H, W) masks, -1 not counted.
    `per_image`: overlaps of each picture instead of the whole batch, then the mean. `background=False` leaves class 0 out.
    `smooth` is in pixels. A class without a true pixel (in the batch, or in that picture) is left out of the mean with
    `absent="skip"`; with "count" it scores 1 - smooth / (P / 2 + smooth), which asks for no false positives. Nothing to
    count: 0 with gradient 0. Scalar, float32.

    >>> labels = torch.tensor([[[0, 1, 1, 255]]])
    >>> logits = torch.tensor([[[[9.0, -9.0, -9.0, 0.0]], [[-9.0, 9.0, 9.0, 0.0]]]])
    >>> bool(dice_loss(logits, labels) < 1e-3)
    True
    """
    return tversky_loss(
        logits, labels, alpha=0.5, beta=0.5, per_image=per_image, background=background, smooth=smooth, absent=absent,
        ignore_index=ignore_index,
    )  # fmt: skip


def jaccard_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    per_image: bool = False,
    background: bool = True,
    smooth: float = 1.0,
    absent: Absent = "skip",
    ignore_index: int = 255,
) -> Tensor:
    """1 - soft IoU = 1 - (I + smooth) / (P + T - I + smooth), the mean over classes; arguments as in `dice_loss`.

    >>> labels = torch.tensor([[[0, 1, 1, 255]]])
    >>> logits = torch.zeros(1, 2, 1, 4)
    >>> bool(jaccard_loss(logits, labels) > dice_loss(logits, labels))  # IoU <= Dice
    True
    """
    return tversky_loss(
        logits, labels, alpha=1.0, beta=1.0, per_image=per_image, background=background, smooth=smooth, absent=absent,
        ignore_index=ignore_index,
    )  # fmt: skip


def tversky_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 1.0,
    per_image: bool = False,
    background: bool = True,
    smooth: float = 1.0,
    absent: Absent = "skip",
    ignore_index: int = 255,
) -> Tensor:
    """(1 - Tversky index)^gamma, the mean over classes (arXiv:1706.05721; with gamma the focal Tversky loss).

    `alpha` >= 0 weighs false positives, `beta` > 0 false negatives: 1/2, 1/2 is Dice, 1, 1 is Jaccard. Abraham and Khan
    (arXiv:1810.07842) write the exponent as 1 / gamma; here it is `gamma` itself, as in smp: > 1 looks at the badly overlapping
    classes. The other arguments are those of `dice_loss`.

    >>> labels = torch.tensor([[[0, 1, 1, 255]]])
    >>> logits = torch.zeros(1, 2, 1, 4)
    >>> bool(tversky_loss(logits, labels, alpha=0.5, beta=0.5) == dice_loss(logits, labels))
    True
    """
    if alpha < 0 or beta <= 0 or gamma <= 0 or smooth < 0:
        raise ValueError(
            f"alpha {alpha}, beta {beta}, gamma {gamma}, smooth {smooth}: expected alpha, smooth >= 0 < beta, gamma"
        )
    if absent not in ("skip", "count"):
        raise ValueError(f"absent is {absent!r}, expected 'skip' or 'count'")
    if not background and logits.shape[1] == 1:
        raise ValueError("background=False leaves out class 0, but there is only one class")
    overlap = soft_overlap(logits, labels, per_image=per_image, ignore_index=ignore_index)
    loss = 1.0 - overlap.tversky(alpha, beta, smooth=smooth, empty=1.0)  # (K,) or (B, K)
    if gamma != 1.0:
        # Rounding can leave -1e-7, and the slope of x^gamma at 0 is infinite for gamma < 1.
        loss = loss.clamp_min(1e-7).pow(gamma)
    counted = overlap.truth > 0 if absent == "skip" else torch.ones_like(loss, dtype=torch.bool)
    if not background:
        loss, counted = loss[..., 1:], counted[..., 1:]
    return torch.where(counted, loss, 0.0).sum() / counted.sum().clamp_min(1)
