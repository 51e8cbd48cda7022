"""What all writers share: copying pictures, label pictures, names of output files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from delineate.data.dataset import Dataset, Record
from delineate.data.decode import Array, page_count, read_pixels
from delineate.data.formats.names import flat_names
from delineate.errors import DataError
from delineate.files import atomic_path

Palette = tuple[tuple[int, int, int], ...]


def named_records(dataset: Dataset) -> Iterator[tuple[str, Record, str]]:
    """Yield split, record and the stem of its output files, which is unique in the whole data set."""
    stems = iter(flat_names([record.name for record in dataset.records]))
    for split, records in dataset.splits.items():
        for record in records:
            yield split, record, next(stems)


def copy_image(record: Record, folder: Path, stem: str) -> Path:
    """Copy the picture of a record unchanged, or write its page of a stack as a file of its own; return the new path."""
    if record.image.suffix.lower() not in (".tif", ".tiff") or page_count(record.image) == 1:
        target = folder / f"{stem}{record.image.suffix.lower()}"
        with atomic_path(target) as temporary:
            shutil.copyfile(record.image, temporary)
        return target
    pixels = read_pixels(record.image, record.frame)
    target = folder / f"{stem}.tif"
    with atomic_path(target) as temporary:
        tifffile.imwrite(temporary, pixels, compression="zlib", photometric="rgb" if pixels.ndim == 3 else "minisblack")
    return target


def write_labels(path: Path, labels: Array, palette: Palette | None = None) -> None:
    """Write a `(H, W)` label picture as PNG: 8 bit for bytes and with a palette, else 16 bit."""
    depth = np.uint8 if palette or labels.dtype == np.uint8 else np.uint16
    if (most := labels.max(initial=0)) > np.iinfo(depth).max:
        raise DataError(f"{path}: would hold {most} ids, more than a label picture can; convert to coco")
    picture = Image.fromarray(labels.astype(depth))
    if palette:
        picture.putpalette([value for colour in palette for value in colour])
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def class_palette(dataset: Dataset) -> Palette:
    """Return 256 colours: the data set's own for its classes, then those of PASCAL VOC."""
    own = dataset.palette or ()
    return (*own, *VOC_PALETTE[len(own) :])


def _voc_colour(index: int) -> tuple[int, int, int]:
    """PASCAL VOC's colour map: the bits of the index, three at a time, fill red, green and blue from the highest bit down."""
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * place + channel) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]


VOC_PALETTE: Palette = tuple(_voc_colour(i) for i in range(256))
