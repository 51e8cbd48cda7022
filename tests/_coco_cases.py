"""Random small COCO data sets, and pycocotools' own evaluation of them, for the tests of average precision."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
from numpy.random import Generator
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from delineate.metrics.average_precision import ApSettings, Curves

masks: Any = coco_mask
Case = tuple[dict[str, Any], list[dict[str, Any]]]


def random_case(seed: int, iou_type: str, points: int = 17) -> Case:
    """Truth and detections: crowds, ignored objects, equal scores, empty masks, areas on the edges of ranges, sparse ids."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(4, 30)), int(rng.integers(4, 30))
    images = [{"id": int(i), "height": size[0], "width": size[1]} for i in rng.permutation(4)[: rng.integers(1, 5)] * 3]
    categories = [{"id": int(c), "name": f"c{c}"} for c in rng.choice(30, rng.integers(1, 4), replace=False)]
    truth: dict[str, Any] = {"info": {}, "images": images, "categories": categories, "annotations": []}
    with_boxes = rng.random() < 0.5
    detections = []
    for image in images:
        for _ in range(rng.integers(0, 6)):
            category = int(rng.choice([c["id"] for c in categories]))
            shape = _shape(rng, iou_type, size, points)
            annotation = {"id": len(truth["annotations"]) + 1, "image_id": image["id"], "category_id": category, **shape}
            annotation |= {"area": _area(rng, shape), "iscrowd": int(rng.random() < 0.2)}
            annotation |= {"ignore": int(rng.integers(0, 2))} if rng.random() < 0.2 else {}
            truth["annotations"].append(annotation)
            for _ in range(rng.integers(0, 4)):
                near = copy.deepcopy(shape) if rng.random() < 0.5 else _shape(rng, iou_type, size, points)
                if iou_type == "keypoints":
                    near["keypoints"] = (np.array(near["keypoints"]) + rng.normal(0, 2, 3 * points)).tolist()
                    near.pop("num_keypoints")
                if not (with_boxes or iou_type == "bbox"):
                    near.pop("bbox")
                if iou_type == "bbox":
                    near = {"bbox": near["bbox"]}
                score = float(rng.integers(0, 4)) / 4 if rng.random() < 0.5 else float(rng.normal())
                other = int(rng.choice([c["id"] for c in categories]))
                category_id = category if rng.random() < 0.8 else other
                detections.append({"image_id": image["id"], "category_id": category_id, "score": score, **near})
    rng.shuffle(detections)
    return truth, detections


def _shape(rng: Generator, iou_type: str, size: tuple[int, int], points: int) -> dict[str, Any]:
    height, width = size
    box = [float(v) for v in (rng.random(4) * [width, height, width, height]).round(int(rng.integers(0, 3)))]
    if iou_type == "bbox":
        return {"bbox": box}
    if iou_type == "keypoints":
        seen = rng.integers(0, 3, points) * (rng.random() > 0.15)
        spots = np.stack([rng.random(points) * width, rng.random(points) * height, seen], axis=1).round(1)
        return {"bbox": box, "keypoints": spots.ravel().tolist(), "num_keypoints": int((seen > 0).sum())}
    canvas = np.zeros(size, np.uint8, order="F")
    top, left = rng.integers(0, height), rng.integers(0, width)
    canvas[top : top + rng.integers(0, height), left : left + rng.integers(0, width)] = 1
    if rng.random() < 0.3:
        canvas &= rng.random(size) < 0.5
    code = masks.encode(canvas)
    return {"bbox": box, "segmentation": {"size": list(size), "counts": code["counts"].decode()}}


def _area(rng: Generator, shape: dict[str, Any]) -> float:
    if rng.random() < 0.3:
        return float(rng.choice([0.0, 1.0, 32.0**2, 96.0**2, 1e4, 500.0, 1e10]))
    return float(masks.area(shape["segmentation"])) if "segmentation" in shape else shape["bbox"][2] * shape["bbox"][3]


def random_settings(seed: int, iou_type: str, points: int = 17) -> ApSettings:
    """COCO's settings with some of them changed."""
    rng = np.random.default_rng(seed)
    changes: dict[str, Any] = {}
    if rng.random() < 0.4:
        changes["max_detections"] = tuple(
            sorted(rng.choice([1, 2, 3, 5, 100, 1000], rng.integers(1, 4), replace=False).tolist())
        )
    if rng.random() < 0.3:
        changes["areas"] = (("all", 0.0, 1e10), ("tiny", 0.0, 100.0), ("middle", 50.0, 500.0))
    if rng.random() < 0.3:
        changes["iou_thresholds"] = tuple(np.unique(rng.random(3).round(2) * 0.9 + 0.05).tolist())
    if rng.random() < 0.2:
        changes["recalls"] = tuple(np.linspace(0, 1, 11).tolist())
    if rng.random() < 0.3 and iou_type != "keypoints":
        changes["per_class"] = False
    if points != 17:
        changes["sigmas"] = tuple(rng.uniform(0.02, 0.2, points).tolist())
    return ApSettings.coco(iou_type, **changes)  # pyright: ignore[reportArgumentType]


def pycocotools_arrays(truth: dict[str, Any], detections: list[dict[str, Any]], settings: ApSettings) -> dict[str, Any]:
    """precision, recall and scores as pycocotools itself makes them, and its stats for COCO's own settings."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco: Any = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        iou_type: Any = settings.iou_type
        evaluation: Any = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), iou_type)
        params = evaluation.params
        params.iouThrs, params.recThrs = np.array(settings.iou_thresholds), np.array(settings.recalls)
        params.maxDets, params.useCats = list(settings.max_detections), int(settings.per_class)
        params.areaRng, params.areaRngLbl = [list(a[1:]) for a in settings.areas], [a[0] for a in settings.areas]
        if settings.iou_type == "keypoints":
            params.kpt_oks_sigmas = np.array(settings.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        if settings == ApSettings.coco(settings.iou_type):
            evaluation.summarize()
    return evaluation.eval | {"stats": evaluation.stats}


def assert_same(curves: Curves, arrays: dict[str, Any]) -> None:
    """Bit for bit."""
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(curves, name), arrays[name], err_msg=name)


def random_lvis_case(seed: int, iou_type: str) -> Case:
    """A random case with LVIS's fields: frequencies, negative categories, and categories that are not all annotated."""
    rng = np.random.default_rng(seed)
    truth, detections = random_case(seed, iou_type)
    for category in truth["categories"]:
        category["frequency"] = str(rng.choice(["r", "c", "f"]))
    for image in truth["images"]:
        for key, share in (("neg_category_ids", 0.5), ("not_exhaustive_category_ids", 0.4)):
            image[key] = [c["id"] for c in truth["categories"] if rng.random() < share]
    return truth, detections
