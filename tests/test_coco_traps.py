"""Hard cases of COCO's form: each is defined or an error that names the record; where packages differ, a test shows how."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from _coco_cases import assert_same, masks, pycocotools_arrays
from delineate.errors import ConfigError, DataError
from delineate.metrics.average_precision import COCO_NAMES, ApSettings
from delineate.metrics.coco import coco_curves, coco_matches, coco_scores

BACKENDS = ("hotcoco", "pycocotools")


def code(size: tuple[int, int] = (20, 20), rows: slice = slice(2, 8)) -> dict[str, Any]:
    canvas = np.zeros(size, np.uint8, order="F")
    canvas[rows, 2:8] = 1
    return {"size": list(size), "counts": masks.encode(canvas)["counts"].decode()}


def case(ids: tuple[int, ...] = (1, 2)) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two images with one object each, and perfect detections."""
    shape = {"bbox": [2.0, 2.0, 6.0, 6.0], "segmentation": code()}
    truth = {
        "images": [{"id": i, "height": 20, "width": 20} for i in (4, 9)],
        "categories": [{"id": 3, "name": "cell"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 3, "area": 36.0, "iscrowd": 0, **shape}
            for n, i in zip(ids, (4, 9), strict=True)
        ],
    }
    found = [{"image_id": i, "category_id": 3, "score": s, **shape} for i, s in ((4, 0.9), (9, 0.8))]
    return truth, copy.deepcopy(found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm", "boundary"])
def test_annotation_id_0_is_an_object_like_others(backend: Any, iou_type: Any) -> None:
    truth, found = case(ids=(0, 1))
    assert coco_scores(truth, found, iou_type, backend=backend)["AP"] == pytest.approx(1.0)
    with contextlib.redirect_stdout(io.StringIO()):  # to pycocotools it is "no match"
        coco: Any = COCO()
        coco.dataset = {"info": {}} | copy.deepcopy(truth)
        coco.createIndex()
        theirs: Any = COCOeval(coco, coco.loadRes(copy.deepcopy(found)), "bbox")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    assert theirs.stats[0] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_what_may_be_missing(backend: Any, iou_type: Any) -> None:
    truth, found = case()
    perfect = coco_scores(truth, found, iou_type, backend=backend)
    bare = copy.deepcopy(truth)
    for annotation in bare["annotations"]:
        for key in ("id", "iscrowd", "area"):
            del annotation[key]
    assert coco_scores(bare, found, iou_type, backend=backend) == perfect
    nothing = coco_scores(truth, [], iou_type, backend=backend)
    assert list(nothing) == list(COCO_NAMES)
    assert (nothing["AP"], nothing["APs"], nothing["APl"], nothing["AR1"]) == (0.0, 0.0, -1.0, 0.0)
    assert set(coco_scores({**truth, "annotations": []}, found, iou_type, backend=backend).values()) == {-1.0}
    assert set(coco_scores({**truth, "annotations": []}, [], iou_type, backend=backend).values()) == {-1.0}


def test_missing_area_is_that_of_the_mask() -> None:
    """hotcoco takes it so too; 36 pixels are small whatever the box says."""
    truth, found = case()
    for annotation in truth["annotations"]:
        del annotation["area"]
        annotation["bbox"] = [0.0, 0.0, 2000.0, 2000.0]
    assert coco_scores(truth, found, "segm")["APl"] == -1.0


def changed(**changes: Any) -> list[dict[str, Any]]:
    found = case()[1]
    found[1] |= changes
    return found


NAN = float("nan")
FAULTS = [
    (changed(score=NAN), "bbox", "detection 1: score is nan"),
    (changed(score=float("inf")), "bbox", "detection 1: score is inf"),
    (changed(score=None), "bbox", "detection 1: score is None"),
    (changed(score="0.5"), "bbox", "detection 1: score is '0.5'"),
    (changed(image_id=5), "bbox", "detection 1: image_id 5 is not among the 2 images"),
    (changed(category_id=4), "bbox", "detection 1: category_id 4 is unknown; the truth has 3"),
    (changed(bbox=[1, 1, -4, 4]), "bbox", "detection 1: bbox is"),
    (changed(bbox=[1, 1, NAN, 4]), "bbox", "detection 1: bbox is"),
    (changed(bbox=[1, 1, 4]), "bbox", "detection 1: bbox is"),
    (changed(bbox=None), "bbox", "detection 1: has no 'bbox'"),
    (changed(segmentation=None), "segm", "detection 1: has no 'segmentation'"),
    (changed(segmentation=code((20, 21))), "segm", r"detection 1: its mask is \(20, 21\)"),
    (changed(segmentation=[[1, 1, 5, 5]]), "segm", "detection 1: segmentation is neither"),
    (changed(segmentation={"size": [20, 20]}), "segm", "detection 1: segmentation is neither|missing field `counts`"),
    (changed(keypoints=[1, 2, 3]), "keypoints", "detection 0: has no 'keypoints'"),
]


@pytest.mark.parametrize(("found", "iou_type", "message"), FAULTS, ids=[str(n) for n in range(len(FAULTS))])
def test_bad_detections_are_named(tmp_path: Path, found: Any, iou_type: Any, message: str) -> None:
    truth = case()[0]
    for annotation in truth["annotations"]:
        annotation["keypoints"] = [1, 1, 2] * 17
    for backend in BACKENDS:
        with pytest.raises(DataError, match=message):
            coco_scores(truth, found, iou_type, backend=backend)
    files = tmp_path / "truth.json", tmp_path / "found.json"
    for path, content in zip(files, (truth, found), strict=True):
        path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"found.json.*({message})"):
        coco_scores(*files, iou_type)


