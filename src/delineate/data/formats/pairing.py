"""Which picture is the label of which: by the words in the names of folders and files."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from delineate.data.decode import is_image
from delineate.data.formats.names import shortest_names
from delineate.errors import DataError

Role = Literal["image", "mask", "instances", "skip"]

_IMAGE = "images?|imgs?|raws?|pictures?|photos?|frames?|inputs?|originals?|volumes?|srcs?"
_MASK = (
    "masks?|labels?|lbls?|annotations?|annots?|anno|gts?|truths?|groundtruths?|"
    "segs?|segmentations?|segmaps?|targets?|manual1?|1stho"
)
_INSTANCES = "instances?|instancemaps?"
_SPLITS = {
    "train": "train(?:ing)?|trn|tr",
    "val": "val(?:id(?:ation|ate)?)?|dev",
    "test": "test(?:ing)?|tst|ts",
}
_SPLIT = "|".join(_SPLITS.values())
_SECOND_OBSERVER = re.compile(r"(?:^|[ _\-.])(?:2ndho|2nd[_ ]?manual|manual2)$", re.IGNORECASE)
_WORD = re.compile(
    rf"(?P<before>{_SPLIT})?(?:(?P<image>{_IMAGE})|(?P<mask>{_MASK})|(?P<instances>{_INSTANCES}))?(?P<after>{_SPLIT})?\d*",
    re.IGNORECASE,
)
_SUFFIX = re.compile(
    rf"(?P<rest>.+?)[ _\-.]+(?:(?P<image>{_IMAGE})|(?P<mask>{_MASK})|(?P<instances>{_INSTANCES})|{_SPLIT})", re.IGNORECASE
)
_PREFIX = re.compile(
    rf"(?:(?P<image>{_IMAGE})|(?P<mask>{_MASK})|(?P<instances>{_INSTANCES}))(?:[ _\-.]+|(?=\d))(?P<rest>.+)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Found:
    """A picture file, and what its path says."""

    path: Path
    role: Role
    split: str | None
    split_by_name: bool  # the file's own name tells the split, not a folder's
    folder: str  # the folders that say neither role nor split, joined by "/"
    stem: str
    core: str  # the stem without words such as "mask"


@dataclass(slots=True)
class Pair:
    """An image and its label pictures."""

    image: Path
    split: str | None
    name: str
    mask: Path | None = None
    instances: Path | None = None


def pair_pictures(root: Path) -> tuple[list[Pair], list[Path], list[str]]:
    """Return the pairs below `root` sorted by path, label pictures without an image, and notes on what was left out."""
    found = _scan(root)
    notes = []
    if skipped := [f for f in found if f.role == "skip"]:
        notes.append(
            f"{len(skipped)} pictures of a second observer or of the field of view not used, such as {skipped[0].path.name}"
        )
    images = [f for f in found if f.role == "image"]
    names = shortest_names([tuple(filter(None, (f.split, *f.folder.split("/"), f.stem))) for f in images])
    pairs = [Pair(f.path, f.split, name) for f, name in zip(images, names, strict=True)]
    orphans = []
    for role in ("mask", "instances"):
        labels = [f for f in found if f.role == role]
        matches = _match(images, labels)
        for pair, match in zip(pairs, matches, strict=True):
            setattr(pair, role, match.path if match else None)
        used = {match.path for match in matches if match}
        orphans += [f.path for f in labels if f.path not in used]
    return pairs, orphans, notes


def read_folder_name(name: str) -> tuple[Role | None, str | None]:
    """Return the role and the split that a folder's name tells.

    >>> read_folder_name("trainannot"), read_folder_name("PedMasks"), read_folder_name("val2017"), read_folder_name("patient7")
    (('mask', 'train'), ('mask', None), (None, 'val'), (None, None))
    """
    role: Role | None = None
    split = None
    for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+\d*|\d+[a-z]*", name):
        match = _WORD.fullmatch(word)
        if match is None or word.isdigit():
            continue
        # "instance_maps" and "instance_masks" are instances, whatever the second word is.
        role = role if role == "instances" else (_role(match) or role)
        split = _canonical_split(match["before"] or match["after"]) or split
    return role, split


def _scan(root: Path) -> list[Found]:
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        visible = [name for name in subfolders if not name.startswith((".", "__"))]
        subfolders[:] = sorted(name for name in visible if not _leads_back(Path(folder, name)))
        parts = Path(folder).relative_to(root).parts
        told = [read_folder_name(part) for part in parts]
        role: Role | None = next((r for r, _ in reversed(told) if r), None)
        split = next((s for _, s in told if s), None)
        kept = "/".join(part for part, (r, s) in zip(parts, told, strict=True) if not r and not s)
        if (parts and _SECOND_OBSERVER.search(parts[-1])) or _is_field_of_view(Path(folder)):
            role = "skip"
        found += [_read_file_name(Path(folder, f), role, split, kept) for f in sorted(files) if is_image(Path(folder, f))]
    return _ignore_stray_words(found)


def _ignore_stray_words(found: list[Found]) -> list[Found]:
    """Take a picture called `test` among others whose names tell no split, and none "train", for one of them."""
    told = {f.split for f in found if f.role == "image"}
    if None not in told or "train" in told:
        return found
    return [replace(f, split=None) if f.split_by_name else f for f in found]


def _leads_back(path: Path) -> bool:
    """Whether a folder is a link to one that holds it, which would never end."""
    return path.is_symlink() and path.resolve() in path.parent.resolve().joinpath("x").parents


def _read_file_name(path: Path, role: Role | None, split: str | None, folder: str) -> Found:
    core, told = path.stem, None
    if (match := _WORD.fullmatch(core)) and _role(match):  # patient7/image.png and patient7/mask.png
        core, told = "", _role(match)
    if match := _SUFFIX.fullmatch(core):
        core, told = match["rest"], _role(match)
    if match := _PREFIX.fullmatch(core):
        core, told = match["rest"], told or _role(match)
    if role == "image" and told is None:
        core = re.sub(r"_0000$", "", core)  # nnU-Net numbers the channels of an image
    if role is None:
        role = "skip" if _SECOND_OBSERVER.search(path.stem) else told or "image"
    own = None if split else _canonical_split(core)  # train-volume.tif and train-labels.tif
    return Found(path, role, split or own, own is not None, folder, path.stem, core)


def _match(images: list[Found], labels: list[Found]) -> list[Found | None]:
    """Find the label of each image: the same stem, else the same stem without words such as "mask"."""
    by_stem: dict[tuple[str | None, str, str], list[Found]] = defaultdict(list)
    by_core: dict[tuple[str | None, str, str], list[Found]] = defaultdict(list)
    for label in labels:
        by_stem[label.split, label.folder, label.stem].append(label)
        by_core[label.split, label.folder, label.core].append(label)
    matches = []
    for image in images:
        candidates = by_stem[image.split, image.folder, image.stem] or by_core[image.split, image.folder, image.core]
        if len(candidates) > 1:
            raise DataError(f"{image.path}: two label pictures fit it, {candidates[0].path} and {candidates[1].path}; keep one")
        matches.append(candidates[0] if candidates else None)
    _refuse_shared_labels(images, matches)
    return matches


def _refuse_shared_labels(images: list[Found], matches: list[Found | None]) -> None:
    owner: dict[Path, Found] = {}
    for image, match in zip(images, matches, strict=True):
        if match and match.path in owner:
            raise DataError(f"{match.path}: is the label of two pictures, {owner[match.path].path} and {image.path}; keep one")
        if match:
            owner[match.path] = image


def _role(match: re.Match[str]) -> Role | None:
    roles: tuple[Role, ...] = ("image", "mask", "instances")
    return next((role for role in roles if match[role]), None)


def _canonical_split(word: str | None) -> str | None:
    return next((split for split, pattern in _SPLITS.items() if word and re.fullmatch(pattern, word, re.IGNORECASE)), None)


def _is_field_of_view(folder: Path) -> bool:
    """In the DRIVE data set `mask/` beside `1st_manual/` marks the round field of view, not the vessels."""
    return folder.name.lower() == "mask" and (folder.parent / "1st_manual").is_dir()
