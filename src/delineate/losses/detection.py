"""Losses of Faster and Mask R-CNN (arXiv:1506.01497, 1703.06870): proposals, boxes, masks and keypoints.

Each is 0, with gradient 0, where nothing counts. Leading dimensions (B, S) of predictions may be one, (B * S), as a head gives
them. Computed in float32 or wider.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from delineate.losses.matching import POSITIVE, Matches, Sample, SampledRegions, take_rows
from delineate.losses.shapes import compute_dtype, mean_over
from delineate.ops.boxes import Weights, encode_boxes
from delineate.ops.instances import InstanceTargets
from delineate.ops.keypoints import encode_keypoints
from delineate.ops.roi import roi_align

MaskActivation = Literal["sigmoid", "softmax"]


def proposal_losses(
    objectness: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    targets: InstanceTargets,
    matches: Matches,
    sample: Sample,
    *,
    beta: float = 0.0,
    per_sample: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the losses of the region-proposal network: is there an object, and where is its box.

    `objectness` (B, P) logits, `deltas` (B, P, 4), `anchors` (P, 4) or (B, P, 4) xyxy; `matches` of these anchors, and `sample`
    of `matches.kind`. Binary cross-entropy and smooth L1 (from a parabola to a line at `beta`; 0: L1) of the deltas to the
    object, both summed over the sample. The sums are divided by the number of valid rows in the batch if `per_sample`
    (torchvision, MMDetection), or else by the number of rows (Detectron2).
    """
    objectness, deltas = (take_rows(x, sample.rows).to(compute_dtype(x)) for x in (objectness, deltas))
    anchors = take_rows(anchors.expand(len(deltas), -1, -1), sample.rows)
    positive = sample.valid & (take_rows(matches.kind, sample.rows) == POSITIVE)
    true = take_rows(targets.boxes, take_rows(matches.object, sample.rows))
    number = sample.valid.sum().clamp(min=1) if per_sample else sample.valid.numel()
    binary = F.binary_cross_entropy_with_logits(objectness, positive.to(objectness), reduction="none")
    objectness_loss = torch.where(sample.valid, binary, 0.0).sum() / number
    return objectness_loss, _box_distance(deltas, encode_boxes(true, anchors), positive, beta) / number


