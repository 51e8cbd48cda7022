"""The breakdown of detection errors against tidecv, and cases made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from delineate.errors import ConfigError, DataError
from delineate.metrics.detection_errors import ERRORS, DetectionErrors, detection_errors
from delineate.report.plots import plot_detection_errors, save_png

# By tidecv 1.0.1: AP and the gains in percent (classification, localisation, both, duplicate, background, missed, false
# positive, false negative), and the number of each error, without detections that a crowd excuses. The pictures were put in
# the order of their ids, which is COCO's and decides between equal scores; polygons were given as run lengths.
COCOAPI = {
    ("bbox", 0.5): (
        *(64.20498881733425, 22.2460397441685, 0.22789102370710168, 0.0, 0.018972971237019465, 0.0),
        *(8.523573787723365, 6.821587524510463, 17.684978535217198),
    ),
    ("segm", 0.5): (
        *(51.80083046313932, 16.185981944964922, 11.60070388144917, 1.0128320441411205, 0.0, 0.26809184082152626),
        *(7.778620430008559, 8.660347233577724, 23.745819200827114),
    ),
    ("bbox", 0.75): (
        *(52.78573688640553, 18.179242325647635, 11.668379496572555, 0.6189918214093879, 0.0, 0.0),
        *(7.5480253683233585, 9.03031313964972, 23.296134610903835),
    ),
}
COCOAPI_COUNTS = {
    ("bbox", 0.5): [83, 1, 0, 1, 0, 97],
    ("segm", 0.5): [76, 82, 7, 0, 4, 109],
    ("bbox", 0.75): [76, 89, 7, 0, 0, 104],
}
RANDOM = {
    (0, "bbox"): (
        *(6.278874493784221, 0.0, 8.29573422311158, 0.0, 0.0, 0.41523702263058127, 0.0, 16.097363129978156, 1.697883595728669),
        *(4, 25, 27, 4, 83, 3),
    ),
    (0, "segm"): (
        *(5.809768759681399, 0.0, 7.967082585460153, 0.0, 0.0, 0.34094631182574897, 0.0, 15.180330250219592, 1.40659329022753),
        *(5, 26, 24, 2, 89, 4),
    ),
    (1, "bbox"): (
        *(7.475247524752476, 0.0, 7.575169604872567, 0.0, 0.0, 3.052805280528043, 0.0, 9.950495049504951, 6.9006900690069095),
        *(3, 23, 30, 3, 68, 4),
    ),
    (2, "bbox"): (
        *(0.8295987493486188, 6.108377278219292, 12.989166643674196, 0.011985409067222452, 0.0, 0.6615503655628721),
        *(0.1086379314623197, 10.06149035956227, 3.456115536365661),
        *(8, 36, 28, 1, 63, 4),
    ),
    (2, "segm"): (
        *(1.4512022630834518, 1.5817590394094703, 11.103592922317434, 0.07602545968882524, 0.0, 1.1262400965371264),
        *(0.5985896726318574, 14.98444130127298, 3.5968677613102877),
        *(7, 32, 26, 1, 67, 5),
    ),
    (3, "segm"): (
        *(0.24648618708024647, 0.0, 12.393779212457407, 0.0444143315430445, 0.0, 0.33401829193908383),
        *(0.09789607723314123, 5.694107872325694, 1.3923097995418279),
        *(3, 22, 28, 1, 66, 4),
    ),
}


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth and detections with all errors, crowds, equal scores, classes without objects, one picture with over 100."""
    rng = np.random.default_rng(seed)
    images = [{"id": i, "height": 60, "width": 80, "file_name": f"{i}.png"} for i in range(1, 9)]
    categories = [{"id": 3 * k + 1, "name": f"class {k}"} for k in range(5)]
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in images[:-1]:
        for _ in range(rng.integers(0, 7)):
            x, y, w, h = (int(v) for v in rng.integers((0, 0, 8, 8), (60, 40, 20, 20)))
            category = int(rng.choice([1, 4, 7]))
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "bbox": [x, y, w, h]},
                    **{"area": w * h, "iscrowd": int(rng.random() < 0.15), "segmentation": outline(x, y, w, h)},
                }
            )
            for _ in range(rng.integers(0, 4)):
                dx, dy = (int(v) for v in rng.integers(-6, 7, 2))
                wrong = rng.random() < 0.3
                label = int(rng.choice([1, 4, 7, 10])) if wrong else category
                detections.append(detection(image["id"], label, max(0, x + dx), max(0, y + dy), w, h, rng))
        for _ in range(120 if image["id"] == 2 else rng.integers(0, 4)):
            x, y, w, h = (int(v) for v in rng.integers((0, 0, 8, 8), (60, 40, 20, 20)))
            detections.append(detection(image["id"], int(rng.choice([1, 4, 7, 13])), x, y, w, h, rng))
    return {"images": images, "categories": categories, "annotations": annotations}, detections


