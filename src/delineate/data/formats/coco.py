"""COCO JSON, the lossless hub: polygons, both run-length codes, crowds, sparse category ids, keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delineate.data.dataset import Dataset, Instance, Record
from delineate.data.decode import image_size
from delineate.data.formats.coco_categories import class_names, keypoint_schema, read_categories
from delineate.data.formats.coco_files import (
    NO_TRUTH,
    choose_files,
    find_coco_files,
    image_folder,
    named_apart,
    read_image,
    read_images,
    repeated_files,
    split_of,
)
from delineate.data.formats.coco_panoptic import read_coco_panoptic
from delineate.data.formats.coco_rows import sound_rows
from delineate.data.formats.panoptic import is_panoptic_file
from delineate.data.formats.problems import Problems, read_json
from delineate.data.formats.writing import copy_image, named_records
from delineate.data.objects import object_classes, record_objects
from delineate.data.raster import rle_area, rle_box, segmentation_rle
from delineate.errors import DataError
from delineate.files import write_json
from delineate.skeleton import KeypointSchema

VARIANTS = ("instance", "keypoint", "panoptic")
_OBJECT_KEYS = {"id", "image_id", "category_id", "segmentation", "bbox", "area", "iscrowd", "keypoints", "num_keypoints"}


def read_coco(path: Path, variant: str | None, problems: Problems) -> Dataset:
    """Read an annotation file with the images beside it, or a folder with one file for each split (`instances_*` first).

    Panoptic files are read where nothing else is there, and with the `variant` "panoptic".
    """
    found = find_coco_files(path) if path.is_dir() else [path]
    panoptic = [file for file in found if is_panoptic_file(file)]
    if variant == "panoptic" or (variant is None and panoptic == found):
        return read_coco_panoptic(path, panoptic, problems)
    files = choose_files(path, found, variant) if path.is_dir() else {split_of(path): path}
    contents = {split: _read_content(file, problems) for split, file in files.items()}
    categories = read_categories(files, contents)
    index = {category["id"]: i for i, category in enumerate(categories)}
    first = next(iter(files.values()))
    classes, notes = class_names(first, categories, problems)
    schema, more = keypoint_schema(first, categories, problems)
    splits, notes = {}, notes + more
    for split, file in files.items():
        records, note = _read_records(file, contents[split], index, schema, problems)
        splits[split] = records
        notes += note
    has_points = schema is not None and any(
        i.keypoints for records in splits.values() for r in records for i in r.instances or ()
    )
    if variant == "keypoint" and not has_points:
        raise DataError(f"{path}: has no keypoints; leave --format coco:keypoint away")
    content = next(iter(contents.values()))
    return Dataset(
        root=path if path.is_dir() else path.parent,
        format="coco",
        kind="keypoint" if has_points and variant != "instance" else "instance",
        classes=classes,
        splits=named_apart(splits),
        keypoints=schema,
        extra={"categories": categories, **{key: content[key] for key in ("info", "licenses") if key in content}},
        notes=tuple(notes),
    )


def write_coco(dataset: Dataset, out: Path, variant: str | None) -> None:
    """Write `annotations/instances_SPLIT.json` (`person_keypoints_` for keypoints) and the images in `SPLIT/`."""
    categories = _written_categories(dataset)
    prefix = "person_keypoints" if dataset.kind == "keypoint" else "instances"
    ids = _unique_ids([record.image_id for record in dataset.records])
    next_object = iter(_unique_ids([i.id for r in dataset.records for i in _objects(dataset, r)]))
    contents: dict[str, dict[str, Any]] = {
        split: {**{k: dataset.extra[k] for k in ("info", "licenses") if k in dataset.extra}, "images": [], "annotations": []}
        for split in dataset.splits
    }
    for (split, record, stem), image_id in zip(named_records(dataset), ids, strict=True):
        target = copy_image(record, out / split, stem)
        size = record.size or image_size(record.image, record.frame)
        described = {**record.extra, "id": image_id, "file_name": target.name, "height": size[0], "width": size[1]}
        contents[split]["images"].append(described)
        contents[split]["annotations"] += [
            _written_object(o, size, next(next_object), image_id, categories[o.label]["id"]) for o in _objects(dataset, record)
        ]
    for split, content in contents.items():
        name = f"{prefix}_{split}.json"
        if all(r.instances is None and r.label_map is None for r in dataset.splits[split]):
            name = f"{NO_TRUTH}{split}.json"
            del content["annotations"]
        write_json(out / "annotations" / name, {**content, "categories": categories})


def _read_content(file: Path, problems: Problems) -> dict[str, Any]:
    content = read_json(file)
    if isinstance(content, list):
        raise DataError(f"{file}: is a list (COCO results?), expected annotations with images, annotations and categories")
    if not isinstance(content, dict):
        raise DataError(f"{file}: is {content!r:.60}, expected COCO annotations with images, annotations and categories")
    without = file.name.startswith(NO_TRUTH)
    for key in ("images", "categories") if without else ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{file}: has no list '{key}'; expected COCO annotations with images, annotations and categories")
    for key, by in (("images", "image_id"), ("categories", "category_id")):
        if not content[key] and content.get("annotations"):
            raise DataError(f"{file}: its list '{key}' is empty, but annotations name each by {by}; export it again")
    content = sound_rows(file, content, problems)
    if any("segments_info" in a for a in content.get("annotations", [])[:1]):
        raise DataError(f"{file}: is a panoptic file; give the instances_*.json, or leave the variant away")
    return content


def _read_records(
    file: Path, content: dict[str, Any], index: dict[Any, int], schema: KeypointSchema | None, problems: Problems
) -> tuple[tuple[Record, ...], list[str]]:
    images = read_images(file, content["images"], problems)
    folder, notes = image_folder(file, [image["file_name"] for image in images.values()])
    notes += repeated_files(file, images, problems)
    if "annotations" not in content:
        return tuple(read_image(folder, image, None) for image in images.values()), notes
    objects: dict[Any, list[Instance]] = {image_id: [] for image_id in images}
    seen: set[Any] = set()
    strays = []
    for annotation in content["annotations"]:
        if (number := annotation.get("id")) is not None and number in seen:
            problems.warn("duplicate id", file, f"the annotation id {number} is given twice")
        seen.add(number)
        if annotation.get("image_id") not in objects:
            strays.append(annotation.get("image_id"))
        elif (instance := _read_object(file, annotation, index, schema, problems)) is not None:
            objects[annotation["image_id"]].append(instance)
    if strays and len(strays) == len(content["annotations"]):
        first = f"image_id {strays[0]!r}, images {next(iter(images), None)!r} ..."
        problems.error("annotation", file, f"no annotation is of a listed image: {first}; make both equal, in type too")
    elif strays:
        stray = f"{len(strays)} annotations are of images that are not listed, such as image_id {strays[0]!r}"
        problems.warn("annotation", file, stray)
        notes.append(f"{file.name}: {stray}; they are left out")
    return tuple(read_image(folder, image, tuple(objects[image_id])) for image_id, image in images.items()), notes


def _read_object(
    file: Path, annotation: dict[str, Any], index: dict[Any, int], schema: KeypointSchema | None, problems: Problems
) -> Instance | None:
    where = f"annotation {annotation.get('id')}"
    if annotation.get("category_id") not in index:
        problems.error(
            "unknown category", file, f"{where} has the category {annotation.get('category_id')!r}, which is not listed"
        )
        return None
    box, outline, points = annotation.get("bbox"), annotation.get("segmentation"), annotation.get("keypoints")
    if isinstance(outline, list) and outline and all(isinstance(v, int | float) for v in outline):
        outline = [outline]  # some exporters write a lone polygon flat
    if (fault := _shape_fault(box, outline, points, schema)) is not None:
        problems.error("annotation", file, f"{where} has {fault}")
        return None
    labelled = sum(v > 0 for v in points[2::3]) if points else 0
    if annotation.get("num_keypoints") not in (None, labelled):
        text = f"{where} has the num_keypoints {annotation['num_keypoints']!r:.60}, but {labelled} with a visibility above 0"
        problems.warn("number of keypoints", file, f"{text}, which count")
    return Instance(
        label=index[annotation["category_id"]],
        segmentation=outline if isinstance(outline, dict) else tuple(outline) if outline else None,
        box=(box[0], box[1], box[0] + box[2], box[1] + box[3]) if box is not None else None,
        keypoints=tuple(zip(points[::3], points[1::3], map(int, points[2::3]), strict=True)) if points else None,
        crowd=bool(annotation.get("iscrowd", 0)),
        area=annotation.get("area"),
        id=annotation.get("id"),
        extra={key: value for key, value in annotation.items() if key not in _OBJECT_KEYS},
    )


def _shape_fault(box: Any, outline: Any, points: Any, schema: KeypointSchema | None) -> str | None:
    """What is wrong with the forms of an annotation's shapes, of which sound_rows saw that their numbers are numbers."""
    if box is not None and not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)):
        return f"the bbox {box!r:.60}, expected [x, y, width, height]"
    if not isinstance(outline, dict | list | None) or (
        isinstance(outline, list) and any(not isinstance(p, list) for p in outline)
    ):
        return f"the segmentation {outline!r:.60}, neither polygons nor a run-length code; expected [[x, y, x, y, ...], ...]"
    if not points:
        return None
    if schema is None:
        return "keypoints, but no category has a list 'keypoints' with their names; add it, or take them out"
    if len(points) != 3 * len(schema.names):
        expected = f"{3 * len(schema.names)}, x, y and visibility of each of {', '.join(schema.names)}"
        return f"{len(points)} numbers of keypoints; expected {expected:.120}"
    if strange := [v for v in points[2::3] if v not in (0, 1, 2)]:
        return f"a keypoint of the visibility {strange[0]!r}; expected 0 (not labelled), 1 (hidden) or 2 (visible)"
    return None


