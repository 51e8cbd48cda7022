"""labelme: one JSON beside each image, with polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import binascii
import io
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from delineate.data.dataset import Dataset, Instance, Polygon, Record
from delineate.data.decode import Array, image_size, images_in
from delineate.data.formats.classes import IGNORED_NAMES
from delineate.data.formats.names import shortest_names
from delineate.data.formats.pairing import read_folder_name
from delineate.data.formats.problems import Problems, read_json
from delineate.data.formats.writing import copy_image, named_records
from delineate.data.load import instance_box, instance_mask
from delineate.data.objects import BACKGROUND_NAMES, object_classes, record_objects
from delineate.data.raster import decode_rle, encode_mask, segmentation_rle
from delineate.errors import DataError
from delineate.files import write_json, write_text
from delineate.ops.polygons import mask_to_polygons

_OUTLINES = ("polygon", "rectangle", "circle", "mask")
_CROWD = "crowd"  # our flag of a shape


def is_labelme_file(path: Path) -> bool:
    """Whether a JSON file looks like labelme's, by its beginning and end: pixels may fill the middle."""
    if path.suffix.lower() != ".json":
        return False
    with path.open("rb") as file:
        head = file.read(65536)
        file.seek(max(0, path.stat().st_size - 65536))
        return b'"shapes"' in head + file.read()


def find_labelme_files(folder: Path) -> list[Path]:
    """Return the labelme files in a folder and its subfolders."""
    return [path for path in sorted(folder.rglob("*.json")) if not path.name.startswith(".") and is_labelme_file(path)]


def read_labelme(path: Path, variant: str | None, problems: Problems) -> Dataset:
    """Read a folder of labelme files, or one file. Shapes of one group id are one object; `__ignore__` is a region not counted.

    The classes are the labels in use, sorted, or the lines of a `labels.txt`. Points and lines are passed over with a note.
    """
    files = find_labelme_files(path) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: has no labelme files; expected one .json beside each image")
    root = path if path.is_dir() else path.parent
    contents = {file: content for file in files if (content := _read_content(file, problems)) is not None}
    classes = _classes(root, contents)
    passed_over = sum(s["shape_type"] not in _OUTLINES for c in contents.values() for s in c["shapes"])
    notes = (f"{passed_over} points and lines passed over: only outlines are read",) if passed_over else ()
    splits: dict[str, list[Record]] = defaultdict(list)
    for file, content in contents.items():
        splits[_split_of(root, file)].append(_record(root, file, content, classes, problems))
    _add_unlabelled(root, files, splits)
    order = [s for s in ("train", "val", "test", "all", "unlabelled") if s in splits]
    names = iter(shortest_names([tuple(r.name.split("/")) for s in order for r in splits[s]]))
    named = {s: tuple(replace(r, name=next(names)) for r in splits[s]) for s in order}
    return Dataset(root, "labelme", "instance", classes, named, notes=notes)


def write_labelme(dataset: Dataset, out: Path, variant: str | None) -> None:
    """Write images and JSONs side by side in `SPLIT/`: polygons along pixel edges, or a mask where an object has holes."""
    classes = object_classes(dataset)
    for split, record, stem in named_records(dataset):
        folder = out if split == "all" else out / split
        image = copy_image(record, folder, stem)
        objects = record_objects(dataset, record)
        if objects is None:
            continue
        size = image_size(image)
        shapes = [shape for n, o in enumerate(objects, 1) for shape in _shapes(record, o, classes[o.label], n, size)]
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": image.name,
            "imageData": None,
            "imageHeight": size[0],
            "imageWidth": size[1],
        }
        write_json(folder / f"{stem}.json", content)
    write_text(out / "labels.txt", "".join(f"{name}\n" for name in ("__ignore__", "_background_", *classes)))


def _read_content(file: Path, problems: Problems) -> dict[str, Any] | None:
    try:
        content = read_json(file)
        shapes = content.get("shapes") if isinstance(content, dict) else None
        if not isinstance(shapes, list) or not all(isinstance(s, dict) and "label" in s and "points" in s for s in shapes):
            raise DataError(f"{file}: is not a labelme file; expected 'shapes' with 'label' and 'points'")
    except DataError as error:
        problems.error("annotation", file, str(error).removeprefix(f"{file}: "))
        return None
    for shape in content["shapes"]:
        shape.setdefault("shape_type", "polygon")
    return content


def _classes(root: Path, contents: dict[Path, dict[str, Any]]) -> tuple[str, ...]:
    used = {str(s["label"]) for c in contents.values() for s in c["shapes"] if s["shape_type"] in _OUTLINES}
    listed = root / "labels.txt"
    names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines()] if listed.is_file() else []
    names += sorted(used - set(names))
    return tuple(name for name in names if name and name.lower() not in IGNORED_NAMES | BACKGROUND_NAMES)


