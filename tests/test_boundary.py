"""Boundary IoU against SciPy's erosion, numbers of boundary-iou-api, and boundary AP; what eroding a label map would do."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import binary_erosion, minimum_filter

from delineate.errors import DataError
from delineate.metrics.bootstrap import bootstrap_interval
from delineate.metrics.boundary import (
    BoundaryScores,
    boundary_iou,
    boundary_overlap,
    boundary_region,
    boundary_rles,
    boundary_width,
    min_boundary_iou,
    min_boundary_iou_matrix,
)
from delineate.metrics.packed import PackedMasks

shapes = st.tuples(st.integers(1, 20), st.integers(1, 150))
masks = shapes.flatmap(lambda shape: hnp.arrays(bool, shape, elements=st.sampled_from([True, True, True, True, False])))
pairs = shapes.flatmap(lambda shape: st.tuples(*[hnp.arrays(bool, shape) for _ in range(3)]))

# bowenc0221/boundary-iou-api, commit 37d25586a677, with OpenCV: `mask_to_boundary` of blobs(seed) and blobs(seed + 1).
# Seed, shape, ratio; pixels and CRC-32 of the first region, pixels of the second, of both; boundary IoU, mask IoU (maskUtils).
BOUNDARY_IOU_API = [
    (1, (64, 48), 0.02, 365, 2036116895, 621, 51, 0.05454545454545454, 0.1092964824120603),
    (3, (97, 130), 0.02, 1501, 4273015733, 2078, 182, 0.053576685310568146, 0.20731887265751808),
    (5, (200, 333), 0.02, 7130, 3705368994, 10031, 707, 0.04296827519144281, 0.13180661577608144),
    (7, (50, 70), 0.1, 1034, 1801108505, 632, 94, 0.05979643765903308, 0.05960684844641725),
    (9, (480, 640), 0.02, 45457, 2853120320, 48172, 8416, 0.09876427305692793, 0.27041379002594557),
    (11, (300, 20), 0.04, 272, 386457518, 250, 13, 0.025540275049115914, 0.025540275049115914),
    (13, (5, 5), 0.02, 14, 3327898057, 11, 6, 0.3157894736842105, 0.3157894736842105),
]


def blobs(seed: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Six discs, and holes where two of them meet; some are cut by the edge of the picture."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for _ in range(6):
        cy, cx, r = rng.integers(0, shape[0]), rng.integers(0, shape[1]), rng.integers(1, max(2, min(shape) // 3))
        mask ^= (y - cy) ** 2 + (x - cx) ** 2 <= r * r
    return mask


def scipy_region(mask: NDArray, width: int) -> NDArray[np.bool_]:
    """The definition as it is written: a mask without `width` erosions by 3 x 3."""
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=width)


def scipy_iou(a: NDArray, b: NDArray, width: int) -> float:
    regions = scipy_region(a, width), scipy_region(b, width)
    union = (regions[0] | regions[1]).sum()
    return (regions[0] & regions[1]).sum() / union if union else np.nan


@settings(max_examples=150, deadline=None)
@given(masks, st.integers(1, 9))
def test_region_is_the_mask_without_erosions(mask: NDArray, width: int) -> None:
    np.testing.assert_array_equal(boundary_region(mask, width), scipy_region(mask, width))


@settings(max_examples=50, deadline=None)
@given(masks, st.integers(0, 80))
def test_packing_keeps_every_pixel(mask: NDArray, margin: int) -> None:
    packed = PackedMasks.pack(mask, margin)
    np.testing.assert_array_equal(packed.unpack(), mask)
    assert packed.count() == mask.sum()
    pair = np.stack([mask, ~mask])
    np.testing.assert_array_equal(PackedMasks.pack(pair, margin).unpack(), pair)
    assert PackedMasks.pack(pair, margin).count().tolist() == [mask.sum(), (~mask).sum()]


@pytest.mark.parametrize("width", [1, 31, 32, 33, 46, 64, 70])
def test_wide_windows_cross_words(width: int) -> None:
    mask = np.ones((160, 300), bool)
    mask[80, 200] = False
    np.testing.assert_array_equal(boundary_region(mask, width), scipy_region(mask, width))


@settings(max_examples=150, deadline=None)
@given(pairs)
def test_iou_is_that_of_the_regions(arrays: tuple[NDArray, NDArray, NDArray]) -> None:
    prediction, truth, ignore = arrays
    width = max(1, round(0.05 * float(np.hypot(*truth.shape))))
    assert boundary_iou(prediction, truth, dilation_ratio=0.05) == pytest.approx(
        scipy_iou(prediction, truth, width), abs=0, nan_ok=True
    )
    ignored = boundary_iou(prediction, truth, dilation_ratio=0.05, ignore=ignore)
    assert ignored == pytest.approx(scipy_iou(prediction & ~ignore, truth & ~ignore, width), abs=0, nan_ok=True)


@pytest.mark.parametrize("golden", BOUNDARY_IOU_API, ids=lambda golden: str(golden[1]))
def test_equals_boundary_iou_api(golden: tuple) -> None:
    seed, shape, ratio, pixels, checksum, other_pixels, shared, iou, mask_iou = golden
    a, b = blobs(seed, shape), blobs(seed + 1, shape)
    region = boundary_region(a, boundary_width(shape, ratio))
    assert (region.sum(), zlib.crc32(region.tobytes())) == (pixels, checksum)
    overlap = boundary_overlap(a, b, dilation_ratio=ratio)
    assert [overlap.intersection[1], overlap.prediction[1], overlap.truth[1]] == [shared, pixels, other_pixels]
    assert boundary_iou(a, b, dilation_ratio=ratio) == iou
    assert min_boundary_iou(a, b, dilation_ratio=ratio) == min(iou, mask_iou)


def test_a_filled_hole_shows_only_in_the_min_form() -> None:
    truth = np.ones((40, 40), bool)
    hollow = boundary_region(truth, 1)
    assert boundary_iou(hollow, truth) == 1
    assert min_boundary_iou(hollow, truth) == hollow.sum() / truth.sum()


@pytest.mark.parametrize(("absent", "expected"), [("nan", np.nan), (0, 0.0), (1, 1.0)])
def test_empty_masks(absent: Any, expected: float) -> None:
    empty, some = np.zeros((9, 9), bool), np.eye(9, dtype=bool)
    for iou in (boundary_iou, min_boundary_iou):
        assert iou(empty, empty, absent=absent) == pytest.approx(expected, nan_ok=True)
        assert iou(empty, some, absent=absent) == iou(some, empty, absent=absent) == 0
        assert iou(some, some, absent=absent, ignore=some) == pytest.approx(expected, nan_ok=True)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(DataError, match=r"prediction has shape \(2, 3\), truth \(3, 2\)"):
        boundary_iou(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(DataError, match=r"\(2, 2, 2\)"):
        boundary_iou(np.ones((2, 2, 2)), np.ones((2, 2, 2)))


label_maps = st.tuples(
    hnp.arrays(np.uint8, (12, 17), elements=st.integers(0, 3)),
    hnp.arrays(np.uint8, (12, 17), elements=st.sampled_from([0, 1, 2, 3, 255])),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(label_maps, min_size=1, max_size=3), st.sampled_from([0.02, 0.1]))
def test_class_scores_are_those_of_masks(pictures: list[tuple[NDArray, NDArray]], ratio: float) -> None:
    scores = BoundaryScores(4, dilation_ratio=ratio)
    singles = [scores.update(prediction, truth) for prediction, truth in pictures]
    for k in range(4):
        overlaps = [boundary_overlap(p == k, t == k, dilation_ratio=ratio, ignore=t == 255) for p, t in pictures]
        shared = sum(o.intersection for o in overlaps)
        union = sum(o.union for o in overlaps)
        expected = shared / union if union[0] else np.full(2, np.nan)
        np.testing.assert_array_equal(scores.boundary_iou()[k], expected[1])
        np.testing.assert_array_equal(scores.min_boundary_iou()[k], expected.min())
    stacked = BoundaryScores.from_counts(np.stack([single.counts for single in singles]))
    assert stacked.boundary_iou().shape == (len(pictures), 4)
    np.testing.assert_array_equal(stacked.boundary_iou()[0], singles[0].boundary_iou())


def test_what_is_predicted_at_ignored_pixels_does_not_matter() -> None:
    truth = blobs(1, (60, 60)).astype(np.uint8)
    truth[20:30] = 255
    prediction = blobs(2, (60, 60)).astype(np.uint8)
    other = np.where(truth == 255, 7, prediction)
    np.testing.assert_array_equal(
        BoundaryScores(2).update(prediction, truth).counts, BoundaryScores(2).update(other, truth).counts
    )


def test_presence_and_absent_are_those_of_the_confusion_matrix() -> None:
    scores = BoundaryScores(4)
    scores.update(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 2, 2]]))
    np.testing.assert_array_equal(scores.boundary_iou(), [1, 0, 0, np.nan])
    np.testing.assert_array_equal(scores.boundary_iou(presence="gt"), [1, np.nan, 0, np.nan])
    np.testing.assert_array_equal(scores.min_boundary_iou(absent=0), [1, 0, 0, 0])
    assert scores.mean_boundary_iou() == scores.mean_min_boundary_iou() == pytest.approx(1 / 3)
    assert scores.mean_boundary_iou(presence="gt") == 0.5


def test_overlapping_classes_are_stacks_of_masks() -> None:
    truth = np.stack([blobs(1, (30, 40)), blobs(2, (30, 40))]).astype(np.int8)
    prediction = np.stack([blobs(3, (30, 40)), blobs(4, (30, 40))]).astype(np.uint8)
    truth[1, :5] = -1
    scores = BoundaryScores(2)
    scores.update(prediction, truth)
    expected = [boundary_iou(prediction[k], truth[k] > 0, ignore=truth[k] < 0) for k in range(2)]
    np.testing.assert_array_equal(scores.boundary_iou(), expected)
    with pytest.raises(DataError, match=r"expected \(3, H, W\)"):
        BoundaryScores(3).update(prediction, truth)


@pytest.mark.parametrize(("prediction", "truth", "message"), [(0, 9, "the truth holds 9"), (9, 1, "the prediction holds 9")])
def test_values_that_are_no_class_are_named(prediction: int, truth: int, message: str) -> None:
    scores = BoundaryScores(2)
    with pytest.raises(DataError, match=message):
        scores.update(np.array([[0, prediction]]), np.array([[0, truth]]))
    assert not scores.counts.any()
    BoundaryScores(2).update(np.array([[0, 9]]), np.array([[0, 255]]))  # where the truth is ignored, any value goes


def test_processes_merge_and_pictures_resample() -> None:
    pictures = [(blobs(2 * k, (50, 60)).astype(int), blobs(2 * k, (50, 60)).astype(int)) for k in range(4)]
    pictures = [(np.roll(p, k, axis=0), t) for k, (p, t) in enumerate(pictures)]
    whole, first, second = BoundaryScores(2), BoundaryScores(2), BoundaryScores(2)
    singles = [whole.update(*picture) for picture in pictures]
    for k, picture in enumerate(pictures):
        (first if k % 2 else second).update(*picture)
    reduced = BoundaryScores(2)
    reduced.state = first.state + second.state
    first.merge(second)
    assert torch.equal(first.state, whole.state)
    assert torch.equal(reduced.state, whole.state)
    low, high = bootstrap_interval(
        np.stack([single.counts for single in singles]), lambda c: BoundaryScores.from_counts(c).mean_boundary_iou()
    )
    assert low < whole.mean_boundary_iou() < high
    with pytest.raises(ValueError, match="cannot merge"):
        whole.merge(BoundaryScores(2, dilation_ratio=0.1))


def test_eroding_a_label_map_invents_labels() -> None:
    """Detectron2 takes label map minus eroded label map, which is right for one class of id 1 only."""
    labels = np.zeros((60, 60), np.uint8)
    labels[10:50, 10:30], labels[10:50, 30:50] = 5, 7
    width = boundary_width(labels.shape)
    as_detectron2 = labels - minimum_filter(labels, 2 * width + 1, mode="constant")
    assert 2 in as_detectron2  # 7 - 5: a class that is nowhere in the picture
    assert (as_detectron2[labels == 7] == 2).any()
    ours = np.where(sum(boundary_region(labels == k, width) for k in (0, 5, 7)), labels, 255)
    assert set(np.unique(ours)) == {0, 5, 7, 255}
    # Where 5 meets 7, 5 is the smaller label, so that the label map's erosion finds no boundary of 5 there at all.
    assert as_detectron2[30, 29] == 0
    assert ours[30, 29] == 5
    one = (labels == 5).astype(np.uint8)
    np.testing.assert_array_equal(one - minimum_filter(one, 2 * width + 1, mode="constant"), boundary_region(one, width))


def test_regions_of_run_lengths() -> None:
    dense = [blobs(seed, (70, 90)) for seed in range(4)] + [np.zeros((70, 90), bool)]
    rles: list[Any] = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in dense]
    width = boundary_width((70, 90))
    for given_masks in (dense, rles):
        for mask, region in zip(dense, boundary_rles(given_masks), strict=True):
            np.testing.assert_array_equal(coco_mask.decode(region), boundary_region(mask, width))  # type: ignore[arg-type]
    matrix = min_boundary_iou_matrix(rles[:2], rles[2:])
    expected = [[min_boundary_iou(d, t) for t in dense[2:]] for d in dense[:2]]
    np.testing.assert_array_equal(matrix, expected)
    crowd = min_boundary_iou_matrix(rles[:2], rles[2:], [0, 1, 0])
    np.testing.assert_array_equal(crowd[:, [0, 2]], matrix[:, [0, 2]])
    np.testing.assert_array_equal(crowd[:, 1], [(d & dense[3]).sum() / d.sum() for d in dense[:2]])
    assert min_boundary_iou_matrix([], rles).shape == (0, 5)


class BoundaryAP(COCOeval):
    """pycocotools' evaluation with our IoU in the place of its own."""

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803
        truths, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truths and not found:
            return []
        found = sorted(found, key=lambda detection: -detection["score"])[: self.params.maxDets[-1]]
        rles = [[annotation["segmentation"] for annotation in side] for side in (found, truths)]
        return min_boundary_iou_matrix(*rles, [truth["iscrowd"] for truth in truths])


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        ("boundary_small3/gt_dataset.json", "boundary_small3/dt_dataset.json", "small3_boundary"),
        (
            "cocoapi/instances_val2014_100.json",
            "cocoapi/instances_val2014_fakesegm100_results.json",
            "coco_fakesegm100_boundary",
        ),
    ],
)
def test_boundary_ap_equals_that_of_boundary_iou_api(real_data: Path, truth: str, found: str, expected: str) -> None:
    folder = real_data / "reference_eval"
    numbers = json.loads((folder / "expected.json").read_text())[expected]
    coco = COCO(folder / truth)
    detections = json.loads((folder / found).read_text())
    for detection in detections:
        detection.pop("bbox", None)  # so that areas are those of the masks
        detection["segmentation"] = coco.annToRLE(detection)
    evaluation = BoundaryAP(coco, coco.loadRes(detections), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    np.testing.assert_array_equal(evaluation.stats, list(numbers.values()))
