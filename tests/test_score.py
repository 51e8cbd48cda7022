"""Scoring files: against published COCO numbers, scikit-learn-free counts by hand, and the errors of bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from skimage.metrics import adapted_rand_error as skimage_adapted_rand

from delineate.cli import run
from delineate.data.synthetic import blobs, make_blobs_dataset
from delineate.errors import ConfigError, DataError
from delineate.metrics import warping_error
from delineate.metrics.bootstrap import Resampling
from delineate.metrics.boundary import boundary_iou
from delineate.metrics.coco import COCO_NAMES, coco_scores
from delineate.metrics.confusion import ConfusionMatrix
from delineate.metrics.evaluation import Evaluation, Evaluator
from delineate.metrics.measures import Labelling
from delineate.metrics.surface import surface_distances
from delineate.predict.reading import align_classes
from delineate.predict.score import compare, score


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def labels(folder: Path, **pictures: np.ndarray) -> Path:
    for name, pixels in pictures.items():
        save(folder / f"{name}.png", pixels)
    return folder


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Three pictures of three classes, one pixel not counted."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 3, (20, 30)).astype(np.uint8) for _ in range(3))
    a[0, 0] = 255
    return labels(tmp_path / "truth", a=a, b=b, c=c)


def test_label_folders_count_as_by_hand(tmp_path: Path, truth: Path) -> None:
    rng = np.random.default_rng(1)
    wanted = {path.stem: np.asarray(Image.open(path)) for path in truth.iterdir()}
    found = {
        name: np.where(rng.random(t.shape) < 0.3, rng.integers(0, 3, t.shape), np.where(t == 255, 0, t))
        for name, t in wanted.items()
    }
    predictions = labels(tmp_path / "found", **{name: x.astype(np.uint8) for name, x in found.items()})
    evaluation = score(predictions, truth, classes=("x", "y", "z"))
    t = np.concatenate([wanted[n].ravel() for n in "abc"])
    p = np.concatenate([found[n].ravel() for n in "abc"])
    p, t = p[t != 255], t[t != 255]
    iou = [((t == k) & (p == k)).sum() / ((t == k) | (p == k)).sum() for k in range(3)]
    assert [row["iou"] for row in evaluation.per_class] == pytest.approx(iou)
    assert evaluation.summary["mean_iou"] == pytest.approx(np.mean(iou))
    assert evaluation.summary["pixel_accuracy"] == pytest.approx((t == p).mean())
    assert evaluation.confusion == [[int(((t == i) & (p == j)).sum()) for j in range(3)] for i in range(3)]
    assert evaluation.objects is None
    assert evaluation.classes == ("x", "y", "z")
    first = next(image for image in evaluation.images if image.name == "b")
    ious = [((wanted["b"] == k) & (found["b"] == k)).sum() / ((wanted["b"] == k) | (found["b"] == k)).sum() for k in range(3)]
    assert first.mean_iou == pytest.approx(np.mean(ious))


def test_single_files(tmp_path: Path) -> None:
    picture = np.eye(8, dtype=np.uint8)
    a, b = save(tmp_path / "a.png", picture), save(tmp_path / "other" / "a.png", picture)
    assert score(b, a).summary["mean_iou"] == 1.0


def test_ignored_class(tmp_path: Path) -> None:
    wanted, found = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    wanted[0], found[1] = 2, 1
    wanted[3], found[3] = 1, 1
    t, p = labels(tmp_path / "t", a=wanted), labels(tmp_path / "p", a=found)
    evaluation = score(p, t, ignore=2)
    assert np.sum(evaluation.confusion or []) == 12
    assert evaluation.summary["pixel_accuracy"] == pytest.approx(8 / 12)


def test_values_as_in_the_truth(tmp_path: Path) -> None:
    """Truth of 0 and 255 is read as classes 0 and 1; so are predictions stored the same way, and those that hold 0 and 1."""
    picture = (np.arange(64).reshape(8, 8) % 3 == 0).astype(np.uint8)
    t = labels(tmp_path / "t", a=picture * 255)
    for factor in (1, 255):
        p = labels(tmp_path / f"p{factor}", a=picture * np.uint8(factor))
        assert score(p, t).summary["mean_iou"] == 1.0


def test_objects_from_a_predicted_folder(tmp_path: Path) -> None:
    """masks/ and instances/, as `delineate predict` writes them, against a data set with objects."""
    data = make_blobs_dataset(tmp_path / "data", 3, 64, kind="instance")
    out = tmp_path / "out"
    truths = sorted((data / "instances").glob("*.png")) or sorted((data / "masks").glob("*.png"))
    for path in truths:
        ids = np.asarray(Image.open(path)).astype(np.uint16)
        ids[ids == 1] = 0  # one object missed in each picture
        save(out / "instances" / path.name, ids)
        save(out / "masks" / path.name, (ids > 0).astype(np.uint8))
    evaluation = score(out, data)
    assert evaluation.kind == "instance"
    assert evaluation.objects is not None
    count = sum(int(np.asarray(Image.open(path)).max()) for path in truths)
    assert evaluation.objects["truth_objects"] == count
    assert evaluation.objects["predicted_objects"] == count - 3
    assert evaluation.objects["recall_50"] == pytest.approx((count - 3) / count)
    assert evaluation.objects["precision_50"] == 1.0
    assert evaluation.summary["objects/ap50"] == pytest.approx((count - 3) / count)
    assert all(image.objects is not None for image in evaluation.images)
    flat = score(out / "instances", data)
    assert flat.objects == evaluation.objects
    assert score(out / "instances", data, objects="none").objects is None


def test_components_of_class_ids(tmp_path: Path) -> None:
    """Class ids against truth with objects: touching objects become one component."""
    ids = np.zeros((10, 20), np.uint16)
    ids[2:5, 2:6], ids[2:5, 6:10], ids[7:9, 2:9], ids[7:9, 12:18] = 1, 2, 3, 4
    save(tmp_path / "data" / "images" / "a.png", np.zeros((10, 20), np.uint8))
    save(tmp_path / "data" / "instances" / "a.png", ids)
    predictions = labels(tmp_path / "found", a=(ids > 0).astype(np.uint8))
    evaluation = score(predictions, tmp_path / "data")
    assert evaluation.objects is not None
    assert (evaluation.objects["truth_objects"], evaluation.objects["predicted_objects"]) == (4, 3)
    assert evaluation.objects["f1_50"] == pytest.approx(2 * 3 / 7)  # the joined pair still covers half of its union with one
    assert evaluation.objects["f1_50"] > score(predictions, tmp_path / "data").objects["ap75"]  # pyright: ignore


def test_em_scores(tmp_path: Path) -> None:
    _, objects = blobs(96, 3, count=20)
    membrane = np.ones((96, 96), np.uint8)
    membrane[objects == 0] = 0
    t = labels(tmp_path / "t", a=membrane)
    perfect = score(t, t, em=True).summary
    assert perfect["em/v_rand"] == pytest.approx(1.0)
    assert perfect["em/adapted_rand_error"] == pytest.approx(0.0)
    assert perfect["em/v_info"] == pytest.approx(1.0)
    assert perfect["em/voi_split"] == perfect["em/voi_merge"] == perfect["em/warping_error"] == 0.0
    merged = score(labels(tmp_path / "p", a=np.ones((96, 96), np.uint8)), t, em="background").summary
    from scipy.ndimage import label

    truth_segments = np.asarray(label(membrane)[0])  # pyright: ignore[reportIndexIssue]
    # With every pixel in one segment, scikit-image's number differs only in that it counts no pair of a pixel with itself.
    reference = skimage_adapted_rand(truth_segments, np.ones((96, 96), int))[0]
    assert merged["em/adapted_rand_error"] == pytest.approx(reference, abs=1e-3)
    assert merged["em/v_rand_merge"] < merged["em/v_rand_split"] == 1.0
    assert merged["em/voi_split"] == 0.0
    cells = truth_segments[truth_segments > 0]
    # All cells are one: what is lost is the entropy of the true cells.
    shares = np.bincount(cells)[1:] / cells.size
    assert merged["em/voi_merge"] == pytest.approx(-(shares * np.log2(shares)).sum())
    assert merged["em/warping_error"] == warping_error(np.ones((96, 96)), membrane).error > 0
    with pytest.raises(ConfigError, match="did you mean 'background'"):
        score(t, t, em="backgruond")


def test_intervals_hold_the_number_and_are_optional(tmp_path: Path, truth: Path) -> None:
    found = labels(
        tmp_path / "p", a=np.zeros((20, 30), np.uint8), b=np.ones((20, 30), np.uint8), c=np.asarray(Image.open(truth / "c.png"))
    )
    evaluation = score(found, truth, ci=True)
    assert evaluation.intervals is not None
    for name in ("mean_iou", "mean_dice", "pixel_accuracy"):
        low, high = evaluation.intervals[name]
        assert low <= evaluation.summary[name] <= high
        assert low < high
    assert score(found, truth).intervals == {}


def test_json_round_trip_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = np.zeros((6, 6), np.uint8)
    t = labels(tmp_path / "t", a=a, b=np.full_like(a, 255), c=a + np.eye(6, dtype=np.uint8))
    (t / "classes.txt").write_text("nothing\nline\nnever\n")
    evaluation = score(labels(tmp_path / "p", a=a, b=a, c=a), t, ci=True)
    text = json.dumps(evaluation.to_json(), allow_nan=False)  # NaN is not JSON
    again = Evaluation.from_json(json.loads(text))
    assert json.dumps(again.to_json()) == text
    assert again.classes == ("nothing", "line", "never")
    assert np.isnan(again.per_class[2]["iou"])
    evaluation.print()
    printed = capsys.readouterr().out
    assert "mean_iou" in printed
    assert "never" in printed


# --- two predictions ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rivals(tmp_path: Path, truth: Path) -> tuple[Path, Path]:
    """Predictions with a tenth and with a third of the pixels drawn anew."""
    rng = np.random.default_rng(5)
    folders = tmp_path / "good", tmp_path / "poor"
    for folder, share in zip(folders, (0.1, 0.3), strict=True):
        for path in truth.iterdir():
            wanted = np.asarray(Image.open(path))
            found = np.where(
                rng.random(wanted.shape) < share, rng.integers(0, 3, wanted.shape), np.where(wanted > 2, 0, wanted)
            )
            save(folder / path.name, found.astype(np.uint8))
    return folders


def test_comparing_two_predictions(truth: Path, rivals: tuple[Path, Path]) -> None:
    """The numbers of each are those of `score`, and the interval that of resampling confusion matrices by hand."""
    good, poor = rivals
    compared = compare(good, poor, truth, resampling=Resampling(resamples=300, seed=2))
    of_good, of_poor = score(good, truth), score(poor, truth)
    assert compared.scores.keys() == of_good.summary.keys()
    for name, number in compared.scores.items():
        assert (number.a, number.b) == (of_good.summary[name], of_poor.summary[name])
        assert number.difference == number.a - number.b
    matrices = []
    for folder in rivals:
        for name in "abc":
            matrix = ConfusionMatrix(3)
            matrix.update(np.asarray(Image.open(folder / f"{name}.png")), np.asarray(Image.open(truth / f"{name}.png")))
            matrices.append(matrix.counts)
    draws = np.random.default_rng(2).multinomial(3, np.full(3, 1 / 3), size=300)
    ious = [ConfusionMatrix.from_counts(np.tensordot(draws, np.stack(m), 1)).mean_iou() for m in (matrices[:3], matrices[3:])]
    differences = ious[0] - ious[1]
    row = compared.scores["mean_iou"]
    assert (row.low, row.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]))
    assert row.better == (differences > 0).mean() == 1.0
    back = compare(poor, good, truth).scores["mean_iou"]
    assert (back.difference, back.better) == (-row.difference, 0.0)
    assert compare(good, good, truth).scores["mean_iou"].better == 0.5


def test_comparing_on_the_command_line(
    tmp_path: Path, truth: Path, rivals: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    good, poor = map(str, rivals)
    assert run(["score", good, poor, "--truth", str(truth), "--json", str(tmp_path / "c.json"), "--confidence", "0.9"]) == 0
    printed = capsys.readouterr().out
    assert "90 % interval" in printed
    assert "100.0%" in printed
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["scores"]["mean_iou"]["a"] == score(good, truth).summary["mean_iou"]
    assert (content["pictures"], content["resampling"]["confidence"]) == (3, 0.9)
    assert run(["score", good, "--truth", str(truth), "--json", "-"]) == 0  # one prediction: as `score GOOD TRUTH`
    assert json.loads(capsys.readouterr().out)["summary"] == score(good, truth).summary
    assert run(["score", good]) == 2
    assert "A B --truth TRUTH" in capsys.readouterr().err


def test_comparing_predictions_of_different_pictures(tmp_path: Path, truth: Path, rivals: tuple[Path, Path]) -> None:
    good, poor = rivals
    (poor / "b.png").unlink()
    with pytest.raises(DataError, match=r"poor: 1 pictures of the truth have no prediction \(b\)"):
        compare(good, poor, truth)
    data = make_blobs_dataset(tmp_path / "data", 3, 48, val=2)
    whole, part = tmp_path / "whole", tmp_path / "part"
    for path in data.rglob("masks/*.png"):
        for folder in (whole, part) if path.parent.parent.name == "val" else (whole,):
            save(folder / path.name, np.asarray(Image.open(path)))
    with pytest.raises(DataError, match=r"whole is of the 5 pictures of 'all', .*part is of the 2 pictures of 'val'"):
        compare(whole, part, data)


def test_intervals_of_every_number(truth: Path, rivals: tuple[Path, Path]) -> None:
    evaluation = score(rivals[1], truth, ci=Resampling(confidence=0.5, resamples=100, seed=3), em=True, objects="components")
    counted = {"objects/truth_objects", "objects/predicted_objects"}
    assert evaluation.intervals is not None
    assert evaluation.intervals.keys() == evaluation.summary.keys() - counted
    wide = score(rivals[1], truth, ci=True).intervals or {}
    low, high = evaluation.intervals["mean_iou"]
    assert wide["mean_iou"][0] < low < high < wide["mean_iou"][1]


def test_numbers_of_each_picture_as_csv(tmp_path: Path, truth: Path, rivals: tuple[Path, Path]) -> None:
    assert run(["score", str(rivals[0]), str(truth), "--per-image", str(tmp_path / "numbers.csv"), "--quiet"]) == 0
    with (tmp_path / "numbers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == ["a", "b", "c"]
    images = score(rivals[0], truth).images
    assert [float(row["mean_iou"]) for row in rows] == [image.mean_iou for image in images]


# --- families -----------------------------------------------------------------------------------------------------------


def test_presets_of_mean_iou(tmp_path: Path) -> None:
    """A class that is predicted and not there counts for Cityscapes, and not for Detectron2; torchmetrics averages pictures."""
    wanted, found = np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    found[0, 0] = 1
    other = np.eye(4, dtype=np.uint8)[:2]
    t, p = labels(tmp_path / "t", a=wanted, b=wanted), labels(tmp_path / "p", a=found, b=wanted)
    names = ("x", "y")
    got = {
        n: score(p, t, classes=names, preset=n).summary[f"mean_iou/{n}"] for n in ("cityscapes", "detectron2", "torchmetrics")
    }
    assert got == pytest.approx({"cityscapes": 15 / 32, "detectron2": 15 / 16, "torchmetrics": (7 / 8 + 0 + 1) / 3})
    mixed = labels(tmp_path / "t", c=other), labels(tmp_path / "p", c=other)
    low, high = (score(mixed[1], mixed[0], classes=names, preset="smp", ci=True).intervals or {})["mean_iou/smp"]
    assert low < high
    with pytest.raises(ConfigError, match=r"preset 'detectron': .*did you mean 'detectron2'"):
        score(p, t, preset="detectron")


def test_boundary_iou_of_files(tmp_path: Path) -> None:
    truth, found = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    truth[10:30, 10:30], found[12:30, 10:30] = 1, 1
    truth[:5] = 255
    evaluation = score(labels(tmp_path / "p", a=found), labels(tmp_path / "t", a=truth), classes=("x", "y"), boundary=True)
    counted = truth != 255
    expected = boundary_iou(found == 1, truth == 1, ignore=~counted)
    assert evaluation.summary["boundary_iou/y"] == expected < evaluation.summary["iou/y"]
    assert evaluation.images[0].numbers["boundary_iou/y"] == expected


def test_panoptic_files(real_data: Path) -> None:
    folder = real_data / "reference_eval" / "panoptic_pq"
    wanted = json.loads((folder / "expected_pq.json").read_text())
    evaluation = score(folder / "pred.json", folder / "gt.json", ci=True, boundary=True)
    assert evaluation.kind == "panoptic"
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for key in ("pq", "sq", "rq"):
            assert evaluation.summary[key + suffix] == pytest.approx(wanted[group][key], abs=1e-12)
    assert evaluation.intervals is not None
    assert evaluation.intervals.keys() == evaluation.summary.keys()
    assert evaluation.summary["boundary_pq"] < evaluation.summary["pq"]
    assert len(evaluation.images) == 12
    assert {"pq", "sq", "rq", "true_positives"} < evaluation.per_class[0].keys()
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))).summary == evaluation.summary
    evaluation.print()
    same = compare(folder / "pred.json", folder / "gt.json", folder / "gt.json").scores["pq"]
    assert (same.b, same.better) == (1.0, 0.0)


# --- COCO ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "expected", "iou_type"),
    [
        ("fakesegm100", "coco_fakesegm100_segm", "segm"),
        ("fakesegm100", "coco_fakesegm100_bbox_from_masks", "bbox"),
        ("fakebbox100", "coco_fakebbox100_bbox", "bbox"),
    ],
)
def test_published_coco_numbers(real_data: Path, results: str, expected: str, iou_type: str) -> None:
    """cocoapi's own example: every number of its published results, through files, to the last digit."""
    folder = real_data / "reference_eval"
    wanted = json.loads((folder / "expected.json").read_text())[expected]
    evaluation = score(
        folder / "cocoapi" / f"instances_val2014_{results}_results.json", folder / "cocoapi" / "instances_val2014_100.json"
    )
    assert {name: evaluation.summary[f"{iou_type}/{name}"] for name in COCO_NAMES} == wanted
    if results == "fakebbox100":
        assert "mean_iou" not in evaluation.summary  # boxes say nothing of pixels
        assert len(evaluation.images) == 100


