"""Hierarchical multi-scale attention (Tao, Sapra and Catanzaro 2020) over any semantic network, and its rivals."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from delineate.errors import ConfigError
from delineate.models.blocks import initialize
from delineate.models.norms import NORMS, Norm
from delineate.models.options import choose
from delineate.models.semantic import SemanticMaps, SemanticModel, resize
from delineate.ops.outputs import WithAuxiliary

FUSIONS = {name: name for name in ("attention", "average", "maximum", "explicit")}


class View(NamedTuple):
    """What the network says of a picture that was resized by `scale`, at the size of the resized picture."""

    scale: float
    logits: Tensor  # (B, K, s H, s W)
    attention: Tensor | None = None  # (B, 1, s H, s W) in 0..1; for the explicit fusion (B, 1, H, W)
    auxiliary: Tensor | None = None  # (B, K, s H, s W)


class AttentionHead(nn.Sequential):
    """Two 3x3 convolutions with normalisation and ReLU, then a 1x1 convolution to `maps` maps; no biases."""

    def __init__(self, in_channels: int, maps: int, *, channels: int, norm: Norm) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, maps, 1, bias=False),
        )


class HierarchicalMultiScaleAttention(SemanticModel):
    """Runs `model` on the picture at several scales and fuses the logits, pixel by pixel.

    `fusion` says how. "attention": a head on the model's features says for each pixel how far to trust the scale, and how far
    the larger ones; trained on two scales, it takes any list of them in evaluation. "explicit": a head on the concatenated
    features of all scales weighs them with a softmax (Chen et al. 2016), for these scales only. "average" and "maximum" of the
    logits need no head and no training of their own. `scales` (1 among them) and `fusion` may be changed at any time, the
    latter to "attention" or "explicit" only where it is what the head was made for.

    In training it runs `training_scales` (with "explicit": `scales`) and returns the fused logits and, as auxiliary outputs,
    the logits of each scale (weight `scale_weight` each) and the fused ones of the auxiliary branch, where `model` has one. In
    evaluation it keeps the fused logits and those of one scale at a time, and leaves auxiliary branches alone.
    """

    def __init__(
        self,
        model: SemanticModel,
        *,
        fusion: str = "attention",
        scales: Sequence[float] = (0.5, 1.0),
        training_scales: Sequence[float] = (0.5, 1.0),
        channels: int = 256,
        norm: str = "batch",
        scale_weight: float = 0.05,
    ) -> None:
        super().__init__()
        if not model.feature_channels:
            raise ConfigError(f"{type(model).__name__} cannot be run at several scales: it has no feature map (`maps`)")
        self.model = model
        self.fusion = self.built_for = choose(FUSIONS, fusion, "fusion")
        self.scales = check_scales(scales)
        self.training_scales = self.scales if fusion == "explicit" else check_scales(training_scales)
        self.scale_weight = scale_weight
        self.stride, self.align_corners = model.stride, model.align_corners
        self.head = None
        if fusion in ("attention", "explicit"):
            maps = 1 if fusion == "attention" else len(self.scales)
            self.head = AttentionHead(maps * model.feature_channels, maps, channels=channels, norm=choose(NORMS, norm, "norm"))
            initialize(self.head, 0.0)
        self._describe(channels, norm)

    def _describe(self, channels: int, norm: str) -> None:
        """State how to build an equal network, and take over what is known of `model`."""
        if inner := getattr(self.model, "architecture", None):
            options = dict(inner["options"])
            own = {
                "in_channels": options.pop("in_channels"),
                "model": inner["name"],
                "options": options,
                "fusion": self.fusion,
                "scales": list(self.scales),
                "training_scales": list(self.training_scales),
                "channels": channels,
                "norm": norm,
                "scale_weight": self.scale_weight,
            }
            self.architecture = {"name": "hmsa", "num_classes": inner["num_classes"], "options": own}
        for name in ("classes", "conventions", "extra"):
            if hasattr(self.model, name):
                setattr(self, name, getattr(self.model, name))

    def forward(self, x: Tensor) -> Tensor | WithAuxiliary:
        """Return logits (B, K, H, W) for pictures (B, C, H, W) of any size; in training `WithAuxiliary`."""
        size = x.shape[-2:]
        if not self.training:
            return self._fuse(self.views(x, self.scales[::-1]), size)
        views = list(self.views(x, self.training_scales))
        logits = self._fuse(reversed(views), size)
        auxiliary = [resize(view.logits, size, self.align_corners) for view in views]
        weights = [self.scale_weight] * len(views)
        if branches := [view._replace(logits=view.auxiliary) for view in views if view.auxiliary is not None]:
            auxiliary.append(self._fuse(reversed(branches), size))
            weights.append(self.model.auxiliary_weight)
        return WithAuxiliary(logits, tuple(auxiliary), tuple(weights))

    def views(self, x: Tensor, scales: Sequence[float]) -> Iterator[View]:
        """Run the network on pictures (B, C, H, W) at each of `scales`, one after the other."""
        if self.fusion == "explicit":
            yield from self._views_weighed_together(x, scales)
            return
        for scale in scales:
            # Nothing is larger than the largest, so that its attention is not used; it learns the statistics of its features.
            attend = self.fusion == "attention" and (self.training or scale < max(scales))
            yield self.view(x, scale, attend=attend)

    def view(self, x: Tensor, scale: float, *, attend: bool) -> View:
        """Run the network on pictures (B, C, H, W) at one scale; `attend`: with the head's attention."""
        return self.view_as_is(self._scaled(x, scale), attend)._replace(scale=scale)

    def view_as_is(self, x: Tensor, attend: bool) -> View:
        """Run the network on pictures that are scaled already; all that is worth compiling (`Predictor(compile=True)`)."""
        maps = self.model.maps(x)
        attention = self._head()(maps.features).sigmoid() if attend else None  # (B, 1, h, w)
        return self._fitted(1.0, maps, attention, x.shape[-2:], x.shape[-2:])

    @torch.no_grad()
    def attention_maps(self, x: Tensor) -> dict[float, Tensor]:
        """Return by scale how far it is trusted: (B, 1, s H, s W), or with "explicit" (B, 1, H, W), in 0..1.

        With "attention", each scale is weighed against all larger ones, so that the map of the largest is not used.
        """
        if self.fusion == "attention":
            views = (self.view(x, scale, attend=True) for scale in self.scales)
        elif self.fusion == "explicit":
            views = self.views(x, self.scales)
        else:
            raise ConfigError(f"fusion '{self.fusion}' has no attention maps; they belong to 'attention' and 'explicit'")
        return {view.scale: view.attention for view in views if view.attention is not None}

    def _views_weighed_together(self, x: Tensor, scales: Sequence[float]) -> Iterator[View]:
        """Views whose attention, at the size of `x`, comes from the features of all of them and adds up to one."""
        if set(scales) != set(self.training_scales):
            raise ConfigError(f"the explicit fusion was made for the scales {list(self.training_scales)}, not {list(scales)}")
        maps = {scale: self.model.maps(self._scaled(x, scale)) for scale in self.training_scales}
        grid = maps[1.0].features.shape[-2:]
        features = [resize(part.features, grid, self.align_corners) for part in maps.values()]
        attention = self._head()(torch.cat(features, 1)).softmax(1)  # (B, S, h, w)
        together = dict(zip(maps, attention.split(1, 1), strict=True))
        size = x.shape[-2:]
        for scale in scales:
            yield self._fitted(scale, maps[scale], together[scale], scaled_size(size, scale), size)

    def _fitted(
        self, scale: float, maps: SemanticMaps, attention: Tensor | None, size: Sequence[int], attention_size: Sequence[int]
    ) -> View:
        branch = maps.auxiliary if self.training else None
        return View(
            scale,
            self.model.fit(maps.logits, size),
            None if attention is None else self.model.fit(attention, attention_size),
            None if branch is None else self.model.fit(branch, size),
        )

    def _fuse(self, views: Iterable[View], size: Sequence[int]) -> Tensor:
        """Fuse views, largest scale first, to logits of `size`."""
        if self.fusion == "attention":
            return fuse_hierarchically(views, self.align_corners)
        logits = (
            resize(view.logits, size, self.align_corners) * (1 if view.attention is None else view.attention) for view in views
        )
        fused = reduce(torch.maximum if self.fusion == "maximum" else torch.add, logits)
        count = len(self.training_scales if self.training else self.scales)
        return fused / count if self.fusion == "average" else fused

    def _scaled(self, x: Tensor, scale: float) -> Tensor:
        return x if scale == 1 else resize(x, scaled_size(x.shape[-2:], scale), self.align_corners)

    def _head(self) -> AttentionHead:
        if self.head is None or self.fusion != self.built_for:
            raise ConfigError(f"fusion '{self.fusion}' needs a head of its own, this network was built for '{self.built_for}'")
        return self.head


