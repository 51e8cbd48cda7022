"""Truth and detections in COCO's form, from files or Python objects: read, checked, and made ready for a backend."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import hotcoco
import msgspec

from delineate.errors import DataError
from delineate.metrics.average_precision import ApSettings, Category
from delineate.metrics.coco_checks import Box, Outline, Rows, Table, check_found, check_truth, is_outline

Truth = Mapping[str, Any] | str | Path
Detections = Sequence[Mapping[str, Any]] | str | Path


@dataclass(frozen=True, slots=True)
class CocoData:
    """What a backend evaluates: COCO's truth and results, or two files of them that need no correction.

    Image ids are integers from 0, or those of the files; annotations are numbered from 1, because 0 means "unmatched" to
    pycocotools; `iscrowd`, `area` and `num_keypoints` are there.
    """

    truth: dict[str, Any] | Path
    detections: list[dict[str, Any]] | Path
    categories: tuple[Category, ...]  # ascending ids
    image_ids: tuple[int, ...]  # ascending
    names: tuple[int | str, ...]  # what the caller calls the same images


def coco_data(truth: Truth, detections: Detections, settings: ApSettings, *, in_place: bool = False) -> CocoData:
    """Read, check and prepare truth (COCO's dict, or a file of it) and detections (COCO's list of results, or a file).

    `in_place`: files that need no correction are left to the backend. Raises `DataError` that names the file and the record.
    """
    rows, results = _read_truth(truth), _read_detections(detections)
    images, categories, annotations, objects = map(Table, (*rows, results))
    with _naming(truth):
        check_truth(images, categories, annotations, settings)
    with _naming(detections):
        check_found(images, categories, objects, settings)
    names = tuple(sorted(images["id"]))
    columns = zip(categories["id"], categories["name"], categories["frequency"], strict=True)
    classes = tuple(sorted(Category(i, str(i if name is None else name), kind or "") for i, name, kind in columns))
    as_structs = not any(isinstance(part[0], Mapping) for part in (*rows, results) if part)
    usable = in_place and as_structs and _usable(images, categories, annotations, settings)
    if usable and isinstance(truth, str | Path) and isinstance(detections, str | Path):
        return CocoData(Path(truth), Path(detections), classes, names, names)
    with _naming(truth):
        rows = _parts(json.loads(Path(truth).read_bytes())) if isinstance(truth, str | Path) else rows
        prepared = _prepared(rows, names, settings)
    with _naming(detections):
        results = json.loads(Path(detections).read_bytes()) if isinstance(detections, str | Path) else results
        found = _prepared_detections(results, names, prepared["images"], settings)
    if settings.federated:
        prepared, found = _federated(prepared, found, settings)
    return CocoData(prepared, found, classes, tuple(range(len(names))), names)


# --- reading


class _Object(msgspec.Struct, gc=False):
    """An annotation or a detection; what is not named here is skipped."""

    image_id: int | str | None = None
    category_id: int | None = None
    bbox: Box | None = None
    segmentation: Outline | list[msgspec.Raw] | None = None  # polygons are not parsed here: they hold most of a file's numbers
    keypoints: list[float] | None = None
    score: float | None = None
    area: float | None = None
    iscrowd: int | bool | None = None
    num_keypoints: int | None = None


class _Image(msgspec.Struct):
    id: int | str
    height: int | None = None
    width: int | None = None
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None


class _Category(msgspec.Struct):
    id: int
    name: str | None = None
    frequency: str | None = None


class _TruthFile(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Object]


class _Parts(NamedTuple):
    """The lists of a COCO truth, of structs or of dicts."""

    images: Rows
    categories: Rows
    annotations: Rows


def _read_truth(truth: Truth) -> _Parts:
    content = _read(truth, _TruthFile) if isinstance(truth, str | Path) else truth
    if isinstance(content, _TruthFile):
        return _Parts(content.images, content.categories, content.annotations)
    with _naming(truth):
        return _parts(content)


def _parts(content: Any) -> _Parts:
    if not isinstance(content, Mapping):
        raise DataError(f"is a {type(content).__name__}, expected COCO's annotations: images, categories, annotations")
    lists = [content.get(key, [] if key == "annotations" else None) for key in _Parts._fields]
    for key, rows in zip(_Parts._fields, lists, strict=True):
        if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows):
            raise DataError(
                f"'{key}' is missing or no list of records; COCO's annotations have images, categories, annotations"
            )
    return _Parts(*lists)


def _read_detections(detections: Detections) -> Rows:
    rows = _read(detections, list[_Object]) if isinstance(detections, str | Path) else detections
    with _naming(detections):
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise DataError("is no list of detections, each with image_id, category_id, score and a shape")
        if not all(issubclass(kind, Mapping | _Object) for kind in set(map(type, rows))):
            bad = next(i for i, row in enumerate(rows) if not isinstance(row, Mapping))
            raise DataError(
                f"detection {bad}: is {rows[bad]!r}; expected a record with image_id, category_id, score and a shape"
            )
    return rows


def _read(path: str | Path, kind: Any) -> Any:
    """The file as structs of `kind`; if it is not quite of that kind, as Python reads it, for checks to name the record."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a JSON file in COCO's form") from error
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError:
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}: is no JSON: {error}") from error


