"""Which of a folder's COCO files is for which split, and the pictures that they list."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from delineate.data.dataset import Instance, Record
from delineate.data.formats.names import shortest_names
from delineate.data.formats.pairing import read_folder_name
from delineate.data.formats.problems import Problems, json_ends
from delineate.errors import DataError

NO_TRUTH = "image_info_"
"""How COCO calls a list of test images."""

SPLITS = ("train", "val", "test", "all")
_IMAGE_KEYS = {"id", "file_name", "height", "width"}


def is_coco_file(path: Path) -> bool:
    """Whether a JSON file looks like COCO annotations, by its beginning and end."""
    text = json_ends(path)
    return b'"shapes"' not in text and any(key in text for key in (b'"annotations"', b'"categories"', b'"images"'))


def find_coco_files(folder: Path) -> list[Path]:
    """Return the COCO files of a folder, of its `annotations/`, or of its split folders."""
    for pattern in ("annotations/*.json", "*.json", "*/*.json"):
        if files := [path for path in sorted(folder.glob(pattern)) if is_coco_file(path)]:
            return files
    return []


def choose_files(folder: Path, files: list[Path], variant: str | None) -> dict[str, Path]:
    """Pick one file for each split: `instances_*` where there are such, `person_keypoints_*` if asked for.

    `image_info_*` lists images without truth; it serves splits that no other file is for.
    """
    untold = [f for f in files if f.name.startswith(NO_TRUTH)]
    files = [f for f in files if not f.name.startswith(("panoptic_", "captions_", "stuff_", NO_TRUTH))]
    for prefix in ("person_keypoints_" if variant == "keypoint" else "instances_", "person_keypoints_"):
        if preferred := [f for f in files if f.name.startswith(prefix)]:
            files = preferred
            break
    chosen = by_split(folder, files)
    for file in untold:
        chosen.setdefault(split_of(file), file)
    if not chosen:
        raise DataError(f"{folder}: has no COCO annotations; expected annotations/instances_train.json or the like")
    return {split: chosen[split] for split in SPLITS if split in chosen}


def by_split(folder: Path, files: list[Path]) -> dict[str, Path]:
    """Return the file of each split; raises `DataError` where two are for the same."""
    chosen: dict[str, Path] = {}
    for file in files:
        split = split_of(file)
        if split in chosen:
            raise DataError(f"{folder}: {chosen[split].name} and {file.name} are both for '{split}'; give one of them by path")
        chosen[split] = file
    return {split: chosen[split] for split in SPLITS if split in chosen}


def split_of(file: Path) -> str:
    """Return the split that a file's name, or else its folder's, tells; "all" if neither does."""
    return read_folder_name(file.stem)[1] or read_folder_name(file.parent.name)[1] or "all"


def read_images(file: Path, listed: list[Any], problems: Problems) -> dict[Any, dict[str, Any]]:
    """Return the pictures that a file lists, by id; `problems` hears of those that cannot be read."""
    images: dict[Any, dict[str, Any]] = {}
    for image in listed:
        if not isinstance(image, dict) or "id" not in image or "file_name" not in image:
            problems.error("annotation", file, f"an image lacks 'id' or 'file_name', it is {image!r:.60}; give it both")
        elif image["id"] in images:
            problems.error("duplicate id", file, f"the image id {image['id']} is given twice; give each its own")
        else:
            images[image["id"]] = image
    return images


def repeated_files(file: Path, images: dict[Any, dict[str, Any]], problems: Problems) -> list[str]:
    """Return a note, of which `problems` hears too, where a picture is listed under several ids."""
    counts = Counter(image["file_name"] for image in images.values())
    if not (repeated := [name for name, count in counts.items() if count > 1]):
        return []
    text = f"{len(repeated)} pictures are listed under several ids, such as {repeated[0]!r}"
    problems.warn("duplicate picture", file, f"{text}; give each one id, else the objects of the others are background to it")
    return [f"{file.name}: {text}; each has the objects of its own id alone"]


def read_image(folder: Path, image: dict[str, Any], objects: tuple[Instance, ...] | None) -> Record:
    """Return the record of a picture in `folder`, as a file lists it."""
    size = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
    extra = {key: value for key, value in image.items() if key not in _IMAGE_KEYS}
    return Record(
        image["file_name"], folder / image["file_name"], size=size, image_id=image["id"], instances=objects, extra=extra
    )


def image_folder(file: Path, names: list[str]) -> tuple[Path, list[str]]:
    """Return the folder that the file names are relative to: the first of the usual places that has one of the images."""
    beside, above = file.parent, file.parent.parent
    words = file.stem.split("_")
    # instances_val2014_100 may lie with val2014_100/ or val2014/, person_keypoints_val2017 with val2017/
    tails = ["_".join(words[i:j]) for i in range(1, len(words)) for j in range(len(words), i, -1)]
    places = [base / tail for tail in ("", "images") for base in (beside, above)]
    places += [base / tail for tail in tails for base in (above, above / "images", beside, beside / "images")]
    split = split_of(file)
    places += [base / split for base in (above, above / "images", beside, beside / "images")]
    for place in places:
        if any((place / name).is_file() for name in names[:20]):
            return place, []
    return places[0], [
        f"{file.name}: its images were not found beside it, nor in {', '.join(tails[:1]) or 'images'}/"
    ] if names else []


def named_apart(splits: dict[str, tuple[Record, ...]]) -> dict[str, tuple[Record, ...]]:
    """Name the records by stem, with folders and the split in front where stems repeat."""
    paths = [(split, *PurePosixPath(r.name).with_suffix("").parts) for split, records in splits.items() for r in records]
    names = iter(shortest_names(paths))
    return {split: tuple(replace(record, name=next(names)) for record in records) for split, records in splits.items()}
