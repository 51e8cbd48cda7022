"""Whether the records of a COCO file have the types that COCO gives them, so that the reader need not ask again.

What is missing is for the reader to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from delineate.data.formats.problems import Problems


def sound_rows(file: Path, content: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """Return the content with the images, categories and annotations that can be read; `problems` hears of the others."""
    kept = dict(content)
    for key, fault in _FAULTS.items():
        if isinstance(content.get(key), list):
            kept[key] = [row for n, row in enumerate(content[key]) if _is_sound(file, key, n, row, fault, problems)]
    return kept


def _is_sound(
    file: Path, key: str, number: int, row: Any, fault: Callable[[dict[str, Any]], str | None], problems: Problems
) -> bool:
    found = fault(row) if isinstance(row, dict) else f"is {row!r:.60}; expected an object in braces"
    if found is not None:
        problems.error("annotation", file, f"entry {number} of '{key}' {found}")
    return found is None


def _image_fault(image: dict[str, Any]) -> str | None:
    if not _is_id(image.get("id", 0)):
        return f"has the id {image['id']!r:.60}; expected a number or a text"
    if "file_name" in image and not (isinstance(image["file_name"], str) and image["file_name"]):
        return f"has the file_name {image['file_name']!r:.60}; expected the name of a picture"
    if "://" in image.get("file_name", ""):
        return f"has the file_name {image['file_name']!r:.60}, an address; download it and give the name of the file"
    for key in ("height", "width"):
        if not (image.get(key) is None or (_is_number(image[key]) and image[key] == int(image[key]) > 0)):
            return f"has the {key} {image[key]!r:.60}; expected a number of pixels"
    return None


def _category_fault(category: dict[str, Any]) -> str | None:
    if not _is_id(category.get("id", 0)):
        return f"has the id {category['id']!r:.60}; expected a number"
    if not isinstance(category.get("name", ""), str | int):
        return f"has the name {category['name']!r:.60}; expected a text"
    names, edges = category.get("keypoints") or [], category.get("skeleton") or []
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        return f"has the keypoints {names!r:.60}; expected a list of names"
    if not isinstance(edges, list) or not all(isinstance(e, list) and len(e) == 2 and all(map(_is_number, e)) for e in edges):
        return f"has the skeleton {edges!r:.60}; expected pairs of numbers of keypoints"
    return None


def record_fault(record: Any) -> str | None:
    """What is wrong with the types of an annotation, a detection or a segment; None where nothing is.

    >>> record_fault({"image_id": 1, "category_id": [2]})
    'has the category_id [2]; expected a number'
    """
    if not isinstance(record, dict):
        return f"is {record!r:.60}; expected an object in braces"
    if isinstance(score := record.get("score"), int) and not _is_number(score):
        return f"has the score {score!r:.60}; expected a finite number"
    return _annotation_fault(record)


def _annotation_fault(annotation: dict[str, Any]) -> str | None:
    for key in ("id", "image_id", "category_id"):
        if not (annotation.get(key) is None or _is_id(annotation[key])):
            return f"has the {key} {annotation[key]!r:.60}; expected a number"
    if annotation.get("iscrowd") not in (None, 0, 1):
        return f"has the iscrowd {annotation['iscrowd']!r:.60}; expected 0 or 1"
    if not (annotation.get("area") is None or _is_number(annotation["area"])):
        return f"has the area {annotation['area']!r:.60}; expected a number of pixels"
    if not _are_numbers(annotation.get("keypoints") or []):
        return f"has the keypoints {annotation['keypoints']!r:.60}; expected numbers x, y, v"
    if isinstance(box := annotation.get("bbox"), list) and len(box) == 4 and not _are_numbers(box):
        return f"has the bbox {box!r:.60}; expected [x, y, width, height]"
    return _outline_fault(annotation.get("segmentation"))


def _outline_fault(outline: Any) -> str | None:
    if isinstance(outline, dict):
        size, counts = outline.get("size"), outline.get("counts")
        if not (isinstance(size, list) and len(size) == 2 and _are_numbers(size)):
            return f"has a run-length code of the size {size!r:.60}; expected [height, width]"
        if not isinstance(counts, str) and not _are_numbers(counts):
            return f"has a run-length code with the counts {counts!r:.60}; expected a list of numbers or a text"
    if isinstance(outline, list) and (strange := [p for p in outline if isinstance(p, list) and not _are_numbers(p)]):
        return f"has the polygon {strange[0]!r:.60}; expected numbers x, y, x, y ..."
    if isinstance(outline, list) and (odd := [p for p in outline if isinstance(p, list) and len(p) % 2]):
        return f"has the polygon {odd[0]!r:.60} of {len(odd[0])} numbers; a polygon needs pairs x, y: add or take out one"
    return None


_FAULTS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "images": _image_fault,
    "categories": _category_fault,
    "annotations": _annotation_fault,
}


_BEYOND = 1e15
"""No picture is as large, and a float holds every whole number below."""


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _BEYOND  # NaN is not below either


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))
