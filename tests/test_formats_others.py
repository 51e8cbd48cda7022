"""YOLO, PASCAL VOC, Cityscapes and labelme, as their tools write them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delineate.data import IGNORE, Dataset, load_sample, open_dataset
from delineate.errors import DataError

H, W = 20, 40
RNG = np.random.default_rng(0)


def put(path: Path, pixels: np.ndarray | None = None, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(RNG.integers(0, 256, (H, W, 3), np.uint8) if pixels is None else pixels)
    if palette:
        picture.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    picture.save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def masks(dataset: Dataset, index: int = 0) -> np.ndarray:
    found = load_sample(dataset, dataset.records[index], ("masks",)).masks
    assert found is not None
    return found.numpy()


def semantic(dataset: Dataset, index: int = 0) -> np.ndarray:
    found = load_sample(dataset, dataset.records[index]).semantic
    assert found is not None
    return found.numpy()


def filled(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return mask


# YOLO


def yolo(tmp_path: Path, labels: str | None, more: str = "", names: str = "{0: cat, 1: dog}") -> Path:
    put(tmp_path / "set" / "images" / "train" / "a.jpg")
    put(tmp_path / "set" / "images" / "train" / "b.jpg")
    put(tmp_path / "set" / "images" / "test" / "c.jpg")
    if labels is not None:
        text(tmp_path / "set" / "labels" / "train" / "a.txt", labels)
    content = f"path: set\ntrain: images/train\nval: images/train\ntest: images/test\nnames: {names}\n{more}"
    return text(tmp_path / "data.yaml", content)


def test_yolo_polygons_boxes_and_pictures_without_objects(tmp_path: Path) -> None:
    path = yolo(tmp_path, "1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n0 0.5 0.5 0.25 0.5\n\n")
    for source in (path, tmp_path):
        dataset = open_dataset(source)
        assert (dataset.format, dataset.kind, dataset.classes) == ("yolo", "instance", ("cat", "dog"))
        assert {s: [r.name for r in records] for s, records in dataset.splits.items()} == {"train": ["a", "b"], "test": ["c"]}
    assert "'val' is the same as 'train'" in dataset.notes[0]
    first, second, third = dataset.records
    assert second.instances == ()
    assert third.instances is None
    assert first.instances is not None
    assert [i.label for i in first.instances] == [1, 0]
    assert first.instances[0].segmentation == ([4, 2, 20, 2, 20, 10, 4, 10],)
    assert first.instances[1].box == (15, 5, 25, 15)
    boxes = load_sample(dataset, first, ("boxes",)).boxes
    assert boxes is not None
    assert boxes.tolist() == [[4, 2, 20, 10], [15, 5, 25, 15]]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_yolo_poses(tmp_path: Path, dimensions: int) -> None:
    points = "0.25 0.5 {} 0 0 {}" if dimensions == 3 else "0.25 0.5 0 0"
    path = yolo(
        tmp_path, f"0 0.5 0.5 1 1 {points.format(1, 0)}\n", f"kpt_shape: [2, {dimensions}]\nflip_idx: [1, 0]\n", "[person]"
    )
    dataset = open_dataset(path)
    assert dataset.kind == "keypoint"
    assert dataset.keypoints is not None
    assert dataset.keypoints.flip_pairs == ((0, 1),)
    sample = load_sample(dataset, dataset.records[0], ("keypoints",))
    assert sample.keypoints is not None
    assert sample.visibility is not None
    assert sample.keypoints.tolist() == [[[10, 10], [0, 0]]]
    assert sample.visibility.tolist() == [[1 if dimensions == 3 else 2, 0]]


def test_yolo_lists_and_paths_of_exports(tmp_path: Path) -> None:
    put(tmp_path / "train" / "images" / "a.jpg")
    text(tmp_path / "train" / "labels" / "a.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5")
    put(tmp_path / "b.jpg")
    text(tmp_path / "b.txt", "0 0.5 0.5 1 1")
    text(tmp_path / "val.txt", "./b.jpg\n")
    dataset = open_dataset(text(tmp_path / "data.yaml", "train: ../train/images\nval: val.txt\nnames: [cell]\nnc: 1\n"))
    assert {s: [len(r.instances or ()) for r in records] for s, records in dataset.splits.items()} == {"train": [1], "val": [1]}
    assert "does not exist" in dataset.notes[0]


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        ("2 0.5 0.5 1 1\n", "", r"a\.txt: line 1 has the class 2, the YAML names 0\.\.1"),
        ("0 0.5 0.5 1 1\n0 x\n", "", r"a\.txt: line 2: could not convert"),
        ("0 0.5 0.5 1\n", "", r"a\.txt: line 1: 3 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3\n", "", r"a\.txt: line 1: 5 numbers"),
        ("", "nc: 3\n", r"data\.yaml: 'nc' is 3, but 'names' has 2"),
        ("", "kpt_shape: 3\n", r"data\.yaml: 'kpt_shape' is 3"),
    ],
)
def test_yolo_that_cannot_be_read(tmp_path: Path, labels: str, more: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_dataset(yolo(tmp_path, labels, more))


def test_yolo_paths_that_lead_nowhere(tmp_path: Path) -> None:
    path = text(tmp_path / "data.yaml", "train: images/nowhere\nnames: [a]\n")
    with pytest.raises(DataError, match=r"data\.yaml: names images/nowhere, which is not in"):
        open_dataset(path)
    with pytest.raises(DataError, match="is not a YOLO data YAML"):
        open_dataset(text(tmp_path / "other.yaml", "a: 1\n"))
    with pytest.raises(DataError, match="is not YAML"):
        open_dataset(text(tmp_path / "broken.yaml", "a: [1\n"))


# PASCAL VOC


def voc(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures with void borders; returns the first one's class and object pictures."""
    classes, objects = np.zeros((H, W), np.uint8), np.zeros((H, W), np.uint8)
    for number, (label, x) in enumerate(((15, 2), (7, 14), (15, 26)), 1):
        classes[3:15, x : x + 10] = objects[3:15, x : x + 10] = IGNORE
        classes[4:14, x + 1 : x + 9], objects[4:14, x + 1 : x + 9] = label, number
    for stem in ("2007_000001", "2007_000002"):
        put(root / "JPEGImages" / f"{stem}.jpg")
        put(root / "SegmentationClass" / f"{stem}.png", classes, palette=True)
        put(root / "SegmentationObject" / f"{stem}.png", objects, palette=True)
    put(root / "JPEGImages" / "2007_000003.jpg")  # has no label, and is in no list
    text(root / "ImageSets" / "Segmentation" / "train.txt", "2007_000001\n")
    text(root / "ImageSets" / "Segmentation" / "val.txt", "2007_000002\n")
    text(root / "ImageSets" / "Segmentation" / "trainval.txt", "2007_000001\n2007_000002\n")
    return classes, objects


