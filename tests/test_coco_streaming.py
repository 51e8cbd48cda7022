"""Average precision picture by picture: streaming, merging, and resampling equal one evaluation of all, by pycocotools."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from _coco_cases import Case, assert_same, pycocotools_arrays, random_case, random_lvis_case, random_settings
from delineate.errors import DataError
from delineate.metrics.average_precision import ApSettings, IouType
from delineate.metrics.bootstrap import Resampling, compare_scores, score_intervals
from delineate.metrics.coco import coco_curves, coco_matches, coco_scores
from delineate.metrics.detection import DetectionScores, FoundObjects, TrueObjects
from delineate.metrics.matches import Matches
from delineate.predict.masks import InstanceMapMasks
from delineate.predict.results import Results

seeds = st.integers(0, 2**32 - 1)


def masks_only(case: Case) -> Case:
    """The same case as a stream has it: no `ignore`, areas given, and of masks no boxes; sorted by id."""
    truth, found = case
    truth["categories"].sort(key=lambda category: category["id"])
    for annotation in truth["annotations"]:
        annotation.pop("ignore", None)
    if found and "segmentation" in found[0]:
        for row in found:
            row.pop("bbox", None)
    return truth, found


def objects(rows: list[dict[str, Any]], place: dict[int, int], kind: Any, **more: Any) -> Any:
    """`kind` of COCO's records; boxes as corners that give their widths back exactly."""
    columns: dict[str, Any] = {"labels": [place[row["category_id"]] for row in rows]}
    if rows and "segmentation" in rows[0]:
        columns["masks"] = [row["segmentation"] for row in rows]
    elif not rows or "bbox" in rows[0]:
        boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        columns["boxes"] = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    if rows and "keypoints" in rows[0]:
        columns["keypoints"] = np.array([row["keypoints"] for row in rows]).reshape(len(rows), -1, 3)
    return kind(**columns, **more)


def stream(case: Case, chosen: ApSettings, images: list[int] | None = None) -> DetectionScores:
    truth, found = case
    place = {category["id"]: k for k, category in enumerate(truth["categories"])}
    kinds = [c.get("frequency", "") for c in truth["categories"]]
    scores = DetectionScores([c["name"] for c in truth["categories"]], chosen, frequencies=kinds)
    for image in truth["images"]:
        if images is not None and image["id"] not in images:
            continue
        wanted, rows = ([r for r in side if r["image_id"] == image["id"]] for side in (truth["annotations"], found))
        federation = {
            key: [place[c] for c in image.get(field, ())]
            for key, field in (("negative", "neg_category_ids"), ("not_exhaustive", "not_exhaustive_category_ids"))
        }
        crowd, areas = [r["iscrowd"] for r in wanted], [r["area"] for r in wanted]
        scores.update(
            image["id"],
            objects(rows, place, FoundObjects, scores=[r["score"] for r in rows]),
            objects(wanted, place, TrueObjects, crowd=crowd, areas=areas, **federation),
        )
    return scores


def with_integers(case: Case) -> Case:
    """Boxes of whole numbers, whose corners are exact."""
    for row in (*case[0]["annotations"], *case[1]):
        if "bbox" in row:
            row["bbox"] = [float(round(v)) for v in row["bbox"]]
    return case


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from(["bbox", "segm", "boundary", "keypoints"]))
def test_a_stream_equals_one_evaluation(seed: int, iou_type: IouType) -> None:
    case = with_integers(masks_only(random_case(seed, "segm" if iou_type == "boundary" else iou_type)))
    chosen = random_settings(seed, iou_type)
    curves = coco_curves(*case, chosen)
    arrays = {name: getattr(curves, name) for name in ("precision", "recall", "scores")}
    assert_same(stream(case, chosen).curves(), arrays)
    images = [image["id"] for image in case[0]["images"]]
    first, second = (pickle.loads(pickle.dumps(stream(case, chosen, part))) for part in (images[1:], images[:2]))
    first.merge(second)  # one or two pictures are in both
    assert_same(first.curves(), arrays)


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from(["bbox", "segm"]))
def test_lvis_backends_and_streams_agree(seed: int, iou_type: IouType) -> None:
    case = random_lvis_case(seed, iou_type)
    chosen = ApSettings.lvis(iou_type, max_detections=([300, 3, 1][seed % 3],))
    curves = coco_curves(*case, chosen)
    arrays = {name: getattr(curves, name) for name in ("precision", "recall", "scores")}
    assert_same(coco_curves(*case, chosen, backend="pycocotools"), arrays)
    assert_same(coco_matches(*case, chosen, backend="pycocotools").curves(), arrays)
    case = with_integers(masks_only(case))
    curves = coco_curves(*case, chosen)
    assert_same(stream(case, chosen).curves(), {name: getattr(curves, name) for name in ("precision", "recall", "scores")})


