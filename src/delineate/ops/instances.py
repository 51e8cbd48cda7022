"""Objects of several pictures in tensors of fixed shape: what a detector learns from, and what it finds.

Row n of picture b counts only where `valid[b, n]`; all others are zero. So pictures with few objects, many or none are one
batch, and nothing that is computed from it has a shape that depends on the data.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class InstanceTargets(NamedTuple):
    """The true objects of B pictures, at most G in each; coordinates are pixels of the network's input."""

    boxes: Tensor  # (B, G, 4) float32 xyxy
    labels: Tensor  # (B, G) int64, 0 to classes - 1
    valid: Tensor  # (B, G) bool
    crowd: Tensor  # (B, G) bool: a valid row that stands for a group: neither to be found nor background
    masks: Tensor | None = None  # (B, G, H, W) bool, H and W those of the batch
    keypoints: Tensor | None = None  # (B, G, K, 3) float32 x, y, visibility: 0 not labelled, 1 hidden, 2 visible
    semantic: Tensor | None = None  # (B, H, W) int64 class ids, 255 = not counted; for panoptic networks


class Detections(NamedTuple):
    """What a detector found in B pictures, at most D objects in each, best first; pixels of the network's input."""

    boxes: Tensor  # (B, D, 4) float32 xyxy
    scores: Tensor  # (B, D) float32
    labels: Tensor  # (B, D) int64, 0 to classes - 1
    valid: Tensor  # (B, D) bool, true ones first
    masks: Tensor | None = None  # (B, D, S, S) float32 probabilities over the box
    keypoints: Tensor | None = None  # (B, D, K, 2) float32 x, y
    keypoint_logits: Tensor | None = None  # (B, D, K) float32: torchvision's score
    keypoint_scores: Tensor | None = None  # (B, D, K) float32: Detectron2's score
    semantic: Tensor | None = None  # (B, C, H / 4, W / 4) logits, of panoptic networks