def outline(x: int, y: int, w: int, h: int) -> list[list[int]]:
    """A hexagon in the box."""
    return [[x, y + h // 2, x + w // 3, y, x + w, y, x + w, y + h // 2, x + w - w // 3, y + h, x, y + h]]


def detection(image: int, label: int, x: int, y: int, w: int, h: int, rng: np.random.Generator) -> dict[str, Any]:
    score = round(float(rng.random()), 1)  # many are equal
    shapes = {"bbox": [x, y, w, h], "segmentation": outline(x, y, w, h)}
    return {"image_id": image, "category_id": label, "score": score, **shapes}


def as_percent(errors: DetectionErrors) -> list[float]:
    return [100 * value for value in errors.summary().values()]


@pytest.mark.parametrize(("iou_type", "threshold"), COCOAPI)
def test_coco_gives_the_numbers_of_tidecv(real_data: Path, iou_type: Any, threshold: float) -> None:
    folder = real_data / "reference_eval" / "cocoapi"
    results = folder / f"instances_val2014_fake{iou_type}100_results.json"
    errors = detection_errors(folder / "instances_val2014_100.json", results, iou_type, iou_threshold=threshold)
    np.testing.assert_allclose(as_percent(errors), COCOAPI[iou_type, threshold], rtol=1e-10, atol=1e-11)
    assert list(errors.counts.values()) == COCOAPI_COUNTS[iou_type, threshold]
    assert len(errors.kinds) == len(json.loads(results.read_text()))


@pytest.mark.parametrize(("seed", "iou_type"), RANDOM)
def test_made_cases_give_the_numbers_of_tidecv(seed: int, iou_type: Any) -> None:
    truth, detections = random_case(seed)
    errors = detection_errors(truth, detections, iou_type)
    expected = RANDOM[seed, iou_type]
    np.testing.assert_allclose(as_percent(errors), expected[:9], rtol=1e-10, atol=1e-11)
    assert tuple(errors.counts.values()) == expected[9:]
    counted = {name: errors.kinds.count(name) for name in ERRORS[:-1]}
    assert counted == {name: errors.counts[name] for name in ERRORS[:-1]}
    assert errors.kinds.count("ignored") >= 20  # one picture has more than 100 detections


# Cases by hand: one object of class 1 at (10, 10) with side 20, another of class 2 far away.

TRUTH: dict[str, Any] = {
    "images": [{"id": 1, "height": 100, "width": 100}],
    "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dirt"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [70, 70, 20, 20], "area": 400, "iscrowd": 0},
    ],
}


def found(*boxes: tuple[int, float, float]) -> list[dict[str, Any]]:
    """Detections (category, x, score) with side 20 and y 10, from the best score down."""
    return [{"image_id": 1, "category_id": c, "bbox": [x, 10, 20, 20], "score": s} for c, x, s in boxes]


