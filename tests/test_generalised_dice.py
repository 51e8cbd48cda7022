"""Generalised Dice against MONAI and torchmetrics where they agree with the definition, and where they do not."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics.generalized_dice import GeneralizedDiceScore as MonaiScore
from monai.metrics.generalized_dice import compute_generalized_dice
from numpy.typing import NDArray
from torchmetrics.functional.segmentation import generalized_dice_score
from torchmetrics.segmentation import GeneralizedDiceScore as TorchmetricsScore

from delineate.metrics import (
    ConfusionMatrix,
    MultilabelConfusion,
    Overlap,
    bootstrap_interval,
    generalised_dice,
    paired_bootstrap,
)

Weights = Literal["square", "simple", "uniform"]
WEIGHTS: tuple[Weights, ...] = ("square", "simple", "uniform")
masks = hnp.arrays(np.int64, (3, 4, 3, 5), elements=st.integers(0, 1))  # (N, K, H, W): overlapping, absent, empty
ids = hnp.arrays(np.int64, (3, 4, 5), elements=st.integers(0, 3))


def of_masks(prediction: NDArray[Any], truth: NDArray[Any]) -> Overlap[NDArray[Any]]:
    counts = []
    for p, t in zip(prediction, truth, strict=True):
        confusion = MultilabelConfusion(p.shape[0])
        confusion.update(p, t)
        counts.append(confusion.counts)
    return MultilabelConfusion.from_counts(np.stack(counts)).overlap


@settings(max_examples=60, deadline=None)
@given(masks, masks, st.lists(st.integers(0, 11), max_size=8), st.sampled_from(WEIGHTS))
def test_the_scores_of_monai(prediction: NDArray, truth: NDArray, emptied: list[int], weights: Weights) -> None:
    prediction, truth = prediction.copy(), truth.copy()
    for place in emptied:  # absent classes; a low number empties the prediction too
        truth[place // 4, place % 4] = 0
        prediction[place // 4, place % 4] *= place > 5
    tensors = [torch.from_numpy(x).float() for x in (prediction, truth)]
    theirs = compute_generalized_dice(*tensors, weight_type=weights, sum_over_classes=True)[:, 0]
    overlap = of_masks(prediction, truth)
    np.testing.assert_allclose(generalised_dice(overlap, weights, absent=1), theirs.numpy(), rtol=3e-6)
    metric = MonaiScore(reduction="mean", weight_type=weights)
    metric(*tensors)
    assert generalised_dice(overlap, weights, absent=1).mean() == pytest.approx(float(metric.aggregate()), rel=3e-6)
    foreground = compute_generalized_dice(*tensors, include_background=False, weight_type=weights, sum_over_classes=True)[:, 0]
    ours = generalised_dice(overlap.of_classes(range(1, 4)), weights, absent=1)
    np.testing.assert_allclose(ours, foreground.numpy(), rtol=3e-6)


@settings(max_examples=60, deadline=None)
@given(ids, ids, st.sampled_from([("square", "square"), ("simple", "simple"), ("uniform", "linear")]))
def test_the_scores_of_torchmetrics_where_every_class_is_there(p: NDArray, t: NDArray, names: tuple[Weights, Any]) -> None:
    t = t.copy()
    t[:, 0, :4] = np.arange(4)
    theirs = TorchmetricsScore(num_classes=4, weight_type=names[1], input_format="index")
    theirs.update(torch.from_numpy(p), torch.from_numpy(t))
    hot = [np.moveaxis(np.eye(4, dtype=np.int64)[x], -1, 1) for x in (p, t)]
    ours = generalised_dice(of_masks(hot[0], hot[1]), names[0])
    assert ours.mean() == pytest.approx(float(theirs.compute()), rel=3e-6)


def test_where_torchmetrics_differs() -> None:
    """It gives an absent class the largest weight *of that class* in the batch: 0 for a single picture, so that inventing a
    class costs nothing; and it looks that weight up at transposed places, so that a score depends on the rest of the batch.
    """
    truth = torch.tensor([[[0] * 8 + [1] * 2], [[0, 1, 1, 1, 1, 1, 1, 2, 2, 2]]])
    prediction = truth.clone()
    prediction[0, 0, 6:8] = 2  # a class that picture 0 does not have

    def theirs(pictures: list[int]) -> list[float]:
        return generalized_dice_score(prediction[pictures], truth[pictures], 3, input_format="index").tolist()

    hot = [torch.nn.functional.one_hot(x, 3).movedim(-1, 1).numpy() for x in (prediction, truth)]
    ours = generalised_dice(of_masks(hot[0], hot[1]))
    # w = 1/64, 1/4 and, for class 2, 1/4 again: 2 (6/64 + 2/4) / (14/64 + 4/4 + 2/4)
    assert ours == pytest.approx([2 * (6 / 64 + 2 / 4) / (14 / 64 + 4 / 4 + 2 / 4), 1.0])
    monai = compute_generalized_dice(*(torch.from_numpy(x) for x in hot), sum_over_classes=True)[:, 0]
    assert ours == pytest.approx(monai.numpy(), rel=1e-6)
    assert theirs([0])[0] == pytest.approx(2 * (6 / 64 + 2 / 4) / (14 / 64 + 4 / 4), rel=1e-6)  # class 2 has weight 0
    assert theirs([0, 1])[0] != pytest.approx(theirs([0])[0], rel=1e-3)  # the same picture, another batch


def test_weights_by_hand() -> None:
    picture = Overlap(np.array([90, 5]), np.array([95, 5]), np.array([90, 10]))
    assert generalised_dice(picture, "uniform") == pytest.approx(190 / 200)
    assert generalised_dice(picture, "simple") == pytest.approx(2 * (90 / 90 + 5 / 10) / (185 / 90 + 15 / 10))
    assert generalised_dice(picture) == pytest.approx(2 * (90 / 90**2 + 5 / 10**2) / (185 / 90**2 + 15 / 10**2))
    large = Overlap(*(np.array([2**40, 2**40]) for _ in range(3)))  # T^2 does not overflow
    assert generalised_dice(large) == 1
    with pytest.raises(ValueError, match="weights is 'linear', expected 'square', 'simple', 'uniform'"):
        generalised_dice(picture, "linear")  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_hard_cases(weights: Weights, recwarn: pytest.WarningsRecorder) -> None:
    zero, some = np.array([0, 0]), np.array([3, 0])
    assert math.isnan(generalised_dice(Overlap(zero, zero, zero), weights))
    assert generalised_dice(Overlap(zero, zero, zero), weights, absent=1) == 1
    assert generalised_dice(Overlap(zero, some, zero), weights) == 0  # no truth, false positives
    assert generalised_dice(Overlap(zero, zero, some), weights) == 0
    assert not recwarn.list


def test_the_mean_over_pictures_has_an_interval() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, (12, 20, 20))
    overlaps = []
    for share in (0.8, 0.6):
        prediction = np.where(rng.random(truth.shape) < share, truth, rng.integers(0, 3, truth.shape))
        counts = []
        for p, t in zip(prediction, truth, strict=True):
            matrix = ConfusionMatrix(3)
            matrix.update(p, t)
            counts.append(matrix.counts)
        overlaps.append(ConfusionMatrix.from_counts(np.stack(counts)).overlap)
    better, worse = (generalised_dice(overlap) for overlap in overlaps)
    low, high = bootstrap_interval(better, resamples=200)
    assert low < better.mean() < high
    compared = paired_bootstrap(better, worse, resamples=200)
    assert 0 < compared.low < compared.difference < compared.high
