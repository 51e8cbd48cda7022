"""`Results`: what was found in one picture, and the ways out: drawings, COCO, files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from delineate.data.decode import decode_image
from delineate.data.panoptic import PanopticMap
from delineate.errors import ConfigError
from delineate.predict.masks import InstanceMapMasks, Masks, crop_of
from delineate.predict.objects import Objects, extract_objects
from delineate.skeleton import KeypointSchema


@dataclass(slots=True)
class Results:
    """What was found in one picture.

    Coordinates are pixels of the original picture, (0, 0) the outer corner of its first pixel. `labels` and `semantic` hold
    indices into `classes`.
    """

    size: tuple[int, int]  # height, width
    classes: tuple[str, ...]
    name: str = "image"  # that outputs are called by
    path: Path | None = None  # of the picture, where it came from a file
    frame: int = 0  # page of a multi-page TIFF
    background: int | None = 0  # the class that is no object; None: every class is one
    semantic: Tensor | None = None  # (H, W) uint8 class ids (int32 beyond 256 classes)
    multilabel: Tensor | None = None  # (K, H, W) bool, for networks whose classes may overlap
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))  # (N, 4) float32 xyxy
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))  # (N,) float32
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # (N,) int64
    masks: Masks | None = None  # N masks; None: objects were not asked for
    keypoints: Tensor | None = None  # (N, K, 3) float32 x, y, score; x, y as the annotations mean them (COCO's: whole pixels)
    skeleton: KeypointSchema | None = None  # what the keypoints are
    panoptic: PanopticMap | None = None  # of panoptic networks; label len(classes) + s is stuff[s]
    stuff: tuple[str, ...] = ()  # their names of what is no object
    keypoints_shown: Tensor | None = None  # (N, K) bool: formats without scores and drawings leave out others; None: all are
    seconds: float = 0.0  # spent on this picture
    notes: tuple[str, ...] = ()  # what was assumed about the picture

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.labels)

    @property
    def has_objects(self) -> bool:
        """Whether objects were looked for, with masks or as boxes alone."""
        return self.masks is not None or self.semantic is None

    @property
    def instance_map(self) -> Tensor | None:
        """(H, W) int32, 0 = background, n = object n - 1; None without masks. Where they overlap, the best score wins."""
        if self.masks is None:
            return None
        if isinstance(self.masks, InstanceMapMasks):
            return torch.from_numpy(self.masks.instance_map)
        instance_map = np.zeros(self.size, np.int32)
        codes = self.masks.rle()
        for index in self.scores.argsort(stable=True).tolist():
            left, top, mask = crop_of(codes[index])
            np.copyto(instance_map[top : top + mask.shape[0], left : left + mask.shape[1]], index + 1, where=mask)
        return torch.from_numpy(instance_map)

    @property
    def stuff_map(self) -> Tensor | None:
        """(H, W) int64 of panoptic networks: s + 1 where `stuff[s]` is, 0 elsewhere; None of others."""
        if self.panoptic is None:
            return None
        table = np.concatenate([[0], np.maximum(0, self.panoptic.labels - len(self.classes) + 1)])
        return torch.from_numpy(table[self.panoptic.segments])

    def with_objects(self, objects: Objects) -> Results:
        """Return these results with the objects of `extract_objects`."""
        return replace(
            self,
            boxes=torch.from_numpy(objects.boxes),
            scores=torch.from_numpy(objects.scores),
            labels=torch.from_numpy(objects.labels),
            masks=InstanceMapMasks(objects.instance_map, len(objects)),
        )

    def as_objects(self) -> Results:
        """Return these results with objects: as they are where there are some, else the connected pieces of each class."""
        if self.has_objects:
            return self
        assert self.semantic is not None
        ids = self.semantic.numpy().astype(np.int32)
        objects = extract_objects(ids if self.background == 0 else ids + 1)
        return self.with_objects(objects if self.background == 0 else replace(objects, labels=objects.labels - 1))

    def draw(self, image: Any = None, *, alpha: float = 0.45) -> Tensor:
        """Return the picture with what was found drawn over it, (3, H, W) uint8.

        `image` is a tensor (C, H, W), an array (H, W) or (H, W, 3), a PIL image or a path; without it, the file is read again.
        """
        from delineate.report.overlay import draw_instances, draw_semantic, draw_stuff
        from delineate.report.skeletons import draw_skeletons

        canvas = self._picture(image)
        if self.masks is None and self.semantic is not None:
            canvas = draw_semantic(canvas, self.semantic, classes=self.classes, alpha=alpha, background=self.background)
        else:
            if self.panoptic is not None:
                assert self.stuff_map is not None
                canvas = draw_stuff(canvas, self.stuff_map, self.stuff, alpha=alpha)
            several = len(self.classes) - (self.background is not None) > 1
            named = several or not isinstance(self.masks, InstanceMapMasks)  # names at each of a hundred cells would hide them
            canvas = draw_instances(
                canvas,
                instance_map=self.instance_map,
                boxes=self.boxes if named else None,
                labels=self.labels,
                scores=self.scores if named else None,
                names=self.classes if named else None,
                alpha=alpha,
            )
        if self.keypoints is not None:
            visibility = None if self.keypoints_shown is None else 2 * self.keypoints_shown
            canvas = draw_skeletons(canvas, self.keypoints[..., :2], schema=self.skeleton, visibility=visibility)
        return canvas

    def to_coco(self, image_id: int | str = 1, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Return the objects as COCO's list of results: box (xywh), score, and the run-length code and keypoints there are.

        Category ids are those of `categories`, or those that `category_ids` has for the names of the classes.
        """
        results = self.as_objects()
        ids = {c["name"]: c["id"] for c in self.categories} if category_ids is None else category_ids
        annotations: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": ids[self.classes[label]],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": round(score, 6),
            }
            for (x0, y0, x1, y1), label, score in zip(
                results.boxes.tolist(), results.labels.tolist(), results.scores.tolist(), strict=True
            )
        ]
        parts: dict[str, list[Any] | None] = {
            "segmentation": None if results.masks is None else results.masks.rle(),
            "keypoints": None if results.keypoints is None else results.keypoints.flatten(1).tolist(),
        }
        for key, values in parts.items():
            for annotation, value in zip(annotations, values or (), strict=values is not None):
                annotation[key] = value
        return annotations

    @property
    def categories(self) -> list[dict[str, Any]]:
        """COCO's categories: the classes but the background, ids from 1."""
        return [{"id": self.category_of(i), "name": name} for i, name in enumerate(self.classes) if i != self.background]

    def category_of(self, label: int) -> int:
        """COCO's category id of the class `label`: 1, 2 ... in the order of `classes`, the background not counted."""
        return label + 1 if self.background is None or label < self.background else label

    def save(self, out: str | Path, formats: Sequence[str] = ("png", "overlay"), image: Any = None) -> list[Path]:
        """Write to the folder `out` and return what was written.

        png: masks/NAME.png (class ids, with a palette), instances/NAME.png (object ids) and classes.txt. overlay:
        overlays/NAME.png. coco: coco.json. yolo: labels/NAME.txt and data.yaml. labelme: labelme/NAME.json. `image` as in
        `draw`. Raises `DelineateError` where a file cannot be written, `ConfigError` for an unknown format; warns of what a
        format cannot hold.
        """
        from delineate.predict.export_formats import ResultsWriter

        with ResultsWriter(out, formats) as writer:
            writer.add(self, image)
        for loss in writer.losses:
            warnings.warn(f"{self.name}: {loss}", stacklevel=2)
        return writer.written

    def _picture(self, image: Any) -> Tensor:
        from delineate.predict.pictures import as_tensor

        if image is None and self.path is None:
            raise ConfigError(f"{self.name}: did not come from a file; pass the picture to draw on")
        picture = decode_image(self.path, self.frame) if image is None and self.path else as_tensor(image)
        if tuple(picture.shape[-2:]) != self.size:
            raise ConfigError(
                f"{self.name}: results are for {self.size} (height, width), the picture is {tuple(picture.shape[-2:])}"
            )
        return picture.as_subclass(Tensor) if isinstance(picture, tv_tensors.Image) else picture
