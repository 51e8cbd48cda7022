"""Outlines and centrelines over pictures: means by hand, missing classes, ignored pixels, intervals and comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from delineate.errors import ConfigError, DataError
from delineate.metrics.bootstrap import compare_scores, score_intervals
from delineate.metrics.centerline import centerline_overlap
from delineate.metrics.contour_measures import CenterlineMeasure, SurfaceMeasure
from delineate.metrics.evaluation import Evaluator
from delineate.metrics.measures import Labelling
from delineate.metrics.surface import surface_distances

CLASSES = ("background", "cell", "wall")


def picture(seed: int, shift: int = 0) -> NDArray[np.int64]:
    """Rectangles of a cell and of a wall; the same place for a seed, moved down by `shift`."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 50), np.int64)
    for k in (1, 2):
        top, left = rng.integers(0, 20, 2)
        labels[top : top + 12, left + 10 * k : left + 10 * k + 9] = k
    return np.roll(labels, shift, axis=0)


def add(measure: Any, prediction: NDArray, truth: NDArray) -> dict[str, float]:
    return measure.update(Labelling(prediction), Labelling(truth))


def test_numbers_are_means_over_pictures_and_then_classes() -> None:
    measure = SurfaceMeasure(CLASSES, spacing=(0.5, 2.0), tolerance=0.6)
    pairs = [(picture(seed, seed + 1), picture(seed)) for seed in range(3)]
    rows = [add(measure, *pair) for pair in pairs]
    found = [[surface_distances(p == k, t == k, spacing=(0.5, 2.0)) for p, t in pairs] for k in (1, 2)]
    expected = {
        "hd": [[f.hausdorff() for f in of_class] for of_class in found],
        "hd95": [[f.hausdorff(95) for f in of_class] for of_class in found],
        "assd": [[f.average_symmetric() for f in of_class] for of_class in found],
        "nsd": [[f.normalised_surface_dice(0.6) for f in of_class] for of_class in found],
        "surface_missing": [[0.0] * 3] * 2,
    }
    scores = measure.scores(np.ones((1, 3)))
    for name, values in expected.items():
        assert scores[name] == pytest.approx(np.mean(values))
        assert scores[f"{name}/cell"] == pytest.approx(np.mean(values[0]))
        assert [row[f"{name}/wall"] for row in rows] == pytest.approx(values[1])
    assert not any("background" in name for name in scores)


@pytest.mark.parametrize(("surface", "variant"), [("voxels", "pooled"), ("elements", "weighted")])
def test_definitions_are_those_asked_for(surface: Any, variant: Any) -> None:
    measure = SurfaceMeasure(CLASSES, surface=surface, variant=variant)
    prediction, truth = picture(1, 3), picture(1)
    row = add(measure, prediction, truth)
    found = surface_distances(prediction == 1, truth == 1, surface=surface)
    assert row["hd95/cell"] == found.hausdorff(95, variant)
    assert row["nsd/cell"] == found.normalised_surface_dice(2.0)


@pytest.mark.parametrize(("missing", "distance"), [("diagonal", 50 * np.sqrt(5)), ("inf", np.inf), ("nan", np.nan)])
def test_a_class_on_one_side_only(missing: Any, distance: float) -> None:
    measure = SurfaceMeasure(CLASSES, spacing=(1.25, 2.0), missing=missing)  # 40 x 50 pixels: 50 x 100 units
    truth = picture(0)
    row = add(measure, np.where(truth == 1, 0, truth), truth)
    for name in ("hd/cell", "hd95/cell", "assd/cell"):
        assert row[name] == pytest.approx(distance, nan_ok=True)
    assert (row["nsd/cell"], row["nsd/wall"], row["nsd"]) == (0, 1, 0.5)
    assert (row["surface_missing/cell"], row["surface_missing"]) == (1, 0.5)
    invented = add(measure, truth, np.where(truth == 1, 0, truth))
    assert invented["hd95/cell"] == pytest.approx(distance, nan_ok=True)
    assert measure.scores(np.ones((1, 2)))["hd95/wall"] == 0