@contextmanager
def _naming(source: Any) -> Iterator[None]:
    """Put the name of a file, or of a record, before what is wrong with it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}" if isinstance(source, str | Path) else str(error)) from error


# --- preparing


def _usable(images: Table, categories: Table, annotations: Table, settings: ApSettings) -> bool:
    """Whether hotcoco reads these files as they would be prepared."""
    needed = {"bbox": ["bbox"], "keypoints": ["bbox", "num_keypoints"]}.get(settings.iou_type, [])
    return (
        not settings.federated
        and all(type(i) is int and i >= 0 for i in (*images["id"], *categories["id"]))
        and all(size for key in ("height", "width") for size in images[key])
        and all(None not in annotations[key] for key in ("area", "iscrowd", *needed))
    )


def _prepared(parts: _Parts, names: Sequence[int | str], settings: ApSettings) -> dict[str, Any]:
    place = {name: index for index, name in enumerate(names)}
    images = [{**image, "id": place[image["id"]]} for image in sorted(parts.images, key=lambda image: place[image["id"]])]
    for image in images:
        image |= {key: image.get(key) or 0 for key in ("height", "width")}  # 0 stands for unknown
    annotations = []
    for index, row in enumerate(parts.annotations):
        image = images[place[row["image_id"]]]
        with _naming(f"annotation {index}"):
            annotations.append({"id": index + 1, "image_id": image["id"]} | _annotation(row, image, settings))
    categories = [{**category, "name": str(category.get("name", category["id"]))} for category in parts.categories]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def _annotation(row: Mapping[str, Any], image: Mapping[str, Any], settings: ApSettings) -> dict[str, Any]:
    """What the evaluators read of an annotation; area and box are those of the mask where there is one and they are not."""
    annotation: dict[str, Any] = {"category_id": row["category_id"]}
    annotation |= {key: int(row.get(key) or 0) for key in ("iscrowd", "ignore")}
    outline, box, area = row.get("segmentation") or None, row.get("bbox"), row.get("area")
    if outline is not None and (settings.iou_type in ("segm", "boundary") or area is None or box is None):
        outline = annotation["segmentation"] = _compressed(outline, image)
        area = float(hotcoco.mask.area(outline)) if area is None else area
        box = hotcoco.mask.to_bbox(outline).tolist() if box is None else box
    if (points := row.get("keypoints")) is not None and settings.iou_type == "keypoints":
        labelled = row.get("num_keypoints")
        annotation["keypoints"] = list(points)
        annotation["num_keypoints"] = sum(v > 0 for v in points[2::3]) if labelled is None else labelled
        box = _extent(points) if box is None else box
    assert box is not None  # some shape is there: it was checked
    return annotation | {"bbox": list(box), "area": float(box[2] * box[3]) if area is None else area}


def _extent(points: Sequence[float]) -> list[float]:
    """The box of the labelled points; nothing without any."""
    labelled = [(x, y) for x, y, v in zip(points[::3], points[1::3], points[2::3], strict=True) if v > 0] or [(0.0, 0.0)]
    xs, ys = zip(*labelled, strict=True)
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _prepared_detections(
    rows: Sequence[Mapping[str, Any]], names: Sequence[int | str], images: Sequence[Mapping[str, Any]], settings: ApSettings
) -> list[dict[str, Any]]:
    shapes = ("bbox", "keypoints") if settings.iou_type == "keypoints" else ("bbox",)
    place = {name: index for index, name in enumerate(names)}
    prepared = []
    for index, row in enumerate(rows):
        image = images[place[row["image_id"]]]
        detection = {"image_id": image["id"], "category_id": row["category_id"], "score": float(row["score"])}
        detection |= {key: list(row[key]) for key in shapes if row.get(key) is not None}
        if outline := row.get("segmentation"):
            with _naming(f"detection {index}"):
                detection["segmentation"] = _compressed(outline, image)
        prepared.append(detection)
    return prepared


def _compressed(outline: Any, image: Mapping[str, Any]) -> dict[str, Any]:
    """COCO's compressed run lengths of polygons, of uncompressed run lengths, or of run lengths that are compressed already."""
    size = image["height"], image["width"]
    if not is_outline(outline):  # of a file: reading it left that open
        raise DataError("segmentation is neither polygons of 3 or more points nor a run-length code")
    try:
        if isinstance(outline, list | tuple):
            if min(size) <= 0:
                raise DataError("is polygons, but its image has no height and width in pixels; add them to 'images'")
            return hotcoco.mask.merge(hotcoco.mask.fr_py_objects([list(polygon) for polygon in outline], *size))
        if isinstance(outline["counts"], list):
            return hotcoco.mask.fr_py_objects(outline, *outline["size"])
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"segmentation cannot be read: {error}") from error
    return {"size": list(outline["size"]), "counts": outline["counts"]}


def _federated(
    truth: dict[str, Any], detections: list[dict[str, Any]], settings: ApSettings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """LVIS's rules before matching, as lvis-api has them.

    The best detections of each picture; then objects of area 0 do not exist. There are no crowds, and `ignore` counts: an area
    below 0 is outside every range.
    """
    annotations = [
        {**a, "iscrowd": 0, "area": -1.0 if a["ignore"] else a["area"]} for a in truth["annotations"] if a["area"] > 0
    ]
    by_image: dict[int, list[dict[str, Any]]] = {}
    for detection in detections:
        by_image.setdefault(detection["image_id"], []).append(detection)
    best = [sorted(of_image, key=lambda d: -d["score"])[: settings.max_detections[0]] for of_image in by_image.values()]
    return {**truth, "annotations": annotations}, [d for of_image in best for d in of_image if _area(d) > 0]


def _area(detection: Mapping[str, Any]) -> float:
    if "bbox" in detection:
        return detection["bbox"][2] * detection["bbox"][3]
    return float(hotcoco.mask.area(detection["segmentation"]))
