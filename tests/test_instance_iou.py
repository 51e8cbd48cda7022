"""Cityscapes' iIoU against its own scripts' numbers and a pixel-by-pixel twin; streaming, merging, intervals and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from delineate.data.formats.cityscapes import CITYSCAPES_CLASSES
from delineate.errors import DataError
from delineate.metrics import (
    CITYSCAPES_CATEGORIES,
    CITYSCAPES_SIZES,
    ConfusionMatrix,
    InstanceIoU,
    bootstrap_interval,
    mean_iou,
    paired_bootstrap,
)

Ids = NDArray[np.int64]
ROAD, SKY, PERSON, RIDER, CAR, BUS, BICYCLE = 0, 10, 11, 12, 13, 15, 18


def street(n: int) -> tuple[Ids, Ids, Ids]:
    """Prediction, truth (train ids) and objects of picture n, (60, 80), from arithmetic alone."""
    y, x = np.mgrid[:60, :80]
    truth = np.where(y < 20, SKY, ROAD)
    objects = np.zeros_like(truth)
    boxes = [(PERSON, 22, 4, 9, 3), (PERSON, 30, 10, 18, 6), (RIDER, 25, 20, 10, 4)]  # class, top, left, height, width
    boxes += [(CAR, 24, 30, 12, 20), (CAR, 45, 5 + n, 4, 7)]
    boxes += [(BUS, 20, 55, 20, 22), (BICYCLE, 42, 30, 6, 8)][: 2 - n % 2]
    for number, (label, top, left, height, width) in enumerate(boxes, start=1):
        inside = (y >= top) & (y < top + height) & (x >= left + n) & (x < left + n + width)
        truth[inside], objects[inside] = label, number
    truth[50:55, 50:70] = CAR  # a group of cars: no objects
    truth[57:], objects[57:, 10:30] = 255, 9  # not counted, nor the object in it (a caravan)
    shift = (3 * x + 5 * y + n) % 7 < 2
    prediction = np.where(shift, np.roll(truth, (2, 3), axis=(0, 1)), truth)
    prediction[(prediction == RIDER) & (x % 2 == 0)] = PERSON
    prediction[prediction == 255] = BUS
    if n == 1:
        prediction[prediction == BICYCLE] = ROAD
    return prediction, truth, objects


def measured(pictures: int, **options: Any) -> tuple[InstanceIoU, list[InstanceIoU]]:
    scores = InstanceIoU(CITYSCAPES_CLASSES, CITYSCAPES_SIZES, **options)
    return scores, [scores.update(*street(n)) for n in range(pictures)]


def test_the_numbers_of_cityscapes_scripts() -> None:
    """Golden: evaluateImgLists of cityscapesScripts 2.3.0 (PyPI, NumPy 2.3) on PNGs of `street`, label and instance ids."""
    expected = {
        "person": 0.7664111864572616,
        "rider": 0.41620779963775145,
        "car": 0.8677025037029664,
        "bus": 0.9351931847713539,
        "bicycle": 0.8423977859524304,
    }
    scores, _ = measured(3)
    found = {name: float(value) for name, value in zip(scores.groups, scores.iou(), strict=True) if not np.isnan(value)}
    assert found == pytest.approx(expected, rel=1e-12)
    assert float(scores.mean_iou()) == pytest.approx(0.7655824921043527, rel=1e-12)
    categories, _ = measured(3, groups=CITYSCAPES_CATEGORIES)
    assert categories.iou() == pytest.approx([0.7732476686575869, 0.9039145539215058], rel=1e-12)
    assert float(categories.mean_iou()) == pytest.approx(0.8385811112895463, rel=1e-12)
    matrix = ConfusionMatrix(19)  # and the plain IoU of the same run
    for n in range(3):
        matrix.update(*street(n)[:2])
    assert mean_iou(matrix.overlap, "cityscapes") == pytest.approx(0.7361897694523446, rel=1e-12)


SIZES = {"b": 3.0, "c": 7.5}


def plain(prediction: Ids, truth: Ids, objects: Ids) -> NDArray[np.float64]:
    """iIoU of classes 1 and 2, object by object."""
    scores = []
    for label, size in ((1, 3.0), (2, 7.5)):
        found = missed = 0.0
        for number in np.unique(objects[(objects > 0) & (truth == label)]):
            own = (objects == number) & (truth == label)
            found += size / own.sum() * (own & (prediction == label)).sum()
            missed += size / own.sum() * (own & (prediction != label)).sum()
        wrong = ((prediction == label) & (truth != label) & (truth != 255)).sum()
        scores.append(found / (found + missed + wrong) if found + missed + wrong else np.nan)
    return np.array(scores)


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(np.int64, (3, 8), elements=st.integers(0, 2)),
    hnp.arrays(np.int64, (3, 8), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(np.int64, (3, 8), elements=st.integers(0, 3)),
)
def test_random_pictures_agree_with_the_definition(prediction: Ids, truth: Ids, numbers: Ids) -> None:
    objects = np.where(numbers > 0, numbers + 10 * truth, 0)  # an object has one class
    scores = InstanceIoU(("a", "b", "c"), SIZES)
    scores.update(prediction, truth, objects)
    np.testing.assert_allclose(scores.iou(), plain(prediction, truth, objects), rtol=1e-12)


def test_it_streams_merges_and_has_an_interval() -> None:
    whole, rows = measured(8)
    one, _ = measured(3)
    rest = InstanceIoU(CITYSCAPES_CLASSES, CITYSCAPES_SIZES)
    for n in range(3, 8):
        rest.update(*street(n))
    one.merge(rest)
    np.testing.assert_allclose(one.sums, whole.sums, rtol=1e-12)
    other = InstanceIoU(CITYSCAPES_CLASSES, CITYSCAPES_SIZES)
    other.state = whole.state
    np.testing.assert_array_equal(other.iou(), whole.iou())
    statistics = np.stack([row.sums for row in rows])
    np.testing.assert_array_equal(whole.with_sums(statistics).iou(), [row.iou() for row in rows])
    low, high = bootstrap_interval(statistics, lambda sums: whole.with_sums(sums).mean_iou(), resamples=200)
    assert low < whole.mean_iou() < high
    worse = InstanceIoU(CITYSCAPES_CLASSES, CITYSCAPES_SIZES)
    poorer = []
    for n in range(8):
        prediction, truth, objects = street(n)
        prediction[::5] = ROAD
        poorer.append(worse.update(prediction, truth, objects).sums)
    compared = paired_bootstrap(statistics, np.stack(poorer), lambda sums: whole.with_sums(sums).mean_iou(), resamples=200)
    assert 0 < compared.low < compared.difference < compared.high


def test_hard_cases() -> None:
    scores = InstanceIoU(("a", "b", "c"), SIZES)
    nothing = np.zeros((2, 3), np.int64)
    assert np.isnan(scores.update(nothing, nothing, nothing).iou()).all()
    assert np.isnan(scores.update(nothing + 1, nothing + 255, nothing + 5).mean_iou())  # nothing counts
    crowd = scores.update(nothing, nothing + 1, nothing)  # true pixels without an object are neither found nor missed
    assert np.isnan(crowd.iou()).all()
    assert scores.update(nothing + 1, nothing, nothing).iou()[0] == 0
    with pytest.raises(DataError, match="object 7 lies on more than one true class"):
        scores.update(nothing, np.array([[0, 1, 1], [1, 1, 2]]), nothing + 7)
    with pytest.raises(DataError, match="holds -1"):
        scores.update(nothing, nothing + 1, nothing - 1)
    with pytest.raises(DataError, match="objects have shape"):
        scores.update(nothing, nothing, nothing[:1])
    with pytest.raises(DataError, match="the prediction holds 3"):
        scores.update(nothing + 3, nothing, nothing)
    with pytest.raises(ValueError, match="'d' is not a class"):
        InstanceIoU(("a", "b"), {"d": 1.0})
    with pytest.raises(ValueError, match="'a' is not a class, or has no average size"):
        InstanceIoU(("a", "b"), {"b": 1.0}, {"both": ("a", "b")})
    with pytest.raises(ValueError, match="cannot merge"):
        scores.merge(InstanceIoU(("a", "b", "c"), {"b": 3.0}))
    with pytest.raises(ValueError, match="sums have shape"):
        scores.with_sums(np.zeros((3, 3)))
