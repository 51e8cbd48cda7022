"""The one streaming engine: whole pictures, overlapping windows, overlap-tile, and mirrored views, blended strip by strip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from delineate.data.windows import ArrayReader, ImageReader, read_mirrored
from delineate.errors import ConfigError

T = TypeVar("T")
Blend = Literal["gaussian", "constant"]

_FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))  # dimensions that each view is mirrored in


class Strip(NamedTuple):
    """Finished rows of a picture, from row `top` on; `content` is what `decode` made of their scores (K, rows, W)."""

    top: int
    content: Any


@dataclass(frozen=True, slots=True)
class Axis:
    """The windows along one side of a picture of `size` pixels: where the output of each begins, its length, its weights."""

    size: int
    starts: tuple[int, ...]  # of the outputs, ascending; the last output may reach beyond the picture
    output: int  # pixels that a window predicts
    input: int  # pixels that a window reads: `output` plus the margins
    weights: Tensor  # (windows, output) float32; those of all windows add up to 1 at each pixel


def predict_windows(
    network: Callable[[Tensor], Tensor],
    picture: ImageReader | Tensor,
    *,
    decode: Callable[[Tensor], Any] = torch.clone,
    prepare: Callable[[Tensor], Tensor] = Tensor.float,
    window: int | tuple[int, int] = 512,
    overlap: float = 0.25,
    blend: Blend = "gaussian",
    flips: bool = False,
    batch: int = 4,
) -> Iterator[Strip]:
    """Predict a picture of any size window by window; yields its rows from the top as soon as they are finished.

    Networks with a margin get the pixels around each window, mirrored at the borders of the picture (the U-Net paper's
    overlap-tile), and the windows start at multiples of the stride, so that the result is that of the whole mirrored picture.

    Args:
        network: float (B, C, h, w) -> scores (B, K, h - 2m, w - 2m), which are averaged. It may state `margin` m (pixels lost
            on each side), `stride` (of its coarsest map) and `smallest` (its smallest input side), as networks of the zoo do.
        picture: a reader, or a tensor (C, H, W).
        decode: takes the scores (K, rows, W) float32 of finished rows; its result is the strip's content. The scores are
            overwritten afterwards: class scores of the whole picture are never held.
        prepare: turns windows (B, C, h, w) of stored pixels into the network's input.
        window: largest height and width that a window predicts. A picture that is no larger is predicted in one piece.
        overlap: least share of a window that its neighbour predicts too.
        blend: weight of a pixel by its place in the window.
        flips: average over the four mirrored views.
        batch: windows (and views) that the network gets at once.
    """
    reader = ArrayReader(picture) if isinstance(picture, Tensor) else picture
    if batch < 1 or not 0 <= overlap < 1:
        raise ConfigError(f"batch {batch} and overlap {overlap}: expected a batch of at least 1, and 0 <= overlap < 1")
    sides = (window, window) if isinstance(window, int) else window
    margin = getattr(network, "margin", 0)
    rows, columns = (plan_axis(n, w, overlap, blend, network) for n, w in zip(reader.shape[1:], sides, strict=True))
    scores: Tensor | None = None  # (K, rows.output, W): the rows that are not finished
    for i, top in enumerate(rows.starts):
        for j, outputs in _row_of_windows(network, reader, top - margin, rows.input, columns, margin, prepare, flips, batch):
            if scores is None:
                scores = outputs.new_zeros((outputs.shape[0], rows.output, columns.size))
            _blend_in(scores, outputs, columns, j, rows.weights[i])
            del outputs  # or it would lie beside the next window's, and until the next strip is asked for
        assert scores is not None
        bottom = rows.starts[i + 1] if i + 1 < len(rows.starts) else rows.size
        yield Strip(top, decode(scores[:, : bottom - top]))
        _scroll(scores, bottom - top)


def plan_axis(size: int, window: int, overlap: float, blend: Blend, network: Any) -> Axis:
    """Place windows of at most `window` predicted pixels along a side of `size` pixels.

    Without a margin they are spread evenly and end with the picture; with one they begin at multiples of the stride.

    >>> plan_axis(1000, 400, 0.25, "constant", None).starts
    (0, 300, 600)
    """
    margin, stride = getattr(network, "margin", 0), getattr(network, "stride", 1)
    if margin:
        output = _valid_output(min(size, window), network)
        if output > window and size > window:
            output -= stride  # `window` is what there is memory for
        step = int(output * (1 - overlap)) // stride * stride
        if output < 1 or (step < 1 and output < size):
            enough = _valid_output(math.ceil(stride / (1 - overlap)), network)
            raise ConfigError(
                f"window {window} is too small for a network of stride {stride} and overlap {overlap}; take {enough}"
            )
        starts = tuple(range(0, max(1, size - output + step), max(1, step)))
    else:
        output = min(size, window)
        count = 1 if output == size else math.ceil((size - output) / max(1, int(output * (1 - overlap)))) + 1
        starts = tuple(round(i * (size - output) / max(1, count - 1)) for i in range(count))
    return Axis(size, starts, output, output + 2 * margin, _weights(starts, output, size, blend))


def _valid_output(least: int, network: Any) -> int:
    """Smallest number of pixels, at least `least`, that a network with a margin can predict along a side."""
    smallest = getattr(network, "smallest", None)
    if smallest is None:
        raise ConfigError("a network with a margin must state `smallest`, its smallest input side, to be used on windows")
    first = smallest - 2 * network.margin
    return first + network.stride * max(0, math.ceil((least - first) / network.stride))


def _weights(starts: Sequence[int], output: int, size: int, blend: Blend) -> Tensor:
    """Weights (windows, output) that add up to 1 over the windows at each pixel; the rows and columns of a grid factorise."""
    place = torch.arange(output, dtype=torch.float64) - (output - 1) / 2
    one = torch.exp(-0.5 * (8 * place / output) ** 2) if blend == "gaussian" else torch.ones_like(place)
    total = torch.zeros(max(size, starts[-1] + output), dtype=torch.float64)
    for start in starts:
        total[start : start + output] += one
    return torch.stack([one / total[start : start + output] for start in starts]).float()


def _row_of_windows(
    network: Callable[[Tensor], Tensor],
    reader: ImageReader,
    top: int,
    height: int,
    columns: Axis,
    margin: int,
    prepare: Callable[[Tensor], Tensor],
    flips: bool,
    batch: int,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each window in a row, and its scores (K, h, w)."""
    whole = None  # (C, h, all that is read), so that each segment of a file is decoded once
    if not reader.computed:
        whole = read_mirrored(reader, top, -margin, height, columns.starts[-1] + columns.input)
    at_once = max(1, batch // len(_FLIPS)) if flips else batch
    for first in range(0, len(columns.starts), at_once):
        lefts = columns.starts[first : first + at_once]
        if whole is None:
            parts = [read_mirrored(reader, top, left - margin, height, columns.input) for left in lefts]
        else:
            parts = [whole[:, :, left : left + columns.input] for left in lefts]
        windows = torch.from_numpy(np.stack(parts))  # (B, C, h, w)
        yield from enumerate(_average_views(network, prepare(windows), flips, batch), start=first)  # (K, h - 2m, w - 2m)


def _average_views(network: Callable[[Tensor], Tensor], windows: Tensor, flips: bool, batch: int) -> Tensor:
    """Return the mean scores over the mirrored views of windows; further kinds of views belong here."""
    if not flips:
        return network(windows).float()
    views = torch.cat([windows.flip(dims) for dims in _FLIPS])
    outputs = torch.cat([network(part).float() for part in views.split(batch)]).chunk(len(_FLIPS))
    return torch.stack([output.flip(dims) for output, dims in zip(outputs, _FLIPS, strict=True)]).mean(0)


def _blend_in(scores: Tensor, outputs: Tensor, columns: Axis, j: int, row_weights: Tensor) -> None:
    """Add the weighted scores (K, h, w) of window `j` of a row to the strip (K, h, W)."""
    left, right = columns.starts[j], min(columns.starts[j] + columns.output, columns.size)
    weights = torch.outer(row_weights, columns.weights[j, : right - left]).to(scores.device)  # (h, w)
    scores[:, :, left:right].addcmul_(outputs[:, :, : right - left], weights)


def _scroll(scores: Tensor, finished: int) -> None:
    """Forget the first `finished` rows of a strip (K, h, W) and move the others up, in place."""
    kept = scores.shape[1] - finished
    for top in range(0, kept, max(1, finished)):  # parts that do not overlap themselves, so that none needs a copy
        bottom = min(top + finished, kept)
        scores[:, top:bottom] = scores[:, top + finished : bottom + finished]
    scores[:, max(0, kept) :] = 0
