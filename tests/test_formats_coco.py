"""COCO: every kind of annotation is read as pycocotools reads it, and what is wrong is named."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from delineate.data import IGNORE, load_sample, open_dataset, write_dataset
from delineate.data.raster import segmentation_rle
from delineate.errors import DataError

H, W = 20, 30
SQUARE = [2, 3, 12, 3, 12, 10, 2, 10]
RECT = [15, 5, 25, 5, 25, 15, 15, 15]


def rle(mask: np.ndarray, compressed: bool) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    if compressed:
        return {"size": [H, W], "counts": code["counts"].decode()}
    runs, value = [], 0
    for pixel in mask.T.ravel():
        if not runs or pixel != value:
            runs += [0] if not runs and pixel else []
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": [H, W], "counts": runs}


def blob() -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[5:15, 8:20] = True
    mask[8:10, 10:15] = False
    return mask


def write(folder: Path, annotations: list[dict[str, Any]], name: str = "instances_train.json", **more: Any) -> Path:
    """A file with two images and the sparse category ids 7 and 90."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in ("a", "b"):
        Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(folder / f"{stem}.png")
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{s}.png", "height": H, "width": W, "license": 3} for i, s in ((11, "a"), (5, "b"))],
        "annotations": [{"id": n, "image_id": 11, "category_id": 7, **a} for n, a in enumerate(annotations, 100)],
        "categories": [{"id": 90, "name": "dog", "supercategory": "animal"}, {"id": 7, "name": "cat"}],
        **more,
    }
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_all_kinds_of_outlines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            {"segmentation": [SQUARE], "bbox": [2, 3, 10, 7], "iscrowd": 0, "area": 70},
            {"segmentation": [SQUARE, RECT], "category_id": 90},
            {"segmentation": rle(blob(), compressed=False)},
            {"segmentation": rle(blob(), compressed=True), "iscrowd": 1},
            {"segmentation": RECT},
        ],
    )
    dataset = open_dataset(path)
    assert (dataset.format, dataset.kind, dataset.classes) == ("coco", "instance", ("cat", "dog"))
    assert {s: [r.name for r in records] for s, records in dataset.splits.items()} == {"train": ["a", "b"]}
    record = dataset.records[0]
    assert (record.size, record.image_id, record.extra) == ((H, W), 11, {"license": 3})
    sample = load_sample(dataset, record, ("semantic", "instance_map", "masks", "boxes"))
    square, rect = np.zeros((H, W), bool), np.zeros((H, W), bool)
    square[3:10, 2:12], rect[5:15, 15:25] = True, True
    expected = [square, square | rect, blob(), blob(), rect]
    assert sample.masks is not None
    assert sample.labels is not None
    assert sample.crowd is not None
    assert sample.boxes is not None
    assert np.array_equal(sample.masks.numpy(), expected)
    assert sample.labels.tolist() == [0, 1, 0, 0, 0]
    assert sample.crowd.tolist() == [False, False, False, True, False]
    assert sample.boxes.tolist() == [[2, 3, 12, 10], [2, 3, 25, 15], [8, 5, 20, 15], [8, 5, 20, 15], [15, 5, 25, 15]]
    semantic, instance_map = np.zeros((H, W), int), np.zeros((H, W), int)
    semantic[blob()] = IGNORE
    for number, (mask, label) in enumerate(zip(expected, [1, 2, 1, 0, 1], strict=True), 1):
        if number != 4:
            semantic[mask], instance_map[mask] = label, number
    assert sample.semantic is not None
    assert sample.instance_map is not None
    assert np.array_equal(sample.semantic.numpy(), semantic)
    assert np.array_equal(sample.instance_map.numpy(), instance_map)
    empty = load_sample(dataset, dataset.records[1], ("semantic", "instance_map", "masks", "boxes"))
    assert empty.masks is not None
    assert empty.boxes is not None
    assert (empty.masks.shape, empty.boxes.shape) == ((0, H, W), (0, 4))


