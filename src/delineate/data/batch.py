"""`Batch` and `InstanceBatch`: what one training or validation step of a semantic network, or of a detector, reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from delineate.ops.instances import InstanceTargets


@dataclass(slots=True)
class Batch:
    """B pictures, ready for the network, and their targets."""

    images: Tensor  # (B, C, H, W) float32, as `Conventions` say
    labels: Tensor  # (B, H, W) int64, 255 = not counted; multilabel: (B, K, H, W) float32 in 0..1, -1 = not counted
    weight: Tensor | None = None  # (B, H, W) float32, weight of each pixel in the loss
    distance: Tensor | None = None  # (B, H, W) float32, 0 outside objects, 1 at the deepest point of each
    names: tuple[str, ...] = ()  # of the B pictures

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; the DataLoader calls this where a GPU waits."""
        return self._map(Tensor.pin_memory)

    def __len__(self) -> int:
        return self.images.shape[0]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        weight = None if self.weight is None else function(self.weight)
        distance = None if self.distance is None else function(self.distance)
        return Batch(function(self.images), function(self.labels), weight, distance, self.names)


def collate(batches: Sequence[Batch]) -> Batch:
    """Join batches of pictures of one size, in order, into one.

    >>> ones = Batch(torch.ones(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64), names=("a",))
    >>> len(collate([ones, ones])), collate([ones, ones]).names
    (2, ('a', 'a'))
    """
    return Batch(
        images=torch.cat([batch.images for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
        weight=_join([batch.weight for batch in batches]),
        distance=_join([batch.distance for batch in batches]),
        names=tuple(name for batch in batches for name in batch.names),
    )


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


@dataclass(slots=True)
class InstanceBatch:
    """B pictures, padded at the right and below to one size, and their objects."""

    images: Tensor  # (B, C, H, W) float32, as `Conventions` say; 0 in the padding
    sizes: Tensor  # (B, 2) int64, height and width of each picture before padding
    targets: InstanceTargets
    names: tuple[str, ...] = ()  # of the B pictures

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> InstanceBatch:
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> InstanceBatch:
        """Return the batch in page-locked memory; the DataLoader calls this where a GPU waits."""
        return self._map(Tensor.pin_memory)

    def __len__(self) -> int:
        return self.images.shape[0]

    def _map(self, function: Callable[[Tensor], Tensor]) -> InstanceBatch:
        targets = InstanceTargets(*(None if tensor is None else function(tensor) for tensor in self.targets))  # pyright: ignore[reportArgumentType]
        return InstanceBatch(function(self.images), function(self.sizes), targets, self.names)
