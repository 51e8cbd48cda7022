"""Results as files: label PNGs, overlays, COCO, YOLO, labelme."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tifffile
import yaml
from PIL import Image
from torch import Tensor

from delineate.data.formats.classes import write_class_file
from delineate.data.formats.names import flat_names
from delineate.data.formats.writing import write_labels
from delineate.errors import ConfigError, suggest
from delineate.files import atomic_path, make_folder, write_json, write_text
from delineate.ops.rle import rle_area
from delineate.predict.masks import Crop, outline
from delineate.predict.results import Results
from delineate.report.palette import palette

FORMATS = ("png", "overlay", "coco", "yolo", "labelme")


class ResultsWriter:
    """Writes the results of one or many pictures to the folder `out`; as a context, it ends with what all pictures share.

    - png: masks/NAME.png, class ids with a palette; instances/NAME.png, object ids in 16 bits (.tif in 32 beyond 65,535
      objects); classes.txt. With the pictures in images/ beside them this is a data set that `open_dataset` reads.
    - overlay: overlays/NAME.png.
    - coco: coco.json, run-length codes, with scores.
    - labelme: labelme/NAME.json, polygons, or a mask where an object has holes.
    - yolo: labels/NAME.txt, a polygon a line, larger objects first, and data.yaml.

    Where there are only classes, the connected pieces of each are the objects of coco, yolo and labelme. Polygons follow the
    edges of pixels. `losses` says how many objects have holes or several pieces, which yolo does not keep.
    """

    def __init__(self, out: str | Path, formats: Sequence[str] = ("png", "overlay")) -> None:
        if unknown := [name for name in formats if name not in FORMATS]:
            raise ConfigError(f"format '{unknown[0]}' is unknown; expected {', '.join(FORMATS)}{suggest(unknown[0], FORMATS)}")
        self.out = make_folder(out)
        self.formats = tuple(dict.fromkeys(formats))
        self.written: list[Path] = []
        self._lost: Counter[str] = Counter()
        self._last: Results | None = None
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def __enter__(self) -> ResultsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.finish()

    def add(self, results: Results, image: Any = None) -> None:
        """Write what belongs to one picture; `image` as in `Results.draw`."""
        self._last = results
        stem = flat_names([results.name])[0]
        if "png" in self.formats:
            self._add_png(results, stem)
        if "overlay" in self.formats:
            _write_picture(self._path("overlays", f"{stem}.png"), results.draw(image))
        if "coco" in self.formats:
            self._add_coco(results, stem)
        if "yolo" in self.formats:
            self._add_yolo(results, stem)
        if "labelme" in self.formats:
            self._add_labelme(results, stem)

    def finish(self) -> None:
        """Write what belongs to all pictures; nothing, if there were none."""
        if self._last is None:
            return
        if "png" in self.formats and self._last.semantic is not None:
            write_class_file(self._path("classes.txt"), self._last.classes)
        if "coco" in self.formats:
            content = {"images": self._images, "categories": self._last.categories, "annotations": self._annotations}
            write_json(self._path("coco.json"), content)
        if "yolo" in self.formats:
            names = dict(enumerate(category["name"] for category in self._last.categories))
            content = {"path": ".", "train": "images", "val": "images", "names": names}
            write_text(self._path("data.yaml"), yaml.safe_dump(content, sort_keys=False))

    @property
    def losses(self) -> list[str]:
        """What the formats could not hold, so far."""
        return [f"{count} objects {what}" for what, count in self._lost.items() if count]

    def _path(self, *parts: str) -> Path:
        """The path of an output, which is noted as written."""
        path = self.out.joinpath(*parts)
        self.written.append(path)
        return path

    def _add_png(self, results: Results, stem: str) -> None:
        if results.semantic is not None:
            write_labels(self._path("masks", f"{stem}.png"), results.semantic.numpy(), palette(256))
        if (instance_map := results.instance_map) is None:
            return
        if len(results) <= 65535:
            write_labels(self._path("instances", f"{stem}.png"), instance_map.numpy())
        else:
            with atomic_path(self._path("instances", f"{stem}.tif")) as temporary:
                tifffile.imwrite(temporary, instance_map.numpy().astype(np.uint32), compression="zlib")

    def _add_coco(self, results: Results, stem: str) -> None:
        image_id, (height, width) = len(self._images) + 1, results.size
        file_name = _relative(results.path, self.out) if results.path else f"{stem}.png"
        self._images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        annotations = results.to_coco(image_id)
        areas = rle_area([annotation["segmentation"] for annotation in annotations]).tolist()
        for annotation, area in zip(annotations, areas, strict=True):
            number = len(self._annotations) + 1
            self._annotations.append({"id": number, **annotation, "area": area, "iscrowd": 0})

    def _add_yolo(self, results: Results, stem: str) -> None:
        height, width = results.size
        lines: list[tuple[int, str]] = []  # with the object's area
        for label, _, crop in _objects(results):
            outer, holes = outline(crop)
            self._lost["have holes, which are filled in yolo"] += bool(holes)
            self._lost["have several pieces, each of which is an object in yolo"] += len(outer) > 1
            for polygon in outer:
                shares = (np.reshape(polygon, (-1, 2)) / (width, height)).ravel()
                words = [str(results.category_of(label) - 1), *(f"{value:.9g}" for value in shares)]
                lines.append((int(crop.mask.sum()), " ".join(words)))
        lines.sort(key=lambda line: -line[0])
        write_text(self._path("labels", f"{stem}.txt"), "".join(f"{line}\n" for _, line in lines))

    def _add_labelme(self, results: Results, stem: str) -> None:
        shapes = []
        for number, (label, score, crop) in enumerate(_objects(results), start=1):
            common = {"label": results.classes[label], "description": f"score {score:.4f}", "group_id": None, "flags": {}}
            shapes += [common | shape for shape in _labelme_shapes(crop, number)]
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": _relative(results.path, self.out / "labelme") if results.path else f"{stem}.png",
            "imageData": None,
            "imageHeight": results.size[0],
            "imageWidth": results.size[1],
        }
        write_json(self._path("labelme", f"{stem}.json"), content)


def _objects(results: Results) -> Iterator[tuple[int, float, Crop]]:
    """Label, score and mask of each object that has pixels."""
    results = results.as_objects()
    assert results.masks is not None
    for label, score, crop in zip(results.labels.tolist(), results.scores.tolist(), results.masks.crops(), strict=True):
        if crop.mask.any():
            yield label, score, crop


def _labelme_shapes(crop: Crop, group: int) -> list[dict[str, Any]]:
    """A polygon for each piece, those of one object in one group; where there are holes, a mask and its corner pixels."""
    outer, holes = outline(crop)
    if not holes:
        shared = {"group_id": group} if len(outer) > 1 else {}
        points = [np.reshape(polygon, (-1, 2)).tolist() for polygon in outer]
        return [{**shared, "shape_type": "polygon", "points": p, "mask": None} for p in points]
    height, width = crop.mask.shape
    file = io.BytesIO()
    Image.fromarray(crop.mask.astype(np.uint8) * 255).save(file, format="PNG")
    corners = [[crop.left, crop.top], [crop.left + width - 1, crop.top + height - 1]]
    return [{"shape_type": "mask", "points": corners, "mask": base64.b64encode(file.getvalue()).decode()}]


def _relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _write_picture(path: Path, picture: Tensor) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(temporary)