def test_objects_that_cover_nothing_are_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            {"segmentation": [[1, 1, 5, 5]], "bbox": [1, 1, 4, 4]},  # two points: pycocotools would read a box
            {"segmentation": [SQUARE], "bbox": [2, 3, 0, 7]},
            {"segmentation": [[2.1, 2.1, 2.2, 2.1, 2.2, 2.2]], "bbox": [2, 2, 1, 1]},
            {"segmentation": [SQUARE]},
        ],
    )
    dataset = open_dataset(path)
    assert len(dataset.records[0].instances or ()) == 4
    sample = load_sample(dataset, dataset.records[0], ("masks", "boxes", "instance_map"))
    assert sample.masks is not None
    assert sample.labels is not None
    assert sample.instance_map is not None
    assert sample.masks.sum().item() == 70
    assert len(sample.labels) == 1
    assert sample.instance_map.max() == 1


def test_boxes_without_outlines(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path, [{"bbox": [1, 2, 3, 4]}]))
    boxes = load_sample(dataset, dataset.records[0], ("boxes",)).boxes
    assert boxes is not None
    assert boxes.tolist() == [[1, 2, 4, 6]]
    with pytest.raises(DataError, match=r"a\.png: object \d+ has no outline"):
        load_sample(dataset, dataset.records[0], ("masks",))


def test_keypoints_and_their_schema(tmp_path: Path) -> None:
    points = [1, 2, 2, 0, 0, 0, 5.5, 6, 1]
    categories = [
        {"id": 7, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3], [3, 9]]}
    ]
    annotations = [{"segmentation": [SQUARE], "keypoints": points, "num_keypoints": 2}, {"segmentation": [RECT]}]
    dataset = open_dataset(write(tmp_path, annotations, categories=categories))
    assert dataset.kind == "keypoint"
    assert dataset.keypoints is not None
    assert dataset.keypoints.edges == ((0, 1), (0, 2))
    assert dataset.keypoints.flip_pairs == ((1, 2),)
    sample = load_sample(dataset, dataset.records[0], ("keypoints", "boxes"))
    assert sample.keypoints is not None
    assert sample.visibility is not None
    assert sample.keypoints.tolist() == [[[1, 2], [0, 0], [5.5, 6]], [[0, 0]] * 3]
    assert sample.visibility.tolist() == [[2, 0, 1], [0, 0, 0]]
    assert open_dataset(dataset.root, "coco:instance").kind == "instance"


@pytest.mark.parametrize(
    ("folder", "image_folder", "annotation"),
    [
        ("", "", "labels.json"),
        ("", "images", "labels.json"),
        ("annotations", "images", "instances_all.json"),
        ("annotations", "train2017", "instances_train2017.json"),
        ("annotations", "images/val2014", "instances_val2014_100.json"),
        ("train", "train", "_annotations.coco.json"),
    ],
)
def test_images_are_found_where_they_usually_lie(tmp_path: Path, folder: str, image_folder: str, annotation: str) -> None:
    path = write(tmp_path / folder, [{"segmentation": [SQUARE]}], annotation)
    (tmp_path / image_folder).mkdir(parents=True, exist_ok=True)
    for stem in ("a", "b"):
        (tmp_path / folder / f"{stem}.png").rename(tmp_path / image_folder / f"{stem}.png")
    for source in (path, tmp_path):
        dataset = open_dataset(source)
        assert dataset.format == "coco"
        assert dataset.records[0].image == tmp_path / image_folder / "a.png"
        assert dataset.notes == ()


def test_a_folder_prefers_instances_and_tells_splits_by_name(tmp_path: Path) -> None:
    for name in ("instances_val2017", "instances_train2017", "person_keypoints_val2017", "captions_val2017"):
        write(tmp_path / "annotations", [{"segmentation": [SQUARE]}], f"{name}.json")
    assert list(open_dataset(tmp_path).splits) == ["train", "val"]
    write(tmp_path / "annotations", [], "instances_train_more.json")
    with pytest.raises(DataError, match=r"instances_train2017\.json and instances_train_more\.json are both for 'train'"):
        open_dataset(tmp_path)


