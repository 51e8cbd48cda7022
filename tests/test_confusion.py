"""The confusion matrix against torchmetrics and plain numpy; its conventions; exactness, merging and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassFBetaScore,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
    MulticlassSpecificity,
    MultilabelConfusionMatrix,
    MultilabelSpecificity,
)

from delineate.errors import DataError
from delineate.metrics import ConfusionMatrix, MultilabelConfusion, Overlap
from delineate.ops import native

rng = np.random.default_rng(7)


@pytest.fixture(autouse=True, params=["native", "numpy"])
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with the native histogram, where it is built, and with its twin in NumPy."""
    if request.param == "native" and not native.available:
        pytest.skip("built without a compiler, or switched off")
    monkeypatch.setattr(native, "available", request.param == "native")


def random_pair(classes: int = 5, shape: tuple[int, ...] = (3, 40, 50)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    truth = rng.integers(0, classes, shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.7, truth, rng.integers(0, classes, shape)).astype(np.uint8)
    truth[rng.random(shape) < 0.1] = 255
    return prediction, truth


def filled(prediction: NDArray, truth: NDArray, classes: int) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    matrix.update(prediction, truth)
    return matrix


def plain(prediction: NDArray, truth: NDArray, classes: int) -> NDArray[np.int64]:
    """The definition, pixel by pixel."""
    counts = np.zeros((classes, classes), np.int64)
    for t, p in zip(truth.reshape(-1).tolist(), prediction.reshape(-1).tolist(), strict=True):
        if t != 255:
            counts[t, p] += 1
    return counts


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_counts_are_those_of_the_definition(dtype: type) -> None:
    prediction, truth = random_pair()
    expected = plain(prediction, truth, 5)
    if dtype == np.int8:
        truth[truth == 255] = 100
        matrix = ConfusionMatrix(5, ignore_index=100)
        matrix.update(prediction.astype(dtype), truth.astype(dtype))
        np.testing.assert_array_equal(matrix.counts, expected)
        return
    np.testing.assert_array_equal(filled(prediction.astype(dtype), truth.astype(dtype), 5).counts, expected)
    np.testing.assert_array_equal(filled(prediction, truth.astype(dtype), 5).counts, expected)
    assert expected.dtype == np.int64


def test_tensors_count_as_arrays(device: torch.device) -> None:
    prediction, truth = random_pair()
    tensors = [torch.from_numpy(x.astype(np.int64)).to(device) for x in (prediction, truth)]
    matrix = ConfusionMatrix(5)
    matrix.update(*tensors)
    np.testing.assert_array_equal(matrix.counts, plain(prediction, truth, 5))
    matrix.update(tensors[0].transpose(1, 2), truth.swapaxes(1, 2))  # not contiguous, and one of each kind
    np.testing.assert_array_equal(matrix.counts, 2 * plain(prediction, truth, 5))


def test_the_path_of_other_devices_counts_and_checks_alike() -> None:
    """The GPU's lines run on any tensors; here on the CPU's."""
    from delineate.metrics.confusion import _joint, _joint_on_device

    values = torch.tensor([-(2**62), -1, 0, 1, 2, 255, 256, 257, 2**40])
    prediction, truth = (x.reshape(-1) for x in torch.meshgrid(values, values, indexing="ij"))
    expected = _joint(prediction.numpy(), truth.numpy(), 256)
    np.testing.assert_array_equal(_joint_on_device(prediction, truth, 256), expected)
    assert expected[256, 256] == 25  # -2^62, -1, 256, 257 and 2^40 stand for "outside"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2, 255])), max_size=30), st.integers(1, 29))
def test_streaming_in_any_pieces_is_the_same(pixels: list[tuple[int, int]], cut: int) -> None:
    prediction, truth = np.array(pixels, np.uint8).reshape(-1, 2).T
    whole, parts = filled(prediction, truth, 3), ConfusionMatrix(3)
    for piece in (slice(0, cut), slice(cut, None)):
        parts.update(prediction[piece], truth[piece])
    np.testing.assert_array_equal(whole.counts, parts.counts)
    np.testing.assert_array_equal(whole.counts, plain(prediction, truth, 3))
    one, two = (filled(prediction[p], truth[p], 3) for p in (slice(0, cut), slice(cut, None)))
    np.testing.assert_array_equal((one + two).counts, whole.counts)


def test_big_pictures_are_counted_in_chunks() -> None:
    prediction, truth = random_pair(3, (1200, 1000))  # more than one chunk, and a rest
    expected = np.zeros((3, 3), np.int64)
    np.add.at(expected, (truth[truth != 255], prediction[truth != 255]), 1)
    np.testing.assert_array_equal(filled(prediction, truth, 3).counts, expected)


def test_exact_beyond_what_float32_can_count() -> None:
    many = 2**53 - 1  # odd, and far beyond 2^24
    matrix = ConfusionMatrix.from_counts(np.array([[many, 0], [0, 0]], np.int64))
    matrix.update(np.zeros(1, np.uint8), np.zeros(1, np.uint8))
    matrix.merge(ConfusionMatrix.from_counts(np.array([[1, 2], [0, 2**40 + 1]], np.int64)))
    assert matrix.counts.tolist() == [[2**53 + 1, 2], [0, 2**40 + 1]]
    assert ConfusionMatrix.from_json(matrix.to_json()).counts.tolist() == matrix.counts.tolist()
    assert matrix.state.tolist() == matrix.counts.tolist()
    # One pixel more than 2^24 in one picture of one colour: float32 would stop there.
    row = np.broadcast_to(np.uint8(1), 2**24 + 1)
    assert filled(row, row, 2).counts[1, 1] == 2**24 + 1


def test_scores_are_torchmetrics(device: torch.device) -> None:
    prediction, truth = random_pair()
    p, t = (torch.from_numpy(x.astype(np.int64)) for x in (prediction, truth))
    matrix = filled(prediction, truth, 5)
    options = {"num_classes": 5, "ignore_index": 255}
    np.testing.assert_array_equal(MulticlassConfusionMatrix(**options)(p, t).numpy(), matrix.counts)
    pairs = [
        (matrix.iou(), MulticlassJaccardIndex(average=None, **options)),
        (matrix.mean_iou(), MulticlassJaccardIndex(average="macro", **options)),
        (matrix.frequency_weighted_iou(), MulticlassJaccardIndex(average="weighted", **options)),
        (matrix.dice(), MulticlassF1Score(average=None, **options)),
        (matrix.mean_dice(), MulticlassF1Score(average="macro", **options)),
        (matrix.f_beta(2.0), MulticlassFBetaScore(2.0, average=None, **options)),
        (matrix.f_beta(0.5), MulticlassFBetaScore(0.5, average=None, **options)),
        (matrix.specificity(), MulticlassSpecificity(average=None, **options)),
        (matrix.normalised("truth"), MulticlassConfusionMatrix(normalize="true", **options)),
        (matrix.normalised("prediction"), MulticlassConfusionMatrix(normalize="pred", **options)),
        (matrix.precision(), MulticlassPrecision(average=None, **options)),
        (matrix.recall(), MulticlassRecall(average=None, **options)),
        (matrix.mean_accuracy(), MulticlassAccuracy(average="macro", **options)),
        (matrix.pixel_accuracy(), MulticlassAccuracy(average="micro", **options)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs(p, t).numpy(), rtol=1e-6)


def test_conventions_for_absent_classes() -> None:
    # Class 0 perfect, 1 half right, 2 predicted though absent, 3 nowhere.
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    matrix = filled(np.array([0, 0, 0, 0, 1, 1, 2, 2]), truth, 4)
    np.testing.assert_array_equal(matrix.iou(), [1, 0.5, 0, np.nan])
    np.testing.assert_array_equal(matrix.iou(presence="gt"), [1, 0.5, np.nan, np.nan])
    np.testing.assert_array_equal(matrix.iou(absent=0, presence="gt"), [1, 0.5, 0, 0])
    np.testing.assert_array_equal(matrix.iou(absent=1), [1, 0.5, 0, 1])
    assert matrix.mean_iou() == 0.5  # Cityscapes, MMSegmentation
    theirs = MulticlassJaccardIndex(num_classes=4)(torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), torch.from_numpy(truth))
    assert matrix.mean_iou() == theirs
    assert matrix.mean_iou(presence="gt") == 0.75  # Detectron2
    assert matrix.mean_iou(absent=0) == 0.375  # HRNet
    assert matrix.mean_iou(absent=1) == 0.625
    np.testing.assert_allclose(matrix.dice(), [1, 2 / 3, 0, np.nan])
    assert matrix.mean_dice() == pytest.approx(5 / 9)
    np.testing.assert_allclose(matrix.f_beta(2.0), [1, 2.5 / (2.5 + 2), 0, np.nan])  # 5 I / (5 I + 4 FN + FP)
    np.testing.assert_array_equal(matrix.f_beta(1.0, absent=0), matrix.dice(absent=0))
    np.testing.assert_array_equal(matrix.specificity(), [1, 1, 0.75, 1])
    np.testing.assert_array_equal(matrix.precision(), [1, 1, 0, np.nan])
    np.testing.assert_array_equal(matrix.recall(), [1, 0.5, np.nan, np.nan])
    np.testing.assert_array_equal(matrix.recall(absent=0), [1, 0.5, 0, 0])
    assert matrix.mean_accuracy() == 0.75
    assert matrix.pixel_accuracy() == 0.75
    assert matrix.frequency_weighted_iou() == 0.75
    with pytest.raises(ValueError, match="beta is -1"):
        matrix.f_beta(-1)
    for wrong in ({"absent": 2}, {"presence": "pred"}):
        with pytest.raises(ValueError, match="expected"):
            matrix.iou(**wrong)  # type: ignore[arg-type]


def test_the_toy_of_the_packages_disagreement() -> None:
    """mIoU of one prediction: 0.4375 where a wrongly predicted class counts, 0.875 where it does not."""
    prediction, truth = np.array([0, 0, 0, 0, 0, 0, 0, 1]), np.zeros(8, np.uint8)
    matrix = filled(prediction, truth, 2)
    assert (matrix.mean_iou(), matrix.mean_iou(presence="gt")) == (0.4375, 0.875)


def test_nothing_counted_is_nan_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    matrix = filled(np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8), 3)
    summary = matrix.summary(["a", "b", "c"])
    assert all(np.isnan(value) for value in summary.values())
    assert not recwarn.list