def _objects(dataset: Dataset, record: Record) -> tuple[Instance, ...]:
    return record_objects(dataset, record) or ()


def _written_categories(dataset: Dataset) -> list[dict[str, Any]]:
    """Return the source's own categories if it was COCO, else new ones, numbered from 1."""
    if dataset.format == "coco" and "categories" in dataset.extra:
        return dataset.extra["categories"]
    categories: list[dict[str, Any]] = [{"id": i, "name": name} for i, name in enumerate(object_classes(dataset), 1)]
    if dataset.keypoints is not None:
        skeleton = [[a + 1, b + 1] for a, b in dataset.keypoints.edges]
        categories = [{**c, "keypoints": list(dataset.keypoints.names), "skeleton": skeleton} for c in categories]
    return categories


def _unique_ids(ids: Sequence[Any]) -> list[Any]:
    """Return the ids as they are if all are there and differ, else 1, 2, 3 ..."""
    return list(ids) if None not in ids and len(set(ids)) == len(ids) else list(range(1, len(ids) + 1))


def _written_object(instance: Instance, size: tuple[int, int], number: Any, image_id: Any, category_id: Any) -> dict[str, Any]:
    written: dict[str, Any] = {**instance.extra, "id": number, "image_id": image_id, "category_id": category_id}
    written["iscrowd"] = int(instance.crowd)
    box, area = instance.box, instance.area
    if instance.segmentation is not None:
        if box is None or area is None:
            code = segmentation_rle(instance.segmentation, size)
            box, area = box or rle_box(code), rle_area(code) if area is None else area
        written["segmentation"] = _written_segmentation(instance.segmentation)
    if box is not None:
        written["bbox"] = [box[0], box[1], round(box[2] - box[0], 6), round(box[3] - box[1], 6)]  # as short as it was read
        written["area"] = area if area is not None else (box[2] - box[0]) * (box[3] - box[1])
    if instance.keypoints is not None:
        written["keypoints"] = [value for point in instance.keypoints for value in point]
        written["num_keypoints"] = sum(point[2] > 0 for point in instance.keypoints)
    return written


def _written_segmentation(segmentation: Any) -> Any:
    if not isinstance(segmentation, dict):
        return list(segmentation)
    counts = segmentation["counts"]
    return {"size": list(segmentation["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}