def broken(**change: Any) -> list[dict[str, Any]]:
    return [{"segmentation": [SQUARE], **change}]


@pytest.mark.parametrize(
    ("annotations", "more", "words"),
    [
        (broken(category_id=8), {}, "annotation 100 has the category 8, which is not listed"),
        (broken(bbox=[1, 2]), {}, r"annotation 100 has the bbox \[1, 2\]"),
        (broken(segmentation="abc"), {}, "neither polygons nor a run-length code"),
        (broken(keypoints=[1, 2, 2]), {}, "has keypoints, but no category has a list .keypoints."),
        ([], {"images": [{"id": 1}]}, "lacks 'id' or 'file_name'"),
        ([], {"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]}, "image id 1 is given twice"),
        ([], {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category id 1 is given twice"),
        ([], {"categories": None}, "has no list 'categories'"),
    ],
)
def test_annotations_that_cannot_be_read(tmp_path: Path, annotations: list, more: dict, words: str) -> None:
    path = write(tmp_path, annotations, **more)
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [],\n "annotations": [,]}')
    with pytest.raises(DataError, match=r"a\.json: is not JSON .* in line 2"):
        open_dataset(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="is a list"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ({"size": [W, H], "counts": [W * H]}, r"is for \[30, 20\], the picture is \[20, 30\]"),
        ({"size": [H, W], "counts": [100, 5]}, "damaged"),
        ({"size": [H, W], "counts": [-5, H * W + 5]}, "damaged"),
        ({"size": [H, W], "counts": "zzzzzzzz"}, "damaged"),
        ({"size": [H, W]}, "expected a list or a string"),
        (((1, 2, 3, float("nan"), 5, 6),), "finite"),
        (((1, 2, 3, 4, 5, 6, 7),), "pairs"),
    ],
)
def test_damaged_outlines_do_not_reach_c_code(code: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        segmentation_rle(code, (H, W))


def test_polygons_far_outside_are_cut_at_the_image() -> None:
    far = [[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12]]
    assert coco_mask.decode(segmentation_rle((far[0],), (H, W))).all()  # pyright: ignore[reportArgumentType]


def test_stated_size_must_be_that_of_the_picture(tmp_path: Path) -> None:
    path = write(tmp_path, broken())
    Image.fromarray(np.zeros((W, H), np.uint8)).save(tmp_path / "a.png")
    dataset = open_dataset(path)
    with pytest.raises(DataError, match=r"a\.png: is 30 x 20 \(height x width\), its annotation says 20 x 30; annotate"):
        load_sample(dataset, dataset.records[0])
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((H, W), np.uint8)).save(tmp_path / "a.png", exif=exif)
    with pytest.raises(DataError, match="annotated without its EXIF orientation"):
        load_sample(dataset, dataset.records[0])


def test_writing_keeps_ids_unknown_fields_and_both_codes(tmp_path: Path) -> None:
    path = write(
        tmp_path / "in",
        [
            {"segmentation": [SQUARE], "bbox": [2, 3, 10, 7], "area": 69.5, "iscrowd": 0, "score_by": "me"},
            {"segmentation": rle(blob(), compressed=False), "bbox": [8, 5, 12, 10], "area": 110, "iscrowd": 1},
            {
                "segmentation": rle(blob(), compressed=True),
                "bbox": [8, 5, 12, 10],
                "area": 110,
                "iscrowd": 0,
                "category_id": 90,
            },
        ],
        info={"year": 2026},
        licenses=[{"id": 3}],
    )
    write_dataset(open_dataset(path), tmp_path / "out", "coco")
    before, after = (json.loads(p.read_text()) for p in (path, tmp_path / "out" / "annotations" / "instances_train.json"))
    before["categories"].sort(key=lambda c: c["id"])
    assert after == before
    assert (tmp_path / "out" / "train" / "a.png").read_bytes() == (tmp_path / "in" / "a.png").read_bytes()


# Real data, against pycocotools.


def quiet(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco2017_masks_equal_those_of_pycocotools(real_data: Path, split: str) -> None:
    folder = real_data / "coco2017_mini"
    dataset = open_dataset(folder)
    assert {s: len(r) for s, r in dataset.splits.items()} == {"train": 128, "val": 56}
    assert (dataset.kind, len(dataset.classes), dataset.classes[0], dataset.classes[-1]) == (
        "instance",
        80,
        "person",
        "toothbrush",
    )
    api = quiet(folder / "annotations" / f"instances_{split}2017.json")
    crowds = [r for r in dataset.splits[split] if any(i.crowd for i in r.instances or ())]
    for record in [*dataset.splits[split][::8], *crowds]:
        sample = load_sample(dataset, record, ("masks", "boxes"))
        annotations = [a for a in api.loadAnns(api.getAnnIds([record.image_id])) if api.annToMask(a).any()]
        assert sample.masks is not None
        assert sample.labels is not None
        assert sample.boxes is not None
        assert len(annotations) == len(sample.masks)
        for mask, box, label, annotation in zip(sample.masks, sample.boxes, sample.labels, annotations, strict=True):
            assert np.array_equal(mask.numpy(), api.annToMask(annotation))
            x, y, w, h = annotation["bbox"]
            assert np.allclose(box.numpy(), [x, y, x + w, y + h], atol=1e-3)
            assert dataset.classes[int(label)] == api.loadCats(annotation["category_id"])[0]["name"]


def test_coco2017_person_keypoints(real_data: Path) -> None:
    dataset = open_dataset(real_data / "coco2017_mini" / "annotations" / "person_keypoints_val2017.json")
    assert (dataset.kind, dataset.classes, len(dataset.splits["val"])) == ("keypoint", ("person",), 65)
    assert dataset.keypoints is not None
    assert len(dataset.keypoints.names) == len(dataset.keypoints.sigmas) == 17
    assert len(dataset.keypoints.edges) == 19
    assert len(dataset.keypoints.flip_pairs) == 8
    from pycocotools.cocoeval import Params

    assert np.allclose(dataset.keypoints.sigmas, Params(iouType="keypoints").kpt_oks_sigmas)
    shown = sum(any(i.keypoints and any(p[2] for p in i.keypoints) for i in r.instances or ()) for r in dataset.records)
    assert shown == 39
    both = open_dataset(real_data / "coco2017_mini", "coco:keypoint")
    assert {s: len(r) for s, r in both.splits.items()} == {"train": 100, "val": 65}


@pytest.mark.parametrize(
    ("path", "kind", "pictures", "objects"),
    [
        ("keypoint_samples/coco/test_coco.json", "keypoint", 4, 14),
        ("reference_eval/boundary_small3/gt_dataset.json", "instance", 3, 9),
        ("reference_eval/cocoapi/instances_val2014_100.json", "instance", 100, 839),
        ("reference_eval/lvis/lvis_val_100.json", "instance", 100, 977),
        ("reference_eval/crowdpose_four_images/example_crowdpose_val.json", "keypoint", 4, 10),
        ("reference_eval/panopticapi_sample_data/panoptic_coco_detection_format.json", "instance", 2, 50),
    ],
)
def test_other_real_files(real_data: Path, path: str, kind: str, pictures: int, objects: int) -> None:
    dataset = open_dataset(real_data / path)
    assert (dataset.kind, len(dataset.records)) == (kind, pictures)
    assert sum(len(r.instances or ()) for r in dataset.records) == objects


def test_real_round_trip_is_equal(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "coco2017_mini" / "annotations" / "instances_val2017.json"
    write_dataset(open_dataset(source), tmp_path / "out", "coco")
    before, after = (json.loads(p.read_text()) for p in (source, tmp_path / "out" / "annotations" / "instances_val.json"))
    assert after["images"] == before["images"]
    assert after["categories"] == before["categories"]
    assert {a["id"]: a for a in after["annotations"]} == {a["id"]: a for a in before["annotations"]}
