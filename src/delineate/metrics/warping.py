"""Warping error: what is left of the difference between two masks when borders may move and topology may not.

Jain et al. 2010, "Boundary learning by optimization with topological constraints", doi 10.1109/CVPR.2010.5539950. A pixel is
simple if flipping it changes neither the number of objects, nor of holes, nor which holes lie in which objects (Kong and
Rosenfeld 1989, "Digital topology"). L is a warping of T if it comes of T by flipping, one after the other, pixels that are
simple at that moment. Objects are 4-connected, and the background, which goes on outside the picture, is 8-connected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from delineate.errors import DataError

Mask = NDArray[np.bool_]

# The neighbours of a pixel clockwise from the one above, as (row, column): those with an even index share a side with it.
_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
_BITS = 1 << np.arange(8)


KINDS = ("split", "merge", "hole", "object", "border")
REACH = 5.0  # pixels, as in the paper


@dataclass(frozen=True, slots=True, eq=False)
class WarpingError:
    """What is left of the difference between a prediction and the truth, warped onto it."""

    pixels: int  # that count
    different: int  # of them, after warping
    kinds: dict[str, int]  # the same by what flipping each would do to the warped truth, by the names of KINDS
    warped: Mask  # (H, W)

    @property
    def error(self) -> float:
        """Share of the pixels that are left different; NaN when no pixel counts."""
        return self.different / self.pixels if self.pixels else math.nan


def warping_error(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    *,
    reach: float | None = REACH,
    thorough: bool = False,
    ignore: NDArray[Any] | None = None,
) -> WarpingError:
    """`|S - L|^2 / n` of the prediction S and the best warping L of the truth T that is found: topological errors, in pixels.

    Arrays (H, W) in which all but 0 is object: the cells, where membranes part them. Pixels can flip within `reach` pixels
    (Euclidean) of the background of T, the outside of the picture included, so objects shrink by that at most and grow freely;
    None: all can. Where `ignore` (bool) is true nothing is flipped or counted. Raises DataError when the shapes differ.

    The least error is hard to find. As in the paper, L comes by descent: each flip makes it equal to S at a simple pixel, until
    no such pixel is left. The paper takes them in random order; here they flip in rounds, so that borders move evenly and a
    result can be repeated. The error is thus an upper bound of the least one: L follows a border that moved by its width or
    less, and does not go through pixels in which S and T agree. With `thorough` L also starts from T with its objects shrunk
    as far as they may be, which follows thin borders farther, and the better of the two counts; it takes three times as long.

    Each pixel that is left is of a kind, by what flipping it in L would do: "split" an object, "merge" objects, make or remove
    a "hole" or an "object", or nothing: a "border" that may not move farther, with what lies behind it counted as holes.

    >>> truth, moved, merged = np.ones((3, 3, 9), int)
    >>> truth[:, 3:5], moved[:, 4:6] = 0, 0  # two objects, parted by columns of background
    >>> warping_error(moved, truth).error, warping_error(merged, truth).kinds["merge"]
    (0.0, 3)
    """
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise DataError(f"prediction has shape {prediction.shape}, truth {truth.shape}; both must be the same (H, W)")
    wanted = truth != 0
    allowed = np.ones(truth.shape, bool) if reach is None else _near_background(wanted, reach)
    found = prediction != 0
    counted = truth.size
    if ignore is not None:
        found, allowed = np.where(ignore, wanted, found), allowed & ~ignore.astype(bool)
        counted -= int(np.count_nonzero(ignore))
    warped = warp(wanted, found, allowed)
    if thorough:
        shrunk = warp(wanted, np.zeros_like(wanted), allowed)
        warped = min(warped, warp(shrunk, found, allowed), key=lambda labels: np.count_nonzero(labels != found))
    left = np.argwhere(warped != found)
    kinds = np.bincount(_kinds(warped, left), minlength=len(KINDS))
    return WarpingError(counted, len(left), dict(zip(KINDS, kinds.tolist(), strict=True)), warped)


def warp(source: Mask, target: Mask, allowed: Mask) -> Mask:
    """Flip simple pixels of `source` that differ from `target` and lie in `allowed`, until there is none left.

    Arrays (H, W) of bool. Returns a warping of `source` that no single flip brings nearer to `target`.
    """
    stride = source.shape[1] + 2
    state, goal, free = (np.pad(x, 1).reshape(-1) for x in (source, target, allowed))
    around = np.array([row * stride + column for row, column in _RING])
    simple = _simple()
    front = np.flatnonzero((state != goal) & free)
    while len(front):
        moved = []
        # Pixels of one field do not touch one another, so flipping them all at once is flipping one after the other.
        field = 2 * (front // stride % 2) + front % stride % 2
        for k in range(4):
            pixels = front[field == k]
            pixels = pixels[simple[_neighbourhoods(state, pixels, around)]]
            state[pixels] ^= True
            moved.append(pixels)
        # Only a neighbour of what moved can have become simple.
        near = np.unique(np.concatenate(moved)[:, None] + around)
        front = near[(state[near] != goal[near]) & free[near]]
    return state.reshape(-1, stride)[1:-1, 1:-1].copy()


def _near_background(mask: Mask, reach: float) -> Mask:
    return np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1] <= reach


def _kinds(warped: Mask, left: NDArray[np.int64]) -> NDArray[np.int64]:
    """What flipping each pixel (row, column) of `left` would do to `warped`, as index into KINDS."""
    state = np.pad(warped, 1)
    objects, backgrounds = np.empty(state.shape, np.int32), np.empty(state.shape, np.int32)
    ndimage.label(state, output=objects)
    ndimage.label(~state, np.ones((3, 3)), output=backgrounds)
    ring = left[:, None] + 1 + np.array(_RING)  # (P, 8, 2)
    rows, columns = ring[..., 0], ring[..., 1]
    inside = warped[left[:, 0], left[:, 1]]
    parts, gaps = (table[state[rows, columns] @ _BITS] for table in _components())
    meeting = _distinct(objects[rows, columns][:, ::2])  # objects that share a side with the pixel
    parted = _distinct(backgrounds[rows, columns])
    split, merge, hole, thing, border = range(len(KINDS))
    return np.select(
        [parts == 0, gaps == 0, (parts == 1) & (gaps == 1), inside & (parted < gaps), ~inside & (meeting > 1)],
        [thing, hole, border, split, merge],
        hole,  # a hole is opened, or an object closes around one
    )


def _distinct(labels: NDArray[Any]) -> NDArray[np.int64]:
    """How many different numbers, without 0, each row has."""
    ordered = np.sort(labels, axis=1)
    return (np.diff(ordered, axis=1, prepend=0) != 0).sum(axis=1)


def _neighbourhoods(state: Mask, pixels: NDArray[np.int64], around: NDArray[np.int64]) -> NDArray[np.int64]:
    """The neighbourhood of each pixel as eight bits, bit k that of _RING[k]."""
    return state[pixels[:, None] + around] @ _BITS


@lru_cache(maxsize=1)
def _components() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each neighbourhood the parts of the object and of the background around the pixel, that touch it, (256,) each."""
    objects, backgrounds = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for code in range(256):
        inside = [bool(code >> k & 1) for k in range(8)]
        groups = _groups([k for k in range(8) if inside[k]], steps=(1,))
        objects[code] = sum(any(k % 2 == 0 for k in group) for group in groups)
        backgrounds[code] = len(_groups([k for k in range(8) if not inside[k]], steps=(1, 2)))
    return objects, backgrounds


def _groups(members: Sequence[int], steps: Sequence[int]) -> list[set[int]]:
    """The members of the ring in connected groups; a step of 2 is diagonal, between two that share a side with the middle."""
    groups: list[set[int]] = []
    for k in members:
        near = {(k + s) % 8 for step in steps for s in (step, -step) if step == 1 or k % 2 == 0}
        touching = [group for group in groups if group & near]
        groups = [group for group in groups if not group & near] + [{k}.union(*touching)]
    return groups


@lru_cache(maxsize=1)
def _simple() -> Mask:
    """Whether a pixel with each of the 256 neighbourhoods is simple."""
    objects, backgrounds = _components()
    return (objects == 1) & (backgrounds == 1)