def test_hotcoco_alone_lets_most_of_them_pass() -> None:
    """Why the checks are ours: a mask of another size, a missing and an infinite score are no error to it."""
    truth, _ = case()
    for fault in ({"score": None}, {"score": float("inf")}, {"segmentation": code((20, 21))}):
        coco = hotcoco.COCO(copy.deepcopy(truth))
        assert coco.load_res(changed(**fault)) is not None


TRUTH_FAULTS = [
    ("annotations", {"image_id": 5}, "annotation 1: image_id 5"),
    ("annotations", {"category_id": 5}, "annotation 1: category_id 5"),
    ("annotations", {"area": NAN}, "annotation 1: area is nan"),
    ("annotations", {"iscrowd": 2}, "annotation 1: iscrowd is 2"),
    ("annotations", {"segmentation": []}, "annotation 1: has no 'segmentation'"),
    ("annotations", {"segmentation": code((9, 9))}, r"annotation 1: its mask is \(9, 9\)"),
    ("images", {"id": 4}, "image id 4 occurs twice"),
    ("images", {"id": "nine"}, "not all numbers, or all texts"),
]


@pytest.mark.parametrize(("part", "changes", "message"), TRUTH_FAULTS)
def test_bad_truth_is_named(part: str, changes: dict[str, Any], message: str) -> None:
    truth, found = case()
    truth[part][1] |= changes
    with pytest.raises(DataError, match=message):
        coco_scores(truth, found, "segm")


def test_polygons_need_the_size_of_their_image() -> None:
    truth, found = case()
    truth["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    del truth["images"][0]["height"]
    with pytest.raises(DataError, match="annotation 0: is polygons, but its image has no height"):
        coco_scores(truth, found, "segm")


WITH_NAN = '[{"image_id": 4, "category_id": 3, "bbox": [2, 2, 6, 6], "score": NaN}]'


@pytest.mark.parametrize("text", ["", "[{", '{"a": 1}', "7", WITH_NAN])
def test_damaged_files_are_named(tmp_path: Path, text: str) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(case()[0]))
    found = tmp_path / "found.json"
    found.write_text(text)
    with pytest.raises(DataError, match=r"found\.json"):
        coco_scores(truth, found)
    with pytest.raises(DataError, match=r"found\.json"):
        coco_scores(found, truth)
    with pytest.raises(DataError, match=r"absent\.json: No such file"):
        coco_scores(tmp_path / "absent.json", found)


