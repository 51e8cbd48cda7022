"""The canvas that drawings are made on: pictures for the eye, tints, edges, hatching, text; all on (3, H, W) uint8 tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from delineate.report.palette import IGNORED, Color

PAPER = torch.tensor([24, 25, 28], dtype=torch.uint8)[:, None, None]  # behind captions: looks right on light and dark pages
INK: Color = (240, 240, 240)
SMALLEST = 10  # pixels of a line that can be read


def to_display(image: Tensor | np.ndarray) -> Tensor:
    """Return a picture (C, H, W) of 1 or 3 channels and any dtype as (3, H, W) uint8 for the eye.

    8-bit colour stays as it is. Grey pictures (one channel, or three equal ones), 16-bit and float pictures are stretched: the
    0.5 and 99.5 percentiles of the finite values become black and white. A constant picture becomes grey; NaN becomes black.
    """
    picture = torch.as_tensor(image).detach().cpu()
    if picture.ndim != 3 or picture.shape[0] not in (1, 3):
        raise ValueError(f"picture of shape {tuple(picture.shape)}: expected (C, H, W) with 1 or 3 channels")
    is_grey = picture.shape[0] == 1 or bool((picture == picture[:1]).all())
    if picture.dtype == torch.uint8 and not is_grey:
        return picture.as_subclass(Tensor).clone()
    return _stretch(picture[:1] if is_grey else picture).expand(3, -1, -1).contiguous()


def _stretch(picture: Tensor) -> Tensor:
    """Percentile stretch to (C, H, W) uint8, over all channels together so that colours keep their balance."""
    values = picture.as_subclass(Tensor).double() if picture.dtype == torch.float64 else picture.as_subclass(Tensor).float()
    finite = values[values.isfinite()].flatten().numpy()
    if not finite.size:
        return torch.zeros_like(values, dtype=torch.uint8)
    low, high = np.percentile(finite, (0.5, 99.5))
    if high <= low:  # a few bright pixels on a flat ground are still a picture
        low, high = finite.min(), finite.max()
    if high <= low:
        return torch.full_like(values, 128, dtype=torch.uint8)
    scaled = (values.nan_to_num(float(low)) - float(low)) / float(high - low)
    return (scaled.clamp(0, 1) * 255).round().to(torch.uint8)


def as_labels(ids: Tensor | np.ndarray) -> Tensor:
    """Ids (H, W) or (1, H, W) of any integer dtype as int64; through NumPy, because torch has few operations on uint16."""
    array = np.asarray(ids.detach().cpu().numpy() if isinstance(ids, Tensor) else ids).astype(np.int64)
    return torch.from_numpy(array[0] if array.ndim == 3 and array.shape[0] == 1 else array)


def check_size(canvas: Tensor, ids: Tensor, what: str) -> None:
    if ids.shape != canvas.shape[1:]:
        raise ValueError(f"{what} of shape {tuple(ids.shape)} does not fit a picture of {tuple(canvas.shape[1:])}")


def plane(color: Color) -> Tensor:
    return torch.tensor(color, dtype=torch.uint8)[:, None, None]  # (3, 1, 1)


def line_width(canvas: Tensor) -> int:
    return max(1, round(min(canvas.shape[1:]) / 350))


def outline_width(canvas: Tensor, extent: float) -> int:
    """Of the line around something that is `extent` pixels wide: it must leave the thing visible."""
    return max(1, min(line_width(canvas), round(extent / 12)))


def blend(canvas: Tensor, where: Tensor, color: Tensor, alpha: float) -> None:
    """Lay `color`, broadcast to (3, H, W), over the pixels of `canvas` that the (H, W) bool `where` marks, in place."""
    if alpha <= 0 or not where.any():
        return
    color = color.expand_as(canvas)
    for rows in row_bands(canvas):
        part, marked = canvas[:, rows], where[rows]
        below, above = part[:, marked].float(), color[:, rows][:, marked].float()
        part[:, marked] = (below + (above - below) * alpha).round().to(torch.uint8)


def row_bands(canvas: Tensor) -> Iterator[slice]:
    """Rows of a picture (C, H, W) from the top, a million pixels at a time: work on a huge one needs no copies of its size."""
    height, rows = canvas.shape[1], max(1, (1 << 20) // max(1, canvas.shape[2]))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def inner_edges(ids: Tensor, width: int) -> Tensor:
    """Pixels (H, W) within `width` of a neighbour of another id; the picture's own border is no edge."""
    array, window = ids.numpy(), 2 * width + 1
    highest = ndimage.maximum_filter(array, window, mode="nearest")  # separable: the width costs nothing
    return torch.from_numpy(highest != ndimage.minimum_filter(array, window, mode="nearest"))


def hatch(canvas: Tensor, where: Tensor) -> None:
    """Grey the pixels and lay diagonal stripes over them."""
    if not where.any():
        return
    height, width = where.shape
    stripes = (torch.arange(height)[:, None] + torch.arange(width)) % 8 < 3
    blend(canvas, where, plane(IGNORED), 0.6)
    blend(canvas, where & stripes, plane((60, 60, 60)), 0.8)


def resize(panel: Tensor, height: int) -> Tensor:
    """To `height`; enlarged pixels stay square, so that what is seen is what is there."""
    factor = height / panel.shape[1]
    size = (height, max(1, round(panel.shape[2] * factor)))
    if size == tuple(panel.shape[1:]):
        return panel
    if factor > 1:
        return F.interpolate(panel[None], size=size, mode="nearest")[0]
    return (
        F.interpolate(panel[None].float(), size=size, mode="bilinear", antialias=True)[0].round().clamp(0, 255).to(torch.uint8)
    )


@lru_cache(maxsize=1)
def font_file() -> Path:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek and Cyrillic on every machine, whatever fonts are installed."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@lru_cache(maxsize=16)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_file()), size)


def write_line(canvas: Tensor, text: str, left: int, top: int, width: int, size: int) -> None:
    """Write one line into `canvas` in place; letters become smaller, then fewer, until it is no wider than `width` pixels."""
    points = size
    while points > SMALLEST and font_of(points).getlength(text) > width:
        points -= 1
    font = font_of(points)
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    below = min(canvas.shape[1], top + round(1.4 * size))
    region = canvas[:, top:below, left : left + width]
    picture = Image.fromarray(region.permute(1, 2, 0).contiguous().numpy())
    ImageDraw.Draw(picture).text((0, (size - points) // 2), text, fill=INK, font=font)
    region.copy_(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))
