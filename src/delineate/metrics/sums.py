"""What measures that are functions of sums have in common: they stream over pictures and merge across processes."""

from __future__ import annotations

from copy import copy
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor


class StreamingSums:
    """A measure of pictures by what they add up to, so that every score is a function of sums.

    `sums` (..., *shape): leading axes, one entry a picture for example, stay in the scores (`with_sums`). `settings` are what
    must be equal for sums to be added: classes, thresholds and the like, by name.
    """

    def __init__(self, sums: NDArray[Any], settings: dict[str, object]) -> None:
        self.sums = sums
        self._shape = sums.shape
        self._settings = settings

    def with_sums(self, sums: NDArray[Any]) -> Self:
        """The same measure of other sums (..., *shape): of all processes, of single pictures, or that a bootstrap draws."""
        if sums.shape[sums.ndim - len(self._shape) :] != self._shape:
            expected = ", ".join(["...", *map(str, self._shape)])
            raise ValueError(f"sums have shape {sums.shape}, expected ({expected})")
        other = copy(self)
        other.sums = sums
        return other

    def merge(self, other: Self) -> None:
        """Add the sums of `other`, made of other pictures or by another process; ValueError if its settings are others."""
        if self._settings != other._settings:
            raise ValueError(f"cannot merge sums of {_listed(other._settings)} into those of {_listed(self._settings)}")
        self.sums = self.sums + other.sums

    @property
    def state(self) -> Tensor:
        """The sums as a tensor; assign what an all-reduce (sum) of it gives to merge the processes of a run."""
        return torch.from_numpy(self.sums)

    @state.setter
    def state(self, value: Tensor) -> None:
        sums = value.cpu().numpy()
        if sums.dtype != self.sums.dtype:
            raise ValueError(f"state is {sums.dtype}, expected {self.sums.dtype}")
        self.sums = self.with_sums(sums).sums


def _listed(settings: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
