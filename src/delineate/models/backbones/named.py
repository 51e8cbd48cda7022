"""Encoders by name: our own, and all of timm's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from delineate.errors import ConfigError
from delineate.models.backbones.hrnet import HRNet, hrnet
from delineate.models.backbones.resnest import resnest
from delineate.models.backbones.resnet import ResNet, resnet
from delineate.models.backbones.timm import TimmEncoder, load_timm_weights, timm_encoder
from delineate.models.norms import Norm

OWN_ENCODERS: dict[str, Callable[..., ResNet | HRNet]] = {
    "hrnet_w18": partial(hrnet, 18),
    "hrnet_w32": partial(hrnet, 32),
    "hrnet_w40": partial(hrnet, 40),
    "hrnet_w48": partial(hrnet, 48),
    "resnet18": partial(resnet, 18),
    "resnet34": partial(resnet, 34),
    "resnet50": partial(resnet, 50),
    "resnet101": partial(resnet, 101),
    "resnet152": partial(resnet, 152),
    "resnest14": partial(resnest, 14),
    "resnest26": partial(resnest, 26),
    "resnest50": partial(resnest, 50),
    "resnest101": partial(resnest, 101),
    "resnest200": partial(resnest, 200),
    "resnest269": partial(resnest, 269),
    "resnext50_32x4d": partial(resnet, 50, groups=32, width_per_group=4),
    "resnext101_32x8d": partial(resnet, 101, groups=32, width_per_group=8),
    "wide_resnet50_2": partial(resnet, 50, width_per_group=128),
}
HRNETS = tuple(name for name in OWN_ENCODERS if name.startswith("hrnet_"))
TIMM_NAMES = {
    "resnest14": "resnest14d",
    "resnest26": "resnest26d",
    "resnest50": "resnest50d",
    "resnest101": "resnest101e",
    "resnest200": "resnest200e",
    "resnest269": "resnest269e",
}  # where they are not ours


def named_encoder(
    name: str,
    in_channels: int = 3,
    *,
    norm: Norm = nn.BatchNorm2d,
    dilate: tuple[bool, bool] = (False, False),
    pretrained: bool = False,
    **options: Any,
) -> ResNet | HRNet | TimmEncoder:
    """Build our own encoder `name` with its `options`, or timm's; `pretrained` starts from timm's weights of ImageNet.

    `dilate` tells for the last but one and the last halving of the map whether dilations take its place.
    Raises `ConfigError` for a name that neither knows, for an option that the encoder does not have, and for a timm encoder
    with another `norm` than its own, batch normalisation.
    """
    if name in OWN_ENCODERS:
        if any(dilate):
            options["dilate"] = dilate
        _check_options(name, options)
        encoder = OWN_ENCODERS[name](in_channels, norm=norm, **options)
        if pretrained:
            load_timm_weights(encoder, TIMM_NAMES.get(name, name), in_channels)
        return encoder
    if norm is not nn.BatchNorm2d or options:
        asked = ", ".join([f"norm {getattr(norm, '__name__', norm)}", *options])
        raise ConfigError(f"encoder '{name}' is timm's and keeps its own layers ({asked}); try {', '.join(OWN_ENCODERS)}")
    return timm_encoder(name, in_channels, output_stride=32 >> sum(dilate) if any(dilate) else None, pretrained=pretrained)


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    known = inspect.signature(OWN_ENCODERS[name]).parameters
    if "dilate" in options and "dilate" not in known:
        raise ConfigError(f"encoder '{name}' cannot keep its last maps large; take output_stride=32, or a ResNet or ResNeSt")
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"encoder '{name}' has no option '{option}' (here {value!r}); leave it away")
