"""Objects from label pictures: discs that touch, generated blobs, classes, borders of the picture, empty pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.measure import label

from delineate.data.synthetic import blobs
from delineate.data.targets import border_band, distance_map
from delineate.errors import ConfigError
from delineate.metrics.objects import match_objects
from delineate.predict.objects import METHODS, Objects, extract_objects


def discs(centres: list[tuple[int, int]], radius: float, size: tuple[int, int] = (80, 120)) -> np.ndarray:
    """Instance map of discs; where two meet, the nearer centre owns the pixel."""
    y, x = np.mgrid[: size[0], : size[1]]
    distances = np.stack([np.hypot(y - cy, x - cx) for cy, cx in centres])
    return np.where(distances.min(0) <= radius, distances.argmin(0) + 1, 0).astype(np.int32)


def inputs(truth: np.ndarray, method: str, classes: np.ndarray | None = None) -> dict:
    """What a perfect network would tell about `truth`."""
    given = {"classes": (truth > 0).astype(np.uint8) if classes is None else classes, "method": method}
    if method == "border":
        given["border"] = border_band(truth).numpy()
    if method == "distance":
        given["distance"] = distance_map(truth).numpy().astype(np.float16)
    return given


def mean_best_iou(found: Objects, truth: np.ndarray) -> float:
    best = []
    for number in range(1, truth.max() + 1):
        mask = truth == number
        ids, overlaps = np.unique(found.instance_map[mask], return_counts=True)
        ious = [n / ((found.instance_map == i) | mask).sum() for i, n in zip(ids, overlaps, strict=True) if i > 0]
        best.append(max(ious, default=0.0))
    return float(np.mean(best))


TOUCHING = [(20, 20), (20, 45), (45, 33), (60, 90), (60, 106), (10, 100)]  # three in contact, two that overlap, one alone


@pytest.mark.parametrize("method", ["watershed", "border", "distance"])
def test_touching_discs_are_told_apart(method: str) -> None:
    truth = discs(TOUCHING, 13 if method != "watershed" else 12.6)
    found = extract_objects(**inputs(truth, method))
    assert len(found) == len(TOUCHING)
    assert mean_best_iou(found, truth) > 0.97
    assert np.array_equal(found.instance_map > 0, truth > 0)  # nothing of the foreground is lost


def test_components_cannot_tell_them_apart() -> None:
    assert len(extract_objects(**inputs(discs(TOUCHING, 13), "components"))) < len(TOUCHING)


@pytest.mark.parametrize(("method", "least"), [("border", 0.99), ("distance", 0.97)])
def test_blobs(method: str, least: float) -> None:
    for seed in range(3):
        truth = blobs(192, seed, count=25)[1]
        found = extract_objects(**inputs(truth, method))
        matching = match_objects(found.instance_map, truth, 0.75)
        assert matching.false_negatives == 0
        assert matching.false_positives <= (0 if method == "border" else 1)
        assert mean_best_iou(found, truth) > least


def test_a_noisy_distance_still_gives_one_seed_an_object() -> None:
    truth = discs(TOUCHING, 13)
    noisy = distance_map(truth).numpy() + np.random.default_rng(0).normal(0, 0.015, truth.shape)
    found = extract_objects((truth > 0).astype(np.uint8), method="distance", distance=noisy)
    assert len(found) == len(TOUCHING)


@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3)))
def test_components_are_those_of_scipy_class_by_class(classes: np.ndarray) -> None:
    found = extract_objects(classes)
    expected = np.zeros(classes.shape, np.int64)
    labels = []
    for value in range(1, 4):
        pieces, count = ndimage.label(classes == value)  # four neighbours
        expected = np.where(pieces > 0, pieces + len(labels), expected)
        labels += [value] * count
    assert len(found) == len(labels)
    assert len(np.unique(found.instance_map * 1000 + expected)) == len(labels) + bool((classes == 0).any())  # one to one
    assert sorted(found.labels) == labels
    np.testing.assert_array_equal(found.instance_map, label(classes, background=0, connectivity=1))


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 2)),
    st.sampled_from(METHODS),
    st.integers(0, 2**31),
)
def test_whatever_the_input_the_parts_agree(classes: np.ndarray, method: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    foreground = rng.random(classes.shape).astype(np.float16)
    found = extract_objects(
        classes,
        method=method,
        foreground=foreground,
        border=rng.random(classes.shape) < 0.3,
        distance=rng.random(classes.shape),
    )
    assert set(np.unique(found.instance_map)) - {0} == set(range(1, len(found) + 1))
    assert not found.instance_map[classes == 0].any()
    assert found.boxes.shape == (len(found), 4)
    for number in range(1, len(found) + 1):
        mask = found.instance_map == number
        rows, columns = np.nonzero(mask)
        assert found.boxes[number - 1].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found.scores[number - 1] == pytest.approx(foreground[mask].astype(float).mean(), abs=1e-3)
        votes = np.bincount(classes[mask], minlength=3)
        assert votes[found.labels[number - 1]] == votes[1:].max()
        assert ndimage.label(mask)[1] == 1
    if method in ("components", "watershed"):
        assert np.array_equal(found.instance_map > 0, classes > 0)


def test_small_and_uncertain_objects_are_left_out_and_the_others_renumbered() -> None:
    classes = np.zeros((10, 30), np.uint8)
    classes[1:3, 1:3], classes[1:6, 10:15], classes[1:9, 20:28] = 1, 1, 2
    foreground = np.where(classes == 2, 0.4, 0.9)
    assert extract_objects(classes, foreground=foreground).scores.tolist() == pytest.approx([0.9, 0.9, 0.4])
    large = extract_objects(classes, foreground=foreground, min_area=5)
    assert large.labels.tolist() == [1, 2]
    assert np.unique(large.instance_map).tolist() == [0, 1, 2]
    certain = extract_objects(classes, foreground=foreground, min_area=5, min_score=0.5)
    assert certain.boxes.tolist() == [[10, 1, 15, 6]]


def test_an_object_of_two_classes_gets_that_of_most_of_its_pixels() -> None:
    truth = discs([(20, 20), (20, 44)], 13, (40, 70))
    classes = np.where(truth == 1, 1, 2 * (truth == 2))
    classes[18:22, 15:22] = 2  # a mistake inside the first disc
    found = extract_objects(classes, method="border", border=border_band(truth).numpy())
    assert found.labels.tolist() == [1, 2]


def test_objects_cut_by_the_border_of_the_picture_are_whole() -> None:
    truth = discs([(0, 20), (40, 0), (79, 119)], 15)
    for method in METHODS:
        found = extract_objects(**inputs(truth, method))
        assert len(found) == 3, method
        assert np.array_equal(found.instance_map > 0, truth > 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_pictures(method: str, value: int) -> None:
    classes = np.full((5, 7), value, np.uint8)
    found = extract_objects(classes, method=method, border=np.zeros((5, 7), bool), distance=np.full((5, 7), value, float))
    assert len(found) == value
    assert found.boxes.tolist() == [[0, 0, 7, 5]] * value


def test_a_piece_that_is_all_border_is_no_object() -> None:
    classes = np.ones((6, 6), np.uint8)
    assert len(extract_objects(classes, method="border", border=np.ones((6, 6), bool))) == 0


def test_what_is_missing_is_named() -> None:
    classes = np.ones((3, 3), np.uint8)
    with pytest.raises(ConfigError, match="outputs 'border'"):
        extract_objects(classes, method="border")
    with pytest.raises(ConfigError, match="outputs 'distance'"):
        extract_objects(classes, method="distance")
    with pytest.raises(ConfigError, match="did you mean 'watershed'"):
        extract_objects(classes, method="watersheds")  # pyright: ignore[reportArgumentType]


def test_objects_of_a_large_picture_are_measured_whole() -> None:
    """More than four million pixels are summed in bands: one object lies across their border, at row 1997."""
    classes = np.zeros((2100, 2100), np.uint8)
    classes[5:9, 5:9] = 1
    classes[1990:2010, 30:40] = 2
    classes[2090:2095, 2000:2100] = 1
    foreground = np.random.default_rng(0).random(classes.shape).astype(np.float32)
    found = extract_objects(classes, foreground=foreground, min_area=1, min_score=0.0)
    assert found.labels.tolist() == [1, 2, 1]
    expected = [
        foreground[area].mean(dtype=float) for area in (np.s_[5:9, 5:9], np.s_[1990:2010, 30:40], np.s_[2090:2095, 2000:2100])
    ]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)
