"""Pasting: small masks over boxes, as a mask head predicts them, become masks of the picture.

A mask is a lattice of values over its box, 0 around it. The value at the centre of a pixel is interpolated linearly, first
along the row, then along the column, and the pixel belongs to the object if it is at least the threshold. What differs between
libraries is only where the lattice lies:

- "detectron2": over the box as it is, whatever its fractions of pixels.
- "torchvision": the box is grown by one cell of the mask on each side, its corners are cut to integers (towards 0), and it is a
  pixel longer than their difference.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from delineate.ops import gpu, native
from delineate.ops.boxes import constants

Convention = Literal["detectron2", "torchvision"]


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5, convention: Convention = "detectron2"
) -> Tensor:
    """Return the masks (N, S, T) of probabilities over boxes (N, 4) xyxy as masks of a picture: (N, height, width) bool.

    `size` is (height, width); `threshold` is above 0, because a picture has probability 0 outside the boxes. Apply the sigmoid
    to logits first: probabilities are what both libraries interpolate. Pixels equal those of Detectron2's
    `paste_masks_in_image` and torchvision's `paste_masks_in_image(...) >= threshold`, but for values that differ from the
    threshold by rounding alone. A box that is not finite, or has no area (in torchvision's convention: is inside out),
    covers nothing. Masks are computed in float32; a NaN in one is below every threshold. N times the memory of the picture:
    `paste_rle` needs none of it. Raises ValueError for other shapes, thresholds or conventions.

    >>> paste_masks(torch.ones(1, 2, 2), torch.tensor([[1.0, 0, 3, 2]]), (2, 4)).int()
    tensor([[[0, 1, 1, 0],
             [0, 1, 1, 0]]], dtype=torch.int32)
    """
    check_paste(masks, boxes, threshold, convention)
    return paste(masks.detach(), boxes.detach(), *size, threshold, convention)


def check_paste(masks: Tensor, boxes: Tensor, threshold: float, convention: Convention) -> None:
    """Raise ValueError for arguments that `paste_masks` cannot mean."""
    if masks.ndim != 3 or 0 in masks.shape[1:] or boxes.shape != (masks.shape[0], 4):
        raise ValueError(f"masks {tuple(masks.shape)} and boxes {tuple(boxes.shape)}; expected (N, S, T) and (N, 4)")
    if not threshold > 0:
        raise ValueError(f"threshold {threshold}: expected a number above 0, the probability outside of boxes")
    if convention not in ("detectron2", "torchvision"):
        raise ValueError(f"convention {convention!r}; expected 'detectron2' or 'torchvision'")


class Placement(NamedTuple):
    """Where masks (N, S, T) lie in a picture: along an axis, the lattice coordinate of pixel p is

        (p + 0.5 - origin) / extent * cells - shift

    with cell i of the mask at coordinate i. Pixels outside first..last - 1 have the value 0.
    """

    origin: Tensor  # (N, 2) float32, x and y
    extent: Tensor  # (N, 2) float32; 1 where the mask covers nothing
    first: Tensor  # (N, 2) int32
    last: Tensor  # (N, 2) int32
    cells: tuple[int, int]  # for x and y
    shift: float


def placement(boxes: Tensor, grid: tuple[int, int], size: tuple[int, int], convention: Convention) -> Placement:
    """Place masks of `grid` (S, T) cells over boxes (N, 4) in a picture of `size` (height, width)."""
    low, high = boxes.float().contiguous().chunk(2, 1)  # (N, 2)
    counts = constants((grid[1], grid[0]), low)
    end = constants((size[1], size[0]), low)
    if convention == "torchvision":
        center, half = (high + low) * 0.5, (high - low) * 0.5 * ((counts + 2) / counts)
        low, high = (center - half).trunc(), (center + half).trunc() + 1
    extent = high - low
    proper = ((extent > 0) & extent.isfinite() & low.isfinite()).all(1, keepdim=True)
    low, high, extent = (torch.where(proper, x, 1.0) for x in (low, high, extent))
    if convention == "torchvision":
        first, last, cells, shift = low, high, (grid[1] + 2, grid[0] + 2), 1.5
    else:
        margin = extent / (2 * counts) + 1  # half a cell, where values fall to 0, and a pixel against rounding
        first, last, cells, shift = (low - margin).floor(), (high + margin).ceil(), (grid[1], grid[0]), 0.5
    first, last = (torch.where(proper, x.clamp(min=0).minimum(end), 0.0).int() for x in (first, last))
    return Placement(low, extent, first, last, cells, shift)


@torch.library.custom_op("delineate::paste", mutates_args=())
def paste(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, convention: str) -> Tensor:
    """`paste_masks` with checked arguments."""
    place = placement(boxes, (masks.shape[1], masks.shape[2]), (height, width), convention)  # pyright: ignore[reportArgumentType]
    if kernels := gpu.kernels("masks", masks):
        return kernels.paste(masks, place, (height, width), threshold)
    if native.available and masks.device.type == "cpu":
        pasted = untouched_zeros(len(masks), height, width)
        native.kernels.paste(masks.float().contiguous(), *place, threshold, pasted, torch.get_num_threads())
        return pasted
    return paste_reference(masks, place, (height, width), threshold)


def untouched_zeros(*shape: int) -> Tensor:
    """False of a shape, on the CPU: memory that nothing is written to is not cleared, which would take longer than pasting."""
    return torch.from_numpy(np.zeros(shape, np.bool_))


@paste.register_fake
def _(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, convention: str) -> Tensor:
    return masks.new_empty(masks.shape[0], height, width, dtype=torch.bool)


_PIXELS = 1 << 22
"""Pixels pasted at a time by the plain form: 16 MiB for each of its few intermediate values."""


def paste_reference(masks: Tensor, place: Placement, size: tuple[int, int], threshold: float) -> Tensor:
    """The plain form of `paste`, on every device: (N, height, width) bool."""
    height, width = size
    padded = F.pad(masks.float(), (1, 1, 1, 1))  # (N, S + 2, T + 2)
    columns, across = _lattice(place, 0, width, masks.shape[2])
    rows, down = _lattice(place, 1, height, masks.shape[1])
    pasted = masks.new_empty(len(masks), height, width, dtype=torch.bool)
    some = max(1, _PIXELS // max(1, height * width))
    strip = max(1, _PIXELS // max(1, width))
    for part in (slice(n, n + some) for n in range(0, len(masks), some)):
        stretched = _interpolate(padded[part], columns[part, None], across[part, None], 2)  # (n, S + 2, width)
        for lines in (slice(y, y + strip) for y in range(0, height, strip)):
            values = _interpolate(stretched, rows[part, lines, None], down[part, lines, None], 1)
            pasted[part, lines] = values >= threshold
    return pasted


def _lattice(place: Placement, axis: int, length: int, count: int) -> tuple[Tensor, Tensor]:
    """For each pixel of an axis the cell below it, 0 for the padding, and how far from there to the next: (N, length) both."""
    pixel = torch.arange(length, device=place.origin.device)
    coordinate = (pixel + 0.5 - place.origin[:, axis, None]) / place.extent[:, axis, None] * place.cells[axis] - place.shift
    inside = (coordinate >= -1) & (coordinate < count)
    inside &= (pixel >= place.first[:, axis, None]) & (pixel < place.last[:, axis, None])
    coordinate = torch.where(inside, coordinate, -1.0)
    cell = coordinate.floor()
    return cell.long() + 1, torch.where(inside, coordinate - cell, 0.0)


def _interpolate(values: Tensor, index: Tensor, fraction: Tensor, dim: int) -> Tensor:
    """values[index] + fraction * (values[index + 1] - values[index]) along `dim`, in this very order of operations."""
    shape = [index.shape[d] if d == dim else length for d, length in enumerate(values.shape)]
    low, high = (values.gather(dim, i.expand(shape)) for i in (index, index + 1))
    return low + fraction * (high - low)