def test_per_image_counts_keep_their_axis() -> None:
    prediction, truth = random_pair(4)
    singles = [filled(p, t, 4) for p, t in zip(prediction, truth, strict=True)]
    stacked = ConfusionMatrix.from_counts(np.stack([m.counts for m in singles]))
    assert stacked.iou().shape == (3, 4)
    np.testing.assert_array_equal(stacked.iou(), [m.iou() for m in singles])
    for name in ("mean_iou", "mean_dice", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou"):
        np.testing.assert_array_equal(getattr(stacked, name)(), [getattr(m, name)() for m in singles])


def test_summary_and_rows_are_plain_numbers() -> None:
    matrix = filled(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]), 2)
    assert matrix.summary(["sky", "tree"]) == {
        "mean_iou": pytest.approx(7 / 12),
        "mean_dice": pytest.approx((0.8 + 2 / 3) / 2),
        "pixel_accuracy": 0.75,
        "mean_accuracy": pytest.approx(5 / 6),
        "frequency_weighted_iou": pytest.approx(0.625),
        "iou/sky": pytest.approx(2 / 3),
        "iou/tree": 0.5,
        "dice/sky": 0.8,
        "dice/tree": pytest.approx(2 / 3),
    }
    rows = matrix.per_class(["sky", "tree"])
    assert json.loads(json.dumps(rows))[1] == {
        "name": "tree",
        "iou": 0.5,
        "dice": pytest.approx(2 / 3),
        "precision": 0.5,
        "recall": 1.0,
        "truth_pixels": 1,
        "predicted_pixels": 2,
    }
    with pytest.raises(ValueError, match="3 names"):
        matrix.per_class(["sky", "tree", "sea"])


