"""Boundary IoU (Cheng et al. 2021): overlap of what lies within a few pixels of the outline of two masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delineate.errors import DataError
from delineate.metrics.class_masks import Mask, as_masks, bounding_box, class_masks
from delineate.metrics.overlap import Absent, Overlap, absent_score, nan_mean
from delineate.metrics.packed import PackedMasks, count_bits
from delineate.metrics.scores import Presence, Scores
from delineate.metrics.sums import StreamingSums

DILATION_RATIO = 0.02
"""Width of the boundary region as a share of the picture's diagonal, as in the paper for COCO, LVIS and Cityscapes."""

RLE = dict[str, Any]  # COCO's run-length code: {"size": [H, W], "counts": bytes or str}


def boundary_width(shape: tuple[int, ...], dilation_ratio: float = DILATION_RATIO) -> int:
    """Pixels d that the boundary region reaches inward, in a picture of `shape` (H, W): max(1, round(ratio * diagonal)).

    >>> boundary_width((480, 640)), boundary_width((1024, 2048)), boundary_width((8, 8))
    (16, 46, 1)
    """
    return max(1, round(dilation_ratio * math.sqrt(sum(side**2 for side in shape))))


def boundary_region(mask: NDArray[Any], width: int) -> Mask:
    """Return the pixels of a mask within `width` pixels of its outline: the mask without `width` erosions by 3 x 3.

    `mask` (H, W), bool or integers of which all but 0 are inside; returns (H, W) bool. Outside the picture is outside the mask,
    so a mask that the picture cuts has boundary there. A `width` >= 1; distance is that of the chessboard.

    >>> boundary_region(np.ones((4, 5), bool), 1).sum()
    np.int64(14)
    """
    if width < 1 or mask.ndim != 2:
        raise ValueError(f"mask of shape {mask.shape}, width {width}: expected a mask (H, W) and a width of at least 1")
    region = mask.astype(bool)
    box = bounding_box(region)
    packed = PackedMasks.pack(region[box], 2 * width)
    region[box] = packed.without(packed.eroded(width)).unpack()
    return region


def boundary_overlap(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    *,
    dilation_ratio: float = DILATION_RATIO,
    ignore: NDArray[Any] | None = None,
) -> Overlap[NDArray[np.int64]]:
    """Count what two masks share: fields of shape (2,), of the masks and of their boundary regions.

    Masks (H, W), bool or integers of which all but 0 are inside. Pixels where `ignore` is true are taken out of both first.
    Raises `DataError` where shapes differ.
    """
    p, t = as_masks(prediction, truth, ignore)
    if p.ndim != 2:
        raise DataError(f"masks of shape {p.shape}; boundary IoU is defined for pictures (H, W)")
    width = boundary_width(p.shape, dilation_ratio)
    box = bounding_box(p | t)
    masks = PackedMasks.pack(np.stack([p[box], t[box]]), 2 * width)
    regions = masks.without(masks.eroded(width))
    of_p, of_t = (np.stack([masks.words[side], regions.words[side]]) for side in (0, 1))
    return Overlap(count_bits(of_p & of_t), count_bits(of_p), count_bits(of_t))


def boundary_iou(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    *,
    dilation_ratio: float = DILATION_RATIO,
    ignore: NDArray[Any] | None = None,
    absent: Absent = "nan",
) -> float:
    """IoU of the boundary regions of two masks, pixels of both over pixels of either; `absent` where both masks are empty.

    Arguments as in `boundary_overlap`. Source: Cheng et al. 2021, "Boundary IoU".

    >>> truth = np.zeros((10, 10), bool)
    >>> truth[2:8, 2:8] = True  # 36 pixels, 20 of them boundary
    >>> boundary_iou(np.roll(truth, 1, axis=0), truth)
    0.3333333333333333
    """
    return float(
        boundary_overlap(prediction, truth, dilation_ratio=dilation_ratio, ignore=ignore).iou(empty=absent_score(absent))[1]
    )


def min_boundary_iou(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    *,
    dilation_ratio: float = DILATION_RATIO,
    ignore: NDArray[Any] | None = None,
    absent: Absent = "nan",
) -> float:
    """The smaller of mask IoU and boundary IoU, which boundary AP and boundary PQ use; `absent` where both masks are empty.

    Arguments as in `boundary_overlap`. Boundary IoU alone does not see what is wrong deep inside a mask.
    Source: Cheng et al. 2021, "Boundary IoU".

    >>> truth = np.ones((20, 20), bool)
    >>> hollow = boundary_region(truth, 1)
    >>> boundary_iou(hollow, truth), min_boundary_iou(hollow, truth)
    (1.0, 0.19)
    """
    overlap = boundary_overlap(prediction, truth, dilation_ratio=dilation_ratio, ignore=ignore)
    return float(overlap.iou(empty=absent_score(absent)).min())


