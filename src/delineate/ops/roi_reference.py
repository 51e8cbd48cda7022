"""Pooling regions of feature maps in plain PyTorch: every device, any number of derivatives, and what the kernels are held to.

A bin of a region is a grid of points: for RoIAlign points between cells, whose values are interpolated; for RoIPool the cells
themselves. A bin's result is the mean or the maximum of its points, so all operations differ only in `Points`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Mode = Literal["mean", "max"]

_CHUNK = 1 << 24
"""Interpolated values held at a time."""


class Rule(NamedTuple):
    """How a box becomes points."""

    height: int  # bins
    width: int
    quantized: bool  # RoIPool: rounded boxes and bins
    sampling_ratio: int  # RoIAlign: points a bin and axis; 0 or less: as many as a bin has cells, rounded up
    aligned: bool  # RoIAlign: the centre of cell i is at i + 0.5
    mode: Mode


class Points(NamedTuple):
    """The points of all bins along one axis of K regions; M is the largest number that a bin has."""

    low: Tensor  # (K, bins, M) int64: cell below
    high: Tensor  # (K, bins, M) int64: cell above
    fraction: Tensor  # (K, bins, M): how far from low to high
    inside: Tensor  # (K, bins, M) bool: exists, and lies on the map
    total: Tensor  # (K, bins): points of the bin, with those off the map, whose value is 0


def align_points(start: Tensor, end: Tensor, scale: float, bins: int, length: int, rule: Rule) -> Points:
    """RoIAlign (He et al. 2017): the box (K,), (K,) in real numbers, cut into equal bins, each of equal parts with a point.

    Points off -1..length are 0, as in torchvision and Detectron2, and so is a box that is not finite.
    """
    offset = 0.5 if rule.aligned else 0.0
    start = start * scale - offset
    size = end * scale - offset - start
    size = size if rule.aligned else size.clamp(min=1)
    bin_size = (size / bins)[:, None]  # (K, 1)
    wanted = torch.full_like(bin_size, rule.sampling_ratio) if rule.sampling_ratio > 0 else bin_size.detach().ceil()
    count = torch.where((wanted >= 1) & (wanted < 2**30), wanted, 0)
    corner = start[:, None] + torch.arange(bins, device=start.device, dtype=start.dtype) * bin_size  # (K, bins)

    step, place = (bin_size / count.clamp(min=1)).detach(), corner.detach()
    regular = (step > 0) & step.isfinite() & place.isfinite()  # then the points far off a map are not made
    first = torch.where(regular, ((-1 - place) / step).floor() - 2, 0).clamp(min=0).minimum(count)
    last = torch.where(regular, ((length - place) / step).ceil() + 2, count).clamp(min=0).minimum(count)
    most = int((last - first).max()) if len(start) else 0  # synchronises
    index = first[..., None] + torch.arange(most, device=start.device)  # (K, bins, M)
    position = corner[..., None] + (index + 0.5) * bin_size[..., None] / count[..., None]

    inside = (index < count[..., None]) & (position >= -1) & (position <= length)
    position = torch.where(inside, position, 0).clamp(min=0)
    low = position.detach().long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    return Points(low, high, torch.where(low < high, position - low, 0), inside, count.expand_as(corner))


def pool_points(start: Tensor, end: Tensor, scale: float, bins: int, length: int) -> Points:
    """RoIPool (Girshick 2015): both ends of the box (K,), (K,) rounded to cells and included, bins rounded outwards."""
    first = round_half_away(start * scale)
    bin_size = ((round_half_away(end * scale) - first + 1).clamp(min=1) / bins)[:, None]
    index = torch.arange(bins, device=start.device, dtype=start.dtype)
    begin = (index * bin_size).floor() + first[:, None]  # (K, bins)
    end = ((index + 1) * bin_size).ceil() + first[:, None]
    finite = begin.isfinite() & end.isfinite()
    begin, end = (torch.where(finite, x, 0).clamp(0, length).long() for x in (begin, end))
    count = end - begin
    most = int(count.max()) if len(start) else 0  # synchronises
    cell = begin[..., None] + torch.arange(most, device=start.device)
    inside = cell < end[..., None]
    cell = cell.clamp(max=length - 1)
    return Points(cell, cell, torch.zeros_like(cell, dtype=start.dtype), inside, count)


def round_half_away(x: Tensor) -> Tensor:
    """C's round: halves away from 0, where torch.round takes the even neighbour.

    >>> round_half_away(torch.tensor([0.5, -0.5, 2.5])).tolist()
    [1.0, -1.0, 3.0]
    """
    return (x.sign() * (x.double().abs() + 0.5).floor()).to(x.dtype)


def pool_reference(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    rule: Rule,
    selectors: Sequence[Tensor] | None = None,
) -> Tensor:
    """Pool regions: (K, C, height, width) of maps (N, C, H, W), rois (K, 5) and the index (K,) of each one's map.

    Computes in float32 or float64. With `selectors`, maps of the same shapes, the maximum is taken where those have it.
    """
    result = torch.zeros(len(rois), maps[0].shape[1], rule.height, rule.width, dtype=rois.dtype, device=rois.device)
    for part in _parts(maps, rois, levels, scales, rule):
        values = _interpolated(maps[part.level], part)
        share = _share(values if selectors is None else _interpolated(selectors[part.level], part), part, rule.mode)
        bins = torch.where(share != 0, values * share, 0).sum((2, 4))  # (k, height, width, C)
        result = result.index_put((part.rows,), bins.permute(0, 3, 1, 2))
    return result.to(maps[0].dtype)


def pool_reference_backward(
    grad: Tensor, maps: Sequence[Tensor], rois: Tensor, levels: Tensor, scales: Sequence[float], rule: Rule
) -> list[Tensor]:
    """Return the gradient of each map, from that of `pool_reference`'s result: its adjoint, written out."""
    totals = [torch.zeros_like(m, dtype=rois.dtype) for m in maps]
    for part in _parts(maps, rois, levels, scales, rule):
        share = _share(_interpolated(maps[part.level], part), part, rule.mode)
        spread = grad[part.rows].to(rois.dtype).permute(0, 2, 3, 1)[:, :, None, :, None] * share
        cells = totals[part.level].permute(0, 2, 3, 1)
        for place, weight in _corners(part):
            cells.index_put_(place, spread * weight[..., None], accumulate=True)
    return [total.to(m.dtype) for total, m in zip(totals, maps, strict=True)]


