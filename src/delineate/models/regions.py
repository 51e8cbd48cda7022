"""Features of regions: what the heads of a detector see of each box, and how boxes of a batch become rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from delineate.models.detector_conventions import DetectorConventions
from delineate.ops import assign_levels, multilevel_roi_align, roi_pool, roi_warp
from delineate.ops.roi_reference import Mode

Pooler = Literal["roi_align", "roi_warp", "roi_pool"]


class Regions(NamedTuple):
    """Boxes of a batch, N slots a picture, as the rows that a head computes: K of the B * N slots."""

    rois: Tensor  # (K, 5) float32 index of the picture, xyxy
    rows: Tensor  # (K,) int64 slot of each row in (B * N)
    valid: Tensor  # (K,) bool
    slots: tuple[int, int]  # B, N

    def take(self, values: Tensor) -> Tensor:
        """The rows (K, ...) of `values` (B, N, ...)."""
        return values.flatten(0, 1)[self.rows]

    def spread(self, values: Tensor) -> Tensor:
        """The inverse of `take`: (B, N, ...), zero in slots that are not valid."""
        batch, count = self.slots
        values = torch.where(self.valid.view(-1, *[1] * (values.dim() - 1)), values, 0.0)
        empty = values.new_zeros(batch * count, *values.shape[1:])
        return empty.index_copy(0, self.rows, values).unflatten(0, (batch, count))

    def find(self, part: Regions) -> Tensor:
        """Where among these rows those of `part` are, (K of part,) int64: `part` has the first slots of every picture."""
        _, count = self.slots
        _, kept = part.slots
        return torch.searchsorted(self.rows, part.rows // kept * count + part.rows % kept).clamp(max=len(self.rows) - 1)


def regions(boxes: Tensor, valid: Tensor) -> Regions:
    """Make rows of `boxes` (B, N, 4) xyxy with `valid` (B, N).

    Slots that are not valid are left out, which saves their work and keeps them out of batch normalisation; but at least one
    row stays, so that every head always gets its gradient. Compiled, exported or on the meta device, all slots are rows, in
    shapes that are fixed.
    """
    batch, count = valid.shape
    image = torch.arange(batch, device=boxes.device, dtype=boxes.dtype)[:, None, None].expand(-1, count, 1)
    rois = torch.cat([image, boxes], dim=2).flatten(0, 1)
    if torch.compiler.is_compiling() or valid.is_meta:
        rows = torch.arange(batch * count, device=boxes.device)
    else:
        rows = valid.flatten().nonzero()[:, 0]  # waits for the device
        rows = rows if len(rows) else rows.new_zeros(1)
    return Regions(rois[rows], rows, valid.flatten()[rows], (batch, count))


class RegionFeatures(nn.Module):
    """The features of boxes, (K, C, size, size), read from the maps by one of the operations of `ops.roi`.

    With several maps, each box is read from the level that fits its size. `trunk` is what is computed on the result: the last
    stage of the encoder, in the C4 form. `mode` is "mean" or "max" of a bin's points.
    """

    def __init__(
        self,
        size: int,
        reductions: Sequence[int],
        conventions: DetectorConventions,
        *,
        pooler: Pooler = "roi_align",
        mode: Mode = "mean",
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.scales = [1 / reduction for reduction in reductions]
        self.conventions = conventions
        self.pooler = pooler
        self.mode: Mode = mode
        self.trunk = trunk or nn.Identity()

    def forward(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Return the features of `rois` (K, 5), image index and xyxy in pixels; of the `maps`, the first ones are read."""
        maps = maps[: len(self.scales)]
        pooled = self._align(maps, rois) if self.pooler == "roi_align" else self._quantized(maps, rois)
        return self.trunk(pooled)

    def _align(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        chosen = self.conventions
        return multilevel_roi_align(
            maps,
            rois,
            self.size,
            self.scales,
            chosen.sampling_ratio,
            chosen.aligned,
            mode=self.mode,
            canonical_size=chosen.canonical_size,
            canonical_level=chosen.canonical_level,
            epsilon=chosen.level_epsilon,
            epsilon_inside=chosen.level_epsilon_inside,
        )

    def _quantized(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        chosen = self.conventions
        operation = roi_pool if self.pooler == "roi_pool" else roi_warp
        first = round(1 / self.scales[0]).bit_length() - 1
        levels = assign_levels(
            rois[:, 1:],
            first,
            first + len(maps) - 1,
            chosen.canonical_size,
            chosen.canonical_level,
            chosen.level_epsilon,
            chosen.level_epsilon_inside,
        )
        total = torch.zeros((), dtype=maps[0].dtype, device=maps[0].device)
        for level, (features, scale) in enumerate(zip(maps, self.scales, strict=True), start=first):
            here = torch.where((levels == level)[:, None], rois[:, 1:], torch.nan)  # boxes of other levels: NaN reads as 0
            total = total + operation(features, torch.cat([rois[:, :1], here], dim=1), self.size, scale, mode=self.mode)
        return total