def test_a_class_on_neither_side_is_left_out() -> None:
    measure = SurfaceMeasure(CLASSES)
    truth = np.where(picture(0) == 2, 0, picture(0))
    row = add(measure, truth, truth)
    assert np.isnan(row["hd95/wall"])
    assert (row["hd95"], row["nsd"], row["surface_missing"]) == (0, 1, 0)
    empty = add(measure, np.zeros_like(truth), np.zeros_like(truth))
    assert np.isnan(list(empty.values())).all()
    assert measure.scores(np.ones((1, 2)))["nsd"] == 1
    infinite = SurfaceMeasure(CLASSES, missing="inf")
    add(infinite, truth, np.zeros_like(truth))
    add(infinite, truth, truth)
    scores = infinite.scores(np.array([[1.0, 1.0], [0.0, 2.0]]))
    assert scores["hd"].tolist() == [np.inf, 0]


@pytest.mark.parametrize("measure", [SurfaceMeasure(CLASSES), CenterlineMeasure(CLASSES, ["wall"])])
def test_what_is_predicted_at_ignored_pixels_does_not_matter(measure: Any) -> None:
    prediction, truth = picture(3, 2), picture(3)
    truth[8:20] = 255
    assert add(measure, prediction, truth) == add(measure, np.where(truth == 255, 9, prediction), truth)


def test_ignored_pixels_are_taken_out_of_both() -> None:
    prediction, truth = picture(3, 2), picture(3)
    truth[8:20] = 255
    row = add(SurfaceMeasure(CLASSES), prediction, truth)
    assert row["hd/cell"] == surface_distances(prediction == 1, truth == 1, ignore=truth == 255).hausdorff()
    row = add(CenterlineMeasure(CLASSES, ["cell"]), prediction, truth)
    assert row["cldice/cell"] == centerline_overlap(prediction == 1, truth == 1, ignore=truth == 255).dice()


def test_overlapping_classes() -> None:
    labels, moved = picture(2), picture(2, 2)
    truth = np.stack([labels == 1, labels > 0, labels == 2]).astype(np.int8)
    found = np.stack([moved == 1, moved > 0, moved == 2])
    row = add(SurfaceMeasure(("cell", "any", "wall")), found, truth)
    assert row["hd95/any"] == surface_distances(moved > 0, labels > 0).hausdorff(95)


def test_centerlines_are_means_over_pictures_of_the_named_classes() -> None:
    measure = CenterlineMeasure(CLASSES, ["wall"])
    pairs = [(picture(seed, 1), picture(seed)) for seed in range(2)]
    pairs += [(np.zeros((40, 50), int), picture(5)), (np.zeros((40, 50), int), np.zeros((40, 50), int))]
    rows = [add(measure, *pair)["cldice/wall"] for pair in pairs]
    assert rows[:2] == [centerline_overlap(p == 2, t == 2).dice() for p, t in pairs[:2]]
    assert rows[2] == 0
    assert np.isnan(rows[3])
    scores = measure.scores(np.ones((1, 4)))
    assert scores.keys() == {"cldice/wall"}
    assert scores["cldice/wall"] == pytest.approx(np.mean(rows[:3]))


def test_in_an_evaluation_with_intervals_and_in_a_comparison() -> None:
    good, bad = (Evaluator(CLASSES, measures=[SurfaceMeasure(CLASSES), CenterlineMeasure(CLASSES, ["wall"])]) for _ in range(2))
    for seed in range(6):
        good.add(str(seed), Labelling(picture(seed, seed % 2)), Labelling(picture(seed)))
        bad.add(str(seed), Labelling(picture(seed, 4 + seed % 3)), Labelling(picture(seed)))
    evaluation = good.finish("val")
    assert evaluation.summary["hd95"] == pytest.approx(0.5)
    low, high = (evaluation.intervals or {})["hd95"]
    assert 0 <= low < 0.5 < high <= 1
    assert score_intervals(good.scores, 6)["cldice/wall"].low > 0
    compared = compare_scores(good.scores, bad.scores, 6, lower_is_better=("hd95",))["hd95"]
    assert compared.difference < 0
    assert compared.better == 1


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match=r"clDice of 'wal': not a class; .* did you mean 'wall'"):
        CenterlineMeasure(CLASSES, ["wal"])
    with pytest.raises(ConfigError, match="missing is 'zero'"):
        SurfaceMeasure(CLASSES, missing="zero")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tolerance -1"):
        SurfaceMeasure(CLASSES, tolerance=-1)
    with pytest.raises(ConfigError, match="spacing 0"):
        SurfaceMeasure(CLASSES, spacing=0)
    with pytest.raises(DataError, match="the truth holds 7"):
        add(SurfaceMeasure(CLASSES), np.zeros((2, 2), int), np.full((2, 2), 7))
