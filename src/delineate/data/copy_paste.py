"""Copy-paste: objects of another picture put in front of this one's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from delineate.data.moving import drop_unseen
from delineate.data.sample import Sample


@dataclass(slots=True)
class _Objects:
    """N objects as plain tensors."""

    masks: Tensor  # (N, H, W)
    boxes: Tensor  # (N, 4)
    whole: Tensor  # (N,) bool: nothing of the object was cut off or covered, so its box is still right
    labels: Tensor
    crowd: Tensor
    points: Tensor | None  # (N, K, 2)
    visibility: Tensor | None  # (N, K)


def copy_paste(sample: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """Return `sample` with a random half of the objects of `other` in front, upper left corners together.

    Both have images of the same dtype, and masks. Pasted pixels are copied as they are. Masks of `sample` lose what is covered,
    boxes of the objects concerned become those around the pixels that remain, objects that are wholly covered are dropped, and
    covered keypoints become hidden ones. Crowd regions are never pasted. Objects that reach beyond `sample` are cut there.

    Source: Ghiasi et al. 2021, "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation".
    """
    assert other.crowd is not None
    chosen = torch.from_numpy(rng.random(len(other.crowd)) < 0.5) & ~other.crowd
    pasted = _cut(_objects(other), chosen, sample.size)
    front = pasted.masks.any(0)  # (H, W)
    if not front.any():
        return sample
    image = sample.image.as_subclass(Tensor).clone()
    h, w = min(sample.size[0], other.size[0]), min(sample.size[1], other.size[1])
    part = front[:h, :w]
    image[:, :h, :w][:, part] = other.image.as_subclass(Tensor)[:, :h, :w][:, part]
    pasted_on = replace(sample, image=tv_tensors.Image(image))
    if sample.semantic is not None:  # of panoptic data: 0 stands for all objects
        pasted_on.semantic = tv_tensors.Mask(sample.semantic.as_subclass(Tensor).masked_fill(front, 0))
    return _join(pasted_on, _covered(_objects(sample), front), pasted)


def _objects(sample: Sample) -> _Objects:
    assert sample.masks is not None
    assert sample.boxes is not None
    assert sample.labels is not None
    assert sample.crowd is not None
    points = None if sample.keypoints is None else sample.keypoints.as_subclass(Tensor)
    visibility = None if sample.visibility is None else sample.visibility.as_subclass(Tensor)
    masks, boxes = sample.masks.as_subclass(Tensor), sample.boxes.as_subclass(Tensor)
    return _Objects(masks, boxes, torch.ones(len(boxes), dtype=torch.bool), sample.labels, sample.crowd, points, visibility)


def _cut(objects: _Objects, chosen: Tensor, size: tuple[int, int]) -> _Objects:
    """The chosen objects on a canvas of `size`."""
    (height, width), boxes = size, objects.boxes[chosen]
    masks = torch.zeros(int(chosen.sum()), height, width, dtype=torch.bool)
    seen = objects.masks[chosen, :height, :width]
    masks[:, : seen.shape[1], : seen.shape[2]] = seen
    whole = (boxes[:, 2] <= width) & (boxes[:, 3] <= height)
    points, visibility = objects.points, objects.visibility
    if points is not None and visibility is not None:
        points = points[chosen]
        inside = (points[..., 0] < width) & (points[..., 1] < height)
        visibility = torch.where(inside, visibility[chosen], 0).to(torch.uint8)
    return _Objects(masks, boxes, whole, objects.labels[chosen], objects.crowd[chosen], points, visibility)


def _covered(objects: _Objects, front: Tensor) -> _Objects:
    """The objects behind the pixels `front` (H, W)."""
    whole = ~(objects.masks & front).flatten(1).any(1)
    visibility = objects.visibility
    if objects.points is not None and visibility is not None:
        x, y = objects.points.long().unbind(-1)  # the pixel that a point lies in
        behind = front[y.clamp(0, front.shape[0] - 1), x.clamp(0, front.shape[1] - 1)]
        visibility = torch.where(behind & (visibility == 2), 1, visibility).to(torch.uint8)
    return replace(objects, masks=objects.masks & ~front, whole=whole, visibility=visibility)


def _join(sample: Sample, behind: _Objects, front: _Objects) -> Sample:
    """`sample` with the objects of both, without those that have no pixel."""
    boxes = torch.cat([behind.boxes, front.boxes])
    joined = replace(
        sample,
        masks=tv_tensors.Mask(torch.cat([behind.masks, front.masks])),
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=sample.size),  # pyright: ignore[reportCallIssue]
        labels=torch.cat([behind.labels, front.labels]),
        crowd=torch.cat([behind.crowd, front.crowd]),
    )
    if behind.points is not None and front.points is not None:
        points = torch.cat([behind.points, front.points])
        joined.keypoints = tv_tensors.KeyPoints(points, canvas_size=sample.size)  # pyright: ignore[reportCallIssue]
    if behind.visibility is not None and front.visibility is not None:
        joined.visibility = torch.cat([behind.visibility, front.visibility])
    return drop_unseen(joined, whole=torch.cat([behind.whole, front.whole]))
