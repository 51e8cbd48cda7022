"""A network made ready for prediction: stored pixels in, probabilities out."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from delineate.data.intensity import normalize
from delineate.devices import DTYPES, Precision, compiled
from delineate.errors import ConfigError
from delineate.models import fuse_for_inference, list_models
from delineate.models.multiscale_attention import HierarchicalMultiScaleAttention
from delineate.models.narrow import allow_narrow_maps
from delineate.weights import Conventions

Statistics = tuple[Tensor, Tensor]


class ScoringNetwork:
    """A copy of a network on `device`, in `precision`, channels last, with the scores of its output as `Conventions` say.

    Networks of the zoo are fused first (batch normalisation folded into the convolutions). `model` itself is not changed.
    """

    def __init__(
        self,
        model: nn.Module,
        conventions: Conventions,
        num_classes: int,
        *,
        device: torch.device,
        precision: Precision = "fp32",
        compile: bool = False,
    ) -> None:
        self.conventions = conventions
        self.num_classes = num_classes
        self.device = device
        self.dtype = DTYPES[precision]
        self.margin: int = getattr(model, "margin", 0)
        self.stride: int = getattr(model, "stride", 1)
        self.smallest: int | None = getattr(model, "smallest", None)
        self.model = _ready(model, device, self.dtype)
        if compile and (network := self.several_scales):  # its scales one by one, as they are predicted; their sizes differ
            network.view_as_is = compiled(network.view_as_is, device, dynamic=True)
        elif compile:
            self.model = compiled(self.model, device)

    @property
    def several_scales(self) -> HierarchicalMultiScaleAttention | None:
        """The network, where it fuses scales that can be predicted one by one."""
        model = getattr(self.model, "_orig_mod", self.model)
        return model if isinstance(model, HierarchicalMultiScaleAttention) and model.fusion != "explicit" else None

    def prepare(self, windows: Tensor, statistics: Statistics | None = None, factor: float = 1.0) -> Tensor:
        """Turn stored pixels (B, 1|3, h, w) into the network's input; `factor` brings them to the range it expects first.

        `statistics` are mean and deviation of the whole picture, where `Conventions.normalization` is "image".
        """
        pixels = windows.to(self.device, non_blocking=True)
        pixels = pixels if factor == 1.0 else pixels.float() * factor
        x = normalize(pixels, self.conventions, statistics)  # (B, C, h, w)
        return x.to(self.dtype, memory_format=torch.channels_last)

    def __call__(self, x: Tensor) -> Tensor:
        """Return scores (B, K', h - 2m, w - 2m) float32 in 0..1 for prepared windows (B, C, h, w).

        Classes and border: probabilities that add up to one. Multilabel: a probability each. Distance: the probabilities of K
        classes, then the distance.
        """
        return self.scores(self.model(x).float())

    def scores(self, logits: Tensor) -> Tensor:
        """Turn logits (B, K', h, w) into scores."""
        expected = self.conventions.output_channels(self.num_classes)
        if logits.shape[1] != expected:
            raise ConfigError(
                f"{self.num_classes} classes with outputs '{self.conventions.outputs}' need {expected} output channels, "
                f"the network has {logits.shape[1]}"
            )
        if self.conventions.outputs == "multilabel":
            return logits.sigmoid()
        if self.conventions.outputs == "distance":
            return torch.cat([logits[:, :-1].softmax(1), logits[:, -1:].clamp(0, 1)], 1)
        return logits.softmax(1)


def _ready(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    import copy

    model = getattr(model, "_orig_mod", model)  # of torch.compile
    architecture = cast("dict[str, Any]", getattr(model, "architecture", {}))
    if architecture.get("name") in list_models():
        model = fuse_for_inference(model)
    else:
        model = copy.deepcopy(model).eval().requires_grad_(False)
    if device.type == "cpu" and dtype != torch.float32:
        allow_narrow_maps(model)
    return model.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