def test_voc_classes_and_void(tmp_path: Path) -> None:
    classes, _ = voc(tmp_path)
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.kind, len(dataset.classes), dataset.classes[15]) == ("voc", "semantic", 21, "person")
    assert {s: [r.name for r in records] for s, records in dataset.splits.items()} == {
        "train": ["2007_000001"],
        "val": ["2007_000002"],
    }
    assert np.array_equal(semantic(dataset), classes)
    assert dataset.palette is not None
    assert dataset.palette[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))  # the published colour map
    assert dataset.palette[15] == (192, 128, 128)


def test_voc_objects_with_their_classes(tmp_path: Path) -> None:
    classes, objects = voc(tmp_path)
    dataset = open_dataset(tmp_path, "voc:instance")
    assert (dataset.kind, len(dataset.classes), dataset.classes[14]) == ("instance", 20, "person")
    sample = load_sample(dataset, dataset.records[0], ("semantic", "instance_map", "boxes"))
    assert sample.labels is not None
    assert sample.instance_map is not None
    assert sample.semantic is not None
    assert sample.labels.tolist() == [14, 6, 14]
    assert np.array_equal(sample.instance_map.numpy(), np.where(objects == IGNORE, 0, objects))
    assert np.array_equal(sample.semantic.numpy(), classes)


def test_voc_without_lists_has_the_labelled_pictures(tmp_path: Path) -> None:
    voc(tmp_path)
    for path in (tmp_path / "ImageSets" / "Segmentation").iterdir():
        path.unlink()
    assert [r.name for r in open_dataset(tmp_path).splits["all"]] == ["2007_000001", "2007_000002"]
    text(tmp_path / "ImageSets" / "Segmentation" / "train.txt", "2007_000001\nnowhere\n")
    with pytest.raises(DataError, match=r"train\.txt: lists nowhere"):
        open_dataset(tmp_path)


