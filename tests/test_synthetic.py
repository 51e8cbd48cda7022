"""The made-up data sets that other tests stand on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from delineate.data.synthetic import blobs, make_blobs_dataset


def test_same_seed_same_picture() -> None:
    first, second, other = blobs(48, 3), blobs(48, 3), blobs(48, 4)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("seed", range(5))
def test_objects_are_whole_and_some_touch(seed: int) -> None:
    _, objects = blobs(96, seed)
    ids = np.unique(objects)
    assert np.array_equal(ids, np.arange(13))
    assert all(ndimage.label(objects == i)[1] == 1 for i in ids[1:])
    assert ndimage.label(objects > 0)[1] < 12


def test_classes_can_be_told_apart() -> None:
    image, objects = blobs((80, 120), 0, channels=3, classes=3)
    assert image.shape == (80, 120, 3)
    semantic = np.where(objects > 0, 1 + (objects - 1) % 3, 0)
    means = np.array([image[semantic == c].mean(0) for c in range(4)])
    assert np.abs(means[:, None] - means[None]).max(-1)[~np.eye(4, dtype=bool)].min() > 20


def test_tiny_pictures_work() -> None:
    image, objects = blobs(1, 0)
    assert image.shape == objects.shape == (1, 1)


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_folders(tmp_path: Path, kind: str) -> None:
    root = make_blobs_dataset(tmp_path / "data", 2, (40, 56), 1, kind, 3, val=1)  # pyright: ignore[reportArgumentType]
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    assert files == [
        "train/images/blobs_000.png",
        "train/images/blobs_001.png",
        "train/masks/blobs_000.png",
        "train/masks/blobs_001.png",
        "val/images/blobs_002.png",
        "val/masks/blobs_002.png",
    ]
    image, objects = blobs((40, 56), (1, 2), channels=3)
    assert np.array_equal(np.asarray(Image.open(root / "val/images/blobs_002.png")), image)
    mask = np.asarray(Image.open(root / "val/masks/blobs_002.png"))
    assert np.array_equal(mask, objects if kind == "instance" else objects > 0)
    assert mask.dtype == (np.uint16 if kind == "instance" else np.uint8)
