"""The truth of a picture as a list of objects, whatever it is stored as: what formats of objects write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import find_objects

from delineate.data.dataset import Dataset, Instance, Record
from delineate.data.decode import Array, image_size
from delineate.data.load import load_instance_map, load_object_classes, load_semantic, with_things
from delineate.data.raster import encode_mask
from delineate.data.sample import IGNORE

BACKGROUND_NAMES = {"background", "_background_", "__background__", "bg"}


def object_classes(dataset: Dataset) -> tuple[str, ...]:
    """Return the names that labels of `record_objects` refer to: of pixel classes, those that are not the background."""
    first = 1 if has_background(dataset) else 0
    return dataset.classes[first:]


def has_background(dataset: Dataset) -> bool:
    """Whether the first class of semantic data means "nothing", by its name."""
    return dataset.kind == "semantic" and bool(dataset.classes) and dataset.classes[0].lower() in BACKGROUND_NAMES


def listed_labels(record: Record) -> list[int] | None:
    """Return the class of each object but crowds, as its annotation lists them; None where only the pixels tell.

    Kinds of stuff are among those of a panoptic picture, behind the classes.
    """
    if record.instances is not None:
        return [instance.label for instance in record.instances if not instance.crowd]
    if record.label_map is None or record.label_map.segments is None:
        return None
    return record.label_map.segments.labels[~record.label_map.segments.crowd].tolist()


def record_objects(dataset: Dataset, record: Record) -> tuple[Instance, ...] | None:
    """Return the objects of a picture with their outlines; None where it has no truth.

    Objects of an annotation file are returned as they are stored, those of an instance map or a panoptic picture as run-length
    codes. Of semantic data, all pixels of a class are one object, and the pixels that do not count are one crowd region. Raises
    `DataError` naming the file.
    """
    if record.instances is not None:
        return record.instances
    if record.label_map is None:
        return None
    size = image_size(record.image, record.frame)
    if record.label_map.kind == "panoptic":
        return with_things(dataset, record, size).instances
    if record.label_map.kind == "semantic":
        return _class_regions(dataset, load_semantic(record.label_map, record.image, size, len(dataset.classes)))
    ids = load_instance_map(record.label_map, record.image, size)
    labels, _ = load_object_classes(record.label_map, record.image, ids, len(dataset.classes))
    return tuple(
        Instance(int(label), encode_mask(ids == number), _box(window))
        for number, (label, window) in enumerate(zip(labels, find_objects(ids), strict=True), 1)
    )


def outlined_only(record: Record) -> Record:
    """Return the record without objects that have no outline, for formats that hold pixels."""
    if record.instances is None:
        return record
    return replace(record, instances=tuple(i for i in record.instances if i.segmentation is not None))


def _class_regions(dataset: Dataset, classes: Array) -> tuple[Instance, ...]:
    first = 1 if has_background(dataset) else 0
    counts = np.bincount(classes.ravel(), minlength=IGNORE + 1)
    present = [i for i in np.flatnonzero(counts).tolist() if i >= first]
    return tuple(
        Instance(0 if i == IGNORE else i - first, encode_mask(classes == i), crowd=i == IGNORE, area=float(counts[i]))
        for i in present
    )


def _box(window: tuple[slice, slice]) -> tuple[float, float, float, float]:
    rows, columns = window
    return float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)