def test_voc_label_map_of_other_classes(tmp_path: Path) -> None:
    """CVAT writes labelmap.txt, and the label pictures either as palette indices or as the colours themselves."""
    ids = RNG.integers(0, 3, (H, W)).astype(np.uint8)
    colours = np.array([[0, 0, 0], [250, 50, 83], [5, 6, 7]], np.uint8)
    put(tmp_path / "JPEGImages" / "a.png")
    text(tmp_path / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nnerve:250,50,83::\nvessel:5,6,7::\n")
    for pixels, palette in ((ids, True), (colours[ids], False)):
        put(tmp_path / "SegmentationClass" / "a.png", pixels, palette)
        dataset = open_dataset(tmp_path)
        assert dataset.classes == ("background", "nerve", "vessel")
        assert np.array_equal(semantic(dataset), ids)


def test_voc_boxes(tmp_path: Path) -> None:
    put(tmp_path / "JPEGImages" / "a.jpg")
    box = "<bndbox><xmin>3</xmin><ymin>5</ymin><xmax>10</xmax><ymax>9</ymax></bndbox>"
    text(tmp_path / "Annotations" / "a.xml", f"<annotation><object><name>dog</name>{box}</object></annotation>")
    dataset = open_dataset(tmp_path)
    assert dataset.kind == "instance"
    instances = dataset.records[0].instances
    assert instances is not None
    assert dataset.classes[instances[0].label] == "dog"
    assert instances[0].box == (2, 4, 10, 9)  # VOC counts from 1 and includes the last pixel
    text(tmp_path / "Annotations" / "a.xml", "<annotation>")
    with pytest.raises(DataError, match=r"a\.xml: is not a VOC annotation"):
        open_dataset(tmp_path)


# Cityscapes


def test_cityscapes_label_ids_become_train_ids(tmp_path: Path) -> None:
    ids = np.tile(np.arange(34, dtype=np.uint8), (H, 2))[:, :W]
    for split, city in (("train", "aachen"), ("val", "munster")):
        put(tmp_path / "leftImg8bit" / split / city / f"{city}_000000_000019_leftImg8bit.png")
        put(tmp_path / "gtFine" / split / city / f"{city}_000000_000019_gtFine_labelIds.png", ids)
    put(tmp_path / "leftImg8bit" / "test" / "bonn" / "bonn_000000_000019_leftImg8bit.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.kind, len(dataset.classes)) == ("cityscapes", "semantic", 19)
    assert {s: [r.name for r in records] for s, records in dataset.splits.items()} == {
        "train": ["aachen_000000_000019"],
        "val": ["munster_000000_000019"],
        "test": ["bonn_000000_000019"],
    }
    # The published table: road 7 -> 0, sidewalk 8 -> 1, ... sky 23 -> 10, person 24 -> 11, ... bicycle 33 -> 18.
    loaded = semantic(dataset)
    table = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14}
    table |= {28: 15, 31: 16, 32: 17, 33: 18}
    assert np.array_equal(loaded[0, :34], [table.get(i, IGNORE) for i in range(34)])
    assert dataset.classes[10] == "sky"
    assert dataset.splits["test"][0].label_map is None


def test_cityscapes_train_ids_win_and_own_classes_may_be_named(tmp_path: Path) -> None:
    put(tmp_path / "leftImg8bit" / "train" / "x" / "a_leftImg8bit.png")
    put(tmp_path / "gtFine" / "train" / "x" / "a_gtFine_labelIds.png", np.full((H, W), 7, np.uint8))
    train_ids = RNG.choice(np.array([0, 1, 255], np.uint8), (H, W))
    put(tmp_path / "gtFine" / "train" / "x" / "a_gtFine_labelTrainIds.png", train_ids)
    assert np.array_equal(semantic(open_dataset(tmp_path)), train_ids)
    text(tmp_path / "classes.txt", "crop\nweed\n")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("crop", "weed")
    assert np.array_equal(semantic(dataset), train_ids)


# labelme


def labelme(folder: Path, shapes: list[dict[str, Any]], stem: str = "a", **more: Any) -> Path:
    put(folder / f"{stem}.jpg")
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{stem}.jpg", "imageData": None}
    return text(folder / f"{stem}.json", json.dumps({**content, "imageHeight": H, "imageWidth": W, **more}))


def shape(label: str, points: list, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def test_labelme_shapes(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 2, (4, 6)).astype(bool)
    pixels[0, 0] = pixels[-1, -1] = True
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255).save(file, "PNG")
    shapes = [
        shape("dog", [[2, 3], [12, 3], [12, 10], [2, 10]]),
        shape("cat", [[15, 5], [25, 15]], "rectangle"),
        shape("cat", [[20, 10], [20, 16]], "circle"),
        shape("dog", [[30, 2], [35, 5]], "mask", mask=base64.b64encode(file.getvalue()).decode()),
        shape("dog", [[1, 15], [3, 15], [3, 17], [1, 17]], group_id=4),
        shape("dog", [[5, 15], [7, 15], [7, 17], [5, 17]], group_id=4),
        shape("__ignore__", [[36, 15], [40, 15], [40, 20], [36, 20]]),
        shape("nose", [[1, 1]], "point"),
    ]
    labelme(tmp_path, shapes)
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.kind, dataset.classes) == ("labelme", "instance", ("cat", "dog"))
    assert "1 points and lines passed over" in dataset.notes[0]
    sample = load_sample(dataset, dataset.records[0], ("masks", "semantic"))
    assert sample.masks is not None
    assert sample.labels is not None
    assert sample.crowd is not None
    assert sample.semantic is not None
    assert sample.labels.tolist() == [1, 0, 0, 1, 1, 0]
    assert sample.crowd.tolist() == [False] * 5 + [True]
    square, rectangle, circle, mask, parts, ignored = sample.masks.numpy()
    assert np.array_equal(square, filled(3, 10, 2, 12))
    assert np.array_equal(rectangle, filled(5, 15, 15, 25))
    assert abs(circle.sum() - np.pi * 36) < 6
    assert np.array_equal(mask[2:6, 30:36], pixels)
    assert mask.sum() == pixels.sum()
    assert np.array_equal(parts, filled(15, 17, 1, 3) | filled(15, 17, 5, 7))
    assert np.array_equal(ignored, filled(15, 20, 36, 40))
    assert (sample.semantic.numpy()[15:20, 36:40] == IGNORE).all()
    one = open_dataset(tmp_path / "a.json")
    assert [r.name for r in one.records] == ["a"]


