"""Which picture comes next: endless orders of pictures, and the share of an epoch that each process draws from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One picture to be read."""

    picture: int  # index into the records
    ticket: int  # place in the endless order, different for every draw of a run: seeds the random changes
    point: tuple[float, float] | None = None  # y, x of a pixel that the patch is to show; None: wherever


class Places(NamedTuple):
    """Where the classes are: for each picture, part of it and class there the centroid of its pixels."""

    pictures: NDArray[np.intp]  # (S,)
    classes: NDArray[np.intp]  # (S,)
    points: NDArray[np.float64]  # (S, 2) y, x


Order = Callable[[int], int]
"""Index of the picture at each place of an endless order."""


def class_centroids(
    labels: NDArray[np.integer], part: tuple[int, int], classes: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the classes (S,) in each `part` of a label map (H, W), and the centroids (S, 2), y and x, of their pixels there.

    Parts are (height, width), side by side from the upper left corner, smaller at the edges. Values from `classes` on do not
    count.

    >>> found, points = class_centroids(np.array([[0, 0, 1], [0, 0, 1]]), (2, 2), 2)
    >>> found.tolist(), points.tolist()
    ([0, 1], [[0.5, 0.5], [0.5, 2.0]])
    """
    rows, columns = (np.arange(extent) // of for extent, of in zip(labels.shape, part, strict=True))
    y, x = np.nonzero(labels < classes)
    place = (rows[y] * (columns[-1] + 1) + columns[x]) * classes + labels[y, x]
    count = np.bincount(place)
    present = np.flatnonzero(count)
    sums = np.stack([np.bincount(place, weights=axis) for axis in (y, x)], axis=1)
    return present % classes, sums[present] / count[present, None]


def even_order(pictures: int, seed: int) -> Order:
    """Return one random permutation of all pictures after the other: after n draws each was drawn n/pictures times, within 1.

    >>> order = even_order(4, seed=0)
    >>> sorted(order(place) for place in range(4)), sorted(order(place) for place in range(4, 8))
    ([0, 1, 2, 3], [0, 1, 2, 3])
    """
    return lambda place: int(_permutation(pictures, seed, 0, place // pictures)[place % pictures])


def class_uniform_order(classes: NDArray[np.intp], seed: int) -> Order:
    """Return an order that draws each class as often as the others, and then one of its places, each as often.

    `classes` (S,): the class at place s. The order is one of indices of places (Zhu et al. 2019, "Improving Semantic
    Segmentation via Video Propagation and Label Relaxation").
    """
    groups = [np.flatnonzero(classes == present) for present in np.unique(classes)]

    def picture_at(place: int) -> int:
        round_, turn = divmod(place, len(groups))
        number = int(_permutation(len(groups), seed, 0, round_)[turn])
        group = groups[number]
        return int(group[_permutation(len(group), seed, number + 1, round_ // len(group))[round_ % len(group)]])

    return picture_at


def repeat_factor_order(presence: NDArray[np.bool_], threshold: float, seed: int) -> Order:
    """Return an order that shows pictures of rare classes more often (Gupta et al. 2019, "LVIS", section B.2).

    `presence` (N, K): whether picture n shows class k. A class in the share f of the pictures has the factor
    max(1, sqrt(threshold / f)), a picture the largest factor of its classes, 1 without any. In every round a picture is drawn
    as often as its factor says, in the long run exactly: a factor of 1.5 is one draw in one round and two in the next.

    >>> order = repeat_factor_order(np.array([[True, False], [True, False], [True, True], [True, False]]), 1.0, seed=0)
    >>> sum(order(place) == 2 for place in range(500))  # its class is in a quarter of the pictures: factor 2
    200
    """
    share = presence.mean(0)
    class_factors = np.sqrt(threshold / np.where(share > 0, share, 1.0)).clip(min=1.0)
    factors = np.where(presence, class_factors, 1.0).max(1, initial=1.0)
    offsets = np.random.default_rng((seed, 1)).random(len(factors))

    def drawn(rounds: int) -> NDArray[np.int64]:
        """How often each picture is drawn in the first `rounds` rounds."""
        return np.floor(rounds * factors + offsets).astype(np.int64)

    @lru_cache(maxsize=4)
    def members(round_: int) -> tuple[int, NDArray[np.intp]]:
        """The place where a round begins, and its pictures in order."""
        before = drawn(round_)
        pictures = np.repeat(np.arange(len(factors)), drawn(round_ + 1) - before)
        return int(before.sum()), pictures[_permutation(len(pictures), seed, 0, round_)]

    def picture_at(place: int) -> int:
        round_ = int(place / factors.sum())  # or the one before or after
        while members(round_)[0] > place:
            round_ -= 1
        while members(round_ + 1)[0] <= place:
            round_ += 1
        start, pictures = members(round_)
        return int(pictures[place - start])

    return picture_at


def aspect_grouped_order(order: Order, shapes: NDArray[np.float64], batch: int, seed: int) -> Order:
    """Return `order` with windows of it sorted by the pictures' shape, so that a batch pads little.

    `shapes` (N,): width over height of each picture. Batches of `batch` places then hold pictures of like shape, and follow
    each other at random. Within a window, of 16 batches but no more than a round, the same pictures are drawn as without.

    >>> order = aspect_grouped_order(even_order(8, seed=0), np.array([0.5, 2.0] * 4), batch=4, seed=0)
    >>> sorted([[order(place) % 2 for place in places] for places in (range(4), range(4, 8))])
    [[0, 0, 0, 0], [1, 1, 1, 1]]
    """
    window = min(16, max(1, len(shapes) // batch))
    length = window * batch

    @lru_cache(maxsize=4)
    def pictures_of(number: int) -> NDArray[np.intp]:
        drawn = np.array([order(place) for place in range(number * length, (number + 1) * length)])
        by_shape = drawn[np.argsort(shapes[drawn], kind="stable")].reshape(window, batch)
        return by_shape[_permutation(window, seed, 2, number)].ravel()

    return lambda place: int(pictures_of(place // length)[place % length])


class EpochSampler(Sampler[Draw]):
    """The draws of one process in the epoch that `set_epoch` names.

    Epoch e covers places e * S to (e + 1) * S - 1 of `order`, S = steps * batch * world; process `rank` of `world` takes every
    `world`-th, so that `world` processes with batches of B draw together what one draws with batches of `world` * B, step by
    step. An epoch depends on its number only: a run that was stopped continues as if it had not been. With `places` the order
    is one of these, and each draw has its point.
    """

    def __init__(
        self, order: Order, *, steps: int, batch: int, rank: int = 0, world: int = 1, places: Places | None = None
    ) -> None:
        self.order, self.places, self.steps, self.batch, self.rank, self.world = order, places, steps, batch, rank, world
        self.epoch = self.skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch, counted from 0, that the next iteration draws, without its first `skip` batches."""
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[Draw]:
        first, end = ((self.epoch * self.steps + batches) * self.batch * self.world for batches in (self.skip, self.steps))
        for place in range(first + self.rank, end, self.world):
            yield self._draw(place)

    def _draw(self, ticket: int) -> Draw:
        index = self.order(ticket)
        if self.places is None:
            return Draw(index, ticket)
        y, x = self.places.points[index].tolist()
        return Draw(int(self.places.pictures[index]), ticket, (y, x))


@lru_cache(maxsize=256)
def _permutation(count: int, seed: int, stream: int, number: int) -> NDArray[np.intp]:
    return np.random.default_rng((seed, stream, number)).permutation(count)