def at_scales(model: nn.Module, scales: Sequence[float]) -> HierarchicalMultiScaleAttention:
    """Return `model` at other scales, which shares its weights: with its own fusion, or else the average of the logits.

    Raises `ConfigError` for scales that cannot be, for an explicit fusion that was made for others, and for networks without
    a feature map.
    """
    if not isinstance(model, HierarchicalMultiScaleAttention):
        if not isinstance(model, SemanticModel):
            raise ConfigError(f"{type(model).__name__} cannot be run at several scales")
        return HierarchicalMultiScaleAttention(model, fusion="average", scales=scales)
    ordered = check_scales(scales)
    if model.fusion == "explicit" and ordered != model.training_scales:
        raise ConfigError(f"the explicit fusion was made for the scales {list(model.training_scales)}, not {list(ordered)}")
    scaled = copy.copy(model)
    scaled.scales = ordered
    return scaled


def fuse_hierarchically(views: Iterable[View], align_corners: bool = False) -> Tensor:
    """Fuse views, largest scale first, to logits (B, K, H, W) of the size at scale 1 (equation 1, chained).

    Down to scale 1, p = a_s * p_s + (1 - a_s) * resize(p). Below, p = resize(a_s * p_s) + (1 - resize(a_s)) * p: the product
    is made before it is enlarged. The attention of the largest scale is not used.
    """
    fused: Tensor | None = None
    for view in views:
        if fused is None:
            fused = view.logits
            continue
        assert view.attention is not None
        if view.scale >= 1:
            before = resize(fused, view.logits.shape[-2:], align_corners)
            fused = view.attention * view.logits + (1 - view.attention) * before
        else:
            size = fused.shape[-2:]
            trusted = resize(view.attention * view.logits, size, align_corners)
            fused = trusted + (1 - resize(view.attention, size, align_corners)) * fused
    assert fused is not None
    return fused


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Height and width of a picture of `size` after resizing by `scale`: rounded down, at least 1.

    >>> scaled_size((161, 227), 0.5)
    (80, 113)
    """
    height, width = (max(1, int(side * scale)) for side in size)
    return height, width


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Return the scales in ascending order, or raise `ConfigError` where one is not positive, doubled, or 1 is not among them.

    >>> check_scales([2, 0.5, 1])
    (0.5, 1.0, 2.0)
    """
    ordered = tuple(sorted(float(scale) for scale in scales))
    if 1.0 not in ordered or ordered[0] <= 0 or len(set(ordered)) < len(ordered):
        raise ConfigError(f"scales are {list(scales)}; expected different positive numbers, 1 among them")
    return ordered
