"""Several scales of a picture of any size: each predicted window by window, fused strip by strip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from delineate.data.windows import ArrayReader, ImageReader
from delineate.errors import ConfigError
from delineate.models.multiscale_attention import HierarchicalMultiScaleAttention, scaled_size
from delineate.models.semantic import resize
from delineate.predict.resampling import ScaledReader, Taps, find_taps, resize_rows
from delineate.predict.tiling import Strip, predict_windows

ROWS = 16  # of the picture that are fused at once


def predict_scales(
    network: HierarchicalMultiScaleAttention,
    picture: ImageReader | Tensor,
    *,
    decode: Callable[[Tensor], Any] = torch.clone,
    **options: Any,
) -> Iterator[Strip]:
    """Predict a picture of any size at the scales of `network`; yields its rows from the top as soon as they are finished.

    Each scale of the picture is predicted in windows of one size (`options` are those of `predict_windows`), so that a window
    of a smaller scale sees more of the picture. Logits and attention of overlapping windows, and of mirrored views, are
    averaged before scales are fused. At a time there are, of each scale, the rows that the next rows of the picture need.

    Args:
        network: with any fusion but "explicit".
        picture: a reader, or a tensor (C, H, W).
        decode: takes the fused logits (K, rows, W) of finished rows; its result is the strip's content.
        options: passed on to `predict_windows`.
    """
    reader = ArrayReader(picture) if isinstance(picture, Tensor) else picture
    height = reader.shape[1]
    levels = [_level(network, reader, scale, options) for scale in network.scales[::-1]]  # largest first
    for top in range(0, height, ROWS):
        yield Strip(top, decode(_fuse(levels, network.fusion, top, min(top + ROWS, height))))


def predict_shares(
    network: HierarchicalMultiScaleAttention, picture: ImageReader | Tensor, **options: Any
) -> dict[float, Tensor]:
    """Return by scale, in ascending order, its share (H, W) in 0..1 of the fused logits of each pixel; they add up to one.

    With the fusion "attention" a scale gets its attention of what the smaller ones leave, and the largest the rest. Predicted
    window by window as by `predict_scales`; `options` are those of `predict_windows`. Raises `ConfigError` for fusions
    without attention.
    """
    reader = ArrayReader(picture) if isinstance(picture, Tensor) else picture
    if network.fusion == "explicit":

        def weigh(x: Tensor) -> Tensor:
            return torch.cat(list(network.attention_maps(x).values()), 1)

        return dict(zip(network.scales, _whole(predict_windows(weigh, reader, **options)), strict=True))
    if network.fusion != "attention":
        raise ConfigError(f"fusion '{network.fusion}' has no attention; scales have shares with 'attention' and 'explicit'")
    size = reader.shape[1:]
    rest, shares = torch.ones(*size), dict[float, Tensor]()
    for scale in network.scales[:-1]:
        scaled = ScaledReader(reader, scaled_size(size, scale), align_corners=network.align_corners)

        def attend(x: Tensor) -> Tensor:
            attention = network.view(x, 1.0, attend=True).attention
            assert attention is not None
            return attention

        attention = _whole(predict_windows(attend, scaled, **options))
        shares[scale] = rest * resize(attention[None], size, network.align_corners)[0, 0]
        rest = rest - shares[scale]
    return shares | {network.scales[-1]: rest}


def _whole(strips: Iterator[Strip]) -> Tensor:
    """The scores (K, H, W) of a whole picture on the CPU."""
    return torch.cat([strip.content.cpu() for strip in strips], 1)


@dataclass(slots=True)
class Level:
    """One scale of a picture: its size, and the rows of its prediction, which are computed as they are asked for."""

    scale: float
    height: int
    width: int
    strips: Iterator[Strip]
    align_corners: bool
    top: int = 0  # first row of those that are kept
    kept: list[Tensor] = field(default_factory=list)

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows (N, stop - start, W), valid until the next call; later calls may not start before `start`."""
        while (end := self.top + sum(part.shape[1] for part in self.kept)) < stop:
            # The engine goes on in the memory that its last rows lie in: what is still needed of them is copied, and no more.
            self.kept = [part.clone() for part in self._between(start, stop)]
            self.top = min(start, end)  # a scale of 4 or more may skip rows
            self.kept.append(next(self.strips).content)
        parts = self._between(start, stop)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _between(self, start: int, stop: int) -> list[Tensor]:
        parts, top = [], self.top
        for part in self.kept:
            parts.append(part[:, max(0, start - top) : max(0, stop - top)])
            top += part.shape[1]
        return [part for part in parts if part.shape[1]]

    def taps_for(self, height: int, start: int, stop: int) -> Taps:
        """Where the rows `start` to `stop` of this level come from, when it is resized to `height`."""
        return find_taps(self.height, height, start, stop, align_corners=self.align_corners)

    def resized(self, rows: Tensor, width: int, taps: Taps) -> Tensor:
        """Resize rows of this level, read for `taps`."""
        return resize_rows(rows, taps.first, self.height, width, taps, align_corners=self.align_corners)


def _level(network: HierarchicalMultiScaleAttention, reader: ImageReader, scale: float, options: dict[str, Any]) -> Level:
    height, width = scaled_size(reader.shape[1:], scale)
    attend = network.fusion == "attention" and scale < max(network.scales)
    scaled = reader if scale == 1 else ScaledReader(reader, (height, width), align_corners=network.align_corners)

    def predict(x: Tensor) -> Tensor:
        view = network.view(x, 1.0, attend=attend)  # of the picture as it was scaled above
        return view.logits if view.attention is None else torch.cat([view.logits, view.attention], 1)

    return Level(scale, height, width, predict_windows(predict, scaled, decode=_as_it_is, **options), network.align_corners)


def _as_it_is(scores: Tensor) -> Tensor:
    return scores


def _fuse(levels: Sequence[Level], fusion: str, start: int, stop: int) -> Tensor:
    """Fused logits (K, stop - start, W) of some rows of the picture."""
    at_one = next(index for index, level in enumerate(levels) if level.scale == 1)
    one = levels[at_one]
    if fusion == "attention":
        fused = _chain(levels[: at_one + 1], start, stop)
        for level in levels[at_one + 1 :]:
            taps = level.taps_for(one.height, start, stop)
            fused = _trust_below(level, fused, taps, one.width)
        return fused
    parts = []
    for level in levels:
        taps = level.taps_for(one.height, start, stop)
        parts.append(level.resized(level.read(taps.first, taps.end), one.width, taps))
    return reduce(torch.maximum, parts) if fusion == "maximum" else reduce(torch.add, parts) / len(parts)


def _chain(levels: Sequence[Level], start: int, stop: int) -> Tensor:
    """Rows of the last of `levels`, weighed against all before it: p = a_s * p_s + (1 - a_s) * resize(p)."""
    *larger, level = levels
    own = level.read(start, stop)
    if not larger:
        return own
    taps = larger[-1].taps_for(level.height, start, stop)
    before = larger[-1].resized(_chain(larger, taps.first, taps.end), level.width, taps)
    return own[-1:] * own[:-1] + (1 - own[-1:]) * before


def _trust_below(level: Level, fused: Tensor, taps: Taps, width: int) -> Tensor:
    """p = resize(a_s * p_s) + (1 - resize(a_s)) * p for a scale below 1; the product is made before it is enlarged."""
    own = level.read(taps.first, taps.end)
    enlarged = level.resized(torch.cat([own[-1:] * own[:-1], own[-1:]]), width, taps)
    return enlarged[:-1] + (1 - enlarged[-1:]) * fused