def test_coco_numbers_have_intervals_and_classes(real_data: Path, tmp_path: Path) -> None:
    """Of the data itself the numbers are pycocotools', of resamples those of COCO's own scripts on the drawn pictures."""
    folder = real_data / "reference_eval" / "cocoapi"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    truth["images"].reverse()  # now their order is not that of their ids
    paths = folder / "instances_val2014_fakesegm100_results.json", write(tmp_path / "truth.json", truth)
    found = json.loads(paths[0].read_text())
    resampling = Resampling(resamples=2, seed=1)
    evaluation = score(*paths, ci=resampling, iou_types=["segm"], errors=True)
    intervals = evaluation.intervals or {}
    assert intervals.keys() == evaluation.summary.keys() - {"objects/truth_objects", "objects/predicted_objects"}
    order = [image["id"] for image in truth["images"]]
    scores = []
    for draw in np.random.default_rng(1).multinomial(100, np.full(100, 1 / 100), size=2):
        copies = {image: [1000 * image + copy for copy in range(n)] for image, n in zip(order, draw, strict=True)}
        drawn = truth | {
            "images": [i | {"id": c} for i in truth["images"] for c in copies[i["id"]]],
            "annotations": [a | {"image_id": c} for a in truth["annotations"] for c in copies[a["image_id"]]],
        }
        detections = [d | {"image_id": 1000 * d["image_id"] + c} for d in found for c in range(len(copies[d["image_id"]]))]
        scores.append(coco_scores(drawn, detections, "segm", backend="pycocotools")["AP"])
    # Copies of a picture lie among one another where its detections have equal scores, hence not to the last digit.
    assert intervals["segm/AP"] == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=1e-4)
    person = next(row for row in evaluation.per_class if row["name"] == "person")
    assert {"iou", "segm/AP", "segm/AP50"} < person.keys()
    assert "bbox/AP" not in evaluation.summary
    assert evaluation.errors is not None
    again = Evaluation.from_json(json.loads(json.dumps(evaluation.to_json(), allow_nan=False)))
    assert again.errors is not None
    assert again.errors.counts == evaluation.errors.counts
    other = score(*paths, iou_types=["segm"], backend="pycocotools")
    assert all(other.summary[f"segm/{name}"] == evaluation.summary[f"segm/{name}"] for name in COCO_NAMES)
    same = compare(paths[0], paths[0], paths[1], iou_types=["segm"], resampling=resampling)
    assert (same.scores["segm/AP"].difference, same.scores["segm/AP"].better) == (0.0, 0.5)


