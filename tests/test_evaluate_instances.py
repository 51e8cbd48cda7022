"""Evaluating a detector: one that answers what it is told to, on pictures whose numbers are known or told by `score`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from _fake_detector import SKELETON, ScriptedDetector
from delineate.data import open_dataset
from delineate.data.dataset import Dataset
from delineate.errors import ConfigError, DataError
from delineate.metrics.evaluation import Evaluation
from delineate.predict import Predictor
from delineate.predict.evaluate import evaluate
from delineate.predict.score import score

TRUE = {  # boxes of two classes in three pictures of 60 x 80; the last has none
    0: [([5, 5, 25, 25], 0), ([40, 10, 70, 50], 1)],
    1: [([10, 20, 30, 50], 0), ([50, 5, 75, 20], 0)],
    2: [],
}
POINTS = [[10, 8, 2, 20, 8, 1, 8, 20, 0]]


def write_coco(folder: Path, *, keypoints: bool = False, outlines: bool = True, ids: tuple[int, int] = (7, 3)) -> Path:
    """A data set with the objects of `TRUE`; category ids are sparse and not in order."""
    folder.mkdir(exist_ok=True)
    content: dict[str, Any] = {
        "images": [{"id": 10 + n, "file_name": f"{n}.png", "height": 60, "width": 80} for n in TRUE],
        "categories": [{"id": ids[0], "name": "cat"}, {"id": ids[1], "name": "dog"}],
        "annotations": [],
    }
    for n, objects in TRUE.items():
        Image.fromarray(np.full((60, 80), n, np.uint8)).save(folder / f"{n}.png")
        for (x0, y0, x1, y1), label in objects:
            row = {"id": len(content["annotations"]) + 1, "image_id": 10 + n, "category_id": ids[label], "iscrowd": 0}
            row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            if outlines:
                row["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            if keypoints:  # where the detector has its three: the corners, less half a pixel
                corners = [x0 - 0.5, y0 - 0.5, 2, x1 - 0.5, y0 - 0.5, 2, x0 - 0.5, y1 - 0.5, 1]
                row |= {"keypoints": corners, "num_keypoints": 3}
            content["annotations"].append(row)
    if keypoints:
        for category in content["categories"]:
            category |= {"keypoints": list(SKELETON.names), "skeleton": [[1, 2], [1, 3]]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json"


def perfect(order: tuple[str, ...] = ("cat", "dog")) -> dict[int, tuple[list, list, list]]:
    place = [order.index(name) for name in ("cat", "dog")]
    return {n: ([b for b, _ in o], [0.9] * len(o), [place[label] for _, label in o]) for n, o in TRUE.items()}


def flawed() -> dict[int, tuple[list, list, list]]:
    """A duplicate, a miss, a confusion, one beside its object and one of nothing, with scores above and below one half."""
    return {
        0: ([[5, 5, 25, 25], [6, 5, 25, 26], [40, 10, 70, 50]], [0.9, 0.8, 0.7], [0, 0, 0]),
        1: ([[10, 26, 30, 50], [50, 40, 70, 55]], [0.6, 0.3], [0, 1]),
        2: ([[1, 1, 9, 9]], [0.2], [1]),
    }


def measured(answers: dict, dataset: Dataset, **options: Any) -> Evaluation:
    settings = {name: options.pop(name) for name in ("masks", "keypoints", "classes") if name in options}
    predictor = Predictor(ScriptedDetector(answers, **settings), "cpu", "fp32", batch=options.pop("batch", None))
    return evaluate(predictor, dataset, dataset.records, split="all", intervals=None, **options)


def test_a_detector_that_finds_all(tmp_path: Path) -> None:
    evaluation = measured(perfect(), open_dataset(write_coco(tmp_path)))
    assert evaluation.kind == "instance"
    for name in ("segm/AP", "bbox/AP", "bbox/AR100", "objects/f1_50", "objects/panoptic_quality_50"):
        assert evaluation.summary[name] == pytest.approx(1)
    assert "keypoints/AP" not in evaluation.summary
    assert {row["name"]: row["segm/AP"] for row in evaluation.per_class} == {"cat": pytest.approx(1), "dog": pytest.approx(1)}
    assert evaluation.errors is not None
    assert sum(evaluation.errors.counts.values()) == 0
    assert [i.quality for i in evaluation.images] == [1, 1, pytest.approx(math.nan, nan_ok=True)]
    assert evaluation.summary["objects/truth_objects"] == 4
    assert evaluation.pictures_per_second > 0  # pyright: ignore[reportOptionalOperand]
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))).curves == evaluation.curves
    evaluation.print()


@pytest.mark.parametrize("keypoints", [False, True])
def test_numbers_are_those_of_the_written_detections(tmp_path: Path, keypoints: bool) -> None:
    """`evaluate` and `score`, of the file of detections, agree; ids in the file are those of the data."""
    path = write_coco(tmp_path / "data", keypoints=keypoints)
    schema = SKELETON if keypoints else None
    sigmas = {"sigmas": (0.07,) * 3} if keypoints else {}
    evaluation = measured(flawed(), open_dataset(path), keypoints=schema, batch=2, predictions=tmp_path / "found.json")
    scored = score(tmp_path / "found.json", path, errors=True, **sigmas)  # pyright: ignore[reportArgumentType]
    names = [name for name in scored.summary if name.startswith(("segm/", "bbox/", "keypoints/"))]
    assert len(names) == (34 if keypoints else 24)
    for name in names:
        assert evaluation.summary[name] == pytest.approx(scored.summary[name], nan_ok=True), name
    assert 0 < evaluation.summary["segm/AP"] < 0.6
    assert evaluation.errors is not None
    assert scored.errors is not None
    assert evaluation.errors.counts == scored.errors.counts
    assert evaluation.errors.counts["duplicate"] == evaluation.errors.counts["classification"] == 1
    assert {row["category_id"] for row in json.loads((tmp_path / "found.json").read_text())} == {3, 7}
    assert ("sigmas" in " ".join(evaluation.notes)) == keypoints
    if keypoints:
        assert evaluation.summary["keypoints/AP50"] == pytest.approx(34 / 101 / 2)  # one of three cats, no dog


def test_objects_at_fixed_iou_are_counted_above_the_threshold(tmp_path: Path) -> None:
    evaluation = measured(flawed(), open_dataset(write_coco(tmp_path)))
    first, second, third = (image.objects for image in evaluation.images)
    assert first is not None
    assert second is not None
    assert third is not None
    # cats: one found, two invented; the dog is missed. PQ of cats 1 / (1 + 2 / 2), of dogs 0
    assert first["panoptic_quality_50"] == pytest.approx((0.5 + 0) / 2)
    assert second["f1_50"] == pytest.approx(2 / 3)
    assert second["mean_matched_iou_50"] == pytest.approx(24 / 30)
    assert (third["predicted_objects"], second["predicted_objects"]) == (0, 1)


def test_curves_hold_the_precision_of_coco(tmp_path: Path) -> None:
    evaluation = measured(flawed(), open_dataset(write_coco(tmp_path)))
    assert [(c["iou_type"], c["iou"]) for c in evaluation.curves] == [
        (kind, iou) for kind in ("segm", "bbox") for iou in (0.5, 0.75, None)
    ]
    for curve in evaluation.curves:
        name = {0.5: "AP50", 0.75: "AP75", None: "AP"}[curve["iou"]]
        assert np.mean(curve["precision"]) == pytest.approx(evaluation.summary[f"{curve['iou_type']}/{name}"], abs=1e-4)


def test_classes_are_aligned_by_name(tmp_path: Path) -> None:
    dataset = open_dataset(write_coco(tmp_path))
    order = ("bird", "dog", "cat")
    answers = perfect(order)
    answers[2] = ([[1, 1, 9, 9]], [0.9], [0])  # a bird, of which the data know nothing
    evaluation = measured(answers, dataset, classes=order)
    assert evaluation.summary["segm/AP"] == pytest.approx(1)
    assert any("bird" in note for note in evaluation.notes)
    renamed = measured(perfect(("dog", "cat")), dataset, classes=("puppy", "kitten"))
    assert renamed.summary["segm/AP"] == pytest.approx(1)
    assert any("taken in order" in note for note in renamed.notes)
    with pytest.raises(DataError, match="names must agree"):
        measured(perfect(), dataset, classes=("a", "b", "c"))
    alone = measured({n: (b, s, [0] * len(x)) for n, (b, s, x) in perfect().items()}, dataset, classes=("cat",))
    assert any("does not know dog" in note for note in alone.notes)
    assert alone.summary["bbox/AP"] < 0.6


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    boxes = open_dataset(write_coco(tmp_path / "boxes", outlines=False))
    assert "segm/AP" not in measured(perfect(), boxes).summary
    assert measured(perfect(), boxes).summary["objects/f1_50"] == 1
    with pytest.raises(DataError, match="'segm' cannot be measured"):
        measured(perfect(), boxes, iou_types=("segm",))
    data = open_dataset(write_coco(tmp_path / "all"))
    assert "segm/AP" not in measured(perfect(), data, masks=False).summary
    assert "boundary/AP" in measured(perfect(), data, boundary=True).summary
    with pytest.raises(ConfigError, match="surface"):
        measured(perfect(), data, surface=1.0)
    pointed, one = open_dataset(write_coco(tmp_path / "points", keypoints=True)), type(SKELETON)(("nose",))
    with pytest.raises(DataError, match="3 keypoints, the network finds 1"):
        measured(perfect(), pointed, keypoints=one)


def test_objects_of_label_pictures_and_previews(tmp_path: Path) -> None:
    """Truth that is drawn, not listed, and overlapping objects; the worst picture comes first among the drawings."""
    for n, objects in TRUE.items():
        truth = np.zeros((60, 80), np.uint8)
        for number, ((x0, y0, x1, y1), _) in enumerate(objects, 1):
            truth[y0:y1, x0:x1] = number
        for kind, pixels in (("images", np.full((60, 80), n, np.uint8)), ("instances", truth)):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "data" / kind / f"{n}.png")
    dataset = open_dataset(tmp_path / "data")
    answers = {n: (b, s, [0] * len(b)) for n, (b, s, _) in perfect().items()}
    answers[0][0].append([4, 4, 30, 30])
    answers[0][1].append(0.7)
    answers[0][2].append(0)
    evaluation = measured(answers, dataset, classes=dataset.classes, previews=tmp_path / "run" / "previews")
    assert evaluation.summary["segm/AP"] == pytest.approx(1)
    assert evaluation.summary["objects/f1_50"] == pytest.approx(8 / 9)
    for image in evaluation.images:
        assert image.preview is not None
        with Image.open(tmp_path / "run" / image.preview) as drawn:
            assert drawn.width > 3 * 256


def test_a_detector_that_finds_nothing(tmp_path: Path) -> None:
    nothing = {n: ([], [], []) for n in TRUE}
    evaluation = measured(nothing, open_dataset(write_coco(tmp_path, keypoints=True)), keypoints=SKELETON)
    assert evaluation.summary["segm/AP"] == evaluation.summary["keypoints/AP"] == 0
    assert evaluation.errors is not None
    assert evaluation.errors.counts["missed"] == 4
