"""How all that is known of a picture moves with a `Warp`: pixels, labels, masks, boxes, keypoints; the unseen is dropped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from delineate.data.raster import decode_rle
from delineate.data.sample import IGNORE, Sample
from delineate.data.warp import Warp
from delineate.skeleton import KeypointSchema


def move_sample(
    sample: Sample,
    warp: Warp,
    *,
    keypoints: KeypointSchema | None = None,
    mirror: bool = True,
    sharp_boxes: bool = False,
) -> Sample:
    """Return the part of `sample` that `warp` shows, with every field moved; its image is float32, not rounded.

    Objects without a pixel in it (without masks: with a box of no area) are dropped, and `instance_map` is renumbered to match.
    Boxes are those around the pixels; with `sharp_boxes`, and a warp without rotation or deformation, the annotated box of an
    object that is wholly seen moves as it is, between pixels. `keypoints` names the partners that change places in a mirror
    image. Where the warp leaves the picture it is mirrored; with `mirror=False` it is 0 there, class ids are IGNORE, and there
    are no objects. `codes` are decoded one at a time, so that no more than one whole mask is in memory, and become `masks`.
    """
    masks = _masks_of(sample.codes, warp) if sample.codes is not None else _labels(sample.masks, warp, False, mirror)
    moved = replace(
        sample,
        image=tv_tensors.Image(_image(sample.image.as_subclass(Tensor), warp, mirror)),
        semantic=_labels(sample.semantic, warp, IGNORE, mirror),
        instance_map=_labels(sample.instance_map, warp, 0, mirror),
        masks=masks,
        codes=None,
        weight=_field(sample.weight, warp, mirror),
        distance=_field(sample.distance, warp, mirror),
    )
    whole = None
    if sample.boxes is not None:
        boxes, whole = _move_boxes(sample.boxes.as_subclass(Tensor), warp)
        moved.boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=warp.patch)  # pyright: ignore[reportCallIssue]
    if sample.keypoints is not None:
        moved.keypoints, moved.visibility = _move_keypoints(sample.keypoints, sample.visibility, warp, keypoints)
    return drop_unseen(moved, whole=whole if sharp_boxes and warp.upright else None)


def drop_unseen(sample: Sample, *, whole: Tensor | None = None) -> Sample:
    """Keep the objects that have a pixel (without masks: a box of some area), and tighten boxes to the pixels.

    `whole` (N,) bool: objects whose boxes stay as they are. Changes and returns `sample`.
    """
    if sample.masks is not None:
        seen = sample.masks.flatten(1).any(1).as_subclass(Tensor)
    elif sample.instance_map is not None:
        count = int(sample.instance_map.max()) if sample.labels is None else len(sample.labels)
        seen = torch.from_numpy(np.bincount(sample.instance_map.numpy().ravel(), minlength=count + 1)[1:] > 0)
    elif sample.boxes is not None:
        seen = (sample.boxes[:, 2:] - sample.boxes[:, :2]).as_subclass(Tensor).amin(1) > 0
    else:
        return sample
    for name in ("masks", "boxes", "labels", "crowd", "keypoints", "visibility"):
        value: Tensor | None = getattr(sample, name)
        if value is not None:
            setattr(sample, name, _wrap(value.as_subclass(Tensor)[seen], value))
    if sample.instance_map is not None:
        numbers = np.concatenate([[0], (seen.cumsum(0) * seen).numpy()]).astype(np.int32)
        sample.instance_map = tv_tensors.Mask(torch.from_numpy(numbers[sample.instance_map.numpy()]))
    if sample.boxes is not None:
        boxes = sample.boxes.as_subclass(Tensor)
        tight = _tight_boxes(sample, boxes)
        kept = tight if whole is None else torch.where(whole[seen][:, None], boxes, tight)
        sample.boxes = _wrap(kept, sample.boxes)
    return sample


def _image(image: Tensor, warp: Warp, mirror: bool) -> Tensor:
    patch = torch.from_numpy(warp.take(image.numpy()).astype(np.float32)) if warp.exact else warp.interpolate(image)
    return patch if mirror else patch * torch.from_numpy(warp.inside)


def _labels(field: tv_tensors.Mask | None, warp: Warp, outside: int, mirror: bool) -> tv_tensors.Mask | None:
    if field is None:
        return None
    patch = warp.take(field.numpy())
    return tv_tensors.Mask(torch.from_numpy(patch if mirror else np.where(warp.inside, patch, patch.dtype.type(outside))))


def _masks_of(codes: tuple[Any, ...], warp: Warp) -> tv_tensors.Mask:
    masks = np.zeros((len(codes), *warp.patch), np.bool_)
    for mask, code in zip(masks, codes, strict=True):
        mask[:] = warp.take(decode_rle(code))
    return tv_tensors.Mask(torch.from_numpy(masks))


def _field(field: tv_tensors.Mask | None, warp: Warp, mirror: bool) -> tv_tensors.Mask | None:
    return None if field is None else tv_tensors.Mask(_image(field.as_subclass(Tensor)[None], warp, mirror)[0])


def _move_keypoints(
    keypoints: tv_tensors.KeyPoints, visibility: Tensor | None, warp: Warp, schema: KeypointSchema | None
) -> tuple[tv_tensors.KeyPoints, Tensor]:
    """Move keypoints; those that leave the patch become unlabelled, and partners change places where left becomes right."""
    points = torch.from_numpy(warp.points(keypoints.numpy().reshape(-1, 2))).reshape(keypoints.shape)
    seen = torch.full(keypoints.shape[:-1], 2, dtype=torch.uint8) if visibility is None else visibility
    height, width = warp.patch
    x, y = points.unbind(-1)
    seen = torch.where((x >= 0) & (x < width) & (y >= 0) & (y < height), seen, 0).to(torch.uint8)
    if warp.mirrors and schema is not None:
        order = list(range(keypoints.shape[-2]))
        for left, right in schema.flip_pairs:
            order[left], order[right] = right, left
        points, seen = points[..., order, :], seen[..., order]
    return tv_tensors.KeyPoints(points, canvas_size=warp.patch), seen  # pyright: ignore[reportCallIssue]


def _move_boxes(boxes: Tensor, warp: Warp) -> tuple[Tensor, Tensor]:
    """Return the smallest boxes around the moved outlines, (N, 4) xyxy cut at the patch's border, and which were not cut."""
    t = np.linspace(0, 1, 9, dtype=np.float32)  # places along each side: an elastic deformation bends it
    zero, one = np.zeros_like(t), np.ones_like(t)
    outline = np.stack([np.concatenate([t, one, t, zero]), np.concatenate([zero, t, one, t])], -1)  # (36, 2) of the unit box
    corners = boxes.numpy().astype(np.float32)
    points = corners[:, None, :2] + outline * (corners[:, None, 2:] - corners[:, None, :2])  # (N, 36, 2)
    moved = warp.points(points.reshape(-1, 2)).reshape(points.shape)
    height, width = warp.patch
    limits = np.array([width, height], np.float32)
    low, high = moved.min(1), moved.max(1)
    whole = ((low >= -0.01) & (high <= limits + 0.01)).all(1)
    cut = np.concatenate([np.clip(low, 0, limits), np.clip(high, 0, limits)], -1)
    return torch.from_numpy(cut), torch.from_numpy(whole)


def _tight_boxes(sample: Sample, boxes: Tensor) -> Tensor:
    """Return the boxes around the pixels of the objects, (N, 4); `boxes` themselves where the pixels are not known."""
    if sample.masks is not None:
        corners = masks_to_boxes(sample.masks.as_subclass(Tensor))
    elif sample.instance_map is not None:
        places = ndimage.find_objects(sample.instance_map.numpy())
        corners = torch.tensor([(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in places]).reshape(-1, 4)
    else:
        return boxes
    return (corners + torch.tensor([0, 0, 1, 1])).to(boxes.dtype)


def _wrap(value: Tensor, like: Tensor) -> Any:
    return tv_tensors.wrap(value, like=like)  # pyright: ignore[reportCallIssue]