def test_keypoint_results(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = real_data / "reference_eval" / "keypoints_one_image"
    wanted = json.loads((real_data / "reference_eval" / "expected.json").read_text())
    evaluation = score(folder / "dt_dataset.json", folder / "gt_dataset.json")
    (expected,) = (value for name, value in wanted.items() if "keypoints" in name and isinstance(value, dict))
    assert evaluation.summary["keypoints/AP"] == pytest.approx(expected["AP"], abs=1e-9)
    assert any("no numbers of pixels" in note for note in evaluation.notes)
    evaluation.print()
    assert "keypoints AP" in capsys.readouterr().out
    with pytest.raises(DataError, match="'segm' cannot be measured"):
        score(folder / "dt_dataset.json", folder / "gt_dataset.json", iou_types=["segm"])
    with pytest.raises(DataError, match="there are 5 sigmas"):
        score(folder / "dt_dataset.json", folder / "gt_dataset.json", iou_types=["keypoints"], sigmas=[0.1] * 5)


def test_boundary_average_precision(real_data: Path) -> None:
    folder = real_data / "reference_eval"
    wanted = json.loads((folder / "expected.json").read_text())["small3_boundary"]
    files = folder / "boundary_small3" / "dt_dataset.json", folder / "boundary_small3" / "gt_dataset.json"
    summary = score(*files, boundary=True).summary
    assert summary["boundary/AP"] == pytest.approx(wanted["AP"], abs=1e-12)
    assert score(*files, iou_types=["boundary"]).summary["boundary/AP"] == summary["boundary/AP"]


def test_errors_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = write(tmp_path / "t.json", coco_truth()), write(tmp_path / "f.json", [detection(category_id=90)])
    plot = tmp_path / "errors.png"
    assert run(["score", str(found), str(truth), "--errors", str(plot)]) == 0
    assert "classification" in capsys.readouterr().out
    with Image.open(plot) as picture:
        assert picture.width > 300
    assert run(["score", str(found), str(found), "--truth", str(truth), "--errors", str(plot)]) == 2


def test_surfaces_and_centrelines_of_files(tmp_path: Path) -> None:
    wanted = np.zeros((40, 60), np.uint8)
    wanted[10:20, 10:50] = 1
    found = np.roll(wanted, 3, axis=0)
    t, p = labels(tmp_path / "t", a=wanted, b=wanted), labels(tmp_path / "p", a=found, b=wanted)
    names = ("background", "vessel")
    evaluation = score(p, t, classes=names, surface=1.0, spacing=(0.5, 2.0), cldice="vessel", ci=True)
    surfaces = surface_distances(found, wanted, spacing=(0.5, 2.0))
    assert evaluation.images[0].numbers["hd95/vessel"] == surfaces.hausdorff(95)
    assert evaluation.summary["hd95"] == surfaces.hausdorff(95) / 2
    assert evaluation.summary["nsd"] == pytest.approx((surfaces.normalised_surface_dice(1.0) + 1) / 2)
    assert 0 < evaluation.summary["cldice/vessel"] <= 1
    assert (evaluation.intervals or {})["assd"] == (0.0, surfaces.average_symmetric())
    better = compare(t, p, t, classes=names, surface=1.0).scores["hd95"]  # smaller is better
    assert better.difference < 0
    assert better.better > 0.7
    with pytest.raises(ConfigError, match="did you mean 'vessel'"):
        score(p, t, classes=names, cldice="vessels")
    with pytest.raises(ConfigError, match="spacing"):
        score(p, t, classes=names, spacing=2.0)


def coco_truth(annotation_id: int = 1) -> dict[str, Any]:
    square = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]
    return {
        "images": [{"id": 7, "file_name": "a.png", "height": 16, "width": 16}],
        "categories": [{"id": 3, "name": "cell"}, {"id": 90, "name": "debris"}],
        "annotations": [
            {
                "id": annotation_id,
                "image_id": 7,
                "category_id": 3,
                "segmentation": square,
                "bbox": [2, 2, 6, 6],
                "area": 36,
                "iscrowd": 0,
            }
        ],
    }


