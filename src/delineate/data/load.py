"""Loading one picture with its truth: `Record` in, `Sample` out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torchvision import tv_tensors

from delineate.data.dataset import Dataset, Instance, LabelMap, Polygon, Record, Rle
from delineate.data.decode import Array, decode_image, decode_labels, images_in, stored_orientation
from delineate.data.formats.classes import Key
from delineate.data.panoptic import PanopticMap, things_of
from delineate.data.raster import decode_rle, segmentation_rle
from delineate.data.sample import IGNORE, Sample
from delineate.errors import ConfigError, DataError

WANTED = ("semantic", "instance_map", "masks", "boxes", "keypoints")


def load_sample(dataset: Dataset, record: Record, want: Iterable[str] = ("semantic",)) -> Sample:
    """Decode a picture and the parts of its truth named in `want`: semantic, instance_map, masks, boxes, keypoints.

    For objects, `semantic` paints later objects over earlier ones, and crowd regions, under all objects, as IGNORE;
    `instance_map` paints in the same order and leaves crowd regions 0. Whenever objects are wanted, `labels` and `crowd`
    come with them. Objects whose box has no extent, or whose outline covers no pixel, are left out; `data check` lists
    them. An empty `want` gives the image alone. Raises `DataError` naming the files where sizes differ, values are not in
    the class list, or the truth asked for is not there.
    """
    want = set(want)
    if unknown := want - set(WANTED):
        raise ConfigError(f"want {sorted(unknown)}: expected any of {', '.join(WANTED)}")
    image = decode_image(record.image, record.frame)
    sample = Sample(image, record.name, record.image, record.image_id)
    check_stated_size(record, sample.size)
    if not want:
        return sample
    record = with_things(dataset, record, sample.size)
    if record.label_map is not None and record.label_map.kind == "semantic":
        if wrong := want - {"semantic"}:
            raise DataError(f"{dataset.root}: holds classes, not objects, so there is no {' or '.join(sorted(wrong))}")
        sample.semantic = _mask(load_semantic(record.label_map, record.image, sample.size, len(dataset.classes)))
    elif record.label_map is not None:
        _fill_from_map(sample, dataset, record.label_map, want)
    elif record.instances is not None:
        _fill_from_instances(sample, dataset, record, want)
    else:
        raise DataError(f"{record.image}: has no truth in {dataset.root}; add its label or leave the picture out")
    return sample


def load_semantic(label_map: LabelMap, image: Path, size: tuple[int, int], num_classes: int) -> Array:
    """Read a label picture as `(H, W)` uint8 class ids, 255 = not counted; an unknown value is a `DataError`."""
    labels = _read_labels(label_map, image, size)
    ids, unknown = _look_up(labels, label_map.values, num_classes)
    if unknown is not None:
        value = unknown if isinstance(unknown, int) else f"colour {unknown}"
        message = f"{label_map.path}: holds the value {value}, not one of the {num_classes} classes"
        raise DataError(f"{message}; add it to classes.txt or mend the file", kind="label outside the class list")
    return ids


def load_instance_map(label_map: LabelMap, image: Path, size: tuple[int, int]) -> Array:
    """Read an instance map as `(H, W)` int32, renumbered to 1..N in the order of the file's ids; 0 = background."""
    labels = _read_labels(label_map, image, size)
    if labels.ndim == 3:
        raise DataError(f"{label_map.path}: is coloured; an instance map holds one number a pixel (grey, 8 or 16 bit)")
    if (low := labels.min()) < 0:
        raise DataError(f"{label_map.path}: holds the object id {low}; ids begin at 1, 0 is the background")
    ids = labels.astype(np.int64)
    for value, to in (label_map.values or {}).items():
        ids[labels == value] = to
    if ids.max() >= 2**24:
        values, numbers = np.unique(ids, return_inverse=True)
        return (numbers.reshape(ids.shape) + (values[0] > 0)).astype(np.int32)
    used = np.bincount(ids.ravel(), minlength=1) > 0
    used[0] = False
    return (np.cumsum(used) * used).astype(np.int32)[ids]