class BoundaryScores(StreamingSums):
    """Boundary IoU of classes over pictures, from counts that stream and merge.

    `counts` (..., K, 2, 3) int64: for each class, of masks and of boundary regions: pixels shared, predicted and true, added up
    over pictures. The width of the regions is that of each picture. Leading axes, one entry a picture for example, stay in the
    scores (`from_counts`). `presence` and `absent` as in `ConfusionMatrix`. Pixels whose truth is `ignore_index` are taken out
    of both maps first, so that the edge of an ignored area is an outline of both.

    >>> scores = BoundaryScores(2)
    >>> truth = np.zeros((10, 10), int)
    >>> truth[2:8, 2:8] = 1
    >>> picture = scores.update(np.roll(truth, 1, axis=0), truth)
    >>> scores.boundary_iou().round(4), scores.min_boundary_iou().round(4)
    (array([0.7143, 0.3333]), array([0.7143, 0.3333]))
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255, *, dilation_ratio: float = DILATION_RATIO) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1")
        self.num_classes, self.ignore_index, self.dilation_ratio = num_classes, ignore_index, dilation_ratio
        super().__init__(
            np.zeros((num_classes, 2, 3), np.int64), {"num_classes": num_classes, "dilation_ratio": dilation_ratio}
        )

    @classmethod
    def from_counts(cls, counts: NDArray[Any]) -> BoundaryScores:
        """Wrap counts (..., K, 2, 3): of all processes, of single pictures, or sums that a bootstrap draws."""
        return cls(counts.shape[-3] if counts.ndim > 2 else 1).with_sums(counts)

    @property
    def counts(self) -> NDArray[Any]:
        """The sums, which are whole numbers."""
        return self.sums

    def update(self, prediction: NDArray[Any], truth: NDArray[Any]) -> BoundaryScores:
        """Add one picture and return the scores of that picture alone; maps as in `class_masks`, and its errors."""
        picture = self.with_sums(np.zeros_like(self.sums))
        for k, p, t in class_masks(prediction, truth, self.num_classes, self.ignore_index):
            picture.add_mask(k, p, t)
        self.merge(picture)
        return picture

    def add_mask(self, class_id: int, prediction: Mask, truth: Mask) -> None:
        """Add the masks (H, W) of one class in one picture, ignored pixels taken out."""
        overlap = boundary_overlap(prediction, truth, dilation_ratio=self.dilation_ratio)
        self.sums[class_id] += np.stack([overlap.intersection, overlap.prediction, overlap.truth], axis=-1)

    @property
    def overlap(self) -> Overlap[NDArray[Any]]:
        """Intersection and cardinalities, (..., K, 2): of masks and of boundary regions."""
        return Overlap(self.counts[..., 0], self.counts[..., 1], self.counts[..., 2])

    def boundary_iou(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """IoU of the boundary regions of each class, (..., K)."""
        return self._of_existing(self.overlap.iou()[..., 1], absent, presence)

    def min_boundary_iou(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """The smaller of mask IoU and boundary IoU of each class, (..., K)."""
        return self._of_existing(self.overlap.iou().min(axis=-1), absent, presence)

    def mean_boundary_iou(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """Mean of `boundary_iou` over the classes that are not NaN, (...)."""
        return nan_mean(self.boundary_iou(absent=absent, presence=presence))

    def mean_min_boundary_iou(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """Mean of `min_boundary_iou` over the classes that are not NaN, (...)."""
        return nan_mean(self.min_boundary_iou(absent=absent, presence=presence))

    def _of_existing(self, scores: Scores, absent: Absent, presence: Presence) -> Scores:
        if presence not in ("union", "gt"):
            raise ValueError(f"presence is {presence!r}, expected 'union' or 'gt'")
        exists = (self.overlap.union if presence == "union" else self.overlap.truth)[..., 0] > 0
        return np.where(exists, scores, absent_score(absent))


def boundary_rles(masks: Sequence[RLE | NDArray[Any]], *, dilation_ratio: float = DILATION_RATIO) -> list[RLE]:
    """Return the boundary regions of instance masks, as COCO's compressed run lengths.

    Each mask is a compressed run-length code or an array (H, W); the width is that of its picture.
    """
    coco = _coco_masks()

    regions = []
    for mask in masks:
        dense = np.asfortranarray(coco.decode(mask) if isinstance(mask, dict) else mask)
        # Run lengths go down the columns: the transpose has rows in one piece, and a square erodes it alike.
        region = boundary_region(dense.T, boundary_width(dense.shape, dilation_ratio))
        regions.append(coco.encode(region.T.view(np.uint8)))
    return regions


def min_boundary_iou_matrix(
    detections: Sequence[RLE],
    truths: Sequence[RLE],
    crowd: Sequence[bool | int] | None = None,
    *,
    dilation_ratio: float = DILATION_RATIO,
) -> NDArray[np.float64]:
    """min(mask IoU, boundary IoU) of each pair, (D, G): the IoU of boundary AP, from compressed run lengths of one picture.

    Where `crowd` (G,) is true the entry is COCO's crowd IoU of the masks, intersection / detection, as in boundary-iou-api.

    >>> from pycocotools.mask import encode
    >>> one, other = (encode(np.asfortranarray(np.eye(6, dtype=np.uint8)[rows])) for rows in (slice(6), slice(None, None, -1)))
    >>> min_boundary_iou_matrix([one], [one, other])
    array([[1., 0.]])
    """
    coco = _coco_masks()

    crowd = [0] * len(truths) if crowd is None else [int(c) for c in crowd]
    if not len(detections) or not len(truths):
        return np.zeros((len(detections), len(truths)))
    ious = np.asarray(coco.iou(list(detections), list(truths), crowd))
    regions = [boundary_rles(masks, dilation_ratio=dilation_ratio) for masks in (detections, truths)]
    of_boundaries = np.asarray(coco.iou(*regions, crowd))
    return np.where(np.array(crowd, bool), ious, np.minimum(ious, of_boundaries))


def _coco_masks() -> Any:
    from pycocotools import mask

    return mask
