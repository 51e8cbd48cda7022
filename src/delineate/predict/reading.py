"""Truth and predictions from files, as `Labelling`s, without decoding any picture; and which of them belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from delineate.data.dataset import Dataset, Instance, LabelMap, Record
from delineate.data.decode import image_size, images_in, is_image, missing, page_count
from delineate.data.formats.classes import find_class_file, read_class_file
from delineate.data.formats.coco_rows import record_fault
from delineate.data.formats.names import flat_names, shortest_names
from delineate.data.formats.problems import Problems, read_json
from delineate.data.formats.survey import Page, infer_classes, looks_like_instances, survey_values
from delineate.data.formats.yolo import find_data_yaml, read_labels, read_names
from delineate.data.load import (
    has_extent,
    instance_mask,
    load_instance_map,
    load_object_classes,
    load_semantic,
    with_things,
)
from delineate.data.open import open_dataset
from delineate.data.sample import IGNORE
from delineate.errors import DataError
from delineate.metrics.coco import check_detections
from delineate.metrics.measures import Labelling

RESULTS = "results"  # the format of data sets that were a COCO results list
ObjectsFrom = Literal["auto", "instances", "components", "none"]


def read_labelling(dataset: Dataset, record: Record, image: Path, size: tuple[int, int], threshold: float = 0.0) -> Labelling:
    """Read what the label files or annotations of `record` say of `image`, a picture of `size`.

    Class ids are those of `dataset.semantic_classes`. Objects with a score below `threshold` are left out; later ones lie over
    earlier ones, those with a higher score over those with a lower, and crowd regions, under all, are not counted. Raises
    `DataError` where sizes differ or a value is no class.
    """
    record = with_things(dataset, record, size)
    if record.instances is not None:
        return _paint(record, size, threshold)
    if record.label_map is None:
        raise DataError(f"{image}: has no labels in {dataset.root}; add them or leave the picture out")
    if record.label_map.kind == "semantic":
        return Labelling(load_semantic(record.label_map, image, size, len(dataset.semantic_classes)))
    ids = load_instance_map(record.label_map, image, size)
    labels, class_map = load_object_classes(record.label_map, image, ids, len(dataset.classes))
    semantic = (ids > 0).astype(np.uint8) if class_map is None else class_map
    return Labelling(semantic, ids, labels + 1)


def _paint(record: Record, size: tuple[int, int], threshold: float) -> Labelling:
    if record.size is not None and record.size != size:
        raise DataError(f"{record.image}: is annotated as {record.size} (height, width), its truth as {size}; make them equal")
    instances = [i for i in record.instances or () if has_extent(i) and score_of(i) >= threshold]
    instances.sort(key=lambda instance: (not instance.crowd, score_of(instance)))
    semantic, objects, labels = np.zeros(size, np.uint8), np.zeros(size, np.int32), []
    for instance in instances:
        mask = instance_mask(instance, size, record)
        semantic[mask] = IGNORE if instance.crowd else instance.label + 1
        if not instance.crowd:
            labels.append(instance.label + 1)
            objects[mask] = len(labels)
    return Labelling(semantic, objects, np.array(labels, np.int64))


def score_of(instance: Instance) -> float:
    """The score of a predicted object; annotated ones, which have none, are certain."""
    score = instance.extra.get("score")
    return 1.0 if score is None else float(score)


def open_truth(path: Path, format: str | None = None, classes: Sequence[str] | None = None) -> Dataset:
    """Open a data set, or, where `path` is a label picture or a folder of nothing else, those; `classes` names its ids."""
    if format is None and _holds_labels_only(path):
        dataset = _label_dataset(path, _pages_in(path), _given_classes(path, classes))
    else:
        dataset = open_dataset(path, format)
    if classes is None:
        return dataset
    expected = len(dataset.classes)
    if len(classes) != expected:
        raise DataError(f"{path}: has {expected} classes ({', '.join(dataset.classes)}), but {len(classes)} names are given")
    return replace(dataset, classes=tuple(classes))


def _holds_labels_only(path: Path) -> bool:
    """Whether this is a label picture, or a folder of them without images: one that does not pair up as a data set."""
    if not path.exists():
        raise missing(path)
    if path.is_file():
        return is_image(path)
    if not images_in(path):
        return False
    try:
        open_dataset(path)
    except DataError:
        return True
    return False


def open_predictions(path: Path, truth: Dataset, objects: ObjectsFrom = "auto") -> Dataset:
    """Open predictions of the pictures of `truth`; label pictures without a class file hold the ids of the truth's classes.

    A folder that `delineate predict` wrote (masks/ and instances/, or YOLO's labels/), a label picture or a folder of them,
    COCO results, or any data set. Raises `DataError` for anything else.
    """
    if not path.exists():
        raise missing(path)
    if path.is_file() and path.suffix.lower() == ".json" and isinstance(content := read_json(path), list):
        return _read_results(path, content, truth)
    if (yaml := find_data_yaml(path) if path.is_dir() else None) and not (path / "images").is_dir():
        return _predicted_yolo(path, yaml, truth)
    folders = {name: path / name for name in ("masks", "instances") if (path / name).is_dir()}
    if folders and not (path / "images").is_dir():
        return _predicted_folder(path, folders, truth, objects)
    if _holds_labels_only(path):
        return _predicted_labels(path, _pages_in(path), truth, objects)
    return open_dataset(path)


def _read_results(path: Path, content: list[dict], truth: Dataset) -> Dataset:
    """COCO's list of results: detections that name an image and a category of the truth by their ids."""
    if truth.format != "coco":
        raise DataError(
            f"{path}: is a list of COCO results, whose ids say nothing without COCO truth; give annotations in COCO JSON"
        )
    categories = truth.extra["categories"]
    sizes = [(record.image_id, *(record.size or (None, None))) for record in truth.records]
    images = [{"id": image_id, "height": height, "width": width} for image_id, height, width in sizes]
    for number, detection in enumerate(content):
        if (fault := record_fault(detection)) is not None:
            raise DataError(f"{path}: detection {number} {fault}")
    try:
        check_detections({"images": images, "categories": categories}, content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    index = {category["id"]: number for number, category in enumerate(categories)}
    found: dict[int | str | None, list[Instance]] = {record.image_id: [] for record in truth.records}
    for number, detection in enumerate(content):
        box, outline = detection.get("bbox"), detection.get("segmentation")
        found[detection["image_id"]].append(
            Instance(
                index[detection["category_id"]],
                tuple(outline) if isinstance(outline, list) else outline,
                None if box is None else (box[0], box[1], box[0] + box[2], box[1] + box[3]),
                id=number,
                extra={key: detection[key] for key in ("score", "bbox", "keypoints") if detection.get(key) is not None},
            )
        )
    splits = {
        split: tuple(replace(record, label_map=None, instances=tuple(found[record.image_id])) for record in records)
        for split, records in truth.splits.items()
    }
    return replace(truth, root=path, format=RESULTS, kind="instance", splits=splits, notes=())


def _predicted_yolo(path: Path, yaml: Path, truth: Dataset) -> Dataset:
    """YOLO labels without their images, whose sizes are those of the truth's."""
    classes = read_names(yaml)
    files = {file.stem: file for file in sorted((path / "labels").rglob("*.txt"))}
    owners = {name: record for record in truth.records for name in _truth_names(record)}
    records = [
        Record(
            stem,
            owners[stem].image,
            size=truth_size(owners[stem]),
            instances=read_labels(file, owners[stem].image, len(classes), None, Problems()),
        )
        if stem in owners
        else Record(stem, file)
        for stem, file in files.items()
    ]
    return Dataset(path, "yolo", "instance", classes, {"all": tuple(records)})


def _predicted_folder(path: Path, folders: dict[str, Path], truth: Dataset, objects: ObjectsFrom) -> Dataset:
    """What `delineate predict` wrote: class ids in masks/, object ids in instances/."""
    masks = _pages_in(folders["masks"]) if "masks" in folders else {}
    instances = _pages_in(folders["instances"]) if "instances" in folders and objects in ("auto", "instances") else {}
    if truth.kind == "semantic" or not instances:
        return _predicted_labels(path, masks or instances, truth, objects)
    if lonely := sorted(masks.keys() ^ instances.keys()) if masks else []:
        raise DataError(f"{path}: {lonely[0]} is in only one of masks/ and instances/; predict it again")
    names, values = _given_classes(path, None) or truth.semantic_classes, None
    records = tuple(
        Record(
            name,
            file,
            label_map=LabelMap(file, "instance", frame, classes=LabelMap(*_semantic(masks[name], values)) if masks else None),
        )
        for name, (file, frame) in instances.items()
    )
    return Dataset(path, "png", "instance", tuple(names[1:]), {"all": records})


def _predicted_labels(path: Path, pages: dict[str, Page], truth: Dataset, objects: ObjectsFrom) -> Dataset:
    """Label pictures: class ids, or, where the truth has objects and the values exceed its classes, object ids."""
    classes = _given_classes(path, None) or truth.semantic_classes
    values = set(survey_values(list(pages.values())).values)
    exceed = bool(values - set(range(len(classes))))
    if objects == "instances" or (truth.kind != "semantic" and exceed):
        if len(classes) > 2:
            raise DataError(
                f"{path}: holds object ids up to {max(values)} without their classes, the truth has {len(classes) - 1}; "
                "give COCO JSON, or class ids in masks/ beside instances/"
            )
        records = tuple(
            Record(name, file, label_map=LabelMap(file, "instance", frame)) for name, (file, frame) in pages.items()
        )
        return Dataset(path, "png", "instance", tuple(classes[1:]), {"all": records})
    table = _value_table(values, truth, len(classes)) if exceed else None
    records = tuple(Record(name, page[0], label_map=LabelMap(*_semantic(page, table))) for name, page in pages.items())
    return Dataset(path, "png", "semantic", tuple(classes), {"all": records})


def _value_table(values: set[int], truth: Dataset, num_classes: int) -> dict | None:
    """How the values of label pictures mean classes: as in the truth, or, for two classes, 0 and 255."""
    tables = [record.label_map.values for record in truth.records if record.label_map is not None]
    for table in (tables[0] if tables else None, {0: 0, 255: 1} if num_classes == 2 else None):
        if table is not None and values <= set(table):
            return table
    return None


def _semantic(page: Page, values: dict | None) -> tuple[Path, Literal["semantic"], int, dict | None]:
    return page[0], "semantic", page[1], values


def _label_dataset(path: Path, pages: dict[str, Page], classes: Sequence[str] | None) -> Dataset:
    """Label pictures without images as a data set; the class names are given, or concluded from the values."""
    listed = list(pages.values())
    if classes is None and looks_like_instances(listed):
        records = tuple(
            Record(name, file, label_map=LabelMap(file, "instance", frame)) for name, (file, frame) in pages.items()
        )
        return Dataset(path, "png", "instance", ("object",), {"all": records}, notes=(f"{path} read as maps of object ids",))
    values, notes = None, []
    if classes is None:
        table, notes = infer_classes(survey_values(listed), f"label pictures in {path}", lossy=False)
        classes, values = table.names, table.values
    records = tuple(Record(name, page[0], label_map=LabelMap(*_semantic(page, values))) for name, page in pages.items())
    return Dataset(path, "png", "semantic", tuple(classes), {"all": records}, notes=tuple(notes))


def _given_classes(path: Path, classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names as they are given, or those of the class file in the folder."""
    if classes is not None:
        return tuple(classes)
    file = find_class_file(path) if path.is_dir() else None
    return read_class_file(file).names if file is not None else None


def _pages_in(path: Path) -> dict[str, Page]:
    """Label pictures, and the pages of multi-page TIFFs, by name: their path without suffix, as far as it is needed."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and is_image(file))
    if not files:
        raise DataError(f"{path}: holds no label pictures; expected PNG or TIFF files named as those of the truth")
    stems = [(*file.parent.relative_to(path).parts, file.stem) if path.is_dir() else (file.stem,) for file in files]
    pages: dict[str, Page] = {}
    for file, name in zip(files, shortest_names(stems), strict=True):
        count = page_count(file) if file.suffix.lower() in (".tif", ".tiff") else 1
        digits = len(str(count - 1))
        pages |= {name if count == 1 else f"{name}#{frame:0{digits}d}": (file, frame) for frame in range(count)}
    return pages


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which prediction belongs to which truth."""

    split: str
    predictions: tuple[Record, ...]
    truths: tuple[Record, ...]


def pair_records(predictions: Dataset, truth: Dataset) -> Pairs:
    """Find the prediction of each picture of the truth, or of the one split whose pictures are those that are predicted.

    Names agree when they are equal, when they would be as file names, or when the prediction has the name of the truth's image
    or label picture. Raises `DataError` naming what is missing and what is too much.
    """
    splits = {split: tuple(filter(has_truth, records)) for split, records in truth.splits.items()}
    wanted = {"all": tuple(record for records in splits.values() for record in records), **splits}
    found = {name: record for record in predictions.records for name in _names(record)}
    for split, records in wanted.items():
        partners = [_partner(record, found) for record in records]
        if None not in partners and {id(p) for p in partners} == {id(r) for r in predictions.records}:
            return Pairs(split, tuple(p for p in partners if p is not None), records)
    known = {name for record in wanted["all"] for name in _truth_names(record)}
    extra = [r.name for r in predictions.records if not known & set(_names(r))]
    absent = [record.name for record in wanted["all"] if _partner(record, found) is None]
    parts = [f"{len(absent)} pictures of the truth have no prediction ({_some(absent)})"] if absent else []
    parts += [f"{len(extra)} predictions have no truth ({_some(extra)})"] if extra else []
    raise DataError(
        f"{predictions.root}: {'; '.join(parts) or 'several predictions of one picture'}; names must agree, one for one"
    )


def _partner(record: Record, found: dict[str, Record]) -> Record | None:
    return next((found[name] for name in _truth_names(record) if name in found), None)


def _names(record: Record) -> tuple[str, ...]:
    return record.name, *flat_names([record.name])


def _truth_names(record: Record) -> tuple[str, ...]:
    """The names a prediction of this picture may have, best first."""
    files = [record.image] + ([record.label_map.path] if record.label_map is not None else [])
    return *_names(record), *(file.stem for file in files if record.frame == 0)


def align_classes(predicted: Sequence[str], truth: Sequence[str], where: str) -> tuple[NDArray[np.int64], str | None]:
    """Return the truth's id of each predicted class, and a note where names had to be taken as equal.

    >>> align_classes(("background", "b", "a"), ("background", "a", "b"), "weights")[0].tolist()
    [0, 2, 1]
    """
    if set(predicted) <= set(truth):
        return np.array([list(truth).index(name) for name in predicted], np.int64), None
    if len(predicted) != len(truth):
        raise DataError(f"{where} has the classes {_some(predicted)}, the truth {_some(truth)}; the names must agree")
    note = f"{where} calls its classes {_some(predicted)}; taken in order for {_some(truth)}"
    return np.arange(len(truth)), note


def align_objects(predicted: Sequence[str], truth: Sequence[str], where: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return the truth's label of each predicted class of objects, -1 for what the truth does not know, and notes on it.

    Classes are the same by name; where none is, but there are as many, they are taken in order. Raises `DataError` otherwise.

    >>> align_objects(("person", "cat", "dog"), ("dog", "cat"), "the network")
    (array([-1,  1,  0]), ['the network also finds person, which the truth has not: left out'])
    """
    if not set(predicted) & set(truth):
        lookup, note = align_classes(predicted, truth, where)
        return lookup, [note] if note else []
    place = {name: label for label, name in enumerate(truth)}
    lookup = np.array([place.get(name, -1) for name in predicted], np.int64)
    strange, unknown = [n for n in predicted if n not in place], [n for n in truth if n not in predicted]
    notes = [f"{where} also finds {_some(strange)}, which the truth has not: left out"] if strange else []
    notes += [f"{where} does not know {_some(unknown)}, all of which it misses"] if unknown else []
    return lookup, notes


def has_truth(record: Record) -> bool:
    """Whether a picture is annotated, if only as empty."""
    return record.label_map is not None or record.instances is not None


def truth_size(record: Record) -> tuple[int, int]:
    """Height and width of a picture, as stated or as its file has it."""
    if record.size is not None:
        return record.size
    try:
        return image_size(record.image, record.frame)
    except DataError as error:
        if record.instances is None:
            raise
        raise DataError(f"{error}; nor do the annotations state its height and width") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the name of the file that the user gave before an error that does not name it."""
    try:
        yield
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"{path}: {error}") from error


def _some(names: Iterable[str], count: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
