"""COCO's panoptic annotations as a data set: objects, and beside them the kinds of stuff that fill the rest of a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delineate.data.dataset import Dataset, LabelMap, Record
from delineate.data.formats.coco_files import by_split, image_folder, named_apart, read_image, read_images, split_of
from delineate.data.formats.panoptic import PanopticFile, read_panoptic
from delineate.data.formats.problems import Problems
from delineate.data.sample import IGNORE
from delineate.errors import DataError


def read_coco_panoptic(path: Path, files: list[Path], problems: Problems) -> Dataset:
    """Read panoptic files, one for each split; `path` is the folder that was given, or the one file.

    Things are the classes of the data set, stuff is its `stuff`, both by category id. Pictures without segments in the file are
    left out, with a note. Raises `DataError` naming the file for what is missing, damaged or differs between the splits.
    """
    if not files:
        raise DataError(f"{path}: has no panoptic annotations; expected annotations/panoptic_train.json or the like")
    chosen = by_split(path, files) if path.is_dir() else {split_of(path): path}
    opened = {split: read_panoptic(file) for split, file in chosen.items()}
    first, *others = opened.values()
    for other in others:
        if _categories(other) != _categories(first):
            raise DataError(f"{other.path}: its categories differ from those of {first.path}; use the same in all splits")
    order = _order(first)
    things, stuff = order[first.things[order]], order[~first.things[order]]
    if len(stuff) >= IGNORE:
        raise DataError(f"{first.path}: {len(stuff)} kinds of stuff, at most {IGNORE - 1} fit a map of class ids")
    splits, notes = {}, []
    for split, file in opened.items():
        splits[split], more = _read_records(file, problems)
        notes += more
    return Dataset(
        root=path if path.is_dir() else path.parent,
        format="coco",
        kind="panoptic",
        classes=tuple(first.classes[k] for k in things),
        splits=named_apart(splits),
        stuff=tuple(first.classes[k] for k in stuff),
        extra={"categories": [{"id": first.category_ids[k], "name": first.classes[k]} for k in things]},
        notes=tuple(notes),
    )


def _categories(file: PanopticFile) -> list[tuple[Any, str, bool]]:
    order = _order(file)
    return [(file.category_ids[k], file.classes[k], bool(file.things[k])) for k in order]


def _order(file: PanopticFile) -> NDArray[np.int64]:
    """Places of the file's categories: things by id, then stuff by id."""
    ids = file.category_ids
    return np.array(sorted(range(len(ids)), key=lambda k: (not file.things[k], isinstance(ids[k], str), ids[k])), np.int64)


def _read_records(file: PanopticFile, problems: Problems) -> tuple[tuple[Record, ...], list[str]]:
    images = read_images(file.path, list(file.images), problems)
    if not images:
        raise DataError(f"{file.path}: has no list 'images'; expected COCO's panoptic JSON with the pictures it is of")
    if strays := [image_id for image_id in file.records if image_id not in images]:
        raise DataError(f"{file.path}: has segments of the picture {strays[0]!r}, which is not among its 'images'")
    folder, notes = image_folder(file.path, [image["file_name"] for image in images.values()])
    label = np.argsort(_order(file))  # of each of the file's categories: things first, then stuff
    records = []
    for image_id, image in images.items():
        if (segments := file.records.get(image_id)) is not None:
            segments = replace(segments, labels=label[segments.labels])
            label_map = LabelMap(segments.picture, "panoptic", segments=segments)
            records.append(replace(read_image(folder, image, None), label_map=label_map))
    if left_out := len(images) - len(records):
        notes.append(f"{file.path.name}: {left_out} pictures have no segments and are left out")
    return tuple(records), notes