def box_losses(
    logits: Tensor,
    deltas: Tensor,
    regions: SampledRegions,
    *,
    weights: Weights = (10.0, 10.0, 5.0, 5.0),
    beta: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the losses of the box head: which class, and where is the box.

    `logits` (B, S, K + 1), background last; `deltas` (B, S, K * 4), or (B, S, 4) for all classes alike. Cross-entropy and
    smooth L1 (see `proposal_losses`) of the class' deltas at the positive regions, both summed and divided by the number of
    valid regions in the batch: torchvision, Detectron2 and MMDetection agree.
    """
    shape = regions.labels.shape
    logits, deltas = (x.reshape(*shape, -1).to(compute_dtype(x)) for x in (logits, deltas))
    entropy = F.cross_entropy(logits.flatten(0, 1), regions.labels.flatten(), reduction="none").view(shape)
    class_loss = mean_over(torch.where(regions.valid, entropy, 0.0), regions.valid)
    deltas = _of_class(deltas.unflatten(-1, (-1, 4)), regions.labels)
    distance = _box_distance(deltas, encode_boxes(regions.targets, regions.boxes, weights), regions.positive, beta)
    return class_loss, distance / regions.valid.sum().clamp(min=1)


@torch.no_grad()
def mask_targets(masks: Tensor, regions: SampledRegions, size: int, *, soft: bool = False) -> Tensor:
    """Return the part of its object's mask that lies in each region, resampled to (B, S, size, size) float32.

    `masks` (B, G, H, W) bool. `soft` is torchvision's: RoIAlign of the mask as it is, without alignment, from 0 to 1. Otherwise
    it is Detectron2's of bit maps: aligned, 1 where at least 0.5. Zeros where the region is not positive.
    """
    if masks.shape[1] == 0:
        return torch.zeros(*regions.positive.shape, size, size, device=masks.device)
    boxes = torch.where(regions.positive[..., None], regions.boxes.float(), torch.nan)  # NaN costs nothing, and reads as 0
    rois = torch.cat([regions.object[..., None].float(), boxes], -1)  # (B, S, 5): the mask, and where to look at it
    # Picture by picture, because masks in float32 are four times as large as the masks.
    pictures = zip(masks, rois, strict=True)
    cut = torch.stack([roi_align(m[:, None].float(), r, size, aligned=not soft)[:, 0] for m, r in pictures])
    return cut if soft else (cut >= 0.5).float()


def mask_loss(logits: Tensor, targets: Tensor, regions: SampledRegions, *, activation: MaskActivation = "sigmoid") -> Tensor:
    """Return the loss of the mask head, the mean over the pixels of the positive regions.

    `targets` (B, S, M, M) from 0 to 1. "sigmoid": `logits` (B, S, K, M, M), or (B, S, 1, M, M) for all classes alike, and the
    binary cross-entropy of the object's class alone, so that classes do not compete. "softmax": `logits` (B, S, K + 1, M, M),
    background last, and the cross-entropy over classes (Mask R-CNN, table 2b).
    """
    logits = logits.reshape(*targets.shape[:2], -1, *targets.shape[2:]).to(compute_dtype(logits))
    if activation == "softmax":
        log = logits.log_softmax(2)
        values = -(targets * _of_class(log[:, :, :-1], regions.labels) + (1 - targets) * log[:, :, -1])
    else:
        values = F.binary_cross_entropy_with_logits(_of_class(logits, regions.labels), targets, reduction="none")
    counted = regions.positive[..., None, None].expand_as(values)
    return mean_over(torch.where(counted, values, 0.0), counted)


def keypoint_loss(logits: Tensor, keypoints: Tensor, regions: SampledRegions, *, normalizer: float | None = None) -> Tensor:
    """Return the loss of the keypoint head: cross-entropy of the one right cell among all cells of each keypoint's heatmap.

    `logits` (B, S, K, M, M); `keypoints` (B, G, K, 3) x, y, visibility of the objects. What counts are the labelled keypoints
    of positive regions that lie in the region (see `ops.encode_keypoints`). Their mean; or their sum divided by `normalizer`,
    such as pictures * regions * positive fraction * K (Detectron2 with NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS off).
    """
    size = logits.shape[-1]
    points = take_rows(keypoints, regions.object).flatten(0, 1)  # (B * S, K, 3)
    cell, counted = encode_keypoints(points, regions.boxes.flatten(0, 1), size)
    counted &= regions.positive.flatten()[:, None]
    rows = logits.reshape(-1, size * size).to(compute_dtype(logits))  # a row a keypoint of a region
    entropy = torch.where(counted.flatten(), F.cross_entropy(rows, cell.flatten(), reduction="none"), 0.0)
    return mean_over(entropy, counted) if normalizer is None else entropy.sum() / normalizer


def _box_distance(deltas: Tensor, target: Tensor, positive: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 distances of the positive rows; where both boxes have no area there is nothing to learn."""
    counted = positive[..., None]
    values = F.smooth_l1_loss(deltas, torch.where(counted, target, 0.0).to(deltas), beta=beta, reduction="none")
    return torch.where(counted, values, 0.0).sum()


def _of_class(values: Tensor, labels: Tensor) -> Tensor:
    """values[b, s, labels[b, s]] of values (B, S, K, ...); the only one if K is 1, the last one for background."""
    place = labels.clamp(max=values.shape[2] - 1)
    index = place.view(*place.shape, *[1] * (values.dim() - 2)).expand(-1, -1, 1, *values.shape[3:])
    return values.gather(2, index).squeeze(2)
