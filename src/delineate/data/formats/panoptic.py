"""COCO's panoptic format: a JSON of segments, and beside it a PNG a picture whose colours are the segments' ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delineate.data.decode import decode_labels
from delineate.data.formats.coco_rows import record_fault, sound_rows
from delineate.data.formats.problems import Problems, json_ends, read_json
from delineate.data.panoptic import PanopticMap
from delineate.errors import DataError

_IDS = 1 << 24  # an id is a colour: red + 256 green + 256^2 blue; 0 is void


@dataclass(frozen=True, slots=True, eq=False)
class PanopticRecord:
    """One picture's segments as the JSON lists them, and where its PNG lies."""

    image_id: Any
    picture: Path
    ids: NDArray[np.int64]  # (S,) 1 .. 2^24 - 1
    labels: NDArray[np.int64]  # (S,) index into the file's classes
    crowd: NDArray[np.bool_]  # (S,)

    def load(self) -> PanopticMap:
        """Read the PNG; raises DataError for a segment that only it or only the JSON has."""
        colors = decode_labels(self.picture)
        ids = colors if colors.ndim == 2 else colors.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
        if ids.size and int(ids.max()) >= _IDS:
            raise DataError(f"{self.picture}: holds the id {ids.max()}; ids are below {_IDS}, the colours of an 8-bit RGB PNG")
        # Of this table only the pages of ids that occur are ever touched.
        segment_of = np.zeros(_IDS, np.int32)
        segment_of[self.ids] = np.arange(1, len(self.ids) + 1)
        segments = segment_of[ids]
        if (strange := (segments == 0) & (ids != 0)).any():
            raise DataError(
                f"{self.picture}: holds segment {ids[strange][0]}, which the JSON does not list for picture {self.image_id!r}; "
                "list it in segments_info or paint it black (void)"
            )
        absent = np.bincount(segments.reshape(-1), minlength=len(self.ids) + 1)[1:] == 0
        if absent.any():
            raise DataError(
                f"{self.picture}: has no pixel of segment {self.ids[absent][0]}, which the JSON lists for picture "
                f"{self.image_id!r}; take it out of segments_info"
            )
        return PanopticMap(segments, self.labels, self.crowd)


@dataclass(frozen=True, slots=True)
class PanopticFile:
    """A JSON of panoptic annotations: its classes, in the order of the file, and its pictures by image id."""

    path: Path
    category_ids: tuple[Any, ...]
    classes: tuple[str, ...]
    things: NDArray[np.bool_]  # (K,) countable objects; the others are stuff
    records: Mapping[Any, PanopticRecord]
    images: tuple[dict[str, Any], ...] = ()  # the rows of the pictures, as far as the file lists some


def read_panoptic(path: str | Path, folder: str | Path | None = None, truth: PanopticFile | None = None) -> PanopticFile:
    """Read a panoptic JSON, its PNGs in `folder` (by default beside it, under its name without .json).

    Predictions need no categories of their own: with `truth` their category ids are the truth's. A missing `iscrowd` is 0.
    Raises DataError naming the file and the record for what is missing, unknown or given twice.
    """
    path = Path(path)
    folder = path.with_suffix("") if folder is None else Path(folder)
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise DataError(f"{path}: has no list 'annotations'; expected COCO's panoptic JSON")
    content = sound_rows(path, content, Problems())
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; expected the PNGs of {path.name}, name their folder if it is another")
    ids, classes, things = (truth.category_ids, truth.classes, truth.things) if truth else _categories(path, content)
    index = {category: k for k, category in enumerate(ids)}
    records: dict[Any, PanopticRecord] = {}
    for number, annotation in enumerate(content["annotations"]):
        record = _record(path, folder, number, annotation, index)
        if record.image_id in records:
            raise DataError(f"{path}: the picture {record.image_id!r} is given twice; give each once")
        records[record.image_id] = record
    return PanopticFile(path, ids, classes, things, records, tuple(content.get("images") or ()))


def is_panoptic_file(path: Path) -> bool:
    """Whether a JSON file looks like COCO's panoptic format, by its beginning and end."""
    return b'"segments_info"' in json_ends(path)


def _categories(path: Path, content: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[str, ...], NDArray[np.bool_]]:
    categories = content.get("categories")
    if not isinstance(categories, list) or not categories:
        raise DataError(f"{path}: has no list 'categories'; expected COCO's panoptic JSON with id, name and isthing of each")
    for category in categories:
        if lacking := [key for key in ("id", "name", "isthing") if key not in category]:
            raise DataError(f"{path}: the category {category.get('name', category.get('id'))!r} has no '{lacking[0]}'")
    ids = tuple(category["id"] for category in categories)
    if repeated := [category for category in ids if ids.count(category) > 1]:
        raise DataError(f"{path}: the category id {repeated[0]!r} is given twice")
    return ids, tuple(str(c["name"]) for c in categories), np.array([bool(c["isthing"]) for c in categories])


def _record(path: Path, folder: Path, number: int, annotation: Any, index: dict[Any, int]) -> PanopticRecord:
    if lacking := [key for key in ("image_id", "file_name", "segments_info") if key not in annotation]:
        raise DataError(f"{path}: annotation {number} has no '{lacking[0]}'; is it a panoptic file?")
    where = f"{path}: picture {annotation['image_id']!r}"
    segments = annotation["segments_info"]
    if not isinstance(annotation["file_name"], str):
        raise DataError(f"{where}: has the file_name {annotation['file_name']!r:.60}; expected the name of its PNG")
    if not isinstance(segments, list):
        raise DataError(f"{where}: has the segments_info {segments!r:.60}; expected a list of segments")
    for segment in segments:
        if (fault := record_fault(segment)) is not None:
            raise DataError(f"{where}: a segment {fault}")
        if not isinstance(segment.get("id"), int) or not 0 < segment["id"] < _IDS:
            raise DataError(f"{where}: a segment has the id {segment.get('id')!r}; ids are 1 to {_IDS - 1}, and 0 is void")
        if segment.get("category_id") not in index:
            known = ", ".join(map(str, list(index)[:10])) + (" ..." if len(index) > 10 else "")
            raise DataError(
                f"{where}: segment {segment['id']} has the category_id {segment.get('category_id')!r}; known are {known}"
            )
    ids, counts = np.unique(np.array([segment["id"] for segment in segments], np.int64), return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{where}: the segment id {ids[counts > 1][0]} is given twice")
    segments = sorted(segments, key=lambda segment: segment["id"])
    return PanopticRecord(
        annotation["image_id"],
        folder / annotation["file_name"],
        ids,
        np.array([index[segment["category_id"]] for segment in segments], np.int64),
        np.array([bool(segment.get("iscrowd", 0)) for segment in segments], bool),
    )
