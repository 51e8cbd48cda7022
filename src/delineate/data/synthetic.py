"""Made-up pictures on a noisy background, with a known truth: data for tests, experiments and first tries.

`blobs` are touching ellipses, as cells are; `shapes` are figures of several classes that hide one another.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.draw import polygon2mask
from skimage.measure import label

from delineate.files import atomic_path, write_json
from delineate.ops.rle import encode_rle, rle_area, rle_boxes

SHAPES = ("disk", "square", "triangle", "star", "cross", "dart")
DART_CORNERS = ("tip", "left_wing", "notch", "right_wing")
_LEAST_VISIBLE = 0.4
"""No object is hidden more than this leaves of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """One figure in a picture."""

    label: int  # index into SHAPES
    mask: NDArray[np.bool_]  # (H, W), the part that one sees
    corners: NDArray[np.float64]  # (N, 2) x, y in pixels, (0, 0) the outer corner of the first pixel
    visibility: NDArray[np.int64]  # (N,) of the corners: 0 outside the picture, 1 behind another figure, 2 visible


def blobs(
    size: int | tuple[int, int] = 96, seed: int | tuple[int, ...] = 0, *, channels: int = 1, count: int = 12, classes: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Draw one picture and its truth.

    `size` is height and width, or one number for both. Every second ellipse is put against its predecessor, so that they
    touch. Object n belongs to class `1 + (n - 1) % classes`; classes differ in brightness, and in colour where `channels` is 3.
    Returns the picture, (H, W) or (H, W, 3) uint8, and the map of objects, (H, W) int32, 0 = background. The same arguments
    give the same picture. Where there is no room for `count` objects there are fewer.

    >>> image, objects = blobs(64, seed=1, channels=3)
    >>> image.shape, objects.shape, bool(objects.max() > 3)
    ((64, 64, 3), (64, 64), True)
    """
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    objects = _ellipses(height, width, count, rng)
    palette = 0.55 + 0.35 * np.linspace(0, 1, classes)[:, None] * np.ones(channels)  # (classes, channels)
    if channels == 3:
        palette = palette * np.array([[1.0, 0.6, 0.4], [0.4, 1.0, 0.6], [0.5, 0.5, 1.0]])[np.arange(classes) % 3]
    background = 0.15 + 0.15 * ndimage.gaussian_filter(
        rng.standard_normal((height, width)), min(height, width) / 8, mode="wrap"
    )
    image = np.repeat(background[..., None], channels, axis=-1)
    inside = objects > 0
    image[inside] = palette[(objects[inside] - 1) % classes]
    image = ndimage.gaussian_filter(image, (0.8, 0.8, 0)) + 0.04 * rng.standard_normal(image.shape)
    pixels = np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)
    return (pixels[..., 0] if channels == 1 else pixels), objects


def make_blobs_dataset(
    folder: str | Path,
    count: int = 8,
    size: int | tuple[int, int] = 96,
    seed: int = 0,
    kind: Literal["semantic", "instance"] = "semantic",
    channels: int = 1,
    *,
    val: int = 0,
    objects: int = 12,
    classes: int = 1,
) -> Path:
    """Write `images/blobs_000.png` ... and their truth under the same names, made by `blobs`, and return `folder`.

    kind "semantic": `masks/`, 8-bit class ids, 0 = background. kind "instance": `instances/`, 16-bit object ids, and with
    several classes `masks/` too. With `val` pictures beside the `count` for training they lie in `train/` and `val/`.
    """
    folder = Path(folder)
    parts = [(folder / "train" if val else folder, range(count)), (folder / "val", range(count, count + val))]
    for part, numbers in parts:
        for number in numbers:
            image, truth = blobs(size, (seed, number), channels=channels, count=objects, classes=classes)
            name = f"blobs_{number:03d}.png"
            _write_png(part / "images" / name, image)
            if kind == "instance":
                _write_png(part / "instances" / name, truth.astype(np.uint16))
            if kind == "semantic" or classes > 1:
                _write_png(part / "masks" / name, np.where(truth > 0, 1 + (truth - 1) % classes, 0).astype(np.uint8))
    return folder


def shapes(
    size: int | tuple[int, int] = 128,
    seed: int | tuple[int, ...] = 0,
    *,
    count: int = 6,
    labels: tuple[int, ...] = (0, 1, 2, 3),
) -> tuple[NDArray[np.uint8], list[Shape]]:
    """Draw one picture of figures and return it, (H, W, 3) uint8, with what is in it, the farthest first.

    `size` is height and width, or one number for both. `labels` are the classes to draw from, indices into `SHAPES`; a
    class has a colour that varies. Radii lie between 7 and 22 % of the shorter side. At least 60 % of a figure's area are
    inside the picture, and of that at least 40 % are not hidden. The same arguments give the same picture; there are fewer than
    `count` figures where there is no room.

    >>> image, found = shapes(64, seed=1)
    >>> image.shape, len(found), sorted({SHAPES[shape.label] for shape in found})
    ((64, 64, 3), 6, ['disk', 'square', 'star', 'triangle'])
    """
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    chosen = _arrange(height, width, count, labels, rng)
    rough = rng.standard_normal((height, width, 3))
    image = 0.35 + 0.6 * ndimage.gaussian_filter(rough, (min(height, width) / 12, min(height, width) / 12, 0), mode="wrap")
    found = []
    for number, (kind, corners, mask) in enumerate(chosen):
        hue, shade = kind / len(SHAPES) + rng.normal(0, 0.025), rng.uniform(0.45, 1.0)
        image[mask] = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 0.9), shade)
        above = (
            np.any([later for *_, later in chosen[number + 1 :]], axis=0) if number + 1 < len(chosen) else np.zeros_like(mask)
        )
        found.append(Shape(kind, mask & ~above, corners, _visibility(corners, above)))
    image = ndimage.gaussian_filter(image, (0.7, 0.7, 0)) + 0.05 * rng.standard_normal(image.shape)
    return np.clip(np.rint(255 * image), 0, 255).astype(np.uint8), found


def make_shapes_dataset(
    folder: str | Path,
    count: int = 8,
    size: int | tuple[int, int] = 128,
    seed: int = 0,
    *,
    val: int = 0,
    objects: int = 6,
    classes: int = 4,
    keypoints: bool = False,
) -> Path:
    """Write pictures made by `shapes` and their objects in COCO's format, and return `folder`.

    The pictures are `train/shapes_000.png` ..., their truth is `annotations/instances_train.json`; with `val` pictures more,
    there is `val` too. The classes are the first `classes` of `SHAPES`; masks are what one sees of each object. With
    `keypoints` all objects are darts and have their four corners as keypoints (`annotations/person_keypoints_train.json`);
    as in COCO, a keypoint names a pixel, whose centre lies 0.5 further. Raises ValueError for a number of classes that there is
    not.
    """
    if not 1 <= classes <= len(SHAPES):
        raise ValueError(f"classes is {classes}, expected 1 to {len(SHAPES)}")
    folder = Path(folder)
    labels = (SHAPES.index("dart"),) if keypoints else tuple(range(classes))
    for split, numbers in (("train", range(count)), ("val", range(count, count + val))):
        images, annotations = [], []
        for number in numbers:
            image, found = shapes(size, (seed, number), count=objects, labels=labels)
            name = f"shapes_{number:03d}.png"
            _write_png(folder / split / name, image)
            images.append({"id": number, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
            for shape in found:
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": labels.index(shape.label) + 1}
                annotations.append(row | _annotation(shape, keypoints))
        categories = [_category(k, labels[k - 1], keypoints) for k in range(1, len(labels) + 1)]
        if images:
            content = {"images": images, "annotations": annotations, "categories": categories}
            write_json(folder / "annotations" / f"{'person_keypoints' if keypoints else 'instances'}_{split}.json", content)
    return folder


def _arrange(
    height: int, width: int, count: int, labels: tuple[int, ...], rng: np.random.Generator
) -> list[tuple[int, NDArray[np.float64], NDArray[np.bool_]]]:
    """Class, corners and whole mask of figures, each above those before it, none hidden too much."""
    chosen: list[tuple[int, NDArray[np.float64], NDArray[np.bool_]]] = []
    seen: list[NDArray[np.bool_]] = []
    for _ in range(30 * count):
        if len(chosen) == count:
            break
        kind = int(rng.choice(labels))
        radius = min(height, width) * float(np.exp(rng.uniform(np.log(0.07), np.log(0.22))))
        angle, place = rng.uniform(0, 2 * np.pi), rng.uniform((0, 0), (width, height))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corners = place + radius * _outline(SHAPES[kind]) @ turn.T
        mask = polygon2mask((height, width), corners[:, ::-1] - 0.5)  # of the pixels' centres
        if mask.sum() < max(0.6 * _area(corners), 4):
            continue
        left = [visible & ~mask for visible in seen]
        if any(part.sum() < _LEAST_VISIBLE * whole.sum() for part, (*_, whole) in zip(left, chosen, strict=True)):
            continue
        seen = [*left, mask]
        chosen.append((kind, corners, mask))
    return chosen


def _outline(name: str) -> NDArray[np.float64]:
    """Corners (N, 2) x, y of a figure around (0, 0), within a circle of radius 1."""
    if name == "dart":
        return np.array([[1.0, 0.0], [-0.7, -0.7], [-0.25, 0.0], [-0.7, 0.7]])  # DART_CORNERS, seen from above, y down
    if name == "cross":
        near, far = 0.3, 0.95
        arm = np.array([[far, -near], [far, near], [near, near]])
        quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
        return np.concatenate([arm @ np.linalg.matrix_power(quarter, turns).T for turns in range(4)])
    sides = {"disk": 48, "square": 4, "triangle": 3, "star": 10}[name]
    angle = 2 * np.pi * np.arange(sides) / sides
    radius = np.where(np.arange(sides) % 2, 0.45, 1.0) if name == "star" else np.ones(sides)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)


def _area(corners: NDArray[np.float64]) -> float:
    x, y = corners.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _visibility(corners: NDArray[np.float64], above: NDArray[np.bool_]) -> NDArray[np.int64]:
    height, width = above.shape
    inside = np.all((corners >= 0) & (corners < (width, height)), axis=-1)
    x, y = np.where(inside[:, None], corners, 0).astype(np.int64).T
    return np.where(inside, np.where(above[y, x], 1, 2), 0)


def _annotation(shape: Shape, keypoints: bool) -> dict[str, Any]:
    code = encode_rle(torch.from_numpy(shape.mask)[None])
    x0, y0, x1, y1 = rle_boxes(code)[0].tolist()
    row: dict[str, Any] = {"segmentation": code[0], "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(rle_area(code)[0])}
    row["iscrowd"] = 0
    if keypoints:
        points = np.where(shape.visibility[:, None] > 0, shape.corners - 0.5, 0).round(2)
        row["keypoints"] = [
            value for (x, y), v in zip(points.tolist(), shape.visibility.tolist(), strict=True) for value in (x, y, v)
        ]
        row["num_keypoints"] = int((shape.visibility > 0).sum())
    return row


def _category(number: int, kind: int, keypoints: bool) -> dict[str, Any]:
    category: dict[str, Any] = {"id": number, "name": SHAPES[kind]}
    if keypoints:
        category |= {"keypoints": list(DART_CORNERS), "skeleton": [[1, 2], [2, 3], [3, 4], [4, 1]]}
    return category


def _ellipses(height: int, width: int, count: int, rng: np.random.Generator) -> NDArray[np.int32]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    objects = np.zeros((height, width), np.int32)
    shortest, longest = max(2.0, min(height, width) / 20), max(3.0, min(height, width) / 9)
    previous: tuple[float, float, float] | None = None
    for _ in range(20 * count):
        if objects.max() == count:
            break
        a, b = rng.uniform(shortest, longest, 2)
        if objects.max() % 2 == 1 and previous is not None:  # against the last one
            cy, cx, radius = previous
            direction, distance = rng.uniform(0, 2 * np.pi), radius + 0.7 * min(a, b)
            cy, cx = cy + distance * np.sin(direction), cx + distance * np.cos(direction)
        else:
            cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        angle = rng.uniform(0, np.pi)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        ellipse = (u / a) ** 2 + (v / b) ** 2 <= 1
        free = ellipse & (objects == 0)
        hidden = free.sum() < 0.7 * max(ellipse.sum(), 0.5 * np.pi * a * b)  # behind others, or outside the picture
        if hidden or np.max(np.asarray(label(free, connectivity=1))) > 1:
            previous = None if rng.random() < 0.1 else previous
            continue
        objects[free] = objects.max() + 1
        previous = (cy, cx, min(a, b))
    return objects


def _write_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)
