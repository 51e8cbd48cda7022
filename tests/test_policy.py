"""The hard cases of docs/policy.md, each through `score` or the command line, as a user meets them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delineate.cli import run
from delineate.errors import DataError
from delineate.metrics.coco import COCO_NAMES
from delineate.metrics.evaluation import Evaluation
from delineate.predict.score import score

NAMES = ("background", "cell", "debris")
EVERYTHING: Any = {"boundary": True, "surface": 1.0, "cldice": "cell"}


def picture(*squares: tuple[int, int, int]) -> np.ndarray:
    """(30, 40) class ids with squares of 10 pixels: (class id, top, left)."""
    canvas = np.zeros((30, 40), np.uint8)
    for value, top, left in squares:
        canvas[top : top + 10, left : left + 10] = value
    return canvas


def scored(tmp_path: Path, prediction: np.ndarray, truth: np.ndarray, **options: Any) -> Evaluation:
    for name, pixels in (("p", prediction), ("t", truth)):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    return score(tmp_path / "p", tmp_path / "t", classes=NAMES, **(EVERYTHING | {"objects": "components"} | options))


CELL = picture((1, 10, 10))
NOTHING = picture()
OF_CELL = ("iou/cell", "dice/cell", "boundary_iou/cell", "cldice/cell", "nsd/cell")
DIAGONAL = math.hypot(30, 40)


# --- nothing there ------------------------------------------------------------------------------------------------------


def test_empty_prediction(tmp_path: Path) -> None:
    numbers = scored(tmp_path, NOTHING, CELL).summary
    for name in (*OF_CELL, "objects/ap50", "objects/recall_50"):
        assert numbers[name] == 0, name
    assert math.isnan(numbers["objects/precision_50"])  # nothing was claimed
    assert numbers["hd95/cell"] == DIAGONAL
    assert numbers["surface_missing/cell"] == 1


def test_empty_truth(tmp_path: Path) -> None:
    numbers = scored(tmp_path, CELL, NOTHING).summary
    for name in (
        "iou/cell",
        "dice/cell",
        "boundary_iou/cell",
        "cldice/cell",
        "nsd/cell",
        "objects/ap50",
        "objects/precision_50",
    ):
        assert numbers[name] == 0, name
    assert math.isnan(numbers["objects/recall_50"])  # nothing was to be found
    assert numbers["hd95/cell"] == DIAGONAL


def test_both_empty(tmp_path: Path) -> None:
    evaluation = scored(tmp_path, NOTHING, NOTHING, ci=True)
    numbers = evaluation.summary
    for name in ("iou/cell", "boundary_iou/cell", "cldice/cell", "nsd", "hd95", "objects/ap", "objects/f1_50"):
        assert math.isnan(numbers[name]), name
    assert numbers["mean_iou"] == numbers["pixel_accuracy"] == 1  # the background is there, and right
    assert all(math.isnan(x) for x in (evaluation.intervals or {})["iou/cell"])
    assert evaluation.to_json()["summary"]["iou/cell"] is None


def test_absent_class_is_left_out_of_means(tmp_path: Path) -> None:
    """Neither side shows debris; then only the prediction does."""
    numbers = scored(tmp_path, CELL, CELL).summary
    assert math.isnan(numbers["iou/debris"])
    assert numbers["mean_iou"] == 1
    invented = scored(tmp_path, CELL + picture((2, 0, 30)), CELL, preset="detectron2").summary
    assert invented["iou/debris"] == 0
    assert invented["mean_iou"] == pytest.approx((1000 / 1100 + 1 + 0) / 3)
    assert invented["mean_iou/detectron2"] == pytest.approx((1000 / 1100 + 1) / 2)


# --- not counted --------------------------------------------------------------------------------------------------------


def test_ignored_pixels(tmp_path: Path) -> None:
    """What is predicted there is neither right nor wrong, and an object that is only there does not exist."""
    truth = CELL.copy()
    truth[:, 25:] = 255
    evaluation = scored(tmp_path, CELL + picture((1, 15, 30)), truth)
    assert evaluation.summary["mean_iou"] == evaluation.summary["boundary_iou"] == evaluation.summary["objects/ap"] == 1
    assert np.sum(evaluation.confusion or []) == 30 * 25
    assert evaluation.objects is not None
    assert evaluation.objects["predicted_objects"] == 1
    everything = scored(tmp_path, CELL, np.full_like(CELL, 255)).summary
    assert math.isnan(everything["mean_iou"])
    assert math.isnan(everything["pixel_accuracy"])


# --- COCO ---------------------------------------------------------------------------------------------------------------


def square(top: int, left: int, side: int = 10) -> list[list[float]]:
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def truth_content() -> dict[str, Any]:
    """Two pictures with a cell each, annotations 0 and 1."""
    images = [{"id": n, "file_name": f"{n}.png", "height": 30, "width": 40} for n in (1, 2)]
    objects: list[dict[str, Any]] = [
        {"id": n - 1, "image_id": n, "category_id": 7, "segmentation": square(5, 5), "bbox": [5, 5, 10, 10], "area": 100}
        for n in (1, 2)
    ]
    return {"images": images, "categories": [{"id": 7, "name": "cell"}, {"id": 9, "name": "dirt"}], "annotations": objects}


def results() -> list[dict[str, Any]]:
    return [{"image_id": n, "category_id": 7, "segmentation": square(5, 5), "score": 0.9} for n in (1, 2)]


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def score_json(tmp_path: Path, found: Any, truth: Any, **options: Any) -> Evaluation:
    return score(write(tmp_path / "found.json", found), write(tmp_path / "truth.json", truth), **options)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_annotation_id_0_and_missing_iscrowd_and_area(tmp_path: Path, backend: Any) -> None:
    numbers = score_json(tmp_path, results(), truth_content(), backend=backend).summary
    assert numbers["segm/AP"] == numbers["bbox/AP"] == pytest.approx(1)
    bare = truth_content()
    for annotation in bare["annotations"]:
        del annotation["area"]
    without = score_json(tmp_path, results(), bare, backend=backend).summary
    assert [without[f"segm/{name}"] for name in COCO_NAMES] == [numbers[f"segm/{name}"] for name in COCO_NAMES]


def test_no_detections_and_no_objects(tmp_path: Path) -> None:
    numbers = score_json(tmp_path, [], truth_content()).summary
    assert numbers["segm/AP"] == numbers["objects/recall_50"] == 0
    empty = truth_content() | {"annotations": []}
    evaluation = score_json(tmp_path, results(), empty, ci=True)
    assert evaluation.summary["segm/AP"] == -1  # as COCO says it
    assert all(math.isnan(x) for x in (evaluation.intervals or {})["segm/AP"])
    assert score_json(tmp_path, [], empty).summary["segm/AP"] == -1


def test_crowd(tmp_path: Path) -> None:
    """Detections inside a crowd are no error, and a crowd that nobody found is no miss."""
    truth = truth_content()
    truth["annotations"].append(
        {"id": 2, "image_id": 1, "category_id": 7, "segmentation": square(15, 15, 15), "bbox": [15, 15, 15, 15], "iscrowd": 1}
    )
    inside = {"image_id": 1, "category_id": 7, "segmentation": square(17, 17, 5), "score": 0.95}
    for found in (results(), [*results(), inside]):
        numbers = score_json(tmp_path, found, truth, boundary=True).summary
        assert numbers["segm/AP"] == numbers["bbox/AP"] == numbers["boundary/AP"] == pytest.approx(1)
        assert numbers["objects/ap"] == numbers["mean_iou"] == numbers["boundary_iou"] == 1


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_more_than_255_masks(tmp_path: Path, backend: Any) -> None:
    """300 objects in one picture, as polygons and as a 16-bit map."""
    spots = [(3 * (n // 20), 3 * (n % 20)) for n in range(300)]
    truth = truth_content() | {"images": [{"id": 1, "file_name": "1.png", "height": 45, "width": 60}]}
    truth["annotations"] = [
        {"id": n, "image_id": 1, "category_id": 7, "segmentation": square(*at, 2)} for n, at in enumerate(spots)
    ]
    found = [
        {"image_id": 1, "category_id": 7, "segmentation": square(*at, 2), "score": 1 - n / 999} for n, at in enumerate(spots)
    ]
    evaluation = score_json(tmp_path, found[:150], truth, backend=backend)
    assert evaluation.objects is not None
    assert (evaluation.objects["truth_objects"], evaluation.objects["recall_50"]) == (300, 0.5)
    assert evaluation.summary["segm/AR100"] == pytest.approx(100 / 300)  # COCO counts a hundred
    ids = np.zeros((45, 60), np.uint16)
    for n, (top, left) in enumerate(spots):
        ids[top : top + 2, left : left + 2] = n + 1
    for name in ("p", "t"):
        (tmp_path / name).mkdir()
        Image.fromarray(ids if name == "t" else np.where(ids <= 150, ids, 0).astype(np.uint16)).save(tmp_path / name / "1.png")
    maps = score(tmp_path / "p", tmp_path / "t")
    assert maps.objects is not None
    assert (maps.objects["truth_objects"], maps.objects["recall_50"]) == (300, 0.5)


# --- bad input: one line that names the file and the record, exit code 3 ---------------------------------------------------


def changed(content: Any, *path: Any, to: Any = None, drop: bool = False) -> Any:
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return content


def refused(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> str:
    """The one line that the command line says before it exits with 3."""
    assert run(["score", *map(str, arguments)]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("delineate: ")
    return error


BAD_RESULTS = {
    "score NaN": (changed(results(), 1, "score", to=math.nan), "detection 1: score is nan"),
    "score missing": (changed(results(), 1, "score", drop=True), "detection 1: score is None"),
    "score text": (changed(results(), 0, "score", to="high"), "detection 0: score is 'high'"),
    "unknown category": (
        changed(results(), 1, "category_id", to=8),
        "detection 1: category_id 8 is unknown; the truth has 7, 9",
    ),
    "unknown image": (changed(results(), 1, "image_id", to=3), "detection 1: image_id 3 is not among the 2 images"),
    "no shape": (changed(results(), 1, "segmentation", drop=True), "detection 1: has no 'segmentation'"),
    "box of three": ([r | {"bbox": [1, 2, 3]} for r in results()], "detection 0: bbox is [1, 2, 3]"),
    "mask of another size": (
        changed(results(), 1, "segmentation", to={"size": [9, 9], "counts": [81]}),
        "detection 1: its mask is (9, 9) (height, width), its image (30, 40)",
    ),
    "mask that is damaged": (
        changed(results(), 1, "segmentation", to={"size": [30, 40], "counts": [81]}),
        "2.png: object 1: ",
    ),
    "no dict": ([1, 2], "found.json"),
}


@pytest.mark.parametrize("case", BAD_RESULTS)
def test_bad_results_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    content, message = BAD_RESULTS[case]
    truth = write(tmp_path / "truth.json", truth_content())
    error = refused(capsys, write(tmp_path / "found.json", content), truth)
    assert "found.json" in error
    assert message in error


BAD_TRUTH = {
    "unknown category": (changed(truth_content(), "annotations", 1, "category_id", to=8), "annotation 1 has the category 8"),
    "no images": (changed(truth_content(), "images", drop=True), "no list 'images'"),
    "images a dict": (changed(truth_content(), "images", to={}), "no list 'images'"),
    "image without name": (changed(truth_content(), "images", 0, "file_name", drop=True), "lacks 'id' or 'file_name'"),
    "image id twice": (changed(truth_content(), "images", 1, "id", to=1), "image id 1 is given twice"),
    "box of text": (changed(truth_content(), "annotations", 0, "bbox", to="big"), "annotation 0 has the bbox 'big'"),
    "outline a number": (
        changed(truth_content(), "annotations", 0, "segmentation", to=5),
        "annotation 0 has the segmentation 5",
    ),
    "annotation a number": (changed(truth_content(), "annotations", 0, to=5), "annotation"),
    "category without name": (changed(truth_content(), "categories", 0, "name", drop=True), "a category lacks 'id' or 'name'"),
}


@pytest.mark.parametrize("case", BAD_TRUTH)
def test_bad_truth_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    content, message = BAD_TRUTH[case]
    error = refused(capsys, write(tmp_path / "found.json", results()), write(tmp_path / "truth.json", content))
    assert "truth.json" in error
    assert message in error


def test_sizes_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, pixels in (("p", CELL[:20]), ("t", CELL)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    assert "a.png: is 20 x 40" in refused(capsys, tmp_path / "p", tmp_path / "t")


def test_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "truth.json", truth_content())
    whole = json.dumps(results())
    assert "found.json: is not JSON" in refused(capsys, write(tmp_path / "found.json", whole[: len(whole) // 2]), truth)
    assert "found.json: is not JSON" in refused(capsys, write(tmp_path / "found.json", ""), truth)
    found = write(tmp_path / "found.json", whole)
    assert "truth.json" in refused(capsys, found, write(tmp_path / "truth.json", json.dumps(truth_content())[:-40]))
    (tmp_path / "t").mkdir()
    (tmp_path / "p").mkdir()
    Image.fromarray(CELL).save(tmp_path / "t" / "a.png")
    write(tmp_path / "p" / "a.png", "this is no picture")
    assert "a.png" in refused(capsys, tmp_path / "p", tmp_path / "t")


WRONG = ("x", [], {}, None, -1, True, [["a"]], math.nan, 10**400)


def places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value, in lists only to the first two."""
    keys = content if isinstance(content, dict) else range(min(2, len(content))) if isinstance(content, list) else ()
    for key in keys:
        yield (*above, key)
        yield from places(content[key], (*above, key))


