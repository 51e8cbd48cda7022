"""`Dataset`: what a folder or annotation file says, before any pixel is decoded; every format reads and writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from delineate.skeleton import KeypointSchema

if TYPE_CHECKING:
    from delineate.data.formats.panoptic import PanopticRecord

Polygon = list[float]  # x0, y0, x1, y1, ... in pixels
Rle = dict[
    str, Any
]  # {"size": [h, w], "counts": list[int] (uncompressed) | str | bytes (compressed)}, COCO's column-major runs


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotated object, as stored on disk."""

    label: int  # index into Dataset.classes
    segmentation: tuple[Polygon, ...] | Rle | None = None  # one or more polygons (their union), or a run-length code
    box: tuple[float, float, float, float] | None = None  # xyxy, pixels
    keypoints: tuple[tuple[float, float, int], ...] | None = None  # x, y, visibility (0 unlabelled, 1 hidden, 2 visible)
    crowd: bool = False
    area: float | None = None
    id: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # fields of the source that delineate does not read, kept for writing


@dataclass(frozen=True, slots=True)
class LabelMap:
    """A picture of class ids, of object ids or of segments that lies beside the image."""

    path: Path  # a file; for objects also a folder with a binary mask each
    kind: Literal["semantic", "instance", "panoptic"]
    frame: int = 0  # page of a multi-page TIFF
    # kind semantic: raw pixel value (or RGB colour) -> class id; None: the values are the ids. Others, 255 aside, are errors.
    # kind instance: raw values to rewrite, such as {255: 0} for VOC's void; all others are ids.
    values: dict[int | tuple[int, int, int], int] | None = None
    classes: LabelMap | None = None  # kind instance: a semantic picture that tells the class of each object; None: one class
    segments: PanopticRecord | None = None  # kind panoptic: what the colours stand for; labels: things 0 to K - 1, then stuff


@dataclass(frozen=True, slots=True)
class Record:
    """One picture of a data set and where its truth lies."""

    name: str  # unique in the data set: the stem, with folders joined by "/" where stems repeat, "#page" for TIFF pages
    image: Path
    frame: int = 0  # page of a multi-page TIFF
    size: tuple[int, int] | None = None  # height, width as the annotation states them
    image_id: int | str | None = None
    instances: tuple[Instance, ...] | None = None  # None: this data set has no objects; (): a picture without objects
    label_map: LabelMap | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set read from disk: its classes, and the records of each split. Made by `delineate.data.open_dataset`."""

    root: Path
    format: str  # "png", "coco", "yolo", "voc", "cityscapes", "labelme", "object_masks"
    kind: Literal["semantic", "instance", "keypoint", "panoptic"]  # what its truth is
    classes: tuple[str, ...]  # semantic: index = id in the label map, background included; others: objects only
    splits: dict[str, tuple[Record, ...]]  # "train", "val", "test"; a data set without splits has only "all"
    keypoints: KeypointSchema | None = None
    stuff: tuple[str, ...] = ()  # panoptic: the classes of what is no object
    palette: tuple[tuple[int, int, int], ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # what the source says beyond this, kept for writing and for checks
    notes: tuple[str, ...] = ()  # what was concluded while reading ("labels/*.png read as instance maps: ...")

    @property
    def semantic_classes(self) -> tuple[str, ...]:
        """Names whose index is the id in `Sample.semantic`: for objects, "background" and then the classes."""
        return self.classes if self.kind == "semantic" else ("background", *self.classes)

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of all splits, in order."""
        return tuple(record for split in self.splits.values() for record in split)
