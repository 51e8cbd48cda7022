"""Opening a data set: which format it is in, and its splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from delineate.data.dataset import Dataset, Record
from delineate.data.decode import missing
from delineate.data.formats import cityscapes, coco, coco_files, labelme, object_masks, png, voc, yolo
from delineate.data.formats.problems import Problems
from delineate.errors import ConfigError, DataError, suggest

READERS: dict[str, Callable[[Path, str | None, Problems], Dataset]] = {
    "png": png.read_png,
    "coco": coco.read_coco,
    "yolo": yolo.read_yolo,
    "voc": voc.read_voc,
    "cityscapes": cityscapes.read_cityscapes,
    "labelme": labelme.read_labelme,
    "object_masks": object_masks.read_object_masks,
}
VARIANTS: dict[str, tuple[str, ...]] = {"png": png.VARIANTS, "coco": coco.VARIANTS, "voc": voc.VARIANTS}


def open_dataset(path: str | Path, format: str | None = None, problems: Problems | None = None) -> Dataset:
    """Read what a data set says, without decoding images; the format is recognised, or forced with `format`.

    `format` is one of png, coco, yolo, voc, cityscapes, labelme, object_masks; a variant may follow a colon: png:semantic,
    png:instance, voc:instance, voc:boxes, coco:keypoint, coco:panoptic. With `problems` that collect, what can be skipped is
    noted there instead of raised. Raises `DataError` naming the path, what was seen and what is expected; `ConfigError` for an
    unknown format.
    """
    path = Path(path)
    name, variant = parse_format(format) if format else (None, None)
    if not path.exists():
        raise missing(path)
    name = name or recognise(path)
    dataset = READERS[name](path, variant, problems or Problems())
    if not dataset.records:
        raise DataError(f"{path}: read as {name}, it holds no pictures; force another format with --format")
    return dataset


def parse_format(text: str) -> tuple[str, str | None]:
    """Split `name:variant`; raises `ConfigError` with a suggestion for an unknown one.

    >>> parse_format("png:instance")
    ('png', 'instance')
    """
    name, _, variant = text.partition(":")
    if name not in READERS:
        raise ConfigError(f"--format {text}: unknown format; expected {', '.join(READERS)}{suggest(name, list(READERS))}")
    known = VARIANTS.get(name, ())
    if variant and variant not in known:
        raise ConfigError(
            f"--format {text}: expected {' or '.join(f'{name}:{v}' for v in known) or name}{suggest(variant, known)}"
        )
    return name, variant or None


def recognise(path: Path) -> str:
    """Return the name of the format that `path` looks like; a folder that looks like no other is read as png."""
    if path.is_file():
        return _recognise_file(path)
    if cityscapes.is_cityscapes_folder(path):
        return "cityscapes"
    if voc.is_voc_folder(path):
        return "voc"
    if yolo.find_data_yaml(path):
        return "yolo"
    if coco_files.find_coco_files(path):
        return "coco"
    if labelme.find_labelme_files(path):
        return "labelme"
    if object_masks.is_object_masks_folder(path):
        return "object_masks"
    return "png"


def _recognise_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return "yolo"
    if suffix == ".json":
        return "labelme" if labelme.is_labelme_file(path) else "coco"
    if suffix in (".zip", ".tar", ".gz", ".tgz"):
        raise DataError(f"{path}: is an archive; unpack it and give the folder")
    raise DataError(f"{path}: is not a data set; give a folder, a COCO or labelme .json, or a YOLO data .yaml")


def split_dataset(dataset: Dataset, val_fraction: float = 0.2) -> Dataset:
    """Return a data set that has "train" and "val": as it is if it has both, else with every n-th picture by name held back.

    The choice depends on the names alone. Pictures of "test" and "unlabelled" are left where they are, but a "test" that is
    all there is and has truth is the data set itself. Raises `DataError` where fewer than two pictures have a truth.
    """
    if "train" in dataset.splits and "val" in dataset.splits:
        return dataset
    candidates = ("train", "all", "val", *(["test"] if _has_truth(dataset.splits.get("test", ())) else []))
    source = next((name for name in candidates if name in dataset.splits), None)
    if source is None:
        seen = ", ".join(dataset.splits)
        raise DataError(f"{dataset.root}: has the splits {seen}, but nothing to train on; expected train/ or one folder")
    records = sorted(dataset.splits[source], key=lambda record: record.name)
    if len(records) < 2:
        raise DataError(f"{dataset.root}: {len(records)} picture in '{source}' cannot be split into train and val; add one")
    count = min(max(1, round(len(records) * val_fraction)), len(records) - 1)
    held = {int((i + 0.5) * len(records) / count) for i in range(count)}
    train: tuple[Record, ...] = tuple(r for i, r in enumerate(records) if i not in held)
    val = tuple(r for i, r in enumerate(records) if i in held)
    rest = {name: members for name, members in dataset.splits.items() if name != source}
    notes = [
        f"no validation split: {count} of {len(records)} pictures of '{source}', evenly spread by name, held back as 'val'"
    ]
    if source == "test":
        notes.insert(0, "'test' is the only split with truth and is trained on; nothing is kept aside to test")
    return replace(dataset, splits={"train": train, "val": val, **rest}, notes=(*dataset.notes, *notes))


def _has_truth(records: tuple[Record, ...]) -> bool:
    return any(record.label_map is not None or record.instances is not None for record in records)
