"""Anchors: the boxes of fixed sizes and shapes that a region-proposal network starts from (Faster R-CNN, arXiv:1506.01497)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(
    sizes: Sequence[float],
    ratios: Sequence[float],
    *,
    rounded: bool = False,
    size_major: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the anchors of one cell, around (0, 0): (sizes * ratios, 4) float32 xyxy.

    A size is the square root of the area in pixels, a ratio is height / width. The sources differ, and imported weights need
    the right values: torchvision has `rounded` corners (a half to the even number); Detectron2 is `size_major`, with all ratios
    of the first size first; MMDetection is neither.

    >>> cell_anchors([32], [0.5], rounded=True)
    tensor([[-23., -11.,  23.,  11.]])
    """
    areas, slopes = (torch.tensor(values, dtype=torch.float64) for values in (sizes, ratios))
    width = areas / slopes.sqrt()[:, None]  # (ratios, sizes)
    height = areas * slopes.sqrt()[:, None]
    corner = torch.stack([width, height], -1) / 2
    if size_major:
        corner = corner.transpose(0, 1)
    if rounded:
        corner = corner.round()
    corner = corner.reshape(-1, 2)
    return torch.cat([-corner, corner], -1).to(device, torch.float32)


def grid_anchors(cell: Tensor, grid: tuple[int, int], stride: tuple[int, int] | int, offset: float = 0.0) -> Tensor:
    """Return the anchors of a feature map, row by row, those of one place together: (height * width * A, 4) xyxy.

    `cell` (A, 4) is of `cell_anchors`; `grid` is (height, width) of the map, `stride` the pixels (y, x) from one place to the
    next, and `offset` where in its stride the first centre lies: 0 in torchvision, Detectron2 and MMDetection.

    >>> grid_anchors(torch.tensor([[-1.0, -1, 1, 1]]), (1, 2), 16)
    tensor([[-1., -1.,  1.,  1.],
            [15., -1., 17.,  1.]])
    """
    stride_y, stride_x = (stride, stride) if isinstance(stride, int) else stride
    y = (torch.arange(grid[0], device=cell.device, dtype=cell.dtype) + offset) * stride_y
    x = (torch.arange(grid[1], device=cell.device, dtype=cell.dtype) + offset) * stride_x
    place = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)  # (height, width, 2)
    return (place.repeat(1, 1, 2)[:, :, None] + cell).reshape(-1, 4)
