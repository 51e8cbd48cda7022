"""A folder a picture, with a mask file an object: `NAME/images/NAME.png`, `NAME/masks/*.png` (Data Science Bowl 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from delineate.data.dataset import Dataset, LabelMap, Record
from delineate.data.decode import images_in
from delineate.data.formats.problems import Problems
from delineate.errors import DataError

_SPLITS = {"train": "train", "stage1_train": "train", "val": "val", "stage1_test": "test", "test": "test"}


def is_object_masks_folder(root: Path) -> bool:
    """Whether a folder, or a split in it, holds a folder a picture."""
    return next(_picture_folders(root), None) is not None


def read_object_masks(root: Path, variant: str | None, problems: Problems) -> Dataset:
    """Read pictures in folders of their own, each with a binary mask an object in `masks/`, all of one class, "object".

    The folders lie in `root`, or in `stage1_train/`, `train/`, `val/`, `test/` ... in it. A picture without `masks/` is
    unlabelled. Masks that overlap: the file that comes later by name wins.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder that holds a folder a picture, with images/ and masks/")
    splits: dict[str, list[Record]] = {}
    for split, folder in _picture_folders(root):
        masks = folder / "masks"
        label_map = LabelMap(masks, "instance") if masks.is_dir() else None
        where = split if label_map or split == "test" else "unlabelled"
        if where == "unlabelled":
            problems.warn("unpaired file", folder, "has no masks/ beside images/")
        splits.setdefault(where, []).append(Record(folder.name, images_in(folder / "images")[0], label_map=label_map))
    if not splits:
        raise DataError(f"{root}: no folder in it holds images/ and masks/; leave --format away, and it is recognised")
    ordered = {name: tuple(splits[name]) for name in ("train", "val", "test", "all", "unlabelled") if name in splits}
    return Dataset(root, "object_masks", "instance", ("object",), ordered)


def _picture_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """The folders `NAME` with one picture `images/NAME.*`, in order of their names, and the split each is in."""
    places = [("all", root), *((split, root / name) for name, split in _SPLITS.items() if (root / name).is_dir())]
    for split, place in places:
        for folder in sorted(p for p in place.iterdir() if (p / "images").is_dir()):
            if [image.stem for image in images_in(folder / "images")] == [folder.name]:
                yield split, folder