def _split_of(root: Path, file: Path) -> str:
    folders = file.relative_to(root).parts[:-1]
    return next((split for split in (read_folder_name(folder)[1] for folder in folders) if split), "all")


def _add_unlabelled(root: Path, files: list[Path], splits: dict[str, list[Record]]) -> None:
    """Add images without a JSON: to their split if none of it has one, else to "unlabelled"."""
    known = {record.image for records in splits.values() for record in records} | {file.with_suffix("") for file in files}
    labelled = set(splits)
    for folder in sorted({file.parent for file in files} | {p for p in root.iterdir() if p.is_dir()}):
        for image in images_in(folder):
            if image not in known and image.with_suffix("") not in known:
                split = _split_of(root, image)
                name = image.relative_to(root).with_suffix("").as_posix()
                splits["unlabelled" if split in labelled else split].append(Record(name, image))


def _record(root: Path, file: Path, content: dict[str, Any], classes: tuple[str, ...], problems: Problems) -> Record:
    name = str(content.get("imagePath") or "").replace("\\", "/")
    image = file.parent / name
    if not name or not image.is_file():
        beside = [p for p in file.parent.glob(f"{file.stem}.*") if p.suffix != ".json"]
        image = beside[0] if beside else image
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (int(height), int(width)) if height and width else None
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for number, shape in enumerate(content["shapes"]):
        if shape["shape_type"] in _OUTLINES:
            group = shape.get("group_id")
            groups[("alone", number) if group is None else (group, shape["label"])].append(shape)
    instances = []
    for shapes in groups.values():
        try:
            instances.append(_instance(shapes, classes, size))
        except (ValueError, TypeError, KeyError, binascii.Error, UnidentifiedImageError) as error:
            problems.error("annotation", file, f"shape {shapes[0]['label']!r} cannot be read ({error})")
    path = file.relative_to(root).with_suffix("").as_posix()
    return Record(path, image, size=size, instances=tuple(instances))


def _instance(shapes: list[dict[str, Any]], classes: tuple[str, ...], size: tuple[int, int] | None) -> Instance:
    """Join the shapes of one object: polygons stay polygons; with a mask among them they become one run-length code."""
    label = str(shapes[0]["label"])
    ignored = label.lower() in IGNORED_NAMES | BACKGROUND_NAMES
    crowd = ignored or bool((shapes[0].get("flags") or {}).get(_CROWD))
    index = 0 if ignored else classes.index(label)
    polygons = tuple(_polygon(shape) for shape in shapes if shape["shape_type"] != "mask")
    masks = [shape for shape in shapes if shape["shape_type"] == "mask"]
    if not masks:
        return Instance(index, polygons, crowd=crowd)
    if size is None:
        raise ValueError("a mask needs imageHeight and imageWidth")
    canvas = decode_rle(segmentation_rle(polygons, size))
    for shape in masks:
        x, y = (int(v) for v in shape["points"][0])
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
        canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] |= pixels
    return Instance(index, encode_mask(canvas), crowd=crowd)


def _polygon(shape: dict[str, Any]) -> Polygon:
    points = np.asarray(shape["points"], float).reshape(-1, 2)
    if shape["shape_type"] == "rectangle":
        (x0, y0), (x1, y1) = points
        return [x0, y0, x1, y0, x1, y1, x0, y1]
    if shape["shape_type"] == "circle":  # centre and a point on the rim
        radius = float(np.hypot(*(points[1] - points[0])))
        angles = np.linspace(0, 2 * np.pi, max(12, int(2 * np.pi * radius)), endpoint=False)
        points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    return points.ravel().tolist()


def _shapes(record: Record, instance: Instance, label: str, group: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    flags = {_CROWD: True} if instance.crowd else {}
    common = {"label": label, "group_id": None, "description": "", "flags": flags}
    if instance.segmentation is None:
        x0, y0, x1, y1 = instance_box(instance, None, size, record)
        return [{**common, "points": [[x0, y0], [x1, y1]], "shape_type": "rectangle", "mask": None}]
    mask = instance_mask(instance, size, record)
    if not mask.any():
        return []
    outer, holes = mask_to_polygons(mask)
    if holes:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        corner, end = [float(columns[0]), float(rows[0])], [float(columns[-1]), float(rows[-1])]
        window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return [{**common, "points": [corner, end], "shape_type": "mask", "mask": _encoded(window)}]
    if len(outer) > 1:
        common["group_id"] = group
    points = [np.reshape(polygon, (-1, 2)).tolist() for polygon in outer]
    return [{**common, "points": p, "shape_type": "polygon", "mask": None} for p in points]


def _encoded(window: Array) -> str:
    file = io.BytesIO()
    Image.fromarray(window.astype(np.uint8) * 255).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
