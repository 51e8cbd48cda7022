"""Results as files: label PNGs, overlays, COCO, YOLO, labelme."""

from __future__ import annotations

import base64
import io
import itertools
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
from delineate.data.formats.yolo import pose_fields, pose_line
from delineate.errors import ConfigError, suggest
from delineate.files import atomic_path, make_folder, write_json, write_text
from delineate.ops.rle import rle_area
from delineate.predict.masks import BoxMasks, Crop, outline
from delineate.predict.results import Results
from delineate.report.palette import palette

FORMATS = ("png", "overlay", "coco", "yolo", "labelme")


class ResultsWriter:
    """Writes the results of one or many pictures to the folder `out`; as a context, it ends with what all pictures share.

    - png: masks/NAME.png, class ids with a palette; instances/NAME.png, object ids in 16 bits (.tif in 32 beyond 65,535
      objects), those of better scores over the others; classes.txt. With the pictures in images/ beside them this is a data
      set that `open_dataset` reads. Class ids of objects from a detector begin with the background.
    - overlay: overlays/NAME.png.
    - coco: coco.json, run-length codes and keypoints, with scores: a data set, in which unsure keypoints are hidden ones.
    - labelme: labelme/NAME.json, polygons, or a mask where an object has holes, or boxes; keypoints as points of its group.
    - yolo: labels/NAME.txt, a line an object, and data.yaml: polygons, larger ones first; poses where there are keypoints;
      boxes where there is nothing else.

    Where there are only classes, the connected pieces of each are the objects of coco, yolo and labelme. Polygons follow the
    edges of pixels. `losses` says what could not be kept, and of how many objects.
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
        last = self._last
        if last is None:
            return
        if "png" in self.formats and (names := _png_classes(last)) is not None:
            write_class_file(self._path("classes.txt"), names)
        categories = last.categories
        if last.skeleton is not None:
            points = {"keypoints": last.skeleton.names, "skeleton": [[a + 1, b + 1] for a, b in last.skeleton.edges]}
            categories = [category | points for category in categories]
        if "coco" in self.formats:
            content = {"images": self._images, "categories": categories, "annotations": self._annotations}
            write_json(self._path("coco.json"), content)
        if "yolo" in self.formats:
            names = dict(enumerate(category["name"] for category in categories))
            content = {"path": ".", "train": "images", "val": "images", "names": names}
            content |= pose_fields(last.skeleton, len(names)) if last.skeleton is not None else {}
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
        if not results.has_objects or results.masks is not None:
            instance_map = results.instance_map
            semantic = _class_map(results, instance_map)
            if semantic is not None:
                write_labels(self._path("masks", f"{stem}.png"), semantic, palette(256))
            if instance_map is not None:
                self._add_instance_map(results, instance_map.numpy(), stem)
        else:
            self._lost["are boxes without masks, which png has no place for"] += len(results)

    def _add_instance_map(self, results: Results, instance_map: np.ndarray, stem: str) -> None:
        if isinstance(results.masks, BoxMasks):
            areas = rle_area(results.masks.rle())
            seen = np.bincount(instance_map.ravel(), minlength=len(areas) + 1)[1:]
            self._lost["lie partly under others of better scores, which hide them in instances/"] += int((seen < areas).sum())
        if len(results) <= 65535:
            write_labels(self._path("instances", f"{stem}.png"), instance_map)
        else:
            with atomic_path(self._path("instances", f"{stem}.tif")) as temporary:
                tifffile.imwrite(temporary, instance_map.astype(np.uint32), compression="zlib")

    def _add_coco(self, results: Results, stem: str) -> None:
        image_id, (height, width) = len(self._images) + 1, results.size
        file_name = _relative(results.path, self.out) if results.path else f"{stem}.png"
        self._images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for index, annotation in enumerate(results.to_coco(image_id)):
            _, _, box_width, box_height = annotation["bbox"]
            if results.keypoints is not None:
                annotation |= _visible_points(results.keypoints[index].tolist(), _shown(results, index))
            code = annotation.get("segmentation")
            area = box_width * box_height if code is None else int(rle_area([code])[0])
            self._annotations.append({"id": len(self._annotations) + 1, **annotation, "area": area, "iscrowd": 0})

    def _add_yolo(self, results: Results, stem: str) -> None:
        results = results.as_objects()
        if results.keypoints is not None or results.masks is None:
            lines = _pose_lines(results)
            self._lost["have masks, which poses in yolo have no place for"] += 0 if results.masks is None else len(results)
        else:
            lines = self._polygon_lines(results)
        write_text(self._path("labels", f"{stem}.txt"), "".join(f"{line}\n" for line in lines))

    def _polygon_lines(self, results: Results) -> list[str]:
        height, width = results.size
        lines: list[tuple[int, str]] = []  # with the object's area
        for label, crop in _with_pixels(results):
            outer, holes = outline(crop)
            self._lost["have holes, which are filled in yolo"] += bool(holes)
            self._lost["have several pieces, each of which is an object in yolo"] += len(outer) > 1
            for polygon in outer:
                shares = (np.reshape(polygon, (-1, 2)) / (width, height)).ravel()
                words = [str(results.category_of(label) - 1), *(f"{value:.9g}" for value in shares)]
                lines.append((int(crop.mask.sum()), " ".join(words)))
        return [line for _, line in sorted(lines, key=lambda line: -line[0])]

    def _add_labelme(self, results: Results, stem: str) -> None:
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": list(labelme_shapes(results.as_objects())),
            "imagePath": _relative(results.path, self.out / "labelme") if results.path else f"{stem}.png",
            "imageData": None,
            "imageHeight": results.size[0],
            "imageWidth": results.size[1],
        }
        write_json(self._path("labelme", f"{stem}.json"), content)


def _png_classes(results: Results) -> tuple[str, ...] | None:
    """What the ids in masks/ mean; None where there is no such picture."""
    if results.semantic is not None:
        return results.classes
    several = results.masks is not None and results.background is None and len(results.classes) < 256
    return ("background", *results.classes) if several else None


def _class_map(results: Results, instance_map: Tensor | None) -> np.ndarray | None:
    """The class ids of masks/, (H, W); where there are only objects, those of their classes."""
    if results.semantic is not None:
        return results.semantic.numpy()
    if instance_map is None or _png_classes(results) is None:
        return None
    return np.concatenate([[0], results.labels.numpy() + 1]).astype(np.uint8)[instance_map.numpy()]


def _with_pixels(results: Results) -> Iterator[tuple[int, Crop]]:
    """Label and mask of each object that has pixels."""
    assert results.masks is not None
    for label, crop in zip(results.labels.tolist(), results.masks.crops(), strict=True):
        if crop.mask.any():
            yield label, crop


def _pose_lines(results: Results) -> list[str]:
    lines = []
    for index, (label, box) in enumerate(zip(results.labels.tolist(), results.boxes.tolist(), strict=True)):
        points = [] if results.keypoints is None else results.keypoints[index].tolist()
        shown = _shown(results, index)
        seen = [(x, y, 2) if sure else (0.0, 0.0, 0) for (x, y, _), sure in zip(points, shown, strict=True)]
        lines.append(pose_line(results.category_of(label) - 1, box, seen, results.size))
    return lines


def _visible_points(points: list[list[float]], shown: list[bool]) -> dict[str, Any]:
    """What a data set has of keypoints: visible (2) or, where they are unsure, hidden (1); and their scores."""
    kept = [value for (x, y, _), sure in zip(points, shown, strict=True) for value in (x, y, 2 if sure else 1)]
    return {"keypoints": kept, "num_keypoints": len(points), "keypoint_scores": [score for *_, score in points]}


def _shown(results: Results, index: int) -> list[bool]:
    """Whether each keypoint of an object is sure enough."""
    if results.keypoints is None:
        return []
    return [True] * results.keypoints.shape[1] if results.keypoints_shown is None else results.keypoints_shown[index].tolist()


def labelme_shapes(results: Results) -> Iterator[dict[str, Any]]:
    """Yield the shapes of all objects: outlines, or boxes where there are no masks, and the keypoints that are seen."""
    crops = itertools.repeat(None) if results.masks is None else results.masks.crops()
    rows = zip(results.labels.tolist(), results.scores.tolist(), results.boxes.tolist(), crops, strict=False)
    for number, (label, score, (x0, y0, x1, y1), crop) in enumerate(rows, start=1):
        common = {"label": results.classes[label], "description": f"score {score:.4f}", "group_id": None, "flags": {}}
        grouped = {"group_id": number} if results.keypoints is not None else {}
        if crop is None:
            yield common | grouped | {"shape_type": "rectangle", "points": [[x0, y0], [x1, y1]], "mask": None}
        elif crop.mask.any():
            yield from (common | shape | grouped for shape in _labelme_shapes(crop, number))
        if results.keypoints is not None:
            yield from _labelme_points(results, number - 1)


def _labelme_points(results: Results, index: int) -> Iterator[dict[str, Any]]:
    assert results.keypoints is not None
    points = results.keypoints[index].tolist()
    names = results.skeleton.names if results.skeleton is not None else [f"keypoint_{k}" for k in range(len(points))]
    for name, (x, y, score), shown in zip(names, points, _shown(results, index), strict=True):
        if shown:
            shape = {"label": name, "description": f"score {score:.4f}", "group_id": index + 1, "flags": {}}
            yield shape | {"shape_type": "point", "points": [[x, y]], "mask": None}


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
