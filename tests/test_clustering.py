"""Rand and information scores against scikit-image, against the definition over all pairs of pixels, and on real membranes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import metrics as skimage_metrics

from delineate.metrics import (
    adapted_rand_error,
    best_over_thresholds,
    joint_counts,
    pixel_error,
    segments_of,
    v_info,
    v_rand,
    variation_of_information,
)

label_maps = hnp.arrays(np.int64, st.tuples(st.just(3), st.integers(1, 6)), elements=st.integers(0, 4))


@st.composite
def pairs_of_maps(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first = draw(label_maps)
    return first, draw(hnp.arrays(np.int64, first.shape, elements=st.integers(0, 4)))


def blocks(seed: int, shape: tuple[int, int] = (60, 80), segments: int = 30) -> NDArray[np.int64]:
    """A map of random segments with some background."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, segments, (shape[0] // 10, shape[1] // 10))
    return np.kron(values, np.ones((10, 10), np.int64))


def over_pairs(prediction: NDArray, truth: NDArray, alpha: float, foreground: bool, singletons: bool, distinct: bool) -> float:
    """V^Rand by its meaning: of all ordered pairs of pixels, those together in both, in one and in the other."""
    p, t = prediction.reshape(-1).copy(), truth.reshape(-1)
    if singletons:
        p[p == 0] = 1000 + np.flatnonzero(p == 0)
    if foreground:
        p, t = p[t != 0], t[t != 0]
    if p.size == 0:
        return math.nan
    same_p, same_t = p[:, None] == p, t[:, None] == t
    if distinct:
        np.fill_diagonal(same_p, False)
        np.fill_diagonal(same_t, False)
    whole = alpha * same_p.sum() + (1 - alpha) * same_t.sum()
    return float((same_p & same_t).sum() / whole) if whole else 1.0


@settings(max_examples=200, deadline=None)
@given(pairs_of_maps(), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.booleans(), st.booleans(), st.booleans())
def test_v_rand_is_the_share_of_pairs(
    maps: tuple[NDArray, NDArray], alpha: float, foreground: bool, singletons: bool, distinct: bool
) -> None:
    prediction, truth = maps
    options = {"foreground": foreground, "singletons": singletons, "distinct_pairs": distinct}
    ours = v_rand(prediction, truth, alpha=alpha, **options)
    for score, a in ((ours.score, alpha), (ours.split, 0.0), (ours.merge, 1.0)):
        np.testing.assert_allclose(score, over_pairs(prediction, truth, a, foreground, singletons, distinct))
    np.testing.assert_allclose(adapted_rand_error(prediction, truth, alpha=alpha, **options), 1 - ours.score)


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_adapted_rand_error_is_scikit_images(alpha: float) -> None:
    truth, prediction = blocks(1), blocks(2, segments=20)
    prediction[::7] = truth[::7]
    theirs, first, second = skimage_metrics.adapted_rand_error(truth, prediction, alpha=1 - alpha)
    options = {"singletons": False, "distinct_pairs": True}
    assert adapted_rand_error(prediction, truth, alpha=alpha, **options) == pytest.approx(theirs, rel=1e-12)
    # What it documents as precision is divided by the pairs of the truth: it is the recall, and its alpha is ours from one.
    assert v_rand(prediction, truth, **options).split == pytest.approx(first, rel=1e-12)
    assert v_rand(prediction, truth, **options).merge == pytest.approx(second, rel=1e-12)


def test_the_challenge_differs_from_scikit_image_where_nothing_is_predicted() -> None:
    truth, prediction = blocks(1), blocks(1)
    prediction[20:40] = 0  # a third is left open
    theirs = skimage_metrics.adapted_rand_error(truth, prediction)[0]
    assert adapted_rand_error(prediction, truth, singletons=False, distinct_pairs=True) == pytest.approx(theirs)
    assert adapted_rand_error(prediction, truth) != pytest.approx(theirs, abs=0.02)
    assert (
        v_rand(prediction, truth).merge
        > v_rand(prediction, truth, singletons=False).merge
        == pytest.approx(over_pairs(prediction, truth, 1.0, True, False, False))
    )


