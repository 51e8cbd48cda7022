"""Reductions and mIoU presets against smp, torchmetrics, MONAI and golden numbers of the packages that PyPI does not have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics.meandice import DiceMetric
from monai.metrics.meaniou import MeanIoU as MonaiMeanIoU
from numpy.typing import NDArray
from torchmetrics.segmentation import DiceScore, MeanIoU

from delineate.metrics import (
    MEAN_IOU,
    ConfusionMatrix,
    MultilabelConfusion,
    Overlap,
    Reduction,
    bootstrap_interval,
    mean_iou,
    paired_bootstrap,
    worst_mean,
)

Ids = NDArray[np.int64]


def counts_of(prediction: Ids, truth: Ids, classes: int) -> NDArray[np.int64]:
    """Counts (N, K, K) of pictures (N, ...)."""
    counts = []
    for p, t in zip(prediction, truth, strict=True):
        matrix = ConfusionMatrix(classes)
        matrix.update(p, t)
        counts.append(matrix.counts)
    return np.stack(counts)


def of_pictures(prediction: Ids, truth: Ids, classes: int) -> Overlap[NDArray[Any]]:
    """Overlap (N, K) of pictures (N, ...)."""
    return ConfusionMatrix.from_counts(counts_of(prediction, truth, classes)).overlap


def golden_pictures(case: str) -> tuple[Ids, Ids, int]:
    """Predictions and truths (N, 24, 32), and the number of classes, from arithmetic alone."""
    n, y, x = np.mgrid[: 12 if case == "sparse" else 3, :24, :32]
    truth = (y * (n + 2) + 3 * x) // 17 % 4
    if case == "sparse":  # picture n has nothing of class n % 4, but all have class 3
        truth = np.where((truth == n % 4) & (truth < 3), truth + 1, truth)
    prediction = np.where((5 * x + 3 * y + 7 * n) % 11 < 3, (truth + x) % 4, truth)
    if case in ("plain", "sparse"):
        return prediction, truth, 4
    # "hard": 4 is predicted but never true, 5 nowhere, 2 true but never predicted, 1 missing in picture 0, some rows ignored.
    prediction = np.where(prediction == 2, 4, prediction)
    prediction[0][prediction[0] == 1] = 0
    truth[0][truth[0] == 1] = 0
    truth[:, 3:6] = 255
    return prediction, truth, 6


# mIoU of `golden_pictures`, from the packages' own code run on them: cityscapesScripts 2.3.0 (evaluateImgLists on PNGs of label
# ids, NumPy 2.3); MMSegmentation 1.2.2 (IoUMetric.process and compute_metrics, before it rounds to 0.01 %, in float32);
# facebookresearch/detectron2 02b5c4e (SemSegEvaluator.process and evaluate); HRNet/HRNet-Semantic-Segmentation 0bbb288
# (testval); NVIDIA/semantic-segmentation 7726b14 (fast_hist and eval_metrics).
GOLDEN = {
    "plain": {
        "cityscapes": 0.6604723382578255,
        "mmseg": 0.6604723334312439,
        "detectron2": 0.6604723382578254,
        "hrnet": 0.6604723382578255,
        "hmsa": 0.6604723382578255,
    },
    "hard": {
        "cityscapes": 0.40583739790049467,
        "mmseg": 0.4058373928070068,
        "detectron2": 0.5072967473756184,
        "hrnet": 0.33819783158374556,
        "hmsa": 0.40583739790049467,
    },
}


@pytest.mark.parametrize("case", GOLDEN)
@pytest.mark.parametrize("preset", ["cityscapes", "mmseg", "detectron2", "hrnet", "hmsa"])
def test_presets_give_the_numbers_of_their_packages(case: str, preset: str) -> None:
    overlap = of_pictures(*golden_pictures(case))
    assert mean_iou(overlap, preset) == pytest.approx(GOLDEN[case][preset], rel=3e-7 if preset == "mmseg" else 1e-14)
    total = Overlap(*(field.sum(axis=0) for field in (overlap.intersection, overlap.prediction, overlap.truth)))
    assert mean_iou(total, preset) == mean_iou(overlap, preset)


def test_detectron2_counted_otherwise_until_its_release_0_6() -> None:
    """Commit f3c1bc1 (July 2022) changed it; the newest release, v0.6 (d1e0456), gave 0.4058373979004946 on "hard"."""
    assert mean_iou(of_pictures(*golden_pictures("hard")), "cityscapes") == pytest.approx(0.4058373979004946, rel=1e-14)


K = 4
pixels = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)


@st.composite
def pictures(draw: st.DrawFn, ignored: bool = False) -> tuple[Ids, Ids]:
    """Predictions and truths (N, H, W); classes are often absent."""
    shape = draw(pixels)
    ids = st.sampled_from(draw(st.lists(st.integers(0, K - 1), min_size=1, max_size=K, unique=True)))
    other = st.sampled_from(draw(st.lists(st.integers(0, K - 1), min_size=1, max_size=K, unique=True)))
    truth = draw(hnp.arrays(np.int64, shape, elements=st.one_of(other, st.just(255)) if ignored else other))
    return draw(hnp.arrays(np.int64, shape, elements=ids)), truth


def tensors(*arrays: Ids) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def same(ours: float, theirs: Any) -> None:
    np.testing.assert_allclose(ours, float(theirs), rtol=2e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(pictures(ignored=True))
def test_every_reduction_of_smp(pair: tuple[Ids, Ids]) -> None:
    overlap = of_pictures(*pair, K)
    stats = smp.metrics.get_stats(*tensors(*pair), mode="multiclass", num_classes=K, ignore_index=255)
    same(mean_iou(overlap, "smp"), smp.metrics.iou_score(*stats, reduction="macro"))
    scores = {
        "iou": smp.metrics.iou_score,
        "dice": smp.metrics.f1_score,
        "precision": smp.metrics.precision,
        "recall": smp.metrics.recall,
    }
    for zero_division in (0, 1):
        for name, theirs in scores.items():
            ours: dict[str, Any] = {"score": name, "absent": zero_division}
            options: dict[str, Any] = {"zero_division": float(zero_division)}
            same(Reduction(**ours)(overlap), theirs(*stats, reduction="macro", **options))
            for over in ("image", "class", "image_class"):
                same(Reduction(**ours, over=over)(overlap), theirs(*stats, reduction="macro-imagewise", **options))
            same(
                Reduction(**ours, average="micro", over="image")(overlap),
                theirs(*stats, reduction="micro-imagewise", **options),
            )
            if overlap.truth.any():  # smp's micro has no zero_division
                same(Reduction(**ours, average="micro")(overlap), theirs(*stats, reduction="micro"))


def test_smp_counts_scores_at_its_threshold() -> None:
    """Its multilabel mode thresholds with >=; given so, overlapping classes have the same numbers."""
    scores = torch.tensor([0.1, 0.5, 0.9]).repeat(2, 3, 4, 2)[..., :5]
    truth = torch.randint(0, 2, scores.shape)
    stats = smp.metrics.get_stats(scores, truth, mode="multilabel", threshold=0.5)
    each = []
    for s, t in zip(scores, truth, strict=True):
        confusion = MultilabelConfusion(3)
        confusion.update(s >= 0.5, t)
        each.append(confusion.counts)
    overlap = MultilabelConfusion.from_counts(np.stack(each)).overlap
    same(mean_iou(overlap, "smp"), smp.metrics.iou_score(*stats, reduction="macro"))
    same(Reduction("dice", "micro", "image")(overlap), smp.metrics.f1_score(*stats, reduction="micro-imagewise"))


@settings(max_examples=60, deadline=None)
@given(pictures())
def test_mean_iou_of_torchmetrics(pair: tuple[Ids, Ids]) -> None:
    theirs = MeanIoU(num_classes=K, input_format="index")
    for p, t in zip(*tensors(*pair), strict=True):  # also one picture a batch
        theirs.update(p[None], t[None])
    same(mean_iou(of_pictures(*pair, K), "torchmetrics"), theirs.compute())
    theirs = MeanIoU(num_classes=K, input_format="index", include_background=False)
    theirs.update(*tensors(*pair))
    same(mean_iou(of_pictures(*pair, K).of_classes(range(1, K)), "torchmetrics"), theirs.compute())


@pytest.mark.filterwarnings("ignore:DiceScore metric currently defaults")
@settings(max_examples=60, deadline=None)
@given(pictures(), st.sampled_from(["micro", "macro", "weighted"]), st.sampled_from(["global", "samplewise"]))
def test_dice_of_torchmetrics(pair: tuple[Ids, Ids], average: Any, level: Any) -> None:
    theirs = DiceScore(num_classes=K, include_background=True, average=average, aggregation_level=level, input_format="index")
    theirs.update(*tensors(*pair))
    over = "dataset" if level == "global" else "image"
    same(Reduction("dice", average, over)(of_pictures(*pair, K)), theirs.compute())


@settings(max_examples=60, deadline=None)
@given(pictures(), st.booleans())
def test_dice_and_iou_of_monai(pair: tuple[Ids, Ids], ignore_empty: bool) -> None:
    overlap = of_pictures(*pair, K)
    hot = [torch.nn.functional.one_hot(x, K).movedim(-1, 1) for x in tensors(*pair)]
    for score, metric in (("dice", DiceMetric), ("iou", MonaiMeanIoU)):
        ours: dict[str, Any] = {"score": score, "presence": "gt"} if ignore_empty else {"score": score, "absent": 1}
        theirs = metric(reduction="mean", ignore_empty=ignore_empty)
        theirs(*hot)
        same(Reduction(**ours, over="image")(overlap), theirs.aggregate())
        found = theirs.aggregate("mean_batch")  # (K,); MONAI puts 0 where a class has no picture
        assert isinstance(found, torch.Tensor)
        there = overlap.truth.any(axis=0) if ignore_empty else np.ones(K, bool)
        same(Reduction(**ours, over="class")(overlap), found[torch.from_numpy(there)].mean())


# Percent / 100 of JDTLosses' AccuracyMetric (zifuwanggg/JDTLosses 68ce8ac) on "sparse"; float32.
FINE = {"mIoUI": 0.6817724609375, "mIoUI25": 0.6605183410644532, "mIoUI40": 0.6657530975341797, "mIoUIQ": 0.670952377319336}
FINE |= {"mIoUC": 0.6805063629150391, "mIoUC25": 0.6483486938476563, "mIoUC40": 0.651590576171875, "mIoUCQ": 0.6581550598144531}


def test_fine_grained_and_worst_case_means_are_those_of_the_paper() -> None:
    overlap = of_pictures(*golden_pictures("sparse"))
    scores = np.where(overlap.truth > 0, overlap.iou(), np.nan)  # (12, 4): IoU with presence="gt"
    of_image = np.nanmean(scores, axis=1)
    found = {
        "mIoUI": Reduction(over="image", presence="gt")(overlap),
        "mIoUC": Reduction(over="class", presence="gt")(overlap),
        **{f"mIoUI{q}": float(worst_mean(of_image, q / 100)) for q in (25, 40)},
        **{f"mIoUC{q}": float(worst_mean(scores, q / 100).mean()) for q in (25, 40)},
        "mIoUIQ": np.mean([worst_mean(of_image, q / 100) for q in range(10, 110, 10)]),
        "mIoUCQ": np.mean([worst_mean(scores, q / 100) for q in range(10, 110, 10)]),
    }
    assert found == pytest.approx(FINE, rel=3e-6)
    assert worst_mean(scores, 1.0) == pytest.approx(np.nanmean(scores, axis=0))
    assert math.isnan(worst_mean(np.array([np.nan, np.nan]), 0.5))
    assert worst_mean(np.array([0.3, 0.1]), 0.01) == 0.1  # never less than one picture
    with pytest.raises(ValueError, match="share is 5"):
        worst_mean(scores, 5)


def test_the_toy_of_the_documentation() -> None:
    """docs/metrics.md: two pictures of eight pixels, five classes of which one is nowhere and one only predicted."""
    truth = np.array([[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 3, 3]])
    prediction = np.array([[0, 0, 0, 0, 0, 0, 0, 2], [0, 1, 1, 1, 1, 1, 3, 3]])
    overlap = of_pictures(prediction, truth, 5)
    found = {preset: mean_iou(overlap, preset) for preset in MEAN_IOU}
    found |= {over: Reduction("iou", over=over)(overlap) for over in ("image", "class")}
    assert {name: round(value, 3) for name, value in found.items()} == {
        "cityscapes": 0.65,
        "mmseg": 0.65,
        "detectron2": 0.867,
        "hrnet": 0.52,
        "hmsa": 0.65,
        "smp": 0.72,
        "torchmetrics": 0.635,
        "image": 0.602,
        "class": 0.622,
    }


REDUCTIONS = [
    *MEAN_IOU.values(),
    *(Reduction("dice", average, over) for average in ("macro", "micro", "weighted") for over in ("dataset", "image")),
    Reduction("dice", over="class"),
    Reduction("recall", over="image_class"),
]


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_every_number_streams_merges_and_has_an_interval(reduction: Reduction) -> None:
    overlap = of_pictures(*golden_pictures("sparse"))
    rows = [of_pictures(p[None], t[None], 4) for p, t in zip(*golden_pictures("sparse")[:2], strict=True)]
    streamed = [reduction.statistics(row)[0] for row in rows]
    two_processes = sum(streamed[:5]) + sum(streamed[5:])
    assert float(reduction.reduce(np.asarray(two_processes))) == pytest.approx(reduction(overlap), rel=1e-12)

    # A resample by hand, measured from its pixels, is one of the sums that the bootstrap scores.
    statistics = reduction.statistics(overlap)
    drawn = np.array([3, 3, 0, 7, 1, 3, 11, 2, 5, 5, 9, 4])
    prediction, truth, classes = golden_pictures("sparse")
    again = reduction(of_pictures(prediction[drawn], truth[drawn], classes))
    assert float(reduction.reduce(statistics[drawn].sum(axis=0))) == pytest.approx(again, rel=1e-12)
    low, high = bootstrap_interval(statistics, reduction.reduce, resamples=200)
    assert low < reduction(overlap) < high

    worse = np.where((prediction + np.arange(32)) % 9 == 0, 0, prediction)
    other = reduction.statistics(of_pictures(worse, truth, classes))
    comparison = paired_bootstrap(statistics, other, reduction.reduce, resamples=200)
    assert 0 < comparison.low < comparison.difference < comparison.high


@pytest.mark.parametrize("name", ["mean_iou", "mean_dice", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou"])
def test_every_score_of_a_confusion_matrix_has_an_interval(name: str) -> None:
    """The counts of each picture are the statistics: adding up those that are drawn is measuring the drawn pictures."""
    prediction, truth, classes = golden_pictures("sparse")
    counts = counts_of(prediction, truth, classes)

    def reduce(sums: NDArray[Any]) -> NDArray[np.float64]:
        return getattr(ConfusionMatrix.from_counts(sums), name)()

    drawn = np.array([3, 3, 0, 7, 1, 3, 11, 2, 5, 5, 9, 4])
    again = ConfusionMatrix(classes)
    again.update(prediction[drawn], truth[drawn])
    assert reduce(counts[drawn].sum(axis=0)) == getattr(again, name)()
    low, high = bootstrap_interval(counts, reduce, resamples=200)
    assert low < reduce(counts.sum(axis=0)) < high


@pytest.mark.parametrize("name", ["iou", "dice", "precision", "recall", "specificity"])
def test_every_score_of_a_class_has_an_interval(name: str) -> None:
    counts = counts_of(*golden_pictures("sparse"))

    def reduce(sums: NDArray[Any]) -> NDArray[np.float64]:
        return getattr(ConfusionMatrix.from_counts(sums), name)()[..., 1]

    low, high = bootstrap_interval(counts, reduce, resamples=200)
    assert low < reduce(counts.sum(axis=0)) < high


def test_nothing_to_measure_is_nan_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    ignored = of_pictures(np.zeros((2, 5), int), np.full((2, 5), 255), 3)
    none = ignored.of_classes([])
    for reduction in REDUCTIONS:
        if reduction.absent == "nan":
            assert math.isnan(reduction(ignored))
            assert math.isnan(reduction(none))
    assert mean_iou(ignored, "hrnet") == 0
    assert mean_iou(ignored, "smp") == 1
    assert not recwarn.list


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="preset is 'coco', expected one of cityscapes, mmseg, detectron2"):
        mean_iou(Overlap(np.zeros(2), np.zeros(2), np.zeros(2)), "coco")
    with pytest.raises(ValueError, match="'image_class' needs the overlap of each picture"):
        mean_iou(Overlap(np.zeros(2), np.zeros(2), np.zeros(2)), "torchmetrics")
    with pytest.raises(ValueError, match="average 'micro' has no meaning there"):
        Reduction(average="micro", over="class")
    for wrong in ({"score": "f1"}, {"average": "mean"}, {"over": "batch"}, {"absent": 2}, {"presence": "pred"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*, expected one of"):
            Reduction(**wrong)  # type: ignore[arg-type]
