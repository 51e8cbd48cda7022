"""clDice against the authors' code, on drawn tubes and on vessels of CHASE DB1, and where there is no centreline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from skimage.morphology import skeletonize

from delineate.errors import DataError
from delineate.metrics.centerline import CenterlineOverlap, centerline_overlap

# jocpae/clDice, commit 47d31a6cc4a8, cldice_metric/cldice.py with scikit-image 0.22: clDice(tubes(seed), tubes(seed + 1)).
AUTHORS = [
    (3, (33, 47), 0.17766497461928932),
    (13, (30, 30), 0.20202020202020202),
    (15, (24, 40), 0.189873417721519),
    (17, (28, 32), 0.19377162629757783),
    (5, (14, 20, 18), 0.6917057902973396),
    (7, (20, 16, 24), 0.2278738555442523),
]
# The same code: clDice(second observer, first observer) of pictures of CHASE DB1.
AUTHORS_CHASE = [("01L", 0.8518370842459411), ("02R", 0.7775951103131755), ("07L", 0.8126163007916138)]


def tubes(seed: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Five random walks, three pixels wide."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(5):
        at = np.array([rng.integers(0, side) for side in shape])
        for _ in range(40):
            at = np.clip(at + rng.integers(-1, 2, len(shape)), 0, np.array(shape) - 1)
            mask[tuple(slice(max(a - 1, 0), a + 2) for a in at)] = True
    return mask


@pytest.mark.parametrize(("seed", "shape", "expected"), AUTHORS)
def test_equals_the_authors_code(seed: int, shape: tuple[int, ...], expected: float) -> None:
    overlap = centerline_overlap(tubes(seed, shape), tubes(seed + 1, shape))
    assert overlap.dice() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("name", "expected"), AUTHORS_CHASE)
def test_equals_the_authors_code_on_vessels(real_data: Path, name: str, expected: float) -> None:
    files = [real_data / "chase_db1" / f"Image_{name}_{observer}HO.png" for observer in ("2nd", "1st")]
    second, first = (np.array(Image.open(file)) > 0 for file in files)
    assert centerline_overlap(second, first).dice() == pytest.approx(expected, rel=1e-14)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[hnp.arrays(bool, (9, 12))] * 3))
def test_is_the_formula_of_the_paper(arrays: tuple[NDArray, NDArray, NDArray]) -> None:
    prediction, truth, ignore = arrays
    overlap = centerline_overlap(prediction, truth, ignore=ignore)
    p, t = prediction & ~ignore, truth & ~ignore
    of_p, of_t = skeletonize(p), skeletonize(t)
    with np.errstate(invalid="ignore"):
        precision, sensitivity = (of_p & t).sum() / of_p.sum(), (of_t & p).sum() / of_t.sum()
        dice = 2 * precision * sensitivity / (precision + sensitivity)
    assert overlap.precision() == pytest.approx(precision, nan_ok=True)
    assert overlap.sensitivity() == pytest.approx(sensitivity, nan_ok=True)
    if p.any() and t.any() and not np.isnan(dice):
        assert overlap.dice() == pytest.approx(dice)
    else:  # where the authors' code divides 0 by 0
        assert overlap.dice() == (0 if p.any() or t.any() else pytest.approx(np.nan, nan_ok=True))


def test_a_thin_prediction_costs_little_and_a_gap_much() -> None:
    truth = np.zeros((15, 60), bool)
    truth[5:10, 5:55] = True
    thin = np.zeros_like(truth)
    thin[7, 5:55] = True
    whole = centerline_overlap(thin, truth)
    assert whole.precision() == 1
    assert whole.true_inside >= whole.true - 2  # an end of the skeleton may turn to a corner
    thin[7, 20:40] = False
    gap = centerline_overlap(thin, truth)
    assert gap.precision() == 1
    assert gap.true_inside == whole.true_inside - 20


@pytest.mark.parametrize(("absent", "expected"), [("nan", np.nan), (0, 0.0), (1, 1.0)])
def test_empty_masks(absent: Any, expected: float) -> None:
    empty, some = np.zeros((6, 6), bool), np.eye(6, dtype=bool)
    nothing = centerline_overlap(empty, empty)
    assert nothing == CenterlineOverlap(0, 0, 0, 0)
    for score in (nothing.dice, nothing.precision, nothing.sensitivity):
        assert score(absent=absent) == pytest.approx(expected, nan_ok=True)
    assert centerline_overlap(empty, some).dice(absent=absent) == 0
    assert centerline_overlap(some, empty).dice(absent=absent) == 0
    assert centerline_overlap(some, np.fliplr(some)).dice(absent=absent) == 0  # no overlap: 0 / 0 in the authors' code


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(DataError, match=r"prediction has shape \(2, 3\)"):
        centerline_overlap(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(DataError, match="two and three dimensions"):
        centerline_overlap(np.ones(3), np.ones(3))
