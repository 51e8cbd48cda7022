"""Regions of interest: RoIPool, RoIWarp and RoIAlign, on one feature map or on all levels of a pyramid in one call.

Coordinates: a box is x0, y0, x1, y1 in pixels of the picture; `spatial_scale` brings it to cells of the feature map.

| operation | the box | a bin | its points |
|---|---|---|---|
| `roi_pool` | rounded to cells, both ends included | rounded outwards to cells | its cells |
| `roi_warp` | rounded in the same way | exact | interpolated |
| `roi_align` | exact | exact | interpolated |

Each result is the mean or the maximum of a bin's points. Points more than one cell off the map count as 0, and so does a box
with NaN or infinite coordinates, unless `checked=True`, which makes it an error. A batch index out of range is an error too;
on a GPU, without `checked`, it gives NaN. A native kernel computes on the CPU, one in Triton on a GPU (but not in float64), and
without them the reference; float16 and bfloat16 are summed in float32.
Gradients flow to the feature maps, of first and second order, and not to the boxes. Under autocast nothing is converted: the
result has the type of the feature maps, and boxes stay in float32, which rounding to bfloat16 would move by pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from delineate.ops import gpu, native
from delineate.ops.roi_reference import Mode, Rule, pool_reference, pool_reference_backward, round_half_away

Boxes = Tensor | Sequence[Tensor]
"""(K, 5) batch index and xyxy, or one (L, 4) xyxy for each image of the batch."""
Size = int | tuple[int, int]


def roi_align(
    input: Tensor,
    boxes: Boxes,
    output_size: Size,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    mode: Mode = "mean",
    checked: bool = False,
) -> Tensor:
    """Return the features (K, C, height, width) of each box, interpolated without rounding (He et al. 2017, Mask R-CNN).

    `input` (N, C, H, W), any memory layout, which the result has too. `sampling_ratio`: points a bin and axis; 0 or less takes
    as many as a bin has cells, rounded up. `aligned`: cell centres lie at 0.5, as the pixel centres of the picture do;
    without it they lie at 0 and boxes are at least one cell large, as in the first implementations. With mode="mean" it is
    torchvision.ops.roi_align; "max" takes the largest point. Raises ValueError for wrong shapes and batch indices.

    >>> roi_align(torch.arange(16.0).reshape(1, 1, 4, 4), [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2, aligned=True)
    tensor([[[[ 2.5000,  4.5000],
              [10.5000, 12.5000]]]])
    """
    rule = _rule(output_size, False, sampling_ratio, aligned, mode)
    return _pool([input], _rois(boxes, [input]), None, [spatial_scale], rule, checked)


def roi_pool(
    input: Tensor,
    boxes: Boxes,
    output_size: Size,
    spatial_scale: float = 1.0,
    *,
    mode: Mode = "max",
    checked: bool = False,
) -> Tensor:
    """Return the largest (or mean) cell of each bin of each box, (K, C, height, width), edges rounded (Girshick 2015).

    `input` (N, C, H, W). torchvision.ops.roi_pool with mode="max". A bin without cells is 0. Raises as `roi_align`.

    >>> roi_pool(torch.arange(16.0).reshape(1, 1, 4, 4), [torch.tensor([[0.0, 0.0, 3.0, 3.0]])], 2)
    tensor([[[[ 5.,  7.],
              [13., 15.]]]])
    """
    rule = _rule(output_size, True, 0, False, mode)
    return _pool([input], _rois(boxes, [input]), None, [spatial_scale], rule, checked)


def roi_warp(
    input: Tensor,
    boxes: Boxes,
    output_size: Size,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    *,
    mode: Mode = "mean",
    checked: bool = False,
) -> Tensor:
    """Return the interpolated features (K, C, height, width) of each box rounded to cells: the third in Mask R-CNN's table 2c.

    The box is rounded as by `roi_pool`, start = round(x0 * scale) and end = round(x1 * scale) + 1, and what is left is cut into
    bins and interpolated as by `roi_align`, with cell centres at 0.5; after the RoI warping layer of Dai et al. (2016, MNC),
    which is bilinear too. It loses the alignment that `roi_align` keeps, and rounds no bins. A box of as many cells as bins
    gives those cells, with sampling_ratio=1. Raises as `roi_align`.
    """
    rois = _rois(boxes, [input])
    start = round_half_away(rois[:, 1:3] * spatial_scale)
    end = round_half_away(rois[:, 3:5] * spatial_scale) + 1
    end = torch.where(end.isfinite(), torch.maximum(end, start + 1), end)
    rule = _rule(output_size, False, sampling_ratio, True, mode)
    return _pool([input], torch.cat([rois[:, :1], start, end], dim=1), None, [1.0], rule, checked)


def multilevel_roi_align(
    maps: Sequence[Tensor],
    boxes: Boxes,
    output_size: Size,
    scales: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = False,
    *,
    mode: Mode = "mean",
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    epsilon: float = 1e-6,
    epsilon_inside: bool = False,
    checked: bool = False,
) -> Tensor:
    """Return the features (K, C, height, width) of each box from the level of a pyramid that fits its size, all in one call.

    `maps` (N, C, H_i, W_i) with `scales` 1/4, 1/8, ...: powers of two, each half of the one before. `assign_levels` says which
    box goes where, and explains the other arguments. Equal to torchvision.ops.MultiScaleRoIAlign. Raises as `roi_align`, and
    ValueError for maps of unequal channels and other scales.
    """
    lowest = -math.log2(scales[0]) if scales and scales[0] > 0 else math.nan
    if not maps or len(maps) != len(scales) or list(scales) != [2.0 ** (-lowest - i) for i in range(len(scales))]:
        raise ValueError(
            f"{len(maps)} maps have the scales {list(scales)}; expected one each, falling by halves, as 1/4, 1/8, 1/16"
        )
    rois = _rois(boxes, maps)
    first = round(lowest)
    levels = assign_levels(rois[:, 1:], first, first + len(maps) - 1, canonical_size, canonical_level, epsilon, epsilon_inside)
    rule = _rule(output_size, False, sampling_ratio, aligned, mode)
    return _pool(maps, rois, levels - first, scales, rule, checked)


def assign_levels(
    boxes: Tensor,
    lowest: int,
    highest: int,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    epsilon: float = 1e-6,
    epsilon_inside: bool = False,
) -> Tensor:
    """Return the pyramid level (K,) int64 of each box (K, 4) xyxy: Lin et al. (2017), equation 1, clamped to lowest..highest.

    floor(canonical_level + log2(sqrt(area) / canonical_size) + epsilon) as in torchvision (1e-6), or, with `epsilon_inside`,
    added before the logarithm, as in Detectron2 (1e-8). Boxes without area, or with NaN, go to the lowest level.

    >>> assign_levels(torch.tensor([[0.0, 0, 224, 224], [0, 0, 111, 111], [0, 0, 9999, 9999]]), 2, 5).tolist()
    [4, 2, 5]
    """
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt() / canonical_size
    level = canonical_level + ((size + epsilon).log2() if epsilon_inside else size.log2() + epsilon)
    return torch.nan_to_num(level, nan=lowest).clamp(lowest, highest).floor().long()


def _rule(size: Size, quantized: bool, sampling_ratio: int, aligned: bool, mode: Mode) -> Rule:
    height, width = (size, size) if isinstance(size, int) else size
    if mode not in ("mean", "max"):
        raise ValueError(f"mode is {mode!r}, expected 'mean' or 'max'")
    if height < 1 or width < 1:
        raise ValueError(f"output_size is {size}, expected at least 1")
    return Rule(height, width, quantized, sampling_ratio, aligned, mode)


def _rois(boxes: Boxes, maps: Sequence[Tensor]) -> Tensor:
    """Boxes as one tensor (K, 5), in float64 with maps in float64, else in float32."""
    if any(m.dim() != 4 or m.shape[:2] != maps[0].shape[:2] or not m.is_floating_point() for m in maps):
        shapes = ", ".join(f"{tuple(m.shape)} {m.dtype}" for m in maps)
        raise ValueError(f"feature maps are {shapes}; expected (N, C, H, W) of one N and C in floating point")
    if not isinstance(boxes, Tensor):
        images = maps[0].shape[0]
        if len(boxes) > images or any(b.dim() != 2 or b.shape[1] != 4 for b in boxes):
            raise ValueError(
                f"boxes are {[tuple(b.shape) for b in boxes]}, expected (L, 4) for each of {images} images at most"
            )
        indexed = [torch.cat([torch.full_like(b[:, :1], i), b], dim=1) for i, b in enumerate(boxes)]
        boxes = torch.cat(indexed) if indexed else maps[0].new_zeros(0, 5)
    if boxes.dim() != 2 or boxes.shape[1] != 5:
        raise ValueError(f"boxes have shape {tuple(boxes.shape)}, expected (K, 5): batch index and xyxy, or a list of (L, 4)")
    return boxes.to(torch.float64 if maps[0].dtype == torch.float64 else torch.float32)


def _pool(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, scales: Sequence[float], rule: Rule, checked: bool
) -> Tensor:
    dtype = maps[0].dtype
    for m in maps[1:]:
        dtype = torch.promote_types(dtype, m.dtype)
    if levels is None:
        levels = torch.zeros(len(rois), dtype=torch.int64, device=rois.device)
    return pool_regions([m.to(dtype) for m in maps], rois, levels, list(scales), *rule, checked)


# The operations below are what torch.compile and torch.export see; the arguments are a `Rule`'s fields.


@torch.library.custom_op("delineate::pool_regions", mutates_args=())
def pool_regions(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    height: int,
    width: int,
    quantized: bool,
    sampling_ratio: int,
    aligned: bool,
    mode: str,
    checked: bool,
) -> Tensor:
    rule = Rule(height, width, quantized, sampling_ratio, aligned, mode)  # type: ignore[arg-type]
    _check_rois(rois, maps[0].shape[0], checked)
    rois = _without_infinite(rois)
    result = _empty_result(maps, rois, rule)
    if kernels := gpu.kernels("roi", maps[0]):
        return kernels.pool(maps, rois, levels, scales, rule, result)
    if not _has_kernel(maps):
        return result.copy_(pool_reference(maps, rois, levels, scales, rule))
    last = _channels_last(maps[0]) or mode == "max"
    place = _array(result, last)
    native.kernels.roi_forward(*_kernel_arguments(maps, rois, levels, scales, rule, last), place, torch.get_num_threads())
    return result if place.data_ptr() == result.data_ptr() else result.copy_(place.permute(0, 3, 1, 2))


@torch.library.custom_op("delineate::pool_regions_backward", mutates_args=())
def pool_regions_backward(
    grad: Tensor,
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    height: int,
    width: int,
    quantized: bool,
    sampling_ratio: int,
    aligned: bool,
    mode: str,
) -> list[Tensor]:
    rule = Rule(height, width, quantized, sampling_ratio, aligned, mode)  # type: ignore[arg-type]
    rois = _without_infinite(rois)
    results = _empty_gradients(maps)
    if kernels := gpu.kernels("roi", maps[0]):
        return kernels.pool_backward(grad, maps, rois, levels, scales, rule, results)
    if not _has_kernel(maps):
        return [
            r.copy_(g) for r, g in zip(results, pool_reference_backward(grad, maps, rois, levels, scales, rule), strict=True)
        ]
    last = _channels_last(maps[0]) or mode == "max"
    places = [_array(r, last) for r in results]
    arguments = _kernel_arguments(maps, rois, levels, scales, rule, last)
    native.kernels.roi_backward(_array(grad.to(maps[0].dtype), last), *arguments, places, torch.get_num_threads())
    return [r if p.data_ptr() == r.data_ptr() else r.copy_(p.permute(0, 3, 1, 2)) for r, p in zip(results, places, strict=True)]


def _kernel_arguments(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor, scales: Sequence[float], rule: Rule, last: bool
) -> tuple[Any, ...]:
    arrays = [_array(m, last) for m in maps]
    boxes = rois.detach().contiguous()
    return (
        arrays,
        boxes,
        levels.contiguous(),
        list(scales),
        rule.quantized,
        rule.sampling_ratio,
        rule.aligned,
        rule.mode == "max",
        last,
    )


def _has_kernel(maps: Sequence[Tensor]) -> bool:
    return native.available and maps[0].device.type == "cpu"


def _check_rois(rois: Tensor, images: int, checked: bool) -> None:
    """Raise for batch indices out of range, on a GPU in checked mode only: looking there waits for it."""
    if rois.device.type == "cpu" or checked:
        index = rois[:, 0]
        wrong = ~((index >= 0) & (index < images))  # NaN too
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"box {row} is of image {float(index[row]):g}, but the batch has {images} images")
    if checked:
        wrong = ~rois.isfinite().all(dim=1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"box {row} is {rois[row, 1:].tolist()}: coordinates must be finite")


def _without_infinite(rois: Tensor) -> Tensor:
    """Boxes with a coordinate that is not finite, as boxes of NaN: those have no points."""
    boxes = torch.where(rois.isfinite().all(dim=1, keepdim=True), rois[:, 1:], torch.nan)
    return torch.cat([rois[:, :1], boxes], dim=1)


def _channels_last(features: Tensor) -> bool:
    return features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()


def _memory_format(maps: Sequence[Tensor]) -> torch.memory_format:
    return torch.channels_last if _channels_last(maps[0]) else torch.contiguous_format


def _array(features: Tensor, last: bool) -> Tensor:
    """The tensor as a kernel takes it, in row-major order: (N, H, W, C) if `last`, else (N, C, H, W). A view where possible."""
    if last:
        return features.detach().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return features.detach().contiguous()


def _empty_result(maps: Sequence[Tensor], rois: Tensor, rule: Rule) -> Tensor:
    shape = (rois.shape[0], maps[0].shape[1], rule.height, rule.width)
    return torch.empty(shape, dtype=maps[0].dtype, device=maps[0].device, memory_format=_memory_format(maps))


def _empty_gradients(maps: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty(m.shape, dtype=m.dtype, device=m.device, memory_format=_memory_format(maps)) for m in maps]


@pool_regions.register_fake
def _(maps, rois, levels, scales, height, width, quantized, sampling_ratio, aligned, mode, checked):
    return _empty_result(maps, rois, Rule(height, width, quantized, sampling_ratio, aligned, mode))


@pool_regions_backward.register_fake
def _(grad, maps, rois, levels, scales, height, width, quantized, sampling_ratio, aligned, mode):
    return _empty_gradients(maps)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, rois, levels, ctx.scales, *rule = inputs
    ctx.save_for_backward(rois, levels, *maps)
    ctx.rule = rule[:6]  # without `checked`


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    rois, levels, *maps = ctx.saved_tensors
    return pool_regions_backward(grad, maps, rois, levels, ctx.scales, *ctx.rule), *[None] * 10


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, maps, rois, levels, ctx.scales, *ctx.rule = inputs
    ctx.save_for_backward(rois, levels, *maps)


def _differentiate_backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    """The backward pass is linear in the result's gradient, and its adjoint is a forward pass; in the maps it is constant."""
    rois, levels, *maps = ctx.saved_tensors
    directions = [torch.zeros_like(m) if g is None else g for g, m in zip(grads, maps, strict=True)]
    rule = Rule(*ctx.rule)
    if rule.mode == "mean":
        adjoint = pool_regions(directions, rois, levels, ctx.scales, *rule, False)
    else:
        adjoint = pool_reference(directions, rois, levels, ctx.scales, rule, selectors=maps)
    return adjoint, [None] * len(maps), *[None] * 9


pool_regions.register_autograd(_differentiate, setup_context=_keep)
pool_regions_backward.register_autograd(_differentiate_backward, setup_context=_keep_backward)