def detection(**changes: Any) -> dict[str, Any]:
    canvas = np.zeros((16, 16), np.uint8, order="F")
    canvas[2:8, 2:8] = 1
    counts: Any = coco_mask.encode(canvas)["counts"]
    code = {"size": [16, 16], "counts": counts.decode()}
    return {"image_id": 7, "category_id": 3, "segmentation": code, "score": 0.9} | changes


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_coco_traps() -> None:
    """Annotation id 0, missing iscrowd and area, and no detections: defined, where pycocotools errs."""
    perfect = coco_scores(coco_truth(annotation_id=0), [detection()], "segm")
    assert perfect["AP"] == pytest.approx(1.0)
    bare = coco_truth()
    for key in ("iscrowd", "area"):
        del bare["annotations"][0][key]
    assert coco_scores(bare, [detection()], "segm") == perfect
    nothing = coco_scores(coco_truth(), [], "segm")
    assert (nothing["AP"], nothing["APl"]) == (0.0, -1.0)
    polygons = detection(segmentation=coco_truth()["annotations"][0]["segmentation"])
    assert coco_scores(coco_truth(), [polygons], "segm") == perfect


def test_low_scores_count_in_coco_numbers_only(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.json", coco_truth())
    evaluation = score(write(tmp_path / "found.json", [detection(score=0.3)]), truth)
    assert evaluation.summary["segm/AP"] == pytest.approx(1.0)
    assert evaluation.objects is not None
    assert evaluation.objects["predicted_objects"] == 0
    assert score(tmp_path / "found.json", truth, score_threshold=0.2).summary["mean_iou"] == 1.0


def test_empty_results_list(tmp_path: Path) -> None:
    evaluation = score(write(tmp_path / "found.json", []), write(tmp_path / "truth.json", coco_truth()))
    assert evaluation.summary["segm/AP"] == 0.0
    assert evaluation.summary["objects/recall_50"] == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": float("nan")}, "detection 1: score is nan"),
        ({"score": None}, "score is None"),
        ({"category_id": 4}, "category_id 4 is unknown; the truth has 3, 90"),
        ({"image_id": 8}, "image_id 8 is not among the 1 images"),
        ({"segmentation": {"size": [9, 9], "counts": "0"}}, "9"),
    ],
)
def test_bad_detections_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    found = write(tmp_path / "found.json", [detection(), detection(**changes)])
    with pytest.raises(DataError, match=message):
        score(found, write(tmp_path / "truth.json", coco_truth()))