def resampled(case: Case, drawn: list[int]) -> Case:
    """The data set in which image n occurs drawn[n] times, as an image of its own each time."""
    truth, found = case
    images, annotations, rows = [], [], []
    for n, image in enumerate(sorted(truth["images"], key=lambda image: image["id"])):
        for _ in range(drawn[n]):
            new = len(images) + 1
            images.append({**image, "id": new})
            annotations += [
                {**a, "image_id": new, "id": len(annotations) + k}
                for k, a in enumerate((a for a in truth["annotations"] if a["image_id"] == image["id"]), start=1)
            ]
            rows += [{**d, "image_id": new} for d in found if d["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": annotations}, rows


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(["bbox", "segm", "keypoints"]))
def test_a_draw_of_pictures_scores_as_that_data_set_would(seed: int, iou_type: IouType) -> None:
    """The weighted sums equal pycocotools on the data set that a resample stands for.

    Scores differ within a picture: of equal ones, here all copies of a detection come before those of the next.
    """
    case = random_case(seed, iou_type)
    for n, row in enumerate(case[1]):
        row["score"] += n * 1e-6
    chosen = random_settings(seed, iou_type)
    matches = coco_matches(*case, chosen)
    pictures = len(matches.images)
    draws = np.random.default_rng(seed).multinomial(pictures, np.full(pictures, 1 / pictures), size=3).astype(float)
    draws = np.concatenate([np.ones((1, pictures)), draws])
    scored = matches.scores(draws)
    for n, drawn in enumerate(draws.astype(int).tolist()):
        content, rows = resampled(case, drawn)
        if rows:
            arrays = pycocotools_arrays(content, rows, chosen)
            assert_same(coco_curves(content, rows, chosen), arrays)
        expected = coco_scores(content, rows, chosen)
        for name, value in expected.items():
            assert scored[name][n] == (pytest.approx(value, abs=1e-12) if value > -1 else pytest.approx(np.nan, nan_ok=True))


def test_lvis_frequencies_in_draws() -> None:
    case = random_lvis_case(11, "bbox")
    matches = coco_matches(*case, ApSettings.lvis("bbox"))
    one = matches.scores(np.ones((1, len(matches.images))))
    summary = matches.curves().summary()
    assert {"APr", "APc", "APf", "AR300"} <= set(summary)
    for name, value in summary.items():
        assert one[name][0] == (pytest.approx(value) if value > -1 else pytest.approx(np.nan, nan_ok=True))


def test_intervals_and_a_paired_comparison() -> None:
    """A detector that finds the same with less noise is better in nearly every resample; 2000 of them from one matching."""
    rng = np.random.default_rng(0)
    detectors = []
    for noise in (0.5, 2.0):
        scores = DetectionScores(["cell"], "bbox")
        for image in range(40):
            corners = rng.integers(0, 80, (5, 2)) * 1.0
            boxes = np.concatenate([corners, corners + 20], axis=1)
            found = FoundObjects(rng.random(5), np.zeros(5), boxes + rng.normal(0, noise, (5, 4)))
            scores.update(image, found, TrueObjects(np.zeros(5), boxes))
        detectors.append(scores)
    better, worse = detectors
    intervals = score_intervals(better.scores, 40)
    low, high = intervals["AP"]
    assert low < better.summary()["AP"] < high
    assert np.isnan(intervals["APl"]).all()
    compared = compare_scores(better.scores, worse.scores, 40, Resampling(resamples=500))["AP"]
    assert compared.difference == pytest.approx(better.summary()["AP"] - worse.summary()["AP"])
    assert compared.low > 0
    assert compared.p_value < 0.01


