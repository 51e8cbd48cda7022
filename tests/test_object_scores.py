"""Matching of objects against brute force and StarDist's assignment; scores by hand and by torchmetrics' panoptic quality."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, label
from scipy.optimize import linear_sum_assignment
from torchmetrics.detection import PanopticQuality

from delineate.errors import DataError
from delineate.metrics import ObjectScores, match_objects, object_scores
from delineate.metrics.objects import THRESHOLDS, candidate_pairs

instance_maps = hnp.arrays(np.int32, (3, 8), elements=st.integers(0, 4))


def iou_matrix(prediction: NDArray, truth: NDArray) -> NDArray[np.float64]:
    """(M, N) IoU of each true and predicted object, mask by mask."""
    t_ids, p_ids = (np.unique(x[x > 0]) for x in (truth, prediction))
    pairs = [
        [((truth == t) & (prediction == p)).sum() / ((truth == t) | (prediction == p)).sum() for p in p_ids] for t in t_ids
    ]
    return np.array(pairs, float).reshape(len(t_ids), len(p_ids))


def brute_force(iou: NDArray, threshold: float) -> tuple[int, float]:
    """The most pairs, and the largest sum of IoU with that many, of all ways to pair."""
    if iou.shape[0] > iou.shape[1]:
        iou = iou.T
    best = (0, 0.0)
    for columns in permutations(range(iou.shape[1]), iou.shape[0]):
        picked = iou[np.arange(iou.shape[0]), list(columns)]
        picked = picked[picked >= threshold]
        best = max(best, (len(picked), float(picked.sum())))
    return best


def as_stardist_matches(iou: NDArray, threshold: float) -> tuple[int, float]:
    """The assignment as StarDist sets it up: costs of -1 a legal pair and a little less for its IoU, on the whole matrix."""
    if not iou.size:
        return 0, 0.0
    costs = -(iou >= threshold).astype(float) - iou / (2 * min(iou.shape))
    picked = iou[linear_sum_assignment(costs)]
    return int((picked >= threshold).sum()), float(picked[picked >= threshold].sum())


def grid_of_cells(seed: int, count: int = 12) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Square objects, and predictions of them that are shifted, missing, split, merged or invented."""
    rng = np.random.default_rng(seed)
    truth, prediction = np.zeros((count * 12, count * 12), np.int64), np.zeros((count * 12, count * 12), np.int64)
    for k in range(count * count):
        top, left = 12 * (k // count), 12 * (k % count)
        if rng.random() < 0.9:
            truth[top : top + 8, left : left + 8] = k + 1
        down, right = rng.integers(0, 4, 2)
        if rng.random() < 0.9:
            prediction[top + down : top + 8 + down, left + right : left + 8 + right] = 1000 + k // rng.integers(1, 3)
    return prediction, truth


@settings(max_examples=150, deadline=None)
@given(instance_maps, instance_maps, st.sampled_from([0.01, 0.2, 1 / 3, 0.5, 0.6, 0.9, 1.0]))
def test_matching_is_optimal(prediction: NDArray, truth: NDArray, threshold: float) -> None:
    iou = iou_matrix(prediction, truth)
    matching = match_objects(prediction, truth, threshold)
    pairs, total = brute_force(iou, threshold)
    assert matching.true_positives == pairs
    assert matching.iou.sum() == pytest.approx(total)
    # StarDist also weighs the IoU of pairs below the threshold, so where several matchings are possible it may choose a worse.
    theirs, their_sum = as_stardist_matches(iou, threshold)
    assert matching.true_positives == theirs
    assert their_sum <= matching.iou.sum() + 1e-9
    if threshold > 0.5:
        assert matching.iou.sum() == pytest.approx(their_sum)
    assert matching.false_negatives == iou.shape[0] - pairs
    assert matching.false_positives == iou.shape[1] - pairs
    assert len(set(matching.matched_truth)) == len(set(matching.matched_prediction)) == pairs
    for t, p, value in zip(matching.matched_truth, matching.matched_prediction, matching.iou, strict=True):
        assert value == ((truth == t) & (prediction == p)).sum() / ((truth == t) | (prediction == p)).sum()
        assert value >= threshold


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.75])
def test_many_objects_match_as_in_stardist(threshold: float) -> None:
    prediction, truth = grid_of_cells(0)
    matching = match_objects(prediction, truth, threshold)
    pairs, total = as_stardist_matches(iou_matrix(prediction, truth), threshold)
    assert 0 < matching.true_positives == pairs
    assert matching.iou.sum() == pytest.approx(total)


