"""The warping error against exhaustive search, the counts of objects and holes, cases made by hand, and real membranes."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from delineate.errors import DataError
from delineate.metrics import rand_error, warping_error
from delineate.metrics.warping import _RING, KINDS, _simple, warp

Mask = NDArray[np.bool_]
SHAPE = (3, 4)
STATES = 1 << SHAPE[0] * SHAPE[1]


def components(mask: Mask, neighbours: NDArray) -> int:
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, neighbours, output=labels)
    return int(labels.max())


def topology(mask: Mask) -> tuple[int, int]:
    """Objects (4-connected) and parts of the background (8-connected, with the outside): a flip is simple if both stay."""
    padded = np.pad(mask, 1)
    return components(padded, np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])), components(~padded, np.ones((3, 3)))


def flipped(mask: Mask, row: int, column: int) -> Mask:
    other = mask.copy()
    other[row, column] ^= True
    return other


def test_a_pixel_is_simple_where_its_flip_keeps_objects_and_holes() -> None:
    for code in range(256):
        mask = np.zeros((3, 3), bool)
        for k, (row, column) in enumerate(_RING):
            mask[1 + row, 1 + column] = code >> k & 1
        assert _simple()[code] == (topology(mask) == topology(flipped(mask, 1, 1)))
    assert _simple().sum() == 116


# Exhaustive search: every mask of 3 x 4 pixels is a number, and a flip of pixel k changes bit k.


def as_mask(state: int) -> Mask:
    return (state >> np.arange(SHAPE[0] * SHAPE[1]) & 1).astype(bool).reshape(SHAPE)


def as_state(mask: Mask) -> int:
    return int((mask.reshape(-1) << np.arange(mask.size)).sum())


@lru_cache(maxsize=1)
def topologies() -> list[tuple[int, int]]:
    return [topology(as_mask(state)) for state in range(STATES)]


def warpings(state: int, allowed: int) -> set[int]:
    """All that simple flips of allowed pixels make of a mask."""
    known, seen, stack = topologies(), {state}, [state]
    while stack:
        here = stack.pop()
        for k in range(SHAPE[0] * SHAPE[1]):
            there = here ^ 1 << k
            if allowed >> k & 1 and known[there] == known[here] and there not in seen:
                seen.add(there)
                stack.append(there)
    return seen


states = st.integers(0, STATES - 1)


@settings(max_examples=150, deadline=None)
@given(states, states, st.one_of(st.just(STATES - 1), states))
def test_descent_ends_in_a_warping_that_no_flip_improves(source: int, target: int, allowed: int) -> None:
    reachable, known = warpings(source, allowed), topologies()
    warped = as_state(warp(as_mask(source), as_mask(target), as_mask(allowed)))
    assert warped in reachable
    left = warped ^ target
    for k in range(SHAPE[0] * SHAPE[1]):
        if left & allowed & 1 << k:
            assert known[warped ^ 1 << k] != known[warped]
    assert left.bit_count() >= min((state ^ target).bit_count() for state in reachable)


@settings(max_examples=100, deadline=None)
@given(states, states)
def test_the_error_lies_between_the_least_one_and_that_of_pixels(truth: int, prediction: int) -> None:
    least = min((state ^ prediction).bit_count() for state in warpings(truth, STATES - 1))
    errors = [warping_error(as_mask(prediction), as_mask(truth), reach=None, thorough=t) for t in (False, True)]
    assert least <= errors[1].different <= errors[0].different <= (truth ^ prediction).bit_count()
    assert (errors[0].different == 0) >= (truth == prediction)


def test_the_least_error_is_found_in_most_small_cases() -> None:
    rng = np.random.default_rng(0)
    found, least, thorough = [], [], []
    for _ in range(300):
        truth = int(rng.integers(STATES))
        prediction = truth
        for k in rng.integers(0, SHAPE[0] * SHAPE[1], 2):
            prediction ^= 1 << int(k)
        masks = as_mask(prediction), as_mask(truth)
        least.append(min((state ^ prediction).bit_count() for state in warpings(truth, STATES - 1)))
        found.append(warping_error(*masks, reach=None).different)
        thorough.append(warping_error(*masks, reach=None, thorough=True).different)
    assert np.mean(np.equal(found, least)) > 0.8
    assert np.mean(np.equal(thorough, least)) >= np.mean(np.equal(found, least))


@settings(max_examples=150, deadline=None)
@given(states, states, st.sampled_from([None, 1.0]))
def test_kinds_say_what_each_flip_would_do(truth: int, prediction: int, reach: float | None) -> None:
    error = warping_error(as_mask(prediction), as_mask(truth), reach=reach)
    expected = dict.fromkeys(KINDS, 0)
    before = topology(error.warped)
    for row, column in np.argwhere(error.warped != as_mask(prediction)):
        objects, backgrounds = np.subtract(topology(flipped(error.warped, row, column)), before)
        inside = error.warped[row, column]
        around = np.pad(error.warped, 1)[row : row + 3, column : column + 3]
        if not (around[1, ::2].any() or around[::2, 1].any()):
            kind = "object"
        elif objects != 0:
            kind = "split" if inside else "merge"
        else:
            kind = "hole" if backgrounds != 0 else "border"
        expected[kind] += 1
    assert error.kinds == expected
    assert sum(error.kinds.values()) == error.different
    assert reach is not None or error.kinds["border"] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 3.0, None]))
def test_warping_keeps_the_topology_of_larger_pictures(seed: int, reach: float | None) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = (ndimage.gaussian_filter(rng.normal(size=(40, 50)), 2) > 0 for _ in range(2))
    for thorough in (False, True):
        error = warping_error(prediction, truth, reach=reach, thorough=thorough)
        assert topology(error.warped) == topology(truth)
        assert error.different < (truth != prediction).sum()
        if reach is not None:
            far = np.asarray(ndimage.distance_transform_edt(np.pad(truth, 1)))[1:-1, 1:-1] > reach
            assert error.warped[far].all()


# By hand


def walls(*columns: int, width: int = 3, shape: tuple[int, int] = (9, 30)) -> Mask:
    """Cells, parted by walls that begin at the columns."""
    cells = np.ones(shape, bool)
    for column in columns:
        cells[:, column : column + width] = False
    return cells


@pytest.mark.parametrize("shift", [-3, -1, 1, 2, 3])
def test_a_moved_border_costs_nothing(shift: int) -> None:
    error = warping_error(walls(12 + shift), walls(12))
    assert error.error == 0
    np.testing.assert_array_equal(error.warped, walls(12 + shift))


def test_a_wider_or_narrower_border_costs_nothing() -> None:
    assert warping_error(walls(13, width=1), walls(12)).error == 0
    assert warping_error(walls(9, width=9), walls(12)).error == 0


def test_a_thin_border_is_followed_farther_when_thorough() -> None:
    truth, near, far = (walls(column, width=1) for column in (12, 13, 16))
    assert warping_error(near, truth).error == 0
    # Descent does not cross columns where both are cell: the old wall stays, and the new one ends before it parts.
    assert warping_error(far, truth).kinds == {"split": 1, "merge": 9, "hole": 0, "object": 0, "border": 0}
    assert warping_error(far, truth, thorough=True).error == 0


def test_a_missing_border_merges_and_costs_its_length() -> None:
    error = warping_error(walls(), walls(12))
    assert error.kinds == {"split": 0, "merge": 9, "hole": 0, "object": 0, "border": 0}
    assert error.error == 9 / 270


def test_a_gap_in_a_border_costs_a_pixel_whatever_its_width() -> None:
    for width in (1, 3):
        gap = walls(12, width=width)
        gap[4] = True
        assert warping_error(gap, walls(12, width=width)).kinds["merge"] == 1


def test_a_new_border_splits() -> None:
    error = warping_error(walls(5, 15), walls(5))
    assert error.kinds["split"] == error.different == 3  # as thin as the cell that runs around its end may be
    closed = walls(5)
    closed[2:7, 20] = False
    assert warping_error(closed, walls(5)).kinds == {"split": 0, "merge": 0, "hole": 5, "object": 0, "border": 0}


def test_holes_and_objects() -> None:
    truth = walls(12)
    hole, thing = truth.copy(), truth.copy()
    hole[4, 5] = False
    thing[4, 13] = True
    assert warping_error(hole, truth).kinds["hole"] == warping_error(hole, truth).different == 1
    assert warping_error(thing, truth).kinds["object"] == warping_error(thing, truth).different == 1
    assert warping_error(truth, hole).kinds["hole"] == 1  # a hole that is missing
    assert warping_error(truth, thing).kinds["object"] == 1
    none = warping_error(np.zeros((5, 5)), np.pad(np.ones((3, 3)), 1))
    assert none.kinds["object"] == none.different == 1  # it shrinks to one pixel


def test_borders_that_move_too_far_cost_what_lies_beyond_reach() -> None:
    truth = np.pad(np.ones((1, 20), bool), ((10, 10), (2, 2)))
    truth = ndimage.binary_dilation(truth, iterations=9)
    shrunk = ndimage.binary_erosion(truth, iterations=8)
    assert warping_error(shrunk, truth, reach=None).error == 0
    error = warping_error(shrunk, truth, reach=2)
    assert error.kinds["border"] > 0
    assert error.kinds["border"] + error.kinds["hole"] == error.different  # what lies behind that border
    assert warping_error(truth, shrunk, reach=0).error == 0  # objects grow freely


def test_ignored_pixels_are_not_counted() -> None:
    gap = walls(12)
    gap[4] = True
    ignore = np.zeros(gap.shape, bool)
    ignore[3:6, 10:17] = True
    error = warping_error(gap, walls(12), ignore=ignore)
    assert (error.error, error.pixels) == (0, gap.size - ignore.sum())
    assert math.isnan(warping_error(gap, gap, ignore=np.ones_like(gap)).error)
    with pytest.raises(DataError, match=r"prediction has shape \(9, 30\), truth \(9, 20\)"):
        warping_error(gap, gap[:, :20])


def test_real_membranes(real_data: Path) -> None:
    with Image.open(real_data / "isbi2012_em" / "train" / "label" / "00.png") as image:
        cells = np.asarray(image) > 0
    smooth = ndimage.gaussian_filter(cells.astype(float), 2) > 0.5
    error = warping_error(smooth, cells)
    assert topology(error.warped) == topology(cells)
    assert 0 < error.error < 0.03 * (smooth != cells).mean()
    assert error.kinds["border"] == 0
    assert warping_error(cells, cells).error == 0
    assert warping_error(np.ones_like(cells), cells).kinds["merge"] > 5000  # no membranes at all


# Rand error

label_maps = hnp.arrays(np.int64, st.tuples(st.just(3), st.integers(1, 6)), elements=st.integers(0, 3))


@settings(max_examples=100, deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_rand_error_is_the_share_of_pairs_that_disagree(data: st.DataObject, foreground: bool, singletons: bool) -> None:
    prediction = data.draw(label_maps)
    truth = data.draw(hnp.arrays(np.int64, prediction.shape, elements=st.integers(0, 3)))
    p, t = prediction.reshape(-1).copy(), truth.reshape(-1)
    if singletons:
        p[p == 0] = 100 + np.flatnonzero(p == 0)
    if foreground:
        p, t = p[t != 0], t[t != 0]
    error = rand_error(prediction, truth, foreground=foreground, singletons=singletons)
    if len(p) == 0:
        assert math.isnan(error)
        return
    first, second = np.triu_indices(len(p), 1)
    disagree = (p[first] == p[second]) != (t[first] == t[second])
    assert error == pytest.approx(disagree.mean() if len(first) else 0.0)
