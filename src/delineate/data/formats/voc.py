"""PASCAL VOC: JPEGImages, palette PNGs of classes and of objects, split lists, and boxes as XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from delineate.data.dataset import Dataset, Instance, LabelMap, Record
from delineate.data.decode import decode_labels, images_in
from delineate.data.formats.classes import ClassTable, Key, read_class_file
from delineate.data.formats.problems import Problems
from delineate.data.formats.writing import VOC_PALETTE, class_palette, copy_image, named_records, write_labels
from delineate.data.load import load_sample
from delineate.data.objects import outlined_only
from delineate.data.sample import IGNORE
from delineate.errors import DataError
from delineate.files import write_text

VARIANTS = ("semantic", "instance", "boxes")
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def is_voc_folder(folder: Path) -> bool:
    """Whether a folder has VOC's subfolders."""
    has_truth = (folder / "SegmentationClass").is_dir() or any((folder / "Annotations").glob("*.xml"))
    return (folder / "JPEGImages").is_dir() and has_truth


def read_voc(path: Path, variant: str | None, problems: Problems) -> Dataset:
    """Read a folder with `JPEGImages/` and the classes in `SegmentationClass/`; 255 is not counted.

    As voc:instance the objects in `SegmentationObject/` are read with their classes; as voc:boxes, or where there are no
    label pictures, the boxes in `Annotations/`. The classes are those of a `labelmap.txt`, else VOC's twenty.
    """
    if not is_voc_folder(path):
        raise DataError(f"{path}: is not a VOC folder; expected JPEGImages/ with SegmentationClass/ or Annotations/")
    variant = variant or ("semantic" if (path / "SegmentationClass").is_dir() else "boxes")
    images = {image.stem: image for image in images_in(path / "JPEGImages")}
    splits = _splits(path, "Main" if variant == "boxes" else "Segmentation", images, variant, problems)
    if variant == "boxes":
        return _read_boxes(path, images, splits, problems)
    label_map = path / "labelmap.txt"
    table = read_class_file(label_map) if label_map.is_file() else ClassTable(VOC_CLASSES, None, VOC_PALETTE[:21])
    kind = "instance" if variant == "instance" else "semantic"
    if kind == "instance" and not (path / "SegmentationObject").is_dir():
        raise DataError(f"{path}: has no SegmentationObject/; leave --format voc:instance away")
    # A label map file gives colours and, by its order, indices: palette pictures hold indices, RGB pictures colours.
    coloured = table.values is not None and _is_coloured(path, splits)
    values = table.values if coloured else None
    return Dataset(
        root=path,
        format="voc",
        kind=kind,
        classes=table.names[1:] if kind == "instance" else table.names,
        splits={split: tuple(_record(path, s, images, kind, split, values) for s in stems) for split, stems in splits.items()},
        palette=table.palette,
    )


