"""Average precision on files of others, against published numbers and those of other packages, exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _coco_cases import assert_same, pycocotools_arrays
from delineate.errors import DataError
from delineate.metrics.average_precision import ApSettings, IouType
from delineate.metrics.coco import coco_curves, coco_matches, coco_scores

CROWDPOSE_SIGMAS = tuple((np.array([79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89, 79, 79]) / 1000).tolist())
COCO = "cocoapi/instances_val2014_100.json"
FAKE = "cocoapi/instances_val2014_fake{}100_results.json"
SMALL = ("boundary_small3/gt_dataset.json", "boundary_small3/dt_dataset.json")
CASES: list[tuple[str, str, str, IouType]] = [
    ("coco_fakesegm100_segm", COCO, FAKE.format("segm"), "segm"),
    ("coco_fakesegm100_bbox_from_masks", COCO, FAKE.format("segm"), "bbox"),
    ("coco_fakebbox100_bbox", COCO, FAKE.format("bbox"), "bbox"),
    ("coco_fakesegm100_boundary", COCO, FAKE.format("segm"), "boundary"),
    ("small3_bbox", *SMALL, "bbox"),
    ("small3_segm", *SMALL, "segm"),
    ("small3_boundary", *SMALL, "boundary"),
    ("keypoints_one_image", "keypoints_one_image/gt_dataset.json", "keypoints_one_image/dt_dataset.json", "keypoints"),
]


@pytest.fixture(scope="session")
def reference(real_data: Path) -> Path:
    return real_data / "reference_eval"


def load(path: Path) -> Any:
    return json.loads(path.read_bytes())


def detections_of(content: Any) -> list[dict[str, Any]]:
    """Some of these files hold results as a data set."""
    return content["annotations"] if isinstance(content, dict) else content


@pytest.mark.parametrize(("case", "truth", "found", "iou_type"), CASES, ids=[case[0] for case in CASES])
def test_published_numbers(reference: Path, case: str, truth: str, found: str, iou_type: IouType) -> None:
    expected = load(reference / "expected.json")[case]
    rows = detections_of(load(reference / found))
    if case in (
        "small3_segm",
        "small3_boundary",
    ):  # by the areas of masks: Detectron2 leaves boxes out for that
        rows = [{key: value for key, value in row.items() if key != "bbox"} for row in rows]
    for backend in ("hotcoco", "pycocotools") if iou_type != "boundary" else ("pycocotools",):
        curves = coco_curves(load(reference / truth), rows, iou_type, backend=backend)
        assert curves.summary() == pytest.approx(expected, abs=1e-12)
        if iou_type != "boundary" and case != "small3_segm":  # whose detections are polygons, which pycocotools does not take
            arrays = pycocotools_arrays({"info": {}, **load(reference / truth)}, rows, ApSettings.coco(iou_type))
            assert_same(curves, arrays)
            assert_same(coco_matches(load(reference / truth), rows, iou_type, backend=backend).curves(), arrays)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_files_are_read_in_place(reference: Path, tmp_path: Path, iou_type: IouType) -> None:
    """hotcoco reads these files itself; what it reads is what is prepared of their content."""
    truth, found = reference / COCO, reference / FAKE.format("segm")
    assert coco_curves(truth, found, iou_type).summary() == coco_scores(load(truth), load(found), iou_type)
    assert coco_scores(str(truth), str(found), iou_type, backend="pycocotools") == coco_scores(truth, found, iou_type)


def test_ignored_objects(reference: Path) -> None:
    """pycocotools overwrites `ignore` by `iscrowd`, and so do both backends."""
    truth = load(reference / "ignore_test" / "gt_ignore_test.json")
    rows = detections_of(load(reference / "ignore_test" / "dt_ignore_test.json"))
    truth["annotations"] = [{"iscrowd": 0, **a} for a in truth["annotations"]]
    with pytest.raises(DataError, match="annotation 1: image_id 2299 is not among the 1 images"):  # whose id is a text
        coco_curves(truth, rows, "bbox")
    for row in (*truth["images"], *truth["annotations"]):
        row |= {key: int(row[key]) for key in ("id", "image_id") if key in row}
    arrays = pycocotools_arrays({"info": {}, **truth}, rows, ApSettings.coco("bbox"))
    for backend in ("hotcoco", "pycocotools"):
        assert_same(coco_curves(truth, rows, "bbox", backend=backend), arrays)


def test_crowdpose(reference: Path) -> None:
    """14 points, other sigmas, and 0.53 of the box in place of the area."""
    truth = load(reference / "crowdpose_four_images" / "example_crowdpose_val.json")
    rows = load(reference / "crowdpose_four_images" / "example_crowdpose_preds.json")
    for annotation in truth["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3] * 0.53
    settings = ApSettings.coco("keypoints", sigmas=CROWDPOSE_SIGMAS, areas=(("all", 0.0, 1e10),))
    expected = load(reference / "expected.json")["crowdpose_four_images"]
    names = {"AP": "AP_all", "AP50": "AP_50", "AP75": "AP_75", "AR": "AR_all", "AR50": "AR_50", "AR75": "AR_75"}
    for backend in ("hotcoco", "pycocotools"):
        scores = coco_scores(truth, rows, settings, backend=backend)
        assert scores == pytest.approx({ours: expected[theirs] for ours, theirs in names.items()}, abs=1e-12)


def lvis_detections(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Moved boxes of all true objects, every fifth of a class that the image is known not to have; without random numbers."""
    negative = {image["id"]: image["neg_category_ids"] for image in truth["images"]}
    rows = []
    for i, annotation in enumerate(truth["annotations"]):
        x, y, w, h = annotation["bbox"]
        others = negative[annotation["image_id"]]
        category = others[i % len(others)] if others and i % 5 == 0 else annotation["category_id"]
        box = [x + (i * 7 % 11 - 5) * w / 25, y + (i * 3 % 7 - 3) * h / 25, w * (0.8 + i % 5 / 10), h]
        rows.append({"image_id": annotation["image_id"], "category_id": category, "bbox": box, "score": i * 37 % 101 / 101})
    return rows


