"""Any convolutional or hierarchical encoder of timm, behind the same face as our own encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from delineate.errors import ConfigError, suggest

CHOOSE = "choose a convolutional encoder such as 'resnet34', 'convnext_tiny' or 'efficientnet_b0'"


class TimmEncoder(nn.Module):
    """The network `net` (built by timm with features_only=True), which returns maps of the given channels and reductions.

    Where several maps have the same size (the blocks of a vision transformer), only the last of them is passed on, unless
    `dilated`, when they come from different stages.
    """

    def __init__(self, net: nn.Module, channels: list[int], reductions: list[int], *, dilated: bool = False) -> None:
        super().__init__()
        self.net = net
        self.keep = [i for i, r in enumerate(reductions) if dilated or r not in reductions[i + 1 :]]
        self.channels = tuple(channels[i] for i in self.keep)
        self.reductions = tuple(reductions[i] for i in self.keep)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, finest first: (B, channels[i], H / reductions[i], W / reductions[i])."""
        features = self.net(x)
        return [features[i] for i in self.keep]


def timm_encoder(name: str, in_channels: int, *, output_stride: int | None = None, pretrained: bool = False) -> TimmEncoder:
    """Build timm's `name` as an encoder; `pretrained` loads its ImageNet weights (downloaded by timm when first used).

    With an `output_stride` (8 or 16) the last maps stay that large, and convolutions have dilations instead of strides.
    Raises `ConfigError` for a name that timm does not know, for a network that cannot return feature maps of any size, and for
    one whose maps do not shrink by powers of two.
    """
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"encoder '{name}' is unknown to timm {timm.__version__}{suggest(name, timm.list_models())}")
    options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        options["dynamic_img_size"] = True  # vision transformers resample their position embedding
    try:
        net = timm.create_model(name, features_only=True, in_chans=in_channels, pretrained=pretrained, **options)
    except Exception as error:  # timm, torch and the download raise whatever they like
        reason = "it takes pictures of one size only" if "dynamic_img_size" in str(error) else _one_line(error)
        wish = "; pretrained=false starts without a download" if pretrained else ""
        raise ConfigError(f"encoder '{name}' cannot be built as a feature extractor ({reason}); {CHOOSE}{wish}") from error
    if not pretrained:
        _open_basic_blocks(net)
    features: Any = net.feature_info
    encoder = TimmEncoder(net, features.channels(), features.reduction(), dilated=output_stride is not None)
    _check_maps(encoder, name, in_channels)
    return encoder


def load_timm_weights(encoder: nn.Module, name: str, in_channels: int) -> None:
    """Load timm's ImageNet weights of `name` into an encoder of ours with the same parameter names; the classifier is left."""
    import timm

    try:
        state = timm.create_model(name, pretrained=True, in_chans=in_channels, num_classes=0).state_dict()
    except Exception as error:  # the download raises whatever it likes
        raise ConfigError(
            f"encoder '{name}' has no weights to start from ({_one_line(error)}); pretrained=false starts without a download"
        ) from error
    wanted = encoder.state_dict()
    encoder.load_state_dict({key: value for key, value in state.items() if key in wanted})


def _open_basic_blocks(net: nn.Module) -> None:
    """Let the branches of ResNet's blocks of two convolutions count from the start, as in ours.

    timm begins with scales of 0 in the last normalisation of each branch. Bottlenecks learn better from there, these blocks are
    slowed down in short trainings (benchmarks/README.md; U-Net on CHASE after 250 steps: mean IoU 0.759, without 0.774).
    """
    from timm.models.resnet import BasicBlock

    for block in net.modules():
        if isinstance(block, BasicBlock):
            nn.init.ones_(block.get_parameter("bn2.weight"))


def _check_maps(encoder: TimmEncoder, name: str, in_channels: int) -> None:
    """Try the encoder on a small picture, since a name alone does not say whether it takes any size."""
    if any(r & (r - 1) for r in encoder.reductions):
        raise ConfigError(f"encoder '{name}' shrinks by {list(encoder.reductions)}, not by powers of two; {CHOOSE}")
    size = max(64, 2 * encoder.reductions[-1])
    expected = [(1, c, size // r, size // r) for c, r in zip(encoder.channels, encoder.reductions, strict=True)]
    training = encoder.training
    try:
        with torch.no_grad():
            seen = [tuple(feature.shape) for feature in encoder.eval()(torch.zeros(1, in_channels, size, size))]
    except Exception as error:  # whatever the foreign network raises
        raise ConfigError(
            f"encoder '{name}' does not take pictures of {size} x {size} ({_one_line(error)}); {CHOOSE}"
        ) from error
    encoder.train(training)
    if seen != expected:
        raise ConfigError(f"encoder '{name}' returns maps of shape {seen}, expected {expected}; {CHOOSE}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