def load_panoptic(label_map: LabelMap, image: Path, size: tuple[int, int]) -> PanopticMap:
    """Read a picture of segments; labels below the number of the data set's classes are things, those from there on stuff."""
    assert label_map.segments is not None
    picture = label_map.segments.load()
    _check_size(picture.segments, label_map.path, image, size)
    return picture


def with_things(dataset: Dataset, record: Record, size: tuple[int, int]) -> Record:
    """Return the record of a picture of `size` with the objects of its panoptic label picture as a list; others as they are."""
    if record.label_map is None or record.label_map.kind != "panoptic":
        return record
    picture = load_panoptic(record.label_map, record.image, size)
    return replace(record, label_map=None, instances=things_of(picture, len(dataset.classes)))


def load_object_classes(label_map: LabelMap, image: Path, ids: Array, num_classes: int) -> tuple[Array, Array | None]:
    """Return the label of each object of an instance map, `(N,)` indices into the classes, and the class picture `(H, W)`.

    With a class picture beside the map, an object's label is the class of most of its pixels; without one all labels are 0
    and the picture is None.
    """
    count = int(ids.max(initial=0))
    if label_map.classes is None:
        return np.zeros(count, np.int64), None
    classes = load_semantic(label_map.classes, image, ids.shape, num_classes + 1)
    counted = (classes != IGNORE) & (ids > 0)
    pairs = ids[counted].astype(np.int64) * (num_classes + 1) + classes[counted]
    votes = np.bincount(pairs, minlength=(count + 1) * (num_classes + 1)).reshape(count + 1, num_classes + 1)
    votes[:, 0] = 0  # an object is never background
    if without := np.flatnonzero(votes[1:].sum(1) == 0).tolist():
        message = f"{label_map.path}: object {without[0] + 1} has no class in {label_map.classes.path}; draw it there too"
        raise DataError(message, kind="object without class")
    return votes[1:].argmax(1) - 1, classes


def check_stated_size(record: Record, size: tuple[int, int]) -> None:
    """Raise `DataError` where the annotation states another size than the picture has."""
    if record.size is None or record.size == size:
        return
    stated, seen = f"{record.size[0]} x {record.size[1]}", f"{size[0]} x {size[1]}"
    reason = "annotate this very picture, or correct the size"
    if record.size == size[::-1] and stored_orientation(record.image) >= 5:
        reason = "it was annotated without its EXIF orientation: save the picture without that tag"
    message = f"{record.image}: is {seen} (height x width), its annotation says {stated}; {reason}"
    raise DataError(message, kind="size mismatch")


def _read_labels(label_map: LabelMap, image: Path, size: tuple[int, ...]) -> Array:
    if label_map.path.is_dir():
        return _read_object_masks(label_map.path, image, size)
    labels = decode_labels(label_map.path, label_map.frame)
    _check_size(labels, label_map.path, image, size)
    return labels


def _check_size(labels: Array, path: Path, image: Path, size: tuple[int, ...]) -> None:
    if labels.shape[:2] != tuple(size):
        shape = f"{labels.shape[0]} x {labels.shape[1]}"
        message = f"{path}: is {shape} (height x width), its image {image} is {size[0]} x {size[1]}; make them equal"
        raise DataError(message, kind="size mismatch")


def _read_object_masks(folder: Path, image: Path, size: tuple[int, ...]) -> Array:
    """Read a folder with a binary mask an object as a map of object ids, in the order of the file names."""
    ids = np.zeros(size, np.int32)
    for number, path in enumerate(images_in(folder), start=1):
        mask = _read_labels(LabelMap(path, "instance"), image, size)
        ids[mask.any(-1) if mask.ndim == 3 else mask != 0] = number
    return ids


