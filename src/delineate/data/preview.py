"""Drawings of the truth over its pictures, to see whether it was read as it was meant."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from delineate.data.dataset import Dataset, Record
from delineate.data.formats.names import flat_names
from delineate.data.formats.survey import evenly
from delineate.data.load import load_panoptic, load_sample
from delineate.data.objects import has_background
from delineate.data.panoptic import stuff_map
from delineate.data.sample import Sample
from delineate.errors import DataError
from delineate.files import atomic_path, make_folder
from delineate.report.overlay import draw_instances, draw_semantic, draw_skeletons, draw_stuff, side_by_side


def preview_dataset(dataset: Dataset, out: str | Path, count: int = 16) -> list[Path]:
    """Write up to `count` PNGs into the folder `out`, each a picture beside itself with its truth drawn; return their paths.

    The pictures are evenly spread over all that have a truth. Raises `DataError` where there are none or a file cannot be
    read.
    """
    records = [record for record in dataset.records if record.label_map is not None or record.instances is not None]
    if not records:
        raise DataError(f"{dataset.root}: no picture has a truth to draw")
    out = make_folder(out)
    chosen = evenly(records, count)
    written = []
    for record, stem in zip(chosen, flat_names([record.name for record in chosen]), strict=True):
        path = out / f"{stem}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(_panel(dataset, record).permute(1, 2, 0).numpy()).save(temporary, format="PNG")
        written.append(path)
    return written


def _panel(dataset: Dataset, record: Record) -> Tensor:
    """The picture beside itself with its truth, and what that is in words."""
    sample, drawn = draw_truth(dataset, record)
    count = None if sample.labels is None else len(sample.labels)
    caption = "classes" if count is None else f"{count} object{'s' * (count != 1)}"
    return side_by_side([sample.image, drawn], [record.name, caption])


def draw_truth(dataset: Dataset, record: Record) -> tuple[Sample, Tensor]:
    """Return a picture with its truth, and a drawing of it, (3, H, W) uint8.

    Classes; or objects with their boxes where all have outlines, or boxes alone, and skeletons; stuff below them.
    """
    if dataset.kind == "semantic":
        sample = load_sample(dataset, record, ("semantic",))
        assert sample.semantic is not None
        background = 0 if has_background(dataset) else None
        return sample, draw_semantic(sample.image, sample.semantic, classes=dataset.classes, background=background)
    outlined = all(instance.segmentation is not None for instance in record.instances or ())
    want = {"boxes"} | ({"masks"} if outlined else set()) | ({"keypoints"} if dataset.keypoints else set())
    sample = load_sample(dataset, record, want)
    assert sample.labels is not None
    # A single class needs no tags, and the boxes of hundreds of cells would hide them.
    boxes = sample.boxes if len(dataset.classes) > 1 or not outlined else None
    drawn = sample.image if dataset.kind != "panoptic" else _stuff_over(sample.image, dataset, record)
    drawn = draw_instances(drawn, masks=sample.masks, boxes=boxes, labels=sample.labels, names=dataset.classes)
    if sample.keypoints is not None:
        drawn = draw_skeletons(drawn, sample.keypoints, schema=dataset.keypoints, visibility=sample.visibility)
    return sample, drawn


def _stuff_over(image: Tensor, dataset: Dataset, record: Record) -> Tensor:
    """The picture with its stuff; what does not count is hatched."""
    assert record.label_map is not None
    segments = load_panoptic(record.label_map, record.image, (image.shape[-2], image.shape[-1]))
    return draw_stuff(image, stuff_map(segments, len(dataset.classes)), dataset.stuff)