def test_the_most_frequent_confusions() -> None:
    prediction, truth = random_pair()
    matrix, names = filled(prediction, truth, 5), ["road", "sky", "tree", "car", "sign"]
    rows = matrix.confusions(names, limit=100)
    wrong = [(names[t], names[p], int(((truth == t) & (prediction == p)).sum())) for t in range(5) for p in range(5) if t != p]
    assert sorted((row["truth"], row["prediction"], row["pixels"]) for row in rows) == sorted(wrong)
    assert [row["pixels"] for row in rows] == sorted((pixels for *_, pixels in wrong), reverse=True)
    assert sum(row["share_of_errors"] for row in rows) == pytest.approx(1)
    for row in rows:
        assert row["share_of_class"] == pytest.approx(row["pixels"] / (truth == names.index(row["truth"])).sum())
    assert matrix.confusions(names, limit=3) == rows[:3]
    json.dumps(rows)
    assert filled(truth % 5, truth % 5, 5).confusions(names) == []
    with pytest.raises(ValueError, match="3 names"):
        matrix.confusions(["a", "b", "c"])
    with pytest.raises(ValueError, match="by is 'all'"):
        matrix.normalised("all")  # type: ignore[arg-type]
    shares = ConfusionMatrix.from_counts(np.stack([matrix.counts, 0 * matrix.counts])).normalised()
    assert shares.shape == (2, 5, 5)
    np.testing.assert_allclose(shares[0].sum(axis=1), 1)
    assert np.isnan(shares[1]).all()


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("value", [3, 254, -1, 300, -(2**40), 2**40])
def test_values_outside_the_classes_are_named(kind: str, value: int) -> None:
    wrong, right = np.array([0, 1, value, 2]), np.array([0, 1, 1, 2])
    if kind == "tensor":
        wrong, right = torch.from_numpy(wrong), torch.from_numpy(right)
    matrix = ConfusionMatrix(3)
    with pytest.raises(DataError, match=rf"the truth holds {value}, but the classes are 0\.\.2 and 255 is ignored"):
        matrix.update(right, wrong)
    with pytest.raises(DataError, match=rf"the prediction holds {value}, but the classes are 0\.\.2"):
        matrix.update(wrong, right)
    assert not matrix.counts.any()
    ignored = np.where(np.asarray(wrong) == value, 255, 0)
    matrix.update(np.asarray(wrong), ignored)  # what is predicted where nothing counts is free
    assert matrix.counts.sum() == 3


