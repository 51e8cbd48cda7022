"""Made-up pictures of blurred, touching ellipses on a noisy background: data for tests and first tries, with a known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.measure import label

from delineate.files import atomic_path


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