# Made by lvis-dataset/lvis-api (LVISEval of lvis 0.5.3 with np.float replaced by float) from `lvis_detections`.
LVIS_EXPECTED = {
    "AP": 0.31684745172596507,
    "AP50": 0.7685552228259908,
    "AP75": 0.1750239401292924,
    "APs": 0.29535089057836894,
    "APm": 0.36442029379340474,
    "APl": 0.343475869326063,
    "APr": 0.09999999999999999,
    "APc": 0.3254073157315731,
    "APf": 0.3165962034967683,
    "AR300": 0.34586225925170266,
    "ARs": 0.31148519994122054,
    "ARm": 0.38494887860677335,
    "ARl": 0.35743616287094543,
}


def test_lvis_equals_lvis_api(reference: Path) -> None:
    truth = load(reference / "lvis" / "lvis_val_100.json")
    rows = lvis_detections(truth)
    for backend in ("hotcoco", "pycocotools"):
        assert coco_scores(truth, rows, ApSettings.lvis("bbox"), backend=backend) == pytest.approx(LVIS_EXPECTED, abs=1e-12)


def test_lvis_masks(reference: Path) -> None:
    """True outlines as detections: both backends give 1 but for what rounding takes."""
    truth = load(reference / "lvis" / "lvis_val_100.json")
    kept = truth["annotations"][:60]
    truth["annotations"] = kept
    rows = [{key: a[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 0.5} for a in kept]
    scores = [coco_scores(truth, rows, ApSettings.lvis("segm"), backend=b) for b in ("hotcoco", "pycocotools")]
    assert scores[0] == scores[1]
    assert scores[0]["AP"] == pytest.approx(1.0)