def test_other_ignored_classes_and_none() -> None:
    truth, prediction = np.array([0, 1, 2, 2]), np.array([1, 1, 2, 1])
    matrix = ConfusionMatrix(3, ignore_index=0)  # ADE20K's "other"
    matrix.update(prediction, truth)
    assert matrix.counts.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]
    with pytest.raises(DataError, match="the truth holds 255"):
        ConfusionMatrix(3, ignore_index=None).update(prediction, np.array([0, 1, 2, 255]))
    wide = ConfusionMatrix(300)  # more classes than a byte holds; 255 is one of them, here ignored
    wide.update(np.array([299, 255, 7]), np.array([299, 255, 8]))
    assert wide.counts.sum() == 2
    assert wide.counts[299, 299] == wide.counts[8, 7] == 1


def test_wrong_use_is_named() -> None:
    matrix = ConfusionMatrix(2)
    with pytest.raises(DataError, match=r"prediction has shape \(2, 3\), truth \(3, 2\)"):
        matrix.update(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(DataError, match="dtype float32"):
        matrix.update(np.zeros(3, np.float32), np.zeros(3, int))
    with pytest.raises(ValueError, match="cannot merge sums of num_classes 3"):
        matrix.merge(ConfusionMatrix(3))
    with pytest.raises(ValueError, match="expected int64"):
        matrix.state = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="ignore_index is -100"):
        ConfusionMatrix(2, ignore_index=-100)