def test_labelme_splits_names_and_pictures_without_a_file(tmp_path: Path) -> None:
    for split in ("train", "val"):
        labelme(tmp_path / split, [shape("x", [[1, 1], [5, 1], [5, 5]])])
    put(tmp_path / "train" / "b.jpg")
    put(tmp_path / "test" / "c.jpg")
    text(tmp_path / "labels.txt", "__ignore__\n_background_\ny\nx\n")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("y", "x")
    assert {s: [r.name for r in records] for s, records in dataset.splits.items()} == {
        "train": ["train/a"],
        "val": ["val/a"],
        "test": ["test/c"],
        "unlabelled": ["train/b"],
    }
    assert dataset.splits["test"][0].instances is None


def test_labelme_that_cannot_be_read(tmp_path: Path) -> None:
    path = labelme(tmp_path, [shape("x", [[1, 1], [5, 1], [5, 5]]), shape("x", [[1, 1]], "mask", mask="@@")])
    with pytest.raises(DataError, match=r"a\.json: shape 'x' cannot be read"):
        open_dataset(tmp_path)
    path.write_text('{"shapes": [{"label": "x"}]}')
    with pytest.raises(DataError, match=r"a\.json: is not a labelme file"):
        open_dataset(tmp_path)
    path.write_text('{"shapes": [\n}')
    with pytest.raises(DataError, match=r"a\.json: is not JSON .* in line 2"):
        open_dataset(tmp_path)
    labelme(tmp_path, [shape("x", [[1, 1], [5, 1], [5, 5]])], imageHeight=99)
    dataset = open_dataset(tmp_path)
    with pytest.raises(DataError, match=r"a\.jpg: is 20 x 40 .* its annotation says 99 x 40"):
        load_sample(dataset, dataset.records[0])
