"""Cityscapes: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY, label ids against train ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from delineate.data.dataset import Dataset, LabelMap, Record
from delineate.data.decode import is_image
from delineate.data.formats.classes import ClassTable, Key, read_class_file, write_class_file
from delineate.data.formats.problems import Problems
from delineate.data.formats.writing import copy_image, named_records, write_labels
from delineate.data.load import load_sample
from delineate.data.objects import outlined_only
from delineate.data.sample import IGNORE
from delineate.errors import DataError

# The 19 classes that are trained and scored: train id = place in this list, label id as in gtFine/*_labelIds.png, colour.
_TRAINED = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CITYSCAPES_CLASSES = tuple(name for name, _, _ in _TRAINED)
_LABEL_IDS: dict[Key, int] = dict.fromkeys(range(34), IGNORE)
_LABEL_IDS.update({label_id: i for i, (_, label_id, _) in enumerate(_TRAINED)})


def is_cityscapes_folder(folder: Path) -> bool:
    """Whether a folder has Cityscapes' subfolders."""
    return (folder / "leftImg8bit").is_dir() and ((folder / "gtFine").is_dir() or (folder / "gtCoarse").is_dir())


def read_cityscapes(path: Path, variant: str | None, problems: Problems) -> Dataset:
    """Read the 19 trained classes from `*_labelTrainIds.png`, or else `*_labelIds.png`; everything else is not counted.

    A `classes.txt` in the folder replaces the classes, for data in this layout that has its own train ids.
    """
    if not is_cityscapes_folder(path):
        raise DataError(f"{path}: is not a Cityscapes folder; expected leftImg8bit/ and gtFine/")
    truth = path / ("gtFine" if (path / "gtFine").is_dir() else "gtCoarse")
    own = path / "classes.txt"
    table = read_class_file(own) if own.is_file() else ClassTable(CITYSCAPES_CLASSES, None, tuple(c for *_, c in _TRAINED))
    splits = {}
    for folder in sorted(p for p in (path / "leftImg8bit").iterdir() if p.is_dir()):
        images = [p for p in sorted(folder.rglob("*")) if is_image(p)]
        splits[folder.name] = tuple(_record(path, truth, image, table) for image in images)
    order = [name for name in ("train", "val", "test") if name in splits]
    splits = {name: splits[name] for name in [*order, *(name for name in splits if name not in order)]}
    return Dataset(path, "cityscapes", "semantic", table.names, splits, palette=table.palette)


def write_cityscapes(dataset: Dataset, out: Path, variant: str | None) -> None:
    """Write label ids where all classes are Cityscapes' own, else train ids with a `classes.txt`; the city is called "all"."""
    names = dataset.semantic_classes
    own = all(name in CITYSCAPES_CLASSES for name in names)
    for split, record, stem in named_records(dataset):
        image = copy_image(record, out / "leftImg8bit" / split / "all", f"{stem}_leftImg8bit")
        if record.label_map is None and record.instances is None:
            continue
        semantic = load_sample(dataset, outlined_only(record), ("semantic",)).semantic
        assert semantic is not None
        labels = semantic.numpy()
        if own:
            table = np.zeros(IGNORE + 1, np.uint8)  # label id 0 is "unlabeled"
            table[: len(names)] = [_TRAINED[CITYSCAPES_CLASSES.index(name)][1] for name in names]
            labels = table[labels]
        kind = "labelIds" if own else "labelTrainIds"
        target = image.name.replace("_leftImg8bit", f"_gtFine_{kind}")
        write_labels(out / "gtFine" / split / "all" / Path(target).with_suffix(".png"), labels)
    if not own:
        write_class_file(out / "classes.txt", names)


def _record(root: Path, truth: Path, image: Path, table: ClassTable) -> Record:
    stem = image.stem.removesuffix("_leftImg8bit")
    folder = truth / image.parent.relative_to(root / "leftImg8bit")
    found = [(folder / f"{stem}_{truth.name}_{kind}.png", kind) for kind in ("labelTrainIds", "labelIds")]
    values = {"labelTrainIds": table.values, "labelIds": _LABEL_IDS}
    label_map = next((LabelMap(p, "semantic", values=values[kind]) for p, kind in found if p.is_file()), None)
    return Record(stem, image, label_map=label_map)
