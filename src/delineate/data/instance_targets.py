"""From pictures with their objects to an `InstanceBatch`: what a detector learns from, and what it must not be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from delineate.data.batch import InstanceBatch
from delineate.data.dataset import Dataset, Instance, Record
from delineate.data.decode import image_size
from delineate.data.load import has_extent, load_panoptic, load_sample, outline_rle
from delineate.data.panoptic import stuff_map, things_of
from delineate.data.sample import IGNORE, Sample
from delineate.errors import DataError
from delineate.ops.instances import InstanceTargets

MULTIPLE = 32
"""Heights and widths of batches are multiples of this, the stride of a detector's coarsest map."""


def load_objects(
    dataset: Dataset, record: Record, *, masks: bool = True, keypoints: bool = False, stuff: bool = False
) -> Sample:
    """Decode a picture with its objects: boxes, labels, crowd, with `keypoints` those, and with `masks` their outlines.

    `stuff`: also `semantic`, which is then the `stuff_map` of a panoptic picture; `DataError` where there is none.

    Outlines are `codes`, or `instance_map` where the data have such a map: never (N, H, W), which 300 objects on 12 megapixels
    would make 3.6 GB. Objects without extent are left out, as `load_sample` does.
    """
    semantic = None
    if record.label_map is not None and record.label_map.kind == "panoptic":
        picture = load_panoptic(record.label_map, record.image, record.size or image_size(record.image, record.frame))
        record = replace(record, label_map=None, instances=things_of(picture, len(dataset.classes)))
        semantic = tv_tensors.Mask(torch.from_numpy(stuff_map(picture, len(dataset.classes)))) if stuff else None
    elif stuff:
        raise DataError(f"{record.image}: has no stuff beside its objects; give COCO's panoptic annotations, which have some")
    want = {"boxes", *(["keypoints"] if keypoints else [])}
    if record.instances is None:
        return load_sample(dataset, record, want | {"instance_map"} if masks else want)
    sample = replace(load_sample(dataset, record, want), semantic=semantic)
    if not masks:
        return sample
    outlined = [(_outline(instance), instance) for instance in record.instances if has_extent(instance)]
    return replace(sample, codes=tuple(outline_rle(outline, i, sample.size, record) for outline, i in outlined))


def make_instance_batch(pictures: Sequence[tuple[Tensor, Sample]], *, keypoint_offset: float = 0.0) -> InstanceBatch:
    """Join pictures (C, h, w), as a network reads them, and their objects into one batch.

    Zeros fill up pictures, masks and rows of objects: H and W are the largest of the pictures, rounded up to a multiple of 32,
    G the largest number of objects, at least 1. Boxes are cut at the picture's border; those without area (and NaN) are left
    out. Crowd regions stay, as crowd. Keypoints that are not finite or lie outside the picture count as not labelled. Classes
    of pixels are filled up with 255, which no loss counts.
    """
    kept = [(image, _proper(sample)) for image, sample in pictures]
    batch, rows = len(kept), max(1, *(_count(sample) for _, sample in kept)) if kept else 1
    height, width = (-(-max(image.shape[d] for image, _ in kept) // MULTIPLE) * MULTIPLE for d in (-2, -1))
    first = kept[0][1]
    images = torch.zeros(batch, kept[0][0].shape[0], height, width)
    boxes = torch.zeros(batch, rows, 4)
    labels = torch.zeros(batch, rows, dtype=torch.int64)
    valid, crowd = torch.zeros(2, batch, rows, dtype=torch.bool)
    masks = None if first.masks is None else torch.zeros(batch, rows, height, width, dtype=torch.bool)
    points = None if first.keypoints is None else torch.zeros(batch, rows, first.keypoints.shape[1], 3)
    semantic = None if first.semantic is None else torch.full((batch, height, width), IGNORE)
    for b, (image, sample) in enumerate(kept):
        n, (h, w) = _count(sample), image.shape[-2:]
        images[b, :, :h, :w] = image
        boxes[b, :n], labels[b, :n], crowd[b, :n] = sample.boxes, sample.labels, sample.crowd  # pyright: ignore
        valid[b, :n] = True
        if masks is not None:
            masks[b, :n, :h, :w] = sample.masks  # pyright: ignore[reportArgumentType]
        if points is not None:
            points[b, :n] = _labelled_points(sample)
        if semantic is not None:
            semantic[b, :h, :w] = sample.semantic  # pyright: ignore[reportArgumentType]
    sizes = torch.tensor([image.shape[-2:] for image, _ in kept])
    targets = InstanceTargets(boxes, labels, valid, crowd, masks, points, semantic)
    return InstanceBatch(images, sizes, targets, tuple(sample.name for _, sample in kept))


def _outline(instance: Instance) -> Any:
    """The outline of an object; of a crowd region that has none, its box."""
    if instance.segmentation is not None or instance.box is None:
        return instance.segmentation or ()
    x0, y0, x1, y1 = instance.box
    return ([x0, y0, x1, y0, x1, y1, x0, y1],)


def _proper(sample: Sample) -> Sample:
    """The sample with its boxes cut at the picture's border, and without the objects whose box then has no area."""
    assert sample.boxes is not None
    height, width = sample.size
    boxes = sample.boxes.as_subclass(Tensor).float()
    boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]).float())
    good = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)  # not so for NaN
    fields = {"boxes": boxes}
    for name in ("labels", "crowd", "masks", "keypoints", "visibility"):
        value: Tensor | None = getattr(sample, name)
        if value is not None:
            fields[name] = value.as_subclass(Tensor)
    return replace(sample, **{name: value[good] for name, value in fields.items()})  # pyright: ignore[reportArgumentType]


def _labelled_points(sample: Sample) -> Tensor:
    """Keypoints (N, K, 3) x, y, visibility; those that are not labelled are 0, 0, 0."""
    assert sample.keypoints is not None
    assert sample.visibility is not None
    height, width = sample.size
    x, y = sample.keypoints.as_subclass(Tensor).unbind(-1)
    inside = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)  # not so for NaN
    points = torch.stack([x, y, sample.visibility.as_subclass(Tensor).float()], -1)
    return torch.where((inside & (sample.visibility > 0))[..., None], points, 0.0)


def _count(sample: Sample) -> int:
    return 0 if sample.labels is None else len(sample.labels)