@pytest.mark.parametrize("ids", [("b", "a"), (-3, -7), (10**12, 4)])
def test_ids_of_any_kind(ids: tuple[Any, Any], tmp_path: Path) -> None:
    """hotcoco takes only numbers from 0: others are numbered in their order."""
    truth, found = case()
    for row in (*truth["images"], *truth["annotations"], *found):
        key = "image_id" if "image_id" in row else "id"
        row[key] = ids[0] if row[key] == 4 else ids[1]
    files = tmp_path / "truth.json", tmp_path / "found.json"
    for path, content in zip(files, (truth, found), strict=True):
        path.write_text(json.dumps(content))
    assert coco_scores(truth, found)["AP"] == pytest.approx(1.0)
    assert coco_scores(*files)["AP"] == pytest.approx(1.0)
    assert coco_matches(*files).images == tuple(sorted(ids))


@pytest.mark.parametrize("shape", ["polygons", "counts"])
def test_other_forms_of_masks(shape: str, tmp_path: Path) -> None:
    """pycocotools takes no polygons in results; they are rasterised as it does those of the truth."""
    truth, found = case()
    expected = coco_curves(truth, found, "segm", backend="pycocotools")
    for row in (*truth["annotations"], *found):
        uncompressed = {"size": [20, 20], "counts": [42, 6, 14, 6, 14, 6, 14, 6, 14, 6, 14, 6, 252]}
        row["segmentation"] = [[2, 2, 8, 2, 8, 8, 2, 8]] if shape == "polygons" else uncompressed
    files = tmp_path / "truth.json", tmp_path / "found.json"
    for path, content in zip(files, (truth, found), strict=True):
        path.write_text(json.dumps(content))
    arrays = {name: getattr(expected, name) for name in ("precision", "recall", "scores")}
    for backend in BACKENDS:
        assert_same(coco_curves(truth, found, "segm", backend=backend), arrays)
        assert_same(coco_curves(*files, "segm", backend=backend), arrays)


def test_boxes_decide_what_area_a_masks_detection_has() -> None:
    """As in pycocotools: a false positive of 36 pixels whose box is large is not counted among small objects."""
    truth, found = case()
    found[0] |= {"segmentation": code(rows=slice(12, 18)), "score": 0.95, "bbox": [0.0, 0.0, 50.0, 50.0]}
    with_boxes = coco_scores(truth, found, "segm")
    without = coco_scores(truth, [{k: v for k, v in row.items() if k != "bbox"} for row in found], "segm")
    assert with_boxes["AP"] == without["AP"]
    assert with_boxes["APs"] > without["APs"]
    assert_same(coco_curves(truth, found, "segm"), pycocotools_arrays({"info": {}} | truth, found, ApSettings.coco("segm")))


