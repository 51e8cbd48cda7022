"""YOLO: a data YAML, and beside each image a text file of boxes, polygons or poses in shares of the image's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from delineate.data.dataset import Dataset, Instance, Record
from delineate.data.decode import image_size, list_images, missing
from delineate.data.formats.coco_categories import flip_pairs
from delineate.data.formats.names import shortest_names
from delineate.data.formats.problems import Problems
from delineate.data.formats.writing import copy_image, named_records
from delineate.data.geometry import polygon_area
from delineate.data.load import instance_box, instance_mask
from delineate.data.objects import object_classes, record_objects
from delineate.errors import DataError
from delineate.files import write_text
from delineate.ops.polygons import mask_to_polygons
from delineate.skeleton import KeypointSchema

_SPLITS = ("train", "val", "test")


def find_data_yaml(folder: Path) -> Path | None:
    """Return the data YAML of a folder: the first that has `names` and `train` or `val`."""
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError):
            continue
        if isinstance(content, dict) and "names" in content and ("train" in content or "val" in content):
            return path
    return None


def read_yolo(path: Path, variant: str | None, problems: Problems) -> Dataset:
    """Read a data YAML, or a folder that holds one; all paths in it are relative to its own folder, or to `path` in it.

    An image without a label file is a picture without objects; a split without any label file has no truth.
    """
    file = find_data_yaml(path) if path.is_dir() else path
    if file is None:
        raise DataError(f"{path}: has no data YAML with 'names' and 'train'; write one, or force another format with --format")
    content = _read_yaml(file)
    classes = _names(file, content)
    schema = _keypoint_schema(file, content)
    root = file.parent / str(content.get("path") or ".")
    notes: list[str] = []
    splits = {}
    for split in _SPLITS:
        if split != "train" and content.get(split) and content.get(split) == content.get("train"):
            notes.append(f"{file.name}: '{split}' is the same as 'train' and is left out")
        elif content.get(split):
            images = [image for entry in _entries(content[split]) for image in _images(file, root, entry, notes)]
            splits[split] = _records(images, split, len(classes), schema, problems)
    return Dataset(
        root=file.parent,
        format="yolo",
        kind="keypoint" if schema else "instance",
        classes=classes,
        splits=_named_apart(splits),
        keypoints=schema,
        notes=tuple(notes),
    )


def write_yolo(dataset: Dataset, out: Path, variant: str | None) -> None:
    """Write `data.yaml`, `images/SPLIT/` and `labels/SPLIT/`: a line an object, polygons along pixel edges without their holes.

    An object in several pieces becomes one line a piece, and crowd regions are left out; data
    with keypoints become poses: box and keypoints. A data set without splits is written as "train", which is also its
    "val", for trainers need both.
    """
    classes = object_classes(dataset)
    for split, record, stem in named_records(dataset):
        folder = "train" if split == "all" else split
        image = copy_image(record, out / "images" / folder, stem)
        objects = record_objects(dataset, record)
        if objects is None:
            continue
        size = image_size(image)
        if dataset.kind == "keypoint":
            lines = _pose_lines(dataset, record, objects, size)
        else:  # a hole of a class region is filled, so what lies in it has to be painted later
            lines = _lines(objects, size, record, largest_first=dataset.kind == "semantic")
        write_text(out / "labels" / folder / f"{stem}.txt", "".join(f"{line}\n" for line in lines))
    written = ["train" if split == "all" else split for split in dataset.splits]
    content: dict[str, Any] = {split: f"images/{split}" for split in written}
    content["val"] = content.get("val", content.get("train"))
    content["names"] = dict(enumerate(classes))
    if dataset.keypoints is not None:
        content |= pose_fields(dataset.keypoints, len(classes))
    write_text(out / "data.yaml", yaml.safe_dump(content, sort_keys=False))


def read_names(file: Path) -> tuple[str, ...]:
    """Return the class names of a data YAML."""
    return _names(file, _read_yaml(file))


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{file}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or "names" not in content or not any(content.get(split) for split in _SPLITS):
        raise DataError(f"{file}: is not a YOLO data YAML; expected 'names', and 'train' or 'val'")
    return content


def _names(file: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{file}: the keys of 'names' are {sorted(names)}, expected 0..{len(names) - 1}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: 'names' is {names!r}, expected a list of class names")
    if "nc" in content and content["nc"] != len(names):
        raise DataError(f"{file}: 'nc' is {content['nc']}, but 'names' has {len(names)} classes; correct one")
    return tuple(map(str, names))


def _keypoint_schema(file: Path, content: dict[str, Any]) -> KeypointSchema | None:
    """Read `kpt_shape`, `flip_idx` and `kpt_names`; without names the keypoints are numbered."""
    if "kpt_shape" not in content:
        return None
    shape = content["kpt_shape"]
    if not (isinstance(shape, list) and len(shape) == 2 and shape[1] in (2, 3)):
        raise DataError(f"{file}: 'kpt_shape' is {shape!r}, expected [number of keypoints, 2 or 3]")
    count = int(shape[0])
    named = content.get("kpt_names")
    names = next(iter(named.values())) if isinstance(named, dict) and named else [f"keypoint_{i}" for i in range(count)]
    flips = content.get("flip_idx")
    pairs = flip_pairs(names) if flips is None else tuple((i, j) for i, j in enumerate(flips) if i < j)
    return KeypointSchema(tuple(map(str, names)), flip_pairs=pairs)


def _entries(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def _images(file: Path, root: Path, entry: str, notes: list[str]) -> list[Path]:
    """Return the images of a folder, a glob, or a list in a text file; "../x" is also looked for as "x", as exports need it."""
    candidates = [root / entry, file.parent / entry, file.parent / entry.removeprefix("../")]
    found = next((c for c in candidates if c.exists()), None)
    if found is None:
        if any(mark in entry for mark in "*?["):
            return list_images(root / entry)
        raise DataError(f"{file}: names {entry}, which is not in {root}; paths are relative to the YAML, or to 'path' in it")
    if found != candidates[0]:
        notes.append(f"{file.name}: {root / entry} does not exist, {found} used instead")
    if found.suffix != ".txt":
        return list_images(found)
    lines = [line.strip() for line in found.read_text(encoding="utf-8").splitlines()]
    return [found.parent / line if line.startswith("./") else root / line for line in lines if line]


def label_path(image: Path) -> Path:
    """Return where the labels of an image lie: the last folder `images` of its path replaced by `labels`, or else beside it.

    >>> label_path(Path("set/images/train/a.jpg")).as_posix()
    'set/labels/train/a.txt'
    """
    parts = list(image.with_suffix(".txt").parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts)


def _records(
    images: list[Path], split: str, num_classes: int, schema: KeypointSchema | None, problems: Problems
) -> tuple[Record, ...]:
    labelled = any(label_path(image).is_file() for image in images)
    records = []
    for image in images:
        instances: tuple[Instance, ...] | None = () if labelled else None
        if label_path(image).is_file():
            try:
                instances = read_labels(label_path(image), image, num_classes, schema, problems)
            except DataError as error:
                problems.error("image", image, str(error).removeprefix(f"{image}: "))
        records.append(Record("/".join((split, image.stem)), image, instances=instances))
    return tuple(records)


def read_labels(
    path: Path, image: Path, num_classes: int, schema: KeypointSchema | None, problems: Problems
) -> tuple[Instance, ...]:
    """Read the label file of an image, whose size turns shares into pixels."""
    if not image.exists():
        raise missing(image)
    size = image_size(image)
    instances = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(word) for word in line.split()]
            instances.append(_read_line(values, size, schema))
        except ValueError as error:
            problems.error("annotation", path, f"line {number}: {error}")
            continue
        if not 0 <= instances[-1].label < num_classes or values[0] != int(values[0]):
            instances.pop()
            problems.error(
                "unknown category", path, f"line {number} has the class {values[0]:g}, the YAML names 0..{num_classes - 1}"
            )
    return tuple(instances)


def _read_line(values: list[float], size: tuple[int, int], schema: KeypointSchema | None) -> Instance:
    """Read `class x y w h [keypoints]` or `class x0 y0 x1 y1 ...`; raises ValueError."""
    height, width = size
    label, numbers = int(values[0]), values[1:]
    if schema is None and len(numbers) > 4:
        if len(numbers) % 2 or len(numbers) < 6:
            raise ValueError(f"{len(numbers)} numbers, expected a box of 4 or a polygon of 6 or more, in pairs")
        return Instance(label, ([v * (height if i % 2 else width) for i, v in enumerate(numbers)],))
    count = len(schema.names) if schema else 0
    if len(numbers) not in (4, 4 + 2 * count, 4 + 3 * count):
        raise ValueError(f"{len(numbers)} numbers, expected a box of 4" + (f" and {count} keypoints" if count else ""))
    x, y, w, h = numbers[0] * width, numbers[1] * height, numbers[2] * width, numbers[3] * height
    points = None
    if count and len(numbers) > 4:
        step = (len(numbers) - 4) // count
        triples = [numbers[i : i + step] for i in range(4, len(numbers), step)]
        # Without a visibility, a keypoint at the origin is one that is not labelled.
        points = tuple((p[0] * width, p[1] * height, int(p[2]) if step == 3 else 2 * (p != [0, 0])) for p in triples)
    return Instance(label, None, (x - w / 2, y - h / 2, x + w / 2, y + h / 2), points)


def _named_apart(splits: dict[str, tuple[Record, ...]]) -> dict[str, tuple[Record, ...]]:
    names = iter(shortest_names([tuple(r.name.split("/")) for records in splits.values() for r in records]))
    return {split: tuple(replace(r, name=next(names)) for r in records) for split, records in splits.items()}


def _lines(objects: tuple[Instance, ...], size: tuple[int, int], record: Record, largest_first: bool) -> list[str]:
    height, width = size
    sized: list[tuple[float, str]] = []
    for instance in objects:
        if instance.crowd:
            continue
        if instance.segmentation is None:
            x0, y0, x1, y1 = instance_box(instance, None, size, record)
            box = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            sized.append(((x1 - x0) * (y1 - y0), _text(instance.label, box)))
            continue
        for polygon in mask_to_polygons(instance_mask(instance, size, record))[0]:
            shares = [v / (height if i % 2 else width) for i, v in enumerate(polygon)]
            sized.append((polygon_area(polygon), _text(instance.label, shares)))
    if largest_first:
        sized.sort(key=lambda item: -item[0])
    return [line for _, line in sized]


def _pose_lines(dataset: Dataset, record: Record, objects: tuple[Instance, ...], size: tuple[int, int]) -> list[str]:
    count = len(dataset.keypoints.names) if dataset.keypoints else 0
    return [
        pose_line(i.label, instance_box(i, None, size, record), i.keypoints or ((0.0, 0.0, 0),) * count, size)
        for i in objects
        if not i.crowd
    ]


def pose_line(
    label: int,
    box: Sequence[float],
    keypoints: Sequence[tuple[float, float, int]],
    size: tuple[int, int],
) -> str:
    """Return the line of an object: class, box (xyxy), keypoints x, y, visibility, in a picture of `size` (height, width).

    >>> pose_line(0, (0, 0, 4, 2), [(2, 1, 2)], (8, 8))
    '0 0.25 0.125 0.5 0.25 0.25 0.125 2'
    """
    (height, width), (x0, y0, x1, y1) = size, box
    numbers = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
    for x, y, visible in keypoints:
        numbers += [x / width, y / height, visible]
    return _text(label, numbers)


def pose_fields(schema: KeypointSchema, num_classes: int) -> dict[str, Any]:
    """Return what a data YAML says of keypoints."""
    flips = list(range(len(schema.names)))
    for left, right in schema.flip_pairs:
        flips[left], flips[right] = right, left
    names = {i: list(schema.names) for i in range(num_classes)}
    return {"kpt_shape": [len(flips), 3], "flip_idx": flips, "kpt_names": names}


def _text(label: int, numbers: Any) -> str:
    return " ".join([str(label), *(f"{number:.9g}" for number in numbers)])
