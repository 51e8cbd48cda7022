"""Results as files: label PNGs, overlays, COCO, YOLO, labelme."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tifffile
import yaml
from PIL import Image

from delineate.data.dataset import Polygon
from delineate.data.formats.classes import write_class_file
from delineate.data.formats.names import flat_names
from delineate.data.formats.writing import write_labels
from delineate.errors import ConfigError, suggest
from delineate.files import atomic_path, make_folder, write_json, write_text
from delineate.predict.results import Results
from delineate.report.palette import palette

FORMATS = ("png", "overlay", "coco", "yolo", "labelme")


class ResultsWriter:
    """Writes the results of one or many pictures to the folder `out`; as a context, it ends with what all pictures share.

    png: masks/NAME.png, class ids with a palette; instances/NAME.png, object ids in 16 bits (.tif in 32 beyond 65,535 objects);
        classes.txt. With the pictures in images/ beside them this is a data set that `open_dataset` reads.
    overlay: overlays/NAME.png. coco: coco.json, run-length codes, with scores. labelme: labelme/NAME.json, polygons.
    yolo: labels/NAME.txt, one polygon an object, and data.yaml.

    Where there are only classes, the connected pieces of each are the objects of coco, yolo and labelme. Polygons follow the
    edges of pixels; `losses` says how many objects have holes or several pieces, which yolo and labelme do not keep.
    """

    def __init__(self, out: str | Path, formats: Sequence[str] = ("png", "overlay")) -> None:
        if unknown := [name for name in formats if name not in FORMATS]:
            raise ConfigError(f"format '{unknown[0]}' is unknown; expected {', '.join(FORMATS)}{suggest(unknown[0], FORMATS)}")
        self.out = make_folder(out)
        self.formats = tuple(dict.fromkeys(formats))
        self.written: list[Path] = []
        self._lost: Counter[str] = Counter()
        self._classes: tuple[str, ...] = ()
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
        for name in self.formats:
            getattr(self, f"_add_{name}")(results, stem, image)

    def finish(self) -> None:
        """Write what belongs to all pictures; nothing, if there were none."""
        if self._last is None:
            return
        if "png" in self.formats and self._last.semantic is not None:
            self._write(self.out / "classes.txt", lambda path: write_class_file(path, self._last.classes))  # pyright: ignore
        if "coco" in self.formats:
            content = {"images": self._images, "categories": self._last.categories, "annotations": self._annotations}
            self._write(self.out / "coco.json", lambda path: write_json(path, content))
        if "yolo" in self.formats:
            names = dict(enumerate(category["name"] for category in self._last.categories))
            content = {"path": ".", "train": "images", "val": "images", "names": names}
            self._write(self.out / "data.yaml", lambda path: write_text(path, yaml.safe_dump(content, sort_keys=False)))

    @property
    def losses(self) -> list[str]:
        """What the formats could not hold, so far."""
        return [f"{count} objects {what}" for what, count in self._lost.items()]

    def _write(self, path: Path, write: Any) -> None:
        write(path)
        self.written.append(path)

    def _add_png(self, results: Results, stem: str, image: Any) -> None:
        if results.semantic is not None:
            semantic = results.semantic.numpy()
            self._write(self.out / "masks" / f"{stem}.png", lambda path: write_labels(path, semantic, palette(256)))
        if (instance_map := results.instance_map) is not None:
            ids = instance_map.numpy()
            if len(results) <= 65535:
                self._write(self.out / "instances" / f"{stem}.png", lambda path: write_labels(path, ids))
            else:
                self._write(self.out / "instances" / f"{stem}.tif", lambda path: _write_tiff(path, ids.astype(np.uint32)))

    def _add_overlay(self, results: Results, stem: str, image: Any) -> None:
        drawing = results.draw(image).permute(1, 2, 0).contiguous().numpy()
        self._write(self.out / "overlays" / f"{stem}.png", lambda path: _write_picture(path, drawing))

    def _add_coco(self, results: Results, stem: str, image: Any) -> None:
        image_id, (height, width) = len(self._images) + 1, results.size
        file_name = _relative(results.path, self.out) if results.path else f"{stem}.png"
        self._images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for annotation in results.to_coco(image_id):
            from pycocotools import mask as coco

            area = int(coco.area(annotation["segmentation"]))
            number = len(self._annotations) + 1
            self._annotations.append({"id": number, **annotation, "area": area, "iscrowd": 0})

    def _add_yolo(self, results: Results, stem: str, image: Any) -> None:
        height, width = results.size
        lines = []
        for category, _, pieces in self._polygons(results, "in yolo"):
            largest = max(pieces, key=_area)
            points = np.reshape(largest, (-1, 2)) / (width, height)
            lines.append(" ".join([str(category - 1), *(f"{value:.6g}" for value in points.ravel())]))
        self._write(self.out / "labels" / f"{stem}.txt", lambda path: write_text(path, "".join(f"{line}\n" for line in lines)))

    def _add_labelme(self, results: Results, stem: str, image: Any) -> None:
        folder = self.out / "labelme"
        names = {category["id"]: category["name"] for category in results.categories}
        shapes = []
        for number, (category, score, pieces) in enumerate(self._polygons(results, "in labelme"), start=1):
            group = number if len(pieces) > 1 else None  # pieces of one object share a group
            shapes += [
                {
                    "label": names[category],
                    "points": np.reshape(polygon, (-1, 2)).tolist(),
                    "group_id": group,
                    "description": f"score {score:.4f}",
                    "shape_type": "polygon",
                    "flags": {},
                }
                for polygon in pieces
            ]
        height, width = results.size
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": _relative(results.path, folder) if results.path else f"{stem}.png",
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        self._write(folder / f"{stem}.json", lambda path: write_json(path, content))

    def _polygons(self, results: Results, where: str) -> list[tuple[int, float, list[Polygon]]]:
        """Category, score and outer polygons of each object; counts what is lost."""
        results = results.as_objects()
        assert results.masks is not None
        rows = []
        for label, score, outline in zip(
            results.labels.tolist(), results.scores.tolist(), results.masks.polygons(), strict=True
        ):
            self._lost[f"have holes, which are filled {where}"] += bool(outline.holes)
            if where == "in yolo":
                self._lost["have several pieces, of which yolo keeps the largest"] += len(outline.outer) > 1
            if outline.outer:
                rows.append((results.category_of(label), score, outline.outer))
        self._lost = +self._lost  # without the zeros
        return rows


def _relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _area(polygon: Polygon) -> float:
    x, y = np.reshape(polygon, (-1, 2)).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _write_picture(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def _write_tiff(path: Path, labels: np.ndarray[Any, Any]) -> None:
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, labels, compression="zlib")