@pytest.mark.parametrize("file", ["truth.json", "found.json"])
def test_damaged_json_never_ends_in_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    """Each value of the file taken out, and replaced by something else: a score, or one line that names a file."""
    truth, found = truth_content(), [r | {"bbox": [5, 5, 10, 10]} for r in results()]
    content = truth if file == "truth.json" else found
    for path, other in {"truth.json": truth, "found.json": found}.items():
        write(tmp_path / path, other)
    for number, place in enumerate(places(content)):
        wrong = WRONG[number % len(WRONG)]
        for damaged in (changed(content, *place, drop=True), changed(content, *place, to=wrong)):
            write(tmp_path / file, damaged)
            code = run(["score", str(tmp_path / "found.json"), str(tmp_path / "truth.json"), "--quiet", "--boundary"])
            error = capsys.readouterr().err
            assert code in (0, 3), (place, wrong, error)
            assert error.count("\n") == (code == 3), (place, wrong, error)
            assert code == 0 or "truth.json" in error or "found.json" in error, (place, wrong, error)


def test_damaged_panoptic_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segments = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 9}]
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}],
        "categories": [{"id": 7, "name": "cell", "isthing": 1}, {"id": 9, "name": "ground", "isthing": 0}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
    }
    for name in ("truth", "found"):
        (tmp_path / name).mkdir()
        ids = np.where(CELL == 1, 1, 2).astype(np.uint8)
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=-1)).save(tmp_path / name / "a.png")
        write(tmp_path / f"{name}.json", content)
    assert score(tmp_path / "found.json", tmp_path / "truth.json").summary["pq"] == 1
    refusals = 0
    for number, place in enumerate(places(content)):
        write(tmp_path / "found.json", changed(content, *place, to=WRONG[number % len(WRONG)]))
        code = run(["score", str(tmp_path / "found.json"), str(tmp_path / "truth.json"), "--quiet"])
        error = capsys.readouterr().err
        assert code in (0, 3), (place, error)
        assert error.count("\n") == (code == 3), (place, error)
        refusals += code == 3
    assert refusals > 5
    write(tmp_path / "found.json", changed(content, "annotations", 0, "segments_info", 1, "category_id", to=8))
    assert "picture 1: segment 2 has the category_id 8" in refused(capsys, tmp_path / "found.json", tmp_path / "truth.json")


def test_nothing_is_scored_by_halves(tmp_path: Path) -> None:
    for name in ("p/a", "t/a", "t/b"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(CELL).save(path)
    with pytest.raises(DataError, match=r"1 pictures of the truth have no prediction \(b\)"):
        score(tmp_path / "p", tmp_path / "t", classes=NAMES)