# --- bad input ----------------------------------------------------------------------------------------------------------


def test_missing_and_superfluous_predictions(tmp_path: Path, truth: Path) -> None:
    found = labels(tmp_path / "p", a=np.zeros((20, 30), np.uint8), d=np.zeros((20, 30), np.uint8))
    with pytest.raises(
        DataError, match=r"2 pictures of the truth have no prediction \(b, c\); 1 predictions have no truth \(d\)"
    ):
        score(found, truth)


def test_a_split_that_was_predicted_whole(tmp_path: Path) -> None:
    data = make_blobs_dataset(tmp_path / "data", 3, 48, val=2)
    folder = tmp_path / "found"
    for path in (data / "val" / "masks").glob("*.png"):
        save(folder / path.name, np.asarray(Image.open(path)))
    evaluation = score(folder, data)
    assert evaluation.split == "val"
    assert (len(evaluation.images), evaluation.summary["mean_iou"]) == (2, 1.0)


def test_sizes_differ(tmp_path: Path, truth: Path) -> None:
    found = labels(tmp_path / "p", **{name: np.zeros((20, 30), np.uint8) for name in "ac"}, b=np.zeros((10, 30), np.uint8))
    with pytest.raises(DataError, match=r"b\.png: is 10 x 30 .*20 x 30"):
        score(found, truth)


