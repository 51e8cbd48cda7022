"""Bootstrap intervals against plain resampling, scipy, and what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from delineate.errors import ConfigError
from delineate.metrics import ConfusionMatrix, ObjectScores, bootstrap_interval, paired_bootstrap
from delineate.metrics.bootstrap import Resampling, compare_scores, mean_score, score_intervals

rng = np.random.default_rng(3)


def confusion_of_pictures(pictures: int, skill: float = 0.8) -> np.ndarray:
    """(N, 3, 3) counts of pictures that differ in how hard they are."""
    counts = np.zeros((pictures, 3, 3), np.int64)
    for n in range(pictures):
        for c, pixels in enumerate(rng.integers(50, 500, 3)):
            right = rng.binomial(pixels, min(1.0, skill * rng.uniform(0.8, 1.2)))
            counts[n, c, c], counts[n, c, (c + 1) % 3] = right, pixels - right
    return counts


def mean_iou(counts: np.ndarray) -> np.ndarray:
    return ConfusionMatrix.from_counts(counts).mean_iou()


def test_resampling_sums_is_resampling_pictures() -> None:
    """The same draws, made picture by picture and scored from scratch, give the same interval."""
    counts = confusion_of_pictures(7)
    draws = np.random.default_rng(11).multinomial(7, np.full(7, 1 / 7), size=200)
    scores = [
        float(mean_iou(np.concatenate([[counts[n]] * times for n, times in enumerate(draw) if times]).sum(0))) for draw in draws
    ]
    expected = np.quantile(scores, [0.05, 0.95])
    np.testing.assert_allclose(bootstrap_interval(counts, mean_iou, confidence=0.9, resamples=200, seed=11), expected)


def test_the_interval_is_scipys() -> None:
    scores = rng.uniform(0.5, 1.0, 30)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0))
    ours = bootstrap_interval(scores, resamples=20_000)
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=2e-3)


def test_blocks_of_resamples_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = rng.uniform(size=40)
    whole = bootstrap_interval(scores, resamples=501)
    monkeypatch.setattr("delineate.metrics.bootstrap._BLOCK", 40 * 100)
    assert bootstrap_interval(scores, resamples=501) == pytest.approx(whole, rel=1e-12)
    drawn = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=501)
    np.testing.assert_allclose(whole, np.quantile(drawn @ scores / 40, [0.025, 0.975]))


def test_a_seed_is_a_promise() -> None:
    scores = rng.uniform(size=20)
    assert bootstrap_interval(scores, seed=1) == bootstrap_interval(scores, seed=1) != bootstrap_interval(scores, seed=2)


def test_scores_that_are_not_defined_are_left_out() -> None:
    low, high = bootstrap_interval(np.array([0.5, np.nan, 0.7, 0.9]))
    assert 0.5 <= low < 0.7 < high <= 0.9
    assert all(math.isnan(x) for x in bootstrap_interval(np.array([np.nan, np.nan])))
    low, high = bootstrap_interval(np.array([0.5]))
    assert low == high == 0.5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_interval_holds_the_mean_and_grows_with_confidence(scores: list[float]) -> None:
    values = np.array(scores)
    narrow, wide = (bootstrap_interval(values, confidence=c) for c in (0.5, 0.99))
    assert wide.low - 1e-12 <= narrow.low <= narrow.high <= wide.high + 1e-12
    assert wide.low - 1e-9 <= values.mean() <= wide.high + 1e-9


def test_it_covers_as_often_as_it_says() -> None:
    """95 % intervals of 60 draws from a known law hold its mean in 90 to 98 of 100 trials."""
    draws = np.random.default_rng(5).beta(5, 2, size=(300, 60))
    held = [low <= 5 / 7 <= high for low, high in (bootstrap_interval(d, resamples=400, seed=k) for k, d in enumerate(draws))]
    assert 0.90 <= np.mean(held) <= 0.98


def test_object_scores_are_resampled_too() -> None:
    sums = np.zeros((12, 10, 4))
    sums[..., 0], sums[..., 1], sums[..., 2] = rng.integers(5, 20, (12, 1)), 2, rng.integers(0, 5, (12, 1))
    observed = float(ObjectScores().with_sums(sums.sum(0)).mean_average_precision())
    low, high = bootstrap_interval(sums, lambda s: ObjectScores().with_sums(s).mean_average_precision())
    assert low < observed < high


def test_paired_comparison_sees_what_unpaired_intervals_hide() -> None:
    worse = confusion_of_pictures(40, 0.7)
    better = worse.copy()
    moved = np.minimum(5, worse[:, 0, 1])  # a few pixels of each picture, next to differences of hundreds between pictures
    better[:, 0, 0] += moved
    better[:, 0, 1] -= moved
    comparison = paired_bootstrap(better, worse, mean_iou)
    assert comparison.difference == pytest.approx(float(mean_iou(better.sum(0)) - mean_iou(worse.sum(0))))
    assert 0 < comparison.low < comparison.difference < comparison.high
    assert comparison.p_value == pytest.approx(2 / 2001)
    a, b = (bootstrap_interval(x, mean_iou) for x in (better, worse))
    assert a.low < b.high  # the intervals overlap
    back = paired_bootstrap(worse, better, mean_iou)
    assert back.difference == pytest.approx(-comparison.difference)
    assert back.p_value == comparison.p_value
    assert (comparison.better, back.better) == (1.0, 0.0)


def test_no_difference_is_no_surprise() -> None:
    scores = rng.uniform(size=25)
    same = paired_bootstrap(scores, scores)
    assert same == (0.0, 0.0, 0.0, 1.0, 0.5)
    trials = [
        paired_bootstrap(a, b, resamples=200, seed=k).p_value
        for k, (a, b) in enumerate(np.random.default_rng(8).uniform(size=(200, 2, 40)))
    ]
    assert 0.01 <= np.mean(np.array(trials) < 0.05) <= 0.12  # about one false alarm in twenty


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        bootstrap_interval(np.zeros(0))
    with pytest.raises(ValueError, match="give `reduce`"):
        bootstrap_interval(np.zeros((3, 2)))
    with pytest.raises(ConfigError, match="confidence 95"):
        bootstrap_interval(np.zeros(3), confidence=95)
    with pytest.raises(ConfigError, match="resamples 0"):
        bootstrap_interval(np.zeros(3), resamples=0)
    with pytest.raises(ConfigError, match="seed -1"):
        bootstrap_interval(np.zeros(3), seed=-1)
    with pytest.raises(ValueError, match="of the same pictures"):
        paired_bootstrap(np.zeros(3), np.zeros(4))


def test_many_scores_see_the_same_resamples() -> None:
    """Scores that are no sums, here a median over the drawn pictures, are resampled in the same way."""
    values = rng.uniform(size=15)

    def scores(draws: np.ndarray) -> dict[str, np.ndarray]:
        medians = [np.median(np.repeat(values, row.astype(int))) for row in draws]
        return {"mean": mean_score(draws, values), "median": np.array(medians)}

    intervals = score_intervals(scores, 15, Resampling(resamples=300, seed=4))
    assert intervals["mean"] == pytest.approx(bootstrap_interval(values, resamples=300, seed=4))
    drawn = np.random.default_rng(4).multinomial(15, np.full(15, 1 / 15), size=300)
    medians = [np.median(np.repeat(values, row)) for row in drawn]
    assert intervals["median"] == pytest.approx(np.quantile(medians, [0.025, 0.975]))


def test_lower_may_be_better() -> None:
    errors_a, errors_b = rng.uniform(0, 0.1, 20), rng.uniform(0.2, 0.3, 20)
    a, b = (lambda draws, v=v: {"error": mean_score(draws, v)} for v in (errors_a, errors_b))
    assert compare_scores(a, b, 20)["error"].better == 0.0
    comparison = compare_scores(a, b, 20, lower_is_better=("error",))["error"]
    assert comparison.better == 1.0
    assert comparison.difference == pytest.approx(errors_a.mean() - errors_b.mean())


def test_an_endless_distance_makes_an_endless_mean() -> None:
    distances = np.array([1.0, math.inf, 3.0])
    low, high = bootstrap_interval(distances)
    assert (low < 3.0, high) == (True, math.inf)
    assert bootstrap_interval(np.array([math.inf, math.inf])) == (math.inf, math.inf)
    same = paired_bootstrap(distances, distances)
    assert math.isnan(same.difference)
    assert (same.low, same.high, same.better) == (0.0, 0.0, 0.5)