def test_any_number_of_detections_and_any_areas() -> None:
    """pycocotools' summary gives -1 for AP unless 100 is among maxDets."""
    truth, found = case()
    chosen = ApSettings.coco("bbox", max_detections=(1, 7), areas=(("all", 0.0, 1e10), ("cells", 30.0, 40.0)))
    scores = coco_scores(truth, found, chosen)
    assert list(scores) == ["AP", "AP50", "AP75", "AP_cells", "AR1", "AR7", "AR_cells"]
    assert set(np.round(list(scores.values()), 9)) == {1.0}
    curves = coco_curves(truth, found, chosen)
    assert curves.average_precision(iou=0.5, area="cells", max_detections=7, category=3) == pytest.approx(1.0)
    assert curves.average_recall(max_detections=1) == 1.0
    curve = curves.precision_recall(3, iou=0.75)
    assert curve.score[0] == 0.9
    assert curve.score[-1] == 0.8
    assert curves.per_class()[0]["name"] == "cell"
    mistakes: list[dict[str, Any]] = [{"iou": 0.52}, {"area": "cell"}, {"max_detections": 8}, {"category": 5}]
    for wrong in mistakes:
        with pytest.raises(ConfigError):
            curves.average_precision(**wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"iou_type": "mask"},
        {"max_detections": ()},
        {"max_detections": (0, 1)},
        {"iou_thresholds": (0.9, 0.5)},
        {"iou_thresholds": (0.0,)},
        {"areas": (("all", 0.0, 1e10), ("all", 0.0, 1.0))},
        {"federated": True},
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ApSettings(**changes)


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hotcoco'"):
        coco_scores(*case(), backend="hotcocoa")  # pyright: ignore[reportArgumentType]


def test_federated_classes_are_judged_where_they_are_known() -> None:
    """A false positive counts in a picture that has none of its class, not in one that nobody looked through."""
    truth, found = case()
    truth["categories"] = [{"id": 3, "name": "cell", "frequency": "r"}, {"id": 5, "name": "wall", "frequency": "f"}]
    for image in truth["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    del truth["annotations"][1]  # so that the detection in image 9 is of a class that is not known there
    found[1]["score"] = 0.95
    chosen = ApSettings.lvis("segm")
    for backend in BACKENDS:
        unknown = coco_scores(truth, found, chosen, backend=backend)
        assert unknown["AP"] == pytest.approx(1.0)
        assert (unknown["APr"], unknown["APf"]) == (unknown["AP"], -1.0)
        negative = copy.deepcopy(truth)
        negative["images"][1]["neg_category_ids"] = [3]
        assert coco_scores(negative, found, chosen, backend=backend)["AP"] == pytest.approx(0.5)
        negative["images"][1]["not_exhaustive_category_ids"] = [3]
        assert coco_scores(negative, found, chosen, backend=backend)["AP"] == pytest.approx(1.0)
    del truth["images"][0]["neg_category_ids"]
    with pytest.raises(DataError, match="image 4: has no 'neg_category_ids'"):
        coco_scores(truth, found, chosen)


ODD = [None, "x", -1, 1.5, float("inf"), float("nan"), [], {}, [[]], [None], True, 10**30, {"size": [20, 20]}, [["a"] * 6]]


def places(content: Any, so_far: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [so_far] * bool(so_far) + [place for key, value in inner for place in places(value, (*so_far, key))]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["bbox", "segm", "boundary", "keypoints"]), st.booleans())
def test_damage_anywhere_is_one_line(data: st.DataObject, iou_type: Any, in_files: bool) -> None:
    """Whatever stands in place of any value: a number, or one line that says what is wrong, never a traceback."""
    truth, found = case()
    for row in (*truth["annotations"], *found):
        row["keypoints"] = [3.0, 3.0, 2.0] * 17
    sides: list[Any] = [truth, found]
    side = data.draw(st.sampled_from([0, 1]))
    *way, last = data.draw(st.sampled_from(places(sides[side])))
    target = sides[side]
    for key in way:
        target = target[key]
    target[last] = data.draw(st.sampled_from(ODD))
    with tempfile.TemporaryDirectory() as folder:
        if in_files:
            for n, name in enumerate(("truth", "found")):
                path = Path(folder, name)
                path.write_text(json.dumps(sides[n]))
                sides[n] = path
        problem = ""
        try:
            scores = coco_scores(sides[0], sides[1], iou_type)
        except DataError as error:
            problem, scores = str(error), {}
    assert "\n" not in problem
    assert bool(problem) != bool(scores)
    assert all(-1 <= value <= 1 for value in scores.values())
