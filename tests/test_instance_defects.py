"""Annotation files with a defect of those that users report: each is named with its record and what to do, or counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from torch import nn

from _configs import QUICK
from delineate.cli import run
from delineate.config import TrainConfig, build_config
from delineate.data import check_dataset, open_dataset
from delineate.data.instance_loader import InstanceSet, make_instance_loader
from delineate.errors import DataError
from delineate.models import create_model
from delineate.train.build import prepare_dataset
from delineate.train.instance_truth import truth_notes
from delineate.train.task import make_task
from delineate.weights.conventions import Conventions, Resize

OUTLINE = [[10, 6, 20, 6, 20, 16, 10, 16]]
SOUND: dict[str, Any] = {"bbox": [10, 6, 10, 10], "segmentation": OUTLINE, "area": 100, "iscrowd": 0}
OTHER: dict[str, Any] = {"bbox": [30, 6, 10, 10], "segmentation": [[30, 6, 40, 6, 40, 16, 30, 16]]}
POSE: dict[str, Any] = {**SOUND, "keypoints": [15, 11, 2, 12, 8, 1], "num_keypoints": 2}
IMAGE: dict[str, Any] = {"id": 1, "file_name": "a.png", "height": 48, "width": 64}
CAT: dict[str, Any] = {"id": 3, "name": "cat"}
SKELETON: dict[str, Any] = {**CAT, "keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}
ROWS = {"size": [48, 64], "counts": [6 * 64 + 10, *[10, 54] * 9, 10, 32 * 64 + 44]}  # SOUND, counted along rows


def write(folder: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    """Two pictures, the objects of the first, and the file that lists them."""
    for name, seed in (("a", 0), ("b", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    content = {
        "images": [IMAGE],
        "categories": [CAT],
        "annotations": [{"id": n, "image_id": 1, "category_id": 3, **a} for n, a in enumerate(annotations, 7)],
    }
    path = folder / "labels_train.json"
    path.write_text(json.dumps(content | changes))
    return path


def findings(path: Path) -> list[tuple[str, str]]:
    return [(finding.severity, finding.message) for finding in check_dataset(path).findings]


@pytest.mark.parametrize(
    ("change", "severity", "words"),
    [
        ({}, None, ""),
        ({"bbox": [30, 6, 40, 16], "segmentation": OTHER["segmentation"]}, "warning", "(30, 6, 40, 16); a bbox is [x, y, w"),
        ({"bbox": [30, 6, 40, 16], "segmentation": []}, "warning", "reaches outside the 64 x 48 image; a bbox is [x, y, width"),
        ({"bbox": [40, 30, 9, 9]}, "warning", "its outline reaches over (10, 6, 20, 16); correct either"),
        ({"segmentation": ROWS}, "warning", "has the box (10, 6, 20, 16), its outline reaches over"),
        ({"bbox": [0.2, 0.1, 0.2, 0.2], "segmentation": []}, "error", "coordinates are pixels, not shares of the picture"),
        ({"bbox": None, "segmentation": [[0.2, 0.1, 0.4, 0.1, 0.4, 0.3]]}, "error", "not shares of the picture"),
        ({"bbox": [10, 6, 0, 10]}, "warning", "without extent"),
        ({"bbox": None}, None, ""),
        ({"segmentation": []}, None, ""),
        ({"bbox": None, "segmentation": []}, "error", "neither box, outline nor labelled keypoints"),
        ({"bbox": [float("inf"), 0, 5, 5]}, "error", "expected [x, y, width, height]"),
        ({"bbox": [200, 200, 5, 5]}, "error", "wholly outside the 64 x 48 image"),
        ({"segmentation": [[1, 1, 9, 1, 9, 9, 4]]}, "error", "[1, 1, 9, 1, 9, 9, 4] of 7 numbers; a polygon needs pairs x, y"),
        ({"segmentation": [[10, 6], [20, 6], [20, 16]]}, "warning", "[10, 6], which covers nothing; a polygon is one list"),
        ({"segmentation": "abc"}, "error", "the segmentation 'abc', neither polygons nor a run-length code; expected [["),
        ({"segmentation": {"size": [64, 48], "counts": [0, 3072]}}, "error", "the picture is [48, 64]"),
        ({"area": -5}, "warning", "has the area -5; AP tells small from large by it"),
        ({"area": 1e9}, "warning", "has the area 1e+09, but covers 100 pixels"),
        ({"area": None}, None, ""),
        ({"iscrowd": "0"}, "error", "expected 0 or 1"),
        ({"iscrowd": 1}, "error", "no picture shows an object, crowd regions aside"),
        ({"category_id": "3"}, "error", "the category '3', which is not listed"),
        ({"image_id": "1"}, "error", "image_id '1', images 1 ...; make both equal, in type too"),
        ({"keypoints": [15, 11, 2]}, "error", "no category has a list 'keypoints' with their names"),
    ],
)
def test_every_defect_of_an_object_is_named(tmp_path: Path, change: dict[str, Any], severity: str | None, words: str) -> None:
    found = findings(write(tmp_path, [{**SOUND, **change}]))
    assert not found if severity is None else any(s == severity and words in text for s, text in found), found


@pytest.mark.parametrize(
    ("change", "severity", "words"),
    [
        ({}, None, ""),
        ({"num_keypoints": 5}, "warning", "has the num_keypoints 5, but 2 with a visibility above 0"),
        ({"keypoints": [15, 11, 2], "num_keypoints": 1}, "error", "3 numbers of keypoints; expected 6, x, y and visibility"),
        ({"keypoints": [15, 11, 3, 12, 8, 1]}, "error", "a keypoint of the visibility 3; expected 0 (not labelled)"),
        ({"keypoints": [15, 11, -1, 12, 8, 1]}, "error", "a keypoint of the visibility -1"),
        ({"keypoints": [15, 11, 0, 12, 8, 0], "num_keypoints": 0}, "warning", "2 keypoints of the visibility 0, which are not"),
        ({"keypoints": [15, float("nan"), 2, 12, 8, 1]}, "error", "expected numbers x, y, v"),
    ],
)
def test_every_defect_of_keypoints_is_named(tmp_path: Path, change: dict[str, Any], severity: str | None, words: str) -> None:
    found = findings(write(tmp_path, [{**POSE, **change}], categories=[SKELETON]))
    assert not found if severity is None else any(s == severity and words in text for s, text in found), found


@pytest.mark.parametrize(
    ("content", "severity", "words"),
    [
        ({"categories": [CAT, {"id": 5, "name": "cat"}]}, "warning", "the categories 3, 5 are all named 'cat'; rename them"),
        ({"categories": [CAT, {"id": 5, "name": "Cat "}]}, "warning", "the category name 'Cat ' is nearly 'cat'; rename it"),
        ({"categories": [{**CAT, "name": ""}]}, "warning", "the category name '' is empty; rename it"),
        ({"categories": []}, "error", "its list 'categories' is empty, but annotations name each by category_id"),
        ({"categories": [CAT, {"id": 5}]}, "error", "lacks 'id' or 'name', it is {'id': 5}; give each both"),
        (
            {"categories": [{**SKELETON, "skeleton": [[0, 1]]}]},
            "warning",
            "joins the keypoints (0, 1), but has 2, counted",
        ),
        ({"categories": [{**SKELETON, "keypoints": ["a", "a"]}]}, "warning", "names the keypoint 'a' twice"),
        (
            {"categories": [SKELETON, {**SKELETON, "id": 5, "name": "dog", "keypoints": ["x"]}]},
            "warning",
            "has other keypoints",
        ),
        ({"images": []}, "error", "its list 'images' is empty, but annotations name each by image_id"),
        ({"images": [IMAGE, {**IMAGE, "id": 2}]}, "warning", "listed under several ids, such as 'a.png'; give each one id"),
        ({"images": [IMAGE, {"id": 2}]}, "error", "an image lacks 'id' or 'file_name', it is {'id': 2}; give it both"),
        ({"images": [{**IMAGE, "file_name": "A.JPG"}]}, "error", "does not exist; did you mean 'a.png'?"),
        ({"images": [{**IMAGE, "file_name": "images\\a.png"}]}, "error", "has a backslash: write / between folders"),
        ({"images": [{**IMAGE, "file_name": "http://x.org/a.png"}]}, "error", "an address; download it"),
        ({"images": [{**IMAGE, "height": 99}]}, "error", "its annotation says 99 x 64; annotate this very picture, or correct"),
    ],
)
def test_every_defect_of_the_lists_is_named(tmp_path: Path, content: dict[str, Any], severity: str, words: str) -> None:
    found = findings(write(tmp_path, [SOUND], **content))
    assert any(s == severity and words in text for s, text in found), found


def test_objects_are_compared_with_each_other(tmp_path: Path) -> None:
    images = [IMAGE, {**IMAGE, "id": 2, "file_name": "b.png"}]
    bare = {**OTHER, "segmentation": [], "image_id": 2}
    found = [text for _, text in findings(write(tmp_path, [SOUND, SOUND, OTHER, bare], images=images))]
    assert found[-2:] == [
        "object 8 is the same as object 7; remove one",
        "object 10 has no outline, though others have; networks with masks need one of each object",
    ]
    report = check_dataset(write(tmp_path, [bare], images=images))
    assert report.statistics["notes"] == ["no object has an outline: for networks without masks (model.options.masks=false)"]


def test_unlabelled_keypoints_are_noted(tmp_path: Path) -> None:
    bare = {**POSE, "keypoints": [0] * 6, "num_keypoints": 0}
    notes = [check_dataset(write(tmp_path, [o], categories=[SKELETON])).statistics["notes"] for o in (POSE, bare)]
    assert notes == [[], ["no keypoint is labelled: for networks without keypoints"]]


def test_annotations_need_no_ids(tmp_path: Path) -> None:
    assert not findings(write(tmp_path, [{**SOUND, "id": None}, {**OTHER, "id": None}]))


def test_categories_of_one_name_are_told_apart(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path, [SOUND], categories=[CAT, {"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}]))
    assert dataset.classes == ("cat 3", "cat 5", "dog")
    (note,) = dataset.notes
    assert note.endswith(
        "the categories 3, 5 are all named 'cat'; rename them, or use one id; they are called cat 3, cat 5 here"
    )


# --- pictures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixels", "severity", "words"),
    [
        (np.full((48, 64), np.nan, np.float32), "error", "holds NaN or infinite values; replace them by numbers"),
        (np.zeros((3, 48, 64), np.uint8), "warning", "has 3 pages, of which the first is read"),
    ],
)
def test_every_defect_of_a_tiff_is_named(tmp_path: Path, pixels: np.ndarray, severity: str, words: str) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig" if pixels.shape[-1] == 5 else None
    )
    found = findings(write(tmp_path, [SOUND], images=[{**IMAGE, "file_name": "a.tif"}]))
    assert any(s == severity and words in text for s, text in found), found


def test_a_16_bit_picture_among_8_bit_ones_is_as_bright_as_they_are(tmp_path: Path) -> None:
    """Training scales it as prediction does."""
    path = write(tmp_path, [SOUND], images=[IMAGE, {**IMAGE, "id": 2, "file_name": "deep.png"}])
    deep = np.asarray(Image.open(tmp_path / "a.png").convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert "number types differ" in {f.kind for f in check_dataset(path).findings}
    dataset = open_dataset(path)
    pictures = InstanceSet(dataset, dataset.records, config_of(path), Conventions(resize=Resize(48, 64)))
    (batch,) = make_instance_loader(pictures)
    shallow, bright = (batch.images[batch.names.index(name)].mean() for name in ("a", "deep"))
    assert bright == pytest.approx(float(shallow), abs=0.2)


# --- training -----------------------------------------------------------------------------------------------------------


def config_of(path: Path, model: str = "mask_rcnn_resnet50_fpn", **options: Any) -> TrainConfig:
    usual = {"encoder": "resnet18", "norm": "group", "width": 8, "box_width": 8}
    content = {"data": {"path": str(path)}, "model": {"name": model, "options": usual | options}, "steps_per_epoch": 1}
    return build_config(QUICK | content | {"input": {"resize": {"shortest": 48, "longest": 64}}})


def write_both(folder: Path, *annotations: dict[str, Any], **changes: Any) -> Path:
    """As `write`, with the objects in both pictures, one of which is held back."""
    images = [IMAGE, {**IMAGE, "id": 2, "file_name": "b.png"}]
    return write(folder, [{"image_id": i, **a} for i in (1, 2) for a in annotations], images=images, **changes)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({}, None),
        (
            {"bbox": [30, 6, 40, 16], "segmentation": OTHER["segmentation"]},
            "box unlike its outline: 1 of 2 objects, such as object ",
        ),
        ({"bbox": [60, 6, 30, 16], "segmentation": []}, "outside the image: 1 of 2 objects, such as object "),
        ({"bbox": [0.2, 0.1, 0.2, 0.2], "segmentation": []}, "coordinates in 0..1: 1 of 2 objects, such as object "),
        ({"bbox": [10, 6, 0, 10]}, "1 of 2 objects are left out of the training: box or outline without extent"),
        ({"bbox": [200, 200, 9, 9]}, "1 of 2 objects are left out of the training: box or outline without extent"),
    ],
)
def test_training_counts_what_is_doubtful(tmp_path: Path, change: dict[str, Any], note: str | None) -> None:
    dataset = prepare_dataset(config_of(write_both(tmp_path, OTHER, {**SOUND, **change})).data)
    notes = truth_notes(dataset, masks=False)
    assert not notes if note is None else any(text.startswith(note) for text in notes), notes


@pytest.fixture(scope="module")
def detectors() -> dict[bool, nn.Module]:
    """A network without and one with keypoints."""
    config = config_of(Path())
    tiny = config.model.options
    points = {"num_keypoints": 2, "keypoint_convs": 1, "keypoint_width": 8}
    return {bool(more): create_model(config.model.name, 1, **tiny, **more) for more in ({}, points)}


def test_an_outline_mends_a_box_outside_its_picture(tmp_path: Path, detectors: dict[bool, nn.Module]) -> None:
    config = config_of(write_both(tmp_path, {**SOUND, "bbox": [200, 200, 9, 9]}))
    task = make_task(config, prepare_dataset(config.data), model=detectors[False], fresh=False)
    (batch,) = task.loader(rank=0, world=1)
    assert batch.targets.boxes[batch.targets.valid].unique(dim=0).tolist() in ([[10, 6, 20, 16]], [[44, 6, 54, 16]])  # mirrored
    assert not any("left out" in note for note in task.notes)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([], "no object to learn from in 'train': its pictures have none"),
        ([{**SOUND, "iscrowd": 1}], "no object to learn from in 'train': 1 crowd regions;"),
        ([{**SOUND, "bbox": [5, 5, 0, 0]}], "'train': 1 without extent or outside their picture;"),
        ([{**SOUND, "bbox": [0.1, 0.1, 0.5, 0.5]}], "'train': 1 within the first pixel, shares in place of pixels;"),
        ([SOUND, {**OTHER, "segmentation": []}], r"2 objects have no outline, such as object \d+ of .\.png, so 'mask_rcnn"),
        ([{**POSE, "keypoints": [0] * 6}], "no keypoint in 'train' has a visibility above 0, so 'mask_rcnn"),
        (
            [{**POSE, "segmentation": {"size": [48, 64], "counts": [0, 10]}}],
            r"[ab]\.png: object \d+: a run-length code is damaged",
        ),
    ],
)
def test_training_refuses_what_cannot_be_learned(
    tmp_path: Path, detectors: dict[bool, nn.Module], objects: list[dict[str, Any]], message: str
) -> None:
    config = config_of(write_both(tmp_path, *objects, categories=[SKELETON]))
    model = detectors[any("keypoints" in o for o in objects)]
    with pytest.raises(DataError, match=message):
        next(iter(make_task(config, prepare_dataset(config.data), model=model, fresh=False).loader(rank=0, world=1)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: b"", "is not JSON"),
        (lambda text: text[:-40], "is not JSON"),
        (lambda text: b"[]", "is a list (COCO results?)"),
        (lambda text: text.replace(b"cat", b"k\xe4fer"), "is not UTF-8 text"),
        (lambda text: text, "annotation 7 has the bbox [1, 2, 3], expected [x, y, width, height]"),
    ],
)
def test_the_command_line_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[bytes], bytes], words: str
) -> None:
    path = write(tmp_path, [{**SOUND, "bbox": [1, 2, 3]}])
    path.write_bytes(b"\xef\xbb\xbf" + spoil(path.read_bytes()))
    assert run(["train", "--data", str(path), "--model", "mask_rcnn_resnet50_fpn"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"labels_train.json: {words}" in line
