"""Which true object each box of a detector learns from, and which of the boxes it learns from at all.

Everything has a fixed number of rows and a mask of those that count, so no shape depends on the data, and pictures without
objects are as good as others. The rules are those of Faster R-CNN (arXiv:1506.01497, section 3.1.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from delineate.ops.boxes import box_area
from delineate.ops.instances import InstanceTargets

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
CROWD_OVERLAP = 0.7  # Detectron's CROWD_FILTER_THRESH
_OBJECTS_AT_A_TIME = 16  # so that memory does not grow with the number of objects


class Matches(NamedTuple):
    """What each of P boxes of B pictures is for training."""

    object: Tensor  # (B, P) int64, row in the picture's targets that it overlaps most; 0 where it overlaps none
    kind: Tensor  # (B, P) int8: POSITIVE, NEGATIVE or IGNORED


class Sample(NamedTuple):
    """Rows drawn from each of B pictures, positive ones first."""

    rows: Tensor  # (B, S) int64, row among the picture's boxes; 0 where not valid
    valid: Tensor  # (B, S) bool, true ones first


class SampledRegions(NamedTuple):
    """The boxes from which the heads learn, S in each of B pictures, positive ones first, then negative, then nothing."""

    boxes: Tensor  # (B, S, 4) float32 xyxy
    valid: Tensor  # (B, S) bool
    positive: Tensor  # (B, S) bool
    object: Tensor  # (B, S) int64, row in the picture's targets; it means something where positive
    labels: Tensor  # (B, S) int64, the object's class; the number of classes where not positive: background is last
    targets: Tensor  # (B, S, 4) the object's box, where positive

    def first(self, count: int) -> SampledRegions:
        """Return the first `count` rows of each picture: all that are positive, if no more can be."""
        return SampledRegions(*(field[:, :count] for field in self))


Sampler = Callable[[Tensor], Sample]


@torch.no_grad()
def match_boxes(
    boxes: Tensor,
    targets: InstanceTargets,
    *,
    valid: Tensor | None = None,
    low: float,
    high: float,
    allow_low_quality: bool = False,
    crowd_overlap: float | None = CROWD_OVERLAP,
) -> Matches:
    """Return the object that each box overlaps most, and by their IoU whether the box is positive, negative or ignored.

    `boxes` (B, P, 4), or (P, 4) for all pictures, xyxy; `valid` (B, P) bool, False for rows that are nothing: they are ignored,
    as are boxes that are not finite. IoU >= `high` is positive, < `low` negative, between them ignored. With
    `allow_low_quality` the boxes that overlap an object most are positive too, whatever the IoU, and still learn from the
    object that they overlap most themselves, as in torchvision and Detectron2; an object that overlaps no box matches none,
    where these match it with every box that overlaps nothing. Crowd rows are no objects, and a negative box that has at
    least the share `crowd_overlap` of its own area in one of them is ignored, as in Detectron and by MMDetection's
    ignore_iof_thr; None: it stays negative, as in torchvision and Detectron2, which drop crowds.

    >>> truth = torch.tensor([[[0.0, 0, 10, 10]]])
    >>> row = torch.ones(1, 1, dtype=torch.bool)
    >>> targets = InstanceTargets(truth, torch.tensor([[3]]), row, ~row)
    >>> match_boxes(torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 5], [20, 20, 30, 30]]), targets, low=0.3, high=0.7).kind.tolist()
    [[1, -1, 0]]
    """
    boxes = boxes.expand(len(targets.boxes), -1, -1)
    usable = boxes.isfinite().all(-1)  # (B, P)
    usable = usable if valid is None else usable & valid
    boxes = torch.where(usable[..., None], boxes, 0.0)  # a box without area overlaps nothing
    objects = torch.where(targets.valid[..., None], targets.boxes, 0.0)
    best = in_crowd = boxes.new_zeros(usable.shape)
    index = torch.zeros_like(usable, dtype=torch.int64)
    nearest = torch.zeros_like(usable)  # no other box overlaps some object more
    for first in range(0, objects.shape[1], _OBJECTS_AT_A_TIME):
        part = slice(first, first + _OBJECTS_AT_A_TIME)
        crowd = targets.crowd[:, part, None]
        overlap = _overlaps(objects[:, part], boxes, crowd)  # (B, g, P)
        iou = torch.where(crowd, 0.0, overlap)
        value, place = iou.max(1)
        index = torch.where(value > best, place + first, index)
        best = torch.maximum(best, value)
        if allow_low_quality:
            most = iou.amax(2, keepdim=True)
            nearest |= ((iou == most) & (most > 0)).any(1)
        if crowd_overlap is not None:
            in_crowd = torch.maximum(in_crowd, torch.where(crowd, overlap, 0.0).amax(1))
    positive = (best >= high) | nearest
    negative = (best < low) & ~positive
    if crowd_overlap is not None:
        negative &= in_crowd < crowd_overlap
    kind = positive.to(torch.int8) - (~positive & ~negative).to(torch.int8)
    return Matches(index, torch.where(usable, kind, IGNORED))


@torch.no_grad()
def sample_matches(kind: Tensor, count: int, positive_fraction: float, generator: torch.Generator | None = None) -> Sample:
    """Draw at most `count` boxes a picture, at most int(count * positive_fraction) of them positive, the rest negative.

    `kind` (B, P) as in `Matches`. Where there are too few positives, negatives take their place; where there are too few of
    these, rows remain that are not valid. Each subset is as probable as any other. The rows are (B, count), in random order
    among the positive and among the negative ones.

    >>> sample_matches(torch.tensor([[1, -1, 0]]), 4, 0.5)
    Sample(rows=tensor([[0, 2, 0, 0]]), valid=tensor([[ True,  True, False, False]]))
    """
    chance = torch.rand(kind.shape, generator=generator, device=kind.device)
    negative = torch.where(kind == NEGATIVE, chance, -1.0)
    positive = torch.where(kind == POSITIVE, chance, -1.0)
    value, place = positive.topk(min(int(count * positive_fraction), kind.shape[1]))
    rank = negative.scatter(1, place, torch.where(value >= 0, value + 2, negative.gather(1, place)))  # the positive before all
    value, index = rank.topk(min(count, kind.shape[1]))
    valid = value >= 0
    missing = (0, count - valid.shape[1])
    return Sample(F.pad(torch.where(valid, index, 0), missing), F.pad(valid, missing))


@torch.no_grad()
def sample_regions(
    boxes: Tensor,
    valid: Tensor,
    targets: InstanceTargets,
    classes: int,
    sampler: Sampler,
    *,
    threshold: float = 0.5,
    crowd_overlap: float | None = CROWD_OVERLAP,
) -> SampledRegions:
    """Return the regions that the heads learn from: proposals and the true boxes themselves, matched and drawn by `sampler`.

    `boxes` (B, P, 4) xyxy are the proposals, `valid` (B, P) which of them are any. A box is positive if its IoU with an object
    is at least `threshold`; for `crowd_overlap` see `match_boxes`. `sampler` takes kinds (B, P + G) and gives a `Sample`, as
    `sample_matches` does.
    """
    true = targets.valid & ~targets.crowd & (targets.boxes[..., 2:] > targets.boxes[..., :2]).all(-1)
    boxes, valid = torch.cat([boxes.detach(), targets.boxes], 1), torch.cat([valid, true], 1)
    matches = match_boxes(boxes, targets, valid=valid, low=threshold, high=threshold, crowd_overlap=crowd_overlap)
    sample = sampler(matches.kind)
    boxes, index, kind = (take_rows(field, sample.rows) for field in (boxes, *matches))
    positive = sample.valid & (kind == POSITIVE)
    labels = torch.where(positive, take_rows(targets.labels, index), classes)
    return SampledRegions(boxes, sample.valid, positive, index, labels, take_rows(targets.boxes, index))


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Return values[b, index[b, s]] (B, S, ...) of `values` (B, N, ...) and `index` (B, S); zeros if N is 0.

    >>> take_rows(torch.tensor([[5, 6, 7]]), torch.tensor([[2, 0]]))
    tensor([[7, 5]])
    """
    if values.shape[1] == 0:
        return values.new_zeros(*index.shape, *values.shape[2:])
    picture = torch.arange(len(index), device=index.device)[:, None]
    return values[picture, index]


def _overlaps(objects: Tensor, boxes: Tensor, crowd: Tensor) -> Tensor:
    """IoU (B, G, P) of objects (B, G, 4) and boxes (B, P, 4); for crowds (B, G, 1) the share of the box that lies in them."""
    low = torch.maximum(objects[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(objects[:, :, None, 2:], boxes[:, None, :, 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    common, own = width * height, box_area(boxes)[:, None]
    whole = torch.where(crowd, own, box_area(objects)[..., None] + own - common)
    return common / whole.clamp(min=1e-30)  # 0 where neither has any area