def write_voc(dataset: Dataset, out: Path, variant: str | None) -> None:
    """Write `JPEGImages/`, `SegmentationClass/`, for objects `SegmentationObject/`, the split lists and `labelmap.txt`."""
    with_objects = dataset.kind != "semantic" and variant != "semantic"
    palette = class_palette(dataset)
    lists: dict[str, list[str]] = {split: [] for split in dataset.splits}
    for split, record, stem in named_records(dataset):
        copy_image(record, out / "JPEGImages", stem)
        lists[split].append(stem)
        if record.label_map is None and record.instances is None:
            continue
        sample = load_sample(dataset, outlined_only(record), ("semantic", "instance_map") if with_objects else ("semantic",))
        assert sample.semantic is not None
        classes = sample.semantic.numpy()
        write_labels(out / "SegmentationClass" / f"{stem}.png", classes, palette)
        if sample.instance_map is not None:
            objects = sample.instance_map.numpy()
            if objects.max(initial=0) >= IGNORE:
                raise DataError(
                    f"{record.image}: has {objects.max()} objects, VOC holds at most {IGNORE - 1} a picture; convert to coco"
                )
            write_labels(out / "SegmentationObject" / f"{stem}.png", np.where(classes == IGNORE, IGNORE, objects), VOC_PALETTE)
    for split, stems in lists.items():
        name = "trainval" if split == "all" else split
        write_text(out / "ImageSets" / "Segmentation" / f"{name}.txt", "".join(f"{stem}\n" for stem in stems))
    names = zip(dataset.semantic_classes, palette, strict=False)
    write_text(out / "labelmap.txt", "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in names))


def _splits(root: Path, lists: str, images: dict[str, Path], variant: str, problems: Problems) -> dict[str, list[str]]:
    """Read train.txt, val.txt and test.txt; trainval.txt where those are not there; else all pictures that have a truth."""
    folder = root / "ImageSets" / lists
    files = {split: folder / f"{split}.txt" for split in ("train", "val", "test") if (folder / f"{split}.txt").is_file()}
    if not files and (folder / "trainval.txt").is_file():
        files = {"all": folder / "trainval.txt"}
    if not files:
        return {"all": [stem for stem in images if _truth(root, stem, variant).is_file()]}
    splits: dict[str, list[str]] = {}
    for split, file in files.items():
        stems = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        for stem in stems:
            if stem not in images:
                problems.error("missing file", file, f"lists {stem}, which is not in {root / 'JPEGImages'}")
        splits[split] = [stem for stem in stems if stem in images]
    return splits


def _truth(root: Path, stem: str, variant: str) -> Path:
    folder, suffix = {
        "semantic": ("SegmentationClass", ".png"),
        "instance": ("SegmentationObject", ".png"),
        "boxes": ("Annotations", ".xml"),
    }[variant]
    return root / folder / f"{stem}{suffix}"


def _record(root: Path, stem: str, images: dict[str, Path], kind: str, split: str, values: dict[Key, int] | None) -> Record:
    label_map = LabelMap(_truth(root, stem, "semantic"), "semantic", values=values)
    if kind == "instance":
        label_map = LabelMap(_truth(root, stem, "instance"), "instance", values={IGNORE: 0}, classes=label_map)
    # A test split may have no truth; in another split a missing file is left for the loader and the check to name.
    without = split == "test" and not label_map.path.is_file()
    return Record(stem, images[stem], label_map=None if without else label_map)


def _is_coloured(root: Path, splits: dict[str, list[str]]) -> bool:
    paths = (_truth(root, stem, "semantic") for stems in splits.values() for stem in stems)
    first = next((path for path in paths if path.is_file()), None)
    return first is not None and decode_labels(first).ndim == 3


def _read_boxes(path: Path, images: dict[str, Path], splits: dict[str, list[str]], problems: Problems) -> Dataset:
    parsed = {stem: _read_xml(path / "Annotations" / f"{stem}.xml", problems) for stems in splits.values() for stem in stems}
    names = sorted({name for objects in parsed.values() for name, _ in objects or ()})
    classes = VOC_CLASSES[1:] if set(names) <= set(VOC_CLASSES) else tuple(names)
    records = {
        split: tuple(
            Record(
                stem,
                images[stem],
                instances=None
                if parsed[stem] is None
                else tuple(Instance(classes.index(n), box=b) for n, b in parsed[stem] or ()),
            )
            for stem in stems
        )
        for split, stems in splits.items()
    }
    return Dataset(path, "voc", "instance", classes, records, notes=("only boxes are read, no outlines",))


def _read_xml(path: Path, problems: Problems) -> list[tuple[str, tuple[float, float, float, float]]] | None:
    """Return names and xyxy boxes; VOC counts pixels from 1 and includes the last one."""
    if not path.is_file():
        return None
    try:
        root = ElementTree.parse(path).getroot()
        objects = []
        for element in root.iter("object"):
            x0, y0, x1, y1 = (float(element.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
            objects.append((element.findtext("name", "").strip(), (x0 - 1, y0 - 1, x1, y1)))
    except (ElementTree.ParseError, ValueError) as error:
        problems.error("annotation", path, f"is not a VOC annotation ({error}); export it again")
        return None
    return objects
