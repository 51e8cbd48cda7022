"""Pooling regions of feature maps on a GPU, by Triton: what `roi_reference` computes, all levels in one launch, no atomics.

Layout: channels last; maps in another are copied, and so is the result. Sums and positions are float32, whatever the maps are
(float32, bfloat16, float16; float64 stays with the reference). Positions are rounded as in the reference, without fused
multiply-adds, so that no point falls on the other side of an edge. A box of an image or level that is not there gives NaN and
no gradient, and reads nothing: to raise an error would be to wait for the GPU.

Forward: a program takes a few bins of one box and a block of channels, and visits their points together.

Backward: a program takes a tile of cells of one map and a block of channels, and gathers. It looks at all boxes, many at a
time, and takes those that touch the tile one after the other, in the order of their rows: weights (cells, bins) times
gradients (bins, channels), a small matrix product. So each number is written once, by one program, from a float32 sum in fixed
order: the same bits every time. The alternative, to sort the contributions by cell, needs memory that grows with the area of
the boxes; this needs none, except that the maximum keeps the index of each bin's largest point, 4 bytes a value. Its costs:

- looking, tiles x boxes / `_LOOK` times: 8 times a tile for 1,000 boxes, little beside the pooling;
- each pooled gradient is read once for every tile that its bin touches, from the cache if all goes well;
- where all boxes lie in one place, a few programs have all the work.

No GPU has run these kernels yet: the sizes below follow from counts of registers and reads, and are not tuned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from delineate.ops import roi_triton_kernels
from delineate.ops.roi_reference import Rule
from delineate.ops.triton_jit import EXACT, available, power_of_two

__all__ = ["available", "pool", "pool_backward"]

_BINS, _CHANNELS = 8, 256  # of a program of the forward pass
_TILE_Y, _TILE_X, _TILE_CHANNELS = 4, 8, 128  # cells and channels of a program of the backward pass
_LOOK = 128  # boxes that it looks at together
_BINS_AT_ONCE = 16  # of a box, in one product: the least that the tensor cores take


def pool(maps: Sequence[Tensor], rois: Tensor, levels: Tensor, scales: Sequence[float], rule: Rule, result: Tensor) -> Tensor:
    """Pool regions of maps (N, C, H, W) into `result` (K, C, height, width), and return it: `pool_reference`.

    `rois` (K, 5) float32, `levels` (K,) int64.
    """
    place = _place(result)
    if result.numel():
        _forward([_rows(m) for m in maps], rois, levels, scales, rule, _rows(place), False)
    return result if place is result else result.copy_(place)


def pool_backward(
    grad: Tensor,
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    rule: Rule,
    results: Sequence[Tensor],
) -> list[Tensor]:
    """Write the gradients of `pool`'s maps into `results`, of their shapes, and return them: `pool_reference_backward`."""
    places = [_place(r) for r in results]
    gradient = _rows(grad.to(maps[0].dtype))
    points = torch.empty(gradient.shape if rule.mode == "max" else 0, dtype=torch.int32, device=grad.device)
    if points.numel():
        _forward([_rows(m) for m in maps], rois, levels, scales, rule, points, True)
    if any(p.numel() for p in places):
        _backward([_rows(p) for p in places], gradient, points, rois, levels, scales, rule)
    return [r if p is r else r.copy_(p) for r, p in zip(results, places, strict=True)]


def _rows(features: Tensor) -> Tensor:
    """(N, H, W, C) in row-major order, a view of what is channels last."""
    return features.detach().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)


def _place(result: Tensor) -> Tensor:
    """Where a kernel may write a result: itself, or memory of its size if it is not channels last."""
    last = torch.channels_last
    return result if result.is_contiguous(memory_format=last) else torch.empty_like(result, memory_format=last)


def _forward(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    rule: Rule,
    result: Tensor,
    points: bool,
) -> None:
    images, _, _, channels = maps[0].shape
    block = min(_CHANNELS, power_of_two(channels))
    grid = (len(rois) * -(-rule.height * rule.width // _BINS), -(-channels // block))
    boxes = rois.contiguous(), levels.contiguous()
    with torch.cuda.device_of(result):
        roi_triton_kernels.forward[grid](
            result, tuple(maps), *_sizes(maps, scales), *boxes, images, channels, rule, points, _BINS, block, **EXACT
        )


def _backward(
    results: Sequence[Tensor],
    grad: Tensor,
    points: Tensor,
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    rule: Rule,
) -> None:
    images, _, _, channels = results[0].shape
    block = min(_TILE_CHANNELS, max(16, power_of_two(channels)))
    tiles = sum(images * -(-r.shape[1] // _TILE_Y) * -(-r.shape[2] // _TILE_X) for r in results)
    # the interpreter, which alone works on the CPU, cannot multiply matrices of bfloat16
    short = grad.dtype == torch.float16 or (grad.dtype == torch.bfloat16 and grad.device.type != "cpu")
    boxes = rois.contiguous(), levels.contiguous(), len(rois)
    blocks = _TILE_Y, _TILE_X, block, _LOOK, _BINS_AT_ONCE
    with torch.cuda.device_of(grad):
        roi_triton_kernels.backward[(tiles, -(-channels // block))](
            tuple(results), grad, points, *_sizes(results, scales), *boxes, images, channels, rule, *blocks, short, **EXACT
        )


def _sizes(maps: Sequence[Tensor], scales: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Heights, widths and scales, all as floats: for integers Triton compiles anew when 16 divides them."""
    return tuple(float(m.shape[1]) for m in maps), tuple(float(m.shape[2]) for m in maps), tuple(map(float, scales))