def test_results_go_in_as_they_are() -> None:
    """`Results` of a predictor: masks are taken as run lengths, boxes and scores from tensors."""
    instance_map = torch.zeros(40, 50, dtype=torch.int32)
    instance_map[2:20, 3:15], instance_map[25:35, 20:45] = 1, 2
    boxes = torch.tensor([[3.0, 2, 15, 20], [20, 25, 45, 35]])
    found = Results(
        (40, 50),
        ("background", "cell"),
        boxes=boxes,
        scores=torch.tensor([0.9, 0.8]),
        labels=torch.tensor([1, 1]),
        masks=InstanceMapMasks(instance_map),
    )
    dense = np.stack([(instance_map == n).numpy() for n in (1, 2)])
    for iou_type in ("bbox", "segm", "boundary"):
        scores = DetectionScores(found.classes, iou_type)
        scores.update("a.png", found, TrueObjects(labels=[1, 1], boxes=boxes, masks=dense))
        assert scores.summary()["AP"] == pytest.approx(1.0)
    empty = Results((40, 50), ("background", "cell"), masks=InstanceMapMasks(torch.zeros(40, 50, dtype=torch.int32)))
    scores.update("b.png", empty, TrueObjects(labels=[1], masks=dense[:1]))
    scores.update("c.png", empty, TrueObjects(labels=[], masks=dense[:0]))
    assert scores.summary()["AR100"] == pytest.approx(2 / 3)


def test_memory_does_not_hold_masks() -> None:
    """What is kept of a picture does not depend on its size."""
    sizes = []
    for side in (16, 1024):
        mask = np.zeros((1, side, side), bool)
        mask[:, 4:12, 4:12] = True
        scores = DetectionScores(["cell"], "segm")
        for image in range(20):
            scores.update(image, FoundObjects([0.5], [0], masks=mask), TrueObjects([0], masks=mask))
        sizes.append(len(pickle.dumps(scores)))
    assert sizes[0] == sizes[1] < 40_000


def test_what_cannot_be_added_is_named() -> None:
    box = np.array([[0.0, 0, 4, 4]])
    scores = DetectionScores(["cell"], "bbox")
    truth = TrueObjects(labels=[0], boxes=box)
    scores.update("a", FoundObjects([0.5], [0], box), truth)
    with pytest.raises(DataError, match="'a' was added before"):
        scores.update("a", FoundObjects([0.5], [0], box), truth)
    faults = {
        "b: detection 0: score is nan": FoundObjects([np.nan], [0], box),
        "b: detection 0: bbox is": FoundObjects([0.5], [0], [[0.0, 0.0, np.inf, 4.0]]),
        "b: detection 0: has no 'bbox'": FoundObjects([0.5], [0]),
        "b: label 1: there are 1 classes": FoundObjects([0.5], [1], box),
        "b: 2 values of 'score' for 1 labels": FoundObjects([0.5, 0.5], [0], box),
    }
    for message, found in faults.items():
        with pytest.raises(DataError, match=message):
            scores.update("b", found, truth)
    assert scores.matches().images == ("a",)
    other = DetectionScores(["cell"], "bbox")
    other.update("a", FoundObjects([0.6], [0], box), truth)
    with pytest.raises(DataError, match="'a' was measured twice, with different objects"):
        scores.merge(other)
    with pytest.raises(ValueError, match="same settings"):
        scores.merge(DetectionScores(["cell"], "segm"))
    with pytest.raises(DataError, match=r"b: detection 0: its mask is \(5, 5\)"):
        DetectionScores(["cell"], "segm").update(
            "b", FoundObjects([0.5], [0], masks=np.ones((1, 5, 5))), TrueObjects([0], masks=np.ones((1, 4, 4)))
        )


def test_no_pictures_and_no_objects() -> None:
    scores = DetectionScores(["cell", "wall"])
    assert set(scores.summary().values()) == {-1.0}
    scores.update(1, FoundObjects([], [], np.zeros((0, 4))), TrueObjects([], np.zeros((0, 4))))
    assert set(scores.summary().values()) == {-1.0}
    assert isinstance(scores.matches(), Matches)
    assert scores.matches().images == (1,)


def test_images_in_chunks_equal_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(5, "segm")
    expected = coco_matches(*case, "segm")
    monkeypatch.setattr("delineate.metrics.backends._IMAGES", 1)
    matches = coco_matches(*case, "segm")
    assert matches.images == expected.images
    for name in ("image", "category", "rank", "score", "hit", "miss"):
        np.testing.assert_array_equal(getattr(matches, name), getattr(expected, name))
    np.testing.assert_array_equal(matches.curves().precision, expected.curves().precision)
