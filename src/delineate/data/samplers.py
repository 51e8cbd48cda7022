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


Order = Callable[[int], int]
"""Index of the picture at each place of an endless order."""


def even_order(pictures: int, seed: int) -> Order:
    """Return one random permutation of all pictures after the other: after n draws each was drawn n/pictures times, within 1.

    >>> order = even_order(4, seed=0)
    >>> sorted(order(place) for place in range(4)), sorted(order(place) for place in range(4, 8))
    ([0, 1, 2, 3], [0, 1, 2, 3])
    """
    return lambda place: int(_permutation(pictures, seed, 0, place // pictures)[place % pictures])


def class_uniform_order(presence: NDArray[np.bool_], seed: int) -> Order:
    """Return an order that draws each class as often as the others, and then one of the pictures that show it, each as often.

    `presence` (N, K): whether picture n shows class k. Classes that no picture shows are left out.
    """
    groups = [np.flatnonzero(column) for column in presence.T if column.any()]

    def picture_at(place: int) -> int:
        round_, turn = divmod(place, len(groups))
        number = int(_permutation(len(groups), seed, 0, round_)[turn])
        group = groups[number]
        return int(group[_permutation(len(group), seed, number + 1, round_ // len(group))[round_ % len(group)]])

    return picture_at


class EpochSampler(Sampler[Draw]):
    """The draws of one process in the epoch that `set_epoch` names.

    Epoch e covers places e * S to (e + 1) * S - 1 of `order`, S = steps * batch * world; process `rank` of `world` takes every
    `world`-th, so that `world` processes with batches of B draw together what one draws with batches of `world` * B, step by
    step. An epoch depends on its number only: a run that was stopped continues as if it had not been.
    """

    def __init__(self, order: Order, *, steps: int, batch: int, rank: int = 0, world: int = 1) -> None:
        self.order, self.steps, self.batch, self.rank, self.world = order, steps, batch, rank, world
        self.epoch = self.skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch, counted from 0, that the next iteration draws, without its first `skip` batches."""
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[Draw]:
        first, end = ((self.epoch * self.steps + batches) * self.batch * self.world for batches in (self.skip, self.steps))
        for place in range(first + self.rank, end, self.world):
            yield Draw(self.order(place), place)


@lru_cache(maxsize=256)
def _permutation(count: int, seed: int, stream: int, number: int) -> NDArray[np.intp]:
    return np.random.default_rng((seed, stream, number)).permutation(count)
