"""The categories of COCO files: the same in all splits, their names as classes, and the skeleton that they define."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delineate.data.formats.problems import Problems
from delineate.errors import DataError
from delineate.skeleton import COCO_PERSON, KeypointSchema


def read_categories(files: dict[str, Path], contents: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the categories by id; all files must agree on ids and names."""
    chosen: list[dict[str, Any]] = []
    for split, content in contents.items():
        if lacking := [c for c in content["categories"] if "id" not in c or "name" not in c]:
            raise DataError(f"{files[split]}: a category lacks 'id' or 'name', it is {lacking[0]!r:.60}; give each both")
        found = sorted(content["categories"], key=lambda category: (isinstance(category["id"], str), category["id"]))
        if repeated := {c["id"] for c in found if sum(c["id"] == other["id"] for other in found) > 1}:
            raise DataError(f"{files[split]}: the category id {min(repeated)} is given twice; give each its own")
        if chosen and [(c["id"], c["name"]) for c in chosen] != [(c["id"], c["name"]) for c in found]:
            raise DataError(
                f"{files[split]}: its categories differ from those of {next(iter(files.values()))}; use the same in all splits"
            )
        chosen = chosen or found
    return chosen


def class_names(file: Path, categories: list[dict[str, Any]], problems: Problems) -> tuple[tuple[str, ...], list[str]]:
    """Return a name for each category, with its id where several have the same, and notes; `problems` hears of it too."""
    counts = Counter(str(category["name"]) for category in categories)
    notes = []
    for name, count in counts.items():
        if count > 1:
            ids = [category["id"] for category in categories if str(category["name"]) == name]
            text = f"the categories {', '.join(map(str, ids))} are all named {name!r}; rename them, or use one id"
            problems.warn("duplicate category", file, text)
            notes.append(f"{file.name}: {text}; they are called {', '.join(f'{name} {i}' for i in ids)} here")
    alike: dict[str, str] = {}
    for name in counts:
        if (other := alike.setdefault(name.strip().casefold(), name)) != name or not name.strip():
            text = f"the category name {name!r} " + (f"is nearly {other!r}" if other != name else "is empty")
            problems.warn("category name", file, f"{text}; rename it, or use one id")
    names = (str(category["name"]) for category in categories)
    return tuple(f"{n} {c['id']}" if counts[n] > 1 else n for n, c in zip(names, categories, strict=True)), notes


def keypoint_schema(
    file: Path, categories: list[dict[str, Any]], problems: Problems
) -> tuple[KeypointSchema | None, list[str]]:
    """Return the skeleton of the first category that has one, and notes; COCO counts its edges from 1.

    `problems` hears of names given twice, of edges to keypoints that there are not, and of categories with other keypoints.
    """
    with_points = [category for category in categories if category.get("keypoints")]
    if not with_points:
        return None, []
    category, *others = with_points
    names, who = tuple(map(str, category["keypoints"])), f"the category {category['name']!r}"
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        problems.warn("skeleton", file, f"{who} names the keypoint {twice!r} twice; sides change by name in mirrored pictures")
    edges = [(int(a), int(b)) for a, b in category.get("skeleton") or ()]
    if wrong := [edge for edge in edges if not all(1 <= end <= len(names) for end in edge)]:
        text = f"{who} joins the keypoints {wrong[0]}, but has {len(names)}, counted from 1; such edges are left out"
        problems.warn("skeleton", file, text)
    kept = tuple((a - 1, b - 1) for a, b in edges if (a, b) not in wrong)
    schema = KeypointSchema(names, kept, flip_pairs(names), COCO_PERSON.sigmas if names == COCO_PERSON.names else ())
    other = next((c for c in others if tuple(map(str, c["keypoints"])) != names), None)
    if other is None:
        return schema, []
    text = f"the category {other['name']!r} has other keypoints than {category['name']!r}, as whose they are read; use one list"
    problems.warn("skeleton", file, text)
    return schema, [f"{file.name}: {text}"]


def flip_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return the index pairs of names that differ in left and right alone.

    >>> flip_pairs(["nose", "left_eye", "right_eye", "r_hip", "l_hip"])
    ((1, 2), (4, 3))
    """
    place = {name.lower(): i for i, name in enumerate(names)}
    pairs = []
    for name, i in place.items():
        partner = re.sub(r"^l(?=[_\- ])", "r", re.sub("left", "right", name))
        if partner != name and partner in place:
            pairs.append((i, place[partner]))
    return tuple(pairs)