def test_two_processes_add_their_states() -> None:
    prediction, truth = random_pair(4)
    ranks = [filled(prediction[:1], truth[:1], 4), filled(prediction[1:], truth[1:], 4)]
    reduced = torch.stack([rank.state for rank in ranks]).sum(dim=0)  # what an all-reduce gives every rank
    for rank in ranks:
        rank.state = reduced.clone()
        np.testing.assert_array_equal(rank.counts, filled(prediction, truth, 4).counts)


def test_overlapping_classes_are_torchmetrics() -> None:
    truth = torch.randint(-1, 2, (2, 3, 20, 30))
    prediction = torch.rand(2, 3, 20, 30) < 0.5
    confusion = MultilabelConfusion(3)
    confusion.update(prediction[:1], truth[:1].float())
    confusion.update(prediction[1:].numpy(), truth[1:].numpy())
    theirs = MultilabelConfusionMatrix(num_labels=3, ignore_index=-1)
    flat = [x.movedim(1, -1).reshape(-1, 3).long() for x in (prediction, truth)]
    np.testing.assert_array_equal(confusion.counts, theirs(*flat).numpy())
    specificity = MultilabelSpecificity(num_labels=3, average=None, ignore_index=-1)(*flat)
    np.testing.assert_allclose(confusion.specificity(), specificity.numpy(), rtol=1e-6)
    other = MultilabelConfusion(3)
    other.state = confusion.state
    confusion.merge(other)
    tp, p, t = confusion.counts[:, 1, 1], confusion.counts[:, :, 1].sum(1), confusion.counts[:, 1].sum(1)
    np.testing.assert_allclose(confusion.iou(), tp / (p + t - tp))
    assert confusion.pixel_accuracy() == pytest.approx((confusion.counts[:, 0, 0] + tp).sum() / confusion.counts.sum())
    stacked = MultilabelConfusion.from_counts(np.stack([confusion.counts, other.counts]))
    np.testing.assert_array_equal(stacked.mean_iou(), [confusion.mean_iou(), other.mean_iou()])
    with pytest.raises(DataError, match=r"expected \(..., 3, H, W\)"):
        confusion.update(torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_counts_and_soft_masks_share_their_definition(both: int, only_p: int, only_t: int) -> None:
    """One definition of overlap: int64 counts in numpy, and float sums in PyTorch, give the same numbers."""
    counts = Overlap(np.array(both), np.array(both + only_p), np.array(both + only_t))
    soft = Overlap(*(torch.tensor(float(x)) for x in (both, both + only_p, both + only_t)))
    union = both + only_p + only_t
    assert counts.union == union
    np.testing.assert_equal(float(counts.iou()), both / union if union else np.nan)
    np.testing.assert_equal(float(counts.dice()), 2 * both / (2 * both + only_p + only_t) if union else np.nan)
    for ours, theirs in [(counts.iou(empty=1.0), soft.iou(empty=1.0)), (counts.dice(smooth=1.0), soft.dice(smooth=1.0))]:
        assert float(ours) == pytest.approx(theirs.item(), rel=1e-6)
    if union:
        iou = counts.iou()
        assert counts.dice() == pytest.approx(2 * iou / (1 + iou))