def test_more_pairs_win_over_a_better_one() -> None:
    """Two predictions for the first object, of which one could also take the second."""
    truth = np.array([[1] * 6 + [2] * 4])
    found = np.array([[1] * 2 + [2] * 8])  # object 2 overlaps both: IoU 4/10 with the first, 4/8 with the second
    matching = match_objects(found, truth, 0.2)
    assert matching.matched_truth.tolist() == matching.matched_prediction.tolist() == [1, 2]
    greedy_would_take = iou_matrix(found, truth)
    assert greedy_would_take[0].argmax() == 1  # the better of the first object's


def test_scores_by_hand() -> None:
    truth = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 3, 3, 0, 0]])
    found = np.array([[7, 7, 7, 7, 0, 8, 8, 8, 0, 0, 0, 0, 9, 9]])  # IoU 1, 3/4, a miss, an invention
    scores = ObjectScores((0.5, 0.8))
    scores.update(found, truth)
    np.testing.assert_array_equal(scores.sums, [[2, 1, 1, 1.75], [1, 2, 2, 1.0]])
    np.testing.assert_allclose(scores.average_precision(), [2 / 4, 1 / 5])
    np.testing.assert_allclose(scores.precision(), [2 / 3, 1 / 3])
    np.testing.assert_allclose(scores.recall(), [2 / 3, 1 / 3])
    np.testing.assert_allclose(scores.f1(), [2 / 3, 1 / 3])
    np.testing.assert_allclose(scores.mean_matched_iou(), [1.75 / 2, 1])
    np.testing.assert_allclose(scores.panoptic_quality(), [1.75 / 3, 1 / 3])
    assert scores.summary() == pytest.approx(
        {
            "ap": 0.35,
            "ap50": 0.5,
            "ap80": 0.2,
            "precision_50": 2 / 3,
            "recall_50": 2 / 3,
            "f1_50": 2 / 3,
            "mean_matched_iou_50": 0.875,
            "panoptic_quality_50": 1.75 / 3,
        }
    )


def test_default_thresholds_are_those_of_coco() -> None:
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert list(object_scores([], []).summary())[:3] == ["ap", "ap50", "ap55"]


def test_panoptic_quality_is_torchmetrics() -> None:
    prediction, truth = grid_of_cells(1)
    scores = ObjectScores((0.5 + 1e-9,))  # panoptic quality wants IoU above 0.5
    scores.update(prediction, truth)
    theirs = PanopticQuality(things={1}, stuffs={0}, return_per_class=True, return_sq_and_rq=True)
    as_pairs = [torch.from_numpy(np.stack([x > 0, x], axis=-1))[None].long() for x in (prediction, truth)]
    thing = theirs(*as_pairs)[theirs.cat_id_to_continuous_id[1]]
    for ours, expected in zip((scores.panoptic_quality(), scores.mean_matched_iou(), scores.f1()), thing, strict=True):
        assert ours[0] == pytest.approx(float(expected), rel=1e-6)