@settings(max_examples=50, deadline=None)
@given(pairs_of_maps())
def test_variation_of_information_is_scikit_images(maps: tuple[NDArray, NDArray]) -> None:
    prediction, truth = maps
    theirs = skimage_metrics.variation_of_information(truth, prediction)
    ours = variation_of_information(prediction, truth, foreground=False, singletons=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert ours.total == pytest.approx(theirs.sum(), abs=1e-12)
    if (truth != 0).any():
        theirs = skimage_metrics.variation_of_information(truth, prediction, ignore_labels=(0,))
        np.testing.assert_allclose(variation_of_information(prediction, truth, singletons=False), theirs, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(pairs_of_maps(), st.booleans(), st.booleans())
def test_v_info_follows_from_the_entropies(maps: tuple[NDArray, NDArray], foreground: bool, singletons: bool) -> None:
    prediction, truth = (x.reshape(-1) for x in maps)
    ours = v_info(prediction, truth, foreground=foreground, singletons=singletons)
    distance = variation_of_information(prediction, truth, foreground=foreground, singletons=singletons)
    p = np.where((prediction == 0) & singletons, 1000 + np.arange(prediction.size), prediction)
    keep = (truth != 0) | (not foreground)
    p, t = p[keep], truth[keep]
    if p.size == 0:
        assert math.isnan(ours.score)
        assert math.isnan(distance.split)
        return

    def entropy(*values: NDArray) -> float:
        share = np.unique(np.stack(values), axis=1, return_counts=True)[1] / p.size
        return float(-(share * np.log2(share)).sum())

    mutual = entropy(p) + entropy(t) - entropy(p, t)
    for score, whole in ((ours.score, (entropy(p) + entropy(t)) / 2), (ours.split, entropy(p)), (ours.merge, entropy(t))):
        np.testing.assert_allclose(score, mutual / whole if whole > 1e-12 else 1.0, atol=1e-9)
    np.testing.assert_allclose(distance, (entropy(p, t) - entropy(t), entropy(p, t) - entropy(p)), atol=1e-9)


def test_split_and_merge_are_told_apart() -> None:
    whole, halves = np.ones((10, 10), int), np.ones((10, 10), int)
    halves[5:] = 2
    for score in (v_rand, v_info):
        assert score(halves, halves).score == pytest.approx(1)
        split, merged = score(halves, whole), score(whole, halves)
        assert split.merge == 1 > split.split
        assert merged.split == 1 > merged.merge
    assert variation_of_information(halves, whole) == pytest.approx((1, 0))


def test_numbers_of_segments_do_not_matter() -> None:
    truth, prediction = blocks(3), blocks(4)
    rng = np.random.default_rng(0)
    names = np.concatenate([[0], np.unique(rng.integers(1, 2**40, 60))])
    renamed = names[prediction]
    for score in (v_rand, v_info):
        assert score(renamed, truth) == pytest.approx(score(prediction, truth))


def test_large_pictures_are_joined_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, prediction = blocks(5), blocks(6)
    whole = joint_counts(prediction, truth)
    huge = joint_counts(prediction * 2**30, truth * 2**30)
    monkeypatch.setattr("delineate.metrics.overlap._CHUNK", 997)
    for a, b in zip(joint_counts(prediction, truth), whole, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(joint_counts(prediction * 2**30, truth * 2**30), huge, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_counted_is_nan_and_nothing_to_join_is_one() -> None:
    empty, full = np.zeros((3, 3), int), np.ones((3, 3), int)
    assert math.isnan(v_rand(full, empty).score)
    assert math.isnan(v_info(full, empty).score)
    each = np.arange(1, 10).reshape(3, 3)
    assert v_rand(each, each, distinct_pairs=True).score == 1
    assert v_info(full, full) == (1, 1, 1)
    assert v_rand(empty, full).split == pytest.approx(1 / 9)  # every pixel on its own
    with pytest.raises(ValueError, match="both must be the same"):
        v_rand(full, full[:2])
    with pytest.raises(ValueError, match="holds -1; segments are numbered from 0"):
        v_rand(full - 2, full)
    with pytest.raises(ValueError, match="dtype float64"):
        v_rand(full * 1.0, full)
    with pytest.raises(ValueError, match="alpha is 2"):
        v_rand(full, full, alpha=2)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.int64, st.integers(0, 40), elements=st.sampled_from([0, 1, 2, 3, 70_000, 2**40])),
    st.integers(0, 2**32 - 1),
)
def test_joint_counts_are_those_of_unique(truth: NDArray, seed: int) -> None:
    """Small and huge labels take different ways to the same table."""
    prediction = np.random.default_rng(seed).choice([0, 5, 2**33], truth.shape)
    table = joint_counts(prediction, truth)
    pairs, pixels = np.unique(np.stack([truth, prediction]), axis=1, return_counts=True)
    np.testing.assert_array_equal(np.stack([table.truth_ids[table.truth], table.prediction_ids[table.prediction]]), pairs)
    np.testing.assert_array_equal(table.pixels, pixels)
    np.testing.assert_array_equal(table.truth_pixels, np.unique(truth, return_counts=True)[1])
    np.testing.assert_array_equal(table.prediction_pixels, np.unique(prediction, return_counts=True)[1])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0]), st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_pixel_error_tries_every_threshold(pixels: list[tuple[float, bool, bool]]) -> None:
    probability, truth, valid = (np.array(column) for column in zip(*pixels, strict=True))
    best = 0.0
    for threshold in (-1.0, 0.0, 0.1, 0.5, 0.7):
        positive = probability[valid] > threshold
        if positive.sum() + truth[valid].sum():
            best = max(best, 2 * (positive & truth[valid]).sum() / (positive.sum() + truth[valid].sum()))
    ours = pixel_error(probability, truth, valid=valid)
    if truth[valid].any():
        assert ours == pytest.approx(1 - best)
    else:
        assert math.isnan(ours)


