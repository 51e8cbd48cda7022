"""The made-up data sets that other tests stand on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.draw import polygon2mask

from delineate.data.load import load_sample
from delineate.data.open import open_dataset
from delineate.data.synthetic import blobs, make_blobs_dataset, make_shapes_dataset, shapes


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


def test_shapes_hide_one_another_but_not_wholly() -> None:
    hidden = 0
    for seed in range(6):
        image, found = shapes((96, 128), seed, count=8, labels=(0, 1, 2, 3, 4, 5))
        assert image.shape == (96, 128, 3)
        assert len(found) == 8
        assert np.sum([shape.mask for shape in found], axis=0).max() == 1
        for shape in found:
            whole = polygon2mask((96, 128), shape.corners[:, ::-1] - 0.5)
            assert not (shape.mask & ~whole).any()
            assert shape.mask.sum() >= 0.4 * whole.sum()
            hidden += shape.mask.sum() < whole.sum()
    assert hidden > 5


def test_same_seed_same_shapes() -> None:
    first, second, other = shapes(48, 3), shapes(48, 3), shapes(48, 4)
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], other[0])


def test_shapes_as_coco(tmp_path: Path) -> None:
    root = make_shapes_dataset(tmp_path / "data", 2, 64, 3, val=1, objects=4, classes=3)
    dataset = open_dataset(root)
    assert dataset.kind == "instance"
    assert dataset.classes == ("disk", "square", "triangle")
    assert [len(dataset.splits[split]) for split in ("train", "val")] == [2, 1]
    sample = load_sample(dataset, dataset.splits["val"][0], {"boxes", "masks"})
    image, found = shapes(64, (3, 2), count=4, labels=(0, 1, 2))
    assert np.array_equal(sample.image.permute(1, 2, 0), image)
    assert sample.masks is not None
    assert np.array_equal(sample.masks, np.stack([shape.mask for shape in found]))
    assert sample.labels is not None
    assert sample.labels.tolist() == [shape.label for shape in found]


def test_corners_of_darts_are_keypoints(tmp_path: Path) -> None:
    dataset = open_dataset(make_shapes_dataset(tmp_path / "data", 6, 64, 3, objects=6, keypoints=True))
    assert dataset.kind == "keypoint"
    assert dataset.keypoints is not None
    assert dataset.keypoints.flip_pairs == ((1, 3),)
    seen = set()
    for number, record in enumerate(dataset.records):
        _, found = shapes(64, (3, number), count=6, labels=(5,))
        assert record.instances is not None
        for instance, shape in zip(record.instances, found, strict=True):
            points = np.array(instance.keypoints)
            labelled = points[:, 2] > 0
            assert np.allclose(points[labelled, :2] + 0.5, shape.corners[labelled], atol=0.006)
            seen |= set(points[:, 2])
    assert seen == {0, 1, 2}


def test_shapes_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classes is 7, expected 1 to 6"):
        make_shapes_dataset(tmp_path, classes=7)
