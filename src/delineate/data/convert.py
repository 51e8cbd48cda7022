"""Converting data sets: what the other format cannot hold, and writing it."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from delineate.data.dataset import Dataset, Instance, Record
from delineate.data.decode import Array, image_size
from delineate.data.formats.cityscapes import write_cityscapes
from delineate.data.formats.coco import write_coco
from delineate.data.formats.labelme import write_labelme
from delineate.data.formats.png import write_png
from delineate.data.formats.voc import write_voc
from delineate.data.formats.yolo import write_yolo
from delineate.data.objects import record_objects
from delineate.data.open import parse_format
from delineate.data.raster import decode_rle, rle_area, segmentation_rle, union_area
from delineate.data.sample import IGNORE
from delineate.errors import ConfigError
from delineate.files import make_folder
from delineate.ops.polygons import mask_to_polygons

WRITERS: dict[str, Callable[[Dataset, Path, str | None], None]] = {
    "png": write_png,
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "cityscapes": write_cityscapes,
    "labelme": write_labelme,
}


def write_dataset(dataset: Dataset, out: str | Path, format: str) -> None:
    """Write a data set in another format into the new folder `out`: all of it or, where it fails, nothing.

    `format` is as in `open_dataset`; png:semantic and voc:semantic write objects as their classes. `conversion_losses`
    tells what is lost. Raises `ConfigError` where `out` is not empty, `DataError` naming a file that cannot be read.
    """
    name, variant = _target(dataset, format)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not empty; choose a new folder")
    make_folder(out.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        WRITERS[name](dataset, temporary, variant)
        temporary.chmod(0o755)
        if out.exists():
            out.rmdir()
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def conversion_losses(dataset: Dataset, format: str) -> list[str]:
    """Return what `format` cannot hold of this data set, a sentence each; an empty list means nothing is lost of the truth.

    Reads the truth of every picture. Fields that delineate does not know, which COCO keeps, are not counted.
    """
    name, variant = _target(dataset, format)
    stuff = [f"{len(dataset.stuff)} kinds of stuff: only objects are written"] if dataset.stuff else []
    if name == "coco":
        return stuff
    facts = _Facts(dataset, outlines=dataset.kind != "keypoint" or name != "yolo")
    if name == "labelme":
        checks = ("keypoints", "boxes as rectangles")
    elif name == "yolo":
        checks = ("yolo pose",) if dataset.kind == "keypoint" else ("holes", "pieces", "crowds left out", "ignored")
    elif dataset.kind == "semantic":
        checks = ()
    elif name == "cityscapes" or variant == "semantic":
        checks = ("identity", "keypoints", "boxes")
    elif name == "voc":
        checks = ("overlaps", "crowds as void", "keypoints", "boxes", "many objects")
    else:
        checks = ("overlaps", "crowds left out" if len(dataset.classes) == 1 else "crowds as void", "keypoints", "boxes")
    return stuff + [sentence for check in checks if (sentence := facts.sentence(check))]


def _target(dataset: Dataset, format: str) -> tuple[str, str | None]:
    name, variant = parse_format(format)
    if name not in WRITERS:
        raise ConfigError(f"--to {format}: is read, not written; expected {', '.join(WRITERS)}")
    if variant not in (None, "semantic", "instance"):
        raise ConfigError(f"--to {format}: cannot be written; use --to {name}")
    if dataset.kind == "semantic" and variant not in (None, "semantic"):
        raise ConfigError(f"--to {format}: {dataset.root} holds classes, not objects; use --to {name}")
    return name, variant


class _Facts:
    """Counts of what only some formats can hold."""

    def __init__(self, dataset: Dataset, outlines: bool) -> None:
        self.dataset = dataset
        self.counts: Counter[str] = Counter()
        for record in dataset.records:
            objects = record_objects(dataset, record)
            if objects is not None:
                self._add(record, objects, outlines)

    def _add(self, record: Record, objects: tuple[Instance, ...], outlines: bool) -> None:
        counts = self.counts
        single = [o for o in objects if not o.crowd]
        counts["objects"] += len(single)
        counts["crowds"] += len(objects) - len(single)
        counts["keypoints"] += sum(o.keypoints is not None for o in objects)
        outlined = [o for o in single if o.segmentation is not None]
        counts["boxes"] += len(single) - len(outlined)
        counts["outlines"] += len(outlined)
        counts["crowded pictures"] += len(single) >= IGNORE
        if not outlines or not outlined:
            return
        size = image_size(record.image, record.frame)
        codes = [segmentation_rle(o.segmentation, size) for o in outlined if o.segmentation is not None]
        counts["overlapping pictures"] += sum(map(rle_area, codes)) > union_area(codes)
        for code in codes:
            outer, holes = mask_to_polygons(_cropped(decode_rle(code)))
            counts["pieces"] += len(outer) > 1
            counts["holes"] += bool(holes)

    def sentence(self, check: str) -> str | None:
        """Return what is lost, or None if this data set has nothing of the kind."""
        semantic = self.dataset.kind == "semantic"
        whole = "class regions" if semantic else "objects"
        count, text = {
            "keypoints": ("keypoints", "the keypoints of {} objects"),
            "boxes": ("boxes", "{} objects that have a box but no outline"),
            "boxes as rectangles": ("boxes", "that {} objects have a box but no outline: they become filled rectangles"),
            "holes": ("holes", f"the holes of {{}} {whole}: they are filled"),
            "pieces": ("pieces", "" if semantic else "that {} objects have several pieces: each piece becomes an object"),
            "crowds left out": ("" if semantic else "crowds", "{} crowd regions"),
            "crowds as void": ("crowds", "that {} regions are crowds: they become void"),
            "ignored": ("crowds" if semantic else "", "the pixels that do not count, in {} pictures: they become background"),
            "identity": ("objects", "which of the {} objects a pixel belongs to: only classes are written"),
            "overlaps": ("overlapping pictures", "the covered parts of overlapping objects in {} pictures"),
            "many objects": ("crowded pictures", "{} pictures with more than 254 objects: they cannot be written"),
            "yolo pose": (
                "outlines",
                "the outlines of {} objects, crowds and the skeleton's edges: a pose file holds box and keypoints",
            ),
        }[check]
        return text.format(self.counts[count]) if text and self.counts[count] else None


def _cropped(mask: Array) -> Array:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else mask[:0, :0]