def test_a_value_that_is_no_class(tmp_path: Path, truth: Path) -> None:
    found = labels(tmp_path / "p", **{name: np.zeros((20, 30), np.uint8) for name in "ab"}, c=np.full((20, 30), 9, np.uint8))
    with pytest.raises(DataError, match=r"c\.png: holds the value 9"):
        score(found, truth)


def test_damaged_pictures(tmp_path: Path, truth: Path) -> None:
    found = labels(tmp_path / "p", **{name: np.asarray(Image.open(truth / f"{name}.png")) % 3 for name in "abc"})
    whole = (found / "b.png").read_bytes()
    (found / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"b\.png"):
        score(found, truth)
    (found / "b.png").write_text("this is no picture")
    with pytest.raises(DataError, match=r"b\.png"):
        score(found, truth)


def test_empty_folder_and_nothing_at_all(tmp_path: Path, truth: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        score(tmp_path / "empty", truth)
    with pytest.raises(DataError, match="absent"):
        score(tmp_path / "absent", truth)
    with pytest.raises(DataError, match="empty"):
        score(truth, tmp_path / "empty")


def test_object_ids_without_classes(tmp_path: Path) -> None:
    data = make_blobs_dataset(tmp_path / "data", 2, 64, classes=2, kind="semantic")
    evaluator = Evaluator(("background", "a", "b"), objects=True)
    semantic = np.array([[0, 1, 2]])
    with pytest.raises(DataError, match="object 3, but only 1"):
        evaluator.add(
            "x", Labelling(semantic, np.array([[0, 1, 3]]), np.array([1])), Labelling(semantic, semantic, np.array([1, 2]))
        )
    assert data.is_dir()


def test_classes_are_aligned_by_name() -> None:
    lookup, note = align_classes(("background", "nucleus"), ("background", "object"), "the network")
    assert lookup.tolist() == [0, 1]
    assert note is not None
    assert "nucleus" in note
    with pytest.raises(DataError, match="the names must agree"):
        align_classes(("background", "a", "b"), ("background", "object"), "the network")


def test_order_of_classes_in_a_predicted_folder(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2, 2]], np.uint8)
    t = labels(tmp_path / "t", a=ids)
    (t / "classes.txt").write_text("ground\ncat\ndog\n")
    p = labels(tmp_path / "p", a=np.array([[0, 2, 1, 1]], np.uint8))
    (p / "classes.txt").write_text("ground\ndog\ncat\n")
    assert score(p, t).summary["mean_iou"] == 1.0


def test_multilabel_counts() -> None:
    truth = np.zeros((2, 4, 4), np.float32)
    truth[0, :2], truth[1, 1:3], truth[:, 3] = 1, 1, -1
    found = np.zeros((2, 4, 4), bool)
    found[0, :2], found[1, 1] = True, True
    evaluator = Evaluator(("a", "b"), multilabel=True)
    image = evaluator.add("x", Labelling(found), Labelling(truth))
    evaluation = evaluator.finish("all")
    assert [row["iou"] for row in evaluation.per_class] == [1.0, 0.5]
    assert image.mean_iou == evaluation.summary["mean_iou"] == 0.75
    assert evaluation.confusion is None