@pytest.mark.parametrize(
    ("detections", "kinds"),
    [
        (found((1, 10, 0.9)), ("correct",)),
        (found((1, 20, 0.9)), ("localisation",)),  # IoU 1/3
        (found((2, 12, 0.9)), ("classification",)),  # IoU 0.82
        (found((2, 20, 0.9)), ("both",)),
        (found((1, 10, 0.9), (1, 12, 0.8)), ("correct", "duplicate")),
        (found((1, 50, 0.9)), ("background",)),
        (found((1, 12, 0.8), (1, 10, 0.9)), ("duplicate", "correct")),  # the score decides, not the order
    ],
)
def test_each_kind_of_error(detections: list[dict[str, Any]], kinds: tuple[str, ...]) -> None:
    errors = detection_errors(TRUTH, detections)
    assert errors.kinds == kinds
    assert errors.counts["missed"] == (1 if kinds[0] not in ("both", "background") else 2)


def test_repairs_gain_what_they_should() -> None:
    errors = detection_errors(TRUTH, found((2, 10, 0.9)))  # the cell is called dirt
    assert errors.ap == 0
    assert errors.delta_ap["classification"] == 0.5  # then class 1 has AP 1, class 2 has nothing
    assert errors.false_negative == 0  # the dirt leaves the truth, but the wrong detection stays
    assert detection_errors(TRUTH, found((1, 10, 0.9))).delta_ap["missed"] == 0.5  # class 2 is then empty, and does not count
    several = detection_errors(TRUTH, found((1, 50, 0.9), (1, 10, 0.8)))
    assert several.ap == pytest.approx(0.25)
    assert several.delta_ap["background"] == several.false_positive == pytest.approx(0.25)


def test_only_the_best_of_two_errors_that_want_one_object_is_repaired() -> None:
    errors = detection_errors(TRUTH, found((1, 20, 0.9), (2, 12, 0.8)))
    assert errors.kinds == ("localisation", "classification")
    assert errors.delta_ap["localisation"] == 0.5
    assert errors.delta_ap["classification"] == 0


def test_a_crowd_excuses_a_false_positive() -> None:
    crowd = {"id": 3, "image_id": 1, "category_id": 1, "bbox": [40, 0, 60, 60], "iscrowd": 1}
    truth = {**TRUTH, "annotations": [*TRUTH["annotations"], crowd]}
    detections = found((1, 50, 0.95), (2, 50, 0.9), (1, 10, 0.8))
    assert detection_errors(TRUTH, detections).kinds == ("background", "background", "correct")
    assert detection_errors(truth, detections).kinds == ("ignored", "background", "correct")
    assert detection_errors(truth, detections).ap > detection_errors(TRUTH, detections).ap


def test_pictures_without_objects_or_detections() -> None:
    assert detection_errors(TRUTH, []).counts["missed"] == 2
    assert detection_errors(TRUTH, []).ap == 0
    nothing = {**TRUTH, "annotations": []}
    assert np.isnan(detection_errors(nothing, []).ap)
    errors = detection_errors(nothing, found((1, 10, 0.9)))
    assert errors.kinds == ("background",)
    assert errors.ap == 0


def test_faults_are_named() -> None:
    with pytest.raises(DataError, match=r"detection 0: .*image_id 9"):
        detection_errors(TRUTH, [{**found((1, 10, 0.9))[0], "image_id": 9}])
    with pytest.raises(DataError, match=r"detection 1: score is nan"):
        detection_errors(TRUTH, found((1, 10, 0.9), (1, 10, float("nan"))))
    with pytest.raises(ConfigError, match=r"expected 0 <= background <= iou <= 1"):
        detection_errors(TRUTH, [], background_threshold=0.6)


def test_table_and_plot_show_the_gains(tmp_path: Path) -> None:
    errors = detection_errors(*random_case(2))
    figure = plot_detection_errors(errors.summary())
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [f"{gain:.3f}" for gain in errors.delta_ap.values()] == texts[:6]
    assert [f"{errors.false_positive:.3f}", f"{errors.false_negative:.3f}"] == texts[6:]
    widths = [bar.get_bbox().width for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    np.testing.assert_allclose(widths, list(errors.delta_ap.values()))
    save_png(figure, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 5000
    table = errors.table()
    assert list(table.columns[0].cells) == [*ERRORS, "false positive", "false negative"]
    assert list(table.columns[1].cells)[1] == str(errors.counts["localisation"])
    assert list(table.columns[2].cells)[1] == f"{errors.delta_ap['localisation']:.4f}"