class _Part(NamedTuple):
    """Some regions of one map."""

    level: int
    rows: Tensor  # (k,) int64 of the result
    images: Tensor  # (k,) int64
    y: Points
    x: Points


def _parts(maps: Sequence[Tensor], rois: Tensor, levels: Tensor, scales: Sequence[float], rule: Rule) -> Iterator[_Part]:
    """All regions whose maps are not empty, few enough at a time to fit in memory."""
    for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        _, channels, height, width = features.shape
        rows = torch.nonzero(levels == level)[:, 0] if features.numel() else levels[:0]
        step = len(rows)
        while len(rows):
            k = rois[rows[:step]]
            if rule.quantized:
                y = pool_points(k[:, 2], k[:, 4], scale, rule.height, height)
                x = pool_points(k[:, 1], k[:, 3], scale, rule.width, width)
            else:
                y = align_points(k[:, 2], k[:, 4], scale, rule.height, height, rule)
                x = align_points(k[:, 1], k[:, 3], scale, rule.width, width, rule)
            values = math.prod(y.low.shape[1:]) * math.prod(x.low.shape[1:]) * channels
            if step > 1 and step * values > _CHUNK:
                step = max(1, min(step // 2, _CHUNK // values))
                continue
            yield _Part(level, rows[:step], k[:, 0].long(), y, x)
            rows = rows[step:]


def _corners(part: _Part) -> list[tuple[tuple[Tensor, Tensor, Tensor], Tensor]]:
    """The four cells around each point and their weights: indices (image, row, column) and weight (k, P, M, Q, L)."""
    y, x = (Points(*(field[..., None, None] for field in part.y)), Points(*(field[:, None, None] for field in part.x)))
    image = part.images[:, None, None, None, None]
    rows = [(y.low, 1 - y.fraction), (y.high, y.fraction)]
    columns = [(x.low, 1 - x.fraction), (x.high, x.fraction)]
    return [((image, row, column), v * w) for row, v in rows for column, w in columns]


def _interpolated(features: Tensor, part: _Part) -> Tensor:
    """The map at each point: (k, P, M, Q, L, C)."""
    cells = features.permute(0, 2, 3, 1)
    return sum(
        (cells[place].to(part.y.fraction.dtype) * weight[..., None] for place, weight in _corners(part)), torch.zeros(())
    )


def _share(values: Tensor, part: _Part, mode: Mode) -> Tensor:
    """What each point contributes to its bin: (k, P, M, Q, L, 1) its part of the mean, or (k, P, M, Q, L, C) 1 for the maximum.

    Points off the map contribute 0, but the maximum may be one of them; among equals the first is taken, and those off the map
    come before all others.
    """
    y, x = part.y, part.x
    inside = y.inside[..., None, None] & x.inside[:, None, None]  # (k, P, M, Q, L)
    if mode == "mean":
        count = (y.total[..., None] * x.total[:, None]).clamp(min=1)  # (k, P, Q)
        return (inside.to(values.dtype) / count[:, :, None, :, None].to(values.dtype))[..., None]
    outside = (y.inside.sum(-1) < y.total)[..., None] | (x.inside.sum(-1) < x.total)[:, None]  # (k, P, Q)
    k, p, m, q, n, c = values.shape
    candidates = values.detach().masked_fill(~inside[..., None], -math.inf).permute(0, 1, 3, 5, 2, 4).reshape(k, p, q, c, m * n)
    zero = torch.where(outside, 0.0, -math.inf).to(values.dtype)[..., None, None].expand(k, p, q, c, 1)
    best = torch.cat([zero, candidates], dim=-1).argmax(-1, keepdim=True)
    chosen = torch.zeros(k, p, q, c, m * n + 1, dtype=values.dtype, device=values.device).scatter_(-1, best, 1.0)[..., 1:]
    return chosen.reshape(k, p, q, c, m, n).permute(0, 1, 4, 2, 5, 3) * inside[..., None]
