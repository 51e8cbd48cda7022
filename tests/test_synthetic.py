"""The made-up data sets that other tests stand on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from delineate.data.load import load_sample
from delineate.data.open import open_dataset
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
def test_folders(tmp_path: Path, kind: Literal["semantic", "instance"]) -> None:
    root = make_blobs_dataset(tmp_path / "data", 2, (40, 56), 1, kind, 3, val=1)
    truth = "masks" if kind == "semantic" else "instances"
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    assert files == [
        "train/images/blobs_000.png",
        "train/images/blobs_001.png",
        f"train/{truth}/blobs_000.png",
        f"train/{truth}/blobs_001.png",
        "val/images/blobs_002.png",
        f"val/{truth}/blobs_002.png",
    ]
    image, objects = blobs((40, 56), (1, 2), channels=3)
    assert np.array_equal(np.asarray(Image.open(root / "val/images/blobs_002.png")), image)
    mask = np.asarray(Image.open(root / f"val/{truth}/blobs_002.png"))
    assert np.array_equal(mask, objects if kind == "instance" else objects > 0)
    assert mask.dtype == (np.uint16 if kind == "instance" else np.uint8)


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_data_sets_are_recognised(tmp_path: Path, kind: Literal["semantic", "instance"]) -> None:
    dataset = open_dataset(make_blobs_dataset(tmp_path, 3, 48, kind=kind, classes=2))
    assert dataset.kind == kind
    assert len(dataset.semantic_classes) == 3
    sample = load_sample(dataset, dataset.records[1], ("semantic", "instance_map") if kind == "instance" else ("semantic",))
    _, objects = blobs(48, (0, 1), classes=2)
    assert sample.semantic is not None
    assert np.array_equal(sample.semantic.numpy(), np.where(objects > 0, 1 + (objects - 1) % 2, 0))
    if kind == "instance":
        assert sample.instance_map is not None
        assert np.array_equal(sample.instance_map.numpy(), objects)
