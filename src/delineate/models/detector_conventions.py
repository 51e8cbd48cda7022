"""`DetectorConventions`: the small choices in which the published implementations of Mask R-CNN differ.

None of them is better than the others, but weights trained with one give other results with the rest. The values are those of
torchvision 0.29, Detectron2 (commit 02b5c4e) and MMDetection 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DetectorConventions:
    """How boxes become anchors, features, targets and losses. The defaults are Detectron2's."""

    # Anchors
    round_anchors: bool = False  # corners to whole pixels
    size_major_anchors: bool = True  # where a level has several sizes: all shapes of the first size come first
    stride_from_grid: bool = False  # anchors lie (picture // cells) pixels apart, or 2^level

    # Proposals
    rank_by_probability: bool = False  # proposals of all levels are ordered by sigmoid, which has more ties than logits
    min_proposal_size: float = 1e-30  # shortest side, pixels; here: boxes without area are dropped
    min_detection_size: float = 0.0
    proposals_in_training: int = 1000  # after suppression, with a pyramid

    # Features of a region
    aligned: bool = True  # RoIAlign's cell centres at 0.5
    sampling_ratio: int = 0  # points a bin and axis; 0: as many as the bin has cells
    canonical_size: float = 224.0  # a box of this size is read from level `canonical_level`
    canonical_level: int = 4
    level_epsilon: float = 1e-8
    level_epsilon_inside: bool = True  # of the logarithm

    # Losses
    rpn_beta: float = 0.0  # where smooth L1 turns from a parabola to a line; 0: L1
    box_beta: float = 0.0
    rpn_per_sample: bool = False  # RPN losses are divided by the number of anchors sampled; or by how many may be, full or not
    soft_mask_targets: bool = False  # the resampled mask as it is, read without alignment; or cut at 0.5

    # Pixels
    keypoint_offset: float = 0.5  # added to keypoints of a picture before it is resized, taken off predicted ones
    keypoint_score: Literal["softmax", "logit"] = "softmax"
    paste: Literal["detectron2", "torchvision"] = "detectron2"  # how masks are enlarged to pictures: see ops.paste_masks


DETECTOR_CONVENTIONS: dict[str, DetectorConventions] = {
    "detectron2": DetectorConventions(),
    "mmdetection": DetectorConventions(
        size_major_anchors=False,
        rank_by_probability=True,
        canonical_size=56.0,
        canonical_level=2,
        level_epsilon=1e-6,
        rpn_per_sample=True,
        keypoint_offset=0.0,
    ),
    "torchvision": DetectorConventions(
        round_anchors=True,
        size_major_anchors=False,
        stride_from_grid=True,
        rank_by_probability=True,
        min_proposal_size=1e-3,
        min_detection_size=1e-2,
        proposals_in_training=2000,
        aligned=False,
        sampling_ratio=2,
        level_epsilon=1e-6,
        level_epsilon_inside=False,
        rpn_beta=1 / 9,
        box_beta=1 / 9,
        rpn_per_sample=True,
        soft_mask_targets=True,
        keypoint_offset=0.0,
        keypoint_score="logit",
        paste="torchvision",
    ),
}