def test_pictures_add_up_in_any_order_and_process() -> None:
    pictures = [grid_of_cells(seed, 4) for seed in range(4)]
    whole = object_scores(*map(list, zip(*pictures, strict=True)))
    ranks = [ObjectScores(), ObjectScores()]
    each = [ranks[k % 2].update(*picture) for k, picture in enumerate(pictures)]
    reduced = sum((rank.state for rank in ranks), torch.zeros(10, 4, dtype=torch.float64))
    ranks[0].merge(ranks[1])
    ranks[1].state = reduced
    for scores in (*ranks, ObjectScores().with_sums(np.sum([picture.sums for picture in each], axis=0))):
        np.testing.assert_allclose(scores.sums, whole.sums)
    stacked = ObjectScores().with_sums(np.stack([picture.sums for picture in each]))
    np.testing.assert_array_equal(stacked.mean_average_precision(), [p.mean_average_precision() for p in each])
    with pytest.raises(ValueError, match="cannot merge"):
        whole.merge(ObjectScores((0.5,)))
    with pytest.raises(ValueError, match="expected"):
        ObjectScores().with_sums(np.zeros((3, 4)))


def test_pictures_without_objects() -> None:
    nothing, one = np.zeros((4, 4), np.int64), np.ones((4, 4), np.int64)
    quiet, alarm, missed = (object_scores([p], [t]) for p, t in [(nothing, nothing), (one, nothing), (nothing, one)])
    assert np.isnan(quiet.average_precision()).all()
    assert (quiet.average_precision(absent=1) == 1).all()  # nothing was missed
    assert (quiet.average_precision(absent=0) == 0).all()  # as StarDist's matching counts it
    for scores in (alarm, missed):
        assert (scores.average_precision() == 0).all()
        assert np.isnan(scores.mean_matched_iou()).all()
    assert np.isnan(alarm.recall()).all()
    assert (alarm.precision() == 0).all()


def test_ignored_pixels_belong_to_no_object() -> None:
    truth = np.array([[1, 1, 1, 1, 2, 2]])
    found = np.array([[1, 1, 0, 0, 3, 3]])
    ignore = np.array([[0, 0, 1, 1, 1, 1]], bool)
    matching = match_objects(found, truth, 0.9, ignore=ignore)
    assert (matching.true_positives, matching.false_positives, matching.false_negatives) == (1, 0, 0)
    assert matching.iou.tolist() == [1.0]


def test_maps_without_background_and_wrong_maps() -> None:
    full = np.array([[4, 4, 9, 9]])
    matching = match_objects(full, full)
    assert matching.truth_ids.tolist() == matching.matched_truth.tolist() == [4, 9]
    with pytest.raises(DataError, match="both must be the same"):
        match_objects(full, full[:, :3])
    with pytest.raises(DataError, match="holds -1; segments are numbered from 0"):
        match_objects(full, full - 5)
    with pytest.raises(ValueError, match="iou_threshold is 0"):
        match_objects(full, full, 0.0)
    with pytest.raises(ValueError, match="two instance maps"):
        match_objects(full)
    with pytest.raises(DataError, match="1 predictions and 2 truths"):
        object_scores([full], [full, full])


def test_thousands_of_objects_need_no_matrix() -> None:
    """A dense matrix of these would be 40,000 by 40,000 numbers."""
    truth = np.arange(1, 40_001).reshape(200, 200).repeat(2, axis=0).repeat(2, axis=1)
    pairs = candidate_pairs(truth, truth)
    assert len(pairs.iou) == 40_000
    assert match_objects(pairs, iou_threshold=0.1).true_positives == 40_000


def test_real_nuclei(real_data: Path) -> None:
    """Outlines eaten by one pixel lose small nuclei first; nuclei that touch merge into one."""
    import tifffile

    masks = sorted((real_data / "nuclei_stardist_samples").rglob("*mask*.tif"))
    truth = tifffile.imread(masks[0]).astype(np.int64)
    eroded = np.zeros_like(truth)
    for k in np.unique(truth[truth > 0]):
        eroded[binary_erosion(truth == k)] = k
    scores = object_scores([eroded], [truth])
    assert scores.recall()[0] > 0.8 > 0.2 > scores.recall()[-1]
    assert (np.diff(scores.average_precision()) <= 0).all()
    merged = object_scores([np.asarray(label(truth > 0)[0])], [truth])  # type: ignore[index]
    assert 0 < merged.true_positives[0] < len(np.unique(truth)) - 1
    assert merged.recall()[0] < object_scores([truth], [truth]).recall()[0] == 1
