"""Average precision equals pycocotools' own, bit for bit: of both backends, and from the statistics of single pictures."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from _coco_cases import assert_same, pycocotools_arrays, random_case, random_settings
from delineate.metrics.average_precision import IouType
from delineate.metrics.coco import coco_curves, coco_matches

seeds = st.integers(0, 2**32 - 1)
EXAMPLES = 60


@settings(max_examples=EXAMPLES, deadline=None)
@given(seeds, st.sampled_from(["bbox", "segm", "keypoints"]), st.sampled_from([17, 1, 5, 14]))
def test_both_backends_and_the_statistics_equal_pycocotools(seed: int, iou_type: IouType, points: int) -> None:
    truth, detections = random_case(seed, iou_type, points)
    if not detections:
        return
    chosen = random_settings(seed, iou_type, points)
    arrays = pycocotools_arrays(truth, detections, chosen)
    for backend in ("hotcoco", "pycocotools"):
        assert_same(coco_curves(truth, detections, chosen, backend=backend), arrays)
        assert_same(coco_matches(truth, detections, chosen, backend=backend).curves(), arrays)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_boundary_matches_are_those_of_the_curves(seed: int) -> None:
    truth, detections = random_case(seed, "segm")
    chosen = random_settings(seed, "boundary")
    curves = coco_curves(truth, detections, chosen)
    assert_same(
        coco_matches(truth, detections, chosen).curves(), {n: getattr(curves, n) for n in ("precision", "recall", "scores")}
    )
