"""What a detector can learn from the objects of a data set: what is said when a training starts, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable

from delineate.data.dataset import Dataset, Instance, Record
from delineate.data.formats.survey import evenly
from delineate.data.object_faults import (
    in_first_pixel,
    is_degenerate,
    object_name,
    place_faults,
)
from delineate.errors import DataError
from delineate.models.instance import InstanceModel

_LOOKED_AT = 2000  # objects whose boxes are compared with their outlines
_ANY = (1 << 30, 1 << 30)  # the size of a picture whose annotation does not state it


def truth_notes(dataset: Dataset, *, masks: bool) -> tuple[str, ...]:
    """What is odd about the training's objects, with counts; `data check` lists each of them. `masks`: outlines are learned."""
    objects = [(record, number, instance) for record in dataset.splits["train"] for number, instance in _numbered(record)]
    kept = [(r, n, i) for r, n, i in objects if not is_degenerate(i, r.size, masks=masks)]
    notes = []
    if left_out := len(objects) - len(kept):
        notes.append(f"{left_out} of {len(objects)} objects are left out of the training: box or outline without extent")
    sample, found = evenly(kept, _LOOKED_AT), dict[str, list[str]]()
    for record, number, instance in sample:
        for _, kind, text in place_faults(instance, record.size or _ANY):
            found.setdefault(kind, []).append(f"{object_name(instance, number)} of {record.image.name} {text}")
    notes += [f"{kind}: {len(texts)} of {len(sample)} objects, such as {texts[0]}" for kind, texts in found.items()]
    return tuple(notes)


def without_outline(records: Iterable[Record]) -> list[str]:
    """Objects that are no crowd and have no outline, as "object 7 of a.png": from these, masks cannot be learned."""
    objects = ((record, number, instance) for record in records for number, instance in _numbered(record))
    return [f"{object_name(i, n)} of {r.image.name}" for r, n, i in objects if i.segmentation is None and not i.crowd]


def check_truth(model: InstanceModel, dataset: Dataset) -> None:
    """Raise `DataError` where the data lack what the network learns from."""
    name = model.architecture["name"]
    _check_objects(model, dataset, name)
    if model.has_masks and (bare := without_outline((*dataset.splits["train"], *dataset.splits["val"]))):
        raise DataError(
            f"{dataset.root}: {len(bare)} objects have no outline, such as {bare[0]}, so '{name}' cannot learn masks; add "
            "outlines, or set model.options.masks=false"
        )
    if model.num_stuff and not dataset.stuff:
        raise DataError(
            f"{dataset.root}: has no stuff beside its objects, from which '{name}' learns; give COCO's panoptic JSON or "
            "--format coco:panoptic, or choose mask_rcnn_resnet50_fpn"
        )
    if model.num_stuff and model.num_stuff != len(dataset.stuff):
        raise DataError(
            f"{dataset.root}: has {len(dataset.stuff)} kinds of stuff, '{name}' finds {model.num_stuff}; leave "
            "model.options.num_stuff away"
        )
    points = len(dataset.keypoints.names) if dataset.keypoints is not None else 0
    if model.num_keypoints and model.num_keypoints != points:
        raise DataError(
            f"{dataset.root}: has {points or 'no'} keypoints, '{name}' finds {model.num_keypoints}; choose a network without "
            "keypoints, or leave model.options.num_keypoints away"
        )


def _check_objects(model: InstanceModel, dataset: Dataset, name: str) -> None:
    """Refuse annotations of which nothing can be learned; label pictures are not read for this."""
    records = dataset.splits["train"]
    if any(record.instances is None for record in records):
        return
    single = [(record, i) for record in records for _, i in _numbered(record) if not i.crowd]
    kept = [(record, i) for record, i in single if not is_degenerate(i, record.size, masks=model.has_masks)]
    if all(in_first_pixel(i) for _, i in kept):
        crowds = sum(len(record.instances or ()) for record in records) - len(single)
        counts = {
            "crowd regions": crowds,
            "without extent or outside their picture": len(single) - len(kept),
            "within the first pixel, shares in place of pixels": len(kept),
        }
        seen = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "its pictures have none"
        raise DataError(f"{dataset.root}: no object to learn from in 'train': {seen}; see `delineate data check`")
    if model.num_keypoints and not any(v for _, i in kept for _, _, v in i.keypoints or ()):
        raise DataError(
            f"{dataset.root}: no keypoint in 'train' has a visibility above 0, so '{name}' cannot learn them; set it to 1 "
            "(hidden) or 2 (visible), or choose mask_rcnn_resnet50_fpn"
        )


def _numbered(record: Record) -> Iterable[tuple[int, Instance]]:
    return enumerate(record.instances or ())