def test_components_touch_by_edges_only() -> None:
    interior = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert segments_of(interior).max() == 2
    assert segments_of(interior, 1.0).max() == 0  # above the threshold, not at it


def test_thinning_makes_the_width_of_membranes_irrelevant() -> None:
    truth = np.ones((40, 40), bool)
    truth[:, 20] = False  # a thin membrane
    wide = truth.copy()
    wide[:, 16:25] = False
    labels = segments_of(truth)
    thinned = segments_of(wide, thin=True)
    assert v_rand(segments_of(wide), labels).score < 0.95
    assert v_rand(thinned, labels).score == pytest.approx(1)
    assert (thinned == 0).sum() == 40  # one pixel in each row is left


def test_best_threshold_is_found() -> None:
    truth = np.zeros((30, 30), bool)
    truth[:, :14], truth[:, 16:] = True, True
    faint = np.where(truth, 0.9, 0.65)  # a membrane that is only a little darker
    best = best_over_thresholds([faint, faint], [segments_of(truth)] * 2, thin=False)
    assert best.score == pytest.approx(1)
    assert 0.65 <= best.threshold < 0.9
    assert best.per_image == pytest.approx((1, 1))
    info = best_over_thresholds([faint], [segments_of(truth)], score=v_info, thresholds=[0.5])
    assert info.score == 0  # merged: nothing is known of the two cells
    with pytest.raises(ValueError, match="1 maps and 2 truths"):
        best_over_thresholds([faint], [truth, truth])


def test_real_membranes(real_data: Path) -> None:
    """ISBI-2012: a blurred truth scores high, the picture taken for a probability low, broken walls merge cells."""
    folder = real_data / "isbi2012_em" / "train"
    truth = np.asarray(Image.open(folder / "label" / "24.png")) > 127
    image = np.asarray(Image.open(folder / "image" / "24.png")) / 255
    labels = segments_of(truth)
    blurred = gaussian_filter(truth.astype(float), 1.0)
    good, poor = (best_over_thresholds([m], [labels]) for m in (blurred, image))
    assert good.score > 0.95 > poor.score
    assert pixel_error(blurred, truth) < 0.05 < pixel_error(image, truth)
    broken = truth | (np.random.default_rng(0).random(truth.shape) < 0.6)
    scores = v_rand(segments_of(broken), labels)
    assert scores.merge < 0.5 < scores.split