def _look_up(labels: Array, values: dict[Key, int] | None, num_classes: int) -> tuple[Array, Key | None]:
    """Return class ids and the first raw value that has none; the raw value 255 is IGNORE unless `values` says otherwise."""
    if labels.ndim == 3 and np.array_equal(labels[..., 0], labels[..., 1]) and np.array_equal(labels[..., 0], labels[..., 2]):
        labels = labels[..., 0]  # grey saved as RGB
    if values is not None and any(isinstance(key, tuple) for key in values):
        return _look_up_colours(labels, values)
    if labels.ndim == 3:
        first = labels[(labels != labels[..., :1]).any(-1)][0]
        return np.empty(0), (int(first[0]), int(first[1]), int(first[2]))
    if outside := [extreme for extreme in (int(labels.min()), int(labels.max())) if not 0 <= extreme <= 65535]:
        return np.empty(0), outside[0]
    table = np.full(65536, -1, np.int16)
    table[IGNORE] = IGNORE
    for key, value in (values or {i: i for i in range(num_classes)}).items():
        table[key] = value
    ids = table[labels]
    if ids.min() < 0:
        return ids, int(labels[ids < 0][0])
    return ids.astype(np.uint8), None


def _look_up_colours(labels: Array, values: dict[Key, int]) -> tuple[Array, Key | None]:
    colours = labels if labels.ndim == 3 else labels[..., None].repeat(3, -1)
    table = sorted((k[0] << 16 | k[1] << 8 | k[2], v) for k, v in values.items() if isinstance(k, tuple))
    keys, ids = np.array([k for k, _ in table]), np.array([v for _, v in table], np.uint8)
    wide = colours.astype(np.int64)
    codes = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    places = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
    if (unknown := keys[places] != codes).any():
        red, green, blue = colours[unknown][0].tolist()
        return np.empty(0), (red, green, blue)
    return ids[places], None


def _fill_from_map(sample: Sample, dataset: Dataset, label_map: LabelMap, want: set[str]) -> None:
    if "keypoints" in want:
        raise DataError(f"{dataset.root}: holds instance maps, so there are no keypoints")
    ids = load_instance_map(label_map, sample.path or Path(), sample.size)
    labels, classes = load_object_classes(label_map, sample.path or Path(), ids, len(dataset.classes))
    if "semantic" in want:
        sample.semantic = _mask(classes if classes is not None else (ids > 0).astype(np.uint8))
    if want <= {"semantic"}:
        return
    sample.labels, sample.crowd = torch.from_numpy(labels), torch.zeros(len(labels), dtype=torch.bool)
    if "instance_map" in want:
        sample.instance_map = _mask(ids)
    if "masks" in want:
        sample.masks = _mask(ids[None] == np.arange(1, len(labels) + 1)[:, None, None])
    if "boxes" in want:
        sample.boxes = _boxes(boxes_of_map(ids), sample.size)


def _fill_from_instances(sample: Sample, dataset: Dataset, record: Record, want: set[str]) -> None:
    instances = [i for i in record.instances or () if has_extent(i)]
    masks: list[Array | None] = [None] * len(instances)
    if want & {"semantic", "instance_map", "masks"}:
        masks = [instance_mask(instance, sample.size, record) for instance in instances]
        kept = [n for n, mask in enumerate(masks) if mask is not None and mask.any()]
        instances, masks = [instances[n] for n in kept], [masks[n] for n in kept]
    if "semantic" in want:
        sample.semantic = _mask(_paint_classes(instances, masks, sample.size, dataset))
    if want <= {"semantic"}:
        return
    sample.labels = torch.tensor([i.label for i in instances], dtype=torch.int64)
    sample.crowd = torch.tensor([i.crowd for i in instances], dtype=torch.bool)
    if "instance_map" in want:
        sample.instance_map = _mask(_paint_objects(instances, masks, sample.size))
    if "masks" in want:
        stack = np.stack([m for m in masks if m is not None]) if masks else np.zeros((0, *sample.size), bool)
        sample.masks = _mask(stack)
    if "boxes" in want:
        boxes = [instance_box(i, mask, sample.size, record) for i, mask in zip(instances, masks, strict=True)]
        sample.boxes = _boxes(np.array(boxes, np.float32).reshape(-1, 4), sample.size)
    if "keypoints" in want:
        _fill_keypoints(sample, dataset, instances)


def has_extent(instance: Instance) -> bool:
    """Whether an object can cover a pixel: its box, if any, has extent, and so has a polygon of its outline, if any."""
    if instance.box is not None and not (instance.box[2] > instance.box[0] and instance.box[3] > instance.box[1]):
        return False
    return not isinstance(instance.segmentation, tuple) or any(len(polygon) >= 6 for polygon in instance.segmentation)


def instance_mask(instance: Instance, size: tuple[int, int], record: Record) -> Array:
    """Return the `(H, W)` bool mask of an object; raises `DataError` where it has a box but no outline."""
    if instance.segmentation is None:
        raise DataError(
            f"{_named(instance, record)} has no outline, only a box or keypoints; masks need polygons or run-length codes"
        )
    return decode_rle(outline_rle(instance.segmentation, instance, size, record))


def outline_rle(outline: tuple[Polygon, ...] | Rle, instance: Instance, size: tuple[int, int], record: Record) -> Rle:
    """Return `segmentation_rle` of the outline of an object; a `DataError` names the picture and the object."""
    try:
        return segmentation_rle(outline, size)
    except DataError as error:
        raise DataError(f"{_named(instance, record)}: {error}") from error


def _named(instance: Instance, record: Record) -> str:
    return f"{record.image}: {'an object' if instance.id is None else f'object {instance.id}'}"


def instance_box(instance: Instance, mask: Array | None, size: tuple[int, int], record: Record) -> tuple[float, ...]:
    """Return the xyxy box of an object: as annotated, else around its mask, else around its labelled keypoints."""
    if instance.box is not None:
        return instance.box
    if instance.segmentation is not None:
        mask = instance_mask(instance, size, record) if mask is None else mask
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)) if len(rows) else (0.0,) * 4
    points = [(x, y) for x, y, v in instance.keypoints or () if v]
    if not points:
        raise DataError(f"{_named(instance, record)} has neither box, outline nor keypoints; remove it")
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def boxes_of_map(ids: Array) -> Array:
    """Return the `(N, 4)` float32 xyxy boxes around the objects 1..N of an instance map; zeros for an id without pixels."""
    from scipy.ndimage import find_objects

    slices = find_objects(ids)
    boxes = [(s[1].start, s[0].start, s[1].stop, s[0].stop) if s else (0, 0, 0, 0) for s in slices]
    return np.array(boxes, np.float32).reshape(-1, 4)


def _paint_classes(instances: list[Instance], masks: list[Array | None], size: tuple[int, int], dataset: Dataset) -> Array:
    if len(dataset.semantic_classes) > IGNORE:
        raise DataError(f"{dataset.root}: {len(dataset.semantic_classes)} classes, at most {IGNORE} fit a map of class ids")
    canvas = np.zeros(size, np.uint8)
    for crowd in (True, False):
        for instance, mask in zip(instances, masks, strict=True):
            if instance.crowd is crowd:
                canvas[mask] = IGNORE if crowd else instance.label + 1
    return canvas


def _paint_objects(instances: list[Instance], masks: list[Array | None], size: tuple[int, int]) -> Array:
    canvas = np.zeros(size, np.int32)
    for number, (instance, mask) in enumerate(zip(instances, masks, strict=True), 1):
        if not instance.crowd:
            canvas[mask] = number
    return canvas


def _fill_keypoints(sample: Sample, dataset: Dataset, instances: list[Instance]) -> None:
    if dataset.keypoints is None:
        raise DataError(f"{dataset.root}: defines no keypoints")
    count = len(dataset.keypoints.names)
    triples = np.zeros((len(instances), count, 3), np.float32)
    for row, instance in zip(triples, instances, strict=True):
        if instance.keypoints is not None:
            row[:] = instance.keypoints
    points = torch.from_numpy(triples[..., :2].copy())
    sample.keypoints = tv_tensors.KeyPoints(points, canvas_size=sample.size)  # pyright: ignore[reportCallIssue]
    sample.visibility = torch.from_numpy(triples[..., 2].astype(np.uint8))


def _mask(pixels: Array) -> tv_tensors.Mask:
    return tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(pixels)))


def _boxes(boxes: Array, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=size)  # pyright: ignore[reportCallIssue]
